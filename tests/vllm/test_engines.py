"""The three engines sample the same tokens and report the same log-probabilities."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.rollout.attentive import attentive_model
from trl_agentic.information_gain import answer_logprobs, turn_prefixes
from trl_agentic.rollout.chat import ChatRenderer
from trl_agentic.rollout.engines import (
    Engine,
    Request,
    Sample,
    Sampling,
    TransformersEngine,
    VLLMColocateEngine,
    VLLMServerEngine,
)
from trl_agentic.rollout.loop import Budgets, Episode, RolloutClock, play
from trl_agentic.trainers.vllm_preflight import served_models
from trl_agentic.types import StepResult, Trajectory


BUDGETS = Budgets(max_turns=5, max_turn_tokens=9, max_rollout_tokens=400, max_context=1024)
ROLLOUTS = 6


class Scripted:
    """Environment with the same observations for all actions. Episodes have different lengths; steps may take time.

    Args:
        number: number of the rollout; every fourth one has the same length.
        delay: seconds of each step.
    """

    def __init__(self, number: int, delay: float = 0.0):
        self.number, self.delay = number, delay

    def reset(self, **row: Any) -> str:
        self.turns = 0
        return f"Room {self.number}: {'a lamp, ' * self.number}and a door."

    def step(self, action: str) -> StepResult:
        time.sleep(self.delay)
        self.turns += 1
        return StepResult(f"Nothing happens ({self.turns}).", terminated=self.turns > self.number % 4)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model, changed so that its samples are diverse and depend on the whole context."""
    path = tmp_path_factory.mktemp("attentive")
    attentive_model(model).save_pretrained(path)
    AutoTokenizer.from_pretrained(model).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def policy(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def chat(model: Path) -> ChatRenderer:
    tokenizer = AutoTokenizer.from_pretrained(model)
    return ChatRenderer(tokenizer, [tokenizer.eos_token_id])


@pytest.fixture(scope="module")
def ends(policy: PreTrainedModel) -> list[int]:
    """Every third id ends a turn, so that turns have different lengths."""
    return [policy.generation_config.eos_token_id, *range(60, policy.config.vocab_size, 3)]


@pytest.fixture(scope="module")
def llm(folder: Path) -> Any:
    from vllm import LLM

    import tests.vllm.cpu  # noqa: F401

    return LLM(
        str(folder), enforce_eager=True, dtype="float32", logprobs_mode="processed_logprobs", max_num_seqs=16, seed=0,
        distributed_executor_backend="uni", max_num_batched_tokens=1024,
    )  # fmt: skip


@pytest.fixture(scope="module")
def engines(
    policy: PreTrainedModel, ends: list[int], llm: Any, server: str
) -> Iterator[dict[str, Callable[[float], Any]]]:
    """Makes an engine for a temperature. The server gets the policy's weights."""
    from trl.generation.vllm_client import VLLMClient

    from tests.vllm.cpu import patch_trl

    with pytest.MonkeyPatch.context() as patch:
        patch_trl(patch)
        client = VLLMClient(server)
        client.init_communicator()
        client.update_model_params(policy)
        client.reset_prefix_cache()
    name = served_models([server])[0]["id"]
    yield {
        "transformers": lambda t: TransformersEngine(policy, ends, policy.config.pad_token_id, Sampling(t)),
        "server": lambda t: VLLMServerEngine([server], name, ends, Sampling(t), policy_step=7),
        "colocate": lambda t: VLLMColocateEngine(llm, ends, Sampling(t), policy_step=7),
    }


def played(
    engine: Engine, chat: ChatRenderer, delays: list[float] | None = None, prompt: str = "", **options: Any
) -> list[Trajectory]:
    delays = delays or [0.0] * ROLLOUTS
    rows = [{"task": i, "prompt": prompt} for i in range(ROLLOUTS)]
    episodes = [Episode(Scripted(i, delays[i]), row, seed=1000 + i) for i, row in enumerate(rows)]
    return play(episodes, engine, chat, BUDGETS, **options)


def ids(trajectories: list[Trajectory]) -> list[list[list[int]]]:
    return [[turn.action_ids for turn in trajectory.turns] for trajectory in trajectories]


def largest_gap(policy: PreTrainedModel, trajectories: list[Trajectory]) -> float:
    """Largest gap between a reported log-probability and the model's."""
    gap = 0.0
    for trajectory in trajectories:
        context: list[int] = []
        for turn in trajectory.turns:
            context += turn.prompt_ids
            with torch.no_grad():
                logits = policy(torch.tensor([context + turn.action_ids])).logits[0, len(context) - 1 : -1]
            true = torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(turn.action_ids)[:, None])[:, 0]
            gap = max(gap, (true - torch.tensor(turn.logprobs)).abs().max().item())
            context += turn.action_ids
    return gap


