"""What a run leaves on disk beside its model: rollouts with the credit of each turn, and what resuming needs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from trl_agentic.records import save_records, trajectory_record
from trl_agentic.turns import gather_to_turns
from trl_agentic.types import Trajectory


_PROBE_BYTES = 2**20


def check_output_dir(folder: str | Path, needed: int = 0) -> None:
    """Fails now, rather than at the first checkpoint, if nothing can be written. Leaves nothing behind.

    Args:
        folder: where the run writes; it need not exist.
        needed: bytes that must be free.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full. The message names `output_dir`.
    """
    place = Path(folder).absolute()
    while not place.exists() and not place.is_symlink():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise type(error)(
            error.errno, f"`output_dir` {str(folder)!r} cannot be written ({error}). Free the disk or choose another"
        ) from error
    if free < needed:
        raise OSError(
            f"A checkpoint takes about {needed / 1e9:.2f} GB, but where `output_dir` {str(folder)!r} is, only "
            f"{free / 1e9:.2f} GB are free. Free the disk, choose another, or set `save_only_model=True` or "
            "`save_strategy='no'`."
        )


def checkpoint_bytes(model: torch.nn.Module, weights_only: bool) -> int:
    """About what a checkpoint takes: the weights, and two moments of those that are trained."""
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    saved = parameters if len(trained) == len(parameters) else trained  # an adapter is saved alone
    moments = 0 if weights_only else 2 * sum(p.numel() * p.element_size() for p in trained)
    return sum(p.numel() * p.element_size() for p in saved) + moments


def save_generation(
    folder: Path, step: int, shape: tuple[int, ...], batches: list[list[dict[str, Tensor]]] | None
) -> None:
    """Saves where in a generation this process stands.

    Args:
        folder: the checkpoint.
        step: accumulation steps so far.
        shape: rows of a batch, and the numbers of steps that `step` is counted by.
        batches: rollouts that are still to be trained on, `None` if the next step begins with new ones.
    """
    state = PartialState()
    folder.mkdir(parents=True, exist_ok=True)
    saved = {"step": step, "shape": shape, "processes": state.num_processes, "batches": batches}
    torch.save(saved, folder / f"generation_{state.process_index}.pt")


def load_generation(
    folder: Path, shape: tuple[int, ...], device: torch.device
) -> tuple[int, list[list[dict[str, Tensor]]] | None] | None:
    """What [`save_generation`] saved; `None` if this process has nothing there, or nothing of this shape.

    Args:
        folder: the checkpoint.
        shape: as it was saved.
        device: where the tensors go.
    """
    state = PartialState()
    path = folder / f"generation_{state.process_index}.pt"
    if not path.is_file():
        return None
    place = torch.device("cpu") if device.type == "cpu" else device  # `torch.load` knows no "cpu:0"
    saved = torch.load(path, map_location=place, weights_only=True)
    is_ours = (saved["processes"], saved.get("shape")) == (state.num_processes, shape)
    return (saved["step"], saved["batches"]) if is_ours else None


class TrajectoryLog(TrainerCallback):
    """Writes the rollouts of one generation in every so many steps to `folder/step_*.parquet`.

    A file is written at the end of each optimizer step that trains on its rollouts; the ratio of a turn is that of the
    last.

    Args:
        folder: where the files go; made when the first is written.
        every: optimizer steps from one file to the next; 0 writes none.
    """

    def __init__(self, folder: Path, every: int):
        self._folder = folder
        self._every = every
        self._next = 0
        self._step = 0
        self._records: list[dict[str, Any]] | None = None
        self._noted: dict[tuple[int, int], tuple[float, float]] = {}  # of a rollout and turn: ratio, clipped share
        self._is_written = True

    def is_due(self, step: int) -> bool:
        """Whether the rollouts that are sampled after `step` updates are to be saved. Those before are let go.

        To be called by every process, like all methods.
        """
        self._write()  # an update may take several generations
        self._records = None
        return self._every > 0 and step >= self._next

    def hold(
        self,
        step: int,
        trajectories: list[Trajectory],
        credit: Mapping[str, Tensor],
        first: int,
        num_generations: int,
    ) -> None:
        """Takes the rollouts of this process.

        Args:
            step: updates so far. The rollouts are those of update `step + 1`, which names the file.
            trajectories: rollouts of this process.
            credit: (B, K) tensors over the global batch, by the names in [`~trl_agentic.records.CREDIT_COLUMNS`].
            first: row of this process's first rollout in the global batch.
            num_generations: rollouts of a group.
        """
        self._next = step + self._every
        self._step = step + 1
        self._records = []
        self._noted = {}
        self._is_written = False
        for row, trajectory in enumerate(trajectories, start=first):
            played = {} if trajectory.error else {name: values[row].tolist() for name, values in credit.items()}
            group, sample = divmod(row, num_generations)
            self._records.append(trajectory_record(trajectory, played, step=self._step, group=group, sample=sample))

    def note_ratios(self, rollout_ids: Tensor, turn_ids: Tensor, ratio: Tensor, is_clipped: Tensor) -> None:
        """Takes what the loss knows of the rollouts that are held, by whichever process.

        Args:
            rollout_ids (`Tensor` of shape (B,), int): rollout of the global batch that each row comes from.
            turn_ids (`Tensor` of shape (B, T), int): turn of each token, -1 for all others.
            ratio (`Tensor` of shape (B, T)): importance ratio; a turn's is the mean over its tokens.
            is_clipped (`Tensor` of shape (B, T), bool): whether the range stops a token's gradient; of a turn, the
                share of its tokens.
        """
        if self._records is None:
            return
        self._is_written = False
        if turn_ids.numel() == 0:
            return
        count = int(turn_ids.max()) + 1
        ratios = gather_to_turns(ratio.detach(), turn_ids, count).tolist()
        clipped = gather_to_turns(is_clipped.to(ratio.dtype), turn_ids, count).tolist()
        for row, rollout in enumerate(rollout_ids.tolist()):
            for k in set(turn_ids[row].tolist()) - {-1}:
                self._noted[rollout, k] = ratios[row][k], clipped[row][k]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes what the update has changed."""
        self._write()

    def _write(self) -> None:
        if self._records is None or self._is_written:
            return
        records = gather_object(self._records)
        noted = gather_object(list(self._noted.items()))
        if PartialState().is_main_process:
            for (rollout, k), (ratio, clipped) in noted:
                records[rollout]["turns"][k] |= {"ratio": ratio, "clipped": clipped}
            self._folder.mkdir(parents=True, exist_ok=True)
            save_records(self._folder / f"step_{self._step:06d}.parquet", records)
        self._is_written = True
