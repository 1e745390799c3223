import math
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.environments.search.test_answers import turns
from trl_agentic.environments import Environment, SearchEnv, check_environment
from trl_agentic.environments.search import BM25Retriever
from trl_agentic.environments.search.env import INSTRUCTIONS


ROW = {"question": "Who wrote Silver Lantern?", "ground_truth": ["Ida Falk", "Ida Lindt"]}
CORPUS = ["Silver Lantern was written by Ida Falk.", "Ida Falk was born in Pine Hill.", "Elm Bay lies on Swan River."]


def make(**options) -> SearchEnv:
    env = SearchEnv(**{"action_format": "plain", "num_questions": 1, "retriever": BM25Retriever(CORPUS)} | options)
    env.reset(**ROW)
    return env


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("action_format", ["tags", "plain"])
def test_keeps_to_the_protocol(split, action_format):
    env = SearchEnv(split=split, action_format=action_format)
    assert isinstance(env, Environment)
    row = env.tasks()[0]
    check_environment(lambda: SearchEnv(split=split, action_format=action_format), row)
    check_environment(
        lambda: SearchEnv(split=split, action_format=action_format),
        row,
        ["search a", "answer b", "<think></think><search>a</search>", "<think></think><answer>b</answer>"],
    )


def test_rows():
    env = SearchEnv(split="test")
    rows = env.tasks()
    assert len(rows) == len(env) == 400
    assert [row["task_type"] for row in rows[:4]] == ["1-hop", "2-hop", "3-hop", "4-hop"]
    assert {row["environment"] for row in rows} == {"search"}
    for row in rows:
        assert row["prompt"] == [{"role": "system", "content": INSTRUCTIONS["tags"]}]
        assert isinstance(row["ground_truth"], list)
        assert env.reset(**row) == row["question"]
    assert SearchEnv(split="test", num_questions=7).tasks() == rows[:7]
    assert SearchEnv(split="test", seed=1).tasks()[0]["question"] != rows[0]["question"]
    assert SearchEnv(instructions="", num_questions=1).tasks()[0]["prompt"] == []


def test_an_episode():
    env = make()
    first = env.step("search Silver Lantern written")
    assert first.observation == "1. Silver Lantern was written by Ida Falk."
    assert (first.reward, first.terminated, first.truncated) == (0.0, False, False)
    assert first.info == {
        "is_action_valid": True,
        "success": False,
        "score": 0.0,
        "ground_truth": ["Ida Falk", "Ida Lindt"],
        "task_type": "",
    }
    second = env.step("search Falk Pine")
    assert second.observation == "1. Ida Falk was born in Pine Hill.\n2. Silver Lantern was written by Ida Falk."
    last = env.step("answer ida lindt")
    assert (last.reward, last.terminated, last.truncated) == (1.0, True, False)
    assert (last.info["success"], last.info["score"]) == (True, 1.0)
    with pytest.raises(RuntimeError, match="no episode is running; the last one has its answer"):
        env.step("answer Ida Falk")


def test_results_are_tagged_with_the_tags():
    env = make(action_format="tags", top_k=1)
    found = env.step("<think>Who?</think><search>Falk</search>").observation
    assert found.startswith("<result>\n1. ") and found.endswith("\n</result>")
    assert env.step("<think>?</think><search>qqq</search>").observation == "<result>\nNothing found.\n</result>"
    assert env.step("<think>!</think><answer>Ida Falk</answer>").reward == 1.0


