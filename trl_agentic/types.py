"""Types of the package: the result of an environment step, the record of a rollout, the input of an algorithm.

This module imports only the standard library: a process that runs an environment needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepResult:
    """Result of one environment step.

    `terminated` and `truncated` have Gymnasium's meaning: `terminated` ends the episode inside the task, `truncated`
    cuts it from outside (a step budget). `info` may carry `anchor_state` (`str`, the raw state for grouping; the
    observation if absent), `admissible_actions` (`list[str]`), `is_action_valid` (`bool`) and `success` (`bool`).
    """

    observation: str
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = field(default_factory=dict)


class StopReason(StrEnum):
    """Why a rollout ended. Every rollout has exactly one."""

    TERMINATED = "terminated"
    """The environment reached the end of its task."""
    TRUNCATED = "truncated"
    """The environment cut the episode (its own step budget)."""
    MAX_TURNS = "max_turns"
    """The trainer's `max_turns` was used up."""
    TURN_LENGTH = "turn_length"
    """A turn did not end within `max_turn_tokens`, and `overlong_turn="stop"`."""
    ROLLOUT_LENGTH = "rollout_length"
    """The next turn would not fit into the rollout's token budget."""
    CONTEXT_LENGTH = "context_length"
    """The next turn would not fit into the model's context."""
    ERROR = "error"
    """The environment failed."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids before an action.

    Attributes:
        ids: token ids.
        extends: whether they follow the ids of the previous turn; otherwise they are the whole prompt.
    """

    ids: list[int]
    extends: bool


@dataclass(slots=True)
class Turn:
    """One environment step as the policy experienced it. Holds only the tokens that the turn *adds*.

    Attributes:
        prompt_ids: ids before the action. If `extends`, they follow the ids of the previous turn; otherwise they are
            the whole prompt of this turn.
        action_ids: ids that the policy sampled, with the end-of-turn token if it sampled one.
        logprobs: sampling log-probability of each action id, or `None` if the engine gives none.
        action: the action as text, without special tokens.
        observation: the text before the action.
        anchor_state: the state that this turn was played in; equal strings are one state.
        reward: reward of the action.
        extends: whether `prompt_ids` follow the previous turn.
        cut: whether the action ended at its token budget instead of with an end-of-turn token.
        info: the `StepResult.info` after this action.
        policy_step: optimizer step whose weights sampled the action, `None` if unknown.
    """

    prompt_ids: list[int]
    action_ids: list[int]
    logprobs: list[float] | None
    action: str
    observation: str
    anchor_state: str
    reward: float = 0.0
    extends: bool = True
    cut: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    policy_step: int | None = None


@dataclass(slots=True)
class Trajectory:
    """Record of one rollout: its task, its turns, and how it ended.

    Attributes:
        task: the dataset row that the environment was reset with.
        turns: the turns in the order they were played; empty only after an error in `reset` or when the first prompt
            does not fit.
        stop_reason: why the rollout ended.
        final_observation: observation after the last action.
        final_anchor_state: the state after the last action, `None` when there is none (a terminal state has no value).
        success: the last `info["success"]` of the environment, `None` if there is none.
        error: the traceback of a failed environment.
        final_prompt: prompt before another action, which was not sampled; `None` if there is no observation to read
            (terminal state, error).
        retries: fresh environments that replaced failed ones.
        answer_logprobs: mean log-probability of the ground truth's tokens at each turn boundary
            (trl_agentic.information_gain), NaN where it is unknown; `None` if the inference engine did not compute it.
    """

    task: dict[str, Any]
    turns: list[Turn] = field(default_factory=list)
    stop_reason: StopReason = StopReason.ERROR
    final_observation: str = ""
    final_anchor_state: str | None = None
    success: bool | None = None
    error: str | None = None
    final_prompt: Prompt | None = None
    retries: int = 0
    answer_logprobs: list[float] | None = None

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of the turn rewards."""
        return sum(turn.reward for turn in self.turns)

    @property
    def score(self) -> float | None:
        """The environment's grade of the rollout in addition to `success`: the last `info["score"]`."""
        scores = [turn.info["score"] for turn in self.turns if turn.info.get("score") is not None]
        return float(scores[-1]) if scores else None

    @property
    def task_type(self) -> str | None:
        """Kind of task: `task_type` of the dataset row, or else of the last turn's `info` that has one."""
        types = [turn.info["task_type"] for turn in self.turns if "task_type" in turn.info]
        return self.task.get("task_type") or (types[-1] if types else None)


