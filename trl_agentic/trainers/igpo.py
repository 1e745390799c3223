"""IGPO: Information Gain-based Policy Optimization (arXiv 2510.14967)."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

from torch import Tensor

from trl_agentic.credit import igpo_advantages
from trl_agentic.trainers.fields import check_range
from trl_agentic.trainers.information_gain import InformationGainConfig, InformationGainTrainer
from trl_agentic.types import TurnBatch


@dataclass
class IGPOConfig(InformationGainConfig):
    r"""
    Configuration class for the [`IGPOTrainer`]: [`InformationGainConfig`] with the method's defaults and options.

    Parameters:
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount of a turn.
        normalization (`str`, *optional*, defaults to `"joint"`):
            Whether gains and outcomes of a prompt are normalised together (`"joint"`) or separately (`"separate"`).

    """

    beta: float = field(default=0.001, metadata={"help": "Weight of the KL divergence to the reference policy."})
    gamma: float = field(default=1.0, metadata={"help": "Discount of a turn."})
    normalization: str = field(
        default="joint",
        metadata={
            "help": "Whether gains and outcomes are normalised together or separately.",
            "choices": ["joint", "separate"],
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_penalty_in_return("IGPO")
        self.reject_scale_rewards("`normalization`")
        check_range(self, "gamma", least=0, most=1)


class IGPOTrainer(InformationGainTrainer):
    """
    Trainer for IGPO, introduced in [Information Gain-based Policy Optimization: A Simple and Effective Approach for
    Multi-Turn LLM Agents](https://huggingface.co/papers/2510.14967).

    The only change w.r.t. [`AgenticTrainer`] is the credit assignment: the information gains of the turns and the
    outcome at the last turn are rewards, normalised over the prompt group; a turn's advantage is the sum from it on.

    Args:
        args ([`IGPOConfig`]):
            Arguments of the trainer. All others are those of [`AgenticTrainer`].
    """

    _tag_names = ["trl", "trl-agentic", "igpo"]
    _name = "IGPO"
    _paper = {
        "title": "Information Gain-based Policy Optimization: A Simple and Effective Approach for Multi-Turn LLM "
        "Agents",
        "id": "2510.14967",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{wang2025information,
                title        = {{Information Gain-based Policy Optimization: A Simple and Effective Approach for
                                Multi-Turn LLM Agents}},
                author       = {Guoqing Wang and Sunhao Dai and Guangze Ye and Zeyu Gan and Wei Yao and Yong Deng and
                                Xiaofeng Wu and Zhenzhe Ying},
                year         = 2025,
                eprint       = {arXiv:2510.14967},
            }"""),
    }

    def turn_advantages(self, batch: TurnBatch) -> Tensor:
        return igpo_advantages(batch, gamma=self.args.gamma, normalization=self.args.normalization)
