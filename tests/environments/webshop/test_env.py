"""WebShopEnv: the protocol, the policy's answers, rewards, states for grouping."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.environments.webshop.shop import write_shop
from trl_agentic.environments import Environment, WebShopEnv, check_environment
from trl_agentic.environments.webshop import SPLITS, WebShopEngine, demonstration
from trl_agentic.environments.webshop.env import INSTRUCTIONS
from trl_agentic.types import StepResult


ANSWERS = [
    "search[<a> x]",
    "search[<c>]",
    "search[" + "word " * 1100 + "]",
    "search[\ud800]",
    "click[next >]",
    "click[p00x00]",
    "click[buy now]",
    "<think></think><action>click[</action>",
    "<think>a</think><action>search[lamp]</action>",
]


def tagged(action: str) -> str:
    return f"<think>next</think><action>{action}</action>"


def shop(env: WebShopEnv, goal: int) -> list[StepResult]:
    """The scripted shopper's whole episode."""
    steps, _ = demonstration(WebShopEngine(env.catalogue), goal)
    env.reset(goal=goal)
    return [env.step(tagged(step.action) if env.action_format == "tags" else step.action) for step in steps]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("action_format", ["tags", "plain"])
@pytest.mark.parametrize("mode", ["text", "text_rich"])
def test_keeps_to_the_protocol(split: str, action_format: Any, mode: Any):
    env = WebShopEnv(split, action_format=action_format, mode=mode)
    assert isinstance(env, Environment)
    check_environment(lambda: WebShopEnv(split, action_format=action_format, mode=mode), env.tasks()[0])


def test_rows_name_every_goal():
    rows = {split: WebShopEnv(split).tasks() for split in SPLITS}
    assert {split: len(found) for split, found in rows.items()} == {
        "test": 500,
        "eval": 1000,
        "train": len(WebShopEnv("train")),
    }
    for row in rows["test"][:5]:
        assert row["environment"] == "webshop"
        assert row["task_type"] in ("home", "fashion", "electronics", "beauty", "grocery")
        assert row["prompt"] == [{"role": "system", "content": INSTRUCTIONS["tags"]}]
        env = WebShopEnv("test")
        assert "Find me " in env.reset(**row)
        assert env.step(tagged("search[lamp]")).info["task_type"] == row["task_type"]
    assert len(WebShopEnv("test", num_goals=7)) == 7
    assert WebShopEnv("test", num_goals=7).tasks() == rows["test"][:7]


def test_the_wanted_product_is_told():
    env = WebShopEnv(num_goals=20)
    for row in env.tasks():
        env.reset(**row)
        told = env.step(tagged("search[lamp]")).info["ground_truth"]
        goal = env.catalogue.goals(False)[row["goal"]]
        assert told == "; ".join([goal.name, *(value for _, value in goal.options)])


def test_instructions_can_be_replaced():
    assert WebShopEnv(instructions="Buy.").tasks()[0]["prompt"][0]["content"] == "Buy."
    assert WebShopEnv(instructions="").tasks()[0]["prompt"] == []
    assert WebShopEnv(action_format="plain").tasks()[0]["prompt"][0]["content"] == INSTRUCTIONS["plain"]


def test_admissible_actions_are_listed():
    env = WebShopEnv("test", action_format="plain")
    text = env.reset(goal=0)
    assert text.endswith("[SEP] Search\n\nAdmissible actions: search[words]")
    result = env.step("search[desk lamp]")
    listed = result.info["admissible_actions"]
    assert listed[:2] == ["click[back to search]", "click[next >]"]
    assert result.observation.endswith(f"\n\nAdmissible actions: {', '.join(listed)}")
    bare = WebShopEnv("test", show_admissible=False)
    assert bare.reset(goal=0) == text.split("\n\n")[0]


