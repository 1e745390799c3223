from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_agentic.batching.turns import (
    TurnRecord,
    anchor_id,
    gather_to_turns,
    spread_to_tokens,
    turn_batch,
    turn_record,
)
from trl_agentic.types import StopReason, Trajectory, Turn


few = settings(max_examples=50, deadline=None)


@st.composite
def token_turns(draw: st.DrawFn) -> torch.Tensor:
    """`turn_ids` of 1 to 4 rows: turns in any order, tokens outside of all turns among them."""
    length = draw(st.integers(0, 12))
    row = st.lists(st.integers(-1, 9), min_size=length, max_size=length)
    rows = draw(st.lists(row, min_size=1, max_size=4))
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), length)


# spread_to_tokens, gather_to_turns


def test_spread_and_gather_by_hand():
    turn_ids = torch.tensor([[-1, 0, 0, 1], [1, 1, 1, -1]])
    values = torch.tensor([[0.5, -2.0], [9.0, 3.0]])
    assert spread_to_tokens(values, turn_ids).tolist() == [[0.0, 0.5, 0.5, -2.0], [3.0, 3.0, 3.0, 0.0]]
    assert spread_to_tokens(values, turn_ids, fill=1.0)[:, [0, 3]].tolist() == [[1.0, -2.0], [3.0, 1.0]]
    tokens = torch.tensor([[math.nan, 1.0, 3.0, 5.0], [1.0, 2.0, 6.0, math.inf]])
    # Turn 0 of row 2 has no tokens.
    assert gather_to_turns(tokens, turn_ids, 2).tolist() == [[2.0, 5.0], [0.0, 3.0]]
    assert gather_to_turns(tokens, turn_ids, 3, reduce="sum").tolist() == [[4.0, 5.0, 0.0], [0.0, 9.0, 0.0]]


@few
@given(token_turns(), st.integers(0, 2**31))
def test_spread_and_gather_equal_the_loop(turn_ids: torch.Tensor, seed: int):
    k = 10
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(turn_ids), k, dtype=torch.float64, generator=generator)
    tokens = torch.randn(turn_ids.shape, dtype=torch.float64, generator=generator)
    spread, means = torch.zeros_like(tokens), torch.zeros_like(values)
    for i in range(len(turn_ids)):
        for j in range(k):
            mine = turn_ids[i] == j
            spread[i, mine] = values[i, j]
            means[i, j] = tokens[i, mine].mean() if mine.any() else 0.0
    assert torch.equal(spread_to_tokens(values, turn_ids), spread)
    torch.testing.assert_close(gather_to_turns(tokens, turn_ids, k), means)
    # The mean of equal values is that value.
    counts = gather_to_turns(torch.ones_like(tokens), turn_ids, k, "sum")
    torch.testing.assert_close(gather_to_turns(spread, turn_ids, k), torch.where(counts > 0, values, 0.0))


@settings(max_examples=10, deadline=None)
@given(token_turns())
def test_gradients_of_gather_and_spread(turn_ids: torch.Tensor):
    tokens = torch.ones(turn_ids.shape, dtype=torch.float64, requires_grad=True)
    values = torch.ones(len(turn_ids), 10, dtype=torch.float64, requires_grad=True)
    if tokens.numel():
        assert torch.autograd.gradcheck(lambda x: gather_to_turns(x, turn_ids, 10), (tokens,))
        assert torch.autograd.gradcheck(lambda x: spread_to_tokens(x, turn_ids), (values,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool])
def test_spread_keeps_dtype(dtype: torch.dtype):
    spread = spread_to_tokens(torch.ones(1, 1, dtype=dtype), torch.tensor([[0, -1]]))
    assert spread.dtype == dtype and spread.tolist() == [[1, 0]]


