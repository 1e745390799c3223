"""The search engine as a tool that the policy calls in its own chat format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.small import history, small_config
from trl_agentic import A2TGPOConfig, A2TGPOTrainer, StopReason
from trl_agentic.environments.search import SearchTools
from trl_agentic.rollout.engines import LockstepEngine, Request, Sample, Sampling


Model = Callable[..., Path]


@pytest.fixture
def tools() -> SearchTools:
    return SearchTools(split="test", max_searches=2, top_k=1)


def test_search_and_answer(tools: SearchTools):
    row = tools.tasks()[0]
    assert "<answer>" in row["prompt"][0]["content"] and tools.reset(**row) == row["question"]
    assert tools.search(row["question"]).startswith("1. ") and tools.search("xyzzy") == "Nothing found."
    result = tools.finish(f"So it is <answer> {row['ground_truth'][0]} </answer>")
    assert (result.reward, result.terminated) == (1.0, True)
    assert result.info["success"] and result.info["is_action_valid"] and result.info["ground_truth"]
    with pytest.raises(RuntimeError, match="the last one has its answer"):
        tools.finish("again")


@pytest.mark.parametrize(
    ("answer", "reward", "success"),
    [
        ("{truth}", -1.0, True),
        ("<answer>nobody</answer>", 0.0, False),
        ("", -1.0, False),
        ("<answer> </answer>", -1.0, False),
    ],
)
def test_answers(answer: str, reward: float, success: bool, tools: SearchTools):
    row = tools.tasks()[0]
    tools.reset(**row)
    result = tools.finish(answer.format(truth=row["ground_truth"][0]))
    assert (result.reward, result.info["success"]) == (reward, success)


def test_a_search_too_many_or_without_words(tools: SearchTools):
    tools.reset(**tools.tasks()[0])
    with pytest.raises(ValueError, match="`query` must be a text"):
        tools.search(" ")
    tools.search("a")
    tools.search("b")
    with pytest.raises(ValueError, match="All 2 searches are used up"):
        tools.search("c")


def test_the_format_is_no_option():
    with pytest.raises(ValueError, match="`action_format` is no option"):
        SearchTools(action_format="tags")


class Caller(LockstepEngine):
    """Calls `search`, then answers: with the truth in every second rollout, whatever it found."""

    def __init__(self, tokenizer: Any, truth: str):
        super().__init__()
        self.tokenizer, self.truth, self.turns, self.prompts = tokenizer, truth, {}, []

    def generate(self, requests: list[Request]) -> list[Sample]:
        return [self._say(request) for request in requests]

    def _say(self, request: Request) -> Sample:
        self.prompts.append(self.tokenizer.decode(request.prompt_ids))
        turn = self.turns[request.rollout] = self.turns.get(request.rollout, -1) + 1
        call = '<tool_call>\n{"name": "search", "arguments": {"query": "governed"}}\n</tool_call>'
        answer = self.truth if request.rollout % 2 else "nobody"
        text = call if turn == 0 else f"<answer>{answer}</answer>"
        return Sample(self.tokenizer(f"{text}<|im_end|>", add_special_tokens=False)["input_ids"], None, ended=True)


class ScriptedSource:
    """Opens engines that sample from a script."""

    def __init__(self, tokenizer: Any, truth: str):
        self.tokenizer, self.truth = tokenizer, truth

    @contextmanager
    def open(self, sampling: Sampling) -> Iterator[Caller]:
        self.caller = Caller(self.tokenizer, self.truth)
        yield self.caller

    def invalidate(self) -> None:
        pass


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_a2tgpo_trains_on_tool_calls(arch: str, tiny_model_dir: Model, tmp_path: Path):
    args = small_config(
        A2TGPOConfig, tmp_path, max_turn_tokens=60, max_completion_length=600, max_turns=3, max_steps=1
    )
    trainer = A2TGPOTrainer(str(tiny_model_dir(arch)), args=args, environment_factory=SearchTools)
    row = SearchTools().tasks()[0]
    source = ScriptedSource(trainer.processing_class, row["ground_truth"][0])
    trainer.generation.engines = source
    played = trainer.rollout([row] * 2)
    assert [t.stop_reason for t in played] == [StopReason.TERMINATED] * 2
    assert [t.success for t in played] == [False, True]
    assert [[turn.reward for turn in t.turns] for t in played] == [[0.0, 0.0], [0.0, 1.0]]
    assert '"name": "search"' in source.caller.prompts[0] and "<tool_response>\n1. " in source.caller.prompts[2]
    trainer.train()
    assert history(trainer, "information_gain/mean")