@pytest.mark.parametrize("reward_mode", ["success", "score"])
def test_a_purchase_pays_once_and_ends_the_episode(reward_mode: Any):
    env = WebShopEnv("test", reward_mode=reward_mode, success_reward=10.0)
    best = [env.catalogue.best_purchase(env.catalogue.goals()[goal])[0] for goal in range(40)]
    assert any(score < 1.0 for score in best)
    for goal, score in enumerate(best):
        *before, last = shop(env, goal)
        for result in before:
            assert (result.reward, result.terminated, result.info["score"], result.info["success"]) == (
                0,
                False,
                0,
                False,
            )
            assert result.info["is_action_valid"] is True
        assert (last.terminated, last.truncated) == (True, False)
        assert last.info["score"] == score
        assert last.info["success"] is (score == 1.0)
        assert last.reward == pytest.approx(10 * score if reward_mode == "score" else 10 * (score == 1.0))
        assert "Admissible actions" not in last.observation
        with pytest.raises(RuntimeError, match="no episode is running; the last one has ended with a purchase"):
            env.step(tagged("search[lamp]"))


@pytest.mark.parametrize("split", SPLITS)
def test_the_ceiling_is_that_of_the_purchases(split: str):
    env = WebShopEnv(split, num_goals=60)
    scores = [shop(env, row["goal"])[-1].info["score"] for row in env.tasks()]
    ceiling = env.ceiling()
    assert ceiling.score == pytest.approx(sum(scores) / 60)
    assert ceiling.success == sum(score == 1.0 for score in scores) / 60 < 1.0


@pytest.mark.parametrize(
    ("answer", "command", "well_formed"),
    [
        ("<think>.</think><action>search[desk lamp]</action>", "search[desk lamp]", True),
        ("<THINK>.</THINK>\n<Action> SEARCH[Desk Lamp] </Action>\n", "search[desk lamp]", True),
        ("<action>search[desk lamp]</action>", "search[desk lamp]", False),
        ("<think>\u770b</think><action>search[desk lamp]</action>", "search[desk lamp]", False),
        ("search[desk lamp]", "search[desk lamp]", False),
        ("<think>x</think>search[desk lamp", "", False),
        ("<think>x</think><action></action>", "", True),
        ("", "", False),
    ],
)
def test_tagged_answers(answer: str, command: str, well_formed: bool):
    env = WebShopEnv("test")
    env.reset(goal=0)
    result = env.step(answer)
    assert result.info["is_action_valid"] is (well_formed and command != "")
    assert ("Page 1 " in result.observation) is (command != "")


@pytest.mark.parametrize(
    ("answer", "is_valid"),
    [
        ("search[desk lamp]", True),
        (" click[Back to Search]\n", True),
        ("click[search]", False),
        ("click[b9]", False),
        ("<action>search[lamp]</action>", False),
        ("", False),
    ],
)
def test_plain_answers(answer: str, is_valid: bool):
    env = WebShopEnv("test", action_format="plain")
    env.reset(goal=0)
    env.step("search[floor lamp]")
    assert env.step(answer).info["is_action_valid"] is is_valid


@pytest.mark.parametrize("anchor_options", [True, False])
def test_states_with_and_without_the_chosen_options(anchor_options: bool):
    env = WebShopEnv("test", action_format="plain", anchor_options=anchor_options)
    env.reset(goal=0)
    product = next(product for product in env.catalogue.products if len(product.options) == 2)
    listed = env.step(f"search[{product.title}]").info["admissible_actions"]
    opened = env.step(next(action for action in listed if product.asin.lower() in action))
    first, second = (env.step(f"click[{values[0]}]") for values in product.options.values())
    states = [result.info["anchor_state"] for result in (opened, first, second)]
    assert len(set(states)) == (3 if anchor_options else 1)
    assert opened.info["anchor_state"] == opened.observation.split("\n\n")[0]
    assert first.observation == second.observation == opened.observation


def test_the_order_of_choices_is_no_state():
    env = WebShopEnv("test", action_format="plain")
    product = next(product for product in env.catalogue.products if len(product.options) == 2)
    states = set()
    for values in (list(product.options.values()), list(product.options.values())[::-1]):
        env.reset(goal=0)
        env.step(f"search[{product.title}]")
        for text in (product.asin, *(value[0] for value in values)):
            result = env.step(f"click[{text}]")
        states.add(result.info["anchor_state"])
    assert len(states) == 1


