"""A key-value cache of many rollouts, each of its own length."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class SlotLayer(DynamicLayer):
    """Keys and values of one layer: of each rollout in a slot of its own, from place 0 on and without gaps."""

    keys: Tensor
    values: Tensor

    def __init__(self, cache: SlotCache):
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes the memory, with the shape that the first states have."""
        self.dtype, self.device = key_states.dtype, key_states.device
        slots, places = self._cache.slots, self._cache.places
        self.keys, self.values = (
            states.new_zeros(slots, states.shape[1], places, states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes states (n, heads, new, head_dim) where `SlotCache.open` said; returns views of all that the n slots
        hold, (n, heads, longest, head_dim)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, memory: Tensor, states: Tensor) -> Tensor:
        first, positions, longest = self._cache.window
        slots = memory[first : first + len(positions)]
        slots.scatter_(2, positions[:, None, :, None].expand(states.shape), states)
        return slots[:, :, :longest]

    def get_seq_length(self) -> int:
        """Tokens that the longest of the slots at hand holds, those being written included."""
        return self._cache.window[2]


class SlotCache(DynamicCache):
    """What [`SlotLayer`]s share: how many slots there are, how long they are, and which of them are being written.

    Attributes:
        slots: number of slots.
        places: tokens that each can hold.
        window: first of the slots that a forward pass reads and writes, positions (n, new) of the ids that it feeds to
            these n, and tokens of the longest afterwards.
    """

    def __init__(self, num_layers: int):
        super().__init__()
        self.slots = self.places = 0
        self.window: tuple[int, Tensor, int] = (0, torch.empty(0, 0), 0)
        self.layers = [SlotLayer(self) for _ in range(num_layers)]
        self.layer_class_to_replicate = None

    def open(self, first: int, positions: Tensor, longest: int) -> None:
        """Says what the next forward pass writes; see `window`."""
        self.window = (first, positions, longest)

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
        kept, length = min(slots, self.slots), min(places, self.places)
        self.slots, self.places = slots, places
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

    That takes attention by a mask of its own for each row, over all that the row holds: sliding windows, recurrent
    states, ALiBi and flash attention do not.
    """
    plain = getattr(model, "get_base_model", lambda: model)()
    takes = inspect.signature(plain.forward).parameters
    layers = DynamicCache(config=model.config).layers
    if (
        model.config._attn_implementation not in ("sdpa", "eager")
        or not {"position_ids", "logits_to_keep"} <= takes.keys()
        or getattr(model.config, "alibi", False)
        or any(type(layer) is not DynamicLayer for layer in layers)
    ):
        return None
    return SlotCache(len(layers))