def test_gather_counts_long_turns_in_half_precision():
    tokens = torch.full((1, 1000), 0.25, dtype=torch.bfloat16)
    gathered = gather_to_turns(tokens, torch.zeros(1, 1000, dtype=torch.int64), 1)
    assert gathered.dtype == torch.bfloat16 and gathered.item() == 0.25
    # 257 / 7 = 36.71, which is 36.75 in bfloat16; 257 itself would be 256, and 256 / 7 is 36.5.
    few_tokens = torch.tensor([[251.0] + [1.0] * 6], dtype=torch.bfloat16)
    assert gather_to_turns(few_tokens, torch.zeros(1, 7, dtype=torch.int64), 1).item() == 36.75
    # 1000 * 0.25 = 250. A sum in bfloat16 would stop at 64, from where the next number is 64.5.
    assert gather_to_turns(tokens, torch.zeros(1, 1000, dtype=torch.int64), 1, "sum").item() == 250


def test_empty_axes():
    none = torch.full((2, 3), -1)
    assert spread_to_tokens(torch.zeros(2, 0), none, fill=1.0).tolist() == [[1.0] * 3] * 2
    assert gather_to_turns(torch.ones(2, 3), none, 0).shape == (2, 0)
    assert spread_to_tokens(torch.zeros(2, 4), none[:, :0]).shape == (2, 0)


def test_spread_and_gather_errors_name_the_argument():
    turn_ids = torch.tensor([[0, 2]])
    for call in (
        lambda: spread_to_tokens(torch.zeros(1, 2), turn_ids),
        lambda: spread_to_tokens(torch.zeros(1, 2), turn_ids - 2),
        lambda: gather_to_turns(torch.zeros(1, 2), turn_ids, 2),
    ):
        with pytest.raises(ValueError, match=r"turn_ids must lie in \[-1, 2\)"):
            call()
    with pytest.raises(ValueError, match="turn_ids must have shape"):
        spread_to_tokens(torch.zeros(2, 3), turn_ids)
    with pytest.raises(ValueError, match="turn_ids must have shape"):
        gather_to_turns(torch.zeros(1, 3), turn_ids, 3)
    with pytest.raises(ValueError, match="reduce must be one of"):
        gather_to_turns(torch.zeros(1, 2), turn_ids, 3, reduce="max")


# Anchor states


def test_anchor_ids_do_not_depend_on_the_process():
    # `printf "a room" | b2sum -l 64`, as a big-endian number, shifted right by one bit.
    assert anchor_id("a room") == 0x2039B649519AAFD5 >> 1


@few
@given(st.lists(st.text(), max_size=20))
def test_anchor_ids_are_equal_exactly_for_equal_states(states: list[str]):
    ids = [anchor_id(state) for state in states]
    assert all(0 <= i < 2**63 for i in ids)
    assert len(set(ids)) == len(set(states))


def test_any_text_has_an_anchor_id():
    assert anchor_id("") != anchor_id(" ")
    assert anchor_id("\ud800") >= 0  # a lone surrogate, as decoders may leave it


# Batches


def turn(reward: float, state: str) -> Turn:
    return Turn([1], [2], None, "act", f"You see {state}.", state, reward=reward)


def test_batch_of_trajectories_by_hand():
    trajectories = [
        Trajectory({}, [turn(0.0, "A"), turn(1.0, "B")], StopReason.TERMINATED, final_anchor_state="won"),
        Trajectory({}, [turn(-0.1, "A")], StopReason.MAX_TURNS, final_anchor_state="B"),
        Trajectory({}, [turn(0.5, "B"), turn(0.0, "B")], StopReason.TRUNCATED, final_anchor_state=None),
        Trajectory({}, [], StopReason.ERROR),
    ]
    batch = turn_batch([turn_record(t, group) for t, group in zip(trajectories, [5, 5, -2, -2], strict=True)])
    a, b = anchor_id("A"), anchor_id("B")
    torch.testing.assert_close(batch.rewards, torch.tensor([[0.0, 1.0], [-0.1, 0.0], [0.5, 0.0], [0.0, 0.0]]))
    assert batch.turn_mask.tolist() == [[True, True], [True, False], [True, True], [False, False]]
    assert batch.group_ids.tolist() == [5, 5, -2, -2]
    assert batch.anchor_ids.tolist() == [[a, b], [a, -1], [b, b], [-1, -1]]
    assert batch.terminated.tolist() == [True, False, False, False]
    # A terminal state has no value, even if the environment reported a state.
    assert batch.final_anchor_ids is not None and batch.final_anchor_ids.tolist() == [-1, b, -1, -1]
    assert batch.information_gain is None and batch.outcomes is None and batch.answered is None  # not recorded
    assert batch.penalties is None


