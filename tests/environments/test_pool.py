"""Environments are made once, reused from batch to batch, and closed once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny_model import build_tiny_tokenizer
from tests.toys import Corridor
from trl_agentic.environments.pool import EnvironmentPool
from trl_agentic.environments.tools import ToolEnvironment


TOKENIZER = build_tiny_tokenizer("qwen2")


def counted() -> tuple[type[Corridor], list[str]]:
    """A corridor that writes down when it is made and closed."""
    events: list[str] = []

    class Counted(Corridor):
        def __init__(self) -> None:
            events.append("made")

        def close(self) -> None:
            events.append("closed")

    return Counted, events


def test_a_batch_gets_different_instances_and_the_next_one_the_same():
    environment, events = counted()
    pool = EnvironmentPool(environment)
    first = [handle.reset() and handle.instance for handle in pool.take([{}] * 3, TOKENIZER)]
    assert len({id(instance) for instance in first}) == 3
    second = [handle.reset() and handle.instance for handle in pool.take([{}] * 5, TOKENIZER)]
    assert [id(i) for i in second[:3]] == [id(i) for i in first]
    assert events.count("made") == 1 + 5  # one was probed before training


def test_everything_that_was_made_is_closed_once():
    environment, events = counted()
    pool = EnvironmentPool({"a": environment, "b": Corridor})
    pool.check([{"environment": "a", "length": 1}, {"environment": "b"}])
    for handle in pool.take([{"environment": "a"}, {"environment": "b"}, {"environment": "a"}], TOKENIZER):
        handle.reset()
    pool.close()
    pool.close()
    assert events.count("made") == events.count("closed") == 4  # probed, checked, and two played


def test_rows_route_and_lose_what_only_routes():
    pool = EnvironmentPool({"a": Corridor, "b": Corridor})
    row = {"environment": "b", "length": 2, "word": None}
    assert pool.name(row) == "b" and pool.reset_arguments(row) == {"length": 2}
    single = EnvironmentPool(Corridor)
    assert single.name(row) is None and single.reset_arguments(row) == row
    with pytest.raises(ValueError, match=r"environment='c'.*\['a', 'b'\]"):
        pool.take([{"environment": "c"}], TOKENIZER)


def test_own_tasks_name_their_environment_where_there_are_several():
    assert EnvironmentPool(Corridor).tasks() == Corridor().tasks()
    rows = EnvironmentPool({"a": Corridor, "b": Corridor}).tasks()
    assert rows == [{**row, "environment": name} for name in "ab" for row in Corridor().tasks()]


def test_a_class_without_step_is_tool_style():
    class Tool:
        closed = 0

        def reset(self, **row: Any) -> None:
            """Nothing to see."""

        def look(self) -> str:
            """Looks around."""
            return "A room."

        def close(self) -> None:
            Tool.closed += 1

    pool = EnvironmentPool(Tool)
    assert pool.uses_tools and not EnvironmentPool(Corridor).uses_tools
    assert [tool.__name__ for tool in pool.tools({}, TOKENIZER) or []] == ["look"]
    [environment] = pool.take([{}], TOKENIZER)
    assert environment.reset() == "" and environment.reward() == 0.0
    assert isinstance(environment.instance, ToolEnvironment)
    pool.close()
    assert Tool.closed == 2


def test_environments_that_are_reset_ahead_are_kept_for_their_rows():
    environment, events = counted()
    pool = EnvironmentPool(environment)
    first, others = [{"length": 1}, {"length": 2}], [{"length": 1}, {"length": 2}]
    before = pool.take(first, TOKENIZER)
    rows = [{"length": 3}, {"length": 2}]
    pool.reserve(rows, TOKENIZER)
    between = pool.take(others, TOKENIZER)  # an evaluation
    assert not set(map(id, between)) & set(map(id, before))
    taken = pool.take(rows, TOKENIZER)
    assert taken == before and all(handle.pending is not None for handle in taken)
    assert [handle.reset(**row)[-7:] for handle, row in zip(taken, rows, strict=True)] == ["cell 3.", "cell 2."]
    assert pool.take(rows, TOKENIZER) == before  # taken again, as ever
    for handle in between:
        handle.reset()
    pool.reserve(rows, TOKENIZER)
    pool.close()
    assert events.count("made") == events.count("closed") == 5
