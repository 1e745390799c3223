"""Inference engines: a sample depends on its own context and seed, and on nothing else."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, MistralConfig, PreTrainedModel

from tests.rollout.attentive import attentive_model
from trl_agentic.rollout.engines import (
    GenerateEngine,
    Request,
    Sample,
    Sampling,
    SeededSampling,
    TransformersEngine,
    transformers_engine,
)
from trl_agentic.rollout.engines.sampling import generator


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


Either = TransformersEngine | GenerateEngine


@pytest.fixture(params=[TransformersEngine, GenerateEngine], ids=["tokens", "generate"])
def kind(request: pytest.FixtureRequest) -> type[Either]:
    return request.param


def engine(
    model: PreTrainedModel, temperature: float = 1.0, kind: type[Either] = TransformersEngine, **options: object
) -> Either:
    sampling = options.pop("sampling", Sampling(temperature))
    ends = options.pop("ends", None) or eos_ids(model)
    return kind(model, ends, PAD, sampling, **options)


def answers(player: Either, requests: list[Request]) -> list[Sample]:
    """Samples of the requests, in order, while there are no other rollouts."""
    samples: dict[int, Sample | Exception] = {}
    for request in requests:
        player.submit(request, lambda sample, rollout=request.rollout: samples.update({rollout: sample}))
    while len(samples) < len(requests):
        assert player.step(active=len(requests), busy=0) == 0.0
    return [samples[request.rollout] for request in requests]


def converse(player: Either, turns: int = 4, budget: int = 7) -> list[list[list[int]]]:
    """Contexts of four rollouts after every turn. Rollout 2 ends after the second turn, 0 after the third."""
    contexts = {i: list(ids) for i, ids in enumerate(PROMPTS)}
    history = []
    for turn in range(turns):
        contexts = {i: ids for i, ids in contexts.items() if turn < {2: 2, 0: 3}.get(i, turns)}
        requests = [Request(i, ids, budget, seed=97 * i + turn) for i, ids in contexts.items()]
        samples = answers(player, requests)
        contexts = {r.rollout: r.prompt_ids + s.ids for r, s in zip(requests, samples, strict=True)}
        history.append(list(contexts.values()))
        contexts = {i: ids + OBSERVATIONS[(i + turn) % 4] for i, ids in contexts.items()}
    return history


class Forwards:
    """Shapes (rows, new tokens) of a model's forward passes, and the cache that the last of them was given."""

    def __init__(self, model: PreTrainedModel):
        self.shapes: list[tuple[int, ...]] = []
        self.cache: Any = None
        self._hook = model.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, module: object, args: object, kwargs: dict[str, Any]) -> None:
        self.shapes.append(tuple(kwargs["input_ids"].shape))
        self.cache = kwargs.get("past_key_values")

    def __enter__(self) -> Forwards:
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()


def test_the_model_of_these_tests_reads_its_context(model: PreTrainedModel):
    """Another id far back changes the sample, so that the tests below notice a token that is dropped or shifted."""
    first = answers(engine(model, 0.0, ends=[EOS]), [Request(0, PROMPTS[1], 6, 0)])
    for place in range(len(PROMPTS[1])):
        other = [300 if i == place else token for i, token in enumerate(PROMPTS[1])]
        assert answers(engine(model, 0.0, ends=[EOS]), [Request(0, other, 6, 0)]) != first


# The cache


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_a_kept_cache_changes_nothing(model: PreTrainedModel, temperature: float, attention: str):
    model.set_attn_implementation(attention)
    try:
        kept = converse(engine(model, temperature))
        assert kept == converse(engine(model, temperature, GenerateEngine))
    finally:
        model.set_attn_implementation("sdpa")


def test_the_cache_saves_the_prefill(model: PreTrainedModel):
    """A later turn feeds the new tokens alone, so the test above compares two different computations."""
    with Forwards(model) as forwards:
        converse(engine(model))
    widths = [width for _, width in forwards.shapes if width > 1]
    assert len(widths) == 4 and widths[0] == 8  # the longest first prompt
    assert max(widths[1:]) <= 1 + 7  # the last token of the turn before and the longest observation
    with Forwards(model) as forwards:
        converse(engine(model, kind=GenerateEngine))
    assert all(width == 1 or width >= 8 for _, width in forwards.shapes)


