"""Slots hold what a `DynamicLayer` for each rollout alone holds, whatever is written, moved or resized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, FalconConfig, MistralConfig
from transformers.cache_utils import DynamicLayer

from trl_agentic.rollout.cache import SlotCache, SlotLayer, slot_cache


SLOTS = 4
STEP = st.one_of(
    st.tuples(st.just("write"), st.tuples(st.integers(0, SLOTS - 1), st.lists(st.integers(1, 4), min_size=1))),
    st.tuples(st.just("move"), st.permutations(range(SLOTS))),
    st.tuples(st.just("grow"), st.integers(1, 9)),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEP, min_size=1, max_size=12), seed=st.integers(0, 99))
def test_slots_hold_what_layers_of_their_own_hold(steps: list[tuple[str, Any]], seed: int):
    random = torch.Generator().manual_seed(seed)
    cache, alone, lengths = SlotCache(1), [DynamicLayer() for _ in range(SLOTS)], [0] * SLOTS
    cache.resize(SLOTS, 4)
    for kind, value in steps:
        if kind == "write":
            first, new = value[0], value[1][: SLOTS - value[0]]
            width = max(new)
            held = lengths[first : first + len(new)]
            longest = max(held) + width
            if longest > cache.places:
                cache.resize(SLOTS, longest + 3)
            # Padding comes first and is written behind what is real.
            places = [h + (torch.arange(width) - (width - n)) % width for h, n in zip(held, new, strict=True)]
            positions = torch.stack(places)
            cache.open(first, positions, longest)
            states = [torch.rand(len(new), 2, width, 3, generator=random) for _ in range(2)]
            answers = cache.update(*states, 0)
            assert cache.get_seq_length() == longest
            for i, n in enumerate(new):
                own = alone[first + i].update(*(s[i : i + 1, :, width - n :] for s in states))
                lengths[first + i] += n
                for answer, expected in zip(answers, own, strict=True):
                    assert answer.shape[2] == longest
                    assert torch.equal(answer[i, :, : lengths[first + i]], expected[0])
        elif kind == "move":
            cache.move(list(value), list(range(SLOTS)), max(lengths))
            alone, lengths = [alone[i] for i in value], [lengths[i] for i in value]
        else:
            cache.resize(SLOTS, cache.places + value)


def test_resizing_keeps_the_first_slots():
    cache = SlotCache(2)
    cache.resize(3, 2)
    cache.open(0, torch.tensor([[0, 1]] * 3), 2)
    states = torch.rand(3, 1, 2, 1)
    for layer in range(2):
        cache.update(states, states + 1, layer)
    cache.resize(2, 5)
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape == (2, 1, 5, 1)
        assert torch.equal(layer.keys[:, :, :2], states[:2]) and torch.equal(layer.values[:, :, :2], states[:2] + 1)


def test_only_models_with_a_mask_for_each_row_have_one(tiny_model_dir: Callable[..., Path]):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir())
    cache = slot_cache(model)
    assert cache is not None and len(cache.layers) == model.config.num_hidden_layers
    assert {type(layer) for layer in cache.layers} == {SlotLayer}
    model.config._attn_implementation = "flash_attention_2"
    assert slot_cache(model) is None


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, sliding_window=8),
        FalconConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, alibi=True),
    ],
    ids=["sliding window", "alibi"],
)
def test_others_have_none(config: Any):
    assert slot_cache(AutoModelForCausalLM.from_config(config)) is None
