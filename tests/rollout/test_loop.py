"""The loop: every rollout ends for one reason, an error costs its own rollout, and tokens are never rewritten."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from threading import Barrier, Event, get_ident
from typing import Any

import numpy as np
import pytest

from tests.tiny_model import build_tiny_tokenizer
from tests.toys import Corridor
from trl_agentic.environments.base import EpisodeRestarted
from trl_agentic.environments.handle import EnvironmentHandle, WorkerOptions
from trl_agentic.rollout import loop
from trl_agentic.rollout.batching_delay import BatchingDelay
from trl_agentic.rollout.chat import ChatRenderer
from trl_agentic.rollout.engines import LockstepEngine, Request, Sample
from trl_agentic.rollout.loop import (
    Budgets,
    Episode,
    RolloutClock,
    derived_seed,
    play,
)
from trl_agentic.rollout.prompts import PromptPolicy, first_messages
from trl_agentic.types import StepResult, StopReason, Trajectory


TOKENIZER = build_tiny_tokenizer("qwen3")
EOS = TOKENIZER.eos_token_id
CHAT = ChatRenderer(TOKENIZER, [EOS])
AMPLE = Budgets(max_turns=50, max_turn_tokens=20, max_rollout_tokens=10_000, max_context=20_000)


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


class ScriptedEngine(LockstepEngine):
    """Answers each rollout's k-th request with its k-th line, then with the last. A line that ends in "~" is cut."""

    limit = 60.0  # seconds to wait for environments: a busy machine does not change which requests share a batch

    def __init__(self, *lines: list[str], any_active: Callable[[bool], bool] | None = None):
        super().__init__(any_active, BatchingDelay(passes=1.0, minimum=self.limit, backoff=1.0, first=self.limit))
        self.lines = lines
        self.calls: list[list[Request]] = []

    def generate(self, requests: list[Request]) -> list[Sample]:
        self.calls.append(requests)
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Sample:
        answered = sum(r.rollout == request.rollout for call in self.calls for r in call) - 1
        lines = self.lines[min(request.rollout, len(self.lines) - 1)]
        line = lines[min(answered, len(lines) - 1)]
        ids = encode(line.removesuffix("~")) + ([] if line.endswith("~") else [EOS])
        return Sample(ids, [-0.5] * len(ids), ended=ids[-1] == EOS)

    def seen(self, rollout: int) -> list[Request]:
        return [request for call in self.calls for request in call if request.rollout == rollout]


class ScriptedEnv:
    """Answers with the given results, the last one for ever; an exception among them is raised."""

    def __init__(self, *results: Any, first: Any = "Begin."):
        self.results, self.first, self.actions = results, first, []

    def reset(self, **row: Any) -> Any:
        self.row = row
        if isinstance(self.first, Exception):
            raise self.first
        return self.first

    def step(self, action: str) -> Any:
        self.actions.append(action)
        result = self.results[min(len(self.actions), len(self.results)) - 1]
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        pass


def on(observation: str = "Go on.", reward: float = 0.0, **options: Any) -> StepResult:
    return StepResult(observation, reward, **options)


def run(*environments: Any, lines: list[str] | None = None, budgets: Budgets = AMPLE, **options: Any):
    engine = ScriptedEngine(lines or ["go"])
    episodes = [Episode(environment, {"task": i}, seed=i) for i, environment in enumerate(environments)]
    return play(episodes, engine, CHAT, budgets, **options), engine


# Why a rollout ends


def test_the_environment_ends_the_episode():
    [won], _ = run(ScriptedEnv(on(reward=0.5), on("You win.", 1.0, terminated=True, info={"success": True})))
    assert won.stop_reason is StopReason.TERMINATED
    assert [turn.reward for turn in won.turns] == [0.5, 1.0] and won.episode_return == 1.5
    assert won.success is True and won.error is None
    assert won.final_observation == "You win."


def test_the_environment_cuts_the_episode():
    [cut], _ = run(ScriptedEnv(on(), on("Time is up.", truncated=True, info={"anchor_state": "room 2"})))
    assert cut.stop_reason is StopReason.TRUNCATED and len(cut.turns) == 2
    assert cut.final_anchor_state == "room 2" and cut.success is None


