"""Which models have their training sequences packed."""

from __future__ import annotations

import pytest

from trl_agentic.trainers.logprobs import resolve_packing


@pytest.mark.parametrize(
    ("attention", "by_default"),
    [
        ("flash_attention_2", True),
        ("flash_attention_3", True),
        ("kernels-community/flash-attn2", True),
        ("flex_attention", True),
        ("sdpa", False),
        ("eager", False),
    ],
)
def test_rows_are_packed_where_that_saves_time(attention: str, by_default: bool):
    assert resolve_packing(None, attention) is by_default
    assert resolve_packing(True, attention) is True and resolve_packing(False, attention) is False


def test_an_attention_that_does_not_read_positions():
    assert resolve_packing(None, "my_attention") is False
    with pytest.raises(ValueError, match="`pack_micro_batches=True` needs .* the model has 'my_attention'. Set it to"):
        resolve_packing(True, "my_attention")
