"""The multi-turn trainer: it assembles the collaborators and overrides TRL.

The only module that touches TRL's private methods; a contract test pins the ones it relies on.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context
from trl.models.utils import disable_gradient_checkpointing, unwrap_model_for_generation
from trl.trainer.utils import use_adapter

from trl_agentic.environments.pool import EnvironmentPool, Factory
from trl_agentic.rollout.chat import ChatRenderer
from trl_agentic.rollout.engines import Engine
from trl_agentic.rollout.prompts import PromptPolicy, PromptRenderer
from trl_agentic.rollout.runner import RolloutRunner
from trl_agentic.trainers import engines, validation
from trl_agentic.trainers.accumulation import LocalBackward
from trl_agentic.trainers.batches import BatchBuilder, MicroBatch, TurnCredit
from trl_agentic.trainers.callbacks.nonfinite import NonFiniteGuard
from trl_agentic.trainers.callbacks.stop_on_signal import StopOnSignal
from trl_agentic.trainers.callbacks.trajectory_log import TrajectoryLog
from trl_agentic.trainers.checkpoints import check_output_dir, checkpoint_bytes, resume_generation, save_generation
from trl_agentic.trainers.config import AgenticConfig
from trl_agentic.trainers.evaluations import EvaluationHistory
from trl_agentic.trainers.generation import GenerationPipeline, Position
from trl_agentic.trainers.logprobs import PolicyLogprobs, add_importance_correction, resolve_packing
from trl_agentic.trainers.objective import PolicyObjective, gradient_share
from trl_agentic.trainers.rewards import RewardScorer
from trl_agentic.trainers.tracking import EpisodeTracker, advantage_metrics, summarize
from trl_agentic.trainers.vllm_preflight import prepare_vllm
from trl_agentic.types import Trajectory, TurnBatch


__all__ = ["AgenticConfig", "AgenticTrainer", "TurnCredit"]


class AgenticTrainer(GRPOTrainer):
    """
    Trainer for policies that act in environments over many turns.

    [`~trl.GRPOTrainer`] with three changes: generation is a loop between the policy and one environment per rollout,
    every turn has its own advantage ([`turn_advantages`], which a subclass defines), and ratio and clip range may be
    those of a turn. Everything else, from data loading to checkpoints and the Hub, is TRL's.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or `peft.PeftModel`):
            The policy. Its tokenizer needs a chat template.
        reward_funcs (`Callable` or `list`, *optional*):
            Reward functions as in TRL, scored on finished rollouts and added to the reward of the last turn. They also
            get `trajectory`, a list of [`~trl_agentic.types.Trajectory`]. The environments' own rewards always count.
        args ([`AgenticConfig`]):
            Arguments of the trainer.
        train_dataset (`Dataset` or `IterableDataset`, *optional*):
            One row per task, passed to `reset`; `prompt` (messages) is optional and starts the conversation. If
            `None`, the environment's own `tasks()`.
        eval_dataset, processing_class, reward_processing_classes, callbacks, optimizers, ...:
            As in [`~trl.GRPOTrainer`].
        environment_factory (`Callable` or `dict[str, Callable]`):
            Makes an environment ([`~trl_agentic.environments.Environment`], or a TRL tool-style class). With a
            dictionary, a row's `environment` selects one.
        prompt_renderer (`Callable[[PromptView], list[dict]]`, *optional*):
            Makes the messages of every prompt from a [`~trl_agentic.types.PromptView`], with `context="window"`. If
            `None`, a prompt is the conversation itself without its oldest turns.

    Raises:
        ValueError: the arguments, the tasks, the chat template or the budgets cannot work.
    """

    _tag_names = ["trl", "trl-agentic"]
    _name = "Agentic"
    _paper: dict[str, str] = {}
    chat_template: str | None  # of TRL
    _buffered_inputs: list[list[MicroBatch]] | None  # of TRL: micro-batches until the next generation

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
        prompt_renderer: PromptRenderer | None = None,
    ):
        args = validation.checked_arguments(args, processing_class, prompt_renderer)
        validation.check_clip_scales(args, type(self), AgenticTrainer)
        pool = self.environment_pool = EnvironmentPool(environment_factory, args.worker_options)
        if train_dataset is None:
            train_dataset = validation.task_dataset(pool.tasks())
        first_rows = validation.checked_rows(train_dataset, args, pool)
        functions, weights = validation.reward_functions(reward_funcs, args)
        prepare_vllm(args, model)
        user_weights, args.reward_weights = args.reward_weights, None
        super().__init__(
            model=model, reward_funcs=functions, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset,
            processing_class=processing_class, callbacks=callbacks, optimizers=optimizers,
            reward_processing_classes=validation.processing_classes(reward_processing_classes),
            quantization_config=quantization_config, peft_config=peft_config,
        )  # fmt: skip
        args.reward_weights = user_weights
        self.reward_weights = torch.tensor(weights, dtype=torch.float32)
        names = list(dict.fromkeys(pool.name(row) for row in first_rows))
        self._assemble(PromptPolicy(args.visible_history, prompt_renderer), names)
        length = self.runner.first_prompt_length(first_rows[0])
        validation.check_budgets(args, self.budgets, length, renders=prompt_renderer is not None)
        for table in (train_dataset, *(eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset])):
            if table is not None:
                self.check_tasks(table if isinstance(table, Dataset) else itertools.islice(iter(table), 64))

    def _assemble(self, policy: PromptPolicy, trained_on: list[str | None]) -> None:
        """Builds the collaborators on top of TRL's trainer."""
        args, pool, text_config = self.args, self.environment_pool, self.model.config.get_text_config()
        if pool.uses_tools:
            self.chat_template = validation.tool_chat_template(self._tokenizer) or self.chat_template
        pool.use_chat(self._tokenizer, self.chat_template_kwargs)
        weakref.finalize(self, pool.close)
        sharded = self._dist.is_fsdp or (self._dist.is_zero3 and not args.ds3_gather_for_generation)
        vllm, profile = self.vllm_generation if self.use_vllm else None, partial(profiling_context, self)
        source = engines.engine_source(
            args, self.model, self._tokenizer, self.eos_token_ids, lambda: self.state.global_step, self.accelerator,
            self._model_for_generation, sharded, vllm, profile,
        )  # fmt: skip
        self.chat = ChatRenderer(self._tokenizer, self.eos_token_ids, self.chat_template, self.chat_template_kwargs)
        if pool.uses_tools:
            self.chat.observation_ids(["probe"], ended=True, role="tool")
        self.budgets = engines.rollout_budgets(args, text_config, vllm)
        self.runner = RolloutRunner(pool, self.chat, self.budgets, policy)
        self.tracker = EpisodeTracker(self._metrics, self._logs, self._pending_extra_logs, self._pending_metrics)
        rewards = RewardScorer(self._calculate_rewards, self.reward_func_names, self.reward_weights, self.tracker)
        forward, multiple = super()._get_per_token_logps_and_entropies, self.pad_to_multiple_of or 1
        packs = resolve_packing(args.pack_micro_batches, text_config._attn_implementation)
        self.logprobs = PolicyLogprobs(forward, packs, multiple, lambda: self.accelerator.autocast())
        self.objective = PolicyObjective(
            self.loss_type, self.importance_sampling_level, self.epsilon_low, self.epsilon_high, self.beta,
            args.use_bias_correction_kl,
        )  # fmt: skip
        may_sort = args.is_sum_over_sequences and not self.aux_loss_enabled
        batches = BatchBuilder(
            args, self._tokenizer.pad_token_id, packs, self.use_vllm, may_sort, self.budgets.max_context
        )
        self.evaluations = EvaluationHistory(args, pool, trained_on)
        self.local_backward = LocalBackward(self.accelerator, self._dist.is_fsdp, self.is_deepspeed_enabled)
        if args.should_save and args.save_strategy != "no":
            check_output_dir(args.output_dir, checkpoint_bytes(self.model, args.save_only_model))
        validation.check_nonfinite_update(args, self.is_deepspeed_enabled)
        own_gradients = self.accelerator.scaler is None and not self.is_deepspeed_enabled
        self._nonfinite_guard = NonFiniteGuard(args.nonfinite_update, gradients=own_gradients)
        self._stop_on_signal = StopOnSignal()
        self._trajectory_log = TrajectoryLog(Path(args.output_dir) / "trajectories", args.save_trajectories_steps)
        for callback in (self._nonfinite_guard, self._stop_on_signal, self._trajectory_log):
            self.add_callback(callback)

        def position() -> Position:
            return Position(self._step, self.state.global_step, self.state.max_steps, self.model.training)

        self.generation = GenerationPipeline(
            args, self, pool, self.runner, source, rewards, self.tracker, batches, self.objective,
            self._trajectory_log, self._nonfinite_guard, partial(setattr, self, "environments"), position,
        )  # fmt: skip

    @contextmanager
    def _model_for_generation(self) -> Iterator[Any]:
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            yield model

    # Hooks of algorithms

    def check_tasks(self, rows: Iterable[dict[str, Any]]) -> None:
        """Raises a `ValueError` if the algorithm cannot work on one of the rows (of a stream, the first ones)."""

    def ask_engine(self, engine: Engine, trajectories: list[Trajectory]) -> list[Trajectory]:
        """Completes rollouts while the inference engine still has their weights and contexts. Default: no change.

        With `max_staleness`, this runs in a thread of the rollouts, where collective operations are not allowed.

        Returns:
            The trajectories of this process in the same order; changed ones are copies.
        """
        return trajectories

    def information_gains(
        self, rows: list[dict[str, Any]], trajectories: list[Trajectory]
    ) -> list[list[float]] | None:
        """Information gain of each turn, for algorithms that read `TurnBatch.information_gain`.

        Called on every process after the rollouts, with the weights that sampled.

        Returns:
            A value for each turn of each of this process's rollouts, NaN for a turn without one; by default `None`.
        """
        return None

    def turn_advantages(self, batch: TurnBatch) -> Tensor:
        """Credit assignment: an advantage for each turn of the global batch.

        Args:
            batch ([`~trl_agentic.types.TurnBatch`]): turns of the rollouts of all processes.

        Returns:
            `Tensor` of shape (B, K), 0 where `batch.turn_mask` is `False`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `turn_advantages`, its credit assignment.")

    def turn_clip_scales(self, batch: TurnBatch) -> Tensor | None:
        """Factors (B, K) on the clip range of each turn, not negative; `None`, the default, for one clip range."""
        return None

    def turn_metrics(self, batch: TurnBatch, credit: TurnCredit) -> dict[str, float]:
        """Metrics of a batch of turns and their credit."""
        return advantage_metrics(credit.advantages[batch.turn_mask])

    def turn_diagnostics(self, batch: TurnBatch) -> dict[str, Tensor]:
        """Further columns (B, K) of saved trajectories, of [`~trl_agentic.records.CREDIT_COLUMNS`]; NaN for none."""
        return {}

    # Training, evaluation and what they leave

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in TRL. At SIGTERM or SIGINT it saves a checkpoint after the current step and exits with code 0."""
        self.generation.engines.invalidate()  # a checkpoint may have been loaded
        with self._stop_on_signal.listening(self.args):
            try:
                return super().train(*args, **kwargs)
            finally:
                self.generation.prefetcher.cancel()
                self.environment_pool.release()

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.generation.engines.invalidate()

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As in transformers, with the metric `eval_success` (`episode/success`), which can choose the best model.

        Every evaluation samples with the same seeds.
        """
        self.generation.start_evaluation()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        dataset = (args[0] if args else kwargs["dataloader"]).dataset
        count = len(dataset) * self.num_generations_eval if isinstance(dataset, Sized) else None
        summaries, row = self.tracker.evaluated_episodes(count), next(iter(dataset), None)
        if row is not None:
            self.evaluations.record(metric_key_prefix, self.state.global_step, row, summaries)
        metrics = self.tracker.summarise("eval")
        if "episode/success" in metrics:
            output.metrics[f"{metric_key_prefix}_success"] = metrics["episode/success"][0]
        return output

    def record_evaluation(self, name: str, trajectories: list[Trajectory], environment: str | None = None) -> None:
        """Records an evaluation for the model card, as `evaluate` does.

        Args:
            name: heading of its column, such as `"before training"`.
            trajectories: as [`rollout`] returns them.
            environment: name of the environment in `environment_factory`, if that is a dictionary.
        """
        summaries = [summarize(trajectory) for trajectory in trajectories]
        self.evaluations.record(name, self.state.global_step, {"environment": environment}, summaries)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """As in TRL, with the environments, the last evaluation of each kind, and the command of this run."""
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            best = self.state.best_global_step if self.args.load_best_model_at_end and not self.is_in_train else None
            name = self.hub_model_id or model_name or Path(self.args.output_dir).name
            self.evaluations.complete_card(name, self.accelerator.unwrap_model(self.model), best)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in TRL; metrics of episodes and tokens are means over everything since the last log."""
        mode = "train" if self.model.training else "eval"
        self.tracker.summarise(mode)
        if mode == "train" and (skipped := self._nonfinite_guard.take_skipped()):
            self._metrics[mode]["update/skipped"] = [skipped]
        super().log(logs, start_time)

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not self.args.save_only_model:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            between = self._step % self.generation.steps_between_generations == 0
            save_generation(folder, self._step, self.generation.shape, None if between else self._buffered_inputs)
        super()._save_checkpoint(model, trial)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        resumed = self.state.global_step * self.args.gradient_accumulation_steps, None
        self._step, self._buffered_inputs = resume_generation(
            Path(checkpoint), self.generation.shape, self.accelerator.device, resumed
        )

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and isinstance(self.train_dataset, Dataset):
            for _ in range(int(self.state.epoch or 0)):  # each epoch draws its order after those before
                next(iter(self._train_sampler))

    # Generation and loss

    def rollout(
        self, rows: list[dict[str, Any]], temperature: float | None = None, seed: int = 0, batch_size: int = 64
    ) -> list[Trajectory]:
        """Plays tasks with the current policy, shared between the processes, with a progress bar.

        Args:
            rows: tasks, one rollout each.
            temperature: sampling temperature, `0` for greedy; `eval_temperature`, or else `temperature`, if `None`.
            seed: seed of the sampling.
            batch_size: number of rollouts at the same time, per process.

        Returns:
            The trajectories in the order of `rows`, on every process.

        Raises:
            RuntimeError: the model will be sharded and is not yet, or all rollouts failed.
        """
        if self._dist.is_fsdp and not self.accelerator._models:
            raise RuntimeError(
                "The model is sharded when training starts and cannot play before that. Call `rollout` from a "
                "callback's `on_train_begin`, or after `train()`."
            )
        was_training = self.model.training
        self.model.eval()
        trajectories = self.generation.rollout(rows, temperature, seed, batch_size)
        self.model.train(was_training)
        return trajectories

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """As in transformers, through a reader that can read the batches of the next generation ahead."""
        if self.args.prefetch_resets or self.args.max_staleness:
            epoch_iterator = self.generation.prefetcher.batches(epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _prepare_inputs(self, generation_batch: Any) -> list[MicroBatch]:
        """Micro-batches of the next accumulation step, or of an evaluation batch. Generates when TRL would."""
        self.logprobs.check_packing(self.model, self.accelerator.device)
        if not self.model.training:
            return self._new_micro_batches("eval", generation_batch)[0]
        if self._step % self.generation.steps_between_generations == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self._new_micro_batches("train", generation_batch)
        self.generation.prefetcher.consume()
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _new_micro_batches(self, mode: str, rows: list[dict[str, Any]]) -> list[list[MicroBatch]]:
        steps, tokens = self.generation.generate(rows, self.accelerator.device)
        if mode == "train":
            self.state.num_input_tokens_seen += tokens
        self._metrics[mode]["num_tokens"] = [self.state.num_input_tokens_seen]
        self._add_frozen_logps(mode, [batch for step in steps for batch in step])
        return steps

    def _add_frozen_logps(self, mode: str, batches: list[MicroBatch]) -> None:
        """Adds what has no gradient: log-probabilities of the old and the reference policy, importance correction."""
        correct = self.use_vllm and self.vllm_importance_sampling_correction and mode == "train"
        # If every optimizer step follows its own generation, the old policy is the current one.
        stale = self.args.gradient_accumulation_steps % self.generation.steps_between_generations != 0
        policy = self.accelerator.unwrap_model(self.model)
        reference = reference_model(self.ref_model, self.model, policy) if self.beta != 0.0 else None
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            self.logprobs.add_frozen(batches, self.model if stale or correct else None, reference)
        if self.use_vllm:
            bounds = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
            mismatch = add_importance_correction(batches, correct, self.vllm_importance_sampling_mode, *bounds)
            self.tracker.record_engine_mismatch(mode, mismatch)

    def compute_loss(
        self, model: Any, inputs: list[MicroBatch], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Loss of an accumulation step. The backward pass of all micro-batches but the last happens here."""
        *others, last = inputs
        loss_of = partial(super().compute_loss, model, return_outputs=return_outputs)
        before = self.local_backward(model, others, loss_of)
        return loss_of(last) + before

    def _compute_loss(self, model: Any, inputs: MicroBatch) -> Tensor:
        self.logprobs.last = None
        loss = self._own_loss(model, inputs) if self.args.uses_own_loss else super()._compute_loss(model, inputs)
        if self.model.training:
            self._nonfinite_guard.record(loss, inputs, self.logprobs.last)
        return loss

    def _own_loss(self, model: Any, batch: MicroBatch) -> Tensor:
        mode, steps = "eval", (1, 1)
        if self.model.training:
            mode, steps = "train", (self.args.steps_per_generation, self.current_gradient_accumulation_steps)
        logps, entropies, aux_loss = self.logprobs.of_batch(
            model, batch, compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
        )
        terms = self.objective(batch, logps, gradient_share(self.accelerator.num_processes, *steps))
        if mode == "train":
            turn_ids = batch["turn_ids"]
            self._trajectory_log.record_ratios(batch["rollout_ids"], turn_ids, terms.ratio, terms.is_clipped)
        self.tracker.record_tokens(mode, {"entropy": entropies, **terms.token_metrics}, batch["tool_mask"])
        if not self.aux_loss_enabled:
            return terms.loss
        return terms.loss + self.router_aux_loss_coef * aux_loss / (batch["num_micro_batches"] * steps[1])

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any, Any]:
        return self.logprobs.compute(*args, **kwargs)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        self._nonfinite_guard.grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self._nonfinite_guard.grad_norm


@contextmanager
def reference_model(separate: Any | None, model: Any, policy: Any) -> Iterator[Any]:
    """The separate reference model, or else the policy with its initial adapter or without one, as in TRL."""
    if separate is not None:
        yield separate
        return
    with use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None):
        yield model