def test_terminated_wins_over_truncated():
    [both], _ = run(ScriptedEnv(on(terminated=True, truncated=True)))
    assert both.stop_reason is StopReason.TERMINATED


@pytest.mark.parametrize("most", [1, 3])
def test_the_turns_are_used_up(most: int):
    environment = ScriptedEnv(on())
    [cut], engine = run(environment, budgets=replace(AMPLE, max_turns=most))
    assert cut.stop_reason is StopReason.MAX_TURNS
    assert len(cut.turns) == len(environment.actions) == len(engine.calls) == most
    assert cut.final_observation == cut.final_anchor_state == "Go on."


def spent(trajectory: Trajectory, turns: int) -> int:
    """Tokens after the first prompt, up to and including what is put before turn `turns`."""
    return sum(len(t.prompt_ids) + len(t.action_ids) for t in trajectory.turns[:turns]) + len(
        trajectory.turns[turns].prompt_ids
    )


@pytest.mark.parametrize("turns", [1, 2])
def test_the_rollout_is_used_up(turns: int):
    """A turn begins when all of its tokens fit, and not when one is missing."""
    [long], _ = run(ScriptedEnv(on()), budgets=replace(AMPLE, max_turns=4))
    needed = spent(long, turns) - len(long.turns[0].prompt_ids) + AMPLE.max_turn_tokens
    for budget, played in ((needed, turns + 1), (needed - 1, turns)):
        [cut], _ = run(ScriptedEnv(on()), budgets=replace(AMPLE, max_rollout_tokens=budget))
        assert cut.stop_reason is StopReason.ROLLOUT_LENGTH and len(cut.turns) == played


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_the_context_is_used_up(turns: int):
    [long], _ = run(ScriptedEnv(on()), budgets=replace(AMPLE, max_turns=4))
    needed = spent(long, turns) + AMPLE.max_turn_tokens
    for budget, played in ((needed, turns + 1), (needed - 1, turns)):
        [cut], engine = run(ScriptedEnv(on()), budgets=replace(AMPLE, max_context=budget))
        assert cut.stop_reason is StopReason.CONTEXT_LENGTH and len(cut.turns) == played
        for request in engine.seen(0):
            assert len(request.prompt_ids) + request.max_new_tokens <= budget


def test_an_overlong_turn_goes_to_the_environment_or_stops():
    environment = ScriptedEnv(on(), on(terminated=True))
    [passed], engine = run(environment, lines=["hm hm hm~", "go"])
    assert passed.stop_reason is StopReason.TERMINATED
    assert [turn.cut for turn in passed.turns] == [True, False]
    assert environment.actions == ["hm hm hm", "go"]
    # The missing end of the turn is put before the observation.
    assert passed.turns[1].prompt_ids == CHAT.observation_ids(["Go on."], ended=False)
    first, second = engine.seen(0)
    assert second.prompt_ids == first.prompt_ids + encode("hm hm hm") + passed.turns[1].prompt_ids

    environment = ScriptedEnv(on())
    [cut], _ = run(environment, lines=["go", "hm hm hm~"], budgets=replace(AMPLE, stop_at_overlong_turn=True))
    assert cut.stop_reason is StopReason.TURN_LENGTH
    assert environment.actions == ["go"] and len(cut.turns) == 2
    assert cut.turns[1].reward == 0 and cut.final_anchor_state == "Go on."


# Errors


