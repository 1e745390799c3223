"""Sampling by servers that `vllm serve` started."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trl_agentic.rollout.engines.base import Done, Request, Sample, Sampling


_TIMEOUT = (10.0, 1800.0)  # seconds to connect, and to wait for a turn: a server may queue it behind many others


class VLLMServerEngine:
    """Every turn is a request of its own to `/v1/completions`: ids in, ids and log-probabilities out.

    The turns of a rollout go to the same server, where its context is in the prefix cache. Nothing here is a
    collective operation: processes that share a server may take different numbers of turns. A request that fails for
    want of a connection, or with status 500 to 504, is sent again.

    Args:
        urls (`list[str]`):
            Base URLs of the servers, such as `"http://localhost:8000"`.
        model (`str`):
            Name by which the servers know the model.
        eos_token_ids (`list[int]`):
            Ids that end a turn.
        sampling ([`Sampling`]):
            Sampling parameters.
        extra (`dict[str, Any]`, *optional*):
            Further fields of each request, such as `structured_outputs`.
        policy_step (`int`, *optional*):
            Optimizer step whose weights the servers have.
        concurrency (`int`, *optional*, defaults to `256`):
            Requests of this process that may be on their way at a time.
        attempts (`int`, *optional*, defaults to `6`):
            Times that a request is sent before its failure ends the rollouts, with pauses of 0, 1, 2, 4 ... seconds.
    """

    def __init__(
        self,
        urls: list[str],
        model: str,
        eos_token_ids: list[int],
        sampling: Sampling,
        extra: dict[str, Any] | None = None,
        policy_step: int | None = None,
        concurrency: int = 256,
        attempts: int = 6,
    ):
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util.retry import Retry

        self._urls = [url.rstrip("/") + "/v1/completions" for url in urls]
        self._eos_token_ids = frozenset(eos_token_ids)
        self._policy_step = policy_step
        self._common = {
            "model": model,
            "return_token_ids": True,
            **request_parameters(sampling, eos_token_ids),
            **(extra or {}),
        }
        # A request has a seed, so that sending it twice is harmless.
        retry = Retry(
            total=attempts - 1,
            backoff_factor=0.5,
            status_forcelist=(500, 502, 503, 504),
            allowed_methods=None,
            raise_on_status=False,
        )
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=concurrency))
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="vllm")

    def submit(self, request: Request, done: Done) -> None:
        """See [`Engine`]."""
        self._threads.submit(self._answer, request, done)

    def step(self, active: int, busy: int) -> float | None:
        """See [`Engine`]. The work is done elsewhere."""
        return math.inf if active else None

    def close(self) -> None:
        """Drops requests that have not been sent, and the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._session.close()

    def _answer(self, request: Request, done: Done) -> None:
        try:
            done(self._sample(request))
        except Exception as error:
            done(error)

    def _sample(self, request: Request) -> Sample:
        url = self._urls[request.rollout % len(self._urls)]
        body = {
            **self._common,
            "prompt": request.prompt_ids,
            "max_tokens": request.max_new_tokens,
            "seed": request.seed,
        }
        response = self._session.post(url, json=body, timeout=_TIMEOUT)
        if response.status_code != 200:
            raise RuntimeError(f"The vLLM server at {url} answered {response.status_code}: {response.text[:2000]}")
        answer = response.json()
        choice = answer["choices"][0]
        ids = choice["token_ids"]
        logprobs = [math.nan if value is None else value for value in choice["logprobs"]["token_logprobs"]]
        details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
        return Sample(
            ids=ids,
            logprobs=logprobs,
            ended=bool(ids) and ids[-1] in self._eos_token_ids,
            cached_tokens=details.get("cached_tokens") or 0,
            policy_step=self._policy_step,
        )


def request_parameters(sampling: Sampling, eos_token_ids: list[int]) -> dict[str, Any]:
    """vLLM's sampling parameters, all of them set: what a checkpoint's generation_config.json asks for has no say."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p or 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "stop_token_ids": list(eos_token_ids),
        "ignore_eos": True,  # of vLLM's own idea of it
        "logprobs": 0,  # of the sampled token
    }
