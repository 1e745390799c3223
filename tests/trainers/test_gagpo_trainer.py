"""GAGPO on a corridor: everything that a user of TRL expects of a trainer, in runs of three steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from tests.toys import Corridor, OneTurn
from tests.trainers.small import TRAINERS, history, parameters, small_config, tasks
from trl_agentic import (
    GAGPOConfig,
    GAGPOTrainer,
    StepResult,
    StopReason,
    Trajectory,
)


Model = Callable[..., Path]

METRICS = {
    "loss", "grad_norm", "kl", "entropy", "reward", "reward_std", "num_tokens",
    "episode/return", "episode/success", "episode/turns", "episode/tokens", "episode/invalid_frac",
    *(f"episode/stop_{reason}" for reason in StopReason),
    "turns/advantage_std", "turns/advantage_abs_mean", "turns/advantage_abs_gt_1",
    "turns/singleton_frac", "turns/group_size",
    "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean",
    "rollout/turns_per_second", "rollout/seconds", "rollout/engine_seconds", "rollout/env_seconds",
    "rollout/engine_wait", "rollout/env_wait",
}  # fmt: skip


def gagpo(model: Path, output_dir: Path, environment: Any = Corridor, **changes: Any) -> GAGPOTrainer:
    """A trainer; names of its own arguments among `changes` are not the config's."""
    names = ("reward_funcs", "train_dataset", "eval_dataset", "callbacks", "peft_config")
    own = {name: changes.pop(name) for name in names if name in changes}
    own.setdefault("train_dataset", tasks())
    args = small_config(GAGPOConfig, output_dir, **changes)
    return GAGPOTrainer(str(model), args=args, environment_factory=environment, **own)


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert different == []


# Training


@pytest.mark.parametrize("name", TRAINERS)
def test_three_steps_change_the_policy_and_log_the_metrics(name: str, tiny_model_dir: Model, tmp_path: Path):
    trainer_class, config_class, _ = TRAINERS[name]
    args = small_config(config_class, tmp_path, beta=0.01)
    rows = tasks(ground_truth="the exit")
    trainer = trainer_class(str(tiny_model_dir()), args=args, train_dataset=rows, environment_factory=Corridor)
    before = parameters(trainer)
    trainer.train()
    after = parameters(trainer)
    assert all(not torch.equal(before[key], after[key]) for key in before)
    own = {"turns/singleton_frac", "turns/group_size"} if name not in ("gagpo", "gigpo") else set()
    for step in range(3):
        logged = trainer.state.log_history[step]
        missing = METRICS - own - logged.keys()
        assert missing == set()
        assert all(math.isfinite(logged[key]) for key in logged)
        assert sum(logged[f"episode/stop_{reason}"] for reason in StopReason) == pytest.approx(1.0)
        assert logged["episode/return"] == logged["episode/success"] == logged["reward"]
    assert history(trainer, "kl")[0] == pytest.approx(0.0, abs=1e-6) and history(trainer, "kl")[2] > 0


def test_the_same_run_twice_is_the_same(tiny_model_dir: Model, tmp_path: Path):
    runs = []
    for seed in (0, 0, 1):
        trainer = gagpo(tiny_model_dir(), tmp_path, seed=seed)
        trainer.train()
        runs.append((history(trainer, "num_tokens"), parameters(trainer)))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert_same(runs[0][1], runs[1][1])


class LongIsGood(Corridor):
    """Rewards an answer of at least 20 characters. An episode is one turn."""

    def step(self, action: str) -> StepResult:
        right = len(action) >= 20
        return StepResult("", reward=float(right), terminated=True, info={"success": right})


def test_training_raises_the_reward(tiny_model_dir: Model, tmp_path: Path):
    """Twenty steps on one-turn episodes: the policy learns to give long answers."""
    trainer = gagpo(
        tiny_model_dir(), tmp_path, LongIsGood, max_steps=20, learning_rate=2e-2, beta=0.0,
        per_device_train_batch_size=32, num_generations=16, max_turns=2, gamma=1.0,
    )  # fmt: skip
    trainer.train()
    returns = history(trainer, "episode/return")
    assert sum(returns[:3]) / 3 < 0.6 and sum(returns[-3:]) / 3 > 0.85


