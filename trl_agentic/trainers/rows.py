"""From the rollouts of a process to the rows that it trains on, and to tensors of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from trl.trainer.utils import pad

from trl_agentic.micro_batches import balanced
from trl_agentic.rollout.context import Row, trajectory_rows
from trl_agentic.types import StopReason, Trajectory


_LENGTH_STOPS = (StopReason.TURN_LENGTH, StopReason.ROLLOUT_LENGTH, StopReason.CONTEXT_LENGTH)


def training_rows(
    trajectory: Trajectory, rollout: int, pad_token_id: int, mask_truncated: bool, has_logprobs: bool
) -> list[Row]:
    """Rows of a trajectory; a rollout that must not be trained on keeps a row, fully masked.

    Args:
        trajectory: the rollout.
        rollout: its number in the global batch.
        pad_token_id: what a row has that has nothing.
        mask_truncated: whether a rollout that was cut for its length must not be trained on; a failed one never is.
        has_logprobs: whether rows have the log-probabilities of sampling.
    """
    rows = trajectory_rows(trajectory, rollout)
    if trajectory.stop_reason is StopReason.ERROR or (mask_truncated and trajectory.stop_reason in _LENGTH_STOPS):
        for row in rows:
            row.turn_ids = [-1] * len(row.turn_ids)
    return rows or [Row(rollout, [pad_token_id], [pad_token_id], [-1], logprobs=[0.0] if has_logprobs else None)]


def draw_places(count: int) -> list[int]:
    """The place of each of `count` rollouts in the order of training, drawn as TRL's shuffle draws it."""
    places: list[int] = torch.randperm(count).argsort().tolist()
    return places


def balance(rows: list[Row], update_of: Sequence[int]) -> list[Row]:
    """The rows that this process trains on when all have about equally many tokens in each update.

    The loss is a sum over rows with a normaliser of all processes, so it does not matter who computes which.

    Args:
        rows: those of the rollouts that this process sampled.
        update_of: optimizer step of each rollout of the global batch, counted from 0.
    """
    sizes = [(update_of[row.rollout], len(row.prompt_ids) + len(row.completion_ids)) for row in rows]
    known: list[list[tuple[int, int]]] = gather_object([sizes])
    own = PartialState().process_index
    goes = [own] * len(rows)
    for update in set(update_of):
        lengths = [[tokens for of, tokens in process if of == update] for process in known]
        here = [i for i, (of, _) in enumerate(sizes) if of == update]
        for i, process in zip(here, balanced(lengths)[own], strict=True):
            goes[i] = process
    moved = gather_object([(process, row) for process, row in zip(goes, rows, strict=True) if process != own])
    stay = [row for process, row in zip(goes, rows, strict=True) if process == own]
    return stay + [row for process, row in moved if process == own]


def row_tensors(
    rows: Sequence[Row], pad_token_id: int, multiple: int | None, device: torch.device
) -> dict[str, Tensor]:
    """Rows as TRL lays them out.

    Args:
        rows: N rows.
        pad_token_id: id of the padding.
        multiple: widths are rounded up to a multiple of it.
        device: where the tensors go.

    Returns:
        `prompt_ids`, `prompt_mask` of shape (N, P), padded on the left; `completion_ids`, `completion_mask`,
        `tool_mask` (1 for a sampled token), `turn_ids` (-1 for all others) and, if all rows have log-probabilities,
        `sampling_per_token_logps` of shape (N, C), padded on the right; `rollout_ids` of shape (N,).
    """

    def padded(values: Sequence[list[Any]], side: str, value: Any) -> Tensor:
        tensors = [torch.tensor(row) for row in values]
        return pad(tensors, padding_value=value, padding_side=side, pad_to_multiple_of=multiple).to(device)

    turn_ids = padded([row.turn_ids for row in rows], "right", -1)
    tensors = {
        "prompt_ids": padded([row.prompt_ids for row in rows], "left", pad_token_id),
        "prompt_mask": padded([[1] * len(row.prompt_ids) for row in rows], "left", 0),
        "completion_ids": padded([row.completion_ids for row in rows], "right", pad_token_id),
        "completion_mask": padded([[1] * len(row.completion_ids) for row in rows], "right", 0),
        "tool_mask": (turn_ids >= 0).long(),
        "turn_ids": turn_ids,
        "rollout_ids": torch.tensor([row.rollout for row in rows], device=device),
    }
    logprobs = [row.logprobs for row in rows if row.logprobs is not None]
    if len(logprobs) == len(rows):
        tensors["sampling_per_token_logps"] = padded(logprobs, "right", 0.0)
    return tensors
