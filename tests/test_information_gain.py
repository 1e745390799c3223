"""Scoring all boundaries of a rollout together equals one forward pass per boundary."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from trl_agentic.information_gain import answer_logprobs, check_full_attention, information_gains, turn_prefixes
from trl_agentic.types import Prompt, Trajectory, Turn


Model = Callable[..., Path]
BRIDGE = [5, 6, 7]


def load(path: Path, **changes: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, **changes).eval()


def tokens(count: int, seed: int) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(1000) for _ in range(count)]


def rollout(turns: int, seed: int) -> Trajectory:
    """Turns of random ids and lengths."""
    lengths = random.Random(seed)
    return Trajectory(
        task={},
        turns=[
            Turn(
                prompt_ids=tokens(lengths.randint(1, 12), 100 * seed + k),
                action_ids=tokens(lengths.randint(1, 9), 100 * seed + 50 + k),
                logprobs=None,
                action="",
                observation="",
                anchor_state="",
                extends=k > 0,
            )
            for k in range(turns)
        ],
    )


@torch.no_grad()
def plain(
    model: PreTrainedModel,
    ids: list[list[int]],
    boundaries: list[list[int]],
    answers: list[list[list[int]]],
    bridge: list[int],
    side: str = "right",
) -> list[Tensor]:
    """The definition: a forward pass for each boundary, over one sequence for each answer, padded on a side."""
    results = []
    for sequence, ends, accepted in zip(ids, boundaries, answers, strict=True):
        values = []
        for end in ends:
            whole = [sequence[:end] + bridge + answer for answer in accepted]
            whole.append(tokens(max(map(len, whole)) + 3, seed=0))  # a longer one, so that there is padding
            width = len(whole[-1])
            before = [width - len(row) if side == "left" else 0 for row in whole]
            padded = torch.zeros(len(whole), width, dtype=torch.long)
            mask = torch.zeros_like(padded)
            for i, (row, start) in enumerate(zip(whole, before, strict=True)):
                padded[i, start : start + len(row)] = torch.tensor(row)
                mask[i, start : start + len(row)] = 1
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits.float()
            logps = logits[:, :-1].log_softmax(-1).gather(2, padded[:, 1:, None]).squeeze(2)
            means = []
            for i, answer in enumerate(accepted):
                last = before[i] + len(whole[i]) - 1
                means.append(logps[i, last - len(answer) : last].mean().item())
            values.append(max(means))
        results.append(torch.tensor(values))
    return results


def assert_close(actual: list[Tensor], expected: list[Tensor], atol: float = 1e-5) -> None:
    assert [len(values) for values in actual] == [len(values) for values in expected]
    for left, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=atol)


def case(turn_counts: list[int]) -> tuple[list[list[int]], list[list[int]], list[list[list[int]]]]:
    """Rollouts that answered and rollouts that were cut in turns, with one to three accepted answers."""
    ids, boundaries, answers = [], [], []
    for i, turns in enumerate(turn_counts):
        trajectory = rollout(turns, seed=i)
        if i % 2:
            trajectory.final_prompt = Prompt(tokens(4, seed=i), extends=True)
        [(sequence, ends)] = turn_prefixes(trajectory)
        ids.append(sequence)
        boundaries.append(ends)
        answers.append([tokens(1 + (i + k) % 5, seed=10 * i + k) for k in range(1 + i % 3)])
    return ids, boundaries, answers


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("arch", ["qwen2", "qwen3", "llama"])
def test_one_pass_is_the_plain_way(arch: str, side: str, tiny_model_dir: Model):
    model = load(tiny_model_dir(arch))
    ids, boundaries, answers = case([1, 1, 2, 3, 5, 8, 20, 20])
    expected = plain(model, ids, boundaries, answers, BRIDGE, side)
    # One turn: the first prompt alone; and, where a budget cut it, the last process turn as well.
    assert [len(values) for values in expected] == [1, 2, 2, 4, 5, 9, 20, 21]
    assert_close(answer_logprobs(model, ids, boundaries, answers, BRIDGE), expected)


def test_any_batches_give_the_same(tiny_model_dir: Model):
    model = load(tiny_model_dir())
    ids, boundaries, answers = case([1, 2, 6, 9])
    expected = plain(model, ids, boundaries, answers, BRIDGE)
    sizes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    calls = []
    for max_tokens in (1, 40, 250, 16384):
        sizes.clear()
        assert_close(answer_logprobs(model, ids, boundaries, answers, BRIDGE, max_tokens=max_tokens), expected)
        calls.append(len(sizes))
        longest = max(map(len, ids))
        together = [first + second for first, second in zip(sizes[::2], sizes[1::2], strict=True)]
        assert max(together) <= max(max_tokens, longest + max(max_tokens, 12))
    assert calls[0] > calls[1] > calls[2] > calls[3] == 2
    # A budget of one token: two passes for each probe.
    assert calls[0] == 2 * sum(len(ends) * len(accepted) for ends, accepted in zip(boundaries, answers, strict=True))


def test_a_batch_holds_exactly_max_tokens(tiny_model_dir: Model):
    # Two sequences with 3 cached tokens each and a probe of 5: the last token of the prefix, the bridge of 3, and the
    # first token of the answer. Together they are 2 x (3 + 5) = 16 tokens, in two forward passes.
    model = load(tiny_model_dir())
    calls: list[int] = []
    model.register_forward_pre_hook(lambda module, args: calls.append(1))
    for max_tokens, passes in ((16, 2), (15, 4)):
        calls.clear()
        answer_logprobs(model, [[1, 2, 3, 4]] * 2, [[4]] * 2, [[[8, 9]]] * 2, BRIDGE, max_tokens)
        assert len(calls) == passes
    # Four probes of 5 tokens: two at a time with a budget of 10, one with a budget of 9.
    for max_tokens, passes in ((10, 4), (9, 8)):
        calls.clear()
        answer_logprobs(model, [[1, 2, 3, 4]], [[1, 2, 3, 4]], [[[8, 9]]], BRIDGE, max_tokens)
        assert len(calls) == passes
    # The default is 16384 tokens: 128 sequences of 128 tokens fit, 113 of 145 tokens are 16385.
    for rows, length, passes in ((128, 128, 2), (113, 145, 4)):
        calls.clear()
        answer_logprobs(model, [[1] * (length - 3)] * rows, [[length - 3]] * rows, [[[8]]] * rows, BRIDGE)
        assert len(calls) == passes


def test_new_tensors_are_on_the_device_of_the_model(tiny_model_dir: Model):
    """The default device is another one: a tensor that was created there could not be combined with the model's."""
    model = load(tiny_model_dir())
    ids, boundaries, answers = case([2, 3])
    expected = answer_logprobs(model, ids, boundaries, answers, BRIDGE)
    with torch.device("meta"):
        actual = answer_logprobs(model, ids, boundaries, answers, BRIDGE)
    assert_close(actual, expected, atol=0.0)


