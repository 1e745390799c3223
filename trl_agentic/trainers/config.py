"""Arguments that all trainers of this package share."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import GRPOConfig

from trl_agentic.deprecation import renamed_option
from trl_agentic.environments.handle import WorkerOptions
from trl_agentic.trainers.fields import check_choices, check_range


OWN_LOSS_TYPES = ("turn", "grpo", "dapo")
"""Loss types of this package, for every algorithm and ratio level."""
TRL_LOSS_TYPES = ("bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")
"""Loss types that only TRL's own loss computes."""
_ONLY_IN_TRL = {
    "delta": None,
    "off_policy_mask_threshold": None,
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
}


@dataclass
class AgenticConfig(GRPOConfig):
    r"""
    Configuration class for the [`AgenticTrainer`]: [`~trl.GRPOConfig`] with the options of multi-turn rollouts.

    `max_completion_length` is the budget of a whole rollout: all tokens after the first prompt, sampled and observed.

    Parameters:
        max_turns (`int`, *optional*, defaults to `50`):
            Maximum number of turns of a rollout.
        max_turn_tokens (`int`, *optional*, defaults to `512`):
            Maximum number of tokens that the policy samples in one turn. A turn starts only if all of them fit into
            the budgets.
        max_context_length (`int`, *optional*):
            Tokens of context. If `None`, `vllm_max_model_length`, or else the model's `max_position_embeddings`.
        context (`str`, *optional*, defaults to `"full"`):
            Visible part of a rollout in its prompts: `"full"` for all of it, `"window"` for the task, the last
            `history_length` pairs of observation and action and the current observation. Turns that extend one another
            share a training sequence.
        history_length (`int`, *optional*, defaults to `2`):
            Pairs of observation and action before the current observation, with `context="window"`.
        overlong_turn (`str`, *optional*, defaults to `"continue"`):
            Handling of a turn without an end-of-turn token: `"continue"` passes its text to the environment, `"stop"`
            ends the rollout with `StopReason.TURN_LENGTH`.
        invalid_action_penalty (`float`, *optional*, defaults to `0.0`):
            Penalty of an action that the environment reports as invalid (`info["is_action_valid"] = False`).
        penalty_in_return (`bool`, *optional*, defaults to `False`):
            Whether the penalty is part of the reward, and thereby of the returns of earlier turns. Otherwise it counts
            for its own turn only.
        eval_temperature (`float`, *optional*):
            Temperature of evaluation rollouts, `0` for greedy decoding. If `None`, `temperature`.
        save_trajectories_steps (`int`, *optional*, defaults to `0`):
            Training rollouts are saved to `output_dir/trajectories` every so many steps; `0` saves none.
        max_tokens_per_micro_batch (`int`, *optional*):
            Maximum number of token positions, padding included, of one forward pass in training or evaluation, which
            bounds its memory. Sequences of similar length share a pass, and an accumulation step makes as many passes
            as it needs; the optimizer steps stay the same. If `None`, a pass takes `per_device_train_batch_size`
            sequences.
        pack_micro_batches (`bool`, *optional*):
            Whether the sequences of a forward pass are laid end to end in one row, without padding. Attention then
            separates them by their positions. If `None`, they are packed if the model's `attn_implementation` is flash
            attention or `"flex_attention"`. With `"sdpa"` or `"eager"` packing gives the same result, but attention
            computes all pairs of tokens of a pass and masks those of different sequences, which is slow for long
            passes.
        environment_workers (`str`, *optional*, defaults to `"thread"`):
            Where environments run: `"thread"`, each in a thread of the trainer's process, or `"process"`, each in its
            own process, which can be killed when it hangs and may crash without harm.
        environment_timeout (`float`, *optional*, defaults to `300.0`):
            Seconds that an environment may take for `reset` or `step`, and ten times as many for its construction.
            `None` for no limit.
        environment_retries (`int`, *optional*, defaults to `2`):
            Fresh environments that a rollout may use if one raises an error, hangs or dies. After that the rollout
            ends with `StopReason.ERROR` and is left out of the update.
        environment_max_episodes (`int`, *optional*):
            Episodes that an environment plays before a fresh one replaces it, for environments that leak. `None` for
            no limit.
        prefetch_resets (`bool`, *optional*, defaults to `True`):
            Whether the environments of the next generation are reset while the current one is trained on. Tasks, their
            order and seeds stay the same, and a failing `reset` counts when its rollout starts. The first generation
            of an epoch is not prefetched. Turn it off for environments that expire while they wait.
        max_failed_rollouts (`float`, *optional*, defaults to `0.5`):
            Share of the rollouts of a generation that may fail. If more fail, the run stops with the first traceback.
        nonfinite_update (`str`, *optional*, defaults to `"stop"`):
            Handling of a loss, a log-probability or a gradient that is NaN or infinite: `"stop"` ends the run before
            the weights change, `"skip"` leaves the update out, up to ten times in a row. Both name the rollouts that
            caused it.
        max_staleness (`int`, *optional*, defaults to `0`):
            Staleness of the weights that sample, in generations: `0`, or `1` with `vllm_mode="server"`, where the next
            generation is sampled while the current one is trained on. The importance correction compensates for it.
        vllm_server_base_urls (`list[str]`, *optional*):
            Several servers instead of `vllm_server_base_url`. All turns of a rollout go to the same server. Every
            server gets the weights, server `i` through port `vllm_group_port + i`.
        rollout_ahead (`int`, *optional*):
            Deprecated name of `max_staleness`.

    """

    max_completion_length: int | None = field(
        default=4096,
        metadata={"help": "Tokens of a rollout after its first prompt, sampled and observed."},
    )
    vllm_importance_sampling_mode: str = field(
        default="token_truncate",
        metadata={
            "help": "Importance correction for the mismatch between vLLM and the model: one of TRL's modes, or "
            "`turn_truncate` or `turn_mask`, where the tokens of a turn share the product of their weights. The "
            "whole-sequence modes mask out long rollouts, so the token mode is the default.",
            "choices": [f"{level}_{form}" for level in ("token", "turn", "sequence") for form in ("truncate", "mask")],
        },
    )
    importance_sampling_level: str = field(
        default="token",
        metadata={
            "help": "Level of the importance ratio: `token`, `turn` (one ratio for each action) or `sequence`.",
            "choices": ["token", "turn", "sequence"],
        },
    )
    max_turns: int = field(default=50, metadata={"help": "Maximum number of turns of a rollout."})
    max_turn_tokens: int = field(default=512, metadata={"help": "Maximum number of sampled tokens of a turn."})
    max_context_length: int | None = field(
        default=None,
        metadata={"help": "Tokens of context; `vllm_max_model_length` or `max_position_embeddings` if `None`."},
    )
    context: str = field(
        default="full",
        metadata={"help": "Visible part of a rollout in its prompts: all, or its end.", "choices": ["full", "window"]},
    )
    history_length: int = field(
        default=2,
        metadata={"help": "Pairs of observation and action before the current observation, with `context='window'`."},
    )
    overlong_turn: str = field(
        default="continue",
        metadata={
            "help": "Handling of a turn without an end-of-turn token: `continue` passes its text to the "
            "environment, `stop` ends the rollout.",
            "choices": ["continue", "stop"],
        },
    )
    invalid_action_penalty: float = field(
        default=0.0, metadata={"help": "Penalty of an action that the environment reports as invalid."}
    )
    penalty_in_return: bool = field(
        default=False, metadata={"help": "Whether the penalty is part of the returns of earlier turns."}
    )
    eval_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of evaluation rollouts; `temperature` if `None`, greedy at 0."}
    )
    save_trajectories_steps: int = field(
        default=0,
        metadata={"help": "Training rollouts are saved to `output_dir/trajectories` every so many steps."},
    )
    max_tokens_per_micro_batch: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of token positions of one forward pass, padding included. If `None`, a pass takes "
            "`per_device_train_batch_size` sequences."
        },
    )
    pack_micro_batches: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the sequences of a forward pass are laid end to end, without padding. If `None`, if "
            "`attn_implementation` is flash attention or `flex_attention`."
        },
    )

    environment_workers: str = field(
        default="thread",
        metadata={
            "help": "Where environments run: `thread`, each in a thread of the trainer's process, or `process`, each "
            "in its own process, which can be killed when it hangs.",
            "choices": ["thread", "process"],
        },
    )
    environment_timeout: float | None = field(
        default=300.0,
        metadata={"help": "Seconds that an environment may take for `reset` or `step`; `None` for no limit."},
    )
    environment_retries: int = field(
        default=2,
        metadata={"help": "Fresh environments that a rollout may use if one raises an error, hangs or dies."},
    )
    environment_max_episodes: int | None = field(
        default=None,
        metadata={"help": "Episodes that an environment plays before a fresh one replaces it."},
    )
    prefetch_resets: bool = field(
        default=True,
        metadata={"help": "Whether the environments of the next generation are reset while this one is trained on."},
    )
    max_failed_rollouts: float = field(
        default=0.5,
        metadata={"help": "Share of the rollouts of a generation that may fail. If more fail, the run stops."},
    )

    nonfinite_update: str = field(
        default="stop",
        metadata={
            "help": "Handling of a loss, a log-probability or a gradient that is NaN or infinite: `stop` ends the "
            "run before the weights change, `skip` leaves the update out.",
            "choices": ["stop", "skip"],
        },
    )
    max_staleness: int = field(
        default=0,
        metadata={
            "help": "Staleness of the weights that sample, in generations; 1 needs a vLLM server.",
            "choices": [0, 1],
        },
    )
    rollout_ahead: int | None = field(default=None, metadata={"help": "Deprecated name of `max_staleness`."})
    vllm_server_base_urls: list[str] | None = field(
        default=None,
        metadata={
            "help": "Several servers instead of `vllm_server_base_url`. All turns of a rollout go to the same server. "
            "Every server gets the weights, server `i` through port `vllm_group_port + i`."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        staleness = renamed_option("rollout_ahead", self.rollout_ahead, "max_staleness", self.max_staleness, default=0)
        self.max_staleness, self.rollout_ahead = staleness, None
        check_choices(self)
        check_range(
            self, "max_turns", "max_turn_tokens", "max_tokens_per_micro_batch", "environment_max_episodes", least=1
        )
        check_range(
            self,
            "history_length",
            "save_trajectories_steps",
            "invalid_action_penalty",
            "environment_retries",
            least=0,
        )
        check_range(self, "max_failed_rollouts", least=0, most=1)
        if self.environment_timeout is not None and not self.environment_timeout > 0:
            raise ValueError(f"`environment_timeout` must be positive, or None, got {self.environment_timeout}.")
        if self.max_completion_length is None:
            raise ValueError("`max_completion_length` must be a number of tokens: it is the budget of a rollout.")
        if self.max_turn_tokens > self.max_completion_length:
            raise ValueError(
                f"`max_turn_tokens` ({self.max_turn_tokens}) is more than `max_completion_length` "
                f"({self.max_completion_length}), so no turn fits. Raise `max_completion_length` or lower "
                "`max_turn_tokens`."
            )
        if self.vllm_server_base_urls and self.vllm_server_base_url not in (None, self.vllm_server_base_urls[0]):
            raise ValueError("Set `vllm_server_base_url` or `vllm_server_base_urls`, not both.")
        self._check_staleness()
        self._check_unsupported()
        self._check_loss()

    @property
    def visible_history(self) -> int | None:
        """Pairs of observation and action that a prompt shows before the current observation; `None` for all."""
        return self.history_length if self.context == "window" else None

    @property
    def worker_options(self) -> WorkerOptions:
        """How environments run."""
        return WorkerOptions(
            kind=self.environment_workers,
            timeout=self.environment_timeout,
            retries=self.environment_retries,
            max_episodes=self.environment_max_episodes,
        )

    @property
    def uses_own_loss(self) -> bool:
        """Whether this package computes the loss. It does for its loss types; TRL computes the others."""
        return self.loss_type in OWN_LOSS_TYPES

    @property
    def is_sum_over_sequences(self) -> bool:
        """Whether the loss is a sum over sequences. Otherwise it has a mean over each micro-batch."""
        entropy = self.entropy_coef != 0.0 or self.use_adaptive_entropy or self.top_entropy_quantile < 1
        return self.loss_type != "bnpo" and not entropy

    def require_penalty_in_return(self, algorithm: str) -> None:
        """Check of algorithms that read only the sum of the rewards of an episode.

        Args:
            algorithm: name of the algorithm.

        Raises:
            ValueError: `penalty_in_return` is off.
        """
        if not self.penalty_in_return:
            raise ValueError(
                f"`penalty_in_return` must be True: {algorithm} reads the return of a whole episode, so a penalty "
                "cannot count for its own turn only. Set `invalid_action_penalty=0.0` for no penalty."
            )

    def reject_scale_rewards(self, instead: str) -> None:
        """Check of algorithms that do not read TRL's `scale_rewards`.

        Args:
            instead: options that have the effect instead.

        Raises:
            ValueError: `scale_rewards` is not at its default.
        """
        if self.scale_rewards != "group":
            raise ValueError(
                f"`scale_rewards` has no effect on this algorithm: leave it at 'group' and use {instead}."
            )

    def _check_staleness(self) -> None:
        if not self.max_staleness:
            return
        if not self.use_vllm or self.vllm_mode != "server":
            raise ValueError(
                "`max_staleness=1` samples while the model is trained, which only a vLLM server can do: set "
                "`use_vllm=True` and `vllm_mode='server'`, or `max_staleness=0`."
            )
        if not self.vllm_importance_sampling_correction:
            raise ValueError(
                "`max_staleness=1` needs `vllm_importance_sampling_correction=True`, which corrects for the older "
                "weights that sampled. Set it, or `max_staleness=0`."
            )

    def _check_unsupported(self) -> None:
        for name, off, instead in (
            ("multi_objective_aggregation", "sum_then_normalize", "All rewards of an episode are added up."),
            ("max_tool_calling_iterations", None, "Set `max_turns`."),
            ("use_transformers_continuous_batching", False, "Set `use_vllm`."),
            ("cache_implementation", None, "The cache of a rollout is kept from turn to turn."),
            ("generation_kwargs", None, "Set `temperature`, `top_p`, `top_k`, `min_p` or `repetition_penalty`."),
        ):
            if getattr(self, name) != off and not (name == "generation_kwargs" and self.use_vllm):
                raise ValueError(f"`{name}` is not supported: leave it at {off!r}. {instead}")
        for name in sorted({"max_tokens", "seed", "n"} & set(self.generation_kwargs or {})):
            raise ValueError(
                f"`generation_kwargs` must not set `{name}`: each turn is one sample of up to `max_turn_tokens` "
                "tokens, with a seed derived from `seed`."
            )
        if self.accelerator_config.split_batches:
            raise ValueError(
                "`accelerator_config.split_batches` is not supported: leave it at False. A batch is "
                "`per_device_train_batch_size` rollouts on every process, so that groups are whole."
            )

    def _check_loss(self) -> None:
        if self.context == "window":
            for name in ("importance_sampling_level", "vllm_importance_sampling_mode"):
                level, _, form = getattr(self, name).partition("_")
                if level == "sequence":
                    raise ValueError(
                        f"`{name}={getattr(self, name)!r}` does not fit `context='window'`, where a rollout is "
                        f"several sequences. Use '{'_'.join(['turn', form]).rstrip('_')}'."
                    )
        if self.uses_own_loss:
            for name, off in _ONLY_IN_TRL.items():
                if getattr(self, name) != off:
                    raise ValueError(
                        f"`{name}` is not supported by `loss_type={self.loss_type!r}`. Leave it at {off}, or use one "
                        f"of TRL's own loss types: {', '.join(TRL_LOSS_TYPES)}."
                    )
            return
        for name, allowed in (
            ("importance_sampling_level", ("token", "sequence")),
            ("max_tokens_per_micro_batch", (None,)),
            ("context", ("full",)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"`loss_type={self.loss_type!r}` does not support `{name}={getattr(self, name)!r}`. Use one of "
                    f"{', '.join(OWN_LOSS_TYPES)}."
                )
