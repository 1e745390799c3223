"""From finished trajectories to ragged training sequences, in the order in which they are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from trl_agentic.types import StopReason, Trajectory


_LENGTH_STOPS = (StopReason.TURN_LENGTH, StopReason.ROLLOUT_LENGTH, StopReason.CONTEXT_LENGTH)


@dataclass(slots=True)
class TrainingSequence:
    """Training sequence: a prompt, then sampled and observed tokens.

    Attributes:
        rollout: index of the rollout in the global batch.
        prompt_ids: ids before the first action.
        completion_ids: ids from the first action on.
        turn_ids: for each completion id, the turn of the rollout that sampled it; -1 for an id that is not trained on.
        logprobs: for each completion id, its sampling log-probability, 0 for an observed id; `None` if unknown.
    """

    rollout: int
    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    turn_ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None

    def __len__(self) -> int:
        """Number of tokens, prompt included."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def trained_tokens(self) -> int:
        """Number of tokens that the loss reads."""
        return sum(turn >= 0 for turn in self.turn_ids)

    @property
    def trained_turns(self) -> int:
        """Number of turns with a token that the loss reads."""
        return len(set(self.turn_ids) - {-1})


def trajectory_sequences(trajectory: Trajectory, rollout: int) -> list[TrainingSequence]:
    """Splits a trajectory into sequences. Consecutive turns that extend one another share a sequence.

    If every prompt shows the full history, a rollout is one sequence: prompt, action, observation, action, ...

    Args:
        trajectory: a finished rollout.
        rollout: its index in the global batch.

    Returns:
        The sequences in the order of the turns; none for a trajectory without turns.

    Raises:
        ValueError: only some turns of a sequence have log-probabilities.
    """
    sequences: list[TrainingSequence] = []
    for k, turn in enumerate(trajectory.turns):
        if not turn.extends or not sequences:
            logprobs: list[float] | None = None if turn.logprobs is None else []
            sequences.append(TrainingSequence(rollout, prompt_ids=turn.prompt_ids, logprobs=logprobs))
            observed = []
        else:
            observed = turn.prompt_ids
        sequence = sequences[-1]
        sequence.completion_ids = sequence.completion_ids + observed + turn.action_ids
        sequence.turn_ids = sequence.turn_ids + [-1] * len(observed) + [k] * len(turn.action_ids)
        if sequence.logprobs is not None:
            if turn.logprobs is None:
                raise ValueError(f"Turn {k} of rollout {rollout} has no log-probabilities, but earlier turns have.")
            sequence.logprobs = sequence.logprobs + [0.0] * len(observed) + turn.logprobs
    return sequences


def training_sequences(
    trajectory: Trajectory, rollout: int, pad_token_id: int, mask_truncated: bool, has_logprobs: bool
) -> list[TrainingSequence]:
    """Sequences to train on. A rollout that must not be trained on keeps its sequences, with no token in the loss.

    Args:
        trajectory: a finished rollout.
        rollout: its index in the global batch.
        pad_token_id: the single token of the sequence of a rollout without turns.
        mask_truncated: whether rollouts that a length budget cut are left out of the loss. Failed ones always are.
        has_logprobs: whether sequences have sampling log-probabilities.

    Returns:
        At least one sequence, so that every process has something to compute.
    """
    sequences = trajectory_sequences(trajectory, rollout)
    if trajectory.stop_reason is StopReason.ERROR or (mask_truncated and trajectory.stop_reason in _LENGTH_STOPS):
        for sequence in sequences:
            sequence.turn_ids = [-1] * len(sequence.turn_ids)
    empty = TrainingSequence(rollout, [pad_token_id], [pad_token_id], [-1], [0.0] if has_logprobs else None)
    return sequences or [empty]


def shuffle_order(count: int) -> list[int]:
    """Position of each of `count` rollouts in a random training order, drawn as TRL's shuffle draws it."""
    positions: list[int] = torch.randperm(count).argsort().tolist()
    return positions


def update_of_rollouts(positions: Sequence[int], per_process: int, updates: int) -> list[int]:
    """Optimizer step that each rollout belongs to, counted from 0 in its generation.

    Args:
        positions: position of each rollout in the training order of its process.
        per_process: rollouts of a process.
        updates: optimizer steps that share the generation; each trains on rollouts of its own.
    """
    return [position * updates // per_process for position in positions]