def test_idle_processes_take_part(tiny_model_dir: Model):
    """With sharded parameters, all processes run the same number of forward passes."""
    model = load(tiny_model_dir())
    ids, boundaries, answers = case([3, 4])
    calls: list[int] = []
    model.register_forward_pre_hook(lambda module, args: calls.append(1))
    scores = answer_logprobs(model, ids, boundaries, answers, BRIDGE, agree=lambda batches: batches + 2)
    assert len(calls) == 2 * (1 + 2)
    assert_close(scores, plain(model, ids, boundaries, answers, BRIDGE))
    calls.clear()
    assert answer_logprobs(model, [], [], [], agree=lambda batches: 2) == []
    assert len(calls) == 4


def test_without_a_bridge_and_at_the_first_token(tiny_model_dir: Model):
    model = load(tiny_model_dir())
    ids, boundaries, answers = [[3, 4]], [[1, 2]], [[[8, 9, 10]]]
    assert_close(answer_logprobs(model, ids, boundaries, answers), plain(model, ids, boundaries, answers, []))


def test_a_sequence_without_a_boundary_has_no_score(tiny_model_dir: Model):
    model = load(tiny_model_dir())
    [none, one] = answer_logprobs(model, [[3, 4], [5, 6]], [[], [2]], [[[8]], [[9]]], BRIDGE)
    assert none.tolist() == [] and one.shape == (1,)


def test_logits_are_computed_for_scored_tokens_only(tiny_model_dir: Model):
    # Two probes with an answer of two tokens: one position of the prefix pass (the fewest possible), then 2 x 2.
    model = load(tiny_model_dir())
    widths: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, logits: widths.append(logits.shape[1]))
    answer_logprobs(model, [[1, 2, 3, 4]], [[2, 4]], [[[8, 9]]], BRIDGE)
    assert widths == [1, 4]


def test_the_likeliest_answer_counts(tiny_model_dir: Model):
    model = load(tiny_model_dir())
    ids, boundaries, _ = case([6])
    aliases = [tokens(3, 1), tokens(2, 2), tokens(5, 3)]
    alone = [answer_logprobs(model, ids, boundaries, [[alias]], BRIDGE)[0] for alias in aliases]
    [together] = answer_logprobs(model, ids, boundaries, [aliases], BRIDGE)
    torch.testing.assert_close(together, torch.stack(alone).amax(0), rtol=0, atol=1e-5)


def test_a_model_in_training_is_left_as_it_was(tiny_model_dir: Model):
    """Scoring turns off dropout, gradient checkpointing and gradients, and restores mode and attention afterwards."""
    path = tiny_model_dir()
    ids, boundaries, answers = case([4, 5])
    expected = plain(load(path), ids, boundaries, answers, BRIDGE)
    model = load(path, attn_implementation="eager", attention_dropout=0.5)
    recording: list[bool] = []
    model.register_forward_pre_hook(lambda module, args: recording.append(torch.is_grad_enabled()))
    model.gradient_checkpointing_enable()
    model.train()
    scores = answer_logprobs(model, ids, boundaries, answers, BRIDGE)
    assert_close(scores, expected)
    assert model.training and model.config._attn_implementation == "eager"
    assert recording == [False, False] and torch.is_grad_enabled()
    model.eval()
    answer_logprobs(model, ids, boundaries, answers, BRIDGE)
    assert not model.training