def test_truncation_at_the_step_budget():
    env = WebShopEnv("test", max_steps=2, action_format="plain")
    for _ in range(2):
        env.reset(goal=3)
        results = [env.step("search[lamp]"), env.step("nonsense")]
        assert [result.truncated for result in results] == [False, True]
        assert not any(result.terminated for result in results)
        with pytest.raises(RuntimeError, match="no episode is running; the last one has used up its 2 steps"):
            env.step("search[lamp]")


def test_a_purchase_in_the_last_step_is_no_truncation():
    steps = len(shop(WebShopEnv("test"), 0))
    last = shop(WebShopEnv("test", max_steps=steps), 0)[-1]
    assert (last.terminated, last.truncated) == (True, False)


def test_stepping_without_an_episode():
    env = WebShopEnv("test")
    with pytest.raises(RuntimeError, match="no episode is running; `reset` starts one"):
        env.step("search[lamp]")
    env.reset(goal=0)
    env.close()
    with pytest.raises(RuntimeError, match="no episode is running; `reset` starts one"):
        env.step("search[lamp]")


def test_instances_share_a_catalogue_but_not_an_episode():
    first, second = (WebShopEnv("test", action_format="plain") for _ in range(2))
    assert first.catalogue is second.catalogue is WebShopEnv("train").catalogue
    assert first.reset(goal=0) == second.reset(goal=0)
    result = first.step("search[desk lamp]")
    first.step("click[next >]")
    assert second.step("search[desk lamp]") == result


def test_can_be_pickled_in_the_middle_of_an_episode():
    env = WebShopEnv("test")
    env.reset(goal=0)
    env.step(tagged("search[desk lamp]"))
    copy = pickle.loads(pickle.dumps(env))
    assert copy.step(tagged("click[next >]")) == env.step(tagged("click[next >]"))


@pytest.mark.parametrize(
    ("split", "goal"), [("test", 500), ("test", -1), ("eval", 499), ("train", 0), ("train", 10**6)]
)
def test_goals_of_other_splits_are_refused(split: str, goal: int):
    env = WebShopEnv(split)
    with pytest.raises(IndexError, match=f"No goal {goal} in this WebShopEnv: the split '{split}' has the goals"):
        env.reset(goal=goal)
    with pytest.raises(TypeError):
        env.reset(goal="0")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "`split` must be one of test, eval, train, got 'valid'"),
        ({"mode": "html"}, "`mode` must be one of text, text_rich, got 'html'"),
        ({"action_format": "json"}, "`action_format` must be one of plain, tags, got 'json'"),
        ({"reward_mode": "nothing"}, "`reward_mode` must be one of success, score, got 'nothing'"),
        ({"num_goals": 0}, "`num_goals` must be at least 1, got 0"),
        ({"num_products": 0}, "`num_products` must be at least 1, got 0"),
        ({"max_steps": 0}, "`max_steps` must be at least 1, got 0"),
        ({"human_goals": True}, "`human_goals` needs `data_dir`"),
        ({"num_products": 20, "split": "train"}, "The WebShop split 'train' is empty: there are"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        WebShopEnv(**options)


def test_goals_of_the_users_own_files(tmp_path: Path):
    write_shop(tmp_path)
    env = WebShopEnv("test", data_dir=tmp_path)
    assert len(env) == 4
    assert shop(env, 0)[-1].info["success"] is True
    assert len(WebShopEnv("test", data_dir=tmp_path, human_goals=True)) == 1
    with pytest.raises(ValueError, match="split 'eval' is empty: there are 4 goals"):
        WebShopEnv("eval", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        WebShopEnv(data_dir=tmp_path / "nowhere")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(st.text(st.characters(exclude_categories=()), max_size=60), st.sampled_from(ANSWERS)), max_size=6
    ),
    st.sampled_from(["tags", "plain"]),
)
def test_no_answer_raises_and_episodes_are_apart(answers: list[str], action_format: Any):
    env, other = (WebShopEnv("test", num_products=400, action_format=action_format) for _ in range(2))
    first = other.reset(goal=1)
    env.reset(goal=1)
    for answer in answers:
        result = env.step(answer)
        assert isinstance(result.info["is_action_valid"], bool)
        if result.terminated or result.truncated:
            break
    assert other.reset(goal=1) == first
    assert other.step("nothing").info["anchor_state"] == first.split("\n\n")[0]
