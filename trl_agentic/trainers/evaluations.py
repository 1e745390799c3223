"""Evaluations of a run: their results for the model card, and the command that repeats them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model

from trl_agentic.environments.pool import EnvironmentPool
from trl_agentic.trainers.card import Evaluation, complete_card
from trl_agentic.trainers.config import AgenticConfig
from trl_agentic.trainers.tracking import EpisodeSummary


class EvaluationHistory:
    """Owner of the evaluations of a run, by name and by optimizer step.

    Args:
        args: arguments of the trainer.
        pool: environments.
        trained_on: names of the environments of the training tasks.
    """

    def __init__(self, args: AgenticConfig, pool: EnvironmentPool, trained_on: list[str | None]):
        self._args, self._pool, self._trained_on = args, pool, trained_on
        self._evaluations: dict[str, dict[int, Evaluation]] = {}

    def record(self, name: str, step: int, row: dict[str, Any], summaries: Sequence[EpisodeSummary]) -> None:
        """Adds an evaluation. One whose environment reports no success is left out.

        Args:
            name: name of the evaluation, such as `"eval"` or `"before training"`.
            step: number of the optimizer step.
            row: a dataset row of the evaluation, which selects its environment.
            summaries: its rollouts.
        """
        if any(summary.success is not None for summary in summaries):
            metadata = self._pool.metadata(self._pool.name(row))
            self._evaluations.setdefault(name, {})[step] = Evaluation(name, metadata, tuple(summaries))

    def complete_card(self, name: str, policy: Any, best_step: int | None) -> None:
        """Completes the model card that TRL wrote to `output_dir`.

        Args:
            name: id of the repository, or name of the model.
            policy: the policy, unwrapped.
            best_step: step of the checkpoint that was loaded after training, `None` for the last weights.
        """
        complete_card(
            Path(self._args.output_dir) / "README.md",
            repo=name,
            environments=[self._pool.metadata(environment) for environment in self._trained_on],
            evaluations=[_at(steps, best_step) for steps in self._evaluations.values()],
            settings=evaluation_arguments(self._args),
            command=sys.argv,
            base_model=policy.config._name_or_path,
            is_adapter=is_peft_model(policy),
        )


def _at(steps: dict[int, Evaluation], best_step: int | None) -> Evaluation:
    """The evaluation of the best step, or else the last one."""
    return steps[best_step if best_step is not None and best_step in steps else max(steps)]


def evaluation_arguments(args: AgenticConfig) -> list[str]:
    """Arguments of `trl-agentic evaluate` for prompts and sampling equal to those of the run's evaluations."""
    options: dict[str, Any] = {
        "max_turns": args.max_turns,
        "max_turn_tokens": args.max_turn_tokens,
        "temperature": args.temperature if args.eval_temperature is None else args.eval_temperature,
    }
    if args.top_p != 1.0:
        options["top_p"] = args.top_p
    if args.context == "window":
        options["history_length"] = args.history_length
    if args.chat_template_kwargs:
        options["chat_template_kwargs"] = json.dumps(args.chat_template_kwargs)
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]
