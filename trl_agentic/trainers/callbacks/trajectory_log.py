"""Callback that saves training rollouts with the credit of each turn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from trl_agentic.batching.turns import gather_to_turns
from trl_agentic.records import save_records, trajectory_record
from trl_agentic.types import Trajectory


class TrajectoryLog(TrainerCallback):
    """Callback that writes the rollouts of one generation to `folder/step_*.parquet` every few steps.

    A file is written at the end of each optimizer step that trains on its rollouts. The ratio of a turn is that of the
    last such step.

    Args:
        folder: folder of the files; created when the first is written.
        every: optimizer steps from one file to the next; 0 writes none.
    """

    def __init__(self, folder: Path, every: int):
        self._folder = folder
        self._every = every
        self._next = 0
        self._step = 0
        self._records: list[dict[str, Any]] | None = None
        self._ratios: dict[tuple[int, int], tuple[float, float]] = {}  # of a rollout and turn: ratio, clipped share
        self._is_written = True

    def is_due(self, step: int) -> bool:
        """Whether the rollouts sampled after `step` updates are to be saved. Earlier ones are dropped.

        Every process calls it together, like all methods.
        """
        self._write()  # an update may take several generations
        self._records = None
        return self._every > 0 and step >= self._next

    def start_batch(
        self,
        step: int,
        trajectories: list[Trajectory],
        credit: Mapping[str, Tensor],
        first: int,
        num_generations: int,
    ) -> None:
        """Starts a file with the rollouts of this process.

        Args:
            step: number of updates so far. The rollouts belong to update `step + 1`, which names the file.
            trajectories: rollouts of this process.
            credit: (B, K) tensors over the global batch, by the names in [`~trl_agentic.records.CREDIT_COLUMNS`].
            first: index of this process's first rollout in the global batch.
            num_generations: group size.
        """
        self._next = step + self._every
        self._step = step + 1
        self._records = []
        self._ratios = {}
        self._is_written = False
        for row, trajectory in enumerate(trajectories, start=first):
            played = {} if trajectory.error else {name: values[row].tolist() for name, values in credit.items()}
            group, sample = divmod(row, num_generations)
            self._records.append(trajectory_record(trajectory, played, step=self._step, group=group, sample=sample))

    def record_ratios(self, rollout_ids: Tensor, turn_ids: Tensor, ratio: Tensor, is_clipped: Tensor) -> None:
        """Records the importance ratios of a micro-batch, whose rollouts may belong to any process.

        Args:
            rollout_ids (`Tensor` of shape (B,), int): rollout of the global batch of each row.
            turn_ids (`Tensor` of shape (B, T), int): turn of each token, -1 for all others.
            ratio (`Tensor` of shape (B, T)): importance ratio; a turn's is the mean over its tokens.
            is_clipped (`Tensor` of shape (B, T), bool): whether the clip range stops a token's gradient; a turn
                records the share of its tokens.
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
                self._ratios[rollout, k] = ratios[row][k], clipped[row][k]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the file if the update has changed it."""
        self._write()

    def _write(self) -> None:
        if self._records is None or self._is_written:
            return
        records = gather_object(self._records)
        ratios = gather_object(list(self._ratios.items()))
        if PartialState().is_main_process:
            for (rollout, k), (ratio, clipped) in ratios:
                records[rollout]["turns"][k] |= {"ratio": ratio, "clipped": clipped}
            self._folder.mkdir(parents=True, exist_ok=True)
            save_records(self._folder / f"step_{self._step:06d}.parquet", records)
        self._is_written = True