@pytest.mark.parametrize(
    ("turns_played", "options", "reward", "success"),
    [
        (["answer Ida Falk"], {}, 1.0, True),
        (["answer Ida"], {}, 0.0, False),
        # one of two words, both of one: 2 * 1 / (1 + 2)
        (["answer Ida"], {"metric": "f1"}, 2 / 3, False),
        (["nonsense", "answer Ida Falk"], {}, -1.0, True),
        (["nonsense", "answer Ida Falk"], {"format_penalty": 0.5}, -0.5, True),
        (["nonsense", "answer Ida Falk"], {"format_penalty": 0.0}, 1.0, True),
        (["", "search Falk", "search Falk"], {"max_searches": 2}, -1.0, False),
        (["", "search Falk", "search Falk"], {"max_searches": 2, "format_penalty": 0.0}, 0.0, False),
        (["search Falk", "search Falk", "answer Ida Falk"], {"max_searches": 2}, 1.0, True),
    ],
)
def test_rewards(turns_played, options, reward, success):
    env = make(**options)
    results = [env.step(turn) for turn in turns_played]
    assert [result.reward for result in results[:-1]] == [0.0] * (len(results) - 1)
    assert results[-1].reward == pytest.approx(reward)
    assert results[-1].info["success"] is success
    answered = turns_played[-1].startswith("answer ")
    assert (results[-1].terminated, results[-1].truncated) == (answered, not answered)
    assert not any(result.terminated or result.truncated for result in results[:-1])


def test_a_truncated_episode_is_over():
    env = make(max_searches=1)
    assert not env.step("search Falk").truncated
    assert env.step("search Falk").truncated
    with pytest.raises(RuntimeError, match="used up its 1 searches"):
        env.step("answer Ida Falk")
    env.reset(**ROW)
    assert env.step("answer Ida Falk").reward == 1.0
    env.reset(**ROW)
    env.close()
    with pytest.raises(RuntimeError, match="`reset` starts one"):
        env.step("answer Ida Falk")


@settings(deadline=None)
@given(st.sampled_from(["plain", "tags"]), st.lists(turns, min_size=4, max_size=4))
def test_any_turn_has_a_defined_result(action_format, played):
    env = make(action_format=action_format, max_searches=3)
    for number, turn in enumerate(played):
        result = env.step(turn)
        assert math.isfinite(result.reward) and -1 <= result.reward <= 1
        assert isinstance(result.observation, str)
        assert result.truncated == (number == 3 and not result.terminated)
        assert result.reward == 0 or result.terminated or result.truncated
        if result.terminated:
            break


def test_threads_share_a_retriever():
    retriever, seen = BM25Retriever(CORPUS), []

    def run() -> None:
        env = make(retriever=retriever)
        seen.append((env.step("search Falk Pine").observation, env.step("answer Ida Falk").reward))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert set(seen) == {("1. Ida Falk was born in Pine Hill.\n2. Silver Lantern was written by Ida Falk.", 1.0)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "`split` must be one of train, test, got 'dev'"),
        ({"action_format": "json"}, "`action_format` must be one of tags, plain, got 'json'"),
        ({"metric": "rouge"}, "`metric` must be one of em, f1, got 'rouge'"),
        ({"num_questions": 0}, "`num_questions` must be at least 1, got 0"),
        ({"max_searches": 0}, "`max_searches` must be at least 1, got 0"),
        ({"top_k": 0}, "`top_k` must be at least 1, got 0"),
        ({"format_penalty": -1.0}, "`format_penalty` must not be negative, got -1.0"),
        ({"questions": "nq"}, "`retriever` is missing. The questions of nq need one"),
        ({"retriever": "http://127.0.0.1"}, "`retriever` has no method `search`: str"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SearchEnv(**options)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": " ", "ground_truth": ["x"]}, "`question` must be a text that is not empty, got ' '"),
        ({"question": None, "ground_truth": ["x"]}, "`question` must be a text that is not empty, got None"),
        ({"question": "q", "ground_truth": []}, r"`ground_truth` of 'q' must be texts that are not empty, got \[\]"),
        ({"question": "q", "ground_truth": ["x", ""]}, "`ground_truth` of 'q' must be texts"),
    ],
)
def test_faulty_rows_are_named(row, message):
    env = make()
    with pytest.raises(ValueError, match=message):
        env.reset(**row)


def test_one_answer_may_stand_for_a_list():
    env = make()
    env.reset(question="q", ground_truth="Ida Falk")
    assert env.step("answer Ida Falk").info["ground_truth"] == ["Ida Falk"]
