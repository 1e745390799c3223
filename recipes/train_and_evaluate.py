"""Training with an evaluation before and after it, and the files that a run leaves: shared by the training recipes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from trl import ModelConfig

from trl_agentic import AgenticConfig, AgenticTrainer, Trajectory
from trl_agentic.evaluation import (
    SuccessRate,
    load_records,
    markdown_table,
    recorded_trajectory,
    save_trajectories,
    success_by_task_type,
)
from trl_agentic.viewer import plot_learning_curve


logger = logging.getLogger(__name__)


class EvaluateBefore(TrainerCallback):
    """Callback that evaluates when training starts, since with several processes the model is sharded only then.

    Args:
        evaluate: runs the evaluation.
        saved: file of its rollouts. A run that resumes from a checkpoint, with another policy than before training,
            reads them from there.
        read: takes these rollouts, in every process.
    """

    def __init__(self, evaluate: Callable[[], None], saved: Path, read: Callable[[list[Trajectory]], None]):
        self.evaluate, self.saved, self.read = evaluate, saved, read

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.evaluate()
            return
        played = [recorded_trajectory(record) for record in load_records(self.saved)] if self.saved.exists() else None
        found = broadcast_object_list([played])[0]  # it may be on the first process's disk only
        if found is None:
            logger.warning(
                "%s does not exist: the results before training are those of the checkpoint at step %d.",
                self.saved,
                state.global_step,
            )
            self.evaluate()
        else:
            self.read(found)


def model_init_kwargs(model: ModelConfig) -> dict[str, Any]:
    """Options of the command for loading the model."""
    return {
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
        "revision": model.model_revision,
    }


def mean_score(trajectories: Sequence[Trajectory]) -> float | None:
    """Mean of the environment's own grade, `None` if there is none; a rollout without one counts as 0."""
    scores = [trajectory.score for trajectory in trajectories]
    graded = any(score is not None for score in scores)
    return sum(score or 0.0 for score in scores) / len(scores) if graded else None


def train_and_evaluate(
    trainer: AgenticTrainer,
    rows: list[dict[str, Any]],
    name: str,
    measure: str,
    ceiling: dict[str, float] | None = None,
) -> None:
    """Trains, and evaluates before and after training. A resumed run keeps its evaluation before training.

    Leaves in `output_dir` the model with its card, the trainer's state, the trajectories of both evaluations,
    `results.json` (moment, task type, successes and rollouts) and `learning_curve.png`; where the environment gives
    scores, their means in `scores.json`.

    Args:
        trainer: the trainer of the run.
        rows: held-out tasks.
        name: name of the tasks, for titles.
        measure: name of a success.
        ceiling: the highest `success` and mean `score` that the tasks allow, where it is known to be below 1.
    """
    training: AgenticConfig = trainer.args
    out = Path(training.output_dir)
    title = f"{trainer._name} on {name}"
    is_main = trainer.accelerator.is_main_process
    results: dict[str, dict[str, SuccessRate]] = {}
    steps = {"before": 0}
    scores: dict[str, Any] = {"ceiling": ceiling} if ceiling else {}

    def evaluate(moment: str) -> None:
        steps[moment] = trainer.state.global_step
        trajectories = trainer.rollout(rows, batch_size=training.per_device_eval_batch_size)
        if is_main:
            out.mkdir(parents=True, exist_ok=True)
            save_trajectories(saved(moment), trajectories)
        record(moment, trajectories)

    def record(moment: str, trajectories: list[Trajectory]) -> None:
        trainer.record_evaluation(f"{moment} training", trajectories, rows[0].get("environment"))
        results[moment] = success_by_task_type(trajectories)
        if is_main:
            print(f"{measure} on {len(rows)} held-out tasks, {moment}: {results[moment]['All']}", flush=True)
        score = mean_score(trajectories)
        if score is not None:
            scores[moment] = score

    def saved(moment: str) -> Path:
        return out / f"trajectories_{moment}.parquet"

    trainer.add_callback(EvaluateBefore(partial(evaluate, "before"), saved("before"), partial(record, "before")))
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    evaluate("after")
    if is_main:
        trainer.create_model_card(model_name=out.name)
        rates = {
            moment: {kind: [rate.wins, rate.rollouts] for kind, rate in table.items()}
            for moment, table in results.items()
        }
        (out / "results.json").write_text(json.dumps(rates, indent=2) + "\n")
        if scores:
            (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
        evaluations = {steps[moment]: table["All"].rate for moment, table in results.items()}
        plot_learning_curve(
            trainer.state.log_history, out / "learning_curve.png", evaluations=evaluations, title=title
        )
        print(f"\n{markdown_table(results)}\n")
        if "before" in scores:
            print(f"Mean score before {100 * scores['before']:.1f}, after {100 * scores['after']:.1f}.")
        if ceiling:
            print(f"Attainable: success {100 * ceiling['success']:.1f}%, score {100 * ceiling['score']:.1f}.")
        print(f"Model, card, trajectories and learning_curve.png are in {out}.")
    if training.push_to_hub:
        trainer.push_to_hub()
