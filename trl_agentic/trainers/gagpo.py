"""GAGPO: Generalized Advantage Grouped Policy Optimization (arXiv 2605.13217)."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

from torch import Tensor

from trl_agentic.credit import anchor_statistics, gagpo_advantages, gagpo_values
from trl_agentic.trainers.base import AgenticTrainer, TurnCredit
from trl_agentic.trainers.config import AgenticConfig
from trl_agentic.trainers.fields import check_range
from trl_agentic.types import TurnBatch


@dataclass
class GAGPOConfig(AgenticConfig):
    r"""
    Configuration class for the [`GAGPOTrainer`]: [`AgenticConfig`] with the method's defaults and options.

    Each option is one step of [`~trl_agentic.credit.gagpo_advantages`]; docs/gagpo.md states how certain each default
    is.

    Parameters:
        gamma (`float`, *optional*, defaults to `0.95`):
            Discount of a turn.
        lam (`float`, *optional*, defaults to `0.8`):
            Decay of the advantage estimate over turns; `0` is the TD error alone.
        advantage_norm (`str`, *optional*, defaults to `"group"`):
            Turns over which advantages are normalised: `"group"` (of the prompt), `"anchor"` (of one state of the
            prompt group), `"batch"` or `"none"`.
        scale_by_std (`bool`, *optional*, defaults to `True`):
            Whether normalisation divides by the standard deviation.
        singleton_value (`str`, *optional*, defaults to `"self"`):
            Value of a state that was visited once: `"self"` (its own return) or `"group_mean"`.
        leave_one_out (`bool`, *optional*, defaults to `False`):
            Whether a visit is left out of the value of its own state.
        truncation_bootstrap (`bool`, *optional*, defaults to `False`):
            Whether a rollout that a budget cut ends with the value of its last state instead of 0.
        episode_advantage_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the normalised episode return that is added to each turn.

    """

    learning_rate: float = field(default=1e-6, metadata={"help": "The initial learning rate for AdamW."})
    beta: float = field(default=0.01, metadata={"help": "Weight of the KL divergence to the reference policy."})
    importance_sampling_level: str = field(
        default="turn",
        metadata={
            "help": "Level of the importance ratio: `turn` (one ratio for each action), `token` or `sequence`.",
            "choices": ["turn", "token", "sequence"],
        },
    )
    loss_type: str = field(
        default="turn",
        metadata={
            "help": "How token losses are averaged: `turn` (over an action's tokens, then over actions), or TRL's."
        },
    )
    gamma: float = field(default=0.95, metadata={"help": "Discount of a turn."})
    lam: float = field(default=0.8, metadata={"help": "Decay of the advantage estimate over turns."})
    advantage_norm: str = field(
        default="group",
        metadata={
            "help": "Turns over which advantages are normalised.",
            "choices": ["group", "anchor", "batch", "none"],
        },
    )
    scale_by_std: bool = field(
        default=True, metadata={"help": "Whether normalisation divides by the standard deviation."}
    )
    singleton_value: str = field(
        default="self",
        metadata={"help": "Value of a state that was visited once.", "choices": ["self", "group_mean"]},
    )
    leave_one_out: bool = field(default=False, metadata={"help": "Whether a visit is left out of its state's value."})
    truncation_bootstrap: bool = field(
        default=False, metadata={"help": "Whether a cut rollout ends with the value of its last state."}
    )
    episode_advantage_weight: float = field(
        default=0.0, metadata={"help": "Weight of the normalised episode return added to each turn."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reject_scale_rewards("`scale_by_std` and `advantage_norm`")
        check_range(self, "gamma", "lam", least=0, most=1)


class GAGPOTrainer(AgenticTrainer):
    """
    Trainer for GAGPO, a critic-free method for agents that act over many turns, introduced in [GAGPO: Generalized
    Advantage Grouped Policy Optimization](https://huggingface.co/papers/2605.13217).

    The only change w.r.t. [`AgenticTrainer`] is the credit assignment: the rollouts of a task that pass through one
    state share their returns as its value, and generalised advantage estimation over turns runs on these values.

    Example:

    ```python
    from trl_agentic import GAGPOConfig, GAGPOTrainer
    from trl_agentic.environments import ALFWorldEnv

    trainer = GAGPOTrainer(
        model="Qwen/Qwen2.5-1.5B-Instruct",
        args=GAGPOConfig(output_dir="alfworld-gagpo", max_turns=50),
        environment_factory=ALFWorldEnv,
    )
    trainer.train()
    ```

    Args:
        args ([`GAGPOConfig`]):
            Arguments of the trainer. All others are those of [`AgenticTrainer`].
    """

    _tag_names = ["trl", "trl-agentic", "gagpo"]
    _name = "GAGPO"
    _paper = {
        "title": "GAGPO: Generalized Advantage Grouped Policy Optimization",
        "id": "2605.13217",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @misc{gagpo2026,
                title        = {{GAGPO: Generalized Advantage Grouped Policy Optimization}},
                year         = 2026,
                eprint       = {arXiv:2605.13217},
            }"""),
    }

    def turn_advantages(self, batch: TurnBatch) -> Tensor:
        args = self.args
        return gagpo_advantages(
            batch,
            gamma=args.gamma,
            lam=args.lam,
            advantage_norm=args.advantage_norm,
            scale_by_std=args.scale_by_std,
            singleton_value=args.singleton_value,
            leave_one_out=args.leave_one_out,
            truncation_bootstrap=args.truncation_bootstrap,
            episode_advantage_weight=args.episode_advantage_weight,
        )

    def turn_metrics(self, batch: TurnBatch, credit: TurnCredit) -> dict[str, float]:
        states = anchor_statistics(batch)
        return super().turn_metrics(batch, credit) | {
            "turns/singleton_frac": states.singleton_frac,
            "turns/group_size": states.group_size,
        }

    def turn_diagnostics(self, batch: TurnBatch) -> dict[str, Tensor]:
        returns, values = gagpo_values(batch, self.args.gamma, self.args.singleton_value, self.args.leave_one_out)
        return {"return": returns, "value": values}