@dataclass(frozen=True, slots=True)
class PromptView:
    """Part of a rollout that a prompt renderer may show before the next turn.

    Attributes:
        task: the dataset row, its `prompt` included.
        step: number of the next turn, counted from 1.
        first_observation: the result of `reset`.
        history: the last turns, at most `history_length` of them, the oldest first.
        observation: the current observation.
        info: `StepResult.info` of the step that returned this observation; empty before the first turn.
    """

    task: dict[str, Any]
    step: int
    first_observation: str
    history: list[Turn]
    observation: str
    info: dict[str, Any]


View = PromptView
"""Earlier name of [`PromptView`]."""


@dataclass(slots=True)
class TurnBatch:
    """The turns of B rollouts as tensors, right-padded to K turns: the input of every algorithm.

    Args:
        rewards (`Tensor` of shape (B, K), float): reward of each turn.
        turn_mask (`Tensor` of shape (B, K), bool): `True` where rollout i has a turn k; `True`s come first in each
            row.
        group_ids (`Tensor` of shape (B,), int): equal for rollouts of one prompt.
        anchor_ids (`Tensor` of shape (B, K), int): equal for turns played in one state; only compared inside a group.
        terminated (`Tensor` of shape (B,), bool): the episode ended inside the task (it was not cut by a budget).
        information_gain (`Tensor` of shape (B, K), float, *optional*): NaN where a turn has none.
        outcomes (`Tensor` of shape (B,), float, *optional*): outcome reward of a rollout, apart from `rewards`.
        answered (`Tensor` of shape (B,), bool, *optional*): the last turn is an answer turn.
        final_anchor_ids (`Tensor` of shape (B,), int, *optional*): state after the last turn, in the numbering of
            `anchor_ids`; -1 where there is none.
        penalties (`Tensor` of shape (B, K), float, *optional*): cost of a turn itself (an invalid action), not
            negative; it counts for that turn alone and is no part of `rewards`.

    Raises:
        ValueError: a tensor's shape or type is not as above, `turn_mask` is not right-padded, a reward or a gain under
            the mask is infinite, a reward under it is NaN, or the outcome of a rollout with turns is not finite. The
            message names the field.
    """

    rewards: Tensor
    turn_mask: Tensor
    group_ids: Tensor
    anchor_ids: Tensor
    terminated: Tensor
    information_gain: Tensor | None = None
    outcomes: Tensor | None = None
    answered: Tensor | None = None
    final_anchor_ids: Tensor | None = None
    penalties: Tensor | None = None

    def __post_init__(self) -> None:
        import torch

        if self.rewards.dim() != 2:
            raise ValueError(f"TurnBatch.rewards must have shape (B, K), got {tuple(self.rewards.shape)}.")
        b, k = self.rewards.shape
        for name, shape, kind in (
            ("rewards", (b, k), "float"),
            ("turn_mask", (b, k), "bool"),
            ("group_ids", (b,), "int"),
            ("anchor_ids", (b, k), "int"),
            ("terminated", (b,), "bool"),
            ("information_gain", (b, k), "float"),
            ("outcomes", (b,), "float"),
            ("answered", (b,), "bool"),
            ("final_anchor_ids", (b,), "int"),
            ("penalties", (b, k), "float"),
        ):
            value: Tensor | None = getattr(self, name)
            if value is None:
                continue
            if tuple(value.shape) != shape:
                raise ValueError(f"TurnBatch.{name} must have shape {shape}, got {tuple(value.shape)}.")
            actual = "bool" if value.dtype == torch.bool else "float" if value.is_floating_point() else "int"
            if actual != kind:
                raise ValueError(f"TurnBatch.{name} must be a tensor of {kind}, got {value.dtype}.")
        if k > 1 and bool((self.turn_mask[:, 1:] & ~self.turn_mask[:, :-1]).any()):
            raise ValueError("TurnBatch.turn_mask must be right-padded: a turn follows a gap in some row.")
        bad = self.turn_mask & ~torch.isfinite(self.rewards)
        if bool(bad.any()):
            row, turn = (int(x) for x in bad.nonzero()[0])
            raise ValueError(
                f"TurnBatch.rewards[{row}, {turn}] is {self.rewards[row, turn].item()}: rewards must be finite."
            )
        if self.outcomes is not None:
            bad = self.turn_mask.any(dim=1) & ~torch.isfinite(self.outcomes)
            if bool(bad.any()):
                row = int(bad.nonzero()[0])
                raise ValueError(f"TurnBatch.outcomes[{row}] is {self.outcomes[row].item()}: outcomes must be finite.")
        if self.information_gain is not None:
            bad = self.turn_mask & torch.isinf(self.information_gain)
            if bool(bad.any()):
                row, turn = (int(x) for x in bad.nonzero()[0])
                raise ValueError(f"TurnBatch.information_gain[{row}, {turn}] is infinite: a gain is finite, or NaN.")