def test_the_common_prefix_of_two_contexts_is_not_computed_again(model: PreTrainedModel):
    player = engine(model, 0.0)
    [first] = answers(player, [Request(0, [5, 6, 7, 8], 3, 0)])
    assert first.cached_tokens == 0
    held = [5, 6, 7, 8, *first.ids[:-1]]  # the last sampled token was not fed
    cases = [([5, 9, 7, 8, 10, 11, 12, 13], 1), ([5, 9, 7], 2), ([5, 9, 7], 2), ([30, 31], 0)]
    for prompt, shared in [([*held, first.ids[-1], 40], len(held)), ([5, 6, 7, 8, 41], 4), *cases]:
        [sample] = answers(player, [Request(0, prompt, 3, 0)])
        assert sample.cached_tokens == shared
        assert sample.ids == answers(engine(model, 0.0), [Request(1, prompt, 3, 0)])[0].ids


def test_rollouts_that_ended_give_up_their_slots(model: PreTrainedModel):
    """When memory must grow, the slots unused for the longest time are released; their contexts are read again."""
    player = engine(model, 0.0, ends=[EOS])
    with Forwards(model) as forwards:
        answers(player, [Request(i, [5 + i, 6, 7], 2, 0) for i in range(4)])
        assert forwards.cache.window.slots == 4
        answers(player, [Request(i, [5 + i, 6, 7, 8], 2, 0) for i in (1, 3)])
        [grown] = answers(player, [Request(3, [8, 6, 7, 8, *range(20, 40)], 2, 0)])  # one of four is active
        assert forwards.cache.window.slots == 1 and forwards.cache.window.places >= 25
    assert grown.cached_tokens == 4
    again = answers(player, [Request(i, [5 + i, 6, 7, 8], 2, 0) for i in (1, 3)])
    assert [sample.cached_tokens for sample in again] == [0, 3]  # the last id is always fed
    assert [s.ids for s in again] == [
        s.ids for s in answers(engine(model, 0.0, ends=[EOS]), [Request(i, [5 + i, 6, 7, 8], 2, 0) for i in (1, 3)])
    ]


def test_slots_are_as_long_as_the_longest_context_needs(model: PreTrainedModel):
    """One rollout continues a long context while another reads a long prompt: their lengths do not add up."""
    player = engine(model, 0.0, ends=[EOS])
    [long] = answers(player, [Request(0, list(range(100, 160)), 2, 0)])
    requests = [Request(0, [*range(100, 160), *long.ids, 7], 2, 0), Request(1, list(range(200, 261)), 2, 0)]
    with Forwards(model) as forwards:
        samples = answers(player, requests)
    assert samples[0].cached_tokens == 61 and forwards.cache.window.longest <= 65
    assert forwards.cache.window.places <= 65 * 3 // 2
    for request, sample in zip(requests, samples, strict=True):
        assert answers(engine(model, 0.0, ends=[EOS]), [request])[0].ids == sample.ids


def test_models_that_cannot_hold_rows_of_different_lengths_are_sampled_in_batches():
    config = MistralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8, pad_token_id=PAD,
    )  # fmt: skip
    torch.manual_seed(0)
    sliding = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="MistralForCausalLM with 'sdpa' attention .* Use `GenerateEngine`"):
        TransformersEngine(sliding, [EOS], PAD, Sampling(0.0))
    player = transformers_engine(sliding, [EOS], PAD, Sampling(0.0), policy_step=3)
    assert isinstance(player, GenerateEngine)
    [sample] = answers(player, [Request(0, [5, 6], 2, 0)])
    assert len(sample.ids) == 2 and sample.policy_step == 3


def test_models_with_plain_attention_are_sampled_token_by_token(model: PreTrainedModel):
    player = transformers_engine(model, eos_ids(model), PAD, Sampling(), policy_step=3)
    assert isinstance(player, TransformersEngine)
    assert answers(player, [Request(0, [5, 6], 2, 0)])[0].policy_step == 3


def test_a_model_that_takes_no_cache_is_an_error(tiny_model_dir: Callable[..., Path]):
    """It would read only the last token."""
    training = AutoModelForCausalLM.from_pretrained(tiny_model_dir()).train()
    # transformers 5.24 deprecates the older name.
    getattr(training, "activation_checkpointing_enable", training.gradient_checkpointing_enable)()
    with pytest.raises(RuntimeError, match="took no cache.* gradient checkpointing"):
        answers(engine(training), [Request(0, [5, 6], 2, 0)])


# Admission of rollouts


