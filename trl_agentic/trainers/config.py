"""Arguments that all trainers of this package share."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import GRPOConfig


TURN_LOSS_TYPES = ("turn", "grpo", "dapo")


@dataclass
class AgenticConfig(GRPOConfig):
    r"""
    Configuration class for the [`AgenticTrainer`]: [`~trl.GRPOConfig`] and what a multi-turn rollout needs.

    `max_completion_length` is the budget of a whole rollout: all tokens after the first prompt, sampled and observed.

    Parameters:
        max_turns (`int`, *optional*, defaults to `50`):
            Turns that a rollout may take.
        max_turn_tokens (`int`, *optional*, defaults to `512`):
            Tokens that the policy may sample in one turn. A turn is started only if all of them fit into the budgets.
        max_context_length (`int`, *optional*):
            Tokens of context. If `None`, `vllm_max_model_length`, or else the model's `max_position_embeddings`.
        context (`str`, *optional*, defaults to `"full"`):
            What a prompt shows: `"full"` the whole rollout, `"window"` the task, the last `history_length` pairs of
            observation and action and the current observation. Turns that extend one another share a training row.
        history_length (`int`, *optional*, defaults to `2`):
            Pairs of observation and action before the current observation, with `context="window"`.
        overlong_turn (`str`, *optional*, defaults to `"continue"`):
            What happens to a turn without an end-of-turn token: `"continue"` hands its text to the environment,
            `"stop"` ends the rollout with `StopReason.TURN_LENGTH`.
        invalid_action_penalty (`float`, *optional*, defaults to `0.0`):
            Reward that an action costs if the environment says `info["is_action_valid"] = False`.
        penalty_in_return (`bool`, *optional*, defaults to `False`):
            Whether the penalty is part of the reward, and so of the returns of earlier turns. Otherwise it counts for
            its own turn only.
        eval_temperature (`float`, *optional*):
            Temperature of evaluation rollouts, `0` for greedy decoding. If `None`, `temperature`.
        save_trajectories_steps (`int`, *optional*, defaults to `0`):
            Steps from one file of training rollouts in `output_dir/trajectories` to the next; `0` saves none.
        max_tokens_per_micro_batch (`int`, *optional*):
            Token positions, padding included, that one forward pass of training or evaluation may compute: what bounds
            its memory. Rows of like length are put together, and an accumulation step makes as many passes as it
            needs; the optimizer steps stay the same. If `None`, a pass takes `per_device_train_batch_size` rows.
        pack_micro_batches (`bool`, *optional*):
            Whether the rows of a forward pass are laid end to end in one, without padding. Attention then tells them
            by their positions. If `None`, they are where the model's `attn_implementation` is flash attention or
            `"flex_attention"`. With `"sdpa"` or `"eager"` packing gives the same result, but attention computes all
            pairs of tokens of a pass and drops those of two rows, which is slow for long passes.
        environment_workers (`str`, *optional*, defaults to `"thread"`):
            Where environments run: `"thread"`, each in a thread of the trainer's process, or `"process"`, each in a
            process of its own, which can be killed when it hangs and may crash without harm.
        environment_timeout (`float`, *optional*, defaults to `300.0`):
            Seconds that an environment may take for `reset` or `step`; ten times as many to be made. `None` for no
            limit.
        environment_retries (`int`, *optional*, defaults to `2`):
            Fresh environments that a rollout may use up when one raises an error, hangs or dies. Past that the rollout
            ends with `StopReason.ERROR` and is left out of the update.
        environment_max_episodes (`int`, *optional*):
            Episodes that an environment plays before a fresh one replaces it: for one that leaks. `None` for no limit.
        prefetch_resets (`bool`, *optional*, defaults to `True`):
            Reset the environments of the next batch of rollouts while this one is trained on. Tasks, their order and
            seeds stay the same, and a `reset` that fails then counts when its rollout would begin. The first batch of
            an epoch is not reset ahead. Off for environments that expire while they wait.
        max_failed_rollouts (`float`, *optional*, defaults to `0.5`):
            Share of the rollouts of a step that may fail. If more do, the run stops with the first traceback.
        nonfinite_update (`str`, *optional*, defaults to `"stop"`):
            What happens if a loss, a log-probability or the gradient is NaN or infinite: `"stop"` ends the run before
            the weights change, `"skip"` leaves the update out, up to ten times in a row. Either names the rollouts
            that caused it.
        rollout_ahead (`int`, *optional*, defaults to `0`):
            Batches of rollouts that are sampled beside the training on the one before: `0`, or `1` with
            `vllm_mode="server"`. They are then sampled by the weights of one batch before, which the importance
            correction makes up for.
        vllm_server_base_urls (`list[str]`, *optional*):
            Several servers in place of `vllm_server_base_url`. A rollout stays with one of them, and each gets the
            weights, server `i` through port `vllm_group_port + i`.

    """

    max_completion_length: int | None = field(
        default=4096,
        metadata={"help": "Tokens of a rollout after its first prompt, sampled and observed."},
    )
    vllm_importance_sampling_mode: str = field(
        default="token_truncate",
        metadata={
            "help": "How the mismatch between vLLM and the trained model is corrected: one of TRL's modes, or "
            "`turn_truncate` or `turn_mask`, where a turn's tokens share the product of their weights. The "
            "whole-sequence forms mask out long rollouts, so the token form is the default here."
        },
    )
    max_turns: int = field(default=50, metadata={"help": "Turns that a rollout may take."})
    max_turn_tokens: int = field(default=512, metadata={"help": "Tokens that the policy may sample in one turn."})
    max_context_length: int | None = field(
        default=None,
        metadata={"help": "Tokens of context; `vllm_max_model_length` or `max_position_embeddings` if `None`."},
    )
    context: str = field(
        default="full",
        metadata={"help": "What a prompt shows of the rollout: all, or its end.", "choices": ["full", "window"]},
    )
    history_length: int = field(
        default=2,
        metadata={"help": "Pairs of observation and action before the current observation, with `context='window'`."},
    )
    overlong_turn: str = field(
        default="continue",
        metadata={
            "help": "What happens to a turn without an end-of-turn token: `continue` hands its text to the "
            "environment, `stop` ends the rollout.",
            "choices": ["continue", "stop"],
        },
    )
    invalid_action_penalty: float = field(
        default=0.0, metadata={"help": "What an action costs that the environment calls invalid."}
    )
    penalty_in_return: bool = field(
        default=False, metadata={"help": "Whether the penalty is part of the returns of earlier turns."}
    )
    eval_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of evaluation rollouts; `temperature` if `None`, greedy at 0."}
    )
    save_trajectories_steps: int = field(
        default=0,
        metadata={"help": "Steps from one file of training rollouts in `output_dir/trajectories` to the next."},
    )
    max_tokens_per_micro_batch: int | None = field(
        default=None,
        metadata={
            "help": "Token positions, padding included, that one forward pass may compute. If `None`, a pass takes "
            "`per_device_train_batch_size` rows."
        },
    )
    pack_micro_batches: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the rows of a forward pass are laid end to end in one, without padding. If `None`, where "
            "`attn_implementation` is flash attention or `flex_attention`."
        },
    )

    environment_workers: str = field(
        default="thread",
        metadata={
            "help": "Where environments run: `thread`, each in a thread of the trainer's process, or `process`, each "
            "in a process of its own, which can be killed when it hangs.",
            "choices": ["thread", "process"],
        },
    )
    environment_timeout: float | None = field(
        default=300.0,
        metadata={"help": "Seconds that an environment may take for `reset` or `step`; `None` for no limit."},
    )
    environment_retries: int = field(
        default=2,
        metadata={"help": "Fresh environments that a rollout may use up when one raises an error, hangs or dies."},
    )
    environment_max_episodes: int | None = field(
        default=None,
        metadata={"help": "Episodes that an environment plays before a fresh one replaces it."},
    )
    prefetch_resets: bool = field(
        default=True,
        metadata={"help": "Reset the environments of the next batch of rollouts while this one is trained on."},
    )
    max_failed_rollouts: float = field(
        default=0.5,
        metadata={"help": "Share of the rollouts of a step that may fail. If more do, the run stops."},
    )

    nonfinite_update: str = field(
        default="stop",
        metadata={
            "help": "What happens if a loss, a log-probability or the gradient is NaN or infinite: `stop` ends the "
            "run before the weights change, `skip` leaves the update out.",
            "choices": ["stop", "skip"],
        },
    )
    rollout_ahead: int = field(
        default=0,
        metadata={
            "help": "Batches of rollouts that a vLLM server samples beside the training on the one before.",
            "choices": [0, 1],
        },
    )
    vllm_server_base_urls: list[str] | None = field(
        default=None,
        metadata={
            "help": "Several servers in place of `vllm_server_base_url`. A rollout stays with one of them, and each "
            "gets the weights, server `i` through port `vllm_group_port + i`."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_environment_fields()
        if self.vllm_server_base_urls and self.vllm_server_base_url not in (None, self.vllm_server_base_urls[0]):
            raise ValueError("Set `vllm_server_base_url` or `vllm_server_base_urls`, not both.")
        self._check_rollout_ahead()
        for name in ("max_turns", "max_turn_tokens", "max_tokens_per_micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.max_completion_length is None:
            raise ValueError("`max_completion_length` must be a number of tokens: it is the budget of a rollout.")
        if self.max_turn_tokens > self.max_completion_length:
            raise ValueError(
                f"`max_turn_tokens` ({self.max_turn_tokens}) is more than `max_completion_length` "
                f"({self.max_completion_length}), so no turn fits. Raise `max_completion_length` or lower "
                "`max_turn_tokens`."
            )
        if self.context not in ("full", "window"):
            raise ValueError(f"`context` must be 'full' or 'window', got {self.context!r}.")
        if self.history_length < 0:
            raise ValueError(f"`history_length` must not be negative, got {self.history_length}.")
        if self.overlong_turn not in ("continue", "stop"):
            raise ValueError(f"`overlong_turn` must be 'continue' or 'stop', got {self.overlong_turn!r}.")
        if self.save_trajectories_steps < 0:
            raise ValueError(f"`save_trajectories_steps` must not be negative, got {self.save_trajectories_steps}.")
        if self.invalid_action_penalty < 0:
            raise ValueError(f"`invalid_action_penalty` must not be negative, got {self.invalid_action_penalty}.")
        if self.importance_sampling_level not in ("token", "turn", "sequence"):
            raise ValueError(
                "`importance_sampling_level` must be 'token', 'turn' or 'sequence', got "
                f"{self.importance_sampling_level!r}."
            )
        if self.context == "window":
            for name in ("importance_sampling_level", "vllm_importance_sampling_mode"):
                level, _, form = getattr(self, name).partition("_")
                if level == "sequence":
                    raise ValueError(
                        f"`{name}={getattr(self, name)!r}` does not fit `context='window'`, where a rollout is "
                        f"several sequences. Use '{'_'.join(['turn', form]).rstrip('_')}'."
                    )
        modes = [f"{level}_{form}" for level in ("token", "turn", "sequence") for form in ("truncate", "mask")]
        if self.vllm_importance_sampling_mode not in modes:
            raise ValueError(
                f"`vllm_importance_sampling_mode` must be one of {', '.join(modes)}, got "
                f"{self.vllm_importance_sampling_mode!r}."
            )
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
                f"`generation_kwargs` must not set `{name}`: a turn is sampled once, has `max_turn_tokens`, and a "
                "seed made from `seed`."
            )
        if self.accelerator_config.split_batches:
            raise ValueError(
                "`accelerator_config.split_batches` is not supported: leave it at False. A batch is "
                "`per_device_train_batch_size` rollouts on every process, so that groups are whole."
            )
        if self.uses_turn_loss:
            self._check_turn_loss()

    def _check_environment_fields(self) -> None:
        if self.environment_workers not in ("thread", "process"):
            raise ValueError(f"`environment_workers` must be 'thread' or 'process', got {self.environment_workers!r}.")
        if self.environment_timeout is not None and not self.environment_timeout > 0:
            raise ValueError(f"`environment_timeout` must be positive, or None, got {self.environment_timeout}.")
        if self.environment_retries < 0:
            raise ValueError(f"`environment_retries` must not be negative, got {self.environment_retries}.")
        if self.environment_max_episodes is not None and self.environment_max_episodes < 1:
            raise ValueError(f"`environment_max_episodes` must be at least 1, got {self.environment_max_episodes}.")
        if self.nonfinite_update not in ("stop", "skip"):
            raise ValueError(f"`nonfinite_update` must be 'stop' or 'skip', got {self.nonfinite_update!r}.")
        if not 0 <= self.max_failed_rollouts <= 1:
            raise ValueError(f"`max_failed_rollouts` must be a share from 0 to 1, got {self.max_failed_rollouts}.")

    def _check_rollout_ahead(self) -> None:
        if self.rollout_ahead not in (0, 1):
            raise ValueError(f"`rollout_ahead` must be 0 or 1, got {self.rollout_ahead}.")
        if not self.rollout_ahead:
            return
        if not self.use_vllm or self.vllm_mode != "server":
            raise ValueError(
                "`rollout_ahead=1` samples beside the training, which only a vLLM server can: set `use_vllm=True` and "
                "`vllm_mode='server'`, or `rollout_ahead=0`."
            )
        if not self.vllm_importance_sampling_correction:
            raise ValueError(
                "`rollout_ahead=1` needs `vllm_importance_sampling_correction=True`, which corrects for the older "
                "weights that sampled. Set it, or `rollout_ahead=0`."
            )

    def require_penalty_in_return(self, rule: str) -> None:
        """For rules that read nothing of the rewards but their sum over an episode.

        Args:
            rule: name of the rule.

        Raises:
            ValueError: `penalty_in_return` is off.
        """
        if not self.penalty_in_return:
            raise ValueError(
                f"`penalty_in_return` must be True: {rule} reads the return of a whole episode, so a penalty cannot "
                "count for its own turn only. Set `invalid_action_penalty=0.0` to have none."
            )

    def reject_scale_rewards(self, instead: str) -> None:
        """For rules that do not read TRL's `scale_rewards`.

        Args:
            instead: what has the effect in its place.

        Raises:
            ValueError: `scale_rewards` is not at its default.
        """
        if self.scale_rewards != "group":
            raise ValueError(f"`scale_rewards` has no effect on this rule: leave it at 'group'. What does: {instead}.")

    _may_have_other_loss = True

    @property
    def uses_turn_loss(self) -> bool:
        """Whether the loss is this package's. TRL's aggregations mostly need micro-batches of equally many rows."""
        return self._turn_loss_reason is not None

    @property
    def _turn_loss_reason(self) -> str | None:
        """The setting that has it, or the rule."""
        if self.importance_sampling_level == "turn":
            return "`importance_sampling_level='turn'`"
        if self.loss_type == "turn":
            return "`loss_type='turn'`"
        if self.max_tokens_per_micro_batch is not None:
            return f"`max_tokens_per_micro_batch={self.max_tokens_per_micro_batch}`"
        if self.context == "window":
            return "`context='window'`"
        return None

    def _check_turn_loss(self) -> None:
        if self.loss_type not in TURN_LOSS_TYPES:
            raise ValueError(
                f"`loss_type={self.loss_type!r}` has no form that fits {self._turn_loss_reason}. Use one of "
                f"{', '.join(TURN_LOSS_TYPES)}."
            )
        for name, off in (
            ("delta", None),
            ("off_policy_mask_threshold", None),
            ("top_entropy_quantile", 1.0),
            ("entropy_coef", 0.0),
            ("use_adaptive_entropy", False),
        ):
            if getattr(self, name) != off:
                other = (
                    ", or use `importance_sampling_level='token'`, one of TRL's loss types, "
                    "`max_tokens_per_micro_batch=None` and `context='full'`"
                )
                raise ValueError(
                    f"`{name}` is not supported with {self._turn_loss_reason}. Leave it at {off}"
                    f"{other if self._may_have_other_loss else ''}."
                )