# Data


def test_without_a_dataset_the_environment_lists_its_tasks(tiny_model_dir: Model, tmp_path: Path):
    trainer = gagpo(tiny_model_dir(), tmp_path, train_dataset=None)
    assert list(trainer.train_dataset) == Corridor().tasks()
    trainer.train()
    assert trainer.state.global_step == 3


def test_an_iterable_dataset(tiny_model_dir: Model, tmp_path: Path):
    rows = IterableDataset.from_generator(lambda: iter(Corridor().tasks()))
    trainer = gagpo(tiny_model_dir(), tmp_path, train_dataset=rows, shuffle_dataset=False)
    trainer.train()
    assert trainer.state.global_step == 3


class Recorder(Corridor):
    """Records the arguments of `reset` of all instances."""

    rows: list[dict[str, Any]] = []

    def reset(self, length: int = 2, **row: Any) -> str:
        self.rows.append({"length": length, **row})
        return super().reset(length)


def test_the_rollouts_of_a_group_share_the_task(tiny_model_dir: Model, tmp_path: Path):
    trainer = gagpo(tiny_model_dir(), tmp_path, Recorder, train_dataset=tasks(seed=5), max_steps=1)
    Recorder.rows.clear()
    trainer.train()
    assert len(Recorder.rows) == 8 and all(row["seed"] == 5 for row in Recorder.rows)
    lengths = [row["length"] for row in Recorder.rows]
    assert lengths[:4] == [lengths[0]] * 4 and lengths[4:] == [lengths[4]] * 4


def test_a_prompt_column_opens_the_conversation(tiny_model_dir: Model, tmp_path: Path):
    prompt = [{"role": "system", "content": "You walk through corridors."}]
    trainer = gagpo(tiny_model_dir(), tmp_path, train_dataset=tasks(prompt=prompt))
    [trajectory] = trainer.rollout([{"length": 2, "prompt": prompt}])
    first = trainer.processing_class.decode(trajectory.turns[0].prompt_ids)
    assert "You walk through corridors." in first and "You stand in cell 0." in first


class Echo:
    """Another environment with its own columns; ends after two turns."""

    def reset(self, word: str, **row: Any) -> str:
        assert "length" not in row and "environment" not in row
        self.steps = 0
        return f"Say {word}."

    def step(self, action: str) -> StepResult:
        self.steps += 1
        return StepResult("Again.", terminated=self.steps == 2, info={"success": False, "task_type": "echo"})

    def close(self) -> None:
        pass

    def tasks(self) -> list[dict[str, Any]]:
        return [{"word": "yes"}] * 3


@pytest.mark.parametrize("given", [True, False], ids=["dataset", "own tasks"])
def test_rows_select_their_environment(given: bool, tiny_model_dir: Model, tmp_path: Path):
    rows = [{"environment": "walk", "length": 1, "word": None}, {"environment": "echo", "length": None, "word": "a"}]
    own = {"train_dataset": Dataset.from_list(rows * 2) if given else None}
    trainer = gagpo(tiny_model_dir(), tmp_path, {"walk": Corridor, "echo": Echo}, shuffle_dataset=False, **own)
    trainer.train()
    assert trainer.state.global_step == 3
    played = trainer.rollout(rows)
    assert [t.turns[0].observation for t in played] == ["You stand in cell 0. The exit is cell 1.", "Say a."]
    assert played[1].task == {"word": "a"}
    if not given:
        assert {row["environment"] for row in trainer.train_dataset} == {"walk", "echo"}


# Rewards


