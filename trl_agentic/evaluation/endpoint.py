"""Policy behind an OpenAI-compatible chat-completions endpoint, reached through the `openai` client."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from trl_agentic.evaluation.text_loop import Answer, ContextFull
from trl_agentic.rollout.engines import Sampling
from trl_agentic.rollout.loop import Episode, derived_seed


_CONTEXT_FULL = re.compile(r"context.{0,3}(length|size|window)", re.IGNORECASE)
_NO_KEY = "none"  # the client needs a key: without one it would read the environment
_BUSY = (408, 409, 429)  # with 500 and above the statuses after which the client repeats a request


class Endpoint:
    """Sends the requests of many rollouts to `URL/chat/completions`.

    The client repeats a request when the endpoint is busy or unreachable. It observes `Retry-After` within limits of
    its own. Its variables `OPENAI_API_KEY`, `OPENAI_BASE_URL`, `OPENAI_ORG_ID` and `OPENAI_PROJECT_ID` have no effect.

    Args:
        url (`str`): base address, such as `http://localhost:8000/v1`.
        model (`str`): name of the model at the endpoint.
        sampling ([`~trl_agentic.rollout.engines.Sampling`]): `temperature` and `top_p` are sent; each request has its
            own seed, which an endpoint may ignore.
        max_turn_tokens (`int`, *optional*, defaults to `512`): tokens of a turn.
        api_key (`str`, *optional*): sent as a bearer token.
        timeout (`float`, *optional*, defaults to `600`): seconds to wait for an answer.
        max_retries (`int`, *optional*, defaults to `8`): repetitions of a request before giving up on an endpoint that
            is busy or unreachable. With the client's pauses, 8 of them bridge about half a minute.
        extra_body (`dict`, *optional*): further fields of the request, such as `chat_template_kwargs`. They replace
            fields of the same name (a `seed` replaces those of the requests). A field that is `None` is left out
            (`{"temperature": None}` for a model that takes none).

    Raises:
        ImportError: the `openai` client is not installed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        sampling: Sampling,
        max_turn_tokens: int = 512,
        api_key: str | None = None,
        timeout: float = 600,
        max_retries: int = 8,
        extra_body: dict[str, Any] | None = None,
    ):
        try:
            import openai
        except ImportError as error:
            raise ImportError("An endpoint needs the openai client: pip install 'trl-agentic[endpoint]'") from error
        key = api_key or _NO_KEY
        self._url = url
        self._client = openai.OpenAI(
            base_url=url,
            api_key=key,
            timeout=timeout,
            max_retries=max_retries,
            default_headers={"Authorization": f"Bearer {key}"},
        )
        self._client.organization = self._client.project = None  # the client has read them from the environment
        self._model = model
        self._sampling = sampling
        self._max_turn_tokens = max_turn_tokens
        self._extra_body = {
            name: openai.omit if value is None else value for name, value in (extra_body or {}).items()
        }

    def policy(self, episode: Episode) -> Callable[[list[dict[str, Any]]], Answer]:
        """A policy for one rollout; its requests carry seeds derived from the rollout's.

        The policy raises `ContextFull` when the messages do not fit, `RuntimeError` when the endpoint refuses the
        request or does not answer as the protocol says, and `ConnectionError` when it stays busy or unreachable.
        """
        turns = 0

        def answer(messages: list[dict[str, Any]]) -> Answer:
            nonlocal turns
            # Some servers take no more than 31 bits.
            seed = derived_seed(episode.seed, turns) & 0x7FFFFFFF
            turns += 1
            return self._read(self._request(messages, seed))

        return answer

    def _request(self, messages: list[Any], seed: int) -> Any:
        import openai

        try:
            return self._client.chat.completions.create(
                model=self._model,
                messages=messages,
                temperature=self._sampling.temperature,
                top_p=self._sampling.top_p,
                max_tokens=self._max_turn_tokens,
                seed=seed,
                extra_body=self._extra_body,
            )
        except openai.APIConnectionError as error:
            raise ConnectionError(f"{self._url} cannot be reached: {error.__cause__ or error}") from error
        except openai.APIStatusError as error:
            text, status = error.response.text, error.status_code
            if status in (400, 413) and _CONTEXT_FULL.search(text):
                raise ContextFull(text) from error
            if status in _BUSY or status >= 500:
                raise ConnectionError(f"{self._url} stays busy ({status}): {text[:500]}") from error
            raise RuntimeError(f"{self._url} refused a request ({status}): {text[:500]}") from error

    def _read(self, completion: Any) -> Answer:
        try:
            choice = completion.choices[0]
            tokens = completion.usage.completion_tokens if completion.usage else None
            return Answer(choice.message.content or "", tokens, cut=choice.finish_reason == "length")
        except (AttributeError, IndexError, TypeError) as error:
            raise RuntimeError(
                f"{self._url} does not answer as a chat-completions endpoint: {str(completion)[:500]}"
            ) from error