BROKEN: dict[str, Any] = {
    "exception": RuntimeError("the game crashed"),
    "nan": on(reward=math.nan),
    "infinite": on(reward=-math.inf),
    "no number": on(reward="much"),  # type: ignore[arg-type]
    "no result": ("Go on.", 0.0, False, {}),
    "no text": on(None),  # type: ignore[arg-type]
    "no info": on(info=None),
    "no state": on(info={"anchor_state": 3}),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_an_error_in_step_costs_its_own_rollout(broken: Any):
    healthy = [ScriptedEnv(on(), on(), on(reward=2.0, terminated=True)) for _ in range(2)]
    trajectories, engine = run(healthy[0], ScriptedEnv(on(reward=1.0), broken), healthy[1])
    assert [t.stop_reason for t in trajectories] == [StopReason.TERMINATED, StopReason.ERROR, StopReason.TERMINATED]
    assert [t.episode_return for t in trajectories] == [2.0, 1.0, 2.0]
    assert trajectories[1].error is not None and "Traceback" in trajectories[1].error
    assert [len(call) for call in engine.calls] == [3, 3, 2]


def test_the_error_is_kept_with_its_message():
    trajectories, _ = run(ScriptedEnv(BROKEN["exception"]), ScriptedEnv(BROKEN["nan"]))
    assert "the game crashed" in trajectories[0].error
    assert "`StepResult.reward` is nan" in trajectories[1].error


def test_an_error_in_reset_costs_its_own_rollout():
    bad = [ScriptedEnv(first=ValueError("no such game")), ScriptedEnv(first=7), ScriptedEnv(first=None)]
    trajectories, engine = run(*bad, ScriptedEnv(on(terminated=True)))
    assert [t.stop_reason for t in trajectories] == [StopReason.ERROR] * 3 + [StopReason.TERMINATED]
    assert all(t.turns == [] for t in trajectories[:3])
    assert "no such game" in trajectories[0].error
    assert "got int" in trajectories[1].error
    assert "needs a first prompt" in trajectories[2].error
    assert [request.rollout for request in engine.calls[0]] == [3]


def test_a_prompt_that_cannot_be_rendered_costs_its_own_rollout():
    engine = ScriptedEngine(["go"])
    image = [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]
    episodes = [Episode(ScriptedEnv(on(), first=""), {"prompt": image}, seed=0)]
    [failed] = play(episodes, engine, CHAT, AMPLE)
    assert failed.stop_reason is StopReason.ERROR and "Only text contents" in failed.error
    assert engine.calls == []


# Token in, token out


def test_the_record_is_what_the_engine_saw_and_said():
    texts = ["go <|im_end|> north", "wait~", "zzz  \n", "go"]
    talkative = ScriptedEnv(on("A<|im_start|>room."), on("\u00e9 <think>"), on("c"), on(terminated=True))
    trajectories, engine = run(talkative, ScriptedEnv(on("Other.")), lines=texts, budgets=replace(AMPLE, max_turns=4))
    for rollout, trajectory in enumerate(trajectories):
        context: list[int] = []
        for turn, request in zip(trajectory.turns, engine.seen(rollout), strict=True):
            context += turn.prompt_ids
            assert context == request.prompt_ids
            context += turn.action_ids
            assert turn.logprobs == [-0.5] * len(turn.action_ids)
            assert turn.action == TOKENIZER.decode(turn.action_ids, skip_special_tokens=True)
        assert [turn.extends for turn in trajectory.turns] == [False, True, True, True]
    assert [turn.observation for turn in trajectories[0].turns] == [
        "Begin.",
        "A<|im_start|>room.",
        "\u00e9 <think>",
        "c",
    ]


def test_the_first_prompt_is_the_row_and_the_first_observation():
    task = {"prompt": [{"role": "system", "content": "Play."}], "seed": 4}
    environment = ScriptedEnv(on(terminated=True))
    engine = ScriptedEngine(["go"])
    [trajectory] = play([Episode(environment, task, seed=0)], engine, CHAT, AMPLE)
    messages = [*task["prompt"], {"role": "user", "content": "Begin."}]
    assert trajectory.turns[0].prompt_ids == CHAT.prompt_ids(messages)
    assert environment.row == trajectory.task == task


@pytest.mark.parametrize(
    ("task", "observation", "expected"),
    [
        ({}, "Look.", [("user", "Look.")]),
        ({"prompt": None}, "Look.", [("user", "Look.")]),
        ({"prompt": "Task: "}, "Look.", [("user", "Task: Look.")]),
        ({"prompt": [{"role": "user", "content": "Task: "}]}, None, [("user", "Task: ")]),
        ({"prompt": [{"role": "user", "content": "Task: "}]}, "Look.", [("user", "Task: Look.")]),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "T: "}]}]}, "L", [("user", "T: L")]),
        ({"prompt": [{"role": "system", "content": "Be."}]}, "Look.", [("system", "Be."), ("user", "Look.")]),
    ],
)
def test_first_messages(task: dict[str, Any], observation: str | None, expected: list[tuple[str, str]]):
    before = repr(task)
    assert [(m["role"], m["content"]) for m in first_messages(task, observation)] == expected
    assert repr(task) == before


