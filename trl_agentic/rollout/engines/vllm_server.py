"""Inference engine that samples with servers started by `vllm serve`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from trl_agentic.rollout.engines.base import Done, Request, Sample, Sampling


_TIMEOUT = (10.0, 1800.0)  # seconds to connect, and to wait for a turn: a server may queue it behind many others


class VLLMServerEngine:
    """Inference engine that sends every turn as one request to `/v1/completions`: ids in, ids and logprobs out.

    All turns of a rollout go to the same server, which has its context in the prefix cache. Nothing here is a
    collective operation: processes that share a server may take different numbers of turns. A request that fails with
    status 500 to 504 is sent again. If a connection breaks, the server may have been restarted without the weights
    that it was sent: its requests, new ones included, wait until it answers, `check` decides whether it still has the
    weights, and they are sent again.

    Args:
        urls (`list[str]`):
            Base URLs of the servers, such as `"http://localhost:8000"`.
        model (`str`):
            Name of the model in requests.
        eos_token_ids (`list[int]`):
            Ids that end a turn.
        sampling ([`Sampling`]):
            Sampling parameters.
        extra (`dict[str, Any]`, *optional*):
            Further fields of each request, such as `structured_outputs`.
        policy_step (`int`, *optional*):
            Optimizer step whose weights the servers have.
        concurrency (`int`, *optional*, defaults to `256`):
            Maximum number of requests of this process at the same time.
        attempts (`int`, *optional*, defaults to `6`):
            How often a request is sent before its failure ends the rollouts, with pauses of 0, 1, 2, 4 ... seconds.
        timeout (`float`, *optional*, defaults to `240.0`):
            Seconds to wait for a server that does not answer.
        check (`Callable[[str], None]`, *optional*):
            Called, in a thread, with the base URL of a server that answers again after a broken connection. If the
            server lost the weights, it raises an error, which ends the rollouts. Without it, they end in any case.
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
        timeout: float = 240.0,
        check: Callable[[str], None] | None = None,
    ):
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util.retry import Retry

        self._urls = [url.rstrip("/") for url in urls]
        self._locks = [Lock() for _ in urls]
        self._recoveries = [0] * len(urls)  # interrupted connections of each server that were recovered
        self._attempts, self._timeout, self._check = attempts, timeout, check
        self._closed = False
        self._eos_token_ids = frozenset(eos_token_ids)
        self._policy_step = policy_step
        self._common = {
            "model": model,
            "return_token_ids": True,
            **request_parameters(sampling, eos_token_ids),
            **(extra or {}),
        }
        # A request has a seed, so sending it twice is harmless.
        retry = Retry(
            total=attempts - 1,
            connect=0,
            read=0,
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
        answer = self._threads.submit(self._answer, request, done)
        answer.add_done_callback(lambda answer: done(_closed()) if answer.cancelled() else None)

    def step(self, active: int, busy: int) -> float | None:
        """See [`Engine`]. The servers do the work."""
        return math.inf if active else None

    def close(self) -> None:
        """Drops requests that have not been sent, which fail, and the connections."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._session.close()

    def _answer(self, request: Request, done: Done) -> None:
        try:
            done(self._sample(request))
        except Exception as error:
            done(error)

    def _sample(self, request: Request) -> Sample:
        server = request.rollout % len(self._urls)
        url = self._urls[server]
        body = {
            **self._common,
            "prompt": request.prompt_ids,
            "max_tokens": request.max_new_tokens,
            "seed": request.seed,
        }
        response = self._post(server, body)
        if response.status_code != 200:
            raise RuntimeError(f"The vLLM server at {url} answered {response.status_code}: {response.text[:2000]}")
        answer = response.json()
        choice = answer["choices"][0]
        if choice.get("finish_reason") == "abort":
            raise RuntimeError(f"The vLLM server at {url} aborted a request, so its turn is incomplete.")
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

    def _post(self, server: int, body: dict[str, Any]) -> Any:
        import requests

        sent = 0
        while True:
            with self._locks[server]:  # another thread may be waiting for its recovery
                recoveries = self._recoveries[server]
            sent += 1
            try:
                return self._session.post(f"{self._urls[server]}/v1/completions", json=body, timeout=_TIMEOUT)
            except requests.ConnectionError as error:
                with self._locks[server]:
                    if self._recoveries[server] == recoveries:  # the first thread that noticed
                        self._recover(server, error, is_last=sent >= self._attempts)
                        self._recoveries[server] += 1

    def _recover(self, server: int, error: Exception, is_last: bool) -> None:
        url = self._urls[server]
        if self._check is None or is_last:
            raise ConnectionError(
                f"The vLLM server at {url} interrupted a request. It may have lost the weights that it was sent. "
                "Once it answers again, continue from the last checkpoint (`resume_from_checkpoint`)."
            ) from error
        deadline = time.monotonic() + self._timeout
        while not is_up(url):
            if self._closed or time.monotonic() >= deadline:
                raise ConnectionError(
                    f"The vLLM server at {url} stopped answering for {self._timeout:g} seconds "
                    "(`vllm_server_timeout`). Start it again and continue from the last checkpoint "
                    "(`resume_from_checkpoint`)."
                ) from error
            time.sleep(0.5)
        self._check(url)


def _closed() -> Exception:
    return RuntimeError("The engine was closed before the request was sent.")


def is_up(url: str) -> bool:
    """Whether a vLLM server answers at this base URL."""
    import requests

    try:
        return requests.get(f"{url}/health", timeout=10).status_code == 200
    except requests.RequestException:
        return False


def request_parameters(sampling: Sampling, eos_token_ids: list[int]) -> dict[str, Any]:
    """vLLM's sampling parameters. All are set, so that a checkpoint's generation_config.json has no effect."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p or 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "stop_token_ids": list(eos_token_ids),
        "ignore_eos": True,  # vLLM's own end-of-sequence ids
        "logprobs": 0,  # of the sampled token
    }
