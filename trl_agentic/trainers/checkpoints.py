"""Checkpoints: the position in a generation that resuming needs, and checks that they can be written."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor


logger = logging.getLogger(__name__)

_PROBE_BYTES = 2**20


def check_output_dir(folder: str | Path, needed: int = 0) -> None:
    """Checks, before training, that the output folder can be written. Leaves nothing behind.

    Args:
        folder: output folder of the run; it need not exist.
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
            f"A checkpoint takes about {needed / 1e9:.2f} GB, but the disk of `output_dir` {str(folder)!r} has only "
            f"{free / 1e9:.2f} GB free. Free the disk, choose another, or set `save_only_model=True` or "
            "`save_strategy='no'`."
        )


def checkpoint_bytes(model: torch.nn.Module, weights_only: bool) -> int:
    """Estimates the size of a checkpoint: the weights, and two moments of those that are trained."""
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    saved = parameters if len(trained) == len(parameters) else trained  # an adapter is saved alone
    moments = 0 if weights_only else 2 * sum(p.numel() * p.element_size() for p in trained)
    return sum(p.numel() * p.element_size() for p in saved) + moments


def save_generation(
    folder: Path, step: int, shape: tuple[int, ...], batches: list[list[dict[str, Tensor]]] | None
) -> None:
    """Saves the position of this process in a generation.

    Args:
        folder: the checkpoint.
        step: accumulation steps so far.
        shape: batch size, and the numbers of steps that `step` is counted by.
        batches: micro-batches that are still to be trained on, `None` if the next step starts a generation.
    """
    state = PartialState()
    folder.mkdir(parents=True, exist_ok=True)
    saved = {"step": step, "shape": shape, "processes": state.num_processes, "batches": batches}
    torch.save(saved, folder / f"generation_{state.process_index}.pt")


def load_generation(
    folder: Path, shape: tuple[int, ...], device: torch.device
) -> tuple[int, list[list[dict[str, Tensor]]] | None] | None:
    """Loads what [`save_generation`] saved; `None` if there is nothing of this process or of this shape.

    Args:
        folder: the checkpoint.
        shape: as it was saved.
        device: device of the tensors.
    """
    state = PartialState()
    path = folder / f"generation_{state.process_index}.pt"
    if not path.is_file():
        return None
    place = torch.device("cpu") if device.type == "cpu" else device  # `torch.load` does not know "cpu:0"
    saved = torch.load(path, map_location=place, weights_only=True)
    is_ours = (saved["processes"], saved.get("shape")) == (state.num_processes, shape)
    return (saved["step"], saved["batches"]) if is_ours else None


def resume_generation(
    folder: Path,
    shape: tuple[int, ...],
    device: torch.device,
    otherwise: tuple[int, list[list[dict[str, Tensor]]] | None],
) -> tuple[int, list[list[dict[str, Tensor]]] | None]:
    """Position to resume from: as [`load_generation`], or `otherwise` with a warning.

    Args:
        folder, shape, device: as in [`load_generation`].
        otherwise: position at the start of the next generation.
    """
    saved = load_generation(folder, shape, device)
    if saved is None:
        logger.warning(
            "%s holds no rollouts of this process: it was saved elsewhere, by another number of processes or with "
            "other batch sizes. The next step starts with new rollouts, so the run continues, but not exactly as it "
            "would have.",
            folder,
        )
    return saved or otherwise