def test_a_rollout_without_any_prompt_is_an_error():
    with pytest.raises(ValueError, match="needs a first prompt"):
        first_messages({}, "")


def test_tool_results_are_messages_of_their_own_with_the_role_of_the_episode():
    qwen2 = build_tiny_tokenizer("qwen2")
    chat, engine = ChatRenderer(qwen2, [qwen2.eos_token_id]), ScriptedEngine(["go"])
    answer = on("3\n4", info={"tool_results": ["3", "4"]})
    episode = Episode(ScriptedEnv(answer, on(terminated=True)), {}, seed=0, observation_role="tool", raw_action=True)
    [trajectory] = play([episode], engine, chat, AMPLE)
    assert trajectory.turns[1].prompt_ids == chat.observation_ids(["3", "4"], ended=True, role="tool")
    assert episode.environment.actions == ["go<|im_end|>"] * 2  # raw: with its special tokens


def test_states_are_those_of_the_environment_or_its_observations():
    [t], _ = run(ScriptedEnv(on("dark", info={"anchor_state": "cellar"}), on("light"), on(terminated=True)))
    assert [turn.anchor_state for turn in t.turns] == ["Begin.", "cellar", "light"]
    assert [turn.info for turn in t.turns] == [{"anchor_state": "cellar"}, {}, {}]


@pytest.mark.parametrize("ended", [True, False])
def test_a_window_repeats_a_turn_as_it_ended(ended: bool):
    """An incomplete turn that stops at a special token is shown without it, and with the missing end of turn."""
    start = TOKENIZER.convert_tokens_to_ids("<|im_start|>")

    class Opening(ScriptedEngine):
        def generate(self, requests: list[Request]) -> list[Sample]:
            last = EOS if ended else start
            return [Sample([*encode("go"), start, *encode("on"), last], None, ended) for _ in requests]

    environment = ScriptedEnv(on("Room 1."), on("Room 2."), on(terminated=True))
    [trajectory] = play([Episode(environment, {}, 0)], Opening(["go"]), CHAT, AMPLE, context=PromptPolicy(1))
    assert [turn.extends for turn in trajectory.turns] == [False, True, False]
    assert trajectory.turns[1].prompt_ids == CHAT.observation_ids(["Room 1."], ended=ended)
    note = "This is step 3. Steps 1 to 1 are left out; step 2 began with:"
    task = CHAT.prompt_ids([{"role": "user", "content": f"Begin.\n\n{note}\n\nRoom 1."}])
    shown = [*encode("go"), *encode("on"), EOS]  # the end of turn was sampled, or is added
    glue = CHAT.observation_ids(["Room 2."], ended=True)
    assert trajectory.turns[2].prompt_ids == task + shown + glue


# Seeds


def test_seeds_depend_on_the_rollout_and_the_turn_alone():
    def seeds(*environments: Any, first: int = 0) -> dict[int, list[int]]:
        engine = ScriptedEngine(["go"])
        episodes = [Episode(environment, {}, seed=first + i) for i, environment in enumerate(environments)]
        play(episodes, engine, CHAT, replace(AMPLE, max_turns=3))
        return {first + i: [request.seed for request in engine.seen(i)] for i in range(len(environments))}

    def endless() -> ScriptedEnv:
        return ScriptedEnv(on())

    together = seeds(endless(), ScriptedEnv(on(terminated=True)), endless())
    assert len(set(together[0] + together[1] + together[2])) == 7
    assert seeds(endless(), first=2)[2] == together[2]
    assert together[1] == seeds(endless(), first=1)[1][:1]


