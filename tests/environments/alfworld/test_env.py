import pickle
import threading

import pytest

from trl_agentic.environments import ALFWorldEnv, Environment, check_environment
from trl_agentic.environments.alfworld import Expert, describe_game, write_game
from trl_agentic.environments.alfworld.env import INSTRUCTIONS
from trl_agentic.types import StepResult


SHORT_NAMES = {"Pick", "Look", "Clean", "Heat", "Cool", "Pick2"}


def first_move(env: ALFWorldEnv) -> str:
    return next(action for action in env.step("look").info["admissible_actions"] if action.startswith("go to "))


def play(env: ALFWorldEnv, game: str | int) -> list[StepResult]:
    """The expert's whole episode, through the environment's own texts."""
    expert, text = Expert(), env.reset(game=game)
    expert.reset(text)
    admissible = text.rsplit("Admissible actions: ", 1)[1].split(", ")
    results: list[StepResult] = []
    while not results or not (results[-1].terminated or results[-1].truncated):
        action = expert.act(results[-1].info["anchor_state"] if results else text, admissible)
        results.append(env.step(f"<think>next</think><action>{action}</action>"))
        admissible = results[-1].info["admissible_actions"]
    return results


@pytest.mark.parametrize("split", ["train", "valid_seen", "valid_unseen"])
@pytest.mark.parametrize("action_format", ["tags", "plain"])
def test_keeps_to_the_protocol(split, action_format):
    env = ALFWorldEnv(split, action_format=action_format)
    assert isinstance(env, Environment)
    check_environment(lambda: ALFWorldEnv(split, action_format=action_format), env.tasks()[0])


@pytest.mark.parametrize(("split", "size"), [("train", 3553), ("valid_seen", 140), ("valid_unseen", 134)])
def test_rows_name_every_game(split, size):
    env = ALFWorldEnv(split)
    rows = env.tasks()
    assert len(rows) == len(env) == size
    assert len({row["game"] for row in rows}) == size
    assert {row["task_type"] for row in rows} == SHORT_NAMES
    assert {row["environment"] for row in rows} == {"alfworld"}
    for row in rows[:5]:
        assert row["prompt"] == [{"role": "system", "content": INSTRUCTIONS["tags"]}]
        assert "Your task is to: " in env.reset(**row)
        assert env.step("<think>.</think><action>look</action>").info["task_type"] == row["task_type"]


def test_instructions_can_be_replaced():
    assert ALFWorldEnv(instructions="Do it.").tasks()[0]["prompt"][0]["content"] == "Do it."
    assert ALFWorldEnv(action_format="plain").tasks()[0]["prompt"][0]["content"] == INSTRUCTIONS["plain"]


def test_the_plan_is_told_on_request_and_not_shown():
    env, silent = ALFWorldEnv(num_games=3, expose_plan=True), ALFWorldEnv(num_games=3)
    for game in range(3):
        assert env.reset(game=game) == silent.reset(game=game)
        told, untold = env.step("look"), silent.step("look")
        assert told.info["ground_truth"].startswith("take ") and ", " in told.info["ground_truth"]
        assert untold.observation == told.observation
        assert untold.info == {key: value for key, value in told.info.items() if key != "ground_truth"}


def test_first_observation():
    text = ALFWorldEnv(num_games=1).reset(game=0)
    room, task, actions = text.split("\n\n")
    assert room.startswith("You are in the middle of a room. Looking quickly around you, you see a ")
    assert task.startswith("Your task is to: ")
    assert actions.startswith("Admissible actions: go to ")
    assert actions.endswith(", inventory, look")
    assert "help" not in actions
    bare = ALFWorldEnv(num_games=1, show_admissible=False).reset(game=0)
    assert bare == f"{room}\n\n{task}"


def test_name_number_and_row_reset_to_one_game():
    env = ALFWorldEnv(num_games=20)
    row = env.tasks()[7]
    assert env.reset(**row) == env.reset(game=row["game"]) == env.reset(game=7)
    assert env.reset(game=8) != env.reset(game=7)


@pytest.mark.parametrize(
    ("game", "error"), [("no-such-game/trial_1", KeyError), (20, IndexError), (-1, IndexError), (1.5, TypeError)]
)
def test_unknown_games_are_refused(game, error):
    env = ALFWorldEnv(num_games=20)
    with pytest.raises(error):
        env.reset(game=game)
    with pytest.raises(RuntimeError, match="no episode is running"):
        env.step("look")


