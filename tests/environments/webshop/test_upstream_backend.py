"""Upstream WebShop as a backend: the adapter on a stand-in for upstream's module, and on upstream where it is."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.environments.webshop.shop import shop_of_stand_in
from trl_agentic.environments import WebShopEnv, check_environment
from trl_agentic.environments.webshop import RandomShopper, UpstreamWebShopEngine, WebShopEngine, demonstration
from trl_agentic.environments.webshop import upstream as module


STAND_IN = Path(__file__).parent / "stand_in"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("WEBSHOP_PATH", str(STAND_IN))
    monkeypatch.setattr(sys, "path", list(sys.path))
    module._load.cache_clear()
    yield
    module._load.cache_clear()
    for name in [name for name in sys.modules if name.startswith("web_agent_site")]:
        del sys.modules[name]


@pytest.mark.parametrize("mode", ["text", "text_rich"])
def test_plays_as_the_engine_does(stand_in: None, mode: Any):
    upstream, engine = UpstreamWebShopEngine(mode=mode), WebShopEngine(shop_of_stand_in(), mode)
    for goal in range(5):
        steps, _ = demonstration(WebShopEngine(shop_of_stand_in()), goal, random.Random(goal), noise=0.3)
        assert upstream.reset(goal) == engine.reset(goal)
        assert upstream.goal == engine.goal
        for step in steps:
            assert upstream.does_something(step.action) == engine.does_something(step.action)
            assert upstream.step(step.action) == engine.step(step.action)
            assert upstream.chosen == engine.chosen
        assert upstream.step("click[buy now]") == engine.step("click[buy now]")  # upstream itself would pay again
        assert upstream.step("click[buy now]").reward == 0.0


def test_engines_share_a_server_but_no_session(stand_in: None):
    first, second = UpstreamWebShopEngine(), UpstreamWebShopEngine()
    assert first._env.server is second._env.server
    assert first.reset(3) == second.reset(3)
    result = first.step("search[desk lamp]")
    first.step("click[next >]")
    assert second.step("search[desk lamp]") == result


def test_sessions_do_not_pile_up(stand_in: None):
    engine = UpstreamWebShopEngine()
    for goal in range(20):
        engine.reset(goal)
    assert len(engine._sessions) == 1
    engine.close()
    assert len(engine._sessions) == 0


def test_a_number_of_any_kind_is_that_goal(stand_in: None):
    engine = UpstreamWebShopEngine()
    assert engine.reset(np.int64(7)) == engine.reset(7)
    for number in (-1, len(engine.goals)):
        with pytest.raises(IndexError, match=f"No goal {number}: upstream has"):
            engine.reset(number)


def test_loading_leaves_the_global_random_numbers_alone(stand_in: None):
    random.seed(1)
    expected = random.random()
    random.seed(1)
    drawn = module._load(STAND_IN, False, 1000)[1].drawn
    assert random.random() == expected
    assert drawn == random.Random(5).random()


def test_as_an_environment(stand_in: None):
    env = WebShopEnv("test", backend="upstream", action_format="plain")
    ours = WebShopEnv("test", num_products=400, action_format="plain")
    assert env.tasks() == ours.tasks()
    check_environment(lambda: WebShopEnv("test", backend="upstream"), env.tasks()[0])
    for goal in (0, 1):
        steps, _ = demonstration(WebShopEngine(ours.catalogue), goal)
        assert env.reset(goal=goal) == ours.reset(goal=goal)
        assert [env.step(step.action) for step in steps] == [ours.step(step.action) for step in steps]
    assert env.ceiling() is None and ours.ceiling() is not None
    env.reset(goal=0)
    assert env.random_policy(random.Random(0))("").startswith("search[")
    with pytest.raises(ValueError, match="looks into the engine of this package, not upstream's"):
        env.expert_policy()
    with pytest.raises(ValueError, match="upstream has no catalogue"):
        env.catalogue  # noqa: B018


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data_dir": "data"}, ValueError, "`data_dir` and `seed` are not for upstream"),
        ({"seed": 1}, ValueError, "`data_dir` and `seed` are not for upstream"),
        ({"num_products": 0}, ValueError, "`num_products` must be at least 1, got 0"),
    ],
)
def test_wrong_options(stand_in: None, options: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        WebShopEnv("test", backend="upstream", **options)


def test_upstream_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("WEBSHOP_PATH", raising=False)
    with pytest.raises(FileNotFoundError, match="set WEBSHOP_PATH to a clone of"):
        WebShopEnv("test", backend="upstream")
    with pytest.raises(FileNotFoundError, match="has no folder web_agent_site"):
        UpstreamWebShopEngine(tmp_path)
    (tmp_path / "web_agent_site").mkdir()
    (tmp_path / "web_agent_site" / "__init__.py").write_text("import no_such_module_of_java")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ImportError, match="lacks what it needs .*no_such_module_of_java"):
        UpstreamWebShopEngine(tmp_path)


@pytest.mark.filterwarnings("default")
@pytest.mark.skipif("WEBSHOP_PATH" not in os.environ, reason="needs upstream WebShop at $WEBSHOP_PATH")
@pytest.mark.parametrize("mode", ["text", "text_rich"])
def test_the_engine_equals_upstream(mode: Any):
    """200 episodes of random and scripted play on upstream's 1,000 products, step by step."""
    from trl_agentic.environments.webshop import WebShopCatalogue

    upstream = UpstreamWebShopEngine(mode=mode)
    engine = WebShopEngine(WebShopCatalogue.from_json(module.upstream_path() / "data", subset="_1000"), mode)
    for goal in range(200):
        state = engine.reset(goal)
        shopper = RandomShopper(engine, random.Random(goal))
        assert upstream.reset(goal) == state
        for _ in range(15):
            action = shopper.act(state)
            state = engine.step(action)
            assert upstream.step(action) == state, action
