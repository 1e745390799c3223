"""Evaluations end to end: scripted policies, models and adapters, and interrupted runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.toys import Corridor
from trl_agentic.batching.rows import trajectory_sequences
from trl_agentic.environments import ALFWorldEnv, SearchEnv, WebShopEnv
from trl_agentic.environments.alfworld import ALFWorldPrompt, small_policy
from trl_agentic.evaluation.command import environment_factory, parser, window_of
from trl_agentic.evaluation.players import ModelPlayer, TextPlayer, expert_policy, random_policy
from trl_agentic.evaluation.run import evaluate
from trl_agentic.evaluation.text_loop import Answer
from trl_agentic.records import load_records
from trl_agentic.rollout.engines import Sampling
from trl_agentic.rollout.loop import Episode
from trl_agentic.rollout.prompts import FULL, PromptPolicy
from trl_agentic.types import StopReason, Trajectory, Turn, View


SETTINGS = {"policy": "test", "environment": "test"}


def alfworld(**options: Any) -> ALFWorldEnv:
    return ALFWorldEnv(split="valid_unseen", num_games=6, max_steps=30, **options)


@pytest.mark.parametrize("action_format", ["plain", "tags"])
def test_the_expert_wins_and_random_actions_do_not(action_format: Any, tmp_path: Path):
    def make() -> ALFWorldEnv:
        return alfworld(action_format=action_format)

    tasks = make().tasks()
    top = evaluate(TextPlayer(expert_policy), make, tasks, tmp_path / "expert", SETTINGS)
    assert top["success"]["All"]["wins"] == top["success"]["All"]["rollouts"] == 6
    assert top["invalid_action_rate"] == 0.0
    bottom = evaluate(TextPlayer(random_policy), make, tasks, tmp_path / "random", SETTINGS)
    assert bottom["success"]["All"]["wins"] <= 1
    assert bottom["invalid_action_rate"] == 0.0
    assert bottom["mean_turns"] > top["mean_turns"]


def test_the_expert_needs_no_list_of_actions_in_the_text(tmp_path: Path):
    def make() -> ALFWorldEnv:
        return alfworld(show_admissible=False)

    assert evaluate(TextPlayer(expert_policy), make, make().tasks(), tmp_path, SETTINGS)["errors"] == 0
    assert all(record["success"] for record in load_records(tmp_path / "trajectories.parquet"))


@pytest.mark.parametrize("action_format", ["plain", "tags"])
def test_search_has_a_floor_a_ceiling_and_a_score(action_format: Any, tmp_path: Path):
    pytest.importorskip("bm25s", reason="needs the `search` extra")

    def make() -> SearchEnv:
        return SearchEnv(split="test", num_questions=12, action_format=action_format)

    top = evaluate(TextPlayer(expert_policy), make, make().tasks(), tmp_path / "expert", SETTINGS)["success"]
    bottom = evaluate(TextPlayer(random_policy), make, make().tasks(), tmp_path / "random", SETTINGS)["success"]
    assert (top["All"]["wins"], top["All"]["score"]) == (12, 1.0)
    assert bottom["All"]["wins"] <= 1 and bottom["All"]["score"] < 0.3
    assert [top[f"{hops}-hop"]["tasks"] for hops in range(1, 5)] == [3, 3, 3, 3]


def test_webshops_expert_reaches_the_ceiling(tmp_path: Path):
    pytest.importorskip("rapidfuzz", reason="needs the `webshop` extra")

    def make() -> WebShopEnv:
        return WebShopEnv(split="test", num_products=100, num_goals=24)

    ceiling, tasks = make().ceiling()._asdict(), make().tasks()
    top = evaluate(TextPlayer(expert_policy), make, tasks, tmp_path / "expert", SETTINGS, ceiling=ceiling)
    assert top["ceiling"] == ceiling and ceiling["success"] < 1.0
    assert top["success"]["All"]["mean_at_k"] == pytest.approx(ceiling["success"])
    assert top["success"]["All"]["score"] == pytest.approx(ceiling["score"])
    assert f"attainable: success {100 * ceiling['success']:.1f}%" in (tmp_path / "expert" / "results.md").read_text()
    bottom = evaluate(TextPlayer(random_policy), make, tasks, tmp_path / "random", SETTINGS)
    assert bottom["success"]["All"]["score"] < 0.5 < ceiling["score"]
    assert "attainable" not in (tmp_path / "random" / "results.md").read_text()


@pytest.mark.parametrize(
    ("policy", "method"), [(random_policy, r"random_policy\(draw"), (expert_policy, r"expert_policy\(\)")]
)
def test_a_scripted_policy_is_the_environments_own(policy: Any, method: str, tmp_path: Path):
    with pytest.raises(TypeError, match=f"Corridor has no method `{method}"):
        evaluate(TextPlayer(policy), Corridor, Corridor().tasks(), tmp_path, SETTINGS)


def test_the_small_policy_plays_the_same_alone_and_in_a_batch(tmp_path: Path):
    """A rollout's tokens depend on its own texts and seed alone."""

    def make() -> ALFWorldEnv:
        return ALFWorldEnv("valid_unseen", num_games=2, max_steps=4, action_format="plain", show_admissible=False,
                           instructions="")  # fmt: skip

    player = ModelPlayer.from_pretrained(str(small_policy()), Sampling(0.4), dtype="float32", max_turn_tokens=12)
    tasks = make().tasks()
    together = evaluate(player, make, tasks, tmp_path / "a", SETTINGS, samples=2)
    evaluate(player, make, tasks, tmp_path / "b", SETTINGS, samples=2, batch_size=1)
    one, other = (load_records(tmp_path / name / "trajectories.parquet") for name in "ab")
    assert [record["turns"] for record in one] == [record["turns"] for record in other]
    assert [(record["group"], record["sample"]) for record in one] == [(g, s) for g in range(2) for s in range(2)]
    assert together["samples"] == 2
    assert together["invalid_action_rate"] < 0.9  # it imitates an expert: most of its commands are valid
    assert together["action_tokens"] == sum(turn["action_tokens"] for record in one for turn in record["turns"])


