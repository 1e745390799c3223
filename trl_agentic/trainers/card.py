"""Model card: TRL's card with the environment, the evaluations and the command of the run."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from trl_agentic import __version__
from trl_agentic.environments.pool import EnvironmentMetadata
from trl_agentic.trainers.tracking import EpisodeSummary


@dataclass(frozen=True)
class Evaluation:
    """One evaluation in a model card.

    Attributes:
        name: heading of its column.
        environment: its environment.
        summaries: the rollouts; a failed one counts as not solved.
    """

    name: str
    environment: EnvironmentMetadata
    summaries: Sequence[EpisodeSummary]

    def rates(self) -> dict[str, tuple[int, int]]:
        """Successes and rollouts by task type, `All` last."""
        wins: dict[str, list[bool]] = defaultdict(list)
        for summary in self.summaries:
            if summary.task_type is not None:
                wins[summary.task_type].append(bool(summary.success))
        everything = [bool(summary.success) for summary in self.summaries]
        return {name: (sum(own), len(own)) for name, own in [*sorted(wins.items()), ("All", everything)]}

    def score(self) -> float | None:
        """Mean of the environment's own grade, `None` if there is none."""
        if all(summary.score is None for summary in self.summaries):
            return None
        return sum(summary.score or 0.0 for summary in self.summaries) / len(self.summaries)


def complete_card(
    file: Path,
    repo: str,
    environments: Sequence[EnvironmentMetadata],
    evaluations: Sequence[Evaluation],
    settings: Sequence[str],
    command: Sequence[str],
    base_model: str,
    is_adapter: bool,
) -> None:
    """Rewrites a card that TRL wrote.

    Args:
        file: the card.
        repo: id of the repository, or name of the model.
        environments: training environments.
        evaluations: evaluations of several task sets, or at several moments; the last one goes into the metadata.
        settings: arguments of `trl-agentic evaluate` for the prompts and the sampling of the run's evaluations.
        command: command line of the run, as words.
        base_model: Hub id or folder of the policy before training.
        is_adapter: whether the model is an adapter on it.
    """
    card = ModelCard.load(file)
    data = card.data
    if is_adapter:
        data.library_name = "peft"
    data.tags = [*dict.fromkeys([*(data.tags or []), *(environment.tag for environment in environments)])]
    if evaluations:
        data.model_name = repo.split("/")[-1]
        data.eval_results = _results(evaluations[-1])
    procedure, versions = card.text[card.text.index("## Training procedure") :].split("### Framework versions\n\n")
    where = evaluations[-1].environment if evaluations else environments[0]
    parts = [
        f"# {repo.split('/')[-1]}",
        _introduction(data.get("base_model"), base_model, environments, is_adapter),
        *(["## Evaluation", _table(evaluations)] if evaluations else []),
        *(_evaluate_it(repo, where.arguments, settings) if where.arguments else []),
        procedure.strip(),
        "The command was",
        _shell(shlex.join(command)),
        f"### Framework versions\n\n- trl-agentic: {__version__}\n{versions}",
    ]
    card.text = "\n\n".join(parts)
    card.save(file)


def _introduction(
    on_hub: str | None, base_model: str, environments: Sequence[EnvironmentMetadata], is_adapter: bool
) -> str:
    base = f"[{on_hub}](https://huggingface.co/{on_hub})" if on_hub else f"the local policy `{Path(base_model).name}`"
    what = "an adapter on" if is_adapter else "a fine-tuned version of"
    played = ", ".join(str(environment) for environment in environments)
    return (
        f"This model is {what} {base}, trained on {played} over many turns an episode, with trl-agentic on "
        "[TRL](https://github.com/huggingface/trl)."
    )


def _evaluate_it(repo: str, environment: str, settings: Sequence[str]) -> list[str]:
    words = f"trl-agentic evaluate {repo} --environment {environment} {shlex.join(settings)} --output_dir evaluation"
    return ["Evaluate it with", _shell(words)]


def _shell(command: str) -> str:
    return f"```bash\n{command}\n```"


def _results(evaluation: Evaluation) -> list[EvalResult]:
    where: dict[str, Any] = {
        "task_type": "reinforcement-learning",
        "task_name": "multi-turn agent",
        "dataset_type": evaluation.environment.tag,
        "dataset_name": evaluation.environment.name,
        "dataset_split": evaluation.environment.split,
    }
    found = [
        EvalResult(
            metric_type="success_rate",
            metric_name="success" if name == "All" else f"success ({name})",
            metric_value=round(wins / rollouts, 4),
            **where,
        )
        for name, (wins, rollouts) in evaluation.rates().items()
    ]
    if (score := evaluation.score()) is not None:
        found.append(EvalResult(metric_type="score", metric_name="score", metric_value=round(score, 4), **where))
    return found


def _table(evaluations: Sequence[Evaluation]) -> str:
    """Success rates by task type, one column per evaluation."""
    columns = [evaluation.rates() for evaluation in evaluations]
    names = [name for name in dict.fromkeys(name for rates in columns for name in rates) if name != "All"]
    heads = [f"{evaluation.name}: {evaluation.environment}" for evaluation in evaluations]
    lines = ["| task type | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in [*names, "All"]:
        cells = [_rate(*rates[name]) if name in rates else "-" for rates in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    scores = [evaluation.score() for evaluation in evaluations]
    if any(score is not None for score in scores):
        cells = ["-" if score is None else f"{score:.3f}" for score in scores]
        lines.append("| mean score | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rate(wins: int, rollouts: int) -> str:
    return f"{100 * wins / rollouts:.1f}% ({wins}/{rollouts})"
