"""Speed and memory of the WebShop engine, and the cost of a larger catalogue.

    python benchmarks/webshop_engine.py                                # generated products
    python benchmarks/webshop_engine.py --data folder_with_the_files   # the official ones
    WEBSHOP_PATH=... python benchmarks/webshop_engine.py               # upstream in the same run

Every measurement runs in its own process, on one core. The random shopper plays the episodes. The table and
the plot go to docs/results/webshop_engine.md and .png.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_agentic.environments.webshop import RandomShopper, UpstreamWebShopEngine, WebShopCatalogue, WebShopEngine


ROOT = Path(__file__).resolve().parent.parent
COUNTS = (1, 64, 1024)
SIZES = (1000, 3000, 10_000, 30_000, 100_000)
STEPS = 20_000
SEARCHES = 500
# Measured separately with upstream's own code, with and without its Java search.
UPSTREAM_ELSEWHERE = "12 steps a second with upstream's Lucene in Java, 18 with its search replaced"


def memory() -> float:
    """Resident memory of this process in bytes: the current value if the system reports it, else the peak."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def catalogue(data: str | None, size: int) -> WebShopCatalogue:
    return WebShopCatalogue.generate(size) if data is None else WebShopCatalogue.from_json(data)


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def play(engines: list[Any], steps: int, goals: int) -> tuple[int, float]:
    """Plays random episodes on the engines in turn. Returns the steps and the engines' seconds."""
    draw = random.Random(0)
    states = [engine.reset(draw.randrange(goals)) for engine in engines]
    shoppers = [RandomShopper(engine, draw) for engine in engines]
    spent, done = 0.0, 0
    while done < steps:
        for i, engine in enumerate(engines):
            if states[i].done or draw.random() < 1 / 15:
                states[i] = engine.reset(draw.randrange(goals))
                shoppers[i] = RandomShopper(engine, draw)
            action = shoppers[i].act(states[i])
            start = time.process_time()
            states[i] = engine.step(action)
            spent += time.process_time() - start
            done += 1
    return done, spent


