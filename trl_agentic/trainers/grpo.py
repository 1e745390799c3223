"""GRPO over several turns: one advantage for all turns of an episode (arXiv 2402.03300)."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

from torch import Tensor

from trl_agentic.credit import grpo_advantages
from trl_agentic.trainers.base import AgenticTrainer
from trl_agentic.trainers.config import AgenticConfig
from trl_agentic.types import TurnBatch


@dataclass
class AgenticGRPOConfig(AgenticConfig):
    r"""
    Configuration class for the [`AgenticGRPOTrainer`]: [`AgenticConfig`], whose loss has the defaults of
    [`~trl.GRPOConfig`]. `scale_rewards` is TRL's.

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
        self.require_penalty_in_return("GRPO")


class AgenticGRPOTrainer(AgenticTrainer):
    """
    Trainer for GRPO over episodes of many turns, introduced in [DeepSeekMath: Pushing the Limits of Mathematical
    Reasoning in Open Language Models](https://huggingface.co/papers/2402.03300).

    The only change w.r.t. [`AgenticTrainer`] is the credit assignment: every turn has the normalised return of its
    episode. With episodes of one turn the loss is that of [`~trl.GRPOTrainer`].

    Args:
        args ([`AgenticGRPOConfig`]):
            Arguments of the trainer. All others are those of [`AgenticTrainer`].
    """

    _tag_names = ["trl", "trl-agentic", "grpo"]
    _name = "GRPO"
    _paper = {
        "title": "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
        "id": "2402.03300",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{shao2024deepseekmath,
                title        = {{DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models}},
                author       = {Zhihong Shao and Peiyi Wang and Qihao Zhu and Runxin Xu and Junxiao Song and
                                Mingchuan Zhang and Y. K. Li and Y. Wu and Daya Guo},
                year         = 2024,
                eprint       = {arXiv:2402.03300},
            }"""),
    }

    def turn_advantages(self, batch: TurnBatch) -> Tensor:
        return grpo_advantages(batch, scale_by_std=self.args.scale_rewards)
