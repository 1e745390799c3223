"""The policy loss by hand-worked numbers: normalisers of each loss type, clipping, KL divergence, correction."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from trl_agentic.trainers.objective import PolicyObjective, gradient_share


# Rollout 0: turn 0 of one token, an observation, turn 1 of two tokens. Rollout 1: turn 0 of one token.
TURN_IDS = torch.tensor([[0, -1, 1, 1], [0, -1, -1, -1]])
ADVANTAGES = torch.tensor([[1.0, 0.0, -2.0, -2.0], [4.0, 0.0, 0.0, 0.0]])


def micro_batch(**changes: Tensor) -> dict[str, Tensor]:
    """Half of a generation of 3 rollouts with 5 turns and 8 tokens in the loss."""
    batch = {
        "tool_mask": (TURN_IDS >= 0).int(),
        "turn_ids": TURN_IDS,
        "advantages": ADVANTAGES,
        "rollout_tokens": torch.tensor([3, 1]),
        "num_rollouts_in_batch": torch.tensor(3),
        "num_turns_in_batch": torch.tensor(5),
        "num_items_in_batch": torch.tensor(8),
    }
    return batch | changes


def objective(loss_type: str = "dapo", level: str = "token", **changes: Any) -> PolicyObjective:
    return PolicyObjective(
        **{"loss_type": loss_type, "level": level, "epsilon_low": 0.2, "epsilon_high": 0.3, **changes}
    )


LOGPS = torch.full((2, 4), -2.0)


@pytest.mark.parametrize("level", ["token", "turn", "sequence"])
@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("dapo", -(1 - 2 - 2 + 4) / 8),  # tokens
        ("grpo", -((1 - 2 - 2) / 3 + 4) / 3),  # mean of a rollout's tokens, over the rollouts
        ("turn", -(1 - 2 + 4) / 5),  # mean of a turn's tokens, over the turns
    ],
)
def test_the_normaliser_of_each_loss_type(loss_type: str, expected: float, level: str):
    """At a ratio of 1 a token's loss is its negative advantage, at every level of the ratio."""
    terms = objective(loss_type, level)(micro_batch(), LOGPS)
    assert terms.loss.item() == pytest.approx(expected)
    assert not terms.is_clipped.any() and torch.equal(terms.ratio, torch.ones(2, 4))
    assert terms.token_metrics.keys() == {f"clip_ratio/{part}_mean" for part in ("low", "high", "region")}
    assert objective(loss_type, level)(micro_batch(), LOGPS, share=2.5).loss.item() == pytest.approx(2.5 * expected)


def test_a_ratio_outside_its_range_has_no_gradient():
    """Ratios 1.5, 0.7 and 1.5, 1.2: above the range with a positive advantage, below it with a negative one."""
    ratios = torch.tensor([[1.5, 9.0, 0.7, 1.5], [1.2, 9.0, 9.0, 9.0]])
    logps = (LOGPS + ratios.log()).requires_grad_()
    terms = objective()(micro_batch(old_per_token_logps=LOGPS), logps)
    clipped = torch.tensor([[True, False, True, False], [False, False, False, False]])
    assert torch.equal(terms.is_clipped & (TURN_IDS >= 0), clipped)
    assert terms.loss.item() == pytest.approx(-(1.3 * 1 - 0.8 * 2 - 1.5 * 2 + 1.2 * 4) / 8)
    terms.loss.backward()
    assert torch.equal(logps.grad == 0, clipped | (TURN_IDS < 0))
    assert (terms.token_metrics["clip_ratio/high_mean"] * (TURN_IDS >= 0)).sum() == 1
    assert (terms.token_metrics["clip_ratio/low_mean"] * (TURN_IDS >= 0)).sum() == 1


def test_a_turn_has_its_own_clip_range():
    """A factor of 2 widens the range of turn 0 of rollout 0 to 1.6, so that a ratio of 1.5 is inside."""
    scales = torch.where(TURN_IDS == 0, 2.0, 1.0)
    old = LOGPS - math.log(1.5)
    terms = objective()(micro_batch(clip_scales=scales, old_per_token_logps=old), LOGPS)
    assert not terms.is_clipped.any()  # the ratio of a negative advantage is above the range
    assert objective()(micro_batch(old_per_token_logps=old), LOGPS).is_clipped.sum() == 2


@pytest.mark.parametrize("times_ratio", [False, True])
def test_the_kl_divergence(times_ratio: bool):
    """At ln 2 below the reference a token has the divergence 2 - ln 2 - 1. The ratio is 1.25 everywhere."""
    kl = 1 - math.log(2)
    old = LOGPS - math.log(1.25)
    batch = micro_batch(advantages=torch.zeros(2, 4), old_per_token_logps=old, ref_per_token_logps=LOGPS + math.log(2))
    terms = objective(beta=0.5, kl_times_ratio=times_ratio)(batch, LOGPS)
    kl *= 1.25 if times_ratio else 1.0
    assert terms.loss.item() == pytest.approx(0.5 * 4 * kl / 8)
    assert terms.token_metrics["kl"][TURN_IDS >= 0].tolist() == pytest.approx([kl] * 4)


def test_the_importance_correction_is_a_factor_on_the_surrogate_and_not_on_the_kl_divergence():
    weights = torch.tensor([[0.5, 7.0, 2.0, 1.0], [0.25, 7.0, 7.0, 7.0]])
    batch = micro_batch(importance_sampling_ratio=weights, ref_per_token_logps=LOGPS + math.log(2))
    terms = objective(beta=0.5)(batch, LOGPS)
    surrogate = -(0.5 * 1 - 2 * 2 - 1 * 2 + 0.25 * 4)
    assert terms.loss.item() == pytest.approx((surrogate + 0.5 * 4 * (1 - math.log(2))) / 8)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "turn"])
def test_a_batch_that_is_not_trained_on_has_a_loss_of_zero(loss_type: str):
    nothing = torch.full((2, 4), -1)
    logps = LOGPS.clone().requires_grad_()
    totals = {f"num_{name}_in_batch": torch.tensor(0) for name in ("rollouts", "turns", "items")}
    batch = micro_batch(
        turn_ids=nothing, tool_mask=(nothing >= 0).int(), rollout_tokens=torch.zeros(2).long(), **totals
    )
    loss = objective(loss_type)(batch, logps).loss
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(logps.grad, torch.zeros(2, 4))


def test_the_share_of_a_micro_batch():
    """2 processes; a generation of 6 accumulation steps serves 3 updates of 2 steps each."""
    assert gradient_share(2, 6, 2) == 6.0
    assert gradient_share(1) == 1.0 and gradient_share(4) == 4.0