def test_reward_functions_are_added_to_the_last_turn(tiny_model_dir: Model, tmp_path: Path):
    seen: list[dict[str, Any]] = []

    def length(completions: list[Any], **kwargs: Any) -> list[float | None]:
        seen.append(kwargs)
        return [float(len(c)) if i % 2 else None for i, c in enumerate(completions)]

    trainer = gagpo(
        tiny_model_dir(), tmp_path, reward_funcs=length, reward_weights=[0.5], max_steps=1, log_completions=True
    )
    batches: list[Any] = []
    credit = trainer.turn_advantages
    trainer.turn_advantages = lambda batch: (batches.append(batch), credit(batch))[1]
    trainer.train()
    [kwargs], [batch] = seen, batches
    trajectories: list[Trajectory] = kwargs["trajectory"]
    for i, trajectory in enumerate(trajectories):
        turns = len(trajectory.turns)
        extra = 0.5 * (2 * turns - 1) if i % 2 else 0.0  # answers and the observations between them
        own = [1.0 * (k == turns - 1 and bool(trajectory.success)) for k in range(turns)]
        own[-1] += extra
        assert batch.rewards[i, :turns].tolist() == pytest.approx(own)
    assert {"length", "environments", "completion_ids", "trainer_state"} <= kwargs.keys()
    assert "rewards/length/mean" in trainer.state.log_history[0]
    assert trainer.state.log_history[0]["reward"] == pytest.approx(batch.rewards.sum(1).mean().item(), abs=1e-5)


def test_reward_functions_may_log(tiny_model_dir: Model, tmp_path: Path):
    def logging(completions: list[Any], log_extra: Any, log_metric: Any, **kwargs: Any) -> list[float]:
        log_extra("answers", [len(c) for c in completions])
        log_metric("answers_mean", 3.0)
        return [0.0] * len(completions)

    trainer = gagpo(tiny_model_dir(), tmp_path, reward_funcs=[logging], log_completions=True, max_steps=1)
    trainer.train()
    assert history(trainer, "answers_mean") == [3.0]
    table = pd.read_parquet(next((tmp_path / "completions").glob("*.parquet")))
    assert table["answers"].tolist() == [len(c) for c in table["completion"]]


@pytest.mark.parametrize(("name", "in_return"), [("gagpo", False), ("gagpo", True), ("grpo", True), ("rloo", True)])
def test_an_invalid_action_costs(name: str, in_return: bool, tiny_model_dir: Model, tmp_path: Path):
    trainer_class, config_class, _ = TRAINERS[name]
    changes = {} if name != "gagpo" else {"penalty_in_return": in_return}
    args = small_config(config_class, tmp_path, invalid_action_penalty=0.25, max_steps=1, **changes)
    batches: list[Any] = []

    class Spy(trainer_class):
        def turn_advantages(self, batch: Any) -> torch.Tensor:
            batches.append(batch)
            return super().turn_advantages(batch)

    trainer = Spy(str(tiny_model_dir()), args=args, train_dataset=tasks(), environment_factory=Corridor)
    trainer.train()
    [batch] = batches
    invalid = history(trainer, "episode/invalid_frac")[0]
    assert 0 < invalid < 1
    turns = int(batch.turn_mask.sum())
    total = batch.rewards.sum().item() if in_return else -batch.penalties.sum().item()
    wins = round(8 * history(trainer, "episode/success")[0]) if in_return else 0
    assert total == pytest.approx(wins - 0.25 * round(invalid * turns), abs=1e-5)
    assert (batch.penalties is None) is in_return


# Rollouts that are left out


class Fragile(Corridor):
    """Every third episode fails: at reset, or at its second step."""

    episodes = 0

    def reset(self, length: int = 2, **row: Any) -> str:
        first = super().reset(length)
        Fragile.episodes += 1
        self.number = Fragile.episodes
        if self.number % 6 == 5:
            raise RuntimeError("the game does not start")
        return first

    def step(self, action: str) -> StepResult:
        if self.number % 6 == 2 and self.steps == 1:
            raise RuntimeError("the game crashed")
        return super().step(action)


