"""Log-probabilities of the trained tokens under the policy, the old policy and the reference model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import is_flash_attention_requested

from trl_agentic.batching.collate import pack_rows
from trl_agentic.loss import importance_correction


def resolve_packing(wanted: bool | None, attention: str) -> bool:
    """Resolves `pack_micro_batches` for a model.

    Args:
        wanted: the option; `None` packs where that saves time.
        attention: the model's attention implementation. Flash attention and flex attention skip pairs of tokens of
            different rows; "sdpa" and "eager" compute and mask them, so that packing may cost more than padding.

    Raises:
        ValueError: packing is wanted, but the implementation does not separate rows by their positions.
    """
    saves = attention == "flex_attention" or is_flash_attention_requested(requested_attention_implementation=attention)
    if wanted and not saves and attention not in ("sdpa", "eager"):
        raise ValueError(
            "`pack_micro_batches=True` needs an attention implementation that separates rows by their positions, but "
            f"the model has {attention!r}. Set it to None, or set `attn_implementation` in `model_init_kwargs` to "
            "'flash_attention_2', 'flash_attention_3', 'flex_attention' or 'sdpa'."
        )
    return saves if wanted is None else wanted


@torch.no_grad()
def check_rows_are_separate(last_logps: Callable[[list[list[int]]], Tensor]) -> None:
    """Checks that packed rows do not influence one another, which not all architectures guarantee.

    Two prefixes are put before a text, once in the same row and once as a row of their own. In the same row they
    change the log-probabilities of the text; as separate rows they must not.

    Args:
        last_logps: packs rows of token ids and returns the log-probabilities of the last tokens of the last row.

    Raises:
        ValueError: a row influences the next one.
    """
    prefixes, text = ([1] * 8, [2] * 8), [3, 4, 5, 6, 7, 8, 9, 10]
    inside = [last_logps([prefix + text]) for prefix in prefixes]
    before = [last_logps([prefix, text]) for prefix in prefixes]
    same_row, separate = ((one - other).abs().max().item() for one, other in (inside, before))
    if separate > 0.1 * same_row:
        raise ValueError(
            "Packed rows must not influence one another, but in this model they do: another row changes "
            f"log-probabilities by {separate:.2g}, and another prefix of the same row by {same_row:.2g}. Set "
            "`pack_micro_batches=False`."
        )


class PolicyLogprobs:
    """Computes log-probabilities of completion tokens, padded through TRL's method or packed.

    Args:
        forward: TRL's `_get_per_token_logps_and_entropies`.
        packs: whether the rows of a micro-batch are packed.
        multiple: packed rows are padded to a multiple of it.
        autocast: the accelerator's context for forward passes.
    """

    def __init__(
        self,
        forward: Callable[..., tuple[Tensor, Any, Any]],
        packs: bool,
        multiple: int,
        autocast: Callable[[], AbstractContextManager[Any]],
    ):
        self._forward, self.packs, self._multiple, self._autocast = forward, packs, multiple, autocast
        self._is_checked = not packs
        self.last: Tensor | None = None
        """Log-probabilities (n, c) of the last forward pass, without a gradient."""

    def compute(self, model: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Any, Any]:
        """Has the signature and the result of TRL's method."""
        logps, entropies, aux_loss = (self._packed if self.packs else self._forward)(model, *args, **kwargs)
        self.last = logps.detach()
        return logps, entropies, aux_loss

    def of_batch(self, model: Any, batch: dict[str, Tensor], **options: bool) -> tuple[Tensor, Any, Any]:
        """Log-probability of each completion token of a micro-batch (n, c), entropies (n, c) and the router's loss.

        Args:
            model: the policy or the reference model.
            batch: the micro-batch.
            **options: `compute_entropy`, `compute_aux_loss` of TRL's method; without them those values are `None`.
        """
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        return self.compute(model, ids, mask, batch["completion_ids"].size(1), **options)

    def add_frozen(
        self, batches: list[dict[str, Tensor]], old: Any | None, reference: AbstractContextManager[Any] | None
    ) -> None:
        """Adds log-probabilities (n, c) of the old policy and of the reference model to micro-batches.

        Args:
            batches: micro-batches.
            old: the policy, if `old_per_token_logps` is needed.
            reference: context with the reference model, if `ref_per_token_logps` is needed.
        """
        for batch in batches if old is not None else []:
            batch["old_per_token_logps"] = self.of_batch(old, batch)[0]
        if reference is not None:
            with reference as model:
                for batch in batches:
                    batch["ref_per_token_logps"] = self.of_batch(model, batch)[0]

    def check_packing(self, model: Any, device: torch.device) -> None:
        """Checks once, before the first generation, that packed rows do not influence one another.

        By then parameters are in their final place, sharded or not.

        Raises:
            ValueError: they do.
        """
        if self._is_checked:
            return

        def last_logps(rows: list[list[int]]) -> Tensor:
            ids = torch.tensor(rows, device=device)
            return self._packed(model, ids, torch.ones_like(ids), 4)[0][-1]

        was_training = model.training
        model.eval()  # no dropout
        check_rows_are_separate(last_logps)
        model.train(was_training)
        self._is_checked = True

    def _packed(
        self,
        model: Any,
        ids: Tensor,
        mask: Tensor,
        keep: int,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: None,
    ) -> tuple[Tensor, Any, Any]:
        """Without a mask and a cache, attention takes positions that start again at 0 for the start of a row."""
        packed = pack_rows(ids, mask, keep, self._multiple)
        router = {"output_router_logits": True} if compute_aux_loss else {}
        with self._autocast():
            outputs = model(
                input_ids=packed.input_ids, position_ids=packed.position_ids, shift_labels=packed.labels,
                fused_lm_head=True, **router,
            )  # fmt: skip
        entropies = packed.unpack(outputs.entropy)[:, -keep:] if compute_entropy else None
        aux_loss = outputs.aux_loss if compute_aux_loss else None
        return packed.unpack(outputs.log_probs)[:, -keep:], entropies, aux_loss


def add_importance_correction(
    batches: list[dict[str, Tensor]], correct: bool, mode: str, low: float | None, high: float | None
) -> tuple[float, float, float] | None:
    """Adds `importance_sampling_ratio`, the importance correction for the engine mismatch, to micro-batches.

    Args:
        batches: micro-batches, with `old_per_token_logps` if they are to be corrected.
        correct: whether to correct. Otherwise, as in evaluation, which may sample at another temperature, it is 1.
        mode: level and form of the correction, such as `"turn_truncate"`.
        low, high: bounds of a weight.

    Returns:
        The largest absolute difference of log-probabilities, the sum of the weights, and the number of tokens; `None`
        without a correction.
    """
    if not correct or "sampling_per_token_logps" not in batches[0]:
        for batch in batches:
            batch["importance_sampling_ratio"] = torch.ones_like(batch["tool_mask"], dtype=torch.float32)
        return None
    level, form = mode.split("_")
    largest, total, tokens = 0.0, 0.0, 0.0
    for batch in batches:
        mask = batch["tool_mask"].bool()
        gap = batch["old_per_token_logps"] - batch["sampling_per_token_logps"]
        weight = importance_correction(gap, mask, batch["turn_ids"], level, form, low, high)
        batch["importance_sampling_ratio"] = weight
        largest = max(largest, torch.where(mask, gap, 0.0).nan_to_num().abs().max().item())
        total, tokens = total + (weight * mask).sum().item(), tokens + mask.sum().item()
    return largest, total, tokens
