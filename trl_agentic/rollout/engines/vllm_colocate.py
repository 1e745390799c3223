"""Inference engine that samples with a vLLM engine in this process."""

from __future__ import annotations

import math
import time
from typing import Any

import torch.distributed

from trl_agentic.rollout.batching_delay import BatchingDelay
from trl_agentic.rollout.engines.base import IDLE_PAUSE, Done, Request, Sample, Sampling
from trl_agentic.rollout.engines.vllm_server import request_parameters


class VLLMColocateEngine:
    """Inference engine that drives vLLM one step, that is one token of every running request, at a time.

    A rollout whose environment has answered joins the running batch at the next step. The engine waits for
    environments that answer at once, so that steps are full, and equally full in every run.

    Args:
        llm (`vllm.LLM`):
            The engine, without requests.
        eos_token_ids (`list[int]`):
            Ids that end a turn.
        sampling ([`Sampling`]):
            Sampling parameters.
        extra (`dict[str, Any]`, *optional*):
            Further arguments of `vllm.SamplingParams`.
        policy_step (`int`, *optional*):
            Optimizer step whose weights the engine has.
        group (`torch.distributed.ProcessGroup`, *optional*):
            Processes that share one engine (tensor parallelism). Each of them adds the requests of all in the same
            order, and they step together.
    """

    def __init__(
        self,
        llm: Any,
        eos_token_ids: list[int],
        sampling: Sampling,
        extra: dict[str, Any] | None = None,
        policy_step: int | None = None,
        group: Any = None,
    ):
        self._engine = llm.llm_engine
        self._eos_token_ids = frozenset(eos_token_ids)
        self._parameters = {**request_parameters(sampling, eos_token_ids), **(extra or {})}
        self._policy_step = policy_step
        self._group = group
        self._rank = 0 if group is None else torch.distributed.get_rank(group)
        self._delay = BatchingDelay()
        self._new: list[Request] = []
        self._done: dict[int, Done] = {}  # by the rollout, which has one request at a time
        self._running: set[str] = set()

    def submit(self, request: Request, done: Done) -> None:
        """See [`Engine`]."""
        self._new.append(request)
        self._done[request.rollout] = done

    def step(self, active: int, busy: int) -> float | None:
        """See [`Engine`]."""
        if (self._running or self._new) and (left := self._delay.remaining(busy)):
            return left
        self._new.sort(key=lambda request: request.rollout)
        exchanged = self._exchange(active > 0, self._new)
        self._new = []
        if not any(is_active for is_active, _ in exchanged):
            return None
        for rank, (_, requests) in enumerate(exchanged):
            for request in requests:
                self._add(f"{rank}-{request.rollout}", request)
        if not self._running:
            return math.inf if self._group is None else IDLE_PAUSE
        started = time.perf_counter()
        finished = [output for output in self._engine.step() if output.finished]
        self._delay.record_pass(time.perf_counter() - started, any_ended=bool(finished))
        for output in finished:
            self._finish(output)
        return 0.0

    def mean_logprobs(self, texts: list[tuple[list[int], int]]) -> list[float]:
        """Returns the mean log-probability of the last ids of each text, at temperature 1 and without filters.

        The part of a text that the prefix cache holds is not computed again. Must be called while no request runs, and
        by all processes of the `group` if there is one.

        Args:
            texts: ids, fewer than the engine's context holds, and how many of the last of them are scored, fewer than
                all.

        Returns:
            A number for each text, in nats.
        """
        own = [(tuple(ids), count) for ids, count in texts]
        means: dict[tuple[tuple[int, ...], int], float] = {}
        # vLLM returns no log-probabilities for what its cache holds: such texts are computed a second time without it.
        for skip_cache in (False, True):
            left = [text for text in dict.fromkeys(own) if text not in means]
            for text, mean in zip(left, self._score(left, skip_cache), strict=True):
                if mean is not None:
                    means[text] = mean
        return [means[text] for text in own]

    def close(self) -> None:
        """Aborts running requests, so that the next engine starts without any."""
        if self._running:
            self._engine.abort_request(sorted(self._running))
            self._running.clear()

    def _score(self, texts: list[tuple[tuple[int, ...], int]], skip_cache: bool) -> list[float | None]:
        """Scores texts; `None` for a text whose last ids are in the prefix cache."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            max_tokens=1,
            prompt_logprobs=0,
            skip_reading_prefix_cache=skip_cache,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        for rank, (_, asked) in enumerate(self._exchange(True, texts)):
            for number, (ids, _) in enumerate(asked):
                self._engine.add_request(f"{rank}-{number}", {"prompt_token_ids": list(ids)}, parameters)
                self._running.add(f"{rank}-{number}")
        means: list[float | None] = [None] * len(texts)
        while self._running:
            for output in self._engine.step():
                self._running.discard(output.request_id)
                rank, _, number = output.request_id.partition("-")
                if int(rank) == self._rank:
                    ids, count = texts[int(number)]
                    means[int(number)] = _mean_of_last(output, ids[-count:])
        return means

    def _exchange(self, active: bool, requests: list[Any]) -> list[tuple[bool, list[Any]]]:
        if self._group is None:
            return [(active, requests)]
        exchanged: list[Any] = [None] * torch.distributed.get_world_size(self._group)
        torch.distributed.all_gather_object(exchanged, (active, requests), group=self._group)
        return exchanged

    def _add(self, name: str, request: Request) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            **self._parameters,
            max_tokens=request.max_new_tokens,
            seed=request.seed,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._engine.add_request(name, {"prompt_token_ids": request.prompt_ids}, parameters)
        self._running.add(name)

    def _finish(self, output: Any) -> None:
        self._running.discard(output.request_id)
        rank, _, rollout = output.request_id.partition("-")
        if int(rank) != self._rank:
            return
        completion = output.outputs[0]
        ids = list(completion.token_ids)
        logprobs = [entry[token].logprob for entry, token in zip(completion.logprobs, ids, strict=True)]
        sample = Sample(
            ids=ids,
            logprobs=logprobs,
            ended=bool(ids) and ids[-1] in self._eos_token_ids,
            cached_tokens=output.num_cached_tokens or 0,
            policy_step=self._policy_step,
        )
        self._done.pop(int(rollout))(sample)


def _mean_of_last(output: Any, ids: tuple[int, ...]) -> float | None:
    """Mean log-probability of the last ids of a prompt, `None` if one of them or the one before was in the cache.

    vLLM's entries for cached positions are undefined and may be missing, so positions are counted from the end.
    """
    if (output.num_cached_tokens or 0) > len(output.prompt_token_ids) - 1 - len(ids):
        return None
    entries = output.prompt_logprobs
    first = len(entries) - len(ids)
    return math.fsum(entries[first + k][token].logprob for k, token in enumerate(ids)) / len(ids)
