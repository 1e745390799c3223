"""Every step of the episodes recorded on upstream's own code: pages, actions, rewards, rankings, goals."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from trl_agentic.environments.webshop import WebShopCatalogue, WebShopEngine


SEARCH = re.compile(r"search\[([^\[\]]+)\]")
KINDS = {"synthetic": (120, 1266), "human": (40, 421)}


def read_traces(folder: Path, kind: str) -> list[dict[str, Any]]:
    with gzip.open(folder / f"upstream_traces_{kind}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("mode", ["text", "text_rich"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_recorded_step_is_reproduced(official: WebShopCatalogue, official_dir: Path, kind: str, mode: Any):
    traces = read_traces(official_dir, kind)
    steps = 0
    for trace in traces:
        engine = WebShopEngine(official, mode)
        state = engine.reset(goal=trace["goal"])
        assert (state.observation, state.available_actions) == (trace["first"][mode], trace["first"]["actions"])
        for expected in trace["steps"]:
            state = engine.step(expected["action"])
            assert state.observation == expected[mode], expected["action"]
            assert state.available_actions == expected["actions"], expected["action"]
            assert (state.reward, state.done) == (expected["reward"], expected["done"]), expected["action"]
            steps += 1
    assert (len(traces), steps) == KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_goals_have_upstreams_numbers_texts_and_prices(official: WebShopCatalogue, official_dir: Path, kind: str):
    goals = official.goals(human=kind == "human")
    assert len(goals) == {"synthetic": 6910, "human": 13}[kind]
    for trace in read_traces(official_dir, kind):
        assert goals[trace["goal_index"]].to_dict() == trace["goal"]
        engine = WebShopEngine(official, human_goals=kind == "human")
        assert engine.reset(goal=trace["goal_index"]).observation == trace["first"]["text"]


def test_first_page_of_every_search(official: WebShopCatalogue, official_dir: Path):
    searches: dict[str, list[str]] = {}
    for kind in KINDS:
        for trace in read_traces(official_dir, kind):
            for step in trace["steps"]:
                query = SEARCH.fullmatch(step["action"])
                if query and "Page 1 " in step["text"]:
                    searches[query[1].lower()] = step["actions"]["clickables"][2:]
    assert len(searches) > 200
    for query, asins in searches.items():
        assert [product.asin.lower() for product in official.search(query)[:10]] == asins, query


def test_the_ceiling_of_the_official_products(official: WebShopCatalogue):
    """Known from upstream: 6,452 of the 6,910 goals can reach 1."""
    assert sum(official.best_purchase(goal)[0] == 1.0 for goal in official.goals()) == 6452