def test_success_pays_once_and_ends_the_episode():
    env = ALFWorldEnv("valid_unseen", num_games=12)
    for game in range(12):
        results = play(env, game)
        last = results[-1]
        assert last.terminated and not last.truncated
        assert last.reward == 10.0
        assert last.info["success"] is True
        assert "Admissible actions" not in last.observation
        for result in results[:-1]:
            assert (result.reward, result.terminated, result.truncated) == (0.0, False, False)
            assert result.info["success"] is False
            assert result.info["is_action_valid"] is True
            anchor, listed = result.info["anchor_state"], result.info["admissible_actions"]
            assert result.observation == f"{anchor}\n\nAdmissible actions: {', '.join(listed)}"
            assert "help" not in listed
        with pytest.raises(RuntimeError, match="no episode is running; the last one has reached its goal"):
            env.step("look")


def test_an_ill_formed_winning_answer_wins_and_is_invalid():
    env = ALFWorldEnv(num_games=1, success_reward=3.0)
    steps = len(play(env, 0))
    expert, observation = Expert(), env.reset(game=0)
    expert.reset(observation)
    admissible = observation.rsplit("Admissible actions: ", 1)[1].split(", ")
    for _ in range(steps):
        result = env.step(f"<action>{expert.act(observation, admissible)}</action>")
        observation, admissible = result.info["anchor_state"], result.info["admissible_actions"]
    assert result.terminated
    assert result.reward == 3.0
    assert result.info["is_action_valid"] is False


@pytest.mark.parametrize(
    ("answer", "command", "well_formed"),
    [
        ("<think>I look.</think><action>look</action>", "look", True),
        ("<think>I look.</think>\n<action>\n  look\n</action>\n", "look", True),
        ("<THINK>I look.</THINK><Action>LOOK</Action>", "look", True),
        ("<think></think><action>look</action><action>inventory</action>", "look", True),
        ("<action>look</action>", "look", False),
        ("<think>I look.<action>look</action>", "look", False),
        ("<think>看</think><action>look</action>", "look", False),
        ("look", "look", False),
        ("<think>I look around, which is the best to do now.</think>" + " " * 30 + "look", "look", False),
        ("<think>x</think>look", "<think>x</think>look", False),
        ("<think>x</think><action>look", "<think>x</think><action>look", False),
        ("<think>I look.</think><action></action>", "", True),
        ("", "", False),
    ],
)
def test_tagged_answers(answer, command, well_formed):
    env = ALFWorldEnv(num_games=1)
    env.reset(game=0)
    result = env.step(answer)
    is_valid = well_formed and command == "look"
    assert result.info["is_action_valid"] is is_valid
    assert result.reward == 0.0
    expected = "You are in the middle of a room." if command == "look" else "Nothing happens."
    assert result.info["anchor_state"].startswith(expected)


def test_long_answer_without_tags_is_cut_to_its_end():
    env = ALFWorldEnv(num_games=1)
    env.reset(game=0)
    assert env.step("x" * 100_000 + " " * 30 + "inventory").info["anchor_state"] == "You are not carrying anything."


@pytest.mark.parametrize(
    ("answer", "is_valid"),
    [
        ("look", True),
        ("  look\n", True),
        ("help", True),
        ("Look", False),
        ("<action>look</action>", False),
        ("", False),
    ],
)
def test_plain_answers(answer, is_valid):
    env = ALFWorldEnv(num_games=1, action_format="plain")
    env.reset(game=0)
    result = env.step(answer)
    assert result.info["is_action_valid"] is is_valid
    assert result.reward == 0.0
    assert (result.info["anchor_state"] == "Nothing happens.") is not is_valid


def test_truncation_at_the_step_budget():
    env = ALFWorldEnv(num_games=1, max_steps=3, action_format="plain")
    for _ in range(2):
        env.reset(game=0)
        results = [env.step(answer) for answer in ("look", "nonsense", "look")]
        assert [result.truncated for result in results] == [False, False, True]
        assert not any(result.terminated for result in results)
        with pytest.raises(RuntimeError, match="no episode is running; the last one has used up its 3 steps"):
            env.step("look")


def test_a_win_in_the_last_step_is_no_truncation():
    steps = len(play(ALFWorldEnv(num_games=1), 0))
    assert (play(ALFWorldEnv(num_games=1, max_steps=steps), 0)[-1].terminated) is True
    last = play(ALFWorldEnv(num_games=1, max_steps=steps), 0)[-1]
    assert (last.terminated, last.truncated) == (True, False)
    last = play(ALFWorldEnv(num_games=1, max_steps=steps - 1), 0)[-1]
    assert (last.terminated, last.truncated) == (False, True)


def test_stepping_without_an_episode():
    env = ALFWorldEnv(num_games=1)
    with pytest.raises(RuntimeError, match="no episode is running; `reset` starts one"):
        env.step("look")
    env.reset(game=0)
    env.close()
    with pytest.raises(RuntimeError, match="no episode is running; `reset` starts one"):
        env.step("look")
    env.close()