def measure_environments(count: int, data: str | None) -> dict[str, float]:
    """Resets and steps per second of `count` environments that share a catalogue, and bytes of each during play."""
    shop = catalogue(data, 1000)
    goals = len(shop.goals())
    play([WebShopEngine(shop)], 2000, goals)  # fills the caches that all environments share
    engines = [WebShopEngine(shop) for _ in range(count)]
    resets = seconds(lambda: [engine.reset(number) for number, engine in enumerate(engines * (4096 // count))])
    steps, spent = play(engines, max(STEPS, 5 * count), goals)
    return {"resets": 4096 // count * count / resets, "steps": steps / spent, "bytes": held_each(shop, count)}


def held_each(shop: WebShopCatalogue, count: int) -> float:
    """Bytes of an environment during play, measured as the memory that is freed with it."""
    tracemalloc.start()
    engines = [WebShopEngine(shop) for _ in range(count)]
    play(engines, max(20, 5 * count), len(shop.goals()))
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    engines.clear()
    gc.collect()
    left, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (held - left) / count


def measure_size(size: int, data: str | None) -> dict[str, float]:
    """Cost of a catalogue: seconds to build, megabytes, and milliseconds of a search (mean, 99th percentile)."""
    before = memory()
    start = time.process_time()
    shop = catalogue(data, size)
    built = time.process_time() - start
    shop.goals()
    grown = memory() - before
    draw = random.Random(1)
    queries = [shop.goals()[draw.randrange(len(shop.goals()))].instruction.lower() for _ in range(SEARCHES)]
    for query in queries[:20]:
        shop.search(query)
    times = sorted(1e3 * seconds(lambda query=query: shop.search(query)) for query in queries)
    steps, spent = play([WebShopEngine(shop)], 5000, len(shop.goals()))
    return {
        "products": len(shop),
        "build_s": built,
        "megabytes": grown / 1e6,
        "search_ms": sum(times) / len(times),
        "search_ms_99": times[len(times) * 99 // 100],
        "steps": steps / spent,
    }


def measure_upstream(_: int, __: str | None) -> dict[str, float]:
    """Resets and steps per second of one upstream environment."""
    engine = UpstreamWebShopEngine()
    start = time.perf_counter()
    for number in range(20):
        engine.reset(number)
    resets = 20 / (time.perf_counter() - start)
    start, steps = time.perf_counter(), 0
    while steps < 200:
        state = engine.reset(steps)
        shopper = RandomShopper(engine, random.Random(steps))
        while not state.done and steps % 15 != 14:
            state, steps = engine.step(shopper.act(state)), steps + 1
        steps += 1
    return {"resets": resets, "steps": steps / (time.perf_counter() - start)}


MEASURES = {"environments": measure_environments, "size": measure_size, "upstream": measure_upstream}


def apart(measure: str, number: int, data: str | None) -> dict[str, float]:
    """Runs a measurement in its own process."""
    command = [sys.executable, __file__, "--measure", measure, str(number)] + (["--data", data] if data else [])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    result = json.loads(done.stdout.splitlines()[-1])
    print(measure, number, {key: round(value, 2) for key, value in result.items()}, flush=True)
    return result


def report(environments: dict[int, dict[str, float]], sizes: list[dict[str, float]], upstream: str, shop: str) -> str:
    """The page of results."""
    lines = [
        "# Speed and memory of the WebShop engine",
        "",
        f"`benchmarks/webshop_engine.py`: {shop}, one core, Python {platform.python_version()}, processor",
        f"time. Random shopper, {STEPS:,} steps or five for each environment, including searches. An environment's",
        "memory is the memory that is freed with it.",
        "",
        "| environments | resets / s | steps / s | kB for each environment |",
        "|---:|---:|---:|---:|",
    ]
    for count, result in environments.items():
        lines.append(f"| {count} | {result['resets']:,.0f} | {result['steps']:,.0f} | {result['bytes'] / 1e3:,.1f} |")
    lines += [
        "",
        upstream,
        "",
        "Cost of a larger catalogue. A search is a search for an instruction:",
        "",
        "| products | build, s | MB with its goals | search, ms | search, 99th percentile, ms | steps / s |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for result in sizes:
        lines.append(
            f"| {result['products']:,.0f} | {result['build_s']:,.1f} | {result['megabytes']:,.0f} | "
            f"{result['search_ms']:.2f} | {result['search_ms_99']:.2f} | {result['steps']:,.0f} |"
        )
    lines += ["", "![Search time, build time and memory against the number of products](webshop_engine.png)"]
    return "\n".join(lines) + "\n"


def plot(sizes: list[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    columns = (("search_ms", "search, ms"), ("build_s", "build, s"), ("megabytes", "MB"))
    for axes, (key, label) in zip(figure.subplots(1, 3), columns, strict=True):
        axes.loglog([result["products"] for result in sizes], [result[key] for result in sizes], "o-")
        axes.set_xlabel("products")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of official files; default: generated products")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of generated products")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "webshop_engine.md")
    parser.add_argument("--measure", nargs=2, metavar=("MEASURE", "NUMBER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure, number = arguments.measure
        print(json.dumps(MEASURES[measure](int(number), arguments.data)))
        return
    environments = {count: apart("environments", count, arguments.data) for count in COUNTS}
    sizes = [apart("size", size, None) for size in arguments.sizes]
    upstream = f"Upstream, measured separately: {UPSTREAM_ELSEWHERE}. It was not measured in this run."
    if os.environ.get("WEBSHOP_PATH"):
        theirs = apart("upstream", 1, None)
        upstream = (
            f"Upstream in the same run, one environment: {theirs['resets']:,.1f} resets and {theirs['steps']:,.1f} "
            f"steps a second. Measured separately: {UPSTREAM_ELSEWHERE}."
        )
    shop = f"the official files, {arguments.data}" if arguments.data else "1,000 generated products"
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(report(environments, sizes, upstream, shop), encoding="utf-8")
    plot(sizes, arguments.output.with_suffix(".png"))
    print(f"Wrote {arguments.output} and {arguments.output.with_suffix('.png').name}.")


if __name__ == "__main__":
    main()