def test_an_adapter_is_loaded_on_its_base(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir())
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir())
    options: dict[str, Any] = {"max_turns": 2, "max_turn_tokens": 8}

    def sampled(player: ModelPlayer) -> list[list[int]]:
        (trajectory,) = player.play([Episode(Corridor(), {"length": 2}, 0)])
        return [turn.action_ids for turn in trajectory.turns]

    unadapted = sampled(ModelPlayer(base, tokenizer, Sampling(0.0), **options))
    adapted = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")  # its tokenizer is that of the base
    loaded = sampled(ModelPlayer.from_pretrained(str(tmp_path / "adapter"), Sampling(0.0), "float32", **options))
    expected = sampled(ModelPlayer(adapted, tokenizer, Sampling(0.0), **options))
    assert loaded == expected and loaded != unadapted


class Counting:
    """Player that walks to the exit. It fails at rollout number `fails_at`, as if the process had been killed."""

    def __init__(self, fails_at: int | None = None):
        self.played: list[int] = []
        self.fails_at = fails_at

    def play(self, episodes: list[Episode]) -> list[Trajectory]:
        for _ in episodes:
            if len(self.played) == self.fails_at:
                raise KeyboardInterrupt
            self.played.append(len(self.played))
        return TextPlayer(lambda episode: lambda messages: Answer("go", tokens=1)).play(episodes)


def test_a_killed_run_resumes_where_it_stopped(tmp_path: Path):
    tasks = Corridor().tasks()
    stopped = Counting(fails_at=7)
    with pytest.raises(KeyboardInterrupt):
        evaluate(stopped, Corridor, tasks, tmp_path / "a", SETTINGS, samples=2, batch_size=3)
    (file,) = (tmp_path / "a" / "rollouts").iterdir()
    assert len(file.read_text().splitlines()) == 6  # two batches of three; the third was lost
    with open(file, "a") as half:
        half.write('{"group": 3, "sam')  # a kill in the middle of a line leaves this
    assert not (tmp_path / "a" / "results.json").exists()

    rest = Counting()
    resumed = evaluate(rest, Corridor, tasks, tmp_path / "a", SETTINGS, samples=2, batch_size=4)
    assert len(rest.played) == 6
    whole = evaluate(Counting(), Corridor, tasks, tmp_path / "b", SETTINGS, samples=2)
    one, other = (load_records(tmp_path / name / "trajectories.parquet") for name in "ab")
    assert [record | {"seconds": 0} for record in one] == [record | {"seconds": 0} for record in other]
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}

    again = Counting()
    evaluate(again, Corridor, tasks, tmp_path / "a", SETTINGS, samples=2)
    assert again.played == []


def test_a_folder_belongs_to_one_evaluation(tmp_path: Path):
    evaluate(Counting(), Corridor, Corridor().tasks(), tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="other settings .*samples: 1 there, 2 here"):
        evaluate(Counting(), Corridor, Corridor().tasks(), tmp_path, SETTINGS, samples=2)
    with pytest.raises(ValueError, match="tasks_hash"):
        evaluate(Counting(), Corridor, Corridor().tasks()[::-1], tmp_path, SETTINGS)


class Fragile(Corridor):
    """Environment that fails in the tasks of length 3."""

    def reset(self, length: int = 2, **row: Any) -> str:
        if length == 3:
            raise OSError("the exit is locked")
        return super().reset(length)