def test_batch_of_records_with_gains_and_penalties():
    trajectory = Trajectory({}, [turn(0.0, "A"), turn(1.0, "B")], StopReason.TERMINATED)
    records = [
        turn_record(trajectory, 0, information_gain=[0.25, math.nan], penalties=[0.5, 0]),
        TurnRecord(0, (0.5,), (7,), False, 8, information_gain=(0.5,), penalties=(0.25,)),
    ]
    batch = turn_batch(records)
    assert batch.information_gain is not None
    torch.testing.assert_close(
        batch.information_gain, torch.tensor([[0.25, math.nan], [0.5, math.nan]]), equal_nan=True
    )
    assert batch.penalties is not None and batch.penalties.tolist() == [[0.5, 0.0], [0.25, 0.0]]
    assert batch.anchor_ids[1].tolist() == [7, -1]
    assert batch.final_anchor_ids is not None and batch.final_anchor_ids.tolist() == [-1, 8]


def test_batches_are_float32_for_any_default_dtype():
    record = TurnRecord(0, (0.1,), (7,), True, information_gain=(0.3,), penalties=(0.9,))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # in which none of these numbers is what it is in float32
    try:
        batch = turn_batch([record])
    finally:
        torch.set_default_dtype(before)
    values = {"rewards": 0.1, "information_gain": 0.3, "penalties": 0.9}
    for name, value in values.items():
        assert torch.equal(getattr(batch, name).flatten(), torch.tensor([value], dtype=torch.float32)), name
    for name in ("group_ids", "anchor_ids", "final_anchor_ids"):
        assert getattr(batch, name).dtype == torch.int64
    assert batch.turn_mask.dtype == batch.terminated.dtype == torch.bool


def test_empty_batches_have_one_column():
    assert turn_batch([]).rewards.shape == (0, 1)
    assert turn_batch([turn_record(Trajectory({}), 0)]).rewards.shape == (1, 1)


def test_largest_ids_survive():
    batch = turn_batch([TurnRecord(-(2**63), (0.0,), (2**63 - 1,), True)])
    assert batch.group_ids.tolist() == [-(2**63)] and batch.anchor_ids.tolist() == [[2**63 - 1]]


def test_record_errors_name_the_field():
    with pytest.raises(ValueError, match=r"TurnRecord\.anchor_ids must hold one value per turn \(2\), got 1"):
        TurnRecord(0, (0.0, 0.0), (1,), True)
    with pytest.raises(ValueError, match=r"TurnRecord\.information_gain"):
        TurnRecord(0, (0.0,), (1,), True, information_gain=(0.0, 0.0))
    plain = TurnRecord(0, (0.0,), (1,), True)
    for field in ("information_gain", "penalties"):
        with pytest.raises(ValueError, match=rf"TurnRecord\.{field} must be given for all records or none: 0"):
            turn_batch([plain, TurnRecord(0, (0.0,), (1,), True, **{field: (0.0,)})])
    with pytest.raises(ValueError, match=r"TurnBatch\.rewards\[0, 0\]"):
        turn_batch([TurnRecord(0, (math.nan,), (1,), True)])


def test_sequences_of_one_rollout_hold_its_turns_together():
    # A rollout of three turns in two sequences: turns 0-1 and turn 2. Its values are first indexed by sequence.
    values = torch.tensor([[0.5, 1.5, -3.0]])
    rollout_of_row = torch.tensor([0, 0])
    turn_ids = torch.tensor([[0, 0, -1, 1], [-1, 2, 2, -1]])
    spread = spread_to_tokens(values[rollout_of_row], turn_ids)
    assert spread.tolist() == [[0.5, 0.5, 0.0, 1.5], [0.0, -3.0, -3.0, 0.0]]
