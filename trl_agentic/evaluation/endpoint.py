"""A policy behind an OpenAI-compatible chat-completions endpoint."""

from __future__ import annotations

import json
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

from trl_agentic.evaluation.text_loop import Answer, ContextFull
from trl_agentic.rollout.engines import Sampling
from trl_agentic.rollout.loop import Episode, derived_seed


_CONTEXT_FULL = re.compile(r"context.{0,3}(length|size|window)", re.IGNORECASE)
_BUSY = (408, 409, 425, 429)  # and all from 500 on


class Endpoint:
    """Asks `URL/chat/completions`.

    Args:
        url (`str`): base address, such as `http://localhost:8000/v1`.
        model (`str`): name of the model at the endpoint.
        sampling ([`~trl_agentic.rollout.engines.Sampling`]): `temperature` and `top_p` are sent; a request has a seed
            of its own, which an endpoint may ignore.
        max_turn_tokens (`int`, *optional*, defaults to `512`): tokens of a turn.
        api_key (`str`, *optional*): sent as a bearer token.
        timeout (`float`, *optional*, defaults to `600`): seconds to wait for an answer.
        attempts (`int`, *optional*, defaults to `6`): requests before giving up on an endpoint that is busy or away;
            the pauses between them double, from `pause` on, and are no shorter than the endpoint asks for.
        pause (`float`, *optional*, defaults to `1`): seconds before the second attempt.
        extra_body (`dict`, *optional*): further fields of the request, such as `chat_template_kwargs`; a field that is
            `None` is left out (`{"temperature": None}` for a model that takes none); a `seed` replaces those of the
            requests.
    """

    def __init__(
        self,
        url: str,
        model: str,
        sampling: Sampling,
        max_turn_tokens: int = 512,
        api_key: str | None = None,
        timeout: float = 600,
        attempts: int = 6,
        pause: float = 1,
        extra_body: dict[str, Any] | None = None,
    ):
        self._address = url.rstrip("/") + "/chat/completions"
        body = {
            "model": model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": max_turn_tokens,
            **(extra_body or {}),
        }
        self._body = {name: value for name, value in body.items() if value is not None}
        self._seeds = "seed" not in body
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout
        self._attempts = attempts
        self._pause = pause

    def policy(self, episode: Episode) -> Callable[[list[dict[str, Any]]], Answer]:
        """A policy for one rollout; its requests carry seeds derived from the rollout's.

        The policy raises `ContextFull` when the messages do not fit, `RuntimeError` when the endpoint refuses the
        request or does not answer as the protocol says, and `ConnectionError` when it cannot be reached.
        """
        turns = 0

        def answer(messages: list[dict[str, Any]]) -> Answer:
            nonlocal turns
            # Some servers take no more than 31 bits.
            seed = derived_seed(episode.seed, turns) & 0x7FFFFFFF
            turns += 1
            own = {"seed": seed} if self._seeds else {}
            return self._read(self._ask({**self._body, "messages": messages, **own}))

        return answer

    def _ask(self, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(self._address, json.dumps(body).encode(), self._headers)
        problem: Exception | None = None
        asked = 0.0
        for attempt in range(self._attempts):
            if attempt:  # not all at the same moment
                time.sleep(max(self._pause * 2 ** (attempt - 1), asked) * random.uniform(1, 1.25))
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                text = error.read().decode("utf-8", "replace")
                if error.code in (400, 413) and _CONTEXT_FULL.search(text):
                    raise ContextFull(text) from error
                if error.code not in _BUSY and error.code < 500:
                    raise RuntimeError(f"{self._address} refused a request ({error.code}): {text[:500]}") from error
                problem, asked = error, _seconds(error.headers.get("Retry-After"))
            except (OSError, HTTPException, json.JSONDecodeError) as error:
                problem = error
        raise ConnectionError(f"{self._address} gave no answer in {self._attempts} attempts: {problem}") from problem

    def _read(self, reply: Any) -> Answer:
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] or ""
            tokens = (reply.get("usage") or {}).get("completion_tokens")
            return Answer(text, tokens, cut=choice.get("finish_reason") == "length")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise RuntimeError(
                f"{self._address} does not answer as a chat-completions endpoint: {json.dumps(reply)[:500]}"
            ) from error


def _seconds(told: str | None) -> float:
    """What `Retry-After` asks for; 0 if it is a date, or not there."""
    return float(told) if told is not None and told.strip().isdigit() else 0.0