def test_derived_seeds_are_different_and_in_range():
    seeds = {derived_seed(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900 and all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(1, 2) == derived_seed(1, 2) != derived_seed(2, 1)


# In step with other processes


def test_an_idle_process_calls_the_engine_as_long_as_another_waits():
    """Another process waits for five turns."""
    others, given = [True] * 5 + [False], []

    def any_active(here: bool) -> bool:
        given.append(here)
        return here or others[len(given) - 1]

    engine = ScriptedEngine(["go"], any_active=any_active)
    play([Episode(ScriptedEnv(on(), on(terminated=True)), {}, seed=0)], engine, CHAT, AMPLE)
    assert [len(call) for call in engine.calls] == [1, 1, 0, 0, 0]
    assert given == [True, True, False, False, False, False]


# Rollouts advance independently of one another


class Immediate(ScriptedEngine):
    """Waits for no environment."""

    limit = 0.0


class Gated(ScriptedEnv):
    """Answers its first action when `gate` opens, and opens `opens` with its last."""

    def __init__(self, *results: Any, gate: Event | None = None, opens: Event | None = None):
        super().__init__(*results)
        self.gate, self.opens = gate, opens

    def step(self, action: str) -> Any:
        result = super().step(action)
        if self.gate is not None and len(self.actions) == 1:
            assert self.gate.wait(30)
        if self.opens is not None and result.terminated:
            self.opens.set()
        return result


def test_a_slow_environment_delays_no_other_rollout():
    """The first environment answers its first action only when the second has played its whole episode."""
    over = Event()
    slow = Gated(on(), on(terminated=True), gate=over)
    quick = Gated(on(), on(), on(), on(terminated=True), opens=over)
    trajectories = play([Episode(e, {}, i) for i, e in enumerate((slow, quick))], Immediate(["go"]), CHAT, AMPLE)
    assert [len(t.turns) for t in trajectories] == [2, 4]
    assert {t.stop_reason for t in trajectories} == {StopReason.TERMINATED}


def handles(*environments: Any) -> list[EnvironmentHandle]:
    return [EnvironmentHandle(lambda e=e: e, WorkerOptions()) for e in environments]


@pytest.mark.parametrize("handled", [False, True])
def test_environments_work_at_the_same_time(handled: bool):
    """Each waits in `reset` and in `step` until all have been called."""
    together = Barrier(12)

    class Meeting(ScriptedEnv):
        def reset(self, **row: Any) -> Any:
            together.wait(30)
            return super().reset(**row)

        def step(self, action: str) -> Any:
            together.wait(30)
            return super().step(action)

    environments: list[Any] = [Meeting(on(), on(terminated=True)) for _ in range(12)]
    trajectories, _ = run(*(handles(*environments) if handled else environments))
    assert [t.stop_reason for t in trajectories] == [StopReason.TERMINATED] * 12


def test_quick_environments_are_called_one_after_the_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "QUICK_ANSWER", 60.0)
    working: set[int] = set()
    most, threads = 0, {}

    class Quick(ScriptedEnv):
        def step(self, action: str) -> Any:
            nonlocal most
            working.add(id(self))
            most = max(most, len(working))
            time.sleep(0.01)
            threads.setdefault(id(self), set()).add(get_ident())
            working.remove(id(self))
            return super().step(action)

    environments = [Quick(on(), on("Done.", 1.0, terminated=True)) for _ in range(4)]
    clock = RolloutClock()
    trajectories, _ = run(*handles(*environments), clock=clock)
    assert [[turn.reward for turn in t.turns] for t in trajectories] == [[0.0, 1.0]] * 4
    assert most == 1
    assert sorted(map(len, threads.values())) == [1] * 4 and len(set.union(*threads.values())) == 4  # its own
    assert clock.env_waits >= 8 * 0.01 and clock.env_seconds >= 8 * 0.01


def test_an_error_of_a_quick_environment_costs_its_own_rollout():
    environments = [ScriptedEnv(on(), on(terminated=True)), ScriptedEnv(on(), RuntimeError("collapsed"))]
    [good, bad], _ = run(*handles(*environments))
    assert good.stop_reason is StopReason.TERMINATED and len(good.turns) == 2
    assert bad.stop_reason is StopReason.ERROR and "collapsed" in bad.error
    assert len(environments[1].actions) == 2  # the failing step was called once


class Beginning(ScriptedEnv):
    """Answers the k-th `begin_step` with the k-th flag, the last one for ever; each step takes `pause` seconds."""

    def __init__(self, *results: Any, over: list[bool], pause: float = 0.0):
        super().__init__(*results)
        self.over, self.pause, self.begun, self.threads = over, pause, [], []

    def begin_step(self, action: str, seconds: float) -> bool:
        assert seconds == loop.QUICK_ANSWER
        self.begun.append(len(self.actions))
        return self.over[min(len(self.begun), len(self.over)) - 1]

    def step(self, action: str) -> Any:
        self.threads.append(get_ident())
        time.sleep(self.pause)
        return super().step(action)


def test_an_environment_is_waited_for_as_long_as_its_answers_are_quick():
    quick = Beginning(on(), on(), on(), on(terminated=True), over=[True])
    slow = Beginning(on(), on(), on(), on(terminated=True), over=[False], pause=0.005)
    trajectories, _ = run(quick, slow)
    assert [t.stop_reason for t in trajectories] == [StopReason.TERMINATED] * 2
    assert quick.begun == [0, 1, 2, 3] and set(quick.threads) == {get_ident()}
    assert slow.begun == [0] and get_ident() not in slow.threads  # one late answer of it is enough


def test_an_environment_that_is_quick_again_is_waited_for_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "QUICK_ANSWER", 60.0)
    environment = Beginning(on(), on(), on(terminated=True), over=[False, True])
    [played], _ = run(environment)
    assert played.stop_reason is StopReason.TERMINATED and environment.begun == [0, 1, 2]
    assert [thread == get_ident() for thread in environment.threads] == [False, True, True]


