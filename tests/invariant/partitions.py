"""Micro-batches of any partition of a generation, with an old policy that differs from the trained one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from trl_agentic import AgenticTrainer
from trl_agentic.types import Trajectory


FROZEN = ("old_per_token_logps", "ref_per_token_logps")


class Partitions:
    """The sequences of a generation, to be laid out in any micro-batches.

    Log-probabilities of the old and the reference policy are computed once, for all sequences together.

    Args:
        trainer: the trainer that played them.
        tasks: rows to play.
        trajectories: finished rollouts instead of `tasks`.
        shift: of the whole as one micro-batch, what to add to its `old_per_token_logps`.
    """

    def __init__(
        self,
        trainer: AgenticTrainer,
        tasks: list[dict[str, Any]] | None = None,
        trajectories: list[Trajectory] | None = None,
        shift: Callable[[dict[str, Tensor]], Tensor] | None = None,
    ):
        trainer.model.train()
        if trajectories is None:
            assert tasks is not None
            trajectories, credit = trainer.generation.scored_rollouts(tasks)
        else:
            credit = trainer.generation.credit(trainer.generation.turn_batch("train", trajectories, None))
        self.prepared = trainer.generation.batches.prepare("train", trajectories, credit, torch.device("cpu"))
        whole = self.prepared.micro_batch(range(len(self.prepared.sequences)))
        trainer._add_frozen_logps("train", [whole])
        if shift is not None and "old_per_token_logps" in whole:
            whole["old_per_token_logps"] = whole["old_per_token_logps"].double() + shift(whole)
        first = whole["prompt_ids"].size(1)
        self._frozen = {key: pad(whole[key], (first, 0)) for key in FROZEN if key in whole}  # by absolute column

    def __len__(self) -> int:
        return len(self.prepared.sequences)

    def micro_batch(self, part: Sequence[int]) -> dict[str, Tensor]:
        """The micro-batch of these sequences; of none, the one that stands in for an empty micro-batch."""
        batch = self.prepared.micro_batch(part)
        lengths = self.prepared.lengths
        rows = list(part) or [lengths.index(min(lengths))]
        first, width = batch["prompt_ids"].size(1), batch["completion_ids"].size(1)
        for key, values in self._frozen.items():
            batch[key] = values[rows][:, first : first + width]
        return batch


def gradients(
    trainer: AgenticTrainer, partitions: Partitions, parts: Sequence[Sequence[int]], steps: int = 1
) -> list[Tensor]:
    """Gradient of these micro-batches; `steps` optimizer steps share the generation."""
    trainer.args.steps_per_generation, trainer.current_gradient_accumulation_steps = steps, 1
    trainer.model.zero_grad()
    for part in parts:
        trainer._compute_loss(trainer.model, partitions.micro_batch(part)).backward()
    return [parameter.grad.clone() for parameter in trainer.model.parameters() if parameter.requires_grad]


def use_loss(trainer: AgenticTrainer, loss_type: str) -> None:
    """Has the trainer use another loss type from now on."""
    trainer.objective = replace(trainer.objective, loss_type=loss_type)
