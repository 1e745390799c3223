"""Layout of micro-batches: small cases by hand, and properties of all layouts."""

from __future__ import annotations

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_agentic.batching.collate import collate, filler, pack_rows
from trl_agentic.batching.rows import TrainingSequence


CPU = torch.device("cpu")
PAD = 99


def sequence(
    rollout: int,
    prompt: list[int],
    completion: list[int],
    turn_ids: list[int] | None = None,
    logprobs: list[float] | None = None,
) -> TrainingSequence:
    """By default, token k of the completion is turn k."""
    return TrainingSequence(rollout, prompt, completion, turn_ids or [*range(len(completion))], logprobs)


def laid_out(sequences: list[TrainingSequence], multiple: int = 1, **values: tuple[torch.Tensor, float]):
    return collate(sequences, PAD, multiple, CPU, values)


def test_all_sequences_begin_in_the_first_column():
    """The shorter prompt has one token: the second token of the longer one stands among the completions."""
    advantages = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8], [0.9, 1.0, 1.1, 1.2]])
    batch = laid_out([sequence(2, [31, 32], [33]), sequence(1, [21], [22, 23, 24, 25])], advantages=(advantages, 0.0))
    assert batch["prompt_ids"].tolist() == [[31], [21]] and batch["prompt_mask"].tolist() == [[1], [1]]
    assert batch["completion_ids"].tolist() == [[32, 33, PAD, PAD], [22, 23, 24, 25]]
    assert batch["completion_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["tool_mask"].tolist() == [[0, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["turn_ids"].tolist() == [[-1, 0, -1, -1], [0, 1, 2, 3]]
    torch.testing.assert_close(batch["advantages"], torch.tensor([[0.0, 0.9, 0.0, 0.0], [0.5, 0.6, 0.7, 0.8]]))
    assert batch["rollout_ids"].tolist() == [2, 1]
    assert "sampling_per_token_logps" not in batch
    for key in ("prompt_ids", "completion_ids", "turn_ids", "tool_mask", "prompt_mask", "completion_mask"):
        assert batch[key].dtype == torch.int64, key


def test_values_of_turns_reach_their_tokens_and_others_get_the_fill():
    scales = torch.tensor([[0.5, 2.0]])
    batch = laid_out([sequence(0, [1], [2, 3, 4, 5], [0, -1, 1, 1])], scales=(scales, 1.0))
    assert batch["scales"].tolist() == [[0.5, 1.0, 2.0, 2.0]]
    assert batch["tool_mask"].tolist() == [[1, 0, 1, 1]]


def test_log_probabilities_stand_with_their_tokens():
    batch = laid_out([sequence(0, [1, 2], [3, 4], logprobs=[-0.5, -0.25]), sequence(1, [5], [6], logprobs=[-1.0])])
    assert batch["sampling_per_token_logps"].tolist() == [[0.0, -0.5, -0.25], [-1.0, 0.0, 0.0]]
    assert batch["sampling_per_token_logps"].dtype == torch.float32
    some = laid_out([sequence(0, [1], [3], logprobs=[-0.5]), sequence(1, [5], [6])])
    assert "sampling_per_token_logps" not in some


def test_the_width_is_a_multiple():
    batch = laid_out([sequence(0, [11, 12, 13], [14, 15]), sequence(1, [21], [22, 23, 24, 25])], multiple=4)
    assert batch["prompt_ids"].tolist() == [[11], [21]]
    assert batch["completion_ids"].tolist() == [[12, 13, 14, 15, PAD, PAD, PAD], [22, 23, 24, 25, PAD, PAD, PAD]]
    assert batch["completion_mask"].sum(1).tolist() == [4, 4]
    assert laid_out([sequence(0, [1], [2, 3, 4])], multiple=4)["completion_ids"].shape == (1, 3)  # no further column


def test_a_filler_is_the_shortest_sequence_outside_the_loss():
    sequences = [sequence(0, [11, 12], [14, 15]), sequence(1, [21], [22], logprobs=[-1.0])]
    stand_in = filler(sequences)
    assert stand_in == TrainingSequence(1, [21], [22], [-1], [-1.0])
    assert laid_out([stand_in])["tool_mask"].tolist() == [[0]]
    assert sequences[1].turn_ids == [0]  # unchanged


def test_rows_are_packed_end_to_end():
    ids = torch.tensor([[11, 12, 13, 0], [21, 0, 0, 0], [31, 32, 33, 34]])
    packed = pack_rows(ids, (ids > 0).long(), keep=2, multiple=5)
    assert packed.input_ids.tolist() == [[11, 12, 13, 21, 31, 32, 33, 34, 0, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 0, 1]]
    assert packed.labels.tolist() == [[-100, 13, -100, -100, -100, 33, 34, -100, -100, -100]]
    values = packed.labels.clamp(min=0) / 2  # of the next token
    assert packed.unpack(values).tolist() == [[0, 0, 6.5, 0], [0, 0, 0, 0], [0, 0, 16.5, 17.0]]


@st.composite
def ragged(draw: st.DrawFn) -> list[TrainingSequence]:
    ids = st.lists(st.integers(1, 9), min_size=1, max_size=6)
    return [sequence(i, draw(ids), draw(ids)) for i in range(draw(st.integers(1, 5)))]


@settings(max_examples=50, deadline=None)
@given(ragged(), st.integers(0, 10**6), st.integers(1, 8))
def test_no_token_is_lost_or_moved(sequences: list[TrainingSequence], seed: int, multiple: int):
    random.Random(seed).shuffle(sequences)
    values = torch.arange(30.0).view(5, 6)
    batch = laid_out(sequences, multiple, advantages=(values, 0.0))
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1).bool()
    assert ids.size(1) % multiple == 0 and ids.size(1) - max(map(len, sequences)) < multiple
    for i, own in enumerate(sequences):
        assert ids[i][mask[i]].tolist() == own.prompt_ids + own.completion_ids
        assert mask[i, : len(own)].all() and (ids[i, len(own) :] == PAD).all()
        trained = batch["tool_mask"][i].bool()
        assert batch["completion_ids"][i][trained].tolist() == own.completion_ids
        assert batch["advantages"][i][trained].tolist() == values[own.rollout, : len(own.completion_ids)].tolist()
        assert (batch["advantages"][i][~trained] == 0).all()
