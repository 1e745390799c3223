"""Picture of the advantages that each algorithm assigns to the same four rollouts: docs/images/which_rule.png.

python benchmarks/credit_picture.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from trl_agentic import TurnBatch
from trl_agentic.credit import (
    a2tgpo_advantages,
    gagpo_advantages,
    gigpo_advantages,
    grpo_advantages,
    igpo_advantages,
    rloo_advantages,
)


PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "which_rule.png"
STATES = ["ABDE", "ABC", "ACCB", "ABD"]  # one letter per turn
WON = [True, False, False, True]
GAIN = {"D": 0.4}  # information gain of entering a state; the last turn answers
ALGORITHMS = {
    "GRPO": grpo_advantages,
    "RLOO": rloo_advantages,
    "GiGPO": gigpo_advantages,
    "GAGPO": gagpo_advantages,
    "IGPO": igpo_advantages,
    "A2TGPO": a2tgpo_advantages,
}


def rollouts() -> TurnBatch:
    """The rollouts as a batch of turns."""
    rows, turns = len(STATES), max(map(len, STATES))
    mask = torch.tensor([[k < len(states) for k in range(turns)] for states in STATES])
    rewards, gains = torch.zeros(rows, turns), torch.full((rows, turns), torch.nan)
    anchors = torch.full((rows, turns), -1)
    for i, (states, won) in enumerate(zip(STATES, WON, strict=True)):
        anchors[i, : len(states)] = torch.tensor([ord(state) for state in states])
        rewards[i, len(states) - 1] = float(won)
        gains[i, : len(states) - 1] = torch.tensor([GAIN.get(state, 0.0) for state in states[1:]])
    return TurnBatch(rewards, mask, torch.zeros(rows).long(), anchors, torch.ones(rows).bool(), information_gain=gains)


def main() -> None:
    batch = rollouts()
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, (name, algorithm) in zip(figure.subplots(2, 3).flat, ALGORITHMS.items(), strict=True):
        advantages = algorithm(batch)
        shown = torch.where(batch.turn_mask, advantages, torch.nan)
        axes.imshow(shown, cmap="RdBu", vmin=-2.5, vmax=2.5, aspect="auto")
        for i, states in enumerate(STATES):
            for k, state in enumerate(states):
                axes.text(k, i, f"{state}\n{advantages[i, k]:+.2f}", ha="center", va="center", fontsize=8)
        axes.set_title(name, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks(range(len(WON)), ["won" if won else "lost" for won in WON], fontsize=8)
        axes.spines[:].set_visible(False)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