@pytest.mark.parametrize("handled", [False, True])
def test_the_order_of_answers_changes_nothing(handled: bool):
    class Late(Corridor):
        def __init__(self, delays: Any):
            self.delays = delays

        def step(self, action: str) -> StepResult:
            time.sleep(next(self.delays))
            return super().step(action)

    def played(engine: ScriptedEngine, seed: int | None) -> list[Trajectory]:
        random = np.random.default_rng(seed)
        delays = (0.0 if seed is None else float(random.choice([0.0, 0.003, 0.02])) for _ in itertools.count())
        shared = iter(map(float, list(itertools.islice(delays, 400))))
        environments: list[Any] = [Late(shared) for _ in range(8)]
        if handled:
            environments = handles(*environments)
        episodes = [Episode(e, {"length": 1 + i % 3}, seed=i) for i, e in enumerate(environments)]
        return play(episodes, engine, CHAT, replace(AMPLE, max_turns=5))

    lines = [["ab", "abcd", "a~"], ["abc", "ab"], ["a", "abcde"], ["ab~", "abc", "ab"]] * 2
    in_step, without = ScriptedEngine(*lines), [Immediate(*lines) for _ in range(3)]
    expected = played(in_step, None)
    assert len({len(t.turns) for t in expected}) > 2
    for seed, engine in enumerate(without):
        assert played(engine, seed) == expected
        assert len(engine.calls) > len(in_step.calls)  # the batches were different
        for rollout in range(8):
            assert engine.seen(rollout) == in_step.seen(rollout)


def test_an_error_of_the_engine_ends_the_loop():
    class Broken(ScriptedEngine):
        def step(self, active: int, busy: int) -> float | None:
            for _, done in self._waiting:
                done(ConnectionError("the server is gone"))
            return math.inf

    with pytest.raises(ConnectionError, match="the server is gone"):
        play([Episode(ScriptedEnv(on()), {}, seed=0)], Broken(["go"]), CHAT, AMPLE)


