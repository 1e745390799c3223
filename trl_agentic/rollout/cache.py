"""A key-value cache of many rollouts, each of its own length."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


@dataclass(slots=True)
class Window:
    """How large a cache is, and what the next forward pass writes.

    Attributes:
        slots: number of slots.
        places: tokens that each can hold.
        first: the first slot that the pass reads and writes.
        positions: where it writes the ids that it feeds to the n slots from there on, (n, new).
        longest: how many places of these slots it reads.
    """

    slots: int = 0
    places: int = 0
    first: int = 0
    positions: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    longest: int = 0


class SlotLayer(DynamicLayer):
    """Keys and values of one layer: of each rollout in a slot of its own, from place 0 on and without gaps."""

    keys: Tensor
    values: Tensor

    def __init__(self, window: Window):  # and not the cache: a cycle would outlive the rollouts
        super().__init__()
        self._window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes the memory, with the shape that the first states have.

        Under autocast keys come in float32 and values do not; attention casts both to what values have.
        """
        self.dtype, self.device = value_states.dtype, value_states.device
        self.keys, self.values = (
            value_states.new_zeros(self._window.slots, states.shape[1], self._window.places, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes states (n, heads, new, head_dim) where the window says; returns views of what the n slots hold,
        (n, heads, longest, head_dim)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, memory: Tensor, states: Tensor) -> Tensor:
        window = self._window
        slots = memory[window.first : window.first + len(window.positions)]
        positions = window.positions.to(memory.device)
        slots.scatter_(2, positions[:, None, :, None].expand(states.shape), states.to(memory.dtype))
        return slots[:, :, : window.longest]

    def get_seq_length(self) -> int:
        """Tokens that the longest of the slots at hand holds, those being written included."""
        return self._window.longest if self.is_initialized else 0


class SlotCache(DynamicCache):
    """The [`SlotLayer`]s of a model."""

    def __init__(self, num_layers: int):
        super().__init__()
        self.window = Window()
        self.layers = [SlotLayer(self.window) for _ in range(num_layers)]
        self.layer_class_to_replicate = None

    def open(self, first: int, positions: Tensor, longest: int) -> None:
        """Says what the next forward pass writes and reads; see [`Window`]."""
        self.window.first, self.window.positions, self.window.longest = first, positions, longest

    def holds_anything(self) -> bool:
        """Whether a model has written to it."""
        return any(layer.is_initialized for layer in self.layers)

    def move(self, sources: list[int], targets: list[int], longest: int) -> None:
        """Copies the first `longest` places of slots to other slots, all at once."""
        for layer in self.layers:
            if layer.is_initialized:
                for memory in (layer.keys, layer.values):
                    memory[targets, :, :longest] = memory[sources, :, :longest]

    def resize(self, slots: int, places: int) -> None:
        """Makes room, or gives some back: slots and places beyond are lost."""
        window = self.window
        kept, length = min(slots, window.slots), min(places, window.places)
        window.slots, window.places = slots, places
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = (
                    _resized(memory, slots, places, kept, length) for memory in (layer.keys, layer.values)
                )


def _resized(memory: Tensor, slots: int, places: int, kept: int, length: int) -> Tensor:
    larger = memory.new_zeros(slots, memory.shape[1], places, memory.shape[3])
    larger[:kept, :, :length] = memory[:kept, :, :length]
    return larger


def slot_cache(model: PreTrainedModel) -> SlotCache | None:
    """An empty cache, or `None` for a model whose rows cannot each have a length of their own.

    That takes attention by a mask of its own for each row, over all that the row holds. Sliding windows and local
    attention, recurrent states, ALiBi and flash attention do not; nor do adapters that put tokens before the text, or
    that look for a place in it.
    """
    plain, adapter = getattr(model, "get_base_model", lambda: model)(), getattr(model, "active_peft_config", None)
    takes = inspect.signature(plain.forward).parameters
    layers = DynamicCache(config=model.config).layers
    if (
        model.config._attn_implementation not in ("sdpa", "eager")
        or not {"position_ids", "logits_to_keep"} <= takes.keys()
        or getattr(model.config, "alibi", False)
        or "local" in getattr(model.config, "attention_layers", ())
        or any(type(layer) is not DynamicLayer for layer in layers)
        or getattr(adapter, "is_prompt_learning", False)
        or getattr(adapter, "alora_invocation_tokens", None)
    ):
        return None
    return SlotCache(len(layers))
