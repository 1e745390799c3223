from __future__ import annotations

import torch

from tests.credit.batches import NAN, Rollout, make_batch
from trl_agentic import credit


def test_new_tensors_are_on_the_device_of_the_batch():
    """The default device is another one: a tensor that was created there could not be combined with the batch."""
    batch = make_batch(
        [
            Rollout(0, [0.0, 1.0], [0, 1], terminated=False, final=1, gains=[0.5, NAN], penalties=[0.1, 0.0]),
            Rollout(0, [1.0], [0], gains=[0.25]),
        ]
    )
    values, keys, mask = batch.rewards, batch.anchor_ids, batch.turn_mask
    with torch.device("meta"):
        results = [
            credit.gagpo_advantages(batch, truncation_bootstrap=True, episode_advantage_weight=1.0),
            credit.gagpo_advantages(batch, advantage_norm="batch", singleton_value="group_mean", leave_one_out=True),
            credit.a2tgpo_advantages(batch),
            credit.a2tgpo_clip_scale(batch),
            credit.gigpo_advantages(batch),
            credit.igpo_advantages(batch, normalization="separate"),
            credit.grpo_advantages(batch, scale_by_std="batch"),
            credit.rloo_advantages(batch),
            credit.grouped_std(values, keys, mask),
        ]
    assert {result.device.type for result in results} == {"cpu"}
