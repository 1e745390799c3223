"""GiGPO: Group-in-Group Policy Optimization (arXiv 2505.10978)."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

from torch import Tensor

from trl_agentic.credit import anchor_statistics, gagpo_values, gigpo_advantages
from trl_agentic.trainers.base import AgenticTrainer, TurnCredit
from trl_agentic.trainers.config import AgenticConfig
from trl_agentic.trainers.fields import check_range
from trl_agentic.types import TurnBatch


@dataclass
class GiGPOConfig(AgenticConfig):
    r"""
    Configuration class for the [`GiGPOTrainer`]: [`AgenticConfig`] with the method's defaults and options.

    Parameters:
        gamma (`float`, *optional*, defaults to `0.95`):
            Discount of a turn in the returns that are compared within a state.
        step_advantage_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the advantage within a state; `0` leaves the episode advantage.
        scale_by_std (`bool`, *optional*, defaults to `True`):
            Whether both advantages are divided by the standard deviation of their group. The paper does so on ALFWorld
            and not on WebShop.

    """

    beta: float = field(default=0.01, metadata={"help": "Weight of the KL divergence to the reference policy."})
    gamma: float = field(default=0.95, metadata={"help": "Discount of a turn."})
    step_advantage_weight: float = field(default=1.0, metadata={"help": "Weight of the advantage within a state."})
    scale_by_std: bool = field(
        default=True, metadata={"help": "Whether advantages are divided by the standard deviation of their group."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reject_scale_rewards("`scale_by_std`")
        check_range(self, "gamma", least=0, most=1)


class GiGPOTrainer(AgenticTrainer):
    """
    Trainer for GiGPO, introduced in [Group-in-Group Policy Optimization for LLM Agent
    Training](https://huggingface.co/papers/2505.10978).

    The only change w.r.t. [`AgenticTrainer`] is the credit assignment: the normalised return of the episode, plus the
    turn's discounted return compared with those of the other turns that the group played in the same state.

    Args:
        args ([`GiGPOConfig`]):
            Arguments of the trainer. All others are those of [`AgenticTrainer`].
    """

    _tag_names = ["trl", "trl-agentic", "gigpo"]
    _name = "GiGPO"
    _paper = {
        "title": "Group-in-Group Policy Optimization for LLM Agent Training",
        "id": "2505.10978",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{feng2025group,
                title        = {{Group-in-Group Policy Optimization for LLM Agent Training}},
                author       = {Lang Feng and Zhenghai Xue and Tingcong Liu and Bo An},
                year         = 2025,
                eprint       = {arXiv:2505.10978},
            }"""),
    }

    def turn_advantages(self, batch: TurnBatch) -> Tensor:
        args = self.args
        return gigpo_advantages(
            batch,
            gamma=args.gamma,
            step_advantage_weight=args.step_advantage_weight,
            scale_by_std=args.scale_by_std,
        )

    def turn_metrics(self, batch: TurnBatch, credit: TurnCredit) -> dict[str, float]:
        states = anchor_statistics(batch)
        return super().turn_metrics(batch, credit) | {
            "turns/singleton_frac": states.singleton_frac,
            "turns/group_size": states.group_size,
        }

    def turn_diagnostics(self, batch: TurnBatch) -> dict[str, Tensor]:
        returns, means = gagpo_values(batch, self.args.gamma)
        return {"return": returns, "value": means}