class Broken(Corridor):
    """Environment that fails at its second step, which the check of the first task does not reach."""

    max_steps = 2

    def step(self, action: str) -> Any:
        if action == "go":
            raise OSError("the floor is gone")
        return super().step(action)


def test_a_failed_environment_counts_as_not_solved(tmp_path: Path):
    summary = evaluate(Counting(), Fragile, Corridor().tasks(), tmp_path, SETTINGS)
    assert summary["errors"] == 2
    assert (summary["success"]["All"]["wins"], summary["success"]["All"]["rollouts"]) == (4, 6)
    failed = load_records(tmp_path / "trajectories.parquet")[2]
    assert failed["stop_reason"] == StopReason.ERROR
    assert "the exit is locked" in failed["error"]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("lengths", [[2, 1, 3], [3, 2, 1], [2, 3, 1]])
def test_a_task_that_always_fails_affects_no_other_task(lengths: list[int], batch_size: int, tmp_path: Path):
    """The task may stand at any place of a batch of any size. Its rollout is not played again."""
    tasks = [{"length": length} for length in lengths]
    summary = evaluate(Counting(), Fragile, tasks, tmp_path, SETTINGS, batch_size=batch_size)
    assert summary["errors"] == 1 and summary["success"]["All"]["rollouts"] == 3
    again = Counting()
    assert evaluate(again, Fragile, tasks, tmp_path, SETTINGS, batch_size=batch_size) == summary
    assert again.played == []


@pytest.mark.parametrize("count", [1, 3])
def test_tasks_that_all_fail_one_by_one_end_the_run(count: int, tmp_path: Path):
    tasks = [{"length": 2}] * count
    with pytest.raises(RuntimeError, match=r"(?s)All . rollouts of a batch failed.*the floor is gone"):
        evaluate(Counting(), Broken, tasks, tmp_path, SETTINGS, batch_size=1)
    assert not any((tmp_path / "rollouts" / "0.jsonl").read_text())


def test_an_environment_that_always_fails_ends_the_run(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"(?s)All 6 rollouts of a batch failed.*the floor is gone"):
        evaluate(Counting(), Broken, Corridor().tasks(), tmp_path, SETTINGS)
    assert not (tmp_path / "results.json").exists()


def test_figures_and_settings_are_written(tmp_path: Path):
    summary = evaluate(Counting(), Corridor, Corridor().tasks(), tmp_path, SETTINGS, seed=3)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["success"] == summary["success"]
    assert written["settings"]["seed"] == 3
    assert written["settings"]["tasks"] == 6
    assert "# test on test" in (tmp_path / "results.md").read_text()
    with pytest.raises(ValueError, match="no tasks"):
        evaluate(Counting(), Corridor, [], tmp_path, SETTINGS)


def test_a_window_has_the_prompts_of_the_recipes():
    factory = environment_factory("alfworld", "action_format=plain")
    arguments = parser().parse_args(["small", "--output_dir", "out", "--history_length", "3"])
    context = window_of(arguments, factory)
    assert context.history_length == 3 and isinstance(context.renderer, ALFWorldPrompt)
    view = View({}, 2, "Your task is to: sit.", [Turn([], [], None, " go ", "A", "A")], "B", {})
    assert "you did: go\n" in context.renderer(view)[0]["content"]
    arguments.environment = ["tests.toys:Corridor"]
    assert window_of(arguments, environment_factory("tests.toys:Corridor")) == PromptPolicy(3)


def test_a_window_on_alfworld_does_not_import_webshop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "trl_agentic.environments.webshop", None)
    arguments = parser().parse_args(["small", "--output_dir", "out", "--history_length", "3"])
    assert isinstance(window_of(arguments, environment_factory("alfworld")).renderer, ALFWorldPrompt)


def test_without_a_history_length_the_prompt_is_the_full_history():
    factory = environment_factory("tests.toys:Corridor")
    arguments = parser().parse_args(["small", "--output_dir", "out"])
    assert window_of(arguments, factory) is FULL


def test_a_window_shortens_the_prompts_of_a_checkpoint(tmp_path: Path):
    def make() -> ALFWorldEnv:
        return ALFWorldEnv(num_games=1, max_steps=4, action_format="plain", show_admissible=False, instructions="")

    lengths = []
    for context in (FULL, PromptPolicy(0)):
        player = ModelPlayer.from_pretrained(str(small_policy()), Sampling(), max_turn_tokens=12, context=context)
        [trajectory] = player.play([Episode(make(), make().tasks()[0], seed=0)])
        lengths.append(len(trajectory_sequences(trajectory, 0)))
    assert lengths == [1, 4]