def test_greedy_rollouts_are_identical(engines: dict[str, Callable[[float], Any]], chat: ChatRenderer):
    expected = played(engines["transformers"](0.0), chat)
    lengths = {len(turn.action_ids) for trajectory in expected for turn in trajectory.turns}
    assert len({len(t.turns) for t in expected}) == 4 and len(lengths) > 1
    for name in ("server", "colocate"):
        with closing(engines[name](0.0)) as engine:
            actual = played(engine, chat)
        assert ids(actual) == ids(expected), name
        assert [[t.cut for t in a.turns] for a in actual] == [[t.cut for t in e.turns] for e in expected]
        assert [[t.prompt_ids for t in a.turns] for a in actual] == [[t.prompt_ids for t in e.turns] for e in expected]
        assert {turn.policy_step for t in actual for turn in t.turns} == {7}


@pytest.mark.parametrize("name", ["server", "colocate"])
def test_log_probabilities_are_those_of_the_model(
    name: str, engines: dict[str, Callable[[float], Any]], chat: ChatRenderer, policy: PreTrainedModel
):
    with closing(engines[name](1.0)) as engine:
        trajectories = played(engine, chat)
    gap = largest_gap(policy, trajectories)
    print(f"{name}: largest gap {gap:.1e}")
    assert 0 < gap < 1e-4


def test_samples_depend_on_the_seed_and_not_on_the_order(
    engines: dict[str, Callable[[float], Any]], chat: ChatRenderer
):
    results = {}
    for name in ("server", "colocate"):
        for order, delays in (("none", None), ("mixed", [0.2, 0.0, 0.1, 0.0, 0.05, 0.3])):
            with closing(engines[name](1.0)) as engine:
                results[name, order] = ids(played(engine, chat, delays))
    assert len({tuple(map(tuple, turns)) for turns in results["server", "none"]}) == ROLLOUTS
    assert results["server", "none"] == results["server", "mixed"]
    assert results["colocate", "none"] == results["colocate", "mixed"] == results["server", "none"]


@pytest.mark.parametrize("name", ["server", "colocate", "transformers"])
def test_later_turns_are_found_in_the_cache(name: str, engines: dict[str, Callable[[float], Any]], chat: ChatRenderer):
    """vLLM's cache has blocks of 128 tokens on the CPU, which is why the prompt is long."""
    clock = RolloutClock()
    played(engines[name](1.0), chat, prompt="You are in a house with many rooms. " * 20, clock=clock)
    assert 0.2 < clock.cached_tokens / clock.prompt_tokens < 1.0


