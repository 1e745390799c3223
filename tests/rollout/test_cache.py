"""Slots hold the same states as one `DynamicLayer` for each rollout, after any writes, moves and changes of size."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, FalconConfig, GPTNeoConfig, MistralConfig
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
def test_slots_hold_what_separate_layers_hold(steps: list[tuple[str, Any]], seed: int):
    random = torch.Generator().manual_seed(seed)
    cache, alone, lengths = SlotCache(1), [DynamicLayer() for _ in range(SLOTS)], [0] * SLOTS
    cache.resize(SLOTS, 4)
    for kind, value in steps:
        if kind == "write":
            first, new = value[0], value[1][: SLOTS - value[0]]
            width = max(new)
            held = lengths[first : first + len(new)]
            longest = max(h + n for h, n in zip(held, new, strict=True)) + 1
            if longest > cache.window.places:
                cache.resize(SLOTS, longest + 3)
            # Padding comes first and is written to the place after the real tokens.
            pairs = zip(held, new, strict=True)
            positions = torch.tensor([[h + n] * (width - n) + list(range(h, h + n)) for h, n in pairs])
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
            cache.resize(SLOTS, cache.window.places + value)


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


def test_keys_have_the_type_of_the_values():
    """Under autocast rotary embeddings turn keys into float32; attention would cast them for every token."""
    cache = SlotCache(1)
    cache.resize(1, 2)
    cache.open(0, torch.tensor([[0]]), 1)
    keys, values = cache.update(torch.full((1, 1, 1, 2), 1 / 3), torch.ones(1, 1, 1, 2, dtype=torch.bfloat16), 0)
    assert keys.dtype == values.dtype == torch.bfloat16
    assert torch.equal(keys, torch.full((1, 1, 1, 2), 1 / 3).bfloat16())


def test_a_cache_is_freed_with_its_last_reference():
    """Not with the next garbage collection, which may come after the update."""
    cache = SlotCache(2)
    seen = weakref.ref(cache.layers[0])
    gc.disable()
    try:
        del cache
        assert seen() is None
    finally:
        gc.enable()


def test_models_with_a_mask_for_each_row_have_a_cache(tiny_model_dir: Callable[..., Path]):
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
        GPTNeoConfig(vocab_size=8, hidden_size=8, num_layers=1, num_heads=1, attention_types=[[["local"], 1]]),
    ],
    ids=["sliding window", "alibi", "local"],
)
def test_other_models_have_no_cache(config: Any):
    assert slot_cache(AutoModelForCausalLM.from_config(config)) is None


def test_adapters_that_read_the_text_have_no_cache(tiny_model_dir: Callable[..., Path]):
    configs = {
        "lora": LoraConfig(target_modules="all-linear"),
        "alora": LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", alora_invocation_tokens=[5]),
        "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    }
    served = {
        name: slot_cache(get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir()), config)) is not None
        for name, config in configs.items()
    }
    assert served == {"lora": True, "alora": False, "prompt": False}
