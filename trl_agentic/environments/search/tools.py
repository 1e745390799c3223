"""Question answering with the search engine as a tool that the policy calls in its own chat format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from trl_agentic.types import StepResult

from .env import SearchEnv


INSTRUCTIONS = (
    "Answer the question with the help of a search engine: call `search` with a query as often as you need. Once you "
    "know the answer, give it, a few words without explanation, inside <answer> </answer>, without a call."
)
"""The system prompt of [`SearchTools`]."""
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


class SearchTools:
    """[`SearchEnv`] as an environment of tools: a turn calls `search`, or answers.

    The calls have the form that the model's chat template gives them, which must support tools. The answer is what
    stands in the last `<answer>...</answer>` of a turn without a call, or else that whole turn, which is off the
    format.

    Args:
        instructions (`str`, *optional*): system prompt in the rows of [`tasks`]. With `""` there is none.
        **options: those of [`SearchEnv`], but for `action_format`.

    Raises:
        ValueError, FileNotFoundError, ImportError: as [`SearchEnv`].
    """

    def __init__(self, instructions: str = INSTRUCTIONS, **options: Any) -> None:
        if "action_format" in options:
            raise ValueError("SearchTools: `action_format` is no option: the format is that of the chat template.")
        self._env = SearchEnv(**options, action_format="plain", instructions=instructions)
        self.split = self._env.split
        self._searches = 0

    def tasks(self) -> list[dict[str, Any]]:
        """The questions as dataset rows, as those of [`SearchEnv`]."""
        return self._env.tasks()

    def reset(self, question: str, ground_truth: Sequence[str], task_type: str = "", **row: Any) -> str:
        """Starts on a question; see [`SearchEnv.reset`]."""
        self._searches = 0
        return self._env.reset(question, ground_truth, task_type, **row)

    def search(self, query: str) -> str:
        """Searches for passages.

        Args:
            query: What to search for.
        """
        if not isinstance(query, str) or not query.strip():
            raise ValueError("`query` must be a text that is not empty.")
        if self._searches >= self._env.max_searches:
            raise ValueError(f"All {self._env.max_searches} searches are used up. Answer in <answer> </answer>.")
        found = self._env.step(f"search {query}").observation
        self._searches += 1
        return found

    def finish(self, answer: str) -> StepResult:
        """Pays the answer.

        Args:
            answer (`str`): the whole turn.

        Returns:
            [`StepResult`]: as [`SearchEnv.step`] gives it for an answer.
        """
        tagged = [text for text in _ANSWER.findall(answer) if text.strip()]
        return self._env.answer(tagged[-1] if tagged else answer, is_well_formed=bool(tagged))

    def close(self) -> None:
        """Ends the episode."""
        self._env.close()
