"""Parts of the policy loss: importance ratio, clipped surrogate, importance correction, aggregation, on token tensors.

Tensors have shape (B, T): B training sequences of T tokens, padding included.
"""

from __future__ import annotations

import torch
from torch import Tensor


LEVELS = ("token", "turn", "sequence")
AGGREGATIONS = ("token", "turn", "rollout")


def importance_ratio(
    log_ratio: Tensor,
    mask: Tensor,
    turn_ids: Tensor | None = None,
    level: str = "token",
) -> Tensor:
    """Ratio of the new to the old policy's probability, per token, per turn or per training sequence.

    - `"token"`: s[t] = exp(l[t])
    - `"turn"`: s[t] = exp(mean of l over the tokens of t's turn): GAGPO (arXiv 2605.13217, its action-level ratio),
      A2TGPO (arXiv 2605.06200, eq. 10)
    - `"sequence"`: s[t] = exp(mean of l over the tokens of the sequence): GSPO (arXiv 2507.18071), as TRL computes it

    with l = log pi_new - log pi_old. All tokens of a turn (a sequence) have the same value, and the gradient flows
    through the mean.

    Args:
        log_ratio (`Tensor` of shape (B, T), float): l, in nats; values outside the mask are not read.
        mask (`Tensor` of shape (B, T), bool or 0/1): tokens that the policy generated.
        turn_ids (`Tensor` of shape (B, T), int, *optional*): equal for the tokens of one turn of a sequence, which
            need not be contiguous; any value outside the mask. Needed for `level="turn"`, not read otherwise.
        level (`str`, *optional*, defaults to `"token"`): `"token"`, `"turn"` or `"sequence"`.

    Returns:
        `Tensor` of shape (B, T), dtype of `log_ratio`: 1 where `mask` is `False`.

    Raises:
        ValueError: `level` is unknown, `turn_ids` is missing, or a shape is wrong; the message names the argument.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {LEVELS}, got {level!r}.")
    _check_same_shape("mask", mask, log_ratio)
    mask = mask.bool()
    dtype = log_ratio.dtype
    log_ratio = torch.where(mask, log_ratio, 0.0).to(_wide(dtype))
    if level == "turn":
        if turn_ids is None:
            raise ValueError('turn_ids must be given for level="turn".')
        index, size = _turn_index(mask, turn_ids)
        count = _tokens_per_turn(mask, index, size)
        total = log_ratio.new_zeros(size).index_add(0, index, log_ratio.flatten())
        mean = (total / count.clamp(min=1))[index].view_as(log_ratio)
        log_ratio = torch.where(mask, mean, 0.0)
    elif level == "sequence":
        mean = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        log_ratio = torch.where(mask, mean, 0.0)
    return log_ratio.exp().to(dtype)


def clipped_surrogate(
    ratio: Tensor,
    advantages: Tensor,
    clip_low: float | Tensor,
    clip_high: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Pessimistic policy-gradient loss of each token (PPO, arXiv 1707.06347, eq. 7, with two bounds).

    loss[t] = -min(s[t] * A[t], clip(s[t], 1 - clip_low, 1 + clip_high) * A[t])

    Bounds given as tensors set a range for each token (A2TGPO, arXiv 2605.06200, eq. 11-12: c * epsilon). No gradient
    flows through the bounds.

    Args:
        ratio (`Tensor` of shape (B, T), float): s, from [`importance_ratio`].
        advantages (`Tensor` of shape (B, T) or (B, 1), float): A.
        clip_low (`float` or `Tensor` of shape (), (B, 1) or (B, T)): range of the ratio below 1, not negative.
        clip_high (`float` or `Tensor` of shape (), (B, 1) or (B, T)): range of the ratio above 1, not negative.

    Returns:
        `tuple` of two `Tensor`s of shape (B, T): the loss, not masked, in the dtype of `ratio`; and, bool, whether the
        bound stopped the token's gradient: s < 1 - clip_low with A < 0, or s > 1 + clip_high with A > 0. The sign of A
        distinguishes the two.

    Raises:
        ValueError: a shape is wrong or a bound given as a number is negative; the message names the argument.
    """
    _check_broadcast("advantages", advantages, ratio)
    low = _bound("clip_low", clip_low, ratio)
    high = _bound("clip_high", clip_high, ratio)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        low = torch.as_tensor(low, dtype=ratio.dtype, device=ratio.device)
        high = torch.as_tensor(high, dtype=ratio.dtype, device=ratio.device)
        clipped = torch.clamp(ratio, 1 - low, 1 + high)
    else:
        clipped = torch.clamp(ratio, 1 - low, 1 + high)
    loss = -torch.min(ratio * advantages, clipped * advantages)
    is_clipped = ((ratio < 1 - low) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))
    return loss, is_clipped


