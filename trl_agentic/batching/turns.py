"""Turn axis <-> token axis; and recorded trajectories -> [`~types.TurnBatch`].

Turn tensors have shape (B, K), token tensors (B, T). `turn_ids` (B, T) joins them: the turn of each generated token,
-1 for all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from trl_agentic.types import StopReason, Trajectory, TurnBatch


NO_STATE = -1


def spread_to_tokens(values: Tensor, turn_ids: Tensor, fill: float = 0.0) -> Tensor:
    """Gives every token the value of its turn.

    out[i, t] = values[i, turn_ids[i, t]], or `fill` where turn_ids[i, t] = -1

    Args:
        values (`Tensor` of shape (B, K)): one value per turn. If rows are not rollouts, first index the
            rollouts' values with the rollout of each row.
        turn_ids (`Tensor` of shape (B, T), int): in [-1, K).
        fill (`float`, *optional*, defaults to 0.0): value of tokens outside all turns (1.0 for clip scales).

    Returns:
        `Tensor` of shape (B, T), dtype of `values`.

    Raises:
        ValueError: the numbers of rows differ, or `turn_ids` names a turn that `values` does not have.
    """
    _check_turn_ids(turn_ids, values.shape[0], values.shape[1])
    if values.shape[1] == 0:
        return values.new_full(turn_ids.shape, fill)
    spread = values.gather(1, turn_ids.clamp(min=0))
    return torch.where(turn_ids >= 0, spread, torch.full_like(spread, fill))


def gather_to_turns(token_values: Tensor, turn_ids: Tensor, num_turns: int, reduce: str = "mean") -> Tensor:
    """Computes the sum or mean of the values of each turn's tokens.

    Args:
        token_values (`Tensor` of shape (B, T), float): values where `turn_ids` is -1 are not read.
        turn_ids (`Tensor` of shape (B, T), int): in [-1, num_turns).
        num_turns (`int`): K.
        reduce (`str`, *optional*, defaults to `"mean"`): `"mean"` or `"sum"`.

    Returns:
        `Tensor` of shape (B, K), dtype of `token_values`: 0 for a turn without tokens. Differentiable.

    Raises:
        ValueError: `reduce` is unknown, shapes differ, or `turn_ids` names a turn past `num_turns`.
    """
    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce must be one of ('mean', 'sum'), got {reduce!r}.")
    if token_values.shape != turn_ids.shape:
        raise ValueError(f"turn_ids must have shape {tuple(token_values.shape)}, got {tuple(turn_ids.shape)}.")
    _check_turn_ids(turn_ids, token_values.shape[0], num_turns)
    # Half precision cannot count past a few hundred tokens.
    wide = token_values.to(torch.promote_types(token_values.dtype, torch.float32))
    # Tokens outside all turns go to a last column, which is dropped.
    index = torch.where(turn_ids >= 0, turn_ids, num_turns)
    sums = wide.new_zeros(wide.shape[0], num_turns + 1)
    result = sums.scatter_add(1, index, torch.where(turn_ids >= 0, wide, 0.0))
    if reduce == "mean":
        result = result / sums.scatter_add(1, index, torch.ones_like(wide)).clamp(min=1.0)
    return result[:, :num_turns].to(token_values.dtype)


def anchor_id(state: str) -> int:
    """Returns the integer id of an anchor state: the first 63 bits of its BLAKE2b hash, the same in every process.

    Returns:
        `int` in [0, 2**63), so that it fits an int64 tensor and never is -1.
    """
    digest = blake2b(state.encode("utf-8", errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """Numbers of one rollout that an algorithm reads, cheap to send between processes.

    Args:
        group_id (`int`): equal for the rollouts of one prompt.
        rewards (`tuple[float, ...]`): reward of each turn.
        anchor_ids (`tuple[int, ...]`): state that each turn was played in, see [`anchor_id`].
        terminated (`bool`): the episode ended inside the task.
        final_anchor_id (`int`, *optional*, defaults to -1): state after the last turn; -1 where there is none.
        information_gain (`tuple[float, ...]`, *optional*): NaN for a turn without gain.
        penalties (`tuple[float, ...]`, *optional*): cost of each turn itself, no part of `rewards`.

    Raises:
        ValueError: `anchor_ids`, `penalties` or `information_gain` has another length than `rewards`.
    """

    group_id: int
    rewards: tuple[float, ...]
    anchor_ids: tuple[int, ...]
    terminated: bool
    final_anchor_id: int = NO_STATE
    information_gain: tuple[float, ...] | None = None
    penalties: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("anchor_ids", "information_gain", "penalties"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.rewards):
                raise ValueError(
                    f"TurnRecord.{name} must hold one value per turn ({len(self.rewards)}), got {len(values)}."
                )


def turn_record(
    trajectory: Trajectory,
    group_id: int,
    information_gain: Sequence[float] | None = None,
    penalties: Sequence[float] | None = None,
) -> TurnRecord:
    """Reduces a trajectory to the numbers that algorithms read.

    Args:
        trajectory ([`~types.Trajectory`]): a finished rollout.
        group_id, information_gain, penalties: as in [`TurnRecord`].
    """
    terminated = trajectory.stop_reason is StopReason.TERMINATED
    final = trajectory.final_anchor_state
    return TurnRecord(
        group_id=group_id,
        rewards=tuple(float(turn.reward) for turn in trajectory.turns),
        anchor_ids=tuple(anchor_id(turn.anchor_state) for turn in trajectory.turns),
        terminated=terminated,
        final_anchor_id=NO_STATE if terminated or final is None else anchor_id(final),
        information_gain=None if information_gain is None else tuple(float(gain) for gain in information_gain),
        penalties=None if penalties is None else tuple(float(penalty) for penalty in penalties),
    )


def turn_batch(records: Sequence[TurnRecord]) -> TurnBatch:
    """Stacks records of rollouts, right-padded to the longest (K is at least 1).

    Args:
        records (B [`TurnRecord`]s): of one batch; row i of every tensor is record i.

    Returns:
        [`~types.TurnBatch`] on the CPU, float32; padded turns have reward 0, anchor state -1 and gain NaN.

    Raises:
        ValueError: an optional field is given for some records only, or a value is not finite; the message names the
        field.
    """
    width = max([1, *(len(record.rewards) for record in records)])
    shape = (len(records), width)
    rewards = torch.zeros(shape, dtype=torch.float32)
    turn_mask = torch.zeros(shape, dtype=torch.bool)
    anchor_ids = torch.full(shape, NO_STATE, dtype=torch.int64)
    gains = torch.full(shape, torch.nan, dtype=torch.float32)
    penalties = torch.zeros(shape, dtype=torch.float32)
    for row, record in enumerate(records):
        turns = len(record.rewards)
        rewards[row, :turns] = torch.tensor(record.rewards, dtype=torch.float32)
        turn_mask[row, :turns] = True
        anchor_ids[row, :turns] = torch.tensor(record.anchor_ids, dtype=torch.int64)
        if record.information_gain is not None:
            gains[row, :turns] = torch.tensor(record.information_gain, dtype=torch.float32)
        if record.penalties is not None:
            penalties[row, :turns] = torch.tensor(record.penalties, dtype=torch.float32)
    has_penalties = _all_or_none("penalties", [record.penalties is not None for record in records])
    has_gain = _all_or_none("information_gain", [record.information_gain is not None for record in records])
    return TurnBatch(
        rewards=rewards,
        turn_mask=turn_mask,
        group_ids=torch.tensor([record.group_id for record in records], dtype=torch.int64),
        anchor_ids=anchor_ids,
        terminated=torch.tensor([record.terminated for record in records], dtype=torch.bool),
        information_gain=gains if has_gain else None,
        final_anchor_ids=torch.tensor([record.final_anchor_id for record in records], dtype=torch.int64),
        penalties=penalties if has_penalties else None,
    )


def _all_or_none(name: str, given: list[bool]) -> bool:
    if any(given) and not all(given):
        raise ValueError(f"TurnRecord.{name} must be given for all records or none: {given.index(False)} has none.")
    return any(given)


def _check_turn_ids(turn_ids: Tensor, rows: int, num_turns: int) -> None:
    if turn_ids.dim() != 2 or turn_ids.shape[0] != rows:
        raise ValueError(f"turn_ids must have shape ({rows}, T), got {tuple(turn_ids.shape)}.")
    if turn_ids.numel() and not -1 <= int(turn_ids.min()) <= int(turn_ids.max()) < num_turns:
        raise ValueError(
            f"turn_ids must lie in [-1, {num_turns}), got {int(turn_ids.min())} to {int(turn_ids.max())}."
        )
