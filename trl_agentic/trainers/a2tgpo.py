"""A2TGPO: Agentic Turn-Group Policy Optimization with Adaptive Turn-level Clipping (arXiv 2605.06200)."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

from torch import Tensor

from trl_agentic.credit import a2tgpo_advantages, a2tgpo_clip_scale
from trl_agentic.trainers.base import TurnCredit
from trl_agentic.trainers.fields import check_range
from trl_agentic.trainers.information_gain import InformationGainConfig, InformationGainTrainer
from trl_agentic.types import TurnBatch


@dataclass
class A2TGPOConfig(InformationGainConfig):
    r"""
    Configuration class for the [`A2TGPOTrainer`]: [`InformationGainConfig`] with the method's defaults and options.

    Parameters:
        epsilon (`float`, *optional*, defaults to `3e-3`):
            Clip range below 1, before the turn's own factor.
        epsilon_high (`float`, *optional*, defaults to `4e-3`):
            Clip range above 1, before the turn's own factor.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount of a turn in the sum of the later gains.
        alpha (`float`, *optional*, defaults to `1.0`):
            Weight of the gains in addition to the outcome. The scripts released with the paper use 0.3.
        turn_group_norm (`str`, *optional*, defaults to `"turn"`):
            Gains that are compared: those of one turn number (`"turn"`), or all of the prompt (`"pooled"`).
        rescale_accumulation (`bool`, *optional*, defaults to `True`):
            Whether a sum of n gains is divided by the square root of n.
        min_turn_group (`int`, *optional*, defaults to `2`):
            Gains in a smaller group than this count as 0.
        clip_beta (`float`, *optional*, defaults to `0.3`):
            How far a turn's gain widens or narrows its clip range: the factor lies in (1 - clip_beta, 1 + clip_beta).

    """

    importance_sampling_level: str = field(
        default="turn",
        metadata={
            "help": "Level of the importance ratio: `turn` (one ratio for each action), `token` or `sequence`.",
            "choices": ["turn", "token", "sequence"],
        },
    )
    loss_type: str = field(
        default="grpo",
        metadata={
            "help": "How token losses are averaged: `grpo` (over a rollout's tokens, then over rollouts), `dapo` "
            "(over all tokens) or `turn` (over a turn's tokens, then over turns).",
            "choices": ["grpo", "dapo", "turn"],
        },
    )
    epsilon: float = field(default=3e-3, metadata={"help": "Clip range below 1, before the turn's own factor."})
    epsilon_high: float | None = field(
        default=4e-3, metadata={"help": "Clip range above 1, before the turn's own factor."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount of a turn in the sum of the later gains."})
    alpha: float = field(default=1.0, metadata={"help": "Weight of the gains in addition to the outcome."})
    turn_group_norm: str = field(
        default="turn",
        metadata={
            "help": "Gains that are compared: of one turn number, or all of the prompt.",
            "choices": ["turn", "pooled"],
        },
    )
    rescale_accumulation: bool = field(
        default=True, metadata={"help": "Whether a sum of n gains is divided by the square root of n."}
    )
    min_turn_group: int = field(default=2, metadata={"help": "Gains in a smaller group than this count as 0."})
    clip_beta: float = field(
        default=0.3, metadata={"help": "How far a turn's gain widens or narrows its clip range, in [0, 1]."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_penalty_in_return("A2TGPO")
        self.reject_scale_rewards("`alpha`, the weight of the gains in addition to the normalised outcome")
        check_range(self, "gamma", "clip_beta", least=0, most=1)
        check_range(self, "min_turn_group", least=1)


class A2TGPOTrainer(InformationGainTrainer):
    """
    Trainer for A2TGPO, introduced in [A2TGPO: Agentic Turn-Group Policy Optimization with Adaptive Turn-level
    Clipping](https://huggingface.co/papers/2605.06200).

    Two changes w.r.t. [`AgenticTrainer`]. Credit assignment: how much a turn raises the likelihood of the ground-truth
    answer, compared with the same turn of the prompt's other rollouts, is added to the normalised outcome. Clip
    range: it is wider for a turn whose gain is high and narrower for one whose gain is low.

    Example:

    ```python
    from trl_agentic import A2TGPOConfig, A2TGPOTrainer

    trainer = A2TGPOTrainer(
        model="Qwen/Qwen3-4B",
        args=A2TGPOConfig(output_dir="search-a2tgpo", max_turns=7),
        train_dataset=questions,  # with a column `ground_truth`
        environment_factory=MyEnvironment,
    )
    trainer.train()
    ```

    Args:
        args ([`A2TGPOConfig`]):
            Arguments of the trainer. All others are those of [`AgenticTrainer`].
    """

    _tag_names = ["trl", "trl-agentic", "a2tgpo"]
    _name = "A2TGPO"
    _paper = {
        "title": "A2TGPO: Agentic Turn-Group Policy Optimization with Adaptive Turn-level Clipping",
        "id": "2605.06200",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @misc{a2tgpo2026,
                title        = {{A2TGPO: Agentic Turn-Group Policy Optimization with Adaptive Turn-level Clipping}},
                year         = 2026,
                eprint       = {arXiv:2605.06200},
            }"""),
    }

    def turn_advantages(self, batch: TurnBatch) -> Tensor:
        args = self.args
        return a2tgpo_advantages(
            batch,
            gamma=args.gamma,
            alpha=args.alpha,
            turn_group_norm=args.turn_group_norm,
            rescale_accumulation=args.rescale_accumulation,
            min_turn_group=args.min_turn_group,
        )

    def turn_clip_scales(self, batch: TurnBatch) -> Tensor:
        args = self.args
        return a2tgpo_clip_scale(
            batch,
            clip_beta=args.clip_beta,
            turn_group_norm=args.turn_group_norm,
            min_turn_group=args.min_turn_group,
        )

    def turn_metrics(self, batch: TurnBatch, credit: TurnCredit) -> dict[str, float]:
        metrics = super().turn_metrics(batch, credit)
        assert credit.clip_scales is not None
        scales = credit.clip_scales[batch.turn_mask]
        if scales.numel():
            metrics["clip_range/low_mean"] = self.epsilon_low * scales.mean().item()
            metrics["clip_range/high_mean"] = self.epsilon_high * scales.mean().item()
            metrics["clip_range/scale_std"] = scales.std(correction=0).item()
        return metrics