def test_failed_rollouts_are_left_out(tiny_model_dir: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = Dataset.from_list([{"length": 3}] * 6)  # no rollout reaches the exit in less than three turns
    trainer = gagpo(tiny_model_dir(), tmp_path, Fragile, train_dataset=rows, environment_retries=0)
    Fragile.episodes = 0
    batches: list[Any] = []
    credit, scored = trainer.turn_advantages, trainer.generation.scored_rollouts
    failed: list[list[int]] = []

    def watched(rows: Any) -> Any:
        played = scored(rows)
        failed.append([i for i, trajectory in enumerate(played[0]) if trajectory.error])
        return played

    trainer.turn_advantages = lambda batch: (batches.append(batch), credit(batch))[1]
    trainer.generation.scored_rollouts = watched
    trainer.train()
    assert history(trainer, "episode/stop_error") == [3 / 8, 2 / 8, 3 / 8]
    # Three rollouts of the first batch failed. They enter no statistic, nor does the turn before a crash.
    assert failed[0] == [i for i in range(8) if not batches[0].turn_mask[i].any()]
    assert "the game crashed" in caplog.text and "the game does not start" in caplog.text
    assert all(math.isfinite(loss) for loss in history(trainer, "loss"))


def test_if_every_rollout_fails_the_error_is_shown(tiny_model_dir: Model, tmp_path: Path):
    class Dead(Corridor):
        games = 0

        def reset(self, **row: Any) -> str:
            Dead.games += 1
            if Dead.games > 3:  # the checks before training pass
                raise RuntimeError("no display")
            return super().reset(**row)

    trainer = gagpo(tiny_model_dir(), tmp_path, Dead)
    Dead.games = 3
    with pytest.raises(RuntimeError, match=r"All 8 rollouts failed(?s:.*)no display"):
        trainer.train()


def generated(trainer: GAGPOTrainer) -> dict[str, torch.Tensor]:
    """The only micro-batch of a generation."""
    trainer.model.train()
    [[batch]], _ = trainer.generation.generate([{"length": 1}] * 8, trainer.accelerator.device)
    return batch


def test_masked_truncated_rollouts_give_no_gradient(tiny_model_dir: Model, tmp_path: Path):
    """Every turn is cut at one token, so every rollout is cut by its length."""
    short = {"max_turn_tokens": 1, "overlong_turn": "stop", "max_steps": 1, "beta": 0.01}
    trainer = gagpo(tiny_model_dir(), tmp_path, mask_truncated_completions=True, **short)
    trainer.train()
    assert history(trainer, "episode/stop_turn_length") == [1.0]
    assert history(trainer, "grad_norm") == [0.0]
    rows = generated(trainer)
    assert rows["tool_mask"].sum() == 0 and rows["num_turns_in_batch"] == 0
    assert rows["num_rollouts_in_batch"] == rows["num_items_in_batch"] == 0
    assert rows["completion_mask"].sum() == 8  # still attended to

    trainer = gagpo(tiny_model_dir(), tmp_path, mask_truncated_completions=False, **short)
    rows = generated(trainer)
    assert rows["tool_mask"].sum() == rows["num_turns_in_batch"] == rows["num_rollouts_in_batch"] == 8


# Evaluation


def test_evaluation(tiny_model_dir: Model, tmp_path: Path):
    trainer = gagpo(
        tiny_model_dir(), tmp_path, eval_dataset=tasks(3), num_generations_eval=2, per_device_eval_batch_size=4
    )
    metrics = trainer.evaluate()
    assert {"eval_loss", "eval_episode/success", "eval_episode/return", "eval_reward"} <= metrics.keys() | set(
        trainer.state.log_history[-1]
    )
    logged = trainer.state.log_history[-1]
    assert logged["eval_episode/success"] == pytest.approx(logged["eval_episode/return"])
    assert all(math.isfinite(value) for value in logged.values())
    assert trainer.state.num_input_tokens_seen == 0  # tokens of training alone
    # The same weights play the same games; training does not use the random numbers of evaluation.
    trainer.evaluate()
    again = trainer.state.log_history[-1]
    assert {k: v for k, v in again.items() if k.startswith("eval_episode")} == {
        k: v for k, v in logged.items() if k.startswith("eval_episode")
    }


def test_evaluation_does_not_change_training(tiny_model_dir: Model, tmp_path: Path):
    plain = gagpo(tiny_model_dir(), tmp_path)
    plain.train()
    evaluated = gagpo(
        tiny_model_dir(), tmp_path, eval_dataset=tasks(2), eval_strategy="steps", eval_steps=1,
        per_device_eval_batch_size=4, eval_temperature=0.0,
    )  # fmt: skip
    evaluated.train()
    assert len(history(evaluated, "eval_episode/success")) == 3
    assert history(plain, "num_tokens") == history(evaluated, "num_tokens")
    for name, parameter in parameters(plain).items():  # rows are shuffled differently, so sums are rounded differently
        torch.testing.assert_close(parameter, parameters(evaluated)[name], rtol=0, atol=1e-4)


def test_the_best_checkpoint_is_the_one_with_most_success(tiny_model_dir: Model, tmp_path: Path):
    """The first two updates change nothing; those after them are far too large, and change what evaluation sees."""

    class Spoiling(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
            for group in optimizer.param_groups:
                group["lr"] = 0.0 if state.global_step < 2 else 10.0

    trainer = gagpo(
        tiny_model_dir(), tmp_path, max_steps=4, eval_dataset=tasks(6), eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, metric_for_best_model="eval_success",
        save_only_model=True, per_device_eval_batch_size=6, num_generations_eval=1, eval_temperature=0.0,
        nonfinite_update="skip",
    )  # fmt: skip
    trainer.add_callback(Spoiling())
    before = parameters(trainer)
    trainer.train()
    success = history(trainer, "eval_success")
    assert success == history(trainer, "eval_episode/success")
    assert len(success) == 4 and len(set(success)) > 1
    best = success.index(max(success))
    assert trainer.state.best_metric == max(success)
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best + 1}")
    assert (best < 2) == all(torch.equal(before[name], value) for name, value in parameters(trainer).items())
    assert trainer.evaluate()["eval_success"] == max(success)


def test_each_evaluation_set_has_its_success(tiny_model_dir: Model, tmp_path: Path):
    sets = {"short": Dataset.from_list([{"length": -9}] * 2), "long": Dataset.from_list([{"length": 9}] * 2)}
    trainer = gagpo(
        tiny_model_dir(), tmp_path, eval_dataset=sets, per_device_eval_batch_size=2, num_generations_eval=1
    )
    metrics = trainer.evaluate()
    assert (metrics["eval_short_success"], metrics["eval_long_success"]) == (1.0, 0.0)


def test_rollouts_of_a_list_of_tasks(tiny_model_dir: Model, tmp_path: Path):
    trainer = gagpo(tiny_model_dir(), tmp_path)
    rows = [{"length": 1 + i % 3} for i in range(7)]
    played = trainer.rollout(rows, temperature=1.0, seed=3)
    assert [t.task for t in played] == rows
    in_parts = trainer.rollout(rows, temperature=1.0, seed=3, batch_size=2)
    assert [[turn.action_ids for turn in t.turns] for t in in_parts] == [
        [turn.action_ids for turn in t.turns] for t in played
    ]
    greedy = trainer.rollout(rows[:1] * 3, temperature=0.0)
    assert len({str([turn.action_ids for turn in t.turns]) for t in greedy}) == 1
    assert len({str([turn.action_ids for turn in t.turns]) for t in trainer.rollout(rows[:1] * 3)}) == 3
    assert trainer.rollout([]) == []
    for mode in (True, False):
        trainer.model.train(mode)
        trainer.rollout(rows[:1])
        assert trainer.model.training is mode


# Files


def test_a_checkpoint_has_a_card_with_the_paper(tiny_model_dir: Model, tmp_path: Path):
    for name, (trainer_class, config_class, paper) in TRAINERS.items():
        args = small_config(config_class, tmp_path / name, save_strategy="steps", save_steps=1, max_steps=1)
        rows = tasks(ground_truth="the exit")
        trainer = trainer_class(str(tiny_model_dir()), args=args, train_dataset=rows, environment_factory=Corridor)
        trainer.train()
        trainer.save_model(str(tmp_path / name / "final"))
        card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        assert f"huggingface.co/papers/{paper}" in card
        assert trainer._paper["title"] in card and trainer._paper["citation"] in card
        assert all(f"- {tag}" in card for tag in trainer._tag_names)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name / "final")
        assert_same(dict(loaded.named_parameters()), parameters(trainer))
        assert AutoTokenizer.from_pretrained(tmp_path / name / "final").chat_template


