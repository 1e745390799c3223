"""Scores of three scripted shoppers on each split of the generated shop, and how often turns share states.

    python benchmarks/webshop_shoppers.py
    python benchmarks/webshop_shoppers.py --data folder_with_the_files

Prints the tables of docs/environments_webshop.md. In the second table, the quick shopper plays groups of eight
rollouts. It leaves out four of ten choices, and one action in ten is random.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from typing import Any

from trl_agentic.environments import WebShopEnv
from trl_agentic.environments.webshop import (
    SPLITS,
    QuickShopper,
    RandomShopper,
    Shopper,
    WebShopCatalogue,
    WebShopEngine,
    split_numbers,
)


STEPS = 15
GROUPS, ROLLOUTS = 100, 8


def shopper(name: str, engine: WebShopEngine, draw: random.Random) -> Any:
    if name == "random":
        return RandomShopper(engine, draw)
    return Shopper(engine, STEPS) if name == "oracle" else QuickShopper(engine, draw)


def scores(catalogue: WebShopCatalogue, numbers: range, name: str) -> list[float]:
    """Scores of a shopper's purchases, 0 where it buys nothing within 15 steps."""
    engine, found = WebShopEngine(catalogue), []
    for number in numbers:
        state = engine.reset(number)
        player = shopper(name, engine, random.Random(number))
        for _ in range(STEPS):
            state = engine.step(player.act(state))
            if state.done:
                break
        found.append(state.reward)
    return found


def states(rollouts: list[list[str]]) -> tuple[int, int, int]:
    """Number of turns of a group, of distinct states, and of turns in a state that was visited once."""
    counts = Counter(state for rollout in rollouts for state in rollout)
    return counts.total(), len(counts), sum(count == 1 for count in counts.values())


def group_states(data: str | None, anchor_options: bool) -> tuple[float, float]:
    """Share of turns in states that were visited once in their group, and turns per state."""
    env = WebShopEnv(data_dir=data, anchor_options=anchor_options, action_format="plain", show_admissible=False)
    engine = WebShopEngine(env.catalogue)
    total = [0, 0, 0]
    for row in env.tasks()[:GROUPS]:
        rollouts = []
        for number in range(ROLLOUTS):
            draw = random.Random(f"{row['goal']} {number}")
            state, visited = engine.reset(row["goal"]), [env.reset(**row)]
            quick, wanderer = QuickShopper(engine, draw, forgets=0.4), RandomShopper(engine, draw)
            while len(visited) <= STEPS:
                action = (wanderer if draw.random() < 0.1 else quick).act(state)
                state, result = engine.step(action), env.step(action)
                if result.terminated or result.truncated:
                    break
                visited.append(result.info["anchor_state"])
            rollouts.append(visited)
        total = [sum(pair) for pair in zip(total, states(rollouts), strict=True)]
    return total[2] / total[0], total[0] / total[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of official files; default: generated products")
    data = parser.parse_args().data
    catalogue = WebShopCatalogue.generate() if data is None else WebShopCatalogue.from_json(data)
    print("| split | goals | attainable | oracle | quick shopper | random shopper |\n|---|---:|---|---|---|---|")
    for split in SPLITS:
        numbers = split_numbers(len(catalogue.goals()), split)
        best = [catalogue.best_purchase(catalogue.goals()[number])[0] for number in numbers]
        cells = []
        for found in (best, *(scores(catalogue, numbers, name) for name in ("oracle", "quick", "random"))):
            success = 100 * sum(score == 1.0 for score in found) / len(found)
            cells.append(f"{success:.1f}% ({100 * sum(found) / len(found):.1f})")
        print(f"| `{split}` | {len(numbers):,} | {' | '.join(cells)} |", flush=True)
    print("\n| `anchor_options` | turns in a state visited once | turns per state |\n|---|---:|---:|")
    for anchor_options in (True, False):
        once, size = group_states(data, anchor_options)
        print(f"| `{anchor_options}` | {100 * once:.1f}% | {size:.2f} |", flush=True)


if __name__ == "__main__":
    main()
