"""Batched sampling with transformers, with the key-value cache kept from turn to turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trl_agentic.rollout.cache import growing_cache
from trl_agentic.rollout.engines.base import LockstepEngine, Request, Sample, Sampling


_IDLE = -1  # rollout number of the stand-in that a process without rollouts samples for
# What a checkpoint's generation_config.json may ask for beside sampling: it would change the distribution unseen.
_NEUTRAL = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}


class SeededSampling(LogitsProcessor):
    """Turns greedy decoding into sampling with a seed for each row (the Gumbel-max trick).

    A row's tokens depend on its scores and its seed alone: not on the rows beside it, nor on how many processes share
    the batch.
    """

    def __init__(self, seeds: list[int], device: torch.device):
        self._generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` (B, V) plus standard Gumbel noise."""
        noise = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() - noise.log()


class TransformersEngine(LockstepEngine):
    """Batched generation with `model.generate`, with the key-value cache kept from turn to turn.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy, unwrapped.
        eos_token_ids (`list[int]`):
            Ids that end a turn.
        pad_token_id (`int`):
            Id of the padding.
        sampling ([`Sampling`]):
            Sampling parameters.
        keep_cache (`bool`, *optional*, defaults to `True`):
            Continue the cache of the last call where its rollouts go on. Off for attention implementations that cannot
            skip padding inside a row, and for layers that count it (sliding windows, recurrent states).
        any_active (`Callable[[bool], bool]`, *optional*):
            As in [`LockstepEngine`], if parameters are sharded over processes: every process must take part in every
            forward pass.
        min_useful_cache (`float`, *optional*, defaults to `0.5`):
            Share of a kept cache that must be real tokens; below it the cache is built anew without padding inside.
        policy_step (`int`, *optional*):
            Optimizer step whose weights the model has.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos_token_ids: list[int],
        pad_token_id: int,
        sampling: Sampling,
        keep_cache: bool = True,
        any_active: Callable[[bool], bool] | None = None,
        min_useful_cache: float = 0.5,
        policy_step: int | None = None,
    ):
        super().__init__(any_active)
        self._model = model
        self._eos_token_ids = eos_token_ids
        self._pad_token_id = pad_token_id
        self._sampling = sampling
        self._keep_cache = keep_cache and growing_cache(model) is not None
        self._synced_gpus = any_active is not None
        self._min_useful_cache = min_useful_cache
        self._policy_step = policy_step
        self._cache: DynamicCache | None = None
        self._rollouts: list[int] = []
        self._ids = torch.empty(0)  # (B, L) ids that the cache holds, padding included
        self._mask = torch.empty(0)  # (B, L) 1 where an id is real

    def reset(self) -> None:
        """Forgets the cache: the model's weights changed, or other rollouts begin."""
        self._cache = None
        self._rollouts = []

    @torch.no_grad()
    def generate(self, requests: list[Request]) -> list[Sample]:
        """Samples one continuation for each request. With sharded parameters a call without any still takes part."""
        if not requests:
            self.reset()
            if self._synced_gpus:
                self.generate([Request(_IDLE, [self._pad_token_id], max_new_tokens=1, seed=0)])
            return []
        device = self._model.device
        cached = self._select(requests) if self._keep_cache else None
        known = cached.sum(dim=1).tolist() if cached is not None else [0] * len(requests)
        new = [request.prompt_ids[n:] for request, n in zip(requests, known, strict=True)]
        width = max(len(ids) for ids in new)
        tail = torch.tensor([[self._pad_token_id] * (width - len(ids)) + ids for ids in new], device=device)
        tail_mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in new], device=device)
        if cached is None:
            self.reset()
            ids, mask = tail, tail_mask
            cache = growing_cache(self._model) if self._keep_cache else None
        else:
            ids, mask, cache = torch.cat([self._ids, tail], 1), torch.cat([cached, tail_mask], 1), self._cache
        budgets = [request.max_new_tokens for request in requests]
        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=GenerationConfig(
                max_new_tokens=max(budgets),
                do_sample=False,
                eos_token_id=self._eos_token_ids,
                pad_token_id=self._pad_token_id,
                use_cache=True,
                disable_compile=True,
                **_NEUTRAL,
            ),
            logits_processor=self._processors([request.seed for request in requests], device),
            synced_gpus=self._synced_gpus,
        )
        sampled = output[:, ids.size(1) :]
        is_eos = torch.isin(sampled, torch.tensor(self._eos_token_ids, device=device))
        after_eos = (is_eos.cumsum(1) - is_eos.long()) > 0
        within = torch.arange(sampled.size(1), device=device) < torch.tensor(budgets, device=device)[:, None]
        real = ~after_eos & within
        if cache is not None:
            length = output.size(1) - 1  # the last sampled token was not fed
            if cache.get_seq_length() > length:  # fed while other processes were still sampling
                cache.crop(length - cache.get_seq_length())
            self._cache = cache
            self._rollouts = [request.rollout for request in requests]
            self._ids = output[:, :length]
            self._mask = torch.cat([mask, real.long()], 1)[:, :length]
        ended = (is_eos & real).any(1).tolist()
        return [
            Sample(row[keep].tolist(), None, end, cached_tokens=int(held), policy_step=self._policy_step)
            for row, keep, end, held in zip(sampled.cpu(), real.cpu(), ended, known, strict=True)
        ]

    def _select(self, requests: list[Request]) -> Tensor | None:
        """Brings the cache's rows into the order of the requests. Returns their mask (B, L); `None`: start anew."""
        if self._cache is None or self._mask.float().mean() < self._min_useful_cache:
            return None
        place = {rollout: i for i, rollout in enumerate(self._rollouts)}
        rows = []
        for request in requests:
            row = place.get(request.rollout)
            if row is None:
                return None
            held = self._ids[row][self._mask[row].bool()].tolist()
            if len(held) >= len(request.prompt_ids) or request.prompt_ids[: len(held)] != held:
                return None
            rows.append(row)
        if rows != list(range(len(self._rollouts))):
            index = torch.tensor(rows, device=self._ids.device)
            self._cache.batch_select_indices(index)
            self._ids, self._mask = self._ids[index], self._mask[index]
        return self._mask

    def _processors(self, seeds: list[int], device: torch.device) -> LogitsProcessorList:
        sampling = self._sampling
        processors: list[Any] = []
        if sampling.repetition_penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.temperature == 0:
            return LogitsProcessorList(processors)
        processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            processors.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p is not None:
            processors.append(MinPLogitsWarper(sampling.min_p))
        processors.append(SeededSampling(seeds, device))
        return LogitsProcessorList(processors)
