"""What A2TGPO and IGPO share: how much each turn raises the likelihood of the ground-truth answer."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor

from trl_agentic.credit import process_turn_mask
from trl_agentic.information_gain import answer_logprobs, check_full_attention, information_gains, turn_prefixes
from trl_agentic.rollout.engines import Engine, VLLMColocateEngine
from trl_agentic.trainers.base import AgenticTrainer
from trl_agentic.trainers.config import AgenticConfig
from trl_agentic.types import StopReason, Trajectory, TurnBatch


@dataclass
class InformationGainConfig(AgenticConfig):
    r"""
    Configuration class for the [`InformationGainTrainer`]: [`AgenticConfig`] and how the gain is taken.

    Parameters:
        information_gain (`str`, *optional*, defaults to `"prob"`):
            `"prob"` takes differences of the answer's length-normalised probability, `"log_prob"` of its logarithm.
        answer_probe (`str`, *optional*):
            What the policy is made to say before the answer, right after the generation prompt of its chat template:
            it closes the reasoning and opens the answer. May hold control tokens of the model. Spaces at its end are
            encoded together with the answer, because most tokenizers join a space with the word behind it.
        answer_alias (`str`, *optional*, defaults to `"first"`):
            Which answer is probed if a task has several: the `"first"`, or at each boundary the likeliest (`"best"`).
        information_gain_engine (`str`, *optional*, defaults to `"trainer"`):
            Who tells the likelihoods: the model of the `"trainer"`, in one pass over the rollouts, or `"vllm"`, which
            computes the probes alone where the rollouts are still in its prefix cache. The latter needs
            `vllm_mode="colocate"`.
        information_gain_tokens (`int`, *optional*, defaults to `16384`):
            Tokens of one forward pass over rollouts and probes, padding included. Bounds the memory of the trainer.
        penalty_in_return (`bool`, *optional*, defaults to `True`):
            Whether the penalty of an invalid action is part of the return. It has to be: the rules with an information
            gain read the return of an episode, so there is no other place for it.

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
        metadata={
            "help": "What the policy is made to say between the generation prompt and the answer that is scored."
        },
    )
    answer_alias: str = field(
        default="first",
        metadata={"help": "Which of several accepted answers is probed.", "choices": ["first", "best"]},
    )
    information_gain_engine: str = field(
        default="trainer",
        metadata={"help": "Who tells the likelihoods of the answer.", "choices": ["trainer", "vllm"]},
    )
    information_gain_tokens: int = field(
        default=16384, metadata={"help": "Tokens of one forward pass over rollouts and probes, padding included."}
    )
    penalty_in_return: bool = field(
        default=True, metadata={"help": "Whether the penalty is part of the return; it has to be."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (
            ("information_gain", ("prob", "log_prob")),
            ("answer_alias", ("first", "best")),
            ("information_gain_engine", ("trainer", "vllm")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if self.information_gain_engine == "vllm" and not (self.use_vllm and self.vllm_mode == "colocate"):
            raise ValueError(
                '`information_gain_engine="vllm"` needs `use_vllm=True` and `vllm_mode="colocate"`: a server tells '
                "log-probabilities of prompts only where it does not read its prefix cache, which is slower than the "
                'trainer. Leave it at "trainer".'
            )
        if self.information_gain_tokens < 1:
            raise ValueError(f"`information_gain_tokens` must be at least 1, got {self.information_gain_tokens}.")


class _Probe(NamedTuple):
    """A run of turns that extend one another, and what is asked at its boundaries."""

    rollout: int
    ids: list[int]
    ends: list[int]
    fitting: list[int]  # the first of `ends`, behind which there is room
    answers: list[list[int]]


def _by_rollout(probes: list[_Probe], scores: list[Tensor]) -> dict[int, Tensor]:
    """Log-probabilities at all boundaries of each rollout, NaN where there was no room."""
    told: dict[int, Tensor] = {}
    for probe, score in zip(probes, scores, strict=True):
        whole = torch.cat([score, score.new_full((len(probe.ends) - len(score),), torch.nan)])
        told[probe.rollout] = torch.cat([told[probe.rollout], whole]) if probe.rollout in told else whole
    return told


class InformationGainTrainer(AgenticTrainer):
    """
    [`AgenticTrainer`] that hands its rule the information gain of each turn, as A2TGPO defines it (arXiv 2605.06200,
    eq. 2-3); a subclass adds the rule.

    The ground truth of a task is its column `ground_truth`, a string or a list of accepted strings; without one, what
    the environment says in `info["ground_truth"]` at any turn. The last turn of a rollout that its environment
    terminated is the answer turn and has no gain. A rollout that was cut has process turns only.

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

    def ask_engine(self, engine: Engine, trajectories: list[Trajectory]) -> None:
        started = time.perf_counter()
        if self.args.information_gain_engine == "vllm":
            assert isinstance(engine, VLLMColocateEngine)
            probes = self._probes(trajectories, reserve=1)  # vLLM samples a token behind each
            texts = [
                (probe.ids[:end] + self._bridge + answer, len(answer))
                for probe in probes
                for end in probe.fitting
                for answer in probe.answers
            ]
            told = torch.tensor(engine.mean_logprobs(texts))
            sizes = [len(probe.fitting) * len(probe.answers) for probe in probes]
            scores = [
                part.view(len(probe.fitting), len(probe.answers)).amax(dim=1)
                for probe, part in zip(probes, told.split(sizes), strict=True)
            ]
            for i, logprobs in _by_rollout(probes, scores).items():
                trajectories[i].answer_logprobs = logprobs.tolist()
        self._gain_seconds = time.perf_counter() - started

    def information_gains(self, rows: list[dict[str, Any]], trajectories: list[Trajectory]) -> list[list[float]]:
        started = time.perf_counter()
        gains = [[torch.nan] * len(trajectory.turns) for trajectory in trajectories]
        if self.args.information_gain_engine == "vllm":
            told = {
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
                self._most,
            )
            told = _by_rollout(probes, scores)
        for i, logprobs in told.items():
            found = information_gains(logprobs, self.args.information_gain).tolist()
            gains[i][: len(found)] = found
        self._gain_seconds += time.perf_counter() - started
        return gains

    def turn_metrics(self, batch: TurnBatch, advantages: Tensor) -> dict[str, float]:
        metrics = super().turn_metrics(batch, advantages)
        metrics["information_gain/seconds"] = max(gather_object([self._gain_seconds]))
        assert batch.information_gain is not None
        gains = batch.information_gain[process_turn_mask(batch)]
        if gains.numel():
            metrics["information_gain/mean"] = gains.mean().item()
            metrics["information_gain/std"] = gains.std(correction=0).item()
            metrics["information_gain/positive_frac"] = (gains > 0).float().mean().item()
        return metrics

    def _probes(self, trajectories: list[Trajectory], reserve: int = 0) -> list[_Probe]:
        """What is to be scored, where a rollout has a process turn. `reserve`: tokens that have to fit behind it."""
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
        told = [turn.info["ground_truth"] for turn in trajectory.turns if "ground_truth" in turn.info]
        truth = trajectory.task.get("ground_truth")
        if truth is None:
            truth = told[0] if told else None
        if truth is None:
            raise ValueError(
                f"The task {_shown(trajectory.task)} has no ground truth, which the information gain needs. Add a "
                "column `ground_truth` (a string or a list of accepted strings), or let the environment put it into "
                '`info["ground_truth"]`.'
            )
        return self._answer_ids(truth, f"The task {_shown(trajectory.task)}")

    def _answer_ids(self, truth: Any, owner: str) -> list[list[int]]:
        """Ids of the answers to probe."""
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

    def _most(self, batches: int) -> int:
        """The largest number of batches of any process: with sharded parameters all must take part in all."""
        return int(self.accelerator.gather(torch.tensor([batches], device=self.accelerator.device)).max())


def _shown(task: dict[str, Any]) -> str:
    text = repr(task)
    return text if len(text) <= 200 else text[:197] + "..."
