"""Inference engine for a model of transformers: token by token, with a key-value cache for each rollout."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trl_agentic.rollout.batching_delay import BatchingDelay
from trl_agentic.rollout.cache import SlotCache, slot_cache
from trl_agentic.rollout.engines.base import IDLE_PAUSE, Done, Engine, Request, Sample, Sampling
from trl_agentic.rollout.engines.generate import GenerateEngine
from trl_agentic.rollout.engines.sampling import generator, processors


@dataclass(slots=True, eq=False)
class _Row:
    """One rollout, a row of the forward passes. It is running or waiting for admission if `done` is set."""

    rollout: int
    slot: int = -1  # in the cache, -1 before the first admission
    ids: list[int] = field(default_factory=list)  # the context and the sampled ids
    held: int = 0  # number of `ids` that the cache holds
    known: int = 0  # number of `ids` that it held at the beginning of the turn
    prompt: int = 0  # number of `ids` that belong to the prompt
    left: int = 0  # tokens that may still be sampled
    done: Done | None = None
    noise: torch.Generator | None = None
    used: int = 0  # number of the forward pass that last served it

    def take(self, request: Request, done: Done, noise: torch.Generator) -> None:
        self.held = self.known = min(_common(self.ids[: self.held], request.prompt_ids), len(request.prompt_ids) - 1)
        self.ids, self.prompt, self.left = list(request.prompt_ids), len(request.prompt_ids), request.max_new_tokens
        self.done, self.noise = done, noise


class TransformersEngine:
    """Inference engine that samples one token for every running rollout at a time.

    The new tokens of a rollout whose environment answered need a separate forward pass, during which the running
    rollouts stand still. Waiting rollouts are therefore admitted together, at an admission threshold: once their
    waiting has cost as many tokens as their admission costs the running rollouts, one token each.

    The engine waits for environments that answer at once ([`~trl_agentic.rollout.batching_delay.BatchingDelay`]), so
    that the composition of a forward pass, and with it the rounding, does not depend on the clock. It does not wait
    for slow environments.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy, unwrapped. Its weights must not change during the life of the engine.
        eos_token_ids (`list[int]`):
            Ids that end a turn.
        pad_token_id (`int`):
            Id of the padding.
        sampling ([`Sampling`]):
            Sampling parameters.
        any_active (`Callable[[bool], bool]`, *optional*):
            Returns whether any process has active rollouts, or requests, given whether this one has. For parameters
            that are sharded over processes: every process must take part in every forward pass.
        policy_step (`int`, *optional*):
            Optimizer step whose weights the model has.

    Raises:
        ValueError: the model cannot hold rows of different lengths side by side; see [`transformers_engine`].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos_token_ids: list[int],
        pad_token_id: int,
        sampling: Sampling,
        any_active: Callable[[bool], bool] | None = None,
        policy_step: int | None = None,
    ):
        cache = slot_cache(model)
        if cache is None:
            raise ValueError(
                f"{type(model).__name__} with {model.config._attn_implementation!r} attention cannot sample rows of "
                "different lengths side by side. Use `GenerateEngine`."
            )
        self._model = model
        self._cache: SlotCache = cache
        self._eos_token_ids = frozenset(eos_token_ids)
        self._pad_token_id = pad_token_id
        self._sampling = sampling
        self._any_active = any_active
        self._policy_step = policy_step
        self._delay = BatchingDelay()
        self._rollouts: dict[int, _Row] = {}
        self._slots: list[_Row] = []  # in the order of the cache; the running rollouts come first
        self._running: list[_Row] = []
        self._waiting: list[_Row] = []
        self._waiting_cost = 0  # tokens that the waiting rollouts could have sampled since their requests
        self._passes = 0

    def submit(self, request: Request, done: Done) -> None:
        """See [`Engine`]."""
        row = self._rollouts.get(request.rollout)
        if row is None:
            row = self._rollouts[request.rollout] = _Row(request.rollout)
        row.take(request, done, generator(request.seed, self._model.device))
        self._waiting.append(row)

    def step(self, active: int, busy: int) -> float | None:
        """See [`Engine`]."""
        has_work = bool(self._running or self._waiting)
        if self._any_active is None and not has_work:
            return math.inf if active else None
        if left := self._delay.remaining(busy):
            return left
        if self._any_active is not None and not self._any_active(has_work):
            return IDLE_PAUSE if self._any_active(active > 0) else None
        started = time.perf_counter()
        if self._waiting and self._waiting_cost >= len(self._running):  # the admission threshold
            any_ended = self._admit(active)
        elif self._running:
            self._waiting_cost += len(self._waiting)
            any_ended = self._advance(active)
        else:
            self._join_idle()
            any_ended = False
        self._delay.record_pass(time.perf_counter() - started, any_ended)
        return 0.0

    def _admit(self, active: int) -> bool:
        """Reads the new tokens of the waiting rollouts and samples a token for each. Returns whether one ended."""
        joining = sorted(self._waiting, key=lambda row: row.rollout)  # the order of arrival depends on the clock
        self._waiting, self._waiting_cost = [], 0
        new = [row for row in joining if row.slot < 0]
        self._make_room(active, len(new), max(len(row.ids) for row in joining) + 1)
        for row in new:
            row.slot = len(self._slots)
            self._slots.append(row)
        self._arrange([self._running, joining])
        first = len(self._running)
        return self._forward(first, self._slots[first : first + len(joining)])

    def _advance(self, active: int) -> bool:
        """Samples a token for each running rollout. Returns whether one ended."""
        self._make_room(active, 0, max(len(row.ids) for row in self._running))
        self._arrange([self._running])
        rows, self._running = self._slots[: len(self._running)], []
        return self._forward(0, rows)

    @torch.no_grad()
    def _forward(self, first: int, rows: list[_Row]) -> bool:
        """Feeds the ids of the rows that the cache does not hold; slots from `first` on. Returns whether one ended."""
        device = self._model.device
        new = [row.ids[row.held :] for row in rows]
        width = max(len(ids) for ids in new)
        pads = [width - len(ids) for ids in new]
        held = torch.tensor([row.held for row in rows], device=device)[:, None]
        shift = torch.tensor(pads, device=device)[:, None]
        # Padding comes first, so that the last logits belong to the last id of every row. It is written to the place
        # after the row's ids, where the next token replaces it.
        last = held + width - shift - 1
        positions = torch.minimum(held + (torch.arange(width, device=device) - shift) % width, last + 1)
        longest = max(len(row.ids) + (pad > 0) for row, pad in zip(rows, pads, strict=True))
        self._cache.open(first, positions, longest)
        logits = self._model(
            input_ids=torch.tensor(
                [[self._pad_token_id] * pad + ids for pad, ids in zip(pads, new, strict=True)], device=device
            ),
            attention_mask=self._mask(torch.arange(longest, device=device) <= positions[:, None, :, None]),
            position_ids=torch.minimum(positions, last),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if not self._cache.holds_anything():
            raise RuntimeError(
                "The model took no cache. With gradient checkpointing, a model in training mode takes none."
            )
        self._passes += 1
        any_ended = False
        for row, token in zip(rows, self._choose(rows, logits), strict=True):
            row.held, row.used = len(row.ids), self._passes
            row.ids.append(token)
            row.left -= 1
            ended = token in self._eos_token_ids
            if ended or row.left == 0:
                self._end(row, ended)
                any_ended = True
            else:
                self._running.append(row)
        return any_ended

    def _mask(self, seen: Tensor) -> Tensor:
        """Converts a mask of the seen places to the form of the attention: eager attention adds it to its scores."""
        if self._model.config._attn_implementation == "sdpa":
            return seen
        dtype = self._model.dtype
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)

    def _choose(self, rows: list[_Row], logits: Tensor) -> list[int]:
        """The next token of each row, from logits (n, V)."""
        texts: list[list[int]] = []
        if self._sampling.repetition_penalty != 1.0:  # it counts an id once, so that repeating one is neutral padding
            longest = max(len(row.ids) for row in rows)
            texts = [row.ids + row.ids[:1] * (longest - len(row.ids)) for row in rows]
        chosen = processors(self._sampling, [row.noise for row in rows if row.noise is not None])
        # Parameters may be stored on another device than the one that computes; the generators belong to the former.
        scores = chosen(torch.tensor(texts, device=self._model.device), logits.to(self._model.device, torch.float32))
        tokens: list[int] = scores.argmax(-1).tolist()
        return tokens

    def _end(self, row: _Row, ended: bool) -> None:
        done, row.done, row.noise = row.done, None, None
        if done is not None:
            done(Sample(row.ids[row.prompt :], None, ended, cached_tokens=row.known, policy_step=self._policy_step))

    def _join_idle(self) -> None:
        """Takes part in the forward pass of the other processes without a rollout."""
        with torch.no_grad():
            self._model(input_ids=torch.tensor([[self._pad_token_id]], device=self._model.device), use_cache=False)

    # Slots

    def _make_room(self, active: int, new: int, longest: int) -> None:
        """Provides memory for `new` more slots, and for `longest` tokens in each.

        Memory grows by half. Slots beyond the number of active rollouts belong to ended ones: those unused for the
        longest time are then released. If a released rollout continues after all, its context is read again.
        """
        if len(self._slots) + new <= self._cache.window.slots and longest <= self._cache.window.places:
            return
        idle = sorted((row for row in self._slots if row.done is None), key=lambda row: row.used)
        released = idle[: max(0, len(self._slots) + new - active)]
        for row in released:
            del self._rollouts[row.rollout]
        self._arrange([[row for row in self._slots if row.rollout in self._rollouts]])
        del self._slots[len(self._slots) - len(released) :]
        places = longest * 3 // 2 if longest > self._cache.window.places else self._cache.window.places
        self._cache.resize(max(len(self._slots) + new, active), places)

    def _arrange(self, groups: list[list[_Row]]) -> None:
        """Moves the groups of rows to the first slots, one group after the other, with as few swaps as possible."""
        before: dict[int, tuple[_Row, int]] = {}
        first = 0
        for group in groups:
            last = first + len(group)
            members = set(map(id, group))
            holes = [slot for slot in range(first, last) if id(self._slots[slot]) not in members]
            outside = [row for row in group if not first <= row.slot < last]
            for slot, row in zip(holes, outside, strict=True):
                other = self._slots[slot]
                for moved in (row, other):
                    before.setdefault(id(moved), (moved, moved.slot))
                self._slots[slot], self._slots[row.slot] = row, other
                row.slot, other.slot = slot, row.slot
            first = last
        moves = [(old, row.slot, row.held) for row, old in before.values() if row.held and row.slot != old]
        if moves:
            sources, targets, held = zip(*moves, strict=True)
            self._cache.move(list(sources), list(targets), max(held))


def transformers_engine(model: PreTrainedModel, *arguments: Any, **options: Any) -> Engine:
    """Returns a [`TransformersEngine`], or a [`GenerateEngine`] for a model that it does not support.

    For arguments, see [`TransformersEngine`].
    """
    kind = GenerateEngine if slot_cache(model) is None else TransformersEngine
    return kind(model, *arguments, **options)


def _common(left: list[int], right: list[int]) -> int:
    """Length of the common prefix."""
    if right[: len(left)] == left:
        return len(left)
    return next(i for i, pair in enumerate(zip(left, [*right, None], strict=False)) if pair[0] != pair[1])
