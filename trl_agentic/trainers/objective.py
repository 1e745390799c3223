"""Policy loss of a micro-batch, for the loss types `turn`, `grpo` and `dapo` of every algorithm and ratio level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trl_agentic.loss import aggregate, clipped_surrogate, importance_ratio


NORMALIZERS = {
    "grpo": ("rollout", "num_rollouts_in_batch"),
    "turn": ("turn", "num_turns_in_batch"),
    "dapo": ("token", "num_items_in_batch"),
}
"""Of each loss type: the level of its means, and the key of their number in the generation batch. Rollouts, turns and
tokens count if they are trained on: a failed, empty or masked rollout counts nowhere."""


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Loss of a micro-batch and its diagnostics.

    Attributes:
        loss (0-d `Tensor`): share of this micro-batch in the loss of the generation batch.
        ratio (`Tensor` of shape (n, c)): importance ratio of each token.
        is_clipped (`Tensor` of shape (n, c), bool): whether the clip range stopped the token's gradient.
        token_metrics: values (n, c) to average over the trained tokens, by metric name.
    """

    loss: Tensor
    ratio: Tensor
    is_clipped: Tensor
    token_metrics: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """Clipped policy objective with an optional KL penalty.

    Attributes:
        loss_type: `"turn"`, `"grpo"` or `"dapo"`.
        level: level of the importance ratio, `"token"`, `"turn"` or `"sequence"`.
        epsilon_low, epsilon_high: clip range below and above 1, before a turn's own factor.
        beta: weight of the KL divergence to the reference policy.
        kl_times_ratio: whether the KL divergence is multiplied by the ratio (`use_bias_correction_kl`).
    """

    loss_type: str
    level: str
    epsilon_low: float
    epsilon_high: float
    beta: float = 0.0
    kl_times_ratio: bool = False

    def __call__(self, batch: dict[str, Tensor], logps: Tensor, share: float = 1.0) -> LossTerms:
        """Computes the loss.

        Args:
            batch: micro-batch: `tool_mask`, `turn_ids`, `advantages` (n, c), `rollout_tokens` (n,), the number that
                the loss type divides by and, optionally, `clip_scales`, `old_per_token_logps`,
                `ref_per_token_logps`, `importance_sampling_ratio` (n, c).
            logps (`Tensor` of shape (n, c)): log-probabilities under the policy, with a gradient.
            share: factor on the loss, see [`gradient_share`].
        """
        mask, turn_ids, advantages = batch["tool_mask"], batch["turn_ids"], batch["advantages"]
        old_logps = batch.get("old_per_token_logps", logps.detach())
        ratio = importance_ratio(logps - old_logps, mask, turn_ids, level=self.level)
        scales = batch.get("clip_scales", 1.0)
        per_token_loss, is_clipped = clipped_surrogate(
            ratio, advantages, self.epsilon_low * scales, self.epsilon_high * scales
        )
        if "importance_sampling_ratio" in batch:
            per_token_loss = per_token_loss * batch["importance_sampling_ratio"]
        metrics = {
            "clip_ratio/low_mean": (is_clipped & (advantages < 0)).float(),
            "clip_ratio/high_mean": (is_clipped & (advantages > 0)).float(),
            "clip_ratio/region_mean": is_clipped.float(),
        }
        if self.beta != 0.0:
            log_ref = batch["ref_per_token_logps"] - logps
            per_token_kl = torch.exp(log_ref) - log_ref - 1
            if self.kl_times_ratio:
                per_token_kl = per_token_kl * ratio
            per_token_loss = per_token_loss + self.beta * per_token_kl
            metrics["kl"] = per_token_kl
        level, normalizer = NORMALIZERS[self.loss_type]
        loss = aggregate(
            per_token_loss, mask, level, turn_ids, rollout_lengths=batch["rollout_tokens"],
            normalizer=batch[normalizer],
        )  # fmt: skip
        return LossTerms(share * loss, ratio, is_clipped, metrics)


def gradient_share(num_processes: int, steps_per_generation: int = 1, accumulation_steps: int = 1) -> float:
    """Factor that makes the gradient of an optimizer step the mean over the rollouts that it trains on.

    DDP averages gradients over processes, and each process adds its own part of the sum. The normaliser counts the
    whole generation batch, which serves `steps_per_generation / accumulation_steps` optimizer steps.

    Args:
        num_processes: number of processes.
        steps_per_generation: accumulation steps that share a generation; leave at 1 in evaluation.
        accumulation_steps: accumulation steps of this optimizer step.
    """
    return num_processes * steps_per_generation / accumulation_steps
