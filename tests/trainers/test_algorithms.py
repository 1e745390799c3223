"""Every option of a config reaches the credit assignment of its algorithm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nan

from tests.toys import Corridor
from tests.trainers.small import small_config, tasks
from trl_agentic import (
    A2TGPOConfig,
    A2TGPOTrainer,
    AgenticGRPOConfig,
    AgenticGRPOTrainer,
    AgenticRLOOConfig,
    AgenticRLOOTrainer,
    AgenticTrainer,
    GAGPOConfig,
    GAGPOTrainer,
    GiGPOConfig,
    GiGPOTrainer,
    IGPOConfig,
    IGPOTrainer,
    TurnBatch,
)
from trl_agentic.credit import (
    a2tgpo_advantages,
    a2tgpo_clip_scale,
    gagpo_advantages,
    gigpo_advantages,
    grpo_advantages,
    igpo_advantages,
    rloo_advantages,
)
from trl_agentic.trainers.base import TurnCredit


def batch() -> TurnBatch:
    """Two groups; states met often, once, and again at the end of a rollout that was cut; gains of process turns."""
    return TurnBatch(
        rewards=torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.0, 0.0], [0.2, 0.0, 0.0], [0.0, 3.0, 0.0], [1.0, 0.0, 0.0]]),
        turn_mask=torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0]]).bool(),
        group_ids=torch.tensor([0, 0, 0, 1, 1]),
        anchor_ids=torch.tensor([[1, 2, 3], [1, 2, 2], [1, 4, -1], [1, 2, -1], [1, -1, -1]]),
        terminated=torch.tensor([True, False, False, True, True]),
        final_anchor_ids=torch.tensor([-1, 3, 1, -1, -1]),
        information_gain=torch.tensor(
            [[0.2, 0.4, nan], [0.0, 0.1, nan], [0.3, 0.2, nan], [0.1, nan, nan], [0.5, nan, nan]]
        ),
        penalties=torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.0, 0.2], [0.0] * 3, [0.0] * 3, [0.3, 0.0, 0.0]]),
    )


def trainer_with(pair: Any, model: Path, output_dir: Path, **changes: Any) -> AgenticTrainer:
    trainer_class, config_class = pair
    args = small_config(config_class, output_dir, **changes)
    return trainer_class(str(model), args=args, train_dataset=tasks(), environment_factory=Corridor)


GAGPO, GIGPO = (GAGPOTrainer, GAGPOConfig), (GiGPOTrainer, GiGPOConfig)
A2TGPO, IGPO = (A2TGPOTrainer, A2TGPOConfig), (IGPOTrainer, IGPOConfig)
GRPO, RLOO = (AgenticGRPOTrainer, AgenticGRPOConfig), (AgenticRLOOTrainer, AgenticRLOOConfig)


@pytest.mark.parametrize(
    ("pair", "function", "options"),
    [
        (GAGPO, gagpo_advantages, {"gamma": 0.5}),
        (GAGPO, gagpo_advantages, {"lam": 0.3}),
        (GAGPO, gagpo_advantages, {"advantage_norm": "batch"}),
        (GAGPO, gagpo_advantages, {"scale_by_std": False}),
        (GAGPO, gagpo_advantages, {"singleton_value": "group_mean"}),
        (GAGPO, gagpo_advantages, {"leave_one_out": True}),
        (GAGPO, gagpo_advantages, {"truncation_bootstrap": True}),
        (GAGPO, gagpo_advantages, {"episode_advantage_weight": 0.7}),
        (GIGPO, gigpo_advantages, {"gamma": 0.5}),
        (GIGPO, gigpo_advantages, {"step_advantage_weight": 0.3}),
        (GIGPO, gigpo_advantages, {"scale_by_std": False}),
        (A2TGPO, a2tgpo_advantages, {"gamma": 0.5}),
        (A2TGPO, a2tgpo_advantages, {"alpha": 0.3}),
        (A2TGPO, a2tgpo_advantages, {"turn_group_norm": "pooled"}),
        (A2TGPO, a2tgpo_advantages, {"rescale_accumulation": False}),
        (A2TGPO, a2tgpo_advantages, {"min_turn_group": 3}),
        (IGPO, igpo_advantages, {"gamma": 0.5}),
        (IGPO, igpo_advantages, {"normalization": "separate"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_is_that_of_the_function(
    pair: Any, function: Any, options: dict[str, Any], tiny_model_dir: Callable[..., Path], tmp_path: Path
):
    default = trainer_with(pair, tiny_model_dir(), tmp_path).turn_advantages(batch())
    changed = trainer_with(pair, tiny_model_dir(), tmp_path, **options).turn_advantages(batch())
    assert torch.equal(default, function(batch()))
    assert torch.equal(changed, function(batch(), **options))
    assert not torch.allclose(default, changed, atol=1e-3)


OF_CLIP_RANGES = [{"clip_beta": 0.1}, {"turn_group_norm": "pooled"}, {"min_turn_group": 3}]


@pytest.mark.parametrize("options", OF_CLIP_RANGES, ids=str)
def test_options_reach_the_clip_range(options: dict[str, Any], tiny_model_dir: Callable[..., Path], tmp_path: Path):
    default = trainer_with(A2TGPO, tiny_model_dir(), tmp_path).turn_clip_scales(batch())
    changed = trainer_with(A2TGPO, tiny_model_dir(), tmp_path, **options).turn_clip_scales(batch())
    assert torch.equal(default, a2tgpo_clip_scale(batch()))
    assert torch.equal(changed, a2tgpo_clip_scale(batch(), **options))
    assert not torch.allclose(default, changed, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "expected"), [(True, True), ("group", True), (False, False), ("none", False), ("batch", "batch")]
)
def test_grpo_scales_as_trl_does(given: Any, expected: Any, tiny_model_dir: Callable[..., Path], tmp_path: Path):
    trainer = trainer_with(GRPO, tiny_model_dir(), tmp_path, scale_rewards=given)
    assert torch.equal(trainer.turn_advantages(batch()), grpo_advantages(batch(), scale_by_std=expected))


def test_rloo_has_no_options(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    assert torch.equal(
        trainer_with(RLOO, tiny_model_dir(), tmp_path).turn_advantages(batch()), rloo_advantages(batch())
    )


def test_metrics_of_turns(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    advantages = torch.where(batch().turn_mask, torch.tensor([[2.0, 0.0, -2.0]]), torch.tensor(9.0))
    credit = TurnCredit(advantages, a2tgpo_clip_scale(batch()), {})
    metrics = trainer_with(GAGPO, tiny_model_dir(), tmp_path).turn_metrics(batch(), credit)
    # Turns: 3 + 3 + 2 + 2 + 1 = 11, with advantages 2 (5), 0 (4), -2 (2): mean 6/11, mean square 28/11.
    assert metrics["turns/advantage_std"] == pytest.approx((28 / 11 - (6 / 11) ** 2) ** 0.5)
    assert metrics["turns/advantage_abs_mean"] == pytest.approx(14 / 11)
    assert metrics["turns/advantage_abs_gt_1"] == pytest.approx(7 / 11)
    # States of group 0: {1: 3, 2: 3, 3: 1, 4: 1}, of group 1: {1: 2, 2: 1}.
    assert metrics["turns/singleton_frac"] == pytest.approx(3 / 11)
    assert metrics["turns/group_size"] == pytest.approx(11 / 6)
    # Gains 0.2 0.4 0.0 0.1 0.3 0.2 0.1 0.5: mean 0.225, mean square 0.075.
    gains = trainer_with(A2TGPO, tiny_model_dir(), tmp_path).turn_metrics(batch(), credit)
    assert gains["information_gain/mean"] == pytest.approx(0.225)
    assert gains["information_gain/std"] == pytest.approx((0.075 - 0.225**2) ** 0.5)
    assert gains["information_gain/positive_frac"] == pytest.approx(7 / 8)
    scales = a2tgpo_clip_scale(batch())[batch().turn_mask]
    assert gains["clip_range/low_mean"] == pytest.approx(3e-3 * scales.mean().item())
    assert gains["clip_range/high_mean"] == pytest.approx(4e-3 * scales.mean().item())
    assert gains["clip_range/scale_std"] == pytest.approx(scales.std(correction=0).item())
    without_turns = TurnBatch(
        torch.zeros(1, 1), torch.zeros(1, 1).bool(), torch.tensor([0]), torch.tensor([[-1]]), torch.tensor([True])
    )
    empty = trainer_with(GAGPO, tiny_model_dir(), tmp_path).turn_metrics(
        without_turns, TurnCredit(torch.zeros(1, 1), None, {})
    )
    assert empty == {"turns/singleton_frac": 0.0, "turns/group_size": 0.0}
