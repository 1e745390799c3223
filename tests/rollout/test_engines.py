"""Engines: ids in, ids out. A sample depends on its own context and seed, and on nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, MistralConfig, PreTrainedModel

from tests.rollout.attentive import attentive_model
from trl_agentic.rollout.engines import Request, Sampling, SeededSampling, TransformersEngine


PAD, EOS = 0, 2
PROMPTS = [[5, 6, 7], [11, 12, 13, 14, 15, 16, 17, 18], [21], [31, 32, 33, 34, 35]]
OBSERVATIONS = [[40, 41], [42, 43, 44, 45, 46, 47, 48], [49, 50, 51], [52]]


@pytest.fixture(scope="module", params=["qwen2", "qwen3", "llama"])
def model(request: pytest.FixtureRequest, tiny_model_dir: Callable[..., Path]) -> PreTrainedModel:
    """Each test gets the same weights; none may change them."""
    return attentive_model(tiny_model_dir(request.param))


def eos_ids(model: PreTrainedModel, share: int = 6) -> list[int]:
    """Every sixth id ends a turn, so that rows end at different lengths."""
    return [EOS, *range(60, model.config.vocab_size, share)]


def engine(model: PreTrainedModel, temperature: float = 1.0, **options: object) -> TransformersEngine:
    sampling = options.pop("sampling", Sampling(temperature))
    ends = options.pop("ends", None) or eos_ids(model)
    return TransformersEngine(model, ends, PAD, sampling, **options)


def converse(player: TransformersEngine, turns: int = 4, budget: int = 7) -> list[list[list[int]]]:
    """Contexts of four rollouts after every turn. Rollout 2 drops out after the second turn, 0 after the third."""
    contexts = {i: list(ids) for i, ids in enumerate(PROMPTS)}
    history = []
    for turn in range(turns):
        contexts = {i: ids for i, ids in contexts.items() if turn < {2: 2, 0: 3}.get(i, turns)}
        requests = [Request(i, ids, budget, seed=97 * i + turn) for i, ids in contexts.items()]
        samples = player.generate(requests)
        contexts = {r.rollout: r.prompt_ids + s.ids for r, s in zip(requests, samples, strict=True)}
        history.append(list(contexts.values()))
        contexts = {i: ids + OBSERVATIONS[(i + turn) % 4] for i, ids in contexts.items()}
    return history


def test_the_model_of_these_tests_reads_its_context(model: PreTrainedModel):
    """Another id far back changes what is chosen, so that the tests below see a token that is lost or shifted."""
    first = engine(model, 0.0, ends=[EOS]).generate([Request(0, PROMPTS[1], 6, 0)])
    for place in range(len(PROMPTS[1])):
        other = [300 if i == place else token for i, token in enumerate(PROMPTS[1])]
        assert engine(model, 0.0, ends=[EOS]).generate([Request(0, other, 6, 0)]) != first


# The cache


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_a_kept_cache_changes_nothing(model: PreTrainedModel, temperature: float):
    kept = engine(model, temperature, min_useful_cache=0.0)
    assert converse(kept) == converse(engine(model, temperature, keep_cache=False))
    assert kept._cache is not None


def test_the_cache_saves_the_prefill(model: PreTrainedModel):
    """A later turn feeds the new tokens alone, so the tests above compare two different computations."""
    widths: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].size(1)), with_kwargs=True
    )
    try:
        converse(engine(model, min_useful_cache=0.0))
        kept, widths[:] = [width for width in widths if width > 1], []
        converse(engine(model, keep_cache=False))
        anew = [width for width in widths if width > 1]
    finally:
        hook.remove()
    assert len(kept) == len(anew) == 4 and kept[0] == anew[0] == 8  # the longest first prompt
    assert max(kept[1:]) <= 1 + 7  # the last token of the turn before and the longest observation
    assert min(anew[1:]) > 8


def test_a_cache_of_mostly_padding_is_built_anew(model: PreTrainedModel):
    long, short = Request(0, list(range(100, 140)), 1, seed=0), Request(1, [5], 1, seed=1)
    for useful in (0.9, 0.1):  # 41 of 80 places hold a token
        player = engine(model, 0.0, min_useful_cache=useful)
        first = player.generate([long, short])
        follow = [
            Request(r.rollout, [*r.prompt_ids, *s.ids, 7], 1, 0) for r, s in zip((long, short), first, strict=True)
        ]
        assert (player._select(follow) is None) is (useful == 0.9)


def test_a_cache_is_not_continued_by_another_context(model: PreTrainedModel):
    player, fresh = engine(model, 0.0), engine(model, 0.0, keep_cache=False)
    player.generate([Request(0, [5, 6, 7, 8], 3, 0)])
    for other in (Request(0, [5, 9, 7, 8, 10, 11, 12, 13], 3, 0), Request(1, [5, 6, 7, 8, 9], 3, 0)):
        assert player._select([other]) is None
        assert player.generate([other]) == fresh.generate([other])


def test_layers_that_count_padding_keep_no_cache():
    config = MistralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8, pad_token_id=PAD,
    )  # fmt: skip
    sliding = AutoModelForCausalLM.from_config(config).eval()
    player = TransformersEngine(sliding, [EOS], PAD, Sampling(0.0))
    player.generate([Request(0, [5, 6], 2, 0)])
    assert player._cache is None


# The samples


def test_a_sample_does_not_depend_on_the_rows_beside_it(model: PreTrainedModel):
    requests = [Request(i, ids, 8, seed=7 + i) for i, ids in enumerate(PROMPTS)]
    together = engine(model).generate(requests)
    assert [engine(model).generate([request])[0] for request in requests] == together
    assert engine(model).generate(requests[::-1])[::-1] == together


def test_equal_requests_with_other_seeds_differ(model: PreTrainedModel):
    samples = engine(model).generate([Request(i, PROMPTS[1], 8, seed=i) for i in range(4)])
    assert len({tuple(sample.ids) for sample in samples}) == 4
    again = engine(model).generate([Request(9, PROMPTS[1], 8, seed=2)])
    assert again == [samples[2]]


def test_temperature_0_is_greedy_generation(model: PreTrainedModel):
    ends = eos_ids(model)
    samples = engine(model, temperature=0.0).generate([Request(i, ids, 9, i) for i, ids in enumerate(PROMPTS)])
    for prompt, sample in zip(PROMPTS, samples, strict=True):
        config = GenerationConfig(max_new_tokens=9, do_sample=False, eos_token_id=ends, pad_token_id=PAD)
        expected = model.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist()
        assert sample.ids == expected


def test_seeded_sampling_draws_from_the_softmax():
    """Counts of 4,000 seeds: the chi-square with 4 degrees of freedom stays below its 99.9% point, 18.47."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -math.inf, 1.5])
    draws, probabilities = 4000, torch.softmax(logits, 0)
    scores = SeededSampling(list(range(draws)), torch.device("cpu"))(torch.zeros(draws, 1), logits.repeat(draws, 1))
    counts = torch.bincount(scores.argmax(1), minlength=6).float()
    assert counts[4] == 0
    possible = probabilities > 0
    expected = draws * probabilities[possible]
    assert ((counts[possible] - expected) ** 2 / expected).sum() < 18.47


