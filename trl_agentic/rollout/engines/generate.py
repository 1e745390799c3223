"""Inference engine that samples with `model.generate`, one batch after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import GenerationConfig, PreTrainedModel

from trl_agentic.rollout.engines.base import LockstepEngine, Request, Sample, Sampling
from trl_agentic.rollout.engines.sampling import generator, processors


_IDLE = -1  # rollout number of the placeholder request of a process without rollouts
# Options that a checkpoint's generation_config.json may set, and that would change the distribution of the samples.
_NEUTRAL = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}


class GenerateEngine(LockstepEngine):
    """Inference engine that samples with `model.generate`, which supports every model of transformers.

    Every turn computes its whole context again.

    For arguments, see [`TransformersEngine`].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos_token_ids: list[int],
        pad_token_id: int,
        sampling: Sampling,
        any_active: Callable[[bool], bool] | None = None,
        policy_step: int | None = None,
    ):
        super().__init__(any_active)
        self._model = model
        self._eos_token_ids = eos_token_ids
        self._pad_token_id = pad_token_id
        self._sampling = sampling
        self._synced_gpus = any_active is not None
        self._policy_step = policy_step

    @torch.no_grad()
    def generate(self, requests: list[Request]) -> list[Sample]:
        """Samples one continuation for each request. With sharded parameters an empty call takes part, too."""
        if not requests:
            if self._synced_gpus:
                self.generate([Request(_IDLE, [self._pad_token_id], max_new_tokens=1, seed=0)])
            return []
        device = self._model.device
        width = max(len(request.prompt_ids) for request in requests)
        pads = [width - len(request.prompt_ids) for request in requests]
        ids = [[self._pad_token_id] * pad + request.prompt_ids for pad, request in zip(pads, requests, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in pads]
        budgets = [request.max_new_tokens for request in requests]
        output = self._model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=GenerationConfig(
                max_new_tokens=max(budgets),
                do_sample=False,
                eos_token_id=self._eos_token_ids,
                pad_token_id=self._pad_token_id,
                use_cache=True,
                disable_compile=True,
                **_NEUTRAL,
            ),
            logits_processor=processors(self._sampling, [generator(request.seed, device) for request in requests]),
            synced_gpus=self._synced_gpus,
        )
        sampled = output[:, width:].tolist()
        return [self._sample(row[:budget]) for row, budget in zip(sampled, budgets, strict=True)]

    def _sample(self, ids: list[int]) -> Sample:
        ends = [i for i, token in enumerate(ids) if token in self._eos_token_ids]
        return Sample(ids[: ends[0] + 1] if ends else ids, None, bool(ends), policy_step=self._policy_step)
