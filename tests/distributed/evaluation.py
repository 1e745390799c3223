"""An evaluation that processes share; one that is stopped halfway is finished by another number of them.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/distributed/evaluation.py OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from tests.toys import Corridor
from trl_agentic.evaluation.players import TextPlayer
from trl_agentic.evaluation.run import evaluate
from trl_agentic.evaluation.text_loop import Answer
from trl_agentic.rollout.loop import Episode
from trl_agentic.types import Trajectory


SETTINGS = {"policy": "test", "environment": "corridor"}
TASKS = [{"length": 1 + i % 3} for i in range(9)]


class Walking:
    """Walks to the exit, and counts the episodes."""

    def __init__(self) -> None:
        self.played = 0

    def play(self, episodes: list[Episode]) -> list[Trajectory]:
        self.played += len(episodes)
        return TextPlayer(lambda episode: lambda messages: Answer("go", tokens=1)).play(episodes)


def main() -> None:
    state, out = PartialState(cpu=True), Path(sys.argv[1])
    player = Walking()
    summary = evaluate(player, Corridor, TASKS, out / "evaluation", SETTINGS, samples=2, batch_size=2)
    torch.save(
        {"world": state.num_processes, "played": player.played, "summary": summary},
        out / f"rank{os.environ['RANK']}.pt",
    )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
