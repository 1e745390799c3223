"""Reference of an optimizer step in plain Python floats: from finished trajectories to the loss and its gradient.

It shares no tensor code with the package. Every turn is a forward pass of its own, in float64, over the tokens that
the policy read before it. Credit is computed in loops, as docs/*.md state it for each algorithm, with default options.
Tensors appear only where a gradient is needed: in the log-probabilities under the current weights and in the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from trl_agentic.types import StopReason, Trajectory


CUTS = {StopReason.TURN_LENGTH, StopReason.ROLLOUT_LENGTH, StopReason.CONTEXT_LENGTH}

GAIN_ROUNDING = {"log_prob": 2e-6, "prob": 2e-9}
"""Rounding of a difference of two float32 log-probabilities of about -10, and of probabilities of about 1e-3."""

Credit = list[list[float]]
"""A number for each turn of each rollout; no number for a rollout that failed."""


def contexts(trajectory: Trajectory, with_final: bool = False) -> list[list[int]]:
    """Token ids that the policy read before each turn and, on request, before another one."""
    known: list[int] = []
    read = []
    for turn in trajectory.turns:
        known = (known if turn.extends else []) + turn.prompt_ids
        read.append(known)
        known = known + turn.action_ids
    final = trajectory.final_prompt
    if with_final and trajectory.turns and final is not None:
        read.append((known if final.extends else []) + final.ids)
    return read


def token_logps(model: Any, context: list[int], action: list[int], temperature: float) -> Tensor:
    """Log-probability of each token of an action, from one forward pass over the context and the action."""
    logits = model(input_ids=torch.tensor([context + action])).logits[0].double() / temperature
    before = range(len(context) - 1, len(context) + len(action) - 1)
    return torch.stack([logits[i].log_softmax(0)[token] for i, token in zip(before, action, strict=True)])


class Generation:
    """Everything about a generation that does not depend on the current weights.

    Args:
        args: arguments of the trainer.
        algorithm: its name, a key of [`CREDIT`].
        trajectories: finished rollouts with the scores of reward functions, `args.num_generations` of each prompt.
        old: model with the weights that sampled.
        initial: model with the weights of the reference policy.
        tokenizer: the model's tokenizer.
        recorded_gains: information gains of the trainer. They are compared with the reference's own and then used in
            their place: they are differences of float32 numbers, whose rounding the normalisation magnifies.
    """

    def __init__(
        self,
        args: Any,
        algorithm: str,
        trajectories: list[Trajectory],
        old: Any,
        initial: Any,
        tokenizer: Any,
        recorded_gains: Credit | None,
    ):
        self.args, self.trajectories = args, trajectories
        self.trained = [
            i
            for i, trajectory in enumerate(trajectories)
            if trajectory.turns
            and trajectory.stop_reason is not StopReason.ERROR
            and not (args.mask_truncated_completions and trajectory.stop_reason in CUTS)
        ]
        played = [[] if t.stop_reason is StopReason.ERROR else t.turns for t in trajectories]
        self.penalties = [
            [args.invalid_action_penalty if turn.info.get("is_action_valid", True) is False else 0.0 for turn in turns]
            for turns in played
        ]
        self.rewards = [[turn.reward for turn in turns] for turns in played]
        self.states = [[turn.anchor_state for turn in turns] for turns in played]
        if args.penalty_in_return:
            self.rewards = subtract(self.rewards, self.penalties)
            self.penalties = [[0.0] * len(turns) for turns in played]
        self.gains: Credit = []
        if algorithm in ("a2tgpo", "igpo"):
            self.gains = [
                information_gains(args, t, old, tokenizer) if turns else []
                for t, turns in zip(trajectories, played, strict=True)
            ]
            assert recorded_gains is not None
            for own, recorded in zip(self.gains, recorded_gains, strict=True):
                assert recorded[: len(own)] == pytest.approx(
                    own, rel=0, abs=GAIN_ROUNDING[args.information_gain], nan_ok=True
                )
            pairs = zip(self.gains, recorded_gains, strict=True)
            self.gains = [recorded[: len(own)] for own, recorded in pairs]
        self.advantages, self.clip_scales = CREDIT[algorithm](self)
        with torch.no_grad():
            self.old = self._logps(old)
            self.initial = self._logps(initial) if args.beta else self.old
        turns_of = {i: trajectories[i].turns for i in self.trained}
        self.tokens = {i: sum(len(turn.action_ids) for turn in turns) for i, turns in turns_of.items()}
        self.count = {
            "grpo": len(self.trained),
            "turn": sum(map(len, turns_of.values())),
            "dapo": sum(self.tokens.values()),
        }[args.loss_type]

    def _logps(self, model: Any) -> dict[tuple[int, int], list[float]]:
        return {
            (i, k): token_logps(model, context, turn.action_ids, self.args.temperature).tolist()
            for i in self.trained
            for k, (context, turn) in enumerate(
                zip(contexts(self.trajectories[i]), self.trajectories[i].turns, strict=True)
            )
        }

    def groups(self) -> list[list[int]]:
        """Rollouts of each prompt that have a turn and did not fail."""
        size = self.args.num_generations
        starts = range(0, len(self.trajectories), size)
        return [[i for i in range(start, start + size) if self.rewards[i]] for start in starts]

    def loss(self, model: Any, rollouts: Iterable[int], updates: int) -> Tensor:
        """Loss of an optimizer step.

        Args:
            model: model with the current weights.
            rollouts: rollouts that the step trains on.
            updates: number of optimizer steps that share the rollouts of the generation.
        """
        args = self.args
        high = args.epsilon if args.epsilon_high is None else args.epsilon_high
        total = torch.zeros((), dtype=torch.float64)
        for i in rollouts:
            trajectory = self.trajectories[i]
            logps = [
                token_logps(model, context, turn.action_ids, args.temperature)
                for context, turn in zip(contexts(trajectory), trajectory.turns, strict=True)
            ]
            differences = [new - torch.tensor(self.old[i, k]).to(new) for k, new in enumerate(logps)]
            whole = torch.cat(differences).mean()
            for k, new in enumerate(logps):
                advantage, scale = self.advantages[i][k], self.clip_scales[i][k]
                for t in range(len(new)):
                    level = {"token": differences[k][t], "turn": differences[k].mean(), "sequence": whole}
                    ratio = level[args.importance_sampling_level].exp()
                    bounded = ratio.clamp(1 - scale * args.epsilon, 1 + scale * high)
                    token = -torch.minimum(ratio * advantage, bounded * advantage)
                    if args.beta:
                        gap = self.initial[i, k][t] - new[t]
                        kl = gap.exp() - gap - 1
                        token = token + args.beta * kl * (ratio if args.use_bias_correction_kl else 1.0)
                    weight = {"grpo": 1 / self.tokens[i], "turn": 1 / len(new), "dapo": 1.0}[args.loss_type]
                    total = total + weight * token
        return total * updates / self.count


# Credit


def subtract(first: Credit, second: Credit) -> Credit:
    return [[a - b for a, b in zip(one, other, strict=True)] for one, other in zip(first, second, strict=True)]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def normalised(values: Sequence[float], eps: float = 1e-6, correction: int = 0, scale: bool = True) -> list[float]:
    """Values minus their mean, divided by their standard deviation; 0 where all are equal."""
    if not values or max(values) == min(values):
        return [0.0] * len(values)
    center = mean(values)
    std = math.sqrt(math.fsum((value - center) ** 2 for value in values) / (len(values) - correction))
    return [(value - center) / (std + eps if scale else 1.0) for value in values]


def discounted(values: Sequence[float], gamma: float) -> list[float]:
    return [math.fsum(gamma ** (n - k) * values[n] for n in range(k, len(values))) for k in range(len(values))]


def by_key(keys: dict[Any, Any]) -> list[list[Any]]:
    """Lists of the entries that have equal keys."""
    lists: dict[Any, list[Any]] = {}
    for entry, key in keys.items():
        lists.setdefault(key, []).append(entry)
    return list(lists.values())


def turns_of(generation: Generation, group: list[int]) -> list[tuple[int, int]]:
    return [(i, k) for i in group for k in range(len(generation.rewards[i]))]


def visits(generation: Generation, group: list[int]) -> list[list[tuple[int, int]]]:
    """Turns of a group that were played in one state."""
    return by_key({(i, k): generation.states[i][k] for i, k in turns_of(generation, group)})


def constant(generation: Generation, value: float) -> Credit:
    return [[value] * len(rewards) for rewards in generation.rewards]


def outcomes(generation: Generation, normalise: Callable[[list[float]], list[float]]) -> Credit:
    """The same advantage for all turns of a rollout, from the returns of its group."""
    credit = constant(generation, 0.0)
    for group in generation.groups():
        returns = normalise([math.fsum(generation.rewards[i]) for i in group])
        for i, value in zip(group, returns, strict=True):
            credit[i] = [value] * len(credit[i])
    return credit


def gagpo(generation: Generation) -> tuple[Credit, Credit]:
    args, rewards = generation.args, generation.rewards
    advantages = constant(generation, 0.0)
    for group in generation.groups():
        returns = {i: discounted(rewards[i], args.gamma) for i in group}
        value = {}
        for members in visits(generation, group):
            for turn in members:
                value[turn] = mean([returns[i][k] for i, k in members])
        raw = {}
        for i in group:
            following = 0.0
            for k in reversed(range(len(rewards[i]))):
                delta = rewards[i][k] + args.gamma * value.get((i, k + 1), 0.0) - value[i, k]
                following = delta + args.gamma * args.lam * following
                raw[i, k] = following - generation.penalties[i][k]
        for (i, k), advantage in zip(raw, normalised(list(raw.values())), strict=True):
            advantages[i][k] = advantage
    return advantages, constant(generation, 1.0)


def gigpo(generation: Generation) -> tuple[Credit, Credit]:
    args = generation.args
    advantages = outcomes(generation, normalised)
    returns = subtract([discounted(rewards, args.gamma) for rewards in generation.rewards], generation.penalties)
    for group in generation.groups():
        for members in visits(generation, group):
            for (i, k), step in zip(members, normalised([returns[i][k] for i, k in members]), strict=True):
                advantages[i][k] += args.step_advantage_weight * step
    return advantages, constant(generation, 1.0)


def grpo(generation: Generation) -> tuple[Credit, Credit]:
    advantages = outcomes(generation, lambda returns: normalised(returns, eps=1e-4, correction=1))
    return advantages, constant(generation, 1.0)


def rloo(generation: Generation) -> tuple[Credit, Credit]:
    def against_others(returns: list[float]) -> list[float]:
        n, total = len(returns), math.fsum(returns)
        return [value - (total - value) / (n - 1) if n > 1 else 0.0 for value in returns]

    return outcomes(generation, against_others), constant(generation, 1.0)


def information_gains(args: Any, trajectory: Trajectory, old: Any, tokenizer: Any) -> list[float]:
    """Gain of each turn, NaN for a turn after which the answer was not scored."""
    truth = trajectory.task["ground_truth"]
    answers = [truth] if isinstance(truth, str) else truth
    answers = answers if args.answer_alias == "best" else answers[:1]
    bridge, *encoded = (tokenizer.encode(text, add_special_tokens=False) for text in (args.answer_probe, *answers))
    at_boundaries = []
    for context in contexts(trajectory, with_final=True):
        if len(context) + len(bridge) + max(map(len, encoded)) > args.max_context_length:
            at_boundaries.append(math.nan)
            continue
        with torch.no_grad():
            means = [mean(token_logps(old, context + bridge, ids, temperature=1.0).tolist()) for ids in encoded]
        at_boundaries.append(max(means) if args.information_gain == "log_prob" else math.exp(max(means)))
    gains = [after - before for before, after in zip(at_boundaries, at_boundaries[1:], strict=False)]
    return gains + [math.nan] * (len(trajectory.turns) - len(gains))


def a2tgpo(generation: Generation) -> tuple[Credit, Credit]:
    args, gains = generation.args, generation.gains
    advantages, scales = outcomes(generation, normalised), constant(generation, 1.0)
    for group in generation.groups():
        known = {(i, k): k for i, k in turns_of(generation, group) if not math.isnan(gains[i][k])}
        relative = dict.fromkeys(turns_of(generation, group), 0.0)
        for members in by_key(known):
            if len(members) >= args.min_turn_group:
                values = normalised([gains[i][k] for i, k in members])
                relative |= dict(zip(members, values, strict=True))
        for i, k in relative:
            scales[i][k] = 1 + args.clip_beta * (2 / (1 + math.exp(-relative[i, k])) - 1)
            later = [n for n in range(k, len(gains[i])) if (i, n) in known]
            summed = math.fsum(args.gamma ** (n - k) * relative[i, n] for n in later)
            advantages[i][k] += args.alpha * summed / math.sqrt(len(later) or 1)
    return advantages, scales


def igpo(generation: Generation) -> tuple[Credit, Credit]:
    advantages = constant(generation, 0.0)
    for group in generation.groups():
        gains = {(i, k): generation.gains[i][k] for i, k in turns_of(generation, group)}
        values: dict[tuple[int, int], float] = {turn: gain for turn, gain in gains.items() if not math.isnan(gain)}
        values |= {(i, -1): math.fsum(generation.rewards[i]) for i in group}  # outcomes
        relative = dict(zip(values, normalised(list(values.values())), strict=True))
        for i in group:
            rewards = [relative.get((i, k), 0.0) for k in range(len(generation.rewards[i]))]
            rewards[-1] += relative[i, -1]
            advantages[i] = discounted(rewards, generation.args.gamma)
    return advantages, constant(generation, 1.0)


CREDIT: dict[str, Callable[[Generation], tuple[Credit, Credit]]] = {
    "gagpo": gagpo,
    "gigpo": gigpo,
    "grpo": grpo,
    "rloo": rloo,
    "a2tgpo": a2tgpo,
    "igpo": igpo,
}
"""Advantages and factors on the clip range, by algorithm."""
