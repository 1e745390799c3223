"""Token sampling from scores, with a seed for each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trl_agentic.rollout.engines.base import Sampling


class SeededSampling(LogitsProcessor):
    """Logits processor that turns the choice of the highest score into sampling (the Gumbel-max trick).

    Each row has a generator of its own. The tokens of a row depend on its scores and its generator only: not on the
    other rows, nor on the number of processes that share the batch.
    """

    def __init__(self, generators: list[torch.Generator]):
        self._generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns `scores` (B, V) plus standard Gumbel noise."""
        noise = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() - noise.log()


def processors(sampling: Sampling, generators: list[torch.Generator]) -> LogitsProcessorList:
    """Processors after which the highest score of each row is its next token. Temperature 0 ignores `generators`."""
    chosen: list[Any] = []
    if sampling.repetition_penalty != 1.0:
        chosen.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature == 0:
        return LogitsProcessorList(chosen)
    chosen.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chosen.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        chosen.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        chosen.append(MinPLogitsWarper(sampling.min_p))
    chosen.append(SeededSampling(generators))
    return LogitsProcessorList(chosen)


def generator(seed: int, device: torch.device) -> torch.Generator:
    """Generator of the noise of one row."""
    return torch.Generator(device=device).manual_seed(seed)
