"""Credit assignment: pure functions from the turns of a batch, shape (B, K), to one advantage per turn.

The functions read whole prompt groups, need no trainer, tokenizer or process group, and never write to their inputs.
"""

from .a2tgpo import a2tgpo_advantages, a2tgpo_clip_scale, process_turn_mask
from .gagpo import gagpo_advantages, gagpo_values
from .gigpo import gigpo_advantages
from .grouping import anchor_statistics, combine_keys, grouped_mean, grouped_normalize, grouped_std
from .grpo import grpo_advantages
from .igpo import igpo_advantages
from .returns import discounted_returns, episode_returns, generalized_advantage_estimate
from .rloo import rloo_advantages


__all__ = [
    "a2tgpo_advantages",
    "a2tgpo_clip_scale",
    "anchor_statistics",
    "combine_keys",
    "discounted_returns",
    "episode_returns",
    "gagpo_advantages",
    "gagpo_values",
    "generalized_advantage_estimate",
    "gigpo_advantages",
    "grouped_mean",
    "grouped_normalize",
    "grouped_std",
    "grpo_advantages",
    "igpo_advantages",
    "process_turn_mask",
    "rloo_advantages",
]