def test_the_mean_log_probability_of_an_answer(
    chat: ChatRenderer, policy: PreTrainedModel, ends: list[int], llm: Any, monkeypatch: pytest.MonkeyPatch
):
    """At every turn boundary, the colocated engine computes with its prefix cache what the model computes in one pass
    over the rollouts. vLLM reports no log-probabilities of cached tokens. The cache holds the answer that the policy
    itself sampled and, the second time, the long alias, which fills a block: both are computed without the cache."""
    skips: list[bool] = []  # whether a text was computed without the cache
    add_request = llm.llm_engine.add_request

    def record(name: str, prompt: Any, parameters: Any) -> Any:
        skips.append(bool(parameters.skip_reading_prefix_cache))
        return add_request(name, prompt, parameters)

    with closing(VLLMColocateEngine(llm, ends, Sampling(1.0))) as engine:
        trajectories = played(engine, chat, prompt="You are in a house with many rooms. " * 20)
        [(ids, places), *_] = [run for t in trajectories if len(t.turns) > 1 for run in turn_prefixes(t)]
        aliases = [[300, 301, 302], [300, 301, 400, 401], [500] * 130]
        sampled = ids[places[0] :]
        texts = [(ids[:end] + [7, 8] + alias, len(alias)) for end in places for alias in aliases]
        texts.append((ids, len(sampled)))
        first = engine.mean_logprobs(texts)
        monkeypatch.setattr(llm.llm_engine, "add_request", record)
        again = engine.mean_logprobs(texts)  # now the cache holds all of them
    expected = [answer_logprobs(policy, [ids], [places], [[alias]], [7, 8])[0].tolist() for alias in aliases]
    [own] = answer_logprobs(policy, [ids[: places[0]]], [[places[0]]], [[sampled]])
    means = [row[t] for t in range(len(places)) for row in expected] + own.tolist()
    assert first == pytest.approx(means, abs=1e-4) and again == pytest.approx(means, abs=1e-4)
    assert skips.count(False) == len(set(map(str, texts))) > skips.count(True) > 0


def answers(engine: Any, requests: list[Request], active: int = 1) -> list[Sample]:
    samples: dict[int, Any] = {}
    for request in requests:
        engine.submit(request, lambda sample, request=request: samples.__setitem__(request.rollout, sample))
    deadline = time.monotonic() + 120
    while len(samples) < len(requests):
        assert time.monotonic() < deadline
        if engine.step(active, 0):
            time.sleep(0.01)
    for sample in samples.values():
        if isinstance(sample, Exception):
            raise sample
    return [samples[request.rollout] for request in requests]


def test_budgets_and_filters(engines: dict[str, Callable[[float], Any]], server: str, llm: Any, ends: list[int]):
    requests = [Request(i, [5, 6, 7 + i], 1 + 3 * i, seed=i) for i in range(4)]
    greedy = [sample.ids for sample in answers(engines["transformers"](0.0), requests)]
    narrow = Sampling(top_k=1)
    name = served_models([server])[0]["id"]
    for engine in (VLLMServerEngine([server], name, ends, narrow), VLLMColocateEngine(llm, ends, narrow)):
        samples = answers(engine, requests)
        assert [sample.ids for sample in samples] == greedy
        assert all(sample.logprobs == [0.0] * len(sample.ids) for sample in samples)  # after the filter
        assert all(sample.ended == (sample.ids[-1] in ends) for sample in samples)
        engine.close()


def test_a_closed_colocated_engine_leaves_no_requests(llm: Any, engines: dict[str, Callable[[float], Any]]):
    first = engines["colocate"](1.0)
    first.submit(Request(0, [5, 6, 7], 200, seed=0), lambda sample: None)
    assert first.step(1, 0) == 0.0 and llm.llm_engine.has_unfinished_requests()
    first.close()
    assert not llm.llm_engine.has_unfinished_requests()


def test_a_colocated_step_waits_for_quick_environments(llm: Any, engines: dict[str, Callable[[float], Any]]):
    engine, done = engines["colocate"](0.0), []
    assert engine.step(2, 2) == math.inf  # nothing to do
    engine.submit(Request(1, [5, 6, 7], 200, seed=0), done.append)
    assert 0 < engine.step(2, 1) <= 1.0
    assert not done and not llm.llm_engine.has_unfinished_requests()
    engine.submit(Request(0, [5, 6], 200, seed=0), done.append)
    assert engine.step(2, 0) == 0.0
    assert len(done) + llm.llm_engine.get_num_unfinished_requests() == 2  # a request may end with its first token
    engine.close()


def test_a_missing_server_and_a_request_that_is_too_long(server: str):
    name = served_models([server])[0]["id"]
    missing = VLLMServerEngine(["http://127.0.0.1:9"], name, [2], Sampling(), attempts=2)
    with pytest.raises(ConnectionError, match="interrupted a request.*resume_from_checkpoint"):
        answers(missing, [Request(0, [5], 3, 0)])
    long = VLLMServerEngine([server], name, [2], Sampling())
    with pytest.raises(RuntimeError, match="answered 400.*1024"):
        answers(long, [Request(0, [5] * 1030, 3, 0)])