def importance_correction(
    log_ratio: Tensor,
    mask: Tensor,
    turn_ids: Tensor | None = None,
    level: str = "token",
    form: str = "truncate",
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """Importance weight of each token for the mismatch between inference engine and trained model (TIS, MIS).

    w = pi_model / pi_engine of the token, of its turn or of the training sequence. The ratio of a turn or sequence is
    the product over its tokens, as in TRL for sequences.

    Args:
        log_ratio (`Tensor` of shape (B, T), float): log pi_model - log pi_engine, in nats. A token for which the
            engine reported NaN counts as 0.
        mask (`Tensor` of shape (B, T), bool or 0/1): tokens that the policy generated.
        turn_ids (`Tensor` of shape (B, T), int, *optional*): as in [`importance_ratio`]; needed for `level="turn"`.
        level (`str`, *optional*, defaults to `"token"`): `"token"`, `"turn"` or `"sequence"`.
        form (`str`, *optional*, defaults to `"truncate"`): treatment of a weight outside [low, high]: `"truncate"`
            (TIS) sets it to the bound, `"mask"` (MIS) to 0.
        low (`float`, *optional*): lower bound; none if `None`.
        high (`float`, *optional*): upper bound; none if `None`.

    Returns:
        `Tensor` of shape (B, T), 1 where `mask` is `False`; of shape (B, 1) for `level="sequence"`.

    Raises:
        ValueError: `level` or `form` is unknown, `turn_ids` is missing, or a shape is wrong.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {LEVELS}, got {level!r}.")
    if form not in ("truncate", "mask"):
        raise ValueError(f"form must be one of ('truncate', 'mask'), got {form!r}.")
    _check_same_shape("mask", mask, log_ratio)
    log_ratio = torch.where(mask.bool(), log_ratio, 0.0).nan_to_num()
    if level == "turn":
        if turn_ids is None:
            raise ValueError('turn_ids must be given for level="turn".')
        index, size = _turn_index(mask.bool(), turn_ids)
        total = log_ratio.new_zeros(size).index_add(0, index, log_ratio.flatten())
        log_ratio = torch.where(mask.bool(), total[index].view_as(log_ratio), 0.0)
    elif level == "sequence":
        log_ratio = log_ratio.sum(dim=1, keepdim=True)
    weight = log_ratio.exp()
    bounds = 0.0 if low is None else low, torch.inf if high is None else high
    if form == "truncate":
        return weight.clamp(*bounds)
    return weight.masked_fill((weight < bounds[0]) | (weight > bounds[1]), 0.0)


def aggregate(
    per_token_loss: Tensor,
    mask: Tensor,
    level: str = "token",
    turn_ids: Tensor | None = None,
    rollout_lengths: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Sum the loss of the tokens, turns or rollouts in these training sequences, divided by a number N.

    - `"token"`: (sum of loss[t]) / N_tokens (DAPO, arXiv 2503.14476)
    - `"turn"`: (sum over turns of the mean of loss over the turn's tokens) / N_turns
    - `"rollout"`: (sum over rollouts of the mean of loss over the rollout's tokens) / N_rollouts (GRPO, arXiv
      2402.03300)

    N is the number of tokens, turns or rollouts that are trained on, which means that they have a token in the mask,
    in the whole batch. Failed, empty and masked rollouts are not counted at any level. [`count_turns`] gives N_turns.

    With N of the whole batch as `normalizer`, the sum over micro-batches does not depend on how the batch is divided,
    provided that no turn is divided and that `rollout_lengths` is given where a rollout is.

    Args:
        per_token_loss (`Tensor` of shape (B, T), float): values outside the mask are not read.
        mask (`Tensor` of shape (B, T), bool or 0/1): tokens that the policy generated.
        level (`str`, *optional*, defaults to `"token"`): `"token"`, `"turn"` or `"rollout"`.
        turn_ids (`Tensor` of shape (B, T), int, *optional*): as in [`importance_ratio`]; needed for `level="turn"`.
        rollout_lengths (`Tensor` of shape (B,), *optional*): generated tokens of each sequence's rollout, in all of
            its sequences; read for `level="rollout"`. By default, each sequence is a whole rollout.
        normalizer (`float` or 0-d `Tensor`, *optional*): N. Defaults to the number in these sequences (at level
            `"rollout"`, of sequences with a token in the mask). A number below 1 counts as 1.

    Returns:
        0-d `Tensor`: 0 when the mask is empty.

    Raises:
        ValueError: `level` is unknown, `turn_ids` is missing, or a shape is wrong; the message names the argument.
    """
    if level not in AGGREGATIONS:
        raise ValueError(f"level must be one of {AGGREGATIONS}, got {level!r}.")
    _check_same_shape("mask", mask, per_token_loss)
    mask = mask.bool()
    loss = torch.where(mask, per_token_loss, 0.0).to(_wide(per_token_loss.dtype))
    number: float | Tensor
    if level == "token":
        number = mask.sum()
    elif level == "turn":
        if turn_ids is None:
            raise ValueError('turn_ids must be given for level="turn".')
        loss = loss / turn_lengths(mask, turn_ids).clamp(min=1)
        number = count_turns(mask, turn_ids)
    else:
        lengths = mask.sum(dim=1) if rollout_lengths is None else rollout_lengths
        _check_same_shape("rollout_lengths", lengths, mask.any(dim=1))
        loss = loss / lengths.unsqueeze(1).clamp(min=1)
        number = mask.any(dim=1).sum()
    number = torch.as_tensor(number if normalizer is None else normalizer, device=loss.device)
    return (loss.sum() / number.clamp(min=1)).to(per_token_loss.dtype)


def turn_lengths(mask: Tensor, turn_ids: Tensor) -> Tensor:
    """Number of tokens in each token's turn.

    Args:
        mask (`Tensor` of shape (B, T), bool or 0/1): tokens that the policy generated.
        turn_ids (`Tensor` of shape (B, T), int): as in [`importance_ratio`].

    Returns:
        `Tensor` of shape (B, T), int64: 0 where `mask` is `False`.
    """
    mask = mask.bool()
    index, size = _turn_index(mask, turn_ids)
    lengths = _tokens_per_turn(mask, index, size)[index].view_as(mask)
    return torch.where(mask, lengths, 0)


def count_turns(mask: Tensor, turn_ids: Tensor) -> Tensor:
    """Number of turns that have a token in the mask. Equal ids in two training sequences are two turns.

    Args:
        mask (`Tensor` of shape (B, T), bool or 0/1): tokens that the policy generated.
        turn_ids (`Tensor` of shape (B, T), int): as in [`importance_ratio`].

    Returns:
        0-d `Tensor`, int64.
    """
    mask = mask.bool()
    return (_tokens_per_turn(mask, *_turn_index(mask, turn_ids)) > 0).sum()


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Data type of sums: half precision cannot count more than a few hundred tokens."""
    return torch.promote_types(dtype, torch.float32)


def _turn_index(mask: Tensor, turn_ids: Tensor) -> tuple[Tensor, int]:
    """A dense number in [0, size) for the (tensor row, turn) of each token, flattened to (B * T,)."""
    _check_same_shape("turn_ids", turn_ids, mask)
    unique, dense = torch.unique(torch.where(mask, turn_ids, -1), return_inverse=True)
    rows = torch.arange(mask.shape[0], device=mask.device).unsqueeze(1)
    return (rows * unique.numel() + dense).flatten(), mask.shape[0] * unique.numel()


def _tokens_per_turn(mask: Tensor, index: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.int64, device=mask.device).index_add(0, index, mask.flatten().long())


def _bound(name: str, value: float | Tensor, ratio: Tensor) -> float | Tensor:
    if isinstance(value, Tensor):
        _check_broadcast(name, value, ratio)
        return value.detach()
    if not value >= 0.0:
        raise ValueError(f"{name} must not be negative, got {value}.")
    return value


def _check_same_shape(name: str, value: Tensor, reference: Tensor) -> None:
    if value.shape != reference.shape:
        raise ValueError(f"{name} must have shape {tuple(reference.shape)}, got {tuple(value.shape)}.")


def _check_broadcast(name: str, value: Tensor, ratio: Tensor) -> None:
    b, t = ratio.shape
    allowed = ((), (b, 1), (b, t))
    if tuple(value.shape) not in allowed:
        raise ValueError(f"{name} must have one of the shapes {allowed}, got {tuple(value.shape)}.")
