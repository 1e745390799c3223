"""Difficulty of the generated world of questions: the success of a guesser, a single search and the scripted oracle.

    python benchmarks/search_world.py

Prints the table of docs/environments_search.md: exact match on the 400 test questions, three passages per search.
"""

from __future__ import annotations

import random
from collections import Counter

from trl_agentic.environments import SearchEnv
from trl_agentic.environments.search import demonstration, world_retriever
from trl_agentic.evaluation import SuccessRate


HOPS = ("1-hop", "2-hop", "3-hop", "4-hop")


def relation(question: str) -> str:
    """The relation that a question asks for: the first noun of "Name the R of ..."."""
    return question.split()[2]


def guess() -> list[bool]:
    """Answers with the most frequent training answer for the relation of the question."""
    seen: dict[str, Counter[str]] = {}
    for row in SearchEnv(split="train").tasks():
        seen.setdefault(relation(row["question"]), Counter())[row["ground_truth"][0]] += 1
    best = {name: counter.most_common(1)[0][0] for name, counter in seen.items()}
    return [best[relation(row["question"])] in row["ground_truth"] for row in SearchEnv(split="test").tasks()]


def one_search() -> list[bool]:
    """Whether the answer occurs in the passages of one search for the question itself."""
    rows = SearchEnv(split="test").tasks()
    found = world_retriever().search([row["question"] for row in rows], 3)
    return [
        any(answer in passage.contents for passage in passages for answer in row["ground_truth"])
        for row, passages in zip(rows, found, strict=True)
    ]


def oracle() -> tuple[list[bool], float]:
    """Wins, and the share of searches that did not find the wanted passage."""
    env = SearchEnv(split="test", action_format="plain", max_searches=20)
    rows = env.tasks()
    played = [demonstration(env, row, random.Random(0)) for row in rows]
    answers = [steps[-1].action.removeprefix("answer ") if steps else "" for steps in played]
    searches = sum(len(steps) - 1 for steps in played if steps)
    needed = sum(int(row["task_type"][0]) for row, steps in zip(rows, played, strict=True) if steps)
    wins = [answer in row["ground_truth"] for answer, row in zip(answers, rows, strict=True)]
    return wins, 1 - needed / searches


def main() -> None:
    kinds = [row["task_type"] for row in SearchEnv(split="test").tasks()]
    wins, missed = oracle()
    print("| policy | " + " | ".join(HOPS) + " | all |\n" + "|---" * (len(HOPS) + 2) + "|")
    for name, hits in (("guesser", guess()), ("one search, the question itself", one_search()), ("oracle", wins)):
        rates = [[hit for hit, kind in zip(hits, kinds, strict=True) if kind == hop] for hop in HOPS]
        print(f"| {name} | " + " | ".join(str(SuccessRate(sum(r), len(r))) for r in [*rates, hits]) + " |")
    print(f"\n{100 * missed:.1f}% of the oracle's searches did not find the wanted passage.")


if __name__ == "__main__":
    main()
