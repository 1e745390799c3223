"""Information gain of A2TGPO and IGPO: how much each turn raises the likelihood of the ground-truth answer."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor

from trl_agentic.credit import process_turn_mask
from trl_agentic.information_gain import answer_logprobs, check_full_attention, information_gains, turn_prefixes
from trl_agentic.rollout.engines import Engine, VLLMColocateEngine
from trl_agentic.trainers.base import AgenticTrainer, TurnCredit
from trl_agentic.trainers.config import AgenticConfig
from trl_agentic.trainers.fields import check_range
from trl_agentic.types import StopReason, Trajectory, TurnBatch


@dataclass
class InformationGainConfig(AgenticConfig):
    r"""
    Configuration class for the [`InformationGainTrainer`]: [`AgenticConfig`] and the options of the gain.

    Parameters:
        information_gain (`str`, *optional*, defaults to `"prob"`):
            `"prob"` takes differences of the answer's length-normalised probability, `"log_prob"` of its logarithm.
        answer_probe (`str`, *optional*):
            Text before the answer, right after the generation prompt of the chat template: it closes the reasoning and
            opens the answer. It may contain control tokens of the model. Spaces at its end are encoded together with
            the answer, because most tokenizers join a space with the following word.
        answer_alias (`str`, *optional*, defaults to `"first"`):
            Answer that is scored if a task has several: the `"first"`, or the likeliest at each boundary (`"best"`).
        information_gain_engine (`str`, *optional*, defaults to `"trainer"`):
            Engine that computes the likelihoods: the model of the `"trainer"`, in one pass over the rollouts, or
            `"vllm"`, which computes only the probes while the rollouts are still in its prefix cache, and needs
            `vllm_mode="colocate"`.
        information_gain_tokens (`int`, *optional*, defaults to `16384`):
            Maximum number of tokens of one forward pass over rollouts and probes, padding included.
        penalty_in_return (`bool`, *optional*, defaults to `True`):
            Whether the penalty of an invalid action is part of the return. This is required, since the algorithms with
            an information gain read the return of an episode.

    """

    information_gain: str = field(
        default="prob",
        metadata={
            "help": "Differences of the answer's length-normalised probability, or of its logarithm.",
            "choices": ["prob", "log_prob"],
        },
    )
    answer_probe: str = field(
        default="<think>\nNow there is enough information to answer.\n</think>\n<answer>\n",
        metadata={"help": "Text between the generation prompt and the answer that is scored."},
    )
    answer_alias: str = field(
        default="first",
        metadata={"help": "Which of several accepted answers is scored.", "choices": ["first", "best"]},
    )
    information_gain_engine: str = field(
        default="trainer",
        metadata={"help": "Engine that computes the likelihoods of the answer.", "choices": ["trainer", "vllm"]},
    )
    information_gain_tokens: int = field(
        default=16384, metadata={"help": "Maximum number of tokens of one forward pass over rollouts and probes."}
    )
    penalty_in_return: bool = field(
        default=True, metadata={"help": "Whether the penalty is part of the return; required."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.information_gain_engine == "vllm" and not (self.use_vllm and self.vllm_mode == "colocate"):
            raise ValueError(
                '`information_gain_engine="vllm"` needs `use_vllm=True` and `vllm_mode="colocate"`: a server reports '
                "log-probabilities of prompts only if it does not read its prefix cache, which is slower than the "
                'trainer. Leave it at "trainer".'
            )
        check_range(self, "information_gain_tokens", least=1)


class _Probe(NamedTuple):
    """A sequence of turns that extend one another, and the answers that are scored at its boundaries."""

    rollout: int
    ids: list[int]
    ends: list[int]
    fitting: list[int]  # those of `ends` that leave room for the answer in the context
    answers: list[list[int]]


def _by_rollout(probes: list[_Probe], scores: list[Tensor]) -> dict[int, Tensor]:
    """Log-probabilities at all boundaries of each rollout, NaN where there is no room."""
    logprobs: dict[int, Tensor] = {}
    for probe, score in zip(probes, scores, strict=True):
        whole = torch.cat([score, score.new_full((len(probe.ends) - len(score),), torch.nan)])
        known = [logprobs[probe.rollout]] if probe.rollout in logprobs else []
        logprobs[probe.rollout] = torch.cat([*known, whole])
    return logprobs


class InformationGainTrainer(AgenticTrainer):
    """
    [`AgenticTrainer`] with the information gain of each turn, as A2TGPO defines it (arXiv 2605.06200, eq. 2-3). A
    subclass adds the algorithm.

    The ground truth of a task is its column `ground_truth`, a string or a list of accepted strings, or else
    `info["ground_truth"]` of any turn. The last turn of a rollout that its environment terminated is the answer turn
    and has no gain. A rollout that was cut has process turns only.

    Args:
        args ([`InformationGainConfig`]):
            Arguments of the trainer. All others are those of [`AgenticTrainer`].
    """

    _gain_seconds = 0.0

    def check_tasks(self, rows: Iterable[dict[str, Any]]) -> None:
        if self.args.information_gain_engine == "trainer":
            check_full_attention(self.model)
        if not self._bridge:
            raise ValueError("`answer_probe` must open the answer: its text has no token.")
        for number, row in enumerate(rows):
            if row.get("ground_truth") is not None:
                self._answer_ids(row["ground_truth"], f"Row {number} of the dataset")

    def ask_engine(self, engine: Engine, trajectories: list[Trajectory]) -> list[Trajectory]:
        started = time.perf_counter()
        if self.args.information_gain_engine == "vllm":
            assert isinstance(engine, VLLMColocateEngine)
            probes = self._probes(trajectories, reserve=1)  # vLLM samples a token after each
            texts = [
                (probe.ids[:end] + self._bridge + answer, len(answer))
                for probe in probes
                for end in probe.fitting
                for answer in probe.answers
            ]
            means = torch.tensor(engine.mean_logprobs(texts))
            sizes = [len(probe.fitting) * len(probe.answers) for probe in probes]
            scores = [
                part.view(len(probe.fitting), len(probe.answers)).amax(dim=1)
                for probe, part in zip(probes, means.split(sizes), strict=True)
            ]
            logprobs = _by_rollout(probes, scores)
            trajectories = [
                replace(trajectory, answer_logprobs=logprobs[i].tolist()) if i in logprobs else trajectory
                for i, trajectory in enumerate(trajectories)
            ]
        self._gain_seconds = time.perf_counter() - started
        return trajectories

    def information_gains(self, rows: list[dict[str, Any]], trajectories: list[Trajectory]) -> list[list[float]]:
        started = time.perf_counter()
        gains = [[torch.nan] * len(trajectory.turns) for trajectory in trajectories]
        if self.args.information_gain_engine == "vllm":
            logprobs = {
                i: torch.tensor(trajectory.answer_logprobs)
                for i, trajectory in enumerate(trajectories)
                if trajectory.answer_logprobs is not None
            }
        else:
            probes = self._probes(trajectories)
            scores = answer_logprobs(
                self.model,
                [probe.ids for probe in probes],
                [probe.fitting for probe in probes],
                [probe.answers for probe in probes],
                self._bridge,
                self.args.information_gain_tokens,
                self._largest_count,
            )
            logprobs = _by_rollout(probes, scores)
        for i, at_boundaries in logprobs.items():
            found = information_gains(at_boundaries, self.args.information_gain).tolist()
            gains[i][: len(found)] = found
        self._gain_seconds += time.perf_counter() - started
        return gains

    def turn_metrics(self, batch: TurnBatch, credit: TurnCredit) -> dict[str, float]:
        metrics = super().turn_metrics(batch, credit)
        metrics["information_gain/seconds"] = max(gather_object([self._gain_seconds]))
        assert batch.information_gain is not None
        gains = batch.information_gain[process_turn_mask(batch)]
        if gains.numel():
            metrics["information_gain/mean"] = gains.mean().item()
            metrics["information_gain/std"] = gains.std(correction=0).item()
            metrics["information_gain/positive_frac"] = (gains > 0).float().mean().item()
        return metrics

    def _probes(self, trajectories: list[Trajectory], reserve: int = 0) -> list[_Probe]:
        """Probes of the rollouts with a process turn. `reserve`: tokens that must fit after an answer."""
        probes = []
        for i, trajectory in enumerate(trajectories):
            prefixes = turn_prefixes(trajectory)
            process_turns = sum(len(ends) for _, ends in prefixes) - 1
            if process_turns < 1 or trajectory.stop_reason is StopReason.ERROR:
                continue
            answers = self._answers(trajectory)
            room = self.budgets.max_context - len(self._bridge) - max(map(len, answers)) - reserve
            probes += [_Probe(i, ids, ends, [end for end in ends if end <= room], answers) for ids, ends in prefixes]
        return probes

    def _answers(self, trajectory: Trajectory) -> list[list[int]]:
        reported = [turn.info["ground_truth"] for turn in trajectory.turns if "ground_truth" in turn.info]
        truth = trajectory.task.get("ground_truth")
        if truth is None:
            truth = reported[0] if reported else None
        if truth is None:
            raise ValueError(
                f"The task {_shown(trajectory.task)} has no ground truth, which the information gain needs. Add a "
                "column `ground_truth` (a string or a list of accepted strings), or let the environment put it into "
                '`info["ground_truth"]`.'
            )
        return self._answer_ids(truth, f"The task {_shown(trajectory.task)}")

    def _answer_ids(self, truth: Any, owner: str) -> list[list[int]]:
        """Ids of the answers to score."""
        texts = [truth] if isinstance(truth, str) else list(truth) if isinstance(truth, (list, tuple)) else []
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(
                f"{owner} has `ground_truth={truth!r}`: it must be a text that is not empty, or a list of such texts. "
                "Leave the row out if it has no answer."
            )
        texts = [text.strip() for text in texts]
        answers = [self.chat.encode_data(text) for text in texts]
        if not all(answers):
            raise ValueError(
                f"{owner} has `ground_truth={truth!r}`, of which {texts[answers.index([])]!r} has no token in this "
                "model's vocabulary. Leave it out."
            )
        probe = self.args.answer_probe
        if probe.endswith(" "):
            spaces = probe[len(probe.rstrip(" ")) :]
            answers = [self.chat.encode_data(spaces + text) for text in texts]
        return answers if self.args.answer_alias == "best" else answers[:1]

    @cached_property
    def _bridge(self) -> list[int]:
        return list(self.processing_class(self.args.answer_probe.rstrip(" "), add_special_tokens=False)["input_ids"])

    def _largest_count(self, batches: int) -> int:
        """Largest number of batches of any process: with sharded parameters all processes take part in all of them."""
        return int(self.accelerator.gather(torch.tensor([batches], device=self.accelerator.device)).max())


def _shown(task: dict[str, Any]) -> str:
    text = repr(task)
    return text if len(text) <= 200 else text[:197] + "..."
