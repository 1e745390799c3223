"""Whatever the policy says, an environment answers with a defined result. Shared by the tests and the fuzzer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from trl_agentic.environments import ALFWorldEnv, SearchEnv, WebShopEnv
from trl_agentic.environments.base import check_episode
from trl_agentic.records import trajectory_record
from trl_agentic.types import Trajectory, Turn


# Factories, a row to reset with, and words that mean something there.
ENVIRONMENTS: dict[str, tuple[Callable[[], Any], dict[str, Any], list[str]]] = {
    **{
        f"alfworld {form}": (
            lambda form=form: ALFWorldEnv(num_games=1, max_steps=30, action_format=form),
            {"game": 0},
            ["go to", "take", "from", "move", "to", "open", "cabinet 1", "desk 1", "inventory", "look", "help"],
        )
        for form in ("tags", "plain")
    },
    **{
        f"webshop {form} {mode}": (
            lambda form=form, mode=mode: WebShopEnv("test", num_products=20, action_format=form, mode=mode),
            {"goal": 0},
            ["search[", "click[", "]", "[", "buy now", "back to search", "next >", "< prev", "description", "B0"],
        )
        for form in ("tags", "plain")
        for mode in ("text", "text_rich")
    },
    **{
        f"search {form}": (
            lambda form=form: SearchEnv(action_format=form),
            {"question": 0},
            [
                "search[",
                "answer[",
                "]",
                "<search>",
                "</search>",
                "<answer>",
                "</answer>",
                "<information>",
                "the",
                "who",
            ],
        )
        for form in ("tags", "plain")
    },
}
TAGS = ["<think>", "</think>", "<action>", "</action>", "<answer>", "</answer>", "<search>", "</search>",
        "<tool_call>", "</tool_call>", "<|im_end|>", "\x00", "\ud800", "\uff1caction\uff1e", "\u202e", "\n", " ", "[",
        "]", "{}", "\\", "%s", "${x}", "'; DROP TABLE", "\u0130", "\u00df", "a" * 5000]  # fmt: skip


@cache
def environment(name: str) -> tuple[Any, dict[str, Any]]:
    """An environment and a row to reset it with."""
    factory, row, _ = ENVIRONMENTS[name]
    made = factory()
    if name.startswith("search"):
        row = {key: value for key, value in made.tasks()[0].items() if key != "prompt"}
    return made, row


def play(name: str, actions: Iterable[str]) -> None:
    """Plays an episode and checks every answer; the record of it can be written."""
    made, row = environment(name)
    actions = list(actions)
    check_episode(made, name, row, actions)  # ends with a reset
    trajectory = Trajectory(task=row)
    for action in actions:
        result = made.step(action)
        trajectory.turns.append(Turn([], [], None, action, result.observation, "", float(result.reward)))
        assert isinstance(result.info["is_action_valid"], bool)
        if result.terminated or result.truncated:
            break
    json.dumps(trajectory_record(trajectory))
