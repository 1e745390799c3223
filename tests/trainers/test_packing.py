"""Which models have their rows packed."""

from __future__ import annotations

import pytest
from trl_agentic.trainers.packing import packs


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
    assert packs(None, attention) is by_default
    assert packs(True, attention) is True and packs(False, attention) is False


def test_an_attention_that_does_not_read_positions():
    assert packs(None, "my_attention") is False
    with pytest.raises(ValueError, match="`pack_micro_batches=True` needs .* the model has 'my_attention'. Set it to"):
        packs(True, "my_attention")
