"""Whether the rows of a micro-batch can be laid end to end in one: only if attention keeps them apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.utils.generic import is_flash_attention_requested


def packs(wanted: bool | None, attention: str) -> bool:
    """What `pack_micro_batches` means for a model.

    Args:
        wanted: the field; `None` for packing where it saves time.
        attention: the model's attention implementation. Flash attention and flex attention skip what belongs to
            other rows; "sdpa" and "eager" compute it and mask it, so that packing may cost more than padding.

    Raises:
        ValueError: packing is wanted, and this implementation does not tell rows by their positions.
    """
    saves = attention == "flex_attention" or is_flash_attention_requested(requested_attention_implementation=attention)
    if wanted and not saves and attention not in ("sdpa", "eager"):
        raise ValueError(
            f"`pack_micro_batches=True` needs an attention implementation that tells rows by their positions, and the "
            f"model has {attention!r}. Set it to None, or set `attn_implementation` in `model_init_kwargs` to "
            "'flash_attention_2', 'flash_attention_3', 'flex_attention' or 'sdpa'."
        )
    return saves if wanted is None else wanted


@torch.no_grad()
def check_rows_are_apart(last_logps: Callable[[list[list[int]]], Tensor]) -> None:
    """Fails if a packed row changes what the model says about the next: not all architectures keep them apart.

    Two beginnings are put before a text, once as a part of its row and once as a row of their own. In one row they
    change what the model says about the text; in rows of their own they must not.

    Args:
        last_logps: given rows of token ids, packs them and returns the log-probabilities of the last tokens of the
            last row.

    Raises:
        ValueError: they do.
    """
    beginnings, text = ([1] * 8, [2] * 8), [3, 4, 5, 6, 7, 8, 9, 10]
    inside = [last_logps([beginning + text]) for beginning in beginnings]
    before = [last_logps([beginning, text]) for beginning in beginnings]
    in_row, apart = ((one - other).abs().max().item() for one, other in (inside, before))
    if apart > 0.1 * in_row:
        raise ValueError(
            "Rows that are packed into one must not see one another, and in this model they do: another row changes "
            f"log-probabilities by {apart:.2g}, as much as another beginning of the same row ({in_row:.2g}). Set "
            "`pack_micro_batches=False`."
        )