@pytest.mark.parametrize("seed", range(4))
def test_whenever_a_rollout_joins_its_tokens_are_the_same(model: PreTrainedModel, seed: int):
    """Eight conversations with random pauses are compared with each of them alone."""
    draw, player = random.Random(seed), engine(model)

    def prompt(rollout: int, before: list[int], turn: int) -> Request:
        ids = before + [100 + 10 * rollout + turn] * draw.randrange(1, 12)
        return Request(rollout, ids, draw.randrange(1, 9), seed=97 * rollout + turn)

    served: list[tuple[Request, Sample]] = []
    outside = [prompt(i, [], 0) for i in range(8)]  # with their environments
    inside: dict[int, Request] = {}

    def take(rollout: int, sample: Sample) -> None:
        request = inside.pop(rollout)
        served.append((request, sample))
        turn = sum(r.rollout == rollout for r, _ in served)
        if turn < 4:
            outside.append(prompt(rollout, request.prompt_ids + sample.ids, turn))

    mixed = 0  # forward passes of a part of the rollouts
    with Forwards(model) as forwards:
        while outside or inside:
            for request in [r for r in outside if draw.random() < 0.3]:
                outside.remove(request)
                inside[request.rollout] = request
                player.submit(request, lambda sample, rollout=request.rollout: take(rollout, sample))
            requests = len(inside)
            if player.step(active=requests + len(outside), busy=0) == 0.0:
                mixed += forwards.shapes[-1][0] < requests
    assert mixed > 10 and len(served) == 32
    assert any(sample.cached_tokens for _, sample in served)
    for request, sample in served:
        assert answers(engine(model), [request])[0].ids == sample.ids


def test_rollouts_are_admitted_once_waiting_has_cost_as_many_tokens_as_admission(model: PreTrainedModel):
    player = engine(model, ends=[EOS], sampling=Sampling(0.0))
    for i in range(6):
        player.submit(Request(i, [5, 6, 7], 40, 0), lambda sample: None)
    with Forwards(model) as forwards:
        player.step(8, 0)
        player.submit(Request(6, [5, 6], 40, 0), lambda sample: None)
        player.step(8, 0)
        player.step(8, 0)
        player.submit(Request(7, [5, 6], 40, 0), lambda sample: None)  # two wait now; waiting has cost two tokens
        for _ in range(4):
            player.step(8, 0)
    assert forwards.shapes == [(6, 3), (6, 1), (6, 1), (6, 1), (6, 1), (2, 2), (8, 1)]


def test_a_step_waits_for_a_quick_environment(model: PreTrainedModel):
    player = engine(model, 0.0)
    assert player.step(active=2, busy=2) == math.inf  # nothing to do
    player.submit(Request(1, [5, 6], 1, 0), lambda sample: None)
    with Forwards(model) as forwards:
        assert 0.5 < player.step(active=2, busy=1) <= 1.0
        player.submit(Request(0, [7], 1, 0), lambda sample: None)
        assert player.step(active=2, busy=0) == 0.0
    assert forwards.shapes == [(2, 2)]
    assert player.step(active=0, busy=0) is None


# The samples


def test_a_sample_does_not_depend_on_the_other_rows(model: PreTrainedModel, kind: type[Either]):
    requests = [Request(i, ids, 8, seed=7 + i) for i, ids in enumerate(PROMPTS)]
    together = answers(engine(model, kind=kind), requests)
    assert [answers(engine(model, kind=kind), [request])[0] for request in requests] == together
    assert answers(engine(model, kind=kind), requests[::-1])[::-1] == together


def test_equal_requests_with_other_seeds_differ(model: PreTrainedModel, kind: type[Either]):
    samples = answers(engine(model, kind=kind), [Request(i, PROMPTS[1], 8, seed=i) for i in range(4)])
    assert len({tuple(sample.ids) for sample in samples}) == 4
    again = answers(engine(model, kind=kind), [Request(9, PROMPTS[1], 8, seed=2)])
    assert again == [samples[2]]


def test_temperature_0_is_greedy_generation(model: PreTrainedModel, kind: type[Either]):
    ends = eos_ids(model)
    samples = answers(engine(model, 0.0, kind), [Request(i, ids, 9, i) for i, ids in enumerate(PROMPTS)])
    for prompt, sample in zip(PROMPTS, samples, strict=True):
        config = GenerationConfig(max_new_tokens=9, do_sample=False, eos_token_id=ends, pad_token_id=PAD)
        expected = model.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist()
        assert sample.ids == expected


def noise(*seeds: int) -> list[torch.Generator]:
    return [generator(seed, torch.device("cpu")) for seed in seeds]


