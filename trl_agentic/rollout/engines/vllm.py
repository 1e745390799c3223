"""TRL's own vLLM generation as an engine."""

from __future__ import annotations

from collections.abc import Callable

from trl_agentic.rollout.engines.base import LockstepEngine, Request, Sample


class TRLVLLMEngine(LockstepEngine):
    """TRL's own vLLM generation (server or colocate) behind the same interface.

    Args:
        generate (`Callable[[list[list[int]], int], tuple[list[list[int]], list[list[float | None]] | None]]`):
            Takes prompts as ids and the most new tokens, returns sampled ids and their log-probabilities.
        eos_token_ids (`list[int]`):
            Ids that end a turn.
        any_active (`Callable[[bool], bool]`, *optional*):
            As in [`LockstepEngine`], if several processes share one vLLM.
    """

    def __init__(
        self,
        generate: Callable[[list[list[int]], int], tuple[list[list[int]], list[list[float | None]] | None]],
        eos_token_ids: list[int],
        any_active: Callable[[bool], bool] | None = None,
    ):
        super().__init__(any_active)
        self._generate = generate
        self._eos_token_ids = frozenset(eos_token_ids)

    def generate(self, requests: list[Request]) -> list[Sample]:
        """Samples one continuation for each request. The seeds are not used: the server keeps its own state."""
        budget = max((request.max_new_tokens for request in requests), default=1)
        all_ids, all_logprobs = self._generate([request.prompt_ids for request in requests], budget)
        samples = []
        for i, request in enumerate(requests):
            ids = list(all_ids[i])[: request.max_new_tokens]
            logprobs = None
            if all_logprobs is not None:
                logprobs = [float("nan") if x is None else x for x in all_logprobs[i][: request.max_new_tokens]]
            samples.append(Sample(ids=ids, logprobs=logprobs, ended=bool(ids) and ids[-1] in self._eos_token_ids))
        return samples
