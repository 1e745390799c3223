import hashlib
import random
import re
from collections import Counter

import pytest

from trl_agentic.environments.search import Oracle, SearchEnv, demonstration, generate_world, world_retriever
from trl_agentic.environments.search.answers import exact_match
from trl_agentic.environments.search.world import RELATIONS, SPLIT_SIZES, chain_of


WORLD = generate_world()
TEST = WORLD.questions["test"]


def digest(seed: int) -> str:
    world = generate_world(seed)
    return hashlib.sha256(repr((world.passages, world.questions)).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("seed", "expected"), [(0, "8fd782685f3a57ce"), (1, "0f2c13ea518bc26b")])
def test_same_bytes_everywhere(seed, expected):
    assert digest(seed) == expected


def test_passages_are_short_and_told_once():
    assert 2500 < len(WORLD.passages) < 5000
    assert len(set(WORLD.passages)) == len(WORLD.passages)
    for passage in WORLD.passages:
        assert re.fullmatch(r"(?:[^.]+\.(?: |$)){1,3}", passage)
        assert len(passage.split()) <= 30
    words = {word for passage in WORLD.passages for word in re.findall(r"\w+", passage)}
    assert len([word for word in words if not word.isdigit()]) < 400


def test_questions():
    for split, size in SPLIT_SIZES.items():
        questions = WORLD.questions[split]
        assert len({question.text for question in questions}) == len(questions) == size
        assert Counter(question.hops for question in questions) == dict.fromkeys((1, 2, 3, 4), size // 4)
        for question in questions:
            entity, chain = chain_of(question.text)
            assert question.entities[0] == entity
            assert len(chain) == question.hops
            assert len(set(question.entities)) == len(question.entities)
            assert len(question.answers) in (1, 2)
    assert any(len(question.answers) == 2 for question in TEST)
    assert {chain_of(question.text)[1][-1].name for question in TEST} == set(RELATIONS)


def test_splits_share_no_entity():
    names = {
        split: {name for question in questions for name in (*question.entities, *question.answers)}
        for split, questions in WORLD.questions.items()
    }
    shared = names["train"] & names["test"]
    assert {name for name in shared if not name.isdigit()} == set()  # years are no entities


def test_aliases_are_told():
    text = "\n".join(WORLD.passages)
    for question in TEST:
        for alias in question.answers[1:]:
            assert f"{question.answers[0]} is also known as {alias}." in text


def test_questions_share_no_telling_word_with_passages():
    nouns = {word for relation in RELATIONS.values() for word in relation.name.split()}
    predicates = {word for r in RELATIONS.values() for wording in r.wordings for word in wording.text.split()}
    assert nouns & predicates == set()
    keywords = [wording.keyword for r in RELATIONS.values() for wording in r.wordings]
    assert len(set(keywords)) == len(keywords)


@pytest.mark.parametrize("text", ["", "Who wrote Silver Lantern?", "Name the owner of Silver Lantern.", "Name the ."])
def test_other_questions_are_refused(text):
    with pytest.raises(ValueError, match="Not a question about a generated world"):
        chain_of(text)


def test_the_questions_own_words_find_the_answer_of_one_hop_only():
    """What a policy gets that searches once, with the question itself, and reads perfectly."""
    found = world_retriever().search([question.text for question in TEST], 3)
    hits = Counter(
        question.hops
        for question, passages in zip(TEST, found, strict=True)
        if any(answer in passage.contents for passage in passages for answer in question.answers)
    )
    assert hits[1] >= 70
    assert max(hits[2], hits[3], hits[4]) <= 2


def test_a_guesser_scores_near_zero():
    """It answers with what was most often right among the training questions that ask for the same relation."""
    counts: dict[str, Counter[str]] = {}
    for question in WORLD.questions["train"]:
        counts.setdefault(chain_of(question.text)[1][-1].name, Counter())[question.answers[0]] += 1
    best = {name: counter.most_common(1)[0][0] for name, counter in counts.items()}
    hits = [exact_match(best[chain_of(question.text)[1][-1].name], question.answers) for question in TEST]
    assert sum(hits) / len(hits) <= 0.02
    # One who knows the test questions' own distribution gets no further than this.
    counts = {}
    for question in TEST:
        counts.setdefault(chain_of(question.text)[1][-1].name, Counter())[question.answers[0]] += 1
    assert sum(counter.most_common(1)[0][1] for counter in counts.values()) / len(TEST) <= 0.2


@pytest.mark.parametrize("top_k", [2, 3])
def test_the_oracle_answers_everything_although_retrieval_fails(top_k):
    env = SearchEnv(split="test", action_format="plain", top_k=top_k)
    missed = searches = 0
    wins = []
    for row, question in zip(env.tasks(), TEST, strict=True):
        steps = demonstration(env, row, random.Random(0))
        wins.append(steps is not None and exact_match(steps[-1].action.removeprefix("answer "), question.answers))
        if steps is not None:
            searches += len(steps) - 1
            missed += len(steps) - 1 - question.hops
    assert sum(wins) >= (400 if top_k == 3 else 396)
    assert 0.05 < missed / searches < 0.2


def test_the_oracle_reads_its_observations_alone():
    oracle = Oracle()
    question = "Name the birthplace of the author of Silver Lantern."
    oracle.reset(question)
    assert oracle.act(question) == "search Silver Lantern written"
    assert oracle.act("1. Silver Lantern was praised by Mira Vogel.") == "search Silver Lantern pen"
    found = "1. Old Silver Lantern was written by Ida Falk.\n2. Silver Lantern is from the pen of Ada Lindt."
    assert oracle.act(found) == "search Ada Lindt born"
    assert oracle.act("Nothing found.") == "search Ada Lindt native"
    assert oracle.act("1. Ada Lindt once visited Elm Bay. Ada Lindt was born in Pine Hill.") == "answer Pine Hill"


def test_noise_goes_astray_and_recovers():
    env = SearchEnv(split="test", action_format="plain", max_searches=20)
    rows = env.tasks()[:40]
    played = [demonstration(env, row, random.Random(i), noise=0.3) for i, row in enumerate(rows)]
    assert all(steps is not None and steps[-1].action.startswith("answer ") for steps in played)
    astray = [step for steps in played for step in steps if not step.imitate]
    assert 0.1 < len(astray) / sum(len(steps) for steps in played) < 0.4
    assert all(step.action.startswith("search ") for step in astray)
    again = [demonstration(env, row, random.Random(i), noise=0.3) for i, row in enumerate(rows)]
    assert again == played
