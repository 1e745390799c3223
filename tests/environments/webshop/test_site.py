"""Upstream's web site as a backend: the adapter on a stand-in for it, over HTTP."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest

from tests.environments.webshop.shop import shop_of_stand_in
from trl_agentic.environments import WebShopEnv, check_environment
from trl_agentic.environments.webshop import RandomShopper, UpstreamSiteEngine, WebShopEngine, demonstration


pytest.importorskip("flask", reason="needs pip install trl-agentic[webshop-serve]")
pytest.importorskip("requests", reason="needs pip install requests")


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    from werkzeug.serving import make_server

    from tests.environments.webshop.upstream_site import create_site

    server = make_server("127.0.0.1", 0, create_site(), threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def engines(site: str) -> tuple[UpstreamSiteEngine, WebShopEngine]:
    return UpstreamSiteEngine(f"{site}/", timeout=20.0), WebShopEngine(shop_of_stand_in())


def number_of_goals(engine: UpstreamSiteEngine) -> int:
    """The number of goals of a site, by bisection: it has a page for each of their numbers, and for no other."""

    def is_goal(number: int) -> bool:
        try:
            engine.reset(number)
        except IndexError:
            return False
        return True

    some, many = 0, 2**12
    assert is_goal(some) and not is_goal(many) and not is_goal(-1)
    while many - some > 1:
        middle = (some + many) // 2
        some, many = (middle, many) if is_goal(middle) else (some, middle)
    return many


def test_plays_as_the_engine_does(engines: tuple[UpstreamSiteEngine, WebShopEngine]):
    upstream, engine = engines
    assert number_of_goals(upstream) == len(shop_of_stand_in().goals())
    for goal in range(4):
        steps, _ = demonstration(WebShopEngine(shop_of_stand_in()), goal, random.Random(goal), noise=0.3)
        assert upstream.reset(goal) == engine.reset(goal)
        assert upstream.goal.instruction == engine.goal.instruction
        for step in steps[:-1]:
            assert upstream.does_something(step.action) == engine.does_something(step.action)
            assert upstream.step(step.action) == engine.step(step.action)
            assert upstream.chosen == engine.chosen
        last, expected = upstream.step(steps[-1].action), engine.step(steps[-1].action)
        assert (last.reward, last.done, last.available_actions) == (expected.reward, True, expected.available_actions)
        assert upstream.step("click[buy now]").reward == 0.0  # upstream itself would pay again


def test_random_play_stays_in_step(engines: tuple[UpstreamSiteEngine, WebShopEngine]):
    upstream, engine = engines
    for goal in range(5, 9):
        state, shopper = engine.reset(goal), RandomShopper(engine, random.Random(goal))
        assert upstream.reset(goal) == state
        for _ in range(15):
            action = shopper.act(state)
            if action == "click[buy now]":
                break
            state = engine.step(action)
            assert upstream.step(action) == state, action


def test_what_is_chosen_and_visited_is_marked_in_the_rich_mode(site: str):
    upstream, engine = UpstreamSiteEngine(site, "text_rich"), WebShopEngine(shop_of_stand_in(), "text_rich")
    steps, _ = demonstration(WebShopEngine(shop_of_stand_in()), 0)
    upstream.reset(0), engine.reset(0)
    for step in steps[:-1]:
        assert upstream.step(step.action).observation.replace("\n ", "\n") == engine.step(
            step.action
        ).observation.replace("\n ", "\n")
    assert "clicked button" in upstream.step("click[< prev]").observation


def test_what_the_site_has_no_page_for_changes_nothing(engines: tuple[UpstreamSiteEngine, WebShopEngine]):
    upstream, _ = engines
    before = upstream.reset(2)
    with pytest.warns(UserWarning, match=r"has no page for 'search\[12/14 oz\]'"):  # the slash ends its address
        assert upstream.step("search[12/14 oz]") == before
    for action in ("click[search]", "click[nothing]", "buy", ""):
        assert upstream.step(action) == before


def test_as_an_environment(site: str):
    env = WebShopEnv("test", backend=site, action_format="plain", num_goals=3)
    assert [row["goal"] for row in env.tasks()] == [0, 1, 2]
    check_environment(lambda: WebShopEnv("test", backend=site, num_goals=3), env.tasks()[0])
    assert len(WebShopEnv("test", backend=site, num_goals=9999)) == 500  # all of the split
    assert WebShopEnv("train", backend=site, num_goals=2).tasks()[1]["goal"] == 1501
    with pytest.raises(ValueError, match="`num_goals` is needed for a site"):
        WebShopEnv("test", backend=site)
    assert env.ceiling() is None
    with pytest.raises(IndexError, match="No goal 3 in this WebShopEnv"):
        env.reset(goal=3)
    with pytest.raises(ValueError, match="`human_goals` is not for a site"):
        WebShopEnv("test", backend=site, human_goals=True)
    with pytest.raises(ValueError, match="`backend` must be"):
        WebShopEnv("test", backend="somewhere")


def test_a_site_that_is_not_there():
    with socket.socket() as reserved:  # a port that is bound refuses connections until it listens
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"does not answer at {url}: .*web_agent_site.app"):
            WebShopEnv("test", backend=url, num_goals=3)


def test_a_site_that_is_slow():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ConnectionError, match="timed out"):
            UpstreamSiteEngine(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)


@pytest.mark.parametrize("status", [200, 404])
def test_a_site_that_is_another(status: int):
    import flask
    from werkzeug.serving import make_server

    app = flask.Flask(__name__)

    @app.route("/<path:path>")
    def anything(path: str) -> Any:
        return "Hello", status

    server = make_server("127.0.0.1", 0, app)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ConnectionError, match="does not answer as upstream WebShop"):
            UpstreamSiteEngine(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
