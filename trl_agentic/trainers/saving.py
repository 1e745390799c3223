"""Training rollouts on disk, with the credit that each turn got."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from accelerate.utils import gather_object
from torch import Tensor

from trl_agentic.records import save_records, trajectory_record
from trl_agentic.types import Trajectory


class TrajectoryLog:
    """Writes the rollouts of one generation in every so many steps to `folder/step_*.parquet`.

    Args:
        folder: where the files go; made when the first is written.
        every: optimizer steps from one file to the next; 0 writes none.
    """

    def __init__(self, folder: Path, every: int):
        self._folder = folder
        self._every = every
        self._next = 0

    def is_due(self, step: int) -> bool:
        """Whether the rollouts that are sampled after `step` updates are to be saved."""
        return self._every > 0 and step >= self._next

    def save(
        self,
        step: int,
        trajectories: list[Trajectory],
        credit: Mapping[str, Tensor],
        first: int,
        num_generations: int,
        write: bool,
    ) -> None:
        """Gathers the rollouts of all processes and writes them. To be called by every process.

        Args:
            step: updates so far. The rollouts are those of update `step + 1`, which names the file.
            trajectories: rollouts of this process.
            credit: (B, K) tensors over the global batch, by the names in [`~trl_agentic.records.CREDIT_COLUMNS`].
            first: row of this process's first rollout in the global batch.
            num_generations: rollouts of a group.
            write: whether this process writes the file.
        """
        self._next = step + self._every
        records = []
        for row, trajectory in enumerate(trajectories, start=first):
            played = {} if trajectory.error else {name: values[row].tolist() for name, values in credit.items()}
            group, sample = divmod(row, num_generations)
            records.append(trajectory_record(trajectory, played, step=step + 1, group=group, sample=sample))
        records = gather_object(records)
        if write:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_records(self._folder / f"step_{step + 1:06d}.parquet", records)
