"""Commands `trl-agentic view` and `trl-agentic plot`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from trl_agentic.records import load_records, trajectory_files
from trl_agentic.viewer.curves import plot_runs, read_log
from trl_agentic.viewer.page import render_page


def view(argv: list[str] | None = None) -> None:
    """Runs `trl-agentic view` with the arguments after its name."""
    command = argparse.ArgumentParser(
        prog="trl-agentic view",
        description="Writes saved trajectories as one HTML page, which opens from disk and needs no network.",
    )
    command.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="Parquet file, or a folder of them")
    command.add_argument("--output", type=Path, default=Path("trajectories.html"), help="default: trajectories.html")
    command.add_argument("--title", default="Trajectories", help="title of the page")
    arguments = command.parse_args(argv)
    try:
        files = dict.fromkeys(file for path in arguments.paths for file in trajectory_files(path))
        root = os.path.commonpath([file.parent for file in files])
        sources = {os.path.relpath(file, root): load_records(file) for file in files}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(render_page(sources, arguments.title), encoding="utf-8")
    except (FileNotFoundError, ValueError) as error:
        command.exit(1, f"{command.prog}: {error}\n")
    print(f"{sum(map(len, sources.values()))} rollouts in {arguments.output}")


def plot(argv: list[str] | None = None) -> None:
    """Runs `trl-agentic plot` with the arguments after its name."""
    command = argparse.ArgumentParser(
        prog="trl-agentic plot", description="Draws learning curves from the trainer_state.json of one run or several."
    )
    command.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="output folder, checkpoint folder or trainer_state.json"
    )
    command.add_argument(
        "--output", type=Path, default=Path("curves.png"), help=".png, .svg or .pdf (default: %(default)s)"
    )
    command.add_argument(
        "--metrics",
        nargs="+",
        default=["episode/success", "episode/return"],
        help="keys of the log, one panel per key",
    )
    arguments = command.parse_args(argv)
    try:
        logs = {str(run): read_log(run) for run in arguments.runs}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        plot_runs(logs, arguments.output, arguments.metrics)
    except (FileNotFoundError, ValueError, ImportError) as error:
        command.exit(1, f"{command.prog}: {error}\n")
    print(f"{', '.join(arguments.metrics)} of {len(logs)} runs in {arguments.output}")