def test_instances_share_games_but_not_episodes():
    first, second = (ALFWorldEnv(num_games=2, action_format="plain") for _ in range(2))
    assert first.reset(game=0) == second.reset(game=0)
    assert first._engine.game is second._engine.game
    move = first_move(first)
    moved = first.step(move)
    assert moved.info["is_action_valid"]
    assert second.step(move) == moved


def test_threads_do_not_disturb_one_another():
    expected = [result.observation for result in play(ALFWorldEnv(num_games=1), 0)]
    seen: list[list[str]] = []

    def run() -> None:
        env = ALFWorldEnv(num_games=1)
        for _ in range(5):
            seen.append([result.observation for result in play(env, 0)])

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [expected] * 40


def test_can_be_pickled_in_the_middle_of_an_episode():
    env = ALFWorldEnv(num_games=1, action_format="plain")
    env.reset(game=0)
    move = first_move(env)
    copy = pickle.loads(pickle.dumps(env))
    assert copy.step(move) == env.step(move)
    assert copy.reset(game=0) == env.reset(game=0)


def test_seeds_give_other_games():
    assert ALFWorldEnv(seed=0).tasks()[0] != ALFWorldEnv(seed=1).tasks()[0]
    assert ALFWorldEnv(seed=0, num_games=5).tasks() == ALFWorldEnv(seed=0).tasks()[:5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "`split` must be one of train, valid_seen, valid_unseen, got 'test'"),
        ({"backend": "textworld"}, "`backend` must be one of engine, alfworld, got 'textworld'"),
        ({"action_format": "json"}, "`action_format` must be one of plain, tags, got 'json'"),
        ({"on_broken_game": "ignore"}, "`on_broken_game` must be one of raise, skip, got 'ignore'"),
        ({"num_games": 0}, "`num_games` must be at least 1, got 0"),
        ({"max_steps": 0}, "`max_steps` must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ALFWorldEnv(**options)


@pytest.fixture
def data(tmp_path):
    for index in range(10):
        write_game(describe_game("valid_seen", index), tmp_path)
    return tmp_path


def test_games_from_files(data):
    env = ALFWorldEnv("valid_seen", data=data)
    generated = ALFWorldEnv("valid_seen", num_games=10)
    assert sorted(row["game"] for row in generated.tasks()) == [row["game"] for row in env.tasks()]
    for row in generated.tasks():
        assert env.reset(**row) == generated.reset(**row)
        assert play(env, row["game"])[-1].terminated


def test_part_of_the_files_is_drawn_with_the_seed(data):
    everything = [row["game"] for row in ALFWorldEnv("valid_seen", data=data).tasks()]
    parts = [
        [row["game"] for row in ALFWorldEnv("valid_seen", data=str(data), num_games=4, seed=seed).tasks()]
        for seed in range(6)
    ]
    for part in parts:
        assert len(part) == 4
        assert part == [name for name in everything if name in part]
    assert len({tuple(part) for part in parts}) > 1
    assert len(ALFWorldEnv("valid_seen", data=data, num_games=99)) == 10


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="ALFWORLD_DATA"):
        ALFWorldEnv(data=tmp_path / "nowhere")


def broken_game(data):
    path = sorted(data.glob("json_2.1.1/valid_seen/*/*/game.tw-pddl"))[3]
    path.write_text(path.read_text().replace("(:init", "(:begin", 1))
    return path


def test_broken_game_is_named_when_it_is_reset(data):
    path = broken_game(data)
    env = ALFWorldEnv("valid_seen", data=data)
    assert len(env) == 10
    env.reset(game=2)
    with pytest.raises(ValueError, match=path.parent.name):
        env.reset(game=3)
    env.reset(game=4)


def test_broken_game_can_be_left_out(data):
    path = broken_game(data)
    with pytest.warns(UserWarning, match=path.parent.name):
        env = ALFWorldEnv("valid_seen", data=data, on_broken_game="skip")
    assert len(env) == 9
    assert path.parent.name not in " ".join(row["game"] for row in env.tasks())


@pytest.mark.filterwarnings("default")
def test_upstream_backend_says_the_same():
    pytest.importorskip("textworld", reason="needs the extra `alfworld`")
    pytest.importorskip("alfworld", reason="needs the extra `alfworld`")
    ours = play(ALFWorldEnv("valid_unseen", num_games=1), 0)
    upstream = ALFWorldEnv("valid_unseen", num_games=1, backend="alfworld")
    assert play(upstream, 0) == ours
    upstream.close()
