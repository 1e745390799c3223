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
    first = [handle.reset() and handle.instance for handle in pool.take([{}] * 3)]
    assert len({id(instance) for instance in first}) == 3
    second = [handle.reset() and handle.instance for handle in pool.take([{}] * 5)]
    assert [id(i) for i in second[:3]] == [id(i) for i in first]
    assert events.count("made") == 1 + 5  # one was probed before training


def test_everything_that_was_made_is_closed_once():
    environment, events = counted()
    pool = EnvironmentPool({"a": environment, "b": Corridor})
    pool.check([{"environment": "a", "length": 1}, {"environment": "b"}])
    for handle in pool.take([{"environment": "a"}, {"environment": "b"}, {"environment": "a"}]):
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
        pool.take([{"environment": "c"}])


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
    with pytest.raises(RuntimeError, match="`use_chat` must be called"):
        pool.tools({})
    pool.use_chat(TOKENIZER, None)
    assert pool.uses_tools and not EnvironmentPool(Corridor).uses_tools
    assert [tool.__name__ for tool in pool.tools({}) or []] == ["look"]
    [environment] = pool.take([{}])
    assert environment.reset() == "" and environment.reward() == 0.0
    assert isinstance(environment.instance, ToolEnvironment)
    pool.close()
    assert Tool.closed == 2


def test_reserved_environments_are_kept_for_their_generation():
    environment, events = counted()
    pool = EnvironmentPool(environment)
    before = pool.take([{"length": 1}, {"length": 2}])
    rows = [{"length": 3}, {"length": 2}]
    assert pool.reserve(7, rows, reset=True) == before
    between = pool.take(rows)  # an evaluation, even one of equal rows
    assert not set(map(id, between)) & set(map(id, before))
    assert pool.take_reserved(6) is None and pool.take_reserved(8) is None
    taken = pool.take_reserved(7)
    assert taken == before and all(handle.pending is not None for handle in taken)
    assert [handle.reset(**row)[-7:] for handle, row in zip(taken, rows, strict=True)] == ["cell 3.", "cell 2."]
    assert pool.take_reserved(7) is None
    assert pool.take(rows) == before  # free again
    for handle in between:
        handle.reset()
    pool.reserve(9, rows, reset=True)
    pool.close()
    assert events.count("made") == events.count("closed") == 5


def test_a_released_reservation_resets_again_for_the_rows_that_come():
    pool = EnvironmentPool(Corridor)
    pool.release()  # nothing is reserved
    reserved = pool.reserve(1, [{"length": 3}], reset=True)
    pool.release()
    assert pool.take_reserved(1) is None
    [handle] = pool.take([{"length": 2}])
    assert [handle] == reserved and handle.reset(length=2).endswith("cell 2.")
    [later] = pool.reserve(2, [{"length": 3}], reset=False)
    assert later.pending is None
    assert pool.reserve(3, [{"length": 1}], reset=False) == [later]  # a new reservation ends the one before
    assert pool.take_reserved(2) is None and pool.take_reserved(3) == [later]
    pool.close()


def test_names_that_no_first_row_has_are_checked_too():
    pool = EnvironmentPool({"a": Corridor})
    with pytest.raises(ValueError, match=r"environment='b'.*\['a'\]"):
        pool.check([{"environment": "a"}], ["a", "b"])
    pool.close()