def test_seeded_sampling_goes_on_from_step_to_step():
    """Later tokens of a row have noise of their own, and the row's number does not matter."""
    logits = torch.zeros(1, 50)
    first = SeededSampling([3], torch.device("cpu"))
    steps = [first(torch.zeros(1, 1), logits) for _ in range(3)]
    assert not torch.equal(steps[0], steps[1]) and not torch.equal(steps[1], steps[2])
    second = SeededSampling([8, 3], torch.device("cpu"))
    for step in steps:
        assert torch.equal(second(torch.zeros(2, 1), logits.repeat(2, 1))[1], step[0])


def test_filters_apply_before_sampling(model: PreTrainedModel):
    """`top_k=1` leaves the greedy choice; a temperature near 0 does as well."""
    requests = [Request(i, ids, 6, seed=i) for i, ids in enumerate(PROMPTS)]
    greedy = engine(model, 0.0).generate(requests)
    for sampling in (Sampling(top_k=1), Sampling(top_p=1e-6), Sampling(min_p=1.0), Sampling(temperature=1e-6)):
        assert engine(model, sampling=sampling).generate(requests) == greedy
    assert engine(model).generate(requests) != greedy


def test_a_repetition_penalty_changes_the_choice(model: PreTrainedModel):
    request = Request(0, PROMPTS[1], 12, seed=0)
    plain = engine(model, ends=[EOS], sampling=Sampling(0.0)).generate([request])[0]
    unlike = engine(model, ends=[EOS], sampling=Sampling(0.0, repetition_penalty=50.0)).generate([request])[0]
    assert len(set(unlike.ids)) == len(unlike.ids) >= len(set(plain.ids))
    assert unlike.ids != plain.ids


def test_what_a_checkpoint_asks_for_does_not_bend_the_distribution(model: PreTrainedModel):
    """Instruct checkpoints ship a repetition penalty and filters; a policy is sampled as it is trained."""
    requests = [Request(i, ids, 8, seed=i) for i, ids in enumerate(PROMPTS)]
    expected = [engine(model, t).generate(requests) for t in (0.0, 1.0)]
    before = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=2, top_p=0.5, repetition_penalty=9.0, no_repeat_ngram_size=1,
        min_new_tokens=8, eos_token_id=before.eos_token_id,
    )  # fmt: skip
    try:
        assert [engine(model, t).generate(requests) for t in (0.0, 1.0)] == expected
    finally:
        model.generation_config = before


# Budgets and ends


def test_budgets_and_end_tokens(model: PreTrainedModel):
    ends = set(eos_ids(model))
    budgets = [1, 4, 9, 30]
    requests = [Request(i, ids, budgets[i], seed=50 + i) for i, ids in enumerate(PROMPTS)]
    samples = engine(model).generate(requests)
    for budget, request, sample in zip(budgets, requests, samples, strict=True):
        assert 1 <= len(sample.ids) <= budget
        assert sample.ended == (sample.ids[-1] in ends)
        assert sample.ended or len(sample.ids) == budget
        assert ends.isdisjoint(sample.ids[:-1])
        # A smaller budget cuts the same sample short.
        cut = engine(model).generate([Request(0, request.prompt_ids, 2, request.seed)])[0]
        assert cut.ids[: len(sample.ids)] == sample.ids[:2]
    assert {sample.ended for sample in samples} == {True, False}


def test_the_padding_id_may_be_an_end_token(model: PreTrainedModel):
    ends = eos_ids(model)
    request = [Request(i, ids, 8, seed=i) for i, ids in enumerate(PROMPTS)]
    player = TransformersEngine(model, ends, ends[1], Sampling())
    for sample in player.generate(request):
        assert sum(i in ends for i in sample.ids) == sample.ended


# A process without rollouts


class CountedForwards:
    """Counts the forward passes of a model."""

    def __init__(self, model: PreTrainedModel):
        self.count = 0
        self._hook = model.register_forward_hook(self._add)

    def _add(self, *args: object) -> None:
        self.count += 1

    def __enter__(self) -> CountedForwards:
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()


def test_no_requests_need_no_model(model: PreTrainedModel):
    with CountedForwards(model) as forwards:
        assert engine(model).generate([]) == []
    assert forwards.count == 0
