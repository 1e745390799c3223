"""Generation pipeline: from dataset rows to rollouts, their credit, and the micro-batches that are trained on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from trl_agentic.batching.turns import turn_batch, turn_record
from trl_agentic.environments.handle import EnvironmentHandle
from trl_agentic.environments.pool import EnvironmentPool
from trl_agentic.environments.tools import ToolEnvironment
from trl_agentic.rollout.engine_source import EngineSource, VLLMSource
from trl_agentic.rollout.engines import Engine
from trl_agentic.rollout.loop import RolloutClock, derived_seed
from trl_agentic.rollout.prefetch import PrefetchedRollouts, Prefetcher, ServerEngine
from trl_agentic.rollout.runner import RolloutRunner
from trl_agentic.trainers.batches import BatchBuilder, MicroBatch, TurnCredit
from trl_agentic.trainers.callbacks.nonfinite import NonFiniteGuard
from trl_agentic.trainers.callbacks.trajectory_log import TrajectoryLog
from trl_agentic.trainers.config import AgenticConfig
from trl_agentic.trainers.engines import sampling_parameters
from trl_agentic.trainers.objective import PolicyObjective
from trl_agentic.trainers.rewards import RewardScorer
from trl_agentic.trainers.tracking import EpisodeTracker, rollout_metrics
from trl_agentic.trainers.validation import check_failures
from trl_agentic.types import StopReason, Trajectory, TurnBatch


logger = logging.getLogger(__name__)

Row = dict[str, Any]


class Algorithm(Protocol):
    """Hooks that an algorithm defines; see [`AgenticTrainer`], which implements them."""

    def ask_engine(self, engine: Engine, trajectories: list[Trajectory]) -> list[Trajectory]: ...
    def information_gains(self, rows: list[Row], trajectories: list[Trajectory]) -> list[list[float]] | None: ...
    def turn_advantages(self, batch: TurnBatch) -> Tensor: ...
    def turn_clip_scales(self, batch: TurnBatch) -> Tensor | None: ...
    def turn_metrics(self, batch: TurnBatch, credit: TurnCredit) -> dict[str, float]: ...
    def turn_diagnostics(self, batch: TurnBatch) -> dict[str, Tensor]: ...


@dataclass(frozen=True, slots=True)
class Position:
    """Position of a run.

    Attributes:
        step: accumulation steps so far.
        updates: optimizer steps so far.
        max_updates: optimizer steps of the whole run.
        is_training: whether the next generation is trained on, and not an evaluation.
    """

    step: int
    updates: int
    max_updates: int
    is_training: bool


class GenerationPipeline:
    """Pipeline of one generation. All processes call it together.

    Args:
        args: arguments of the trainer.
        algorithm: hooks of the algorithm.
        pool: environments.
        runner: plays rows with them.
        engines: opens inference engines with the current weights.
        rewards: scores rollouts.
        tracker: takes metrics.
        batches: builds micro-batches.
        objective: the loss, whose clip range saved trajectories show.
        trajectory_log: saves rollouts.
        nonfinite_guard: names rollouts that cause updates that are not finite.
        show_environments: takes the environments' instances, which TRL passes to reward functions.
        position: returns the position of the run.
    """

    def __init__(
        self,
        args: AgenticConfig,
        algorithm: Algorithm,
        pool: EnvironmentPool,
        runner: RolloutRunner,
        engines: EngineSource,
        rewards: RewardScorer,
        tracker: EpisodeTracker,
        batches: BatchBuilder,
        objective: PolicyObjective,
        trajectory_log: TrajectoryLog,
        nonfinite_guard: NonFiniteGuard,
        show_environments: Callable[[list[Any]], None],
        position: Callable[[], Position],
    ):
        self._args, self._algorithm, self._pool, self._runner = args, algorithm, pool, runner
        self.engines, self._rewards, self._tracker, self.batches = engines, rewards, tracker, batches
        self._objective, self._trajectory_log, self._nonfinite_guard = objective, trajectory_log, nonfinite_guard
        self._show_environments, self._position = show_environments, position
        self.prefetcher = Prefetcher()
        self.steps_between_generations = args.steps_per_generation * args.num_iterations
        self.shape = (
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            args.steps_per_generation,
            args.num_iterations,
        )
        """Batch size and numbers of steps, which a checkpoint must share to resume inside a generation."""
        self._evaluated = 0  # rollouts of the current evaluation so far

    def start_evaluation(self) -> None:
        """Starts an evaluation: its rollouts are sampled with the same seeds as those of every other one."""
        self._evaluated = 0

    def generate(self, rows: list[Row], device: torch.device) -> tuple[list[list[MicroBatch]], int]:
        """Plays rows, assigns credit, and builds micro-batches.

        Args:
            rows: dataset rows of this process.
            device: device of the tensors.

        Returns:
            Micro-batches by accumulation step, and the tokens of the generation over all processes.

        Raises:
            RuntimeError: more rollouts failed than `max_failed_rollouts` allows.
        """
        position = self._position()
        trajectories, credit = self.scored_rollouts(rows)
        if position.is_training:
            self._prefetch(position)
        return self.batches.build("train" if position.is_training else "eval", trajectories, credit, device)

    def scored_rollouts(self, rows: list[Row]) -> tuple[list[Trajectory], TurnCredit]:
        """Plays rows and assigns credit: the first part of [`generate`].

        Returns:
            Trajectories of this process, with the scores of reward functions, and the credit of the global batch.
        """
        position, first = self._position(), PartialState().process_index * len(rows)
        mode = "train" if position.is_training else "eval"
        trajectories, clock = self._rollouts(rows, position)
        if mode == "train":
            check_failures(gather_object([t.error for t in trajectories]), self._args.max_failed_rollouts)
            self._nonfinite_guard.start_batch(first, trajectories)
        roles = ["tool" if self._pool.is_tool_style(row) else "user" for row in rows]
        trajectories = self._rewards.score(mode, rows, trajectories, roles, first)
        batch = self.turn_batch(mode, trajectories, self._algorithm.information_gains(rows, trajectories))
        saves = mode == "train" and self._trajectory_log.is_due(position.updates)
        credit = self.credit(batch, saves)
        self._tracker.record_episodes(mode, trajectories, credit.advantages, batch.turn_mask)
        metrics = self._algorithm.turn_metrics(batch, credit) | rollout_metrics(trajectories, clock)
        self._tracker.record(mode, metrics)
        for trajectory in trajectories:
            if trajectory.error is not None:
                logger.warning("A rollout failed and is left out of the update:\n%s", trajectory.error)
        if saves:
            columns = {**credit.diagnostics, "advantage": credit.advantages}
            self._trajectory_log.start_batch(position.updates, trajectories, columns, first, self._group_size(mode))
        return trajectories, credit

    def turn_batch(self, mode: str, trajectories: list[Trajectory], gains: list[list[float]] | None) -> TurnBatch:
        """Turns of all processes. A failed rollout has none, so that it enters no statistic.

        Args:
            mode: `"train"` or `"eval"`.
            trajectories: rollouts of this process.
            gains: information gain of each of their turns, `None` if the algorithm has none.
        """
        first, group_size = PartialState().process_index * len(trajectories), self._group_size(mode)
        records = []
        for i, trajectory in enumerate(trajectories):
            failed = trajectory.stop_reason is StopReason.ERROR
            known = Trajectory(task=trajectory.task) if failed else trajectory
            invalid = [turn.info.get("is_action_valid") is False for turn in known.turns]
            penalties = [self._args.invalid_action_penalty * flag for flag in invalid]
            gain = None if gains is None else [] if failed else gains[i]
            records.append(turn_record(known, (first + i) // group_size, gain, penalties=penalties))
        batch = turn_batch(gather_object(records))
        if self._args.penalty_in_return and batch.penalties is not None:
            return replace(batch, rewards=batch.rewards - batch.penalties, penalties=None)
        return batch

    def credit(self, batch: TurnBatch, with_diagnostics: bool = False) -> TurnCredit:
        """Credit of a batch of turns, from the hooks of the algorithm."""
        advantages = self._algorithm.turn_advantages(batch)
        scales = self._algorithm.turn_clip_scales(batch)
        if not with_diagnostics:
            return TurnCredit(advantages, scales, {})
        factors = torch.ones_like(batch.rewards) if scales is None else scales.to(batch.rewards)
        diagnostics = {
            "clip_low": 1 - self._objective.epsilon_low * factors,
            "clip_high": 1 + self._objective.epsilon_high * factors,
        }
        if batch.information_gain is not None:
            diagnostics["information_gain"] = batch.information_gain
        return TurnCredit(advantages, scales, diagnostics | self._algorithm.turn_diagnostics(batch))

    def rollout(self, rows: list[Row], temperature: float | None, seed: int, batch_size: int) -> list[Trajectory]:
        """Plays tasks that are shared between the processes. See [`AgenticTrainer.rollout`]."""
        state = PartialState()
        own = list(enumerate(rows))[state.process_index :: state.num_processes]
        rounds = -(-len(rows) // (state.num_processes * batch_size))
        played: list[tuple[int, Trajectory]] = []
        with tqdm(total=len(own), desc="Rollouts", unit="rollout", disable=state.process_index != 0) as bar:
            for start in range(0, rounds * batch_size, batch_size):
                part = own[start : start + batch_size]
                seeds = [derived_seed(self._args.seed, 2, seed, i) for i, _ in part]
                environments = self._pool.take([row for _, row in part])
                with self._engine(temperature, is_training=False) as engine:
                    trajectories = self._runner.play(
                        [row for _, row in part], seeds, environments, engine, on_done=bar.update
                    )
                self._show(environments)
                played += zip([i for i, _ in part], trajectories, strict=True)
        trajectories = [trajectory for _, trajectory in sorted(gather_object(played), key=lambda pair: pair[0])]
        check_failures([trajectory.error for trajectory in trajectories], 1.0)
        return trajectories

    def _rollouts(self, rows: list[Row], position: Position) -> tuple[list[Trajectory], RolloutClock]:
        """Rollouts of these rows: prefetched ones, or played now."""
        generation = position.step // self.steps_between_generations
        prefetched = self.prefetcher.take(generation) if position.is_training else None
        reserved = self._pool.take_reserved(generation) if position.is_training else None
        if prefetched is not None and reserved is not None:
            trajectories = prefetched.result()
            self._show(reserved)
            return trajectories, prefetched.clock
        environments = reserved or self._pool.take(rows)
        seeds = (
            self._training_seeds(position, len(rows)) if position.is_training else self._evaluation_seeds(len(rows))
        )
        clock, started = RolloutClock(), time.perf_counter()
        with self._engine(None, position.is_training) as engine:
            trajectories = self._runner.play(rows, seeds, environments, engine, clock=clock)
            trajectories = self._algorithm.ask_engine(engine, trajectories)
        clock.seconds = time.perf_counter() - started
        self._show(environments)
        return trajectories, clock

    @contextmanager
    def _engine(self, temperature: float | None, is_training: bool) -> Iterator[Engine]:
        if temperature is None and not is_training:
            temperature = self._args.eval_temperature
        temperature = self._args.temperature if temperature is None else temperature
        if self.prefetcher.wait():  # servers get new weights only after the last rollouts with the old ones
            PartialState().wait_for_everyone()
        with self.engines.open(sampling_parameters(self._args, temperature)) as engine:
            yield engine

    def _show(self, environments: list[EnvironmentHandle]) -> None:
        instances = [environment.instance or environment for environment in environments]
        self._show_environments([e.instance if isinstance(e, ToolEnvironment) else e for e in instances])

    def _group_size(self, mode: str) -> int:
        args = self._args
        return args.num_generations if mode == "train" else args.num_generations_eval or args.num_generations

    def _prefetch(self, position: Position) -> None:
        """Starts the part of the next generation that can run while this one is trained on.

        All processes have their rollouts by now, so that no process samples while weights are sent.
        """
        args = self._args
        if not args.prefetch_resets and not args.max_staleness:
            return
        distance = self.steps_between_generations - position.step % self.steps_between_generations
        if self._updates_after(position, distance) >= position.max_updates:
            return
        rows = self.prefetcher.peek(distance)
        if rows is None:
            return
        generation = position.step // self.steps_between_generations + 1
        environments = self._pool.reserve(generation, rows, reset=not args.max_staleness)
        if args.max_staleness:
            assert isinstance(self.engines, VLLMSource)
            source, seeds = self.engines, self._training_seeds(position, len(rows), distance)

            def play(engine: ServerEngine, clock: RolloutClock) -> list[Trajectory]:
                trajectories = self._runner.play(rows, seeds, environments, engine, clock=clock)
                trajectories = self._algorithm.ask_engine(engine, trajectories)
                source.sync.check()
                return trajectories

            engine = source.detached(sampling_parameters(args, args.temperature))
            self.prefetcher.start(PrefetchedRollouts(generation, engine, play))

    def _updates_after(self, position: Position, steps: int) -> int:
        """Number of updates after `steps` more accumulation steps."""
        every = self._args.gradient_accumulation_steps
        return position.updates + (position.step % every + steps) // every

    def _training_seeds(self, position: Position, count: int, ahead: int = 0) -> list[int]:
        """Seeds of the rollouts of this process, by their index in the global batch.

        They do not depend on the number of processes, nor on how many accumulation steps ahead the rollouts start.
        """
        first = PartialState().process_index * count
        update = self._updates_after(position, ahead)
        within = (position.step + ahead) % self._args.gradient_accumulation_steps
        return [derived_seed(self._args.seed, 0, update, within, first + i) for i in range(count)]

    def _evaluation_seeds(self, count: int) -> list[int]:
        state = PartialState()
        first = self._evaluated + state.process_index * count
        self._evaluated += count * state.num_processes
        return [derived_seed(self._args.seed, 1, first + i) for i in range(count)]
