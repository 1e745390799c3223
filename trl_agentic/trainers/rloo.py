"""RLOO over several turns: the return of an episode against the mean of its siblings (arXiv 2402.14740)."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

from torch import Tensor

from trl_agentic.credit import rloo_advantages
from trl_agentic.trainers.base import AgenticTrainer
from trl_agentic.trainers.config import AgenticConfig
from trl_agentic.types import TurnBatch


@dataclass
class AgenticRLOOConfig(AgenticConfig):
    r"""
    Configuration class for the [`AgenticRLOOTrainer`]: [`AgenticConfig`], whose loss has the defaults of
    [`~trl.GRPOConfig`].

    Parameters:
        penalty_in_return (`bool`, *optional*, defaults to `True`):
            Whether the penalty of an invalid action is part of the return. This is required, since the turns of an
            episode share one advantage.

    """

    penalty_in_return: bool = field(
        default=True, metadata={"help": "Whether the penalty is part of the return; required."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reject_scale_rewards("`AgenticGRPOTrainer`")
        self.require_penalty_in_return("RLOO")


class AgenticRLOOTrainer(AgenticTrainer):
    """
    Trainer for RLOO over episodes of many turns, introduced in [Back to Basics: Revisiting REINFORCE-Style
    Optimization for Learning from Human Feedback in LLMs](https://huggingface.co/papers/2402.14740).

    The only change w.r.t. [`AgenticTrainer`] is the credit assignment: every turn has the return of its episode minus
    the mean return of the other episodes of the task. Ratio, clip range and averaging are those of the other trainers,
    so that a comparison changes only the credit.

    Args:
        args ([`AgenticRLOOConfig`]):
            Arguments of the trainer. All others are those of [`AgenticTrainer`].
    """

    _tag_names = ["trl", "trl-agentic", "rloo"]
    _name = "RLOO"
    _paper = {
        "title": "Back to Basics: Revisiting REINFORCE-Style Optimization for Learning from Human Feedback in LLMs",
        "id": "2402.14740",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{ahmadian2024back,
                title        = {{Back to Basics: Revisiting REINFORCE-Style Optimization for Learning from Human
                                Feedback in LLMs}},
                author       = {Arash Ahmadian and Chris Cremer and Matthias Gall{\\'{e}} and Marzieh Fadaee and
                                Julia Kreutzer and Olivier Pietquin and Ahmet {\\"{U}}st{\\"{u}}n and Sara Hooker},
                year         = 2024,
                eprint       = {arXiv:2402.14740},
            }"""),
    }

    def turn_advantages(self, batch: TurnBatch) -> Tensor:
        return rloo_advantages(batch)
