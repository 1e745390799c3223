"""Question answering with a search engine, as an environment."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from trl_agentic.options import check_choice
from trl_agentic.types import StepResult

from .answers import Move, exact_match, f1, parse_plain, parse_tags
from .bm25 import BM25Retriever
from .oracle import Oracle
from .questions import load_questions
from .retrieval import Passage, Retriever
from .world import generate_world


_PARSERS = {"tags": parse_tags, "plain": parse_plain}
_METRICS = {"em": exact_match, "f1": f1}
INSTRUCTIONS = {
    "plain": "Answer the question. Write `search` and a query, or `answer` and the answer.",
    "tags": (
        "Answer the question with the help of a search engine. In each turn, first think inside <think> </think> "
        "about what you know and what is missing. Then either search with a query inside <search> </search>; the "
        "passages that are found come back inside <result> </result>. Or, once you know it, give the answer, a few "
        "words without explanation, inside <answer> </answer>. For example:\n"
        "<think>I need the author first.</think><search>author of Silver Lantern</search>"
    ),
}
"""The system prompts of the two action formats."""
_HINTS = {
    "plain": "Write `search` and a query, or `answer` and the answer.",
    "tags": "Think inside <think> </think>, then search in <search> </search> or answer in <answer> </answer>.",
}


class SearchEnv:
    """Questions to answer in a few words, with a search engine to look things up.

    Args:
        questions (`str` or `Path`, *optional*, defaults to `"world"`): `"world"` for questions about a generated
            world, or what [`load_questions`] takes: the name of a published data set or a file.
        split (`str`, *optional*, defaults to `"train"`): `"train"` or `"test"`.
        retriever ([`Retriever`], *optional*): where to search; one for all instances. `None` searches the generated
            world, and is an error for other questions.
        num_questions (`int`, *optional*): number of questions; all if `None`. Fewer are drawn at random with `seed`;
            of the generated world they are the first.
        seed (`int`, *optional*, defaults to `0`): seed of the generated world, or of the draw.
        max_searches (`int`, *optional*, defaults to `8`): turns before the one that must answer.
        top_k (`int`, *optional*, defaults to `3`): passages in a result.
        action_format (`str`, *optional*, defaults to `"tags"`): how a turn is read. `"tags"`: a thought in
            `<think>...</think>`, then `<search>...</search>` or `<answer>...</answer>`. `"plain"`: `search QUERY` or
            `answer TEXT`.
        metric (`str`, *optional*, defaults to `"em"`): what an answer is paid: `"em"`, 1 for an exact match in SQuAD's
            normal form with an accepted answer and else 0, or `"f1"`, its word overlap with the best of them.
        format_penalty (`float`, *optional*, defaults to `1.0`): an episode with a turn off the format, or without an
            answer after `max_searches` turns, is paid minus this, whatever it answers. With `0` answers are paid
            whatever the format, as papers evaluate.
        instructions (`str`, *optional*): system prompt in the rows of [`tasks`], instead of the one that
            `INSTRUCTIONS` has for `action_format`. With `""` the rows have no system prompt.

    Raises:
        ValueError: an option has none of the values above, or the questions are faulty.
        FileNotFoundError: the file of questions does not exist.
        ImportError: `retriever` is `None` and the extra `search` is not installed.

    Example:

    ```python
    >>> env = SearchEnv(split="test", action_format="plain")
    >>> print(env.reset(**env.tasks()[0]))
    >>> print(env.step("search Silver Lantern author").observation)
    >>> env.step("answer Mira Dalton").reward
    ```
    """

    def __init__(
        self,
        questions: str | Path = "world",
        split: str = "train",
        retriever: Retriever | None = None,
        num_questions: int | None = None,
        seed: int = 0,
        max_searches: int = 8,
        top_k: int = 3,
        action_format: Literal["tags", "plain"] = "tags",
        metric: Literal["em", "f1"] = "em",
        format_penalty: float = 1.0,
        instructions: str | None = None,
    ) -> None:
        check_choice("split", split, ("train", "test"), "SearchEnv")
        check_choice("action_format", action_format, tuple(_PARSERS), "SearchEnv")
        check_choice("metric", metric, tuple(_METRICS), "SearchEnv")
        for name, number in (("num_questions", num_questions), ("max_searches", max_searches), ("top_k", top_k)):
            if number is not None and number < 1:
                raise ValueError(f"SearchEnv: `{name}` must be at least 1, got {number}.")
        if format_penalty < 0:
            raise ValueError(f"SearchEnv: `format_penalty` must not be negative, got {format_penalty}.")
        if retriever is None and questions != "world":
            raise ValueError(
                f"SearchEnv: `retriever` is missing. The questions of {questions} need one that searches a corpus: "
                "`BM25Retriever`, `DenseRetriever` or `HTTPRetriever`."
            )
        if retriever is not None and not isinstance(retriever, Retriever):
            raise ValueError(f"SearchEnv: `retriever` has no method `search`: {type(retriever).__name__}.")
        self.split = split
        self.max_searches = max_searches
        self.top_k = top_k
        self.action_format = action_format
        self.metric = metric
        self.format_penalty = format_penalty
        self.instructions = INSTRUCTIONS[action_format] if instructions is None else instructions
        self._retriever = world_retriever(seed) if retriever is None else retriever
        self._rows = (
            _world_rows(split, seed)[:num_questions]
            if questions == "world"
            else _drawn(_file_rows(str(questions), split, _changed_at(questions)), num_questions, seed)
        )
        self._question, self._ground_truth, self._task_type = "", [""], ""
        self._turns, self._off_format = 0, False
        self._over = "`reset` starts one"

    def __len__(self) -> int:
        """Number of questions."""
        return len(self._rows)

    def tasks(self) -> list[dict[str, Any]]:
        """The questions as dataset rows.

        Returns:
            `list[dict]`: for each question `question`, `ground_truth` (the accepted answers), `task_type` (the number
            of hops in the generated world, `"1-hop"` to `"4-hop"`, or the name of the data set), `environment`
            (`"search"`) and `prompt` (a list with the system message, if there is one).
        """
        prompt = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return [
            {
                **row,
                "ground_truth": list(row["ground_truth"]),
                "environment": "search",
                "prompt": [dict(message) for message in prompt],
            }
            for row in self._rows
        ]

    def reset(self, question: str, ground_truth: Sequence[str], task_type: str = "", **row: Any) -> str:
        """Starts on a question, of [`tasks`] or any other.

        Args:
            question (`str`): the question.
            ground_truth (`Sequence[str]`): the accepted answers.
            task_type (`str`, *optional*): returned in `info`.
            **row: other columns of the dataset row; not used.

        Returns:
            `str`: the question.

        Raises:
            ValueError: the question is empty or there is no accepted answer.
        """
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"SearchEnv.reset: `question` must be a text that is not empty, got {question!r}.")
        answers = [ground_truth] if isinstance(ground_truth, str) else list(ground_truth)
        if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
            raise ValueError(
                f"SearchEnv.reset: `ground_truth` of {question!r} must be texts that are not empty, got "
                f"{ground_truth!r}."
            )
        self._question, self._ground_truth, self._task_type = question, answers, task_type
        self._turns, self._off_format, self._over = 0, False, ""
        return question

    def step(self, action: str) -> StepResult:
        """Plays one turn of the policy.

        Args:
            action (`str`): the policy's whole turn.

        Returns:
            [`StepResult`]: `terminated` by an answer, `truncated` by a turn without one after `max_searches` turns.
            The reward comes with the end. `info` has `is_action_valid` (the turn keeps to the format), `success` (the
            answer is an exact match, whatever the format and the metric), `score` (its word overlap, F1, from 0 to 1),
            `ground_truth` and `task_type`.

        Raises:
            RuntimeError: no episode is running.
            Exception: what the retriever raises.
        """
        return self._play(_PARSERS[self.action_format](action))

    def answer(self, text: str, is_well_formed: bool = True) -> StepResult:
        """Ends the episode with an answer that has been read already.

        Args:
            text (`str`): the answer.
            is_well_formed (`bool`, *optional*, defaults to `True`): whether the turn that gave it keeps to the format.

        Returns:
            [`StepResult`]: as [`step`] gives it.

        Raises:
            RuntimeError: no episode is running.
        """
        return self._play(Move("answer", " ".join(text.split()), is_well_formed))

    def _play(self, move: Move) -> StepResult:
        if self._over:
            raise RuntimeError(f"SearchEnv.step: no episode is running; {self._over}.")
        self._off_format = self._off_format or not move.is_well_formed
        answered = move.kind == "answer"
        truncated = not answered and self._turns >= self.max_searches
        reward, observation = 0.0, ""
        if answered:
            reward = self._paid(_METRICS[self.metric](move.text, self._ground_truth))
            self._over = "the last one has its answer"
        elif truncated:
            reward = -self.format_penalty
            self._over = f"the last one has used up its {self.max_searches} searches"
        elif move.kind == "search":
            (passages,) = self._retriever.search([move.text], self.top_k)
            observation = self._render(passages)
        else:
            observation = _HINTS[self.action_format]
        self._turns += 1
        return StepResult(
            observation=observation,
            reward=reward,
            terminated=answered,
            truncated=truncated,
            info={
                "is_action_valid": move.is_well_formed,
                "success": answered and exact_match(move.text, self._ground_truth) == 1.0,
                "score": f1(move.text, self._ground_truth) if answered else 0.0,
                "ground_truth": list(self._ground_truth),
                "task_type": self._task_type,
            },
        )

    def close(self) -> None:
        """Ends the episode. The retriever is shared and stays as it is."""
        self._over = "`reset` starts one"

    def expert_policy(self) -> Callable[[str], str]:
        """The scripted oracle of the generated world, for the running episode: from each observation to a turn in
        `action_format`. It reads the observations that a policy reads.

        Raises:
            ValueError: the question is not from a generated world.
        """
        oracle = Oracle()
        oracle.reset(self._question)
        return lambda observation: self._written(oracle.act(observation))

    def random_policy(self, draw: random.Random) -> Callable[[str], str]:
        """Searches for words of the observation and answers with one of them, in `action_format`."""

        def turn(observation: str) -> str:
            words = re.findall(r"\w+", observation) or ["nothing"]
            if draw.random() < 1 / 3:
                return self._written(f"answer {draw.choice(words)}")
            return self._written(f"search {' '.join(draw.choices(words, k=2))}")

        return turn

    def _written(self, turn: str) -> str:
        if self.action_format == "plain":
            return turn
        kind, _, text = turn.partition(" ")
        return f"<think></think><{kind}>{text}</{kind}>"

    def _paid(self, value: float) -> float:
        return -self.format_penalty if self._off_format and self.format_penalty else value

    def _render(self, passages: list[Passage]) -> str:
        listed = "\n".join(f"{i}. {passage.contents}" for i, passage in enumerate(passages, 1)) or "Nothing found."
        return f"<result>\n{listed}\n</result>" if self.action_format == "tags" else listed


@lru_cache(maxsize=8)
def world_retriever(seed: int = 0) -> BM25Retriever:
    """BM25 over the passages of a generated world, made once a process.

    Args:
        seed (`int`, *optional*, defaults to `0`): seed of the world.

    Raises:
        ImportError: the extra `search` is not installed.
    """
    return BM25Retriever(generate_world(seed).passages)


@lru_cache(maxsize=8)
def _world_rows(split: str, seed: int) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"question": q.text, "ground_truth": q.answers, "task_type": f"{q.hops}-hop"}
        for q in generate_world(seed).questions[split]
    )


@lru_cache(maxsize=16)
def _file_rows(questions: str, split: str, changed_at: int) -> tuple[dict[str, Any], ...]:
    """The rows of a data set or of a file that was written at that time, read once a process."""
    return tuple(load_questions(questions, split))


def _changed_at(questions: str | Path) -> int:
    path = Path(questions)
    return path.stat().st_mtime_ns if path.is_file() else 0


def _drawn(rows: Sequence[dict[str, Any]], count: int | None, seed: int) -> Sequence[dict[str, Any]]:
    if count is None or count >= len(rows):
        return rows
    return [rows[place] for place in sorted(random.Random(seed).sample(range(len(rows)), count))]
