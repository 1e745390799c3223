"""The multi-turn trainer. The only module that touches TRL's private methods; a test pins what it relies on."""

from __future__ import annotations

import itertools
import json
import logging
import math
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset, IterableDataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import ProcessorMixin
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.chat_template_utils import (
    add_response_schema,
    get_training_chat_template,
    is_chat_template_prefix_preserving,
    supports_tool_calling,
)
from trl.extras.profiling import profiling_context
from trl.generation.vllm_client import VLLMClient
from trl.models.utils import disable_gradient_checkpointing, unwrap_model_for_generation
from trl.trainer.utils import use_adapter

from trl_agentic.environments.handle import EnvironmentHandle, WorkerOptions
from trl_agentic.environments.tools import ToolEnvironment
from trl_agentic.loss import aggregate, clipped_surrogate, count_turns, engine_correction, importance_ratio
from trl_agentic.micro_batches import cut_by_rows, cut_by_tokens, pack_rows, split_to, take_rows
from trl_agentic.rollout.chat import ChatRenderer
from trl_agentic.rollout.context import Context, Renderer, completion_messages, first_prompt, prompt_messages
from trl_agentic.rollout.engines import (
    Engine,
    Sampling,
    VLLMColocateEngine,
    VLLMServerEngine,
    transformers_engine,
)
from trl_agentic.rollout.loop import Budgets, Episode, RolloutClock, derived_seed, play
from trl_agentic.trainers.ahead import RolloutsAhead
from trl_agentic.trainers.budgets import check_budgets
from trl_agentic.trainers.card import Evaluation, complete_card
from trl_agentic.trainers.config import AgenticConfig
from trl_agentic.trainers.lookahead import Lookahead
from trl_agentic.trainers.metrics import EpisodeSummary, episode_metrics, rollout_metrics, summarize
from trl_agentic.trainers.nonfinite import NonFiniteGuard
from trl_agentic.trainers.packing import check_rows_are_apart, packs
from trl_agentic.trainers.pool import EnvironmentPool, Factory
from trl_agentic.trainers.rows import balance, draw_places, row_tensors, training_rows
from trl_agentic.trainers.saving import (
    TrajectoryLog,
    check_output_dir,
    checkpoint_bytes,
    load_generation,
    save_generation,
)
from trl_agentic.trainers.stopping import StopOnSignal
from trl_agentic.trainers.tasks import check_size, task_dataset
from trl_agentic.trainers.vllm import check_served_model, check_vllm, served_models, server_start, server_urls
from trl_agentic.turns import spread_to_tokens, turn_batch, turn_record
from trl_agentic.types import StopReason, Trajectory, TurnBatch


__all__ = ["AgenticConfig", "AgenticTrainer"]

logger = logging.getLogger(__name__)


def episode_return(trajectory: list[Trajectory], **kwargs: Any) -> list[float]:
    """Reward function of the environments: the undiscounted return of each rollout."""
    return [t.episode_return for t in trajectory]


