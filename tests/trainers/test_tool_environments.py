"""TRL's tool-style environments: the model calls their methods, and the last turn has their reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.small import history, small_config
from trl_agentic import GAGPOConfig, GAGPOTrainer, StepResult, StopReason
from trl_agentic.rollout.engines import LockstepEngine, Request, Sample, Sampling


Model = Callable[..., Path]


class Counter:
    """Count to three with a tool; the environment owns its reward."""

    def reset(self, **row: Any) -> str:
        self.value = 0
        return "Count to 3."

    def add(self, amount: int) -> int:
        """Adds to the counter.

        Args:
            amount: how much to add.
        """
        if amount > 5:
            raise ValueError("too much")
        self.value += amount
        return self.value

    def get_reward(self) -> float:
        return 1.0 if self.value == 3 else 0.0

    def tasks(self) -> list[dict[str, Any]]:
        return [{"task": i} for i in range(4)]


class Caller(LockstepEngine):
    """An engine that calls the tool, once per turn, and ends with an answer."""

    def __init__(self, tokenizer: Any, amounts: list[list[int]]):
        super().__init__()
        self.tokenizer, self.amounts, self.turns = tokenizer, amounts, {}
        self.prompts: list[str] = []

    def generate(self, requests: list[Request]) -> list[Sample]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Sample:
        self.prompts.append(self.tokenizer.decode(request.prompt_ids))
        turn = self.turns[request.rollout] = self.turns.get(request.rollout, -1) + 1
        amounts = self.amounts[request.rollout % len(self.amounts)]
        text = "Done." if turn == len(amounts) else self.call(amounts[turn])
        ids = self.tokenizer(f"{text}<|im_end|>", add_special_tokens=False)["input_ids"]
        return Sample(ids, None, ended=True)

    def call(self, amount: int) -> str:
        return f'<tool_call>\n{{"name": "add", "arguments": {{"amount": {amount}}}}}\n</tool_call>'


class Scripted:
    """Source of engines that sample from a script."""

    script: list[list[int]] = [[3], [1, 2], [1, 9], []]

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    @contextmanager
    def open(self, sampling: Sampling) -> Iterator[Caller]:
        self.caller = Caller(self.tokenizer, self.script)
        yield self.caller

    def invalidate(self) -> None:
        """There are no weights."""


def tool_trainer(model: Path, output_dir: Path, environment: Any = Counter, **changes: Any) -> GAGPOTrainer:
    options = {"max_turn_tokens": 60, "max_completion_length": 600, **changes}
    args = small_config(GAGPOConfig, output_dir, **options)
    trainer = GAGPOTrainer(str(model), args=args, environment_factory=environment)
    trainer.generation.engines = Scripted(trainer.processing_class)
    return trainer


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_a_tool_style_environment(arch: str, tiny_model_dir: Model, tmp_path: Path):
    trainer = tool_trainer(tiny_model_dir(arch), tmp_path)
    trainer.train()
    assert trainer.state.global_step == 3
    played = trainer.rollout([{"task": 0}] * 4)
    assert [t.stop_reason for t in played] == [StopReason.TERMINATED] * 4
    # The last turn has the reward: 3 at once, 1 and 2, 1 and an error, nothing.
    assert [[turn.reward for turn in t.turns] for t in played] == [[0.0, 1.0], [0.0, 0.0, 1.0], [0.0] * 3, [0.0]]
    assert [turn.observation for turn in played[1].turns] == ["Count to 3.", "1", "3"]
    assert "too much" in played[2].turns[2].observation
    assert played[2].turns[1].info["is_action_valid"] is False
    # The prompt lists the tools, and results have the role of tools.
    first, second = trainer.generation.engines.caller.prompts[0], trainer.generation.engines.caller.prompts[5]
    assert '"name": "add"' in first and "how much to add" in first
    assert "<tool_response>\n1\n</tool_response>" in second
    assert history(trainer, "episode/return")[0] == 0.5


def test_a_reward_that_fails_fails_only_its_rollout(tiny_model_dir: Model, tmp_path: Path):
    class Moody(Counter):
        def get_reward(self) -> float:
            if self.value == 1:
                raise RuntimeError("the judge is out")
            return math.nan if self.value == 0 else 1.0

    trainer = tool_trainer(tiny_model_dir("qwen2"), tmp_path, Moody)
    trainer.train()
    assert history(trainer, "episode/stop_error") == [0.5] * 3
    played = trainer.rollout([{"task": 0}] * 4)
    assert "the judge is out" in played[2].error and "`get_reward` returned nan" in played[3].error


def test_a_tool_whose_service_is_unavailable_fails_the_rollout(tiny_model_dir: Model, tmp_path: Path):
    class Away(Counter):
        def add(self, amount: int) -> int:
            """Adds to the counter.

            Args:
                amount: how much to add.
            """
            if amount == 9:
                raise ConnectionError("no answer")
            return super().add(amount)

    played = tool_trainer(tiny_model_dir("qwen2"), tmp_path, Away).rollout([{"task": 0}] * 4)
    assert [t.stop_reason is StopReason.ERROR for t in played] == [False, False, True, False]
    assert "no answer" in played[2].error


def test_an_answer_that_the_environment_judges_ends_the_episode(tiny_model_dir: Model, tmp_path: Path):
    class Judge(Counter):
        def finish(self, answer: str) -> StepResult:
            return StepResult("", reward=2.0, info={"success": answer == "Done.", "score": 0.5})

    trainer = tool_trainer(tiny_model_dir("qwen2"), tmp_path, Judge)
    played = trainer.rollout([{"task": 0}] * 4)
    assert [t.stop_reason for t in played] == [StopReason.TERMINATED] * 4
    assert [(t.turns[-1].reward, t.success, t.score) for t in played[:2]] == [(3.0, True, 0.5)] * 2  # and `get_reward`
    assert played[3].turns[-1].reward == 2.0


def test_an_asynchronous_tool(tiny_model_dir: Model, tmp_path: Path):
    class Slow:
        def reset(self, **row: Any) -> str:
            self.value = 0
            return "Count."

        async def add(self, amount: int) -> int:
            """Adds to the counter.

            Args:
                amount: how much to add.
            """
            self.value += amount
            return self.value

        async def get_reward(self) -> float:
            return float(self.value)

        def tasks(self) -> list[dict[str, Any]]:
            return [{"task": i} for i in range(4)]

    played = tool_trainer(tiny_model_dir("qwen2"), tmp_path, Slow).rollout([{"task": 0}] * 2)
    assert [t.episode_return for t in played] == [3.0, 3.0]
    assert [turn.observation for turn in played[1].turns] == ["Count.", "1", "3"]
