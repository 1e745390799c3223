"""Likelihood of the ground-truth answer at every turn boundary of a rollout, and the gain of each turn.

At each boundary, a *probe* is appended to the tokens so far: a short bridge that opens the answer, and the answer. All
probes of a rollout are scored together. A first forward pass reads the tokens of the rollout into a key-value cache. A
second one computes all probes as one block, in which a token attends to the prefix of its boundary and to its own
probe, with the position ids of that place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .types import Trajectory


__all__ = ["answer_logprobs", "information_gains", "turn_prefixes"]

INFORMATION_GAINS = ("prob", "log_prob")


def turn_prefixes(trajectory: Trajectory) -> list[tuple[list[int], list[int]]]:
    """Token sequences of a rollout and the positions of its turn boundaries.

    Boundary t is the end of the tokens that the policy read before turn t, for t = 0 the end of the first prompt. The
    ids are the sampled and observed ones, and every prefix ends with the generation prompt of its turn.

    Args:
        trajectory ([`~types.Trajectory`]): a rollout with T turns.

    Returns:
        `(ids, boundaries)` for each maximal run of turns that extend one another: boundaries are lengths of prefixes
        of `ids`. Together there are T boundaries, or T + 1 if the trajectory has a `final_prompt`.
    """
    runs: list[tuple[list[int], list[int]]] = []
    final = trajectory.final_prompt if trajectory.turns else None
    parts = [(turn.prompt_ids, turn.extends, turn.action_ids) for turn in trajectory.turns]
    for prompt_ids, extends, action_ids in parts + ([] if final is None else [(final.ids, final.extends, [])]):
        if not extends or not runs:
            runs.append(([], []))
        ids, boundaries = runs[-1]
        ids += prompt_ids
        boundaries.append(len(ids))
        ids += action_ids
    return [(ids[: boundaries[-1]], boundaries) for ids, boundaries in runs]


def information_gains(logprobs: Tensor, kind: str = "prob") -> Tensor:
    """Increase of the answer's likelihood by each process turn (A2TGPO, arXiv 2605.06200, eq. 2-3).

    - `"prob"`: ig[t] = p[t] - p[t-1] with p = exp(mean log-probability of the answer's tokens)
    - `"log_prob"`: ig[t] = log p[t] - log p[t-1]

    Args:
        logprobs (`Tensor` of shape (N,), float): log p at N boundaries, in nats; NaN where it is unknown.
        kind (`str`, *optional*, defaults to `"prob"`): `"prob"` or `"log_prob"`.

    Returns:
        `Tensor` of shape (N - 1,), without unit or in nats; NaN next to an unknown value.

    Raises:
        ValueError: `kind` is unknown.
    """
    if kind not in INFORMATION_GAINS:
        raise ValueError(f"kind must be one of {INFORMATION_GAINS}, got {kind!r}.")
    return (logprobs if kind == "log_prob" else logprobs.exp()).diff()


def answer_logprobs(
    model: Any,
    ids: Sequence[Sequence[int]],
    boundaries: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    bridge: Sequence[int] = (),
    max_tokens: int = 16384,
    agree: Callable[[int], int] = int,
) -> list[Tensor]:
    """Length-normalised log-probability of the answer at every boundary (A2TGPO, arXiv 2605.06200, eq. 2).

    log p[i, t] = max over answers a of (1 / L_a) * sum over j of log pi(a_j | ids[i][:boundaries[i][t]], bridge, a_<j)

    Teacher forcing in evaluation mode, at temperature 1, without gradients.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the policy. All layers must have full attention.
        ids (N sequences of `int`s): tokens of each rollout.
        boundaries (N sequences of `int`s): lengths of the prefixes of `ids[i]` after which the answer is scored.
        answers (N sequences of token sequences): accepted answers of each rollout; the likeliest counts.
        bridge (`Sequence[int]`, *optional*): ids between a prefix and the answer, not scored.
        max_tokens (`int`, *optional*, defaults to 16384): tokens of one batch, padding included. A longer rollout is a
            batch by itself, and at most this number of tokens of its probes is computed at a time.
        agree (`Callable[[int], int]`, *optional*): maps the number of batches of this process to the largest number
            among the processes. Needed where a forward pass is a collective operation (sharded parameters): a process
            without batches takes part with a dummy batch.

    Returns:
        N `Tensor`s of shape (number of boundaries,), float32, on the CPU, in nats.

    Raises:
        ValueError: an answer is empty, a boundary lies outside its sequence, numbers of sequences differ, or the
            model has layers without full attention. The message names the argument.
    """
    _check(ids, boundaries, answers, max_tokens)
    check_full_attention(model)
    results = [torch.full((len(places),), -torch.inf, device="cpu") for places in boundaries]
    batches = _batches(_rows(ids, boundaries, answers, bridge, max_tokens), max_tokens)
    idle = [_Row(ids=[0], probes=[_Probe((0, 0), 0, [0], [0])])]
    with torch.no_grad(), _scoring_mode(model):
        for number in range(agree(len(batches))):
            rows = batches[number] if number < len(batches) else idle
            scores = _score(model, rows)
            if number >= len(batches):
                continue
            for probe, score in zip((probe for row in rows for probe in row.probes), scores, strict=True):
                i, t = probe.place
                results[i][t] = max(results[i][t].item(), score)
    return results


def check_full_attention(model: Any) -> None:
    """Check that all layers have full attention, so that the probes of several boundaries can share one cache.

    Raises:
        ValueError: the model has sliding windows or recurrent states.
    """
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=model.config).layers):
        raise ValueError(
            f"The information gain needs full attention in all layers, but the model ({model.config.model_type}) has "
            "sliding windows or recurrent states. Use another model, or an algorithm without information gain."
        )


@dataclass(frozen=True, slots=True)
class _Probe:
    """An answer at a boundary.

    Attributes:
        place: number of the sequence and number of its boundary.
        start: number of tokens of the sequence in the cache that the probe attends to.
        ids: input tokens: the last token of the prefix, the bridge, and the answer without its last token.
        answer: scored tokens, which follow the last `len(answer)` of `ids`.
    """

    place: tuple[int, int]
    start: int
    ids: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True)
class _Row:
    """Probes of a sequence, and the tokens of the sequence that they attend to."""

    ids: list[int]
    probes: list[_Probe]

    @property
    def fed(self) -> int:
        """Input tokens of all probes."""
        return sum(len(probe.ids) for probe in self.probes)


def _rows(
    ids: Sequence[Sequence[int]],
    boundaries: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    bridge: Sequence[int],
    max_tokens: int,
) -> list[_Row]:
    """One row per sequence, or several if its probes have more than `max_tokens` tokens."""
    rows = []
    for i, (sequence, places) in enumerate(zip(ids, boundaries, strict=True)):
        probes = [
            _Probe((i, t), end - 1, [sequence[end - 1], *bridge, *answer[:-1]], list(answer))
            for t, end in enumerate(places)
            for answer in answers[i]
        ]
        at_once = max(1, max_tokens // max((len(probe.ids) for probe in probes), default=1))
        for first in range(0, len(probes), at_once):
            part = probes[first : first + at_once]
            rows.append(_Row(list(sequence[: max(probe.start for probe in part)]), part))
    return rows


def _batches(rows: list[_Row], max_tokens: int) -> list[list[_Row]]:
    """Batches of rows of similar length, each with at most `max_tokens` tokens or one row."""
    batches: list[list[_Row]] = []
    length = fed = 0
    for row in sorted(rows, key=lambda row: (len(row.ids), row.fed)):
        length, fed = max(length, len(row.ids)), max(fed, row.fed)
        if batches and (len(batches[-1]) + 1) * (length + fed) <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
            length, fed = len(row.ids), row.fed
    return batches


def _score(model: Any, rows: list[_Row]) -> list[float]:
    """Mean log-probability of the answer of each probe, in order.

    Sequences are padded on the right, which causal attention does not read. Input tokens that precede a scored token
    come last in the block, so that logits are computed only for them. The order within the block is free because every
    token has an explicit position id and mask.
    """
    device = model.device
    width = max(1, *(len(row.ids) for row in rows))
    prefixes = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows], device=device)
    cache = DynamicCache(config=model.config)
    model(input_ids=prefixes, past_key_values=cache, use_cache=True, logits_to_keep=1)

    cells = [_cells(row) for row in rows]
    block = max(len(row) for row in cells)
    padded = torch.tensor([[(-1, 0, 0, 0)] * (block - len(row)) + row for row in cells], device=device)
    probe, tokens, positions, starts = padded.unbind(-1)  # (B, P) each
    sees_prefix = torch.arange(width, device=device) < starts.unsqueeze(-1)
    sees_probe = (probe.unsqueeze(2) == probe.unsqueeze(1)) & (positions.unsqueeze(2) >= positions.unsqueeze(1))
    scored = [[token for probe in row.probes for token in probe.answer] for row in rows]
    logits = model(
        input_ids=tokens,
        attention_mask=torch.cat([sees_prefix, sees_probe], dim=2).unsqueeze(1),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=max(len(answer) for answer in scored),
    ).logits
    means = []
    for row, answer, row_logits in zip(rows, scored, logits, strict=True):
        logps = row_logits[-len(answer) :].float().log_softmax(dim=-1)
        logps = logps.gather(1, torch.tensor(answer, device=device).unsqueeze(1)).squeeze(1)
        means += [part.mean() for part in logps.split([len(probe.answer) for probe in row.probes])]
    values: list[float] = torch.stack(means).tolist()
    return values


def _cells(row: _Row) -> list[tuple[int, int, int, int]]:
    """(probe, token, position, visible prefix tokens) of all input tokens, those before a scored token last."""
    unscored: list[tuple[int, int, int, int]] = []
    scoring: list[tuple[int, int, int, int]] = []
    for number, probe in enumerate(row.probes):
        first = len(probe.ids) - len(probe.answer)
        for k, token in enumerate(probe.ids):
            (scoring if k >= first else unscored).append((number, token, probe.start + k, probe.start))
    return unscored + scoring


@contextmanager
def _scoring_mode(model: Any) -> Iterator[None]:
    """No dropout, no gradient checkpointing (it drops the cache), and attention that supports a mask of any shape."""
    was_training, attention = model.training, model.config._attn_implementation
    model.eval()
    if attention != "sdpa":
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if attention != "sdpa":
            model.set_attn_implementation(attention)
        model.train(was_training)


def _check(
    ids: Sequence[Sequence[int]],
    boundaries: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    max_tokens: int,
) -> None:
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}.")
    for name, rows in (("boundaries", boundaries), ("answers", answers)):
        if len(rows) != len(ids):
            raise ValueError(f"{name} must hold one entry per sequence ({len(ids)}), got {len(rows)}.")
    for i, (sequence, places, accepted) in enumerate(zip(ids, boundaries, answers, strict=True)):
        if not accepted or not all(accepted):
            raise ValueError(f"answers[{i}] must hold at least one answer, each with a token.")
        if not all(1 <= end <= len(sequence) for end in places):
            raise ValueError(f"boundaries[{i}] must lie in [1, {len(sequence)}], inside the sequence: {places}.")
