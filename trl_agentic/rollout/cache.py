"""Key-value cache for many rollouts of different lengths."""

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
    """Size of a cache, and the part of it that the next forward pass reads and writes.

    Attributes:
        slots: number of slots.
        places: number of tokens that each slot can hold.
        first: the first slot that the pass reads and writes.
        positions: the places where it writes the new ids of the n slots from `first` on, (n, new).
        longest: the number of places of these slots that it reads.
    """

    slots: int = 0
    places: int = 0
    first: int = 0
    positions: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    longest: int = 0


class SlotLayer(DynamicLayer):
    """Keys and values of one layer. Each rollout has a slot of its own, filled from place 0 on and without gaps."""

    keys: Tensor
    values: Tensor

    def __init__(self, window: Window):  # not the cache: a reference cycle would outlive the rollouts
        super().__init__()
        self._window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the memory, with the shape of the first states.

        Under autocast only the keys are float32. Attention casts both to the dtype of the values.
        """
        self.dtype, self.device = value_states.dtype, value_states.device
        self.keys, self.values = (
            value_states.new_zeros(self._window.slots, states.shape[1], self._window.places, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes states (n, heads, new, head_dim) to the window's positions; returns views of the n slots,
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
        """Number of tokens in the longest slot of the window, those being written included."""
        return self._window.longest if self.is_initialized else 0


class SlotCache(DynamicCache):
    """Cache that consists of the [`SlotLayer`]s of a model."""

    def __init__(self, num_layers: int):
        super().__init__()
        self.window = Window()
        self.layers = [SlotLayer(self.window) for _ in range(num_layers)]
        self.layer_class_to_replicate = None

    def open(self, first: int, positions: Tensor, longest: int) -> None:
        """Sets the part of the cache that the next forward pass writes and reads; see [`Window`]."""
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
        """Changes the number of slots and of places. The content of slots and places beyond them is dropped."""
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
    """Returns an empty cache, or `None` for a model that does not support rows of different lengths.

    The model must attend to all tokens of a row, with a separate mask for each row. Sliding windows, local attention,
    recurrent states, ALiBi and flash attention are not supported; nor are adapters that put tokens before the text or
    search for a position in it.
    """
    base, adapter = getattr(model, "get_base_model", lambda: model)(), getattr(model, "active_peft_config", None)
    arguments = inspect.signature(base.forward).parameters
    layers = DynamicCache(config=model.config).layers
    if (
        model.config._attn_implementation not in ("sdpa", "eager")
        or not {"position_ids", "logits_to_keep"} <= arguments.keys()
        or getattr(model.config, "alibi", False)
        or "local" in getattr(model.config, "attention_layers", ())
        or any(type(layer) is not DynamicLayer for layer in layers)
        or getattr(adapter, "is_prompt_learning", False)
        or getattr(adapter, "alora_invocation_tokens", None)
    ):
        return None
    return SlotCache(len(layers))