def test_bfloat16(tiny_model_dir: Model):
    ids, boundaries, answers = case([3, 7])
    expected = plain(load(tiny_model_dir()), ids, boundaries, answers, BRIDGE)
    model = load(tiny_model_dir(), dtype=torch.bfloat16)
    scores = answer_logprobs(model, ids, boundaries, answers, BRIDGE)
    assert all(score.dtype == torch.float32 for score in scores)
    assert_close(scores, expected, atol=0.1)
    assert_close(scores, plain(model, ids, boundaries, answers, BRIDGE), atol=0.05)


def test_lora(tiny_model_dir: Model):
    peft = pytest.importorskip("peft", reason="needs the `peft` extra")
    base = load(tiny_model_dir())
    ids, boundaries, answers = case([3, 7])
    without = plain(base, ids, boundaries, answers, BRIDGE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = peft.get_peft_model(base, config).eval()
    expected = plain(model, ids, boundaries, answers, BRIDGE)
    assert_close(answer_logprobs(model, ids, boundaries, answers, BRIDGE), expected)
    assert (expected[1] - without[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": [[[]]]}, r"answers\[0\] must hold at least one answer"),
        ({"answers": [[[4], []]]}, r"answers\[0\] must hold at least one answer"),
        ({"answers": [[]]}, r"answers\[0\] must hold at least one answer"),
        ({"boundaries": []}, r"^boundaries must hold one entry per sequence \(1\), got 0"),
        ({"answers": []}, r"^answers must hold one entry per sequence \(1\), got 0"),
        ({"boundaries": [[0]]}, r"boundaries\[0\] must lie in \[1, 3\]"),
        ({"boundaries": [[4]]}, r"boundaries\[0\] must lie in \[1, 3\]"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ],
)
def test_errors_name_the_argument(changes: dict[str, Any], message: str, tiny_model_dir: Model):
    arguments: dict[str, Any] = {"ids": [[1, 2, 3]], "boundaries": [[2]], "answers": [[[4]]]} | changes
    with pytest.raises(ValueError, match=message):
        answer_logprobs(load(tiny_model_dir()), **arguments)


def test_a_sliding_window_is_refused(tiny_model_dir: Model):
    model = load(tiny_model_dir("qwen2"))
    check_full_attention(model)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    model.config.sliding_window = 8
    with pytest.raises(ValueError, match=r"full attention in all layers, but the model \(qwen2\)"):
        answer_logprobs(model, [[1, 2]], [[1]], [[[3]]])


# Boundaries and gains


def turn(prompt: list[int], action: list[int], extends: bool = True) -> Turn:
    return Turn(prompt, action, None, action="", observation="", anchor_state="", extends=extends)


def test_boundaries_stand_before_each_action():
    trajectory = Trajectory(task={}, turns=[turn([1, 2, 3], [10]), turn([4], [11, 12]), turn([5, 6], [13])])
    # It answered: the answer turn after the last boundary is not read.
    assert turn_prefixes(trajectory) == [([1, 2, 3, 10, 4, 11, 12, 5, 6], [3, 5, 9])]
    # It was cut: one more boundary, after the last observation.
    trajectory.final_prompt = Prompt([7, 8], extends=True)
    assert turn_prefixes(trajectory) == [([1, 2, 3, 10, 4, 11, 12, 5, 6, 13, 7, 8], [3, 5, 9, 12])]
    assert turn_prefixes(Trajectory(task={})) == []
    assert turn_prefixes(Trajectory(task={}, final_prompt=Prompt([1, 2], extends=True))) == []


def test_a_prompt_that_is_rendered_again_begins_another_sequence():
    trajectory = Trajectory(task={}, turns=[turn([1], [10]), turn([1, 2], [11], extends=False), turn([3], [12])])
    assert turn_prefixes(trajectory) == [([1], [1]), ([1, 2, 11, 3], [2, 4])]
    trajectory.final_prompt = Prompt([1, 9], extends=False)
    assert turn_prefixes(trajectory) == [([1], [1]), ([1, 2, 11, 3], [2, 4]), ([1, 9], [2])]


def test_gains_by_hand():
    logprobs = torch.tensor([0.2, 0.5, 0.1]).log()
    torch.testing.assert_close(information_gains(logprobs), torch.tensor([0.3, -0.4]))
    # log(0.5 / 0.2) = 0.91629, log(0.1 / 0.5) = -1.60944
    torch.testing.assert_close(information_gains(logprobs, "log_prob"), torch.tensor([0.91629, -1.60944]))
    unknown = information_gains(torch.tensor([0.0, math.nan, 0.0, 0.0]))
    assert unknown[:2].isnan().all() and unknown[2] == 0
    assert information_gains(torch.tensor([0.0])).tolist() == []
    with pytest.raises(ValueError, match="kind must be one of .*'log_prob'"):
        information_gains(logprobs, "entropy")
