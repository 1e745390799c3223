"""Policy objective, with numbers worked out by hand."""

from __future__ import annotations

from math import log

import pytest
import torch

from trl_agentic.trainers.objective import LossTerms, PolicyObjective


def one_row(log_ratio: list[float], advantages: list[float], **more: list[float]) -> tuple[dict, torch.Tensor]:
    """Turn 0 has the first two tokens, turn 1 the last; the third is an observation. Normalizers are 1."""
    batch = {
        "tool_mask": torch.tensor([[1, 1, 0, 1]]),
        "turn_ids": torch.tensor([[0, 0, -1, 1]]),
        "advantages": torch.tensor([advantages]),
        "rollout_tokens": torch.tensor([3]),
        "num_items_in_batch": torch.tensor(1),
        "old_per_token_logps": torch.full((1, 4), -7.0),
    }
    batch |= {key: torch.tensor([value]) for key, value in more.items()}
    return batch, torch.tensor([log_ratio]) - 7.0


def objective(level: str = "token", **options) -> PolicyObjective:
    return PolicyObjective("dapo", level, epsilon_low=0.2, epsilon_high=0.3, **options)


def close(value: torch.Tensor, expected: float | list) -> None:
    torch.testing.assert_close(value, torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("dapo", -0.9),  # tokens 1, 1, 2, 5: -(1 + 1 + 2 + 5) / 10
        ("turn", -2.0),  # means of the turns 1, 2, 5: -(1 + 2 + 5) / 4
        ("grpo", -19 / 24),  # means of the rollouts 4 / 3 and 5: -(4 / 3 + 5) / 8
    ],
)
def test_loss_types_by_hand(loss_type: str, expected: float):
    """Without old log-probabilities the ratio is 1, and the loss of a token is its negated advantage."""
    batch = {
        "tool_mask": torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]),
        "turn_ids": torch.tensor([[0, 0, -1, 1], [0, -1, -1, -1]]),
        "advantages": torch.tensor([[1.0, 1.0, 9.0, 2.0], [5.0, 9.0, 9.0, 9.0]]),
        "rollout_tokens": torch.tensor([3, 1]),
        "num_items_in_batch": torch.tensor(10),
        "num_turns_in_batch": torch.tensor(4),
        "num_rollouts_in_batch": torch.tensor(8),
    }
    policy = PolicyObjective(loss_type, "token", 0.2, 0.3)
    close(policy(batch, torch.zeros(2, 4)).loss, expected)
    close(policy(batch, torch.zeros(2, 4), share=3.0).loss, 3 * expected)


def test_the_gradient_flows_through_the_ratio_without_old_log_probabilities():
    batch, _ = one_row([0.0] * 4, [1.0, -2.0, 9.0, 3.0])
    del batch["old_per_token_logps"]
    logps = torch.zeros(1, 4, requires_grad=True)
    objective()(batch, logps).loss.backward()
    assert logps.grad is not None
    close(logps.grad, [[-1.0, 2.0, 0.0, -3.0]])


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("token", [4.0, 1.0, 1.0, 16.0]),
        ("turn", [2.0, 2.0, 1.0, 16.0]),  # sqrt(4 * 1), 16
        ("sequence", [4.0, 4.0, 1.0, 4.0]),  # (4 * 1 * 16) ** (1 / 3)
    ],
)
def test_ratio_levels_by_hand(level: str, expected: list[float]):
    batch, logps = one_row([log(4), 0.0, 5.0, log(16)], [1.0] * 4)
    close(objective(level)(batch, logps).ratio, [expected])


def clipped(**more: list[float]) -> LossTerms:
    """Ratios 2, 1/2, -, 1.1 with advantages 1, -1, -, 1: the first is above the range, the second below."""
    batch, logps = one_row([log(2), log(0.5), 0.0, log(1.1)], [1.0, -1.0, 0.0, 1.0], **more)
    return objective()(batch, logps)


def test_clip_range_and_metrics_by_hand():
    terms = clipped()
    close(terms.loss, -1.6)  # -1.3 + 0.8 - 1.1
    assert terms.is_clipped.tolist() == [[True, True, False, False]]
    assert set(terms.token_metrics) == {"clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"}
    close(terms.token_metrics["clip_ratio/low_mean"], [[0.0, 1.0, 0.0, 0.0]])
    close(terms.token_metrics["clip_ratio/high_mean"], [[1.0, 0.0, 0.0, 0.0]])
    close(terms.token_metrics["clip_ratio/region_mean"], [[1.0, 1.0, 0.0, 0.0]])


def test_clip_scales_multiply_both_bounds():
    close(clipped(clip_scales=[2.0, 2.0, 1.0, 1.0]).loss, -2.1)  # -1.6 + 0.6 - 1.1