def test_a_batch_waits_for_environments_as_long_as_the_last_one_took(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    class Timed(LockstepEngine):
        def __init__(self) -> None:
            super().__init__()
            self.batches: list[list[int]] = []

        def generate(self, requests: list[Request]) -> list[Sample]:
            nonlocal now
            now += 5.0
            self.batches.append([request.rollout for request in requests])
            return [Sample([EOS], None, ended=True) for _ in requests]

    samples: list[Any] = []
    engine = Timed()
    requests = [Request(i, [1], 1, 0) for i in range(2)]
    assert engine.step(active=2, busy=2) == math.inf  # nothing to do
    now += 50.0  # the wait starts with the first request
    engine.submit(requests[1], samples.append)
    assert engine.step(active=2, busy=1) == 1.0  # before the first batch
    now += 0.75
    engine.submit(requests[0], samples.append)
    assert engine.step(active=2, busy=1) == 0.25
    assert engine.step(active=2, busy=0) == 0 and len(samples) == 2
    assert engine.batches == [[0, 1]]
    for count in (3, 4):  # each time that an environment is slow
        now += 50.0
        engine.submit(requests[0], samples.append)
        assert engine.step(active=2, busy=1) == 5.0
        now += 4.5
        assert engine.step(active=2, busy=1) == 0.5
        now += 0.5
        assert engine.step(active=2, busy=1) == 0 and len(samples) == count
    assert engine.step(active=0, busy=0) is None
    engine.submit(requests[0], samples.append)
    assert engine.step(active=2, busy=1) == 1.0  # the next rollouts begin with resets


def test_a_short_batch_waits_for_a_tenth_of_a_second(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 7.0)
    samples: list[Any] = []

    class Instant(LockstepEngine):
        def generate(self, requests: list[Request]) -> list[Sample]:
            return [Sample([EOS], None, ended=True) for _ in requests]

    engine = Instant()
    for busy, pause in ((0, 0.0), (1, pytest.approx(0.1))):
        engine.submit(Request(0, [1], 1, 0), samples.append)
        assert engine.step(active=2, busy=busy) == pause
    assert len(samples) == 1


def test_no_episodes_need_no_engine():
    assert play([], ScriptedEngine(["go"]), CHAT, AMPLE) == []


def test_progress_and_time_are_reported():
    done: list[int] = []
    clock = RolloutClock()
    environments = [ScriptedEnv(first=OSError()), ScriptedEnv(on(terminated=True)), Corridor(), Corridor()]
    engine = ScriptedEngine(["abc"])  # the corridor goes back with a text of a length divisible by 3
    play(
        [Episode(e, {}, i) for i, e in enumerate(environments)], engine, CHAT, AMPLE, on_done=done.append, clock=clock
    )
    assert done == [1, 1, 1, 1]
    assert clock.engine_seconds > 0 and clock.env_seconds > 0


def test_waits_are_reported_for_all_rollouts():
    class Slow(ScriptedEnv):
        def step(self, action: str) -> Any:
            time.sleep(0.05)
            return super().step(action)

    clock = RolloutClock()
    environments = [Slow(on(), on(terminated=True)) for _ in range(4)]
    engine = ScriptedEngine(["go"])
    started = time.perf_counter()
    play([Episode(e, {}, i) for i, e in enumerate(environments)], engine, CHAT, AMPLE, clock=clock)
    elapsed = time.perf_counter() - started
    # Four rollouts wait at the same time.
    assert clock.env_waits >= 4 * 2 * 0.05 and 2 * 0.05 <= clock.env_seconds <= min(elapsed, clock.env_waits)
    assert clock.engine_waits > 0


def test_an_episode_that_restarts_forgets_its_turns():
    class Restarting(ScriptedEnv):
        def step(self, action: str) -> Any:
            if len(self.actions) == 1:
                self.actions.append(action)
                raise EpisodeRestarted("Again.")
            return super().step(action)

    (t, _), engine = run(Restarting(on(), on(), on(), on(terminated=True)), ScriptedEnv(on(terminated=True)))
    assert [request.seed for request in engine.seen(0)][2:] == [request.seed for request in engine.seen(0)][:2]
    assert t.stop_reason is StopReason.TERMINATED and t.error is None
    assert [turn.observation for turn in t.turns] == ["Again.", "Go on."]
    assert [turn.extends for turn in t.turns] == [False, True]
    assert t.turns[0].prompt_ids == CHAT.prompt_ids([{"role": "user", "content": "Again."}])


def test_columns_may_have_any_name():
    environment = ScriptedEnv(on(terminated=True))
    task = {"rollout": 1, "method": "a", "args": [2]}
    [played] = play([Episode(environment, task, seed=0)], ScriptedEngine(["go"]), CHAT, AMPLE)
    assert played.error is None and environment.row == task