def test_seeded_sampling_draws_from_the_softmax():
    """Counts of 4,000 seeds: the chi-square with 4 degrees of freedom stays below its 99.9% point, 18.47."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -math.inf, 1.5])
    draws, probabilities = 4000, torch.softmax(logits, 0)
    scores = SeededSampling(noise(*range(draws)))(torch.zeros(draws, 1), logits.repeat(draws, 1))
    counts = torch.bincount(scores.argmax(1), minlength=6).float()
    assert counts[4] == 0
    possible = probabilities > 0
    expected = draws * probabilities[possible]
    assert ((counts[possible] - expected) ** 2 / expected).sum() < 18.47


def test_seeded_sampling_continues_from_step_to_step():
    """Every token of a row has other noise, and the row's number does not matter."""
    logits = torch.zeros(1, 50)
    first = SeededSampling(noise(3))
    steps = [first(torch.zeros(1, 1), logits) for _ in range(3)]
    assert not torch.equal(steps[0], steps[1]) and not torch.equal(steps[1], steps[2])
    second = SeededSampling(noise(8, 3))
    for step in steps:
        assert torch.equal(second(torch.zeros(2, 1), logits.repeat(2, 1))[1], step[0])


def test_filters_apply_before_sampling(model: PreTrainedModel, kind: type[Either]):
    """`top_k=1` leaves the greedy choice; a temperature near 0 does as well."""
    requests = [Request(i, ids, 6, seed=i) for i, ids in enumerate(PROMPTS)]
    greedy = answers(engine(model, 0.0, kind), requests)
    for sampling in (Sampling(top_k=1), Sampling(top_p=1e-6), Sampling(min_p=1.0), Sampling(temperature=1e-6)):
        assert answers(engine(model, kind=kind, sampling=sampling), requests) == greedy
    assert answers(engine(model, kind=kind), requests) != greedy


def test_a_repetition_penalty_changes_the_choice(model: PreTrainedModel, kind: type[Either]):
    request = Request(0, PROMPTS[1], 12, seed=0)
    [plain], [unlike] = (
        answers(engine(model, kind=kind, ends=[EOS], sampling=Sampling(0.0, repetition_penalty=penalty)), [request])
        for penalty in (1.0, 50.0)
    )
    assert len(set(unlike.ids)) == len(unlike.ids) >= len(set(plain.ids))
    assert unlike.ids != plain.ids


def test_a_repetition_penalty_counts_the_ids_of_its_own_row(model: PreTrainedModel):
    """Neither padding nor the number of times that an id occurs changes the sample."""
    sampling = Sampling(repetition_penalty=3.0)
    requests = [Request(i, ids, 8, seed=7 + i) for i, ids in enumerate(PROMPTS)]
    together = answers(engine(model, sampling=sampling), requests)
    assert [answers(engine(model, sampling=sampling), [request])[0] for request in requests] == together
    assert [answers(engine(model, kind=GenerateEngine, sampling=sampling), [r])[0] for r in requests] == together


def test_the_generation_config_of_a_checkpoint_changes_nothing(model: PreTrainedModel, kind: type[Either]):
    """Instruct checkpoints ship a repetition penalty and filters; a policy is sampled as it is trained."""
    requests = [Request(i, ids, 8, seed=i) for i, ids in enumerate(PROMPTS)]
    expected = [answers(engine(model, t, kind), requests) for t in (0.0, 1.0)]
    before = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=2, top_p=0.5, repetition_penalty=9.0, no_repeat_ngram_size=1,
        min_new_tokens=8, eos_token_id=before.eos_token_id,
    )  # fmt: skip
    try:
        assert [answers(engine(model, t, kind), requests) for t in (0.0, 1.0)] == expected
    finally:
        model.generation_config = before


# Budgets and ends


def test_budgets_and_end_tokens(model: PreTrainedModel, kind: type[Either]):
    ends = set(eos_ids(model))
    budgets = [1, 4, 9, 30]
    requests = [Request(i, ids, budgets[i], seed=50 + i) for i, ids in enumerate(PROMPTS)]
    samples = answers(engine(model, kind=kind), requests)
    for budget, request, sample in zip(budgets, requests, samples, strict=True):
        assert 1 <= len(sample.ids) <= budget
        assert sample.ended == (sample.ids[-1] in ends)
        assert sample.ended or len(sample.ids) == budget
        assert ends.isdisjoint(sample.ids[:-1])
        # A smaller budget cuts the same sample short.
        cut = answers(engine(model, kind=kind), [Request(0, request.prompt_ids, 2, request.seed)])[0]
        assert cut.ids[: len(sample.ids)] == sample.ids[:2]
    assert {sample.ended for sample in samples} == {True, False}


def test_the_padding_id_may_be_an_end_token(model: PreTrainedModel, kind: type[Either]):
    ends = eos_ids(model)
    request = [Request(i, ids, 8, seed=i) for i, ids in enumerate(PROMPTS)]
    player = kind(model, ends, ends[1], Sampling())
    for sample in answers(player, request):
        assert sum(i in ends for i in sample.ids) == sample.ended