@pytest.mark.parametrize("steps_per_generation", [1, 2])
def test_a_resumed_run_is_the_run(steps_per_generation: int, tiny_model_dir: Model, tmp_path: Path):
    """Bit for bit: weights, optimizer, random numbers and data continue where they were."""
    options = {
        "save_strategy": "steps", "save_steps": 2, "max_steps": 4, "beta": 0.01, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": steps_per_generation, "steps_per_generation": steps_per_generation,
        "num_generations": 4,
    }  # fmt: skip
    whole = gagpo(tiny_model_dir(), tmp_path / "whole", **options)
    whole.train()
    resumed = gagpo(tiny_model_dir(), tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same(parameters(whole), parameters(resumed))
    for key in ("loss", "episode/return", "num_tokens", "kl"):
        assert history(whole, key) == history(resumed, key)


def test_completions_are_logged_as_a_table(tiny_model_dir: Model, tmp_path: Path):
    trainer = gagpo(tiny_model_dir(), tmp_path, log_completions=True, max_steps=2)
    trainer.train()
    files = sorted(path.name for path in (tmp_path / "completions").iterdir())
    assert files == ["completions_00001.parquet", "completions_00002.parquet"]
    table = pd.read_parquet(tmp_path / "completions" / files[1])
    assert len(table) == 8
    assert {"step", "prompt", "completion", "episode_return", "advantage"} <= set(table.columns)
    for messages in table["completion"]:
        assert [m["role"] for m in messages] == ["assistant", "user"] * (len(messages) // 2) + ["assistant"]
    assert all(p[0]["content"].startswith("You stand in cell 0.") for p in table["prompt"])


# Adapters


def test_a_lora_adapter_is_trained_and_the_base_is_not(tiny_model_dir: Model, tmp_path: Path):
    peft = pytest.importorskip("peft", reason="needs the `peft` extra")
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = gagpo(
        tiny_model_dir(),
        tmp_path,
        peft_config=adapter,
        beta=0.1,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=3,
    )
    before = parameters(trainer)
    trainer.train()
    after = parameters(trainer)
    for name in before:
        assert torch.equal(before[name], after[name]) is ("lora_" not in name), name
    assert trainer.ref_model is None and history(trainer, "kl")[2] > 0
    assert (tmp_path / "checkpoint-3" / "adapter_model.safetensors").is_file()
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "checkpoint-3")
    assert {name for name, _ in loaded.named_parameters()} == after.keys()


def test_reward_functions_get_an_empty_answer_if_there_was_no_turn(tiny_model_dir: Model, tmp_path: Path):
    class Locked(Corridor):
        def reset(self, length: int = 2, **row: Any) -> str:
            if length == 3:
                raise OSError("the exit is locked")
            return super().reset(length, **row)

    def shown(completions: list[Any], **columns: Any) -> list[float]:
        return [1.0 + len(completion[0]["content"]) for completion in completions]

    rows = Dataset.from_list([{"length": 1 + 2 * (i % 2)} for i in range(6)])
    options = {"reward_funcs": shown, "train_dataset": rows, "shuffle_dataset": False}  # one of each in a batch
    trainer = gagpo(tiny_model_dir(), tmp_path, Locked, **options)
    trainer.train()
    assert history(trainer, "episode/stop_error") == [0.5] * 3
    assert all(reward >= 1.0 for reward in history(trainer, "rewards/shown/mean"))


def test_a_renderer_may_do_without_observations(tiny_model_dir: Model, tmp_path: Path):
    """`reset` returns no text, and the row has no prompt: only the renderer makes the prompt."""
    args = small_config(GAGPOConfig, tmp_path, context="window")
    trainer = GAGPOTrainer(
        str(tiny_model_dir()), args=args, train_dataset=tasks(), environment_factory=OneTurn,
        prompt_renderer=lambda view: [{"role": "user", "content": f"Walk {view.task['length']}."}],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 3