class AgenticTrainer(GRPOTrainer):
    """
    Trainer for policies that act in environments over many turns.

    [`~trl.GRPOTrainer`] with three things replaced: generation is a loop between the policy and one environment for
    each rollout, every turn has an advantage of its own ([`turn_advantages`], which a subclass defines), and ratio and
    clip range may be those of a turn. All else, from data loading to checkpoints and the Hub, is TRL's.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or `peft.PeftModel`):
            The policy. Its tokenizer needs a chat template.
        reward_funcs (`Callable` or `list`, *optional*):
            Reward functions as in TRL, scored on finished rollouts and added to the reward of the last turn. They also
            get `trajectory`, a list of [`~trl_agentic.types.Trajectory`]. The environments' own rewards always count.
        args ([`AgenticConfig`]):
            Arguments of the trainer.
        train_dataset (`Dataset` or `IterableDataset`, *optional*):
            One row a task, handed to `reset`; `prompt` (messages) is optional and opens the conversation. If
            the environment's own `tasks()`.
        eval_dataset, processing_class, reward_processing_classes, callbacks, optimizers, quantization_config,
        peft_config:
            As in [`~trl.GRPOTrainer`].
        environment_factory (`Callable` or `dict[str, Callable]`):
            Makes an environment ([`~trl_agentic.environments.Environment`], or a TRL tool-style class). With a
            dictionary, a row's `environment` selects one.
        prompt_renderer (`Callable[[View], list[dict]]`, *optional*):
            Makes the messages of every prompt from a [`~trl_agentic.types.View`], with `context="window"`. If
            `None`, a prompt is the conversation itself, of which the oldest turns are left out.

    Raises:
        ValueError: the arguments, the tasks, the chat template or the budgets cannot work. Raised before training.
    """

    _tag_names = ["trl", "trl-agentic"]
    _name = "Agentic"
    _paper: dict[str, str] = {}
    _last_loaded_step: int  # of TRL: the step whose weights vLLM has
    _buffered_inputs: list[list[dict[str, Tensor]]] | None  # of TRL: what it trains on until the next generation

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: AgenticConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        environment_factory: Factory | dict[str, Factory] | None = None,
        prompt_renderer: Renderer | None = None,
    ):
        if not isinstance(args, AgenticConfig):
            raise TypeError(f"`args` must be an `AgenticConfig`, got {type(args).__name__}.")
        if isinstance(processing_class, ProcessorMixin):
            raise TypeError("Only text models are supported: pass a tokenizer as `processing_class`.")
        if prompt_renderer is not None and args.context != "window":
            raise ValueError(f"`prompt_renderer` needs `context='window'`, but `context` is {args.context!r}.")
        self.context = Context(args.history_length if args.context == "window" else None, prompt_renderer)
        if args.should_save:
            check_output_dir(args.output_dir)
        options = WorkerOptions(
            kind=args.environment_workers,
            timeout=args.environment_timeout,
            retries=args.environment_retries,
            max_episodes=args.environment_max_episodes,
        )
        self.environment_pool = EnvironmentPool(environment_factory, options)
        if train_dataset is None:
            train_dataset = task_dataset(self.environment_pool.tasks())
        check_size(train_dataset, args)
        first_rows = list(itertools.islice(iter(train_dataset), 64))
        self.environment_pool.check(first_rows)
        if isinstance(train_dataset, Dataset) and "environment" in train_dataset.column_names:
            for name in train_dataset.unique("environment"):
                self.environment_pool.name({"environment": name})
        if type(self).turn_clip_scales is not AgenticTrainer.turn_clip_scales and not args.uses_turn_loss:
            raise ValueError(
                f"`{type(self).__name__}.turn_clip_scales` has no say in TRL's loss, which has one clip range. Set "
                "`importance_sampling_level='turn'`, `loss_type='turn'`, `max_tokens_per_micro_batch` or "
                "`context='window'`."
            )
        functions = list(reward_funcs) if isinstance(reward_funcs, list) else [reward_funcs] if reward_funcs else []
        weights = args.reward_weights if args.reward_weights is not None else [1.0] * len(functions)
        if len(weights) != len(functions):
            raise ValueError(f"`reward_weights` has {len(weights)} values for {len(functions)} reward functions.")
        if isinstance(reward_processing_classes, list):
            reward_processing_classes = [*reward_processing_classes, None]
        elif reward_processing_classes is not None:
            reward_processing_classes = [reward_processing_classes, None]
        if args.use_vllm:
            check_vllm(args, _name_of(model))
            if args.vllm_server_base_urls:
                args.vllm_server_base_url = server_urls(args)[0]  # the one that TRL connects to
        user_weights, args.reward_weights = args.reward_weights, None
        super().__init__(
            model=model,
            reward_funcs=[*functions, episode_return],
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        args.reward_weights = user_weights
        self.reward_weights = torch.tensor([*weights, 1.0], dtype=torch.float32)
        if self.environment_pool.uses_tools:
            self._prepare_tools()
        if self.use_vllm and self.vllm_mode == "server":
            self._connect_servers()
        self.chat = ChatRenderer(self._tokenizer, self.eos_token_ids, self.chat_template, self.chat_template_kwargs)
        if self.environment_pool.uses_tools:
            self.chat.observation_ids(["probe"], ended=True, role="tool")
        self.budgets = Budgets(
            max_turns=args.max_turns,
            max_turn_tokens=args.max_turn_tokens,
            max_rollout_tokens=int(args.max_completion_length or 0),
            max_context=self._max_context(),
            stop_at_overlong_turn=args.overlong_turn == "stop",
        )
        self._packs = packs(args.pack_micro_batches, self.model.config.get_text_config()._attn_implementation)
        self._packing_is_checked = False
        self._eval_rollouts = 0
        self._lookahead = Lookahead(iter(()))
        self._ahead: RolloutsAhead | None = None
        if args.should_save and args.save_strategy != "no":
            check_output_dir(args.output_dir, checkpoint_bytes(self.model, args.save_only_model))
        if self.is_deepspeed_enabled and args.nonfinite_update == "skip":
            raise ValueError("`nonfinite_update='skip'` does not reach DeepSpeed's gradients: set 'stop'.")
        own_gradients = self.accelerator.scaler is None and not self.is_deepspeed_enabled
        self._nonfinite_guard = NonFiniteGuard(args.nonfinite_update, gradients=own_gradients)
        self._stop_on_signal = StopOnSignal()
        self.add_callback(self._nonfinite_guard)
        self.add_callback(self._stop_on_signal)
        self._last_logps: Tensor | None = None
        self._trajectory_log = TrajectoryLog(Path(args.output_dir) / "trajectories", args.save_trajectories_steps)
        self.add_callback(self._trajectory_log)
        self._trained_on = list(dict.fromkeys(self.environment_pool.name(row) for row in first_rows))
        self._evaluations: dict[str, dict[int, Evaluation]] = {}  # of a name, by step
        self._episodes: dict[str, list[EpisodeSummary]] = {"train": [], "eval": []}
        self._token_sums: dict[str, dict[str, tuple[float, float]]] = {"train": {}, "eval": {}}
        weakref.finalize(self, self.environment_pool.close)
        self._check_first_prompt(first_rows[0])
        for table in (train_dataset, *(eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset])):
            if table is not None:
                self.check_tasks(table if isinstance(table, Dataset) else itertools.islice(iter(table), 64))

    def check_tasks(self, rows: Iterable[dict[str, Any]]) -> None:
        """Fails before training if the credit rule cannot work on a task. By default every task will do.

        Args:
            rows: rows of a dataset, the first ones only if it is a stream.

        Raises:
            ValueError: a task lacks what the rule needs.
        """

    def information_gains(
        self, rows: list[dict[str, Any]], trajectories: list[Trajectory]
    ) -> list[list[float]] | None:
        """What each turn contributed by itself, for rules that read `TurnBatch.information_gain`.

        Called after the rollouts and before the credit rule, on every process, with the weights that sampled.

        Args:
            rows: the dataset rows of this process's rollouts.
            trajectories: the rollouts, in the same order.

        Returns:
            A value for each turn of each rollout, NaN where a turn has none; or `None`, which is the default.
        """
        return None

    def ask_engine(self, engine: Engine, trajectories: list[Trajectory]) -> None:
        """Called after the rollouts of a generation, while the engine still holds their weights and contexts.

        With `rollout_ahead`, that is in their thread, where no collective operation may be.

        Args:
            engine ([`~rollout.engines.Engine`]): who sampled them.
            trajectories (`list[Trajectory]`): rollouts of this process, in the order of their numbers.
        """

    def turn_clip_scales(self, batch: TurnBatch) -> Tensor | None:
        """Factors on the clip range of each turn, for rules whose `args.uses_turn_loss` holds.

        Args:
            batch ([`~trl_agentic.types.TurnBatch`]): as in [`turn_advantages`].

        Returns:
            `Tensor` of shape (B, K), not negative; or `None` for one clip range, which is the default.
        """
        return None

    def turn_advantages(self, batch: TurnBatch) -> Tensor:
        """The credit rule: an advantage for each turn of the global batch.

        Args:
            batch ([`~trl_agentic.types.TurnBatch`]): turns of the rollouts of all processes.

        Returns:
            `Tensor` of shape (B, K), 0 where `batch.turn_mask` is `False`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `turn_advantages`, its credit rule.")

    def turn_metrics(self, batch: TurnBatch, advantages: Tensor) -> dict[str, float]:
        """Numbers to log about a batch of turns and their advantages (B, K)."""
        played = advantages[batch.turn_mask]
        if played.numel() == 0:
            return {}
        return {
            "turns/advantage_std": played.std(correction=0).item(),
            "turns/advantage_abs_mean": played.abs().mean().item(),
            "turns/advantage_abs_gt_1": (played.abs() > 1).float().mean().item(),
        }

    def turn_credit(self, batch: TurnBatch) -> dict[str, Tensor]:
        """What saved trajectories show of each turn beside its advantage: `return`, `value`, `clip_low`, ...

        Args:
            batch ([`~trl_agentic.types.TurnBatch`]): turns of the rollouts of all processes.

        Returns:
            `Tensor`s of shape (B, K) by the names in [`~trl_agentic.records.CREDIT_COLUMNS`]; NaN where there is none.
        """
        scales = self.turn_clip_scales(batch)
        scales = torch.ones_like(batch.rewards) if scales is None else scales.to(batch.rewards)
        credit = {"clip_low": 1 - self.epsilon_low * scales, "clip_high": 1 + self.epsilon_high * scales}
        return credit if batch.information_gain is None else credit | {"information_gain": batch.information_gain}

    def _max_context(self) -> int:
        limits = [
            self.args.max_context_length,
            getattr(self.model.config.get_text_config(), "max_position_embeddings", None),
        ]
        if self.use_vllm and self.vllm_mode == "server":
            limits += [served["max_model_len"] for served in served_models(server_urls(self.args))]
        elif self.use_vllm:
            limits.append(self.vllm_generation.llm.llm_engine.model_config.max_model_len)
        known = [int(limit) for limit in limits if limit is not None]
        if not known:
            raise ValueError("The model does not tell its context length: set `max_context_length`.")
        return min(known)

    def _connect_servers(self) -> None:
        """Checks what the servers serve, and joins those beside the first, which TRL joined, for weight transfer."""
        urls = server_urls(self.args)
        self._server_starts = [self._server_start(url) for url in urls]
        self._sending = Lock()
        if not self.accelerator.is_main_process:
            self._vllm_clients = [None] * len(urls)
            return
        config = self.model.config.get_text_config()
        check_served_model(urls, self.args, config, self._tokenizer, _name_of(self.model))
        self._vllm_clients = [self.vllm_generation.vllm_client]
        for i, url in enumerate(urls[1:], start=1):
            client = VLLMClient(url, group_port=self.args.vllm_group_port + i)
            client.init_communicator(device=self.accelerator.device)
            self._vllm_clients.append(client)

    def _prepare_tools(self) -> None:
        """What TRL does for its `tools`: a parser for tool calls, and a chat template that never rewrites a turn."""
        if not supports_tool_calling(self._tokenizer):
            raise ValueError("The chat template does not support tool calling, which a tool-style environment needs.")
        parsers = ("response_template", "response_schema")
        if all(getattr(self._tokenizer, name, None) is None for name in parsers):
            add_response_schema(self._tokenizer)
        if not is_chat_template_prefix_preserving(self._tokenizer):
            self.chat_template = get_training_chat_template(self._tokenizer)

    def _check_first_prompt(self, row: dict[str, Any]) -> None:
        """Fails now, rather than after the first generation, if the budgets cannot hold a first prompt."""
        environment = self.environment_pool.take([row], self._tokenizer, self.chat_template_kwargs)[0]
        tools = self.environment_pool.tools(row, self._tokenizer, self.chat_template_kwargs)
        task = self.environment_pool.reset_arguments(row)
        prompt = first_prompt(self.chat, self.context, task, environment.reset(**task) or "", tools)
        check_budgets(self.args, self.budgets, len(prompt.ids), renders=self.context.renderer is not None)

    # Stopping and going on

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in TRL. At SIGTERM or SIGINT it saves a checkpoint after the current step and exits with code 0."""
        self._last_loaded_step = -1  # the weights need not be those that vLLM has of this step
        with self._stop_on_signal.listening(self.args):
            try:
                return super().train(*args, **kwargs)
            finally:
                if self._ahead is not None:  # it ended before its time
                    self._ahead.give_up()
                    self._ahead = None
                self.environment_pool.free()

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._last_loaded_step = -1

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not self.args.save_only_model:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            between = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
            save_generation(folder, self._step, self._generation_shape, None if between else self._buffered_inputs)
        super()._save_checkpoint(model, trial)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        saved = load_generation(Path(checkpoint), self._generation_shape, self.accelerator.device)
        if saved is None:
            logger.warning(
                "%s holds no rollouts of this process: it was saved elsewhere, by another number of processes or with "
                "other batch sizes. The next step begins with new rollouts, so the run goes on, but not exactly as it "
                "would have.",
                checkpoint,
            )
            saved = self.state.global_step * self.args.gradient_accumulation_steps, None
        self._step, self._buffered_inputs = saved

    @property
    def _generation_shape(self) -> tuple[int, ...]:
        args = self.args
        return (
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            args.steps_per_generation,
            self.num_iterations,
        )

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and isinstance(self.train_dataset, Dataset):
            for _ in range(int(self.state.epoch or 0)):  # each epoch draws its order after those before
                next(iter(self._train_sampler))

    # Rollouts

    def rollout(
        self, rows: list[dict[str, Any]], temperature: float | None = None, seed: int = 0, batch_size: int = 64
    ) -> list[Trajectory]:
        """Plays tasks with the current policy, shared between the processes, with a progress bar.

        Args:
            rows: tasks, one rollout each.
            temperature: sampling temperature, `0` for greedy; `eval_temperature`, or else `temperature`, if `None`.
            seed: seed of the sampling.
            batch_size: rollouts at a time and process.

        Returns:
            The trajectories in the order of `rows`, on every process.

        Raises:
            RuntimeError: the model is to be sharded and is not yet (call this from `on_train_begin` of a callback, or
                after `train()`), or all rollouts failed.
        """
        if self._dist.is_fsdp and not self.accelerator._models:
            raise RuntimeError(
                "The model is sharded when training begins: before that there is nothing to roll out. Call `rollout` "
                "from a callback's `on_train_begin`, or after `train()`."
            )
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        own = list(enumerate(rows))[rank::world]
        rounds = -(-len(rows) // (world * batch_size))
        played: list[tuple[int, Trajectory]] = []
        was_training = self.model.training
        self.model.eval()
        with tqdm(total=len(own), desc="Rollouts", unit="rollout", disable=rank != 0) as bar:
            for start in range(0, rounds * batch_size, batch_size):
                part = own[start : start + batch_size]
                seeds = [derived_seed(self.args.seed, 2, seed, i) for i, _ in part]
                trajectories = self._play([row for _, row in part], seeds, temperature, on_done=bar.update)
                played += zip([i for i, _ in part], trajectories, strict=True)
        self.model.train(was_training)
        trajectories = [trajectory for _, trajectory in sorted(gather_object(played), key=lambda pair: pair[0])]
        _check_failures([trajectory.error for trajectory in trajectories], 1.0)
        return trajectories

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in TRL; every evaluation samples with the same seeds."""
        self._eval_rollouts = 0
        return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As in transformers; `eval_success`, by which the best checkpoint can be told, is `episode/success`."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        dataset = (args[0] if args else kwargs["dataloader"]).dataset
        if isinstance(dataset, Sized):  # with several processes the loader fills the last batches with rows of before
            del self._episodes["eval"][len(dataset) * self.num_generations_eval :]
        row = next(iter(dataset), None)
        if row is not None:
            self._keep_evaluation(metric_key_prefix, self._episodes["eval"], self.environment_pool.name(row))
        self._sum_up("eval")
        if "episode/success" in self._metrics["eval"]:
            output.metrics[f"{metric_key_prefix}_success"] = self._metrics["eval"]["episode/success"][0]
        return output

    def record_evaluation(self, name: str, trajectories: list[Trajectory], environment: str | None = None) -> None:
        """Keeps an evaluation for the model card, as `evaluate` does by itself.

        Args:
            name: heading of its column, such as `"before training"`.
            trajectories: as [`rollout`] returns them.
            environment: name of the environment in `environment_factory`, if that is a dictionary.
        """
        environment = self.environment_pool.name({"environment": environment})
        self._keep_evaluation(name, [summarize(trajectory) for trajectory in trajectories], environment)

    def _keep_evaluation(self, name: str, summaries: list[EpisodeSummary], environment: str | None) -> None:
        if any(summary.success is not None for summary in summaries):
            facts = self.environment_pool.facts(environment)
            self._evaluations.setdefault(name, {})[self.state.global_step] = Evaluation(name, facts, tuple(summaries))

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """As in TRL, and with the environment, the last evaluation of each kind, and the command of this run."""
        super().create_model_card(model_name, dataset_name, tags)
        if not self.is_world_process_zero():
            return
        best = self.state.best_global_step if self.args.load_best_model_at_end and not self.is_in_train else None
        evaluations = [steps[best if best in steps else max(steps)] for steps in self._evaluations.values()]
        policy = self.accelerator.unwrap_model(self.model)
        complete_card(
            Path(self.args.output_dir) / "README.md",
            self.hub_model_id or model_name or Path(self.args.output_dir).name,
            [self.environment_pool.facts(name) for name in self._trained_on],
            evaluations,
            self._evaluation_settings(),
            sys.argv,
            policy.config._name_or_path,
            is_peft_model(policy),
        )

    def _evaluation_settings(self) -> list[str]:
        """Arguments of `trl-agentic evaluate` that play as this run's evaluations do."""
        told: dict[str, Any] = {
            "max_turns": self.args.max_turns,
            "max_turn_tokens": self.args.max_turn_tokens,
            "temperature": self.temperature if self.args.eval_temperature is None else self.args.eval_temperature,
        }
        if self.args.top_p != 1.0:
            told["top_p"] = self.args.top_p
        if self.args.context == "window":
            told["history_length"] = self.args.history_length
        if self.args.chat_template_kwargs:
            told["chat_template_kwargs"] = json.dumps(self.args.chat_template_kwargs)
        return [word for name, value in told.items() for word in (f"--{name}", str(value))]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in TRL; metrics of episodes and of our loss are means over all since the last log, not means of means."""
        self._sum_up("train" if self.model.training else "eval")
        super().log(logs, start_time)

    def _sum_up(self, mode: str) -> None:
        for name, (total, tokens) in self._token_sums[mode].items():
            self._metrics[mode][name] = [total / max(tokens, 1.0)]
        self._token_sums[mode].clear()
        if mode == "train" and self._nonfinite_guard.skipped:
            self._metrics[mode]["update/skipped"] = [self._nonfinite_guard.skipped]
            self._nonfinite_guard.skipped = 0
        if self._episodes[mode]:
            for name, value in episode_metrics(self._episodes[mode]).items():
                self._metrics[mode][name] = [value]
            self._episodes[mode].clear()

    def _play(
        self,
        rows: list[dict[str, Any]],
        seeds: list[int],
        temperature: float | None = None,
        on_done: Callable[[int], object] | None = None,
        clock: RolloutClock | None = None,
        ask: Callable[[Engine, list[Trajectory]], None] | None = None,
    ) -> list[Trajectory]:
        if temperature is None and not self.model.training:
            temperature = self.args.eval_temperature
        temperature = self.temperature if temperature is None else temperature
        if self._ahead is not None:  # the servers get no weights before nobody samples with the last ones
            self._ahead.wait()
            self.accelerator.wait_for_everyone()
        environments = self.environment_pool.take(rows, self._tokenizer, self.chat_template_kwargs)
        episodes = self._episodes_of(rows, seeds, environments)
        with self._engine(temperature) as engine:
            trajectories = self._play_with(engine, episodes, on_done, clock)
            if ask is not None:
                ask(engine, trajectories)
        self._show_environments(environments)
        return trajectories

    def _episodes_of(
        self, rows: list[dict[str, Any]], seeds: list[int], environments: list[EnvironmentHandle]
    ) -> list[Episode]:
        episodes = []
        for environment, row, seed in zip(environments, rows, seeds, strict=True):
            tools = self.environment_pool.tools(row, self._tokenizer, self.chat_template_kwargs)
            episodes.append(
                Episode(
                    environment=environment,
                    task=self.environment_pool.reset_arguments(row),
                    seed=seed,
                    tools=tools,
                    observation_role="user" if tools is None else "tool",
                    raw_action=tools is not None,
                )
            )
        return episodes

    def _play_with(
        self,
        engine: Engine,
        episodes: list[Episode],
        on_done: Callable[[int], object] | None = None,
        clock: RolloutClock | None = None,
    ) -> list[Trajectory]:
        trajectories = play(episodes, engine, self.chat, self.budgets, on_done, clock, self.context)
        for episode, trajectory in zip(episodes, trajectories, strict=True):
            environment: Any = episode.environment
            if episode.tools is not None and trajectory.turns and trajectory.error is None:
                _add_final_reward(environment, trajectory)
            trajectory.retries = environment.retries
            if clock is not None:
                clock.env_saved += environment.seconds_saved
        return trajectories

    def _show_environments(self, environments: list[EnvironmentHandle]) -> None:
        """Hands the instances to TRL, which passes them to reward functions."""
        instances = [environment.instance or environment for environment in environments]
        self.environments = [e.instance if isinstance(e, ToolEnvironment) else e for e in instances]

    @contextmanager
    def _engine(self, temperature: float) -> Iterator[Engine]:
        """Whoever samples, with the current weights."""
        sampling = self._sampling(temperature)
        if self.use_vllm:
            with self._vllm_awake(), closing(self._vllm_engine(sampling)) as engine:
                yield engine
                if self.vllm_mode == "server":
                    self._check_servers()
            return
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            yield transformers_engine(
                model,
                self.eos_token_ids,
                self._tokenizer.pad_token_id,
                sampling,
                any_active=self._any_active if self._params_sharded else None,
                policy_step=self.state.global_step,
            )

    def _sampling(self, temperature: float) -> Sampling:
        return Sampling(temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty)

    @contextmanager
    def _vllm_awake(self) -> Iterator[None]:
        """vLLM with the current weights, which are sent once an optimizer step.

        In sleep mode vLLM gives up its memory in between, the weights with it, and gets them at every use.
        """
        sleeps = self.vllm_mode == "colocate" and self.args.vllm_enable_sleep_mode
        if sleeps or self.state.global_step != self._last_loaded_step:
            with profiling_context(self, "sync_weights"):
                self._send_weights()
            self._last_loaded_step = self.state.global_step
        if sleeps:
            self.vllm_generation.llm.wake_up(tags=["kv_cache"])
        try:
            yield
        finally:
            if sleeps:
                self.vllm_generation.llm.sleep(level=2)

    def _send_weights(self) -> None:
        if self.vllm_mode == "colocate":
            self.vllm_generation.sync_weights()
            return
        for i in reversed(range(len(self._vllm_clients))):  # TRL's own client comes last and stays
            self._send_weights_to(i)
        self.accelerator.wait_for_everyone()  # only the first process sends, and all go on to sample

    def _send_weights_to(self, i: int) -> None:
        """Sends the weights to a server, which may have been started anew: then it has to be joined again."""
        client, url = self._vllm_clients[i], server_urls(self.args)[i]
        known, self._server_starts[i] = self._server_starts[i], self._server_start(url)
        if client is not None and self._server_starts[i] != known:
            logger.warning("The vLLM server at %s has been started anew: the weights are sent to it again.", url)
            client.close_communicator()
            client.init_communicator(device=self.accelerator.device)
        self.vllm_generation.vllm_client = client
        self.vllm_generation.sync_weights()

    def _server_start(self, url: str) -> float:
        return server_start(url, self.args, _name_of(self.model))

    @torch.no_grad()
    def _welcome_back(self, url: str) -> None:
        """A server broke off a request and answers again: if it was started anew, it gets the weights."""
        i = server_urls(self.args).index(url)
        with self._sending:  # another server may come back at the same time
            if self._server_start(url) != self._server_starts[i]:
                self._send_weights_to(i)
                self.vllm_generation.vllm_client = self._vllm_clients[0]

    def _check_servers(self) -> None:
        """Fails if a server was started anew between two requests, and so sampled with other weights."""
        for url in server_urls(self.args):
            self._check_server(url)

    def _check_server(self, url: str) -> None:
        if self._server_start(url) != self._server_starts[server_urls(self.args).index(url)]:
            raise RuntimeError(
                f"The vLLM server at {url} was started anew during the rollouts, and has the weights of its "
                "checkpoint. Nothing was trained on what it sampled: go on from the last checkpoint "
                "(`resume_from_checkpoint`)."
            )

    def _vllm_engine(self, sampling: Sampling) -> VLLMServerEngine | VLLMColocateEngine:
        extra = dict(self.args.generation_kwargs or {})
        regex, step = self.args.vllm_structured_outputs_regex, self.state.global_step
        if self.vllm_mode == "server":
            if regex is not None:
                extra["structured_outputs"] = {"regex": regex}
            urls = server_urls(self.args)
            name = served_models(urls[:1])[0]["id"]
            # With several processes, sending weights is the work of all of them, which are busy with their rollouts;
            # and beside the training they are not those that sampled.
            may_send = self.accelerator.num_processes == 1 and not self.args.rollout_ahead
            on_return = self._welcome_back if may_send else self._check_server
            patience = self.args.vllm_server_timeout
            return VLLMServerEngine(
                urls, name, self.eos_token_ids, sampling, extra, step, patience=patience, on_return=on_return
            )
        structured = {"regex": regex} if regex is not None else extra.get("structured_outputs")
        if isinstance(structured, dict):
            from vllm.sampling_params import StructuredOutputsParams

            extra["structured_outputs"] = StructuredOutputsParams(**structured)
        group = self.vllm_generation.tp_group if self.vllm_tensor_parallel_size > 1 else None
        return VLLMColocateEngine(self.vllm_generation.llm, self.eos_token_ids, sampling, extra, step, group)

    @property
    def _params_sharded(self) -> bool:
        zero3 = self._dist.is_zero3 and not self.args.ds3_gather_for_generation
        return self.accelerator.num_processes > 1 and (self._dist.is_fsdp or zero3)

    def _any_active(self, here: bool) -> bool:
        """Whether any process has an active rollout; keeps them in step where sampling is a collective operation."""
        flag = torch.tensor(float(here), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum").item() > 0)

    # Of the next batch

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """As in transformers. What comes after these batches can be read before its time."""
        if not self.args.prefetch_resets and not self.args.rollout_ahead:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._lookahead.source is not epoch_iterator:
            self._lookahead = Lookahead(epoch_iterator)
        return super().get_batch_samples(self._lookahead, num_batches, device)

    def _begin_next(self, generation_batch: list[dict[str, Any]]) -> None:
        """Begins with the next rollouts what may be done beside the training on `generation_batch`.

        All processes have their rollouts by now, so that nobody samples while the weights are sent.
        """
        if not self.args.prefetch_resets and not self.args.rollout_ahead:
            return
        period = self.args.steps_per_generation * self.num_iterations
        distance = period - self._step % period
        if self._update_after(distance) >= self.state.max_steps:
            return
        rows = self._lookahead.after(generation_batch, distance)
        if rows is None:
            return
        environments = self.environment_pool.reserve(
            rows, self._tokenizer, self.chat_template_kwargs, reset=not self.args.rollout_ahead
        )
        if self.args.rollout_ahead:
            seeds = self._rollout_seeds("train", len(rows), distance)
            episodes = self._episodes_of(rows, seeds, environments)
            with self._vllm_awake():
                engine = self._vllm_engine(self._sampling(self.temperature))
            self._ahead = RolloutsAhead(rows, engine, partial(self._play_ahead, episodes))

    def _play_ahead(self, episodes: list[Episode], engine: Engine, clock: RolloutClock) -> list[Trajectory]:
        trajectories = self._play_with(engine, episodes, clock=clock)
        self.ask_engine(engine, trajectories)
        self._check_servers()
        return trajectories

    def _next_rollouts(self, mode: str, rows: list[dict[str, Any]]) -> tuple[list[Trajectory], RolloutClock]:
        """Rollouts of these rows, from the thread that they were begun in, or played now."""
        ahead = self._ahead
        if ahead is not None and ahead.rows is rows:
            self._ahead = None
            trajectories = ahead.take()
            self._show_environments(self.environment_pool.take(rows, self._tokenizer, self.chat_template_kwargs))
            return trajectories, ahead.clock
        clock, started = RolloutClock(), time.perf_counter()
        trajectories = self._play(rows, self._rollout_seeds(mode, len(rows)), clock=clock, ask=self.ask_engine)
        clock.seconds = time.perf_counter() - started
        return trajectories, clock

    def _update_after(self, steps: int) -> int:
        """Updates that will have been made `steps` accumulation steps from now."""
        every = self.args.gradient_accumulation_steps
        return self.state.global_step + (self._step % every + steps) // every

    # From rollouts to training rows

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        mode = "train" if self.model.training else "eval"
        trajectories, clock = self._next_rollouts(mode, inputs)
        if mode == "train":
            errors = gather_object([trajectory.error for trajectory in trajectories])
            _check_failures(errors, self.args.max_failed_rollouts)
            self._nonfinite_guard.hold(self._own_rows(len(inputs)).start, trajectories)
        self._add_reward_functions(inputs, trajectories)
        batch = self._global_batch(trajectories, self.information_gains(inputs, trajectories), mode)
        advantages, clip_scales = self.turn_advantages(batch), self.turn_clip_scales(batch)
        own = self._own_rows(len(inputs))
        self._log_rollouts(mode, trajectories, batch, advantages, clock)
        if mode == "train" and self._trajectory_log.is_due(self.state.global_step):
            credit = {**self.turn_credit(batch), "advantage": advantages}
            self._trajectory_log.hold(self.state.global_step, trajectories, credit, own.start, self.num_generations)
        return self._training_rows(mode, trajectories, advantages, clip_scales)

    def _own_rows(self, count: int) -> slice:
        """Where the `count` rollouts of this process stand in the global batch."""
        first = self.accelerator.process_index * count
        return slice(first, first + count)

    def _prepare_inputs(self, generation_batch: Any) -> list[dict[str, Tensor]]:
        """Micro-batches of the next accumulation step, or of a whole evaluation batch. Generates when TRL would."""
        if self._packs and not self._packing_is_checked:
            self._check_packing()
        if not self.model.training:
            rows = self._generate_and_score_completions(generation_batch)
            return self._micro_batches("eval", rows, list(range(len(rows["update"]))), steps=1)[0]
        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0 or self._buffered_inputs is None:
            rows = self._generate_and_score_completions(generation_batch)
            self._begin_next(generation_batch)
            self._buffered_inputs = self._accumulation_steps(rows)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _accumulation_steps(self, rows: dict[str, Tensor]) -> list[list[dict[str, Tensor]]]:
        """`steps_per_generation` lists of micro-batches."""
        steps = []
        for update in range(self._updates_per_generation):
            index = (rows["update"] == update).nonzero().flatten().tolist()
            steps += self._micro_batches(
                "train", rows, index, self.args.steps_per_generation // self._updates_per_generation
            )
        return steps

    @property
    def _updates_per_generation(self) -> int:
        """Optimizer steps that share a generation, each with rollouts of its own."""
        return self.args.steps_per_generation // math.gcd(
            self.args.steps_per_generation, self.args.gradient_accumulation_steps
        )

    def _micro_batches(
        self, mode: str, rows: dict[str, Tensor], index: list[int], steps: int
    ) -> list[list[dict[str, Tensor]]]:
        """The rows of `index`, cut into micro-batches for `steps` steps; equally many on every process."""
        multiple = self.pad_to_multiple_of or 1
        tokens = rows["prompt_mask"].sum(1) + rows["completion_mask"].sum(1)
        lengths = [-(-length // multiple) * multiple for length in tokens.tolist()]
        budget = self.args.max_tokens_per_micro_batch
        if budget is None:
            size = self.args.per_device_train_batch_size if mode == "train" else self.args.per_device_eval_batch_size
            parts = cut_by_rows(sorted(index, key=lambda row: -lengths[row]) if self._may_sort else index, size)
        else:
            self._check_longest_row(max(lengths), budget)
            parts = cut_by_tokens(index, lengths, budget, self._packs)
        counts = self.accelerator.gather(torch.tensor([len(parts)], device=self.accelerator.device))
        count = max(steps, int(counts.max()))
        batches = [take_rows(rows, part, multiple) for part in split_to(parts, lengths, count, self._packs)]
        self._add_frozen_logps(mode, batches)
        cut = [batches[step * count // steps : (step + 1) * count // steps] for step in range(steps)]
        for step in cut:
            for batch in step:
                batch["num_micro_batches"] = torch.tensor(len(step), device=self.accelerator.device)
        return cut

    def _check_packing(self) -> None:
        """Before the first rollouts: by then parameters are where they will be, sharded or not."""

        def last_logps(rows: list[list[int]]) -> Tensor:
            ids = torch.tensor(rows, device=self.accelerator.device)
            return self._packed_logps(self.model, ids, torch.ones_like(ids), keep=4)[0][-1]

        was_training = self.model.training
        self.model.eval()  # no dropout
        check_rows_are_apart(last_logps)
        self.model.train(was_training)
        self._packing_is_checked = True

    @property
    def _may_sort(self) -> bool:
        """Whether rows of like length may share a micro-batch: not if the loss has a mean over each micro-batch."""
        entropy = self.args.entropy_coef != 0.0 or self.args.use_adaptive_entropy or self.args.top_entropy_quantile < 1
        return self.loss_type != "bnpo" and not entropy and not self.aux_loss_enabled

    def _check_longest_row(self, longest: int, budget: int) -> None:
        """Fails on every process if a row of any of them is longer than a micro-batch may be."""
        here = torch.tensor([longest], device=self.accelerator.device)
        longest = int(self.accelerator.gather(here).max())
        if longest > budget:
            raise ValueError(
                f"`max_tokens_per_micro_batch` is {budget}, but a training row has {longest} tokens. Set it to at "
                f"least {longest}, or to {self.budgets.max_context}, the longest that the context allows; or lower "
                f"`max_completion_length` ({self.args.max_completion_length})."
            )

    def _rollout_seeds(self, mode: str, count: int, ahead: int = 0) -> list[int]:
        """A seed for each local rollout, by its place in the global batch: the same however processes share it, and
        the same if they begin so many accumulation steps ahead of their time."""
        first = self.accelerator.process_index * count
        if mode == "eval":
            first += self._eval_rollouts
            self._eval_rollouts += count * self.accelerator.num_processes
            return [derived_seed(self.args.seed, 1, first + i) for i in range(count)]
        update, within = self._update_after(ahead), (self._step + ahead) % self.args.gradient_accumulation_steps
        return [derived_seed(self.args.seed, 0, update, within, first + i) for i in range(count)]

    def _add_reward_functions(self, inputs: list[dict[str, Any]], trajectories: list[Trajectory]) -> None:
        """Scores finished rollouts; what functions of the user give is added to the last turn's reward."""
        mode = "train" if self.model.training else "eval"
        prompts = [prompt_messages(t) for t in trajectories]
        roles = ["tool" if self.environment_pool.is_tool_style(row) else "user" for row in inputs]
        completions = [completion_messages(t, role) for t, role in zip(trajectories, roles, strict=True)]
        ids = [[i for turn in t.turns for i in turn.action_ids] for t in trajectories]
        rows = [{**row, "trajectory": t} for row, t in zip(inputs, trajectories, strict=True)]
        scores = self._calculate_rewards(rows, prompts, completions, ids)
        failed = torch.tensor(gather_object([t.error is not None or not t.turns for t in trajectories]))
        scores[failed.to(scores.device)] = torch.nan
        weighted = scores * self.reward_weights.to(scores.device)
        for i, name in enumerate(self.reward_func_names):
            self._metrics[mode][f"rewards/{name}/mean"].append(torch.nanmean(scores[:, i]).item())
        total = weighted[~failed.to(weighted.device)].nansum(dim=1)
        self._metrics[mode]["reward"].append(total.mean().item())
        self._metrics[mode]["reward_std"].append(total.std(correction=0).item())
        own = self._own_rows(len(inputs))
        for trajectory, extra in zip(trajectories, weighted[own, :-1].nansum(dim=1).tolist(), strict=True):
            if trajectory.turns:
                trajectory.turns[-1].reward += extra
        self._logs["prompt"].extend(gather_object(prompts))
        self._logs["completion"].extend(gather_object(completions))
        for i, name in enumerate(self.reward_func_names):
            self._logs["rewards"][name].extend(scores[:, i].tolist())
        self._flush_pending_logs(mode, len(prompts))

    def _flush_pending_logs(self, mode: str, count: int) -> None:
        """Columns and metrics that reward functions logged through `log_extra` and `log_metric`."""
        for column in sorted(set(gather_object(list(self._pending_extra_logs)))):
            values = self._pending_extra_logs.get(column, [None] * count)
            self._logs["extra"][column].extend(gather_object(values))
        self._pending_extra_logs.clear()
        for name in sorted(set(gather_object(list(self._pending_metrics)))):
            values = gather_object(self._pending_metrics.get(name, []))
            self._metrics[mode][name].append(sum(values) / max(len(values), 1))
        self._pending_metrics.clear()

    def _global_batch(self, trajectories: list[Trajectory], gains: list[list[float]] | None, mode: str) -> TurnBatch:
        """Turns of all processes. A failed rollout has none, so that it enters no statistic."""
        num_generations = self.num_generations if mode == "train" else self.num_generations_eval
        first = self.accelerator.process_index * len(trajectories)
        records = []
        for i, trajectory in enumerate(trajectories):
            known = trajectory if trajectory.stop_reason is not StopReason.ERROR else Trajectory(task=trajectory.task)
            invalid = [turn.info.get("is_action_valid") is False for turn in known.turns]
            penalties = [self.args.invalid_action_penalty * flag for flag in invalid]
            gain = None if gains is None else gains[i] if known is trajectory else []
            records.append(turn_record(known, (first + i) // num_generations, gain, penalties=penalties))
        batch = turn_batch(gather_object(records))
        if self.args.penalty_in_return and batch.penalties is not None:
            return replace(batch, rewards=batch.rewards - batch.penalties, penalties=None)
        return batch

    def _training_rows(
        self, mode: str, trajectories: list[Trajectory], advantages: Tensor, clip_scales: Tensor | None
    ) -> dict[str, Tensor]:
        """Padded tensors of the rows that this process trains on, in the order drawn; advantages are the batch's."""
        device = self.accelerator.device
        first = self._own_rows(len(trajectories)).start
        has_logprobs, mask_truncated = self.use_vllm, self.args.mask_truncated_completions
        filler = self._tokenizer.pad_token_id
        of_rollouts = [
            training_rows(trajectory, i, filler, mask_truncated, has_logprobs)
            for i, trajectory in enumerate(trajectories, start=first)
        ]
        sampled = [sum(turn >= 0 for row in rows for turn in row.turn_ids) for rows in of_rollouts]
        rollout_tokens = torch.tensor(gather_object(sampled), device=device)
        is_training, count = mode == "train", len(trajectories)
        places = gather_object(draw_places(count) if is_training else list(range(count)))
        update_of = [place * (self._updates_per_generation if is_training else 1) // count for place in places]
        rows = [row for rows in of_rollouts for row in rows]
        if is_training and self._balances:
            rows = balance(rows, update_of)
        rows.sort(key=lambda row: places[row.rollout])
        output = row_tensors(rows, filler, self.pad_to_multiple_of, device)
        index, turn_ids, tool_mask = output["rollout_ids"], output["turn_ids"], output["tool_mask"]
        output |= {
            "update": torch.tensor(update_of, device=device)[index],
            "rollout_tokens": rollout_tokens[index],
            "advantages": spread_to_tokens(advantages.to(device, torch.float32)[index], turn_ids),
            "num_rollouts_in_batch": torch.tensor(count * self.accelerator.num_processes, device=device),
            "num_items_in_batch": self.accelerator.gather(tool_mask.sum()).sum(),
            "num_turns_in_batch": self.accelerator.gather(count_turns(tool_mask, turn_ids)).sum(),
        }
        if clip_scales is not None:
            output["clip_scales"] = spread_to_tokens(clip_scales.to(device, torch.float32)[index], turn_ids, 1.0)
        tokens = (output["prompt_mask"].sum() + output["completion_mask"].sum()).reshape(1)
        if is_training:
            self.state.num_input_tokens_seen += int(self.accelerator.gather(tokens).sum())
        self._metrics[mode]["num_tokens"] = [self.state.num_input_tokens_seen]
        return output

    @property
    def _balances(self) -> bool:
        """Whether rows move between processes. Without a budget of tokens, work is counted in rows."""
        return (
            self.accelerator.num_processes > 1 and self.args.max_tokens_per_micro_batch is not None and self._may_sort
        )

    def _add_frozen_logps(self, mode: str, batches: list[dict[str, Tensor]]) -> None:
        """Log-probabilities that no gradient flows through: those of the old and of the reference policy."""
        correct = self.use_vllm and self.vllm_importance_sampling_correction and mode == "train"
        # If every optimizer step follows its own generation, the old policy is the current one.
        stale = self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations) != 0
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            if stale or correct:
                for batch in batches:
                    batch["old_per_token_logps"] = self._token_logps(self.model, batch)[0]
            if self.beta != 0.0:
                with self._reference_model() as reference:
                    for batch in batches:
                        batch["ref_per_token_logps"] = self._token_logps(reference, batch)[0]
        if self.use_vllm and mode == "eval":  # evaluation may sample at another temperature: nothing to correct
            for batch in batches:
                batch["importance_sampling_ratio"] = torch.ones_like(batch["tool_mask"], dtype=torch.float32)
        if correct and "sampling_per_token_logps" in batches[0]:
            self._add_engine_correction(mode, batches)

    def _token_logps(self, model: Any, batch: dict[str, Tensor], **options: bool) -> tuple[Tensor, Any, Any]:
        """Log-probability of each completion token (n, c), and what `options` of TRL's method ask for beside it."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        keep = batch["completion_ids"].size(1)
        return self._get_per_token_logps_and_entropies(model, ids, mask, keep, **options)

    @contextmanager
    def _reference_model(self) -> Iterator[Any]:
        """The reference model; for an adapter, the policy with its initial adapter or without one, as in TRL."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        policy = self.accelerator.unwrap_model(self.model)
        with use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None):
            yield self.model

    def _add_engine_correction(self, mode: str, batches: list[dict[str, Tensor]]) -> None:
        """Weight of each token for the mismatch between the engine and the model."""
        level, form = self.vllm_importance_sampling_mode.split("_")
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        largest, total, tokens = 0.0, 0.0, 0.0
        for batch in batches:
            mask = batch["tool_mask"].bool()
            gap = batch["old_per_token_logps"] - batch["sampling_per_token_logps"]
            weight = engine_correction(gap, mask, batch["turn_ids"], level, form, low, high)
            batch["importance_sampling_ratio"] = weight
            largest = max(largest, torch.where(mask, gap, 0.0).nan_to_num().abs().max().item())
            total, tokens = total + (weight * mask).sum().item(), tokens + mask.sum().item()
        stats = self.accelerator.gather(torch.tensor([[largest, total, tokens]], device=self.accelerator.device))
        self._metrics[mode]["sampling/sampling_logp_difference/max"].append(stats[:, 0].max().item())
        mean = (stats[:, 1].sum() / stats[:, 2].sum().clamp(min=1)).item()
        self._metrics[mode]["sampling/importance_sampling_ratio/mean"].append(mean)

    # Loss

    def compute_loss(
        self,
        model: Any,
        inputs: list[dict[str, Tensor]],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Loss of an accumulation step. All micro-batches but the last are propagated back here, one at a time."""
        *others, last = inputs
        before = torch.zeros((), device=self.accelerator.device)
        for batch in others:
            with self._no_update(model):
                loss = super().compute_loss(model, batch, return_outputs)
                if loss.requires_grad:
                    scaled = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}  # as transformers does
                    self.accelerator.backward(loss, **scaled)
            before += loss.detach()
        return super().compute_loss(model, last, return_outputs) + before

    @contextmanager
    def _no_update(self, model: Any) -> Iterator[None]:
        """A backward pass whose gradients stay here: neither an exchange nor an optimizer step follows it."""
        synced = self.accelerator.sync_gradients
        self.accelerator.sync_gradients = False  # where DeepSpeed sees it, it takes its step
        try:
            # Gradients that were not exchanged are not sharded either: with FSDP it is better to exchange them.
            with nullcontext() if self._dist.is_fsdp else self.accelerator.no_sync(model):
                yield
        finally:
            self.accelerator.sync_gradients = synced

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        self._last_logps = None
        loss = self._turn_loss(model, inputs) if self.args.uses_turn_loss else super()._compute_loss(model, inputs)
        if self.model.training:
            self._nonfinite_guard.note(loss, inputs, self._last_logps)
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any, Any]:
        compute = self._packed_logps if self._packs else super()._get_per_token_logps_and_entropies
        logps, entropies, aux_loss = compute(*args, **kwargs)
        self._last_logps = logps.detach()
        return logps, entropies, aux_loss

    def _packed_logps(
        self,
        model: Any,
        ids: Tensor,
        mask: Tensor,
        keep: int,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: None,
    ) -> tuple[Tensor, Any, Any]:
        """What TRL's method computes, and in the same layout, from one row that has them all.

        Without a mask and a cache, attention takes positions that begin anew for the beginning of a row.
        """
        packed = pack_rows(ids, mask, keep, self.pad_to_multiple_of or 1)
        router = {"output_router_logits": True} if compute_aux_loss else {}
        with self.accelerator.autocast():
            outputs = model(
                input_ids=packed.input_ids, position_ids=packed.position_ids, shift_labels=packed.labels,
                fused_lm_head=True, **router,
            )  # fmt: skip
        entropies = packed.unpack(outputs.entropy)[:, -keep:] if compute_entropy else None
        aux_loss = outputs.aux_loss if compute_aux_loss else None
        return packed.unpack(outputs.log_probs)[:, -keep:], entropies, aux_loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        self._nonfinite_guard.grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self._nonfinite_guard.grad_norm

    def _turn_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        mask, turn_ids = inputs["tool_mask"], inputs["turn_ids"]
        logps, entropies, aux_loss = self._token_logps(
            model, inputs, compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
        )
        old_logps = inputs.get("old_per_token_logps", logps.detach())
        ratio = importance_ratio(logps - old_logps, mask, turn_ids, level=self.importance_sampling_level)
        advantages, scales = inputs["advantages"], inputs.get("clip_scales", 1.0)
        per_token_loss, is_clipped = clipped_surrogate(
            ratio, advantages, self.epsilon_low * scales, self.epsilon_high * scales
        )
        if "importance_sampling_ratio" in inputs:
            per_token_loss = per_token_loss * inputs["importance_sampling_ratio"]
        to_log = {
            "entropy": entropies,
            "clip_ratio/low_mean": (is_clipped & (advantages < 0)).float(),
            "clip_ratio/high_mean": (is_clipped & (advantages > 0)).float(),
            "clip_ratio/region_mean": is_clipped.float(),
        }
        if self.beta != 0.0:
            log_ref = inputs["ref_per_token_logps"] - logps
            per_token_kl = torch.exp(log_ref) - log_ref - 1
            if self.args.use_bias_correction_kl:
                per_token_kl = per_token_kl * ratio
            per_token_loss = per_token_loss + self.beta * per_token_kl
            to_log["kl"] = per_token_kl
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            self._trajectory_log.note_ratios(inputs["rollout_ids"], turn_ids, ratio, is_clipped)
        loss = self._aggregate(per_token_loss, inputs, mode)
        if self.aux_loss_enabled:
            passes = inputs["num_micro_batches"] * (self.current_gradient_accumulation_steps if mode == "train" else 1)
            loss = loss + self.router_aux_loss_coef * aux_loss / passes
        self._log_token_means(mode, to_log, mask)
        return loss

    def _aggregate(self, per_token_loss: Tensor, inputs: dict[str, Tensor], mode: str) -> Tensor:
        """Mean over the accumulation window, as DDP's mean over processes wants it: each adds its share of the sum."""
        level, normalizer = {
            "grpo": ("rollout", "num_rollouts_in_batch"),
            "turn": ("turn", "num_turns_in_batch"),
            "dapo": ("token", "num_items_in_batch"),
        }[self.loss_type]
        share = self.accelerator.num_processes
        if mode == "train":  # the number is that of the generation batch, which may serve several optimizer steps
            share = share * self.args.steps_per_generation / self.current_gradient_accumulation_steps
        return share * aggregate(
            per_token_loss,
            inputs["tool_mask"],
            level,
            inputs["turn_ids"],
            rollout_lengths=inputs["rollout_tokens"],
            normalizer=inputs[normalizer],
        )

    # Metrics

    def _log_token_means(self, mode: str, values: dict[str, Tensor], mask: Tensor) -> None:
        """Sums over the sampled tokens of all processes, in one reduction; `log` makes means of them."""
        sums = [(value.detach() * mask).sum().float() for value in values.values()]
        totals = self.accelerator.reduce(torch.stack([*sums, mask.sum().float()]), reduction="sum").tolist()
        for name, total in zip(values, totals[:-1], strict=True):
            known, tokens = self._token_sums[mode].get(name, (0.0, 0.0))
            self._token_sums[mode][name] = known + total, tokens + totals[-1]

    def _log_rollouts(
        self,
        mode: str,
        trajectories: list[Trajectory],
        batch: TurnBatch,
        advantages: Tensor,
        clock: RolloutClock,
    ) -> None:
        self._episodes[mode] += gather_object([summarize(trajectory) for trajectory in trajectories])
        metrics = self.turn_metrics(batch, advantages) | rollout_metrics(trajectories, clock)
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        episode_advantages = (advantages * batch.turn_mask).sum(1) / batch.turn_mask.sum(1).clamp(min=1)
        self._logs["advantages"].extend(episode_advantages.tolist())
        for trajectory in trajectories:
            if trajectory.error is not None:
                logger.warning("A rollout failed and is left out of the update:\n%s", trajectory.error)


def _name_of(model: Any) -> str:
    """The name or path that a model was loaded from."""
    return model if isinstance(model, str) else model.config._name_or_path


def _add_final_reward(environment: EnvironmentHandle, trajectory: Trajectory) -> None:
    """Pays a tool-style environment's own reward at the last turn; an error there costs this rollout alone."""
    try:
        reward = environment.reward()
        if not math.isfinite(reward):
            raise ValueError(f"`get_reward` returned {reward}: rewards must be finite numbers.")
        trajectory.turns[-1].reward += reward
    except Exception:
        trajectory.error = traceback.format_exc()
        trajectory.stop_reason = StopReason.ERROR


def _check_failures(errors: list[str | None], max_share: float) -> None:
    """Some failed rollouts cost themselves alone; if most fail, something is wrong that waiting will not mend."""
    failed = [error for error in errors if error is not None]
    if not failed or (len(failed) < len(errors) and len(failed) <= max_share * len(errors)):
        return
    if len(failed) == len(errors):
        raise RuntimeError(f"All {len(errors)} rollouts failed. The first error:\n{failed[0]}")
    raise RuntimeError(
        f"{len(failed)} of {len(errors)} rollouts failed, more than `max_failed_rollouts` ({max_share:g}) allows. The "
        f"first error:\n{failed[0]}"
    )
