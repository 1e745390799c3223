"""Callback that finds updates that are not finite, before the optimizer step, and names their rollouts."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor
from transformers import TrainerCallback

from trl_agentic.types import Trajectory


logger = logging.getLogger(__name__)

MAX_SKIPPED = 10
"""Maximum number of consecutive updates that are skipped before the run stops."""


class NonFiniteGuard(TrainerCallback):
    """Callback that checks losses, log-probabilities and the gradient of an update, and stops the run or skips it.

    Nothing is read back from the device until the gradients of the update are complete.

    Args:
        action: `"stop"` or `"skip"`.
        gradients: whether to check the gradient; off with a loss scaler, for which an infinite gradient is normal.
    """

    def __init__(self, action: str, gradients: bool = True):
        self._action = action
        self._gradients = gradients
        self._seen: list[tuple[Tensor, Tensor]] = []
        self.sampled: tuple[int, Sequence[Trajectory]] = 0, ()
        """Index of this process's first rollout in the global batch, and the rollouts of the last generation."""
        self._skipped_in_a_row = 0
        self.grad_norm: Any = None
        """Norm of the gradient of the update, before it was clipped."""
        self._skipped = 0

    def start_batch(self, first: int, trajectories: Sequence[Trajectory]) -> None:
        """Starts a generation. Its rollouts are named if they cause an update that is not finite.

        Args:
            first: index of the first rollout in the global batch.
            trajectories: the rollouts.
        """
        self.sampled = first, trajectories

    def take_skipped(self) -> int:
        """Returns the number of updates that were skipped since the last call."""
        skipped, self._skipped = self._skipped, 0
        return skipped

    def record(self, loss: Tensor, inputs: dict[str, Tensor], logps: Tensor | None) -> None:
        """Records a micro-batch after its forward pass.

        Args:
            loss: loss of the micro-batch, a scalar.
            inputs: the micro-batch: `tool_mask` (B, T), `rollout_ids` (B,), perhaps `old_per_token_logps` (B, T).
            logps (`Tensor` of shape (B, T)): log-probabilities, `None` if unknown.
        """
        finite = torch.isfinite(loss.detach())
        blamed = torch.zeros_like(inputs["rollout_ids"], dtype=torch.bool)
        if logps is not None:
            ratio = (logps - inputs.get("old_per_token_logps", logps)).exp()  # NaN and infinity pass through
            wrong = (~torch.isfinite(ratio) | ~torch.isfinite(logps)) & inputs["tool_mask"].bool()
            blamed = wrong.any(dim=1)
        blamed = blamed | (~finite & ~blamed.any())  # if no row can be blamed, all of them are
        self._seen.append((blamed, inputs["rollout_ids"]))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Decides about the update, in the same way on every process.

        Raises:
            FloatingPointError: the update is not finite, and the action is to stop or too many updates were skipped.
        """
        seen, self._seen = self._seen, []
        rows = torch.cat([blamed for blamed, _ in seen]).sum() if seen else torch.zeros(())
        norm = float(self.grad_norm) if self._gradients and self.grad_norm is not None else 0.0
        counts = torch.tensor([float(rows), float(not math.isfinite(norm))], device=PartialState().device)
        rows_everywhere, norms_everywhere = reduce(counts, reduction="sum").tolist()
        if not rows_everywhere and not norms_everywhere:
            self._skipped_in_a_row = 0
            return
        blamed = set(gather_object([i for wrong, rollouts in seen for i in rollouts[wrong].tolist()]))
        tasks = dict(gather_object(self._tasks_of(blamed)))
        names = [f"rollout {number} of the batch{tasks.get(number, '')}" for number in sorted(blamed)]
        what = "The loss or a log-probability" if rows_everywhere else "The gradient"
        where = ", ".join(names) or "every loss was finite, so no rollout can be named"
        message = f"{what} of update {state.global_step + 1} is not finite: {where}."
        self._skipped_in_a_row += 1
        if self._action == "stop" or self._skipped_in_a_row > MAX_SKIPPED:
            advice = (
                "set `nonfinite_update='skip'` to leave such updates out"
                if self._action == "stop"
                else f"{MAX_SKIPPED} updates before it were skipped, so skipping does not help"
            )
            raise FloatingPointError(
                f"{message} The weights are still those of step {state.global_step}. Lower `learning_rate` or "
                f"`max_grad_norm`, use float32 or bfloat16, look for broken weights in the model; {advice}."
            )
        logger.warning("%s The update is skipped.", message)
        self._skipped += 1
        if self._gradients:  # without gradients an optimizer leaves weights and moments as they are
            kwargs["model"].zero_grad(set_to_none=True)

    def _tasks_of(self, blamed: set[int]) -> list[tuple[int, str]]:
        """Blamed rollouts of this process, with their tasks as text."""
        first, trajectories = self.sampled
        return [
            (number, f" (task {str(trajectory.task)[:200]})")
            for number, trajectory in enumerate(trajectories, start=first)
            if number in blamed
        ]
