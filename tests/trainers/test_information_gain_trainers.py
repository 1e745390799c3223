"""A2TGPO and IGPO on a corridor: from rollouts to gains, advantages, clip ranges and an update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer

from tests.test_information_gain import plain
from tests.toys import Corridor, OneTurn
from tests.trainers.small import history, parameters, small_config, tasks
from trl_agentic import (
    A2TGPOConfig,
    A2TGPOTrainer,
    AgenticGRPOConfig,
    AgenticGRPOTrainer,
    IGPOConfig,
    IGPOTrainer,
    StepResult,
    StopReason,
    Trajectory,
    TurnBatch,
)
from trl_agentic.credit import a2tgpo_advantages, a2tgpo_clip_scale, episode_returns, grouped_normalize


Model = Callable[..., Path]
TRUTH = "the exit"
PAIRS = {"a2tgpo": (A2TGPOTrainer, A2TGPOConfig), "igpo": (IGPOTrainer, IGPOConfig)}


def a2tgpo(model: Path, output_dir: Path, environment: Any = Corridor, **changes: Any) -> A2TGPOTrainer:
    """A trainer; names of its own arguments among `changes` are not the config's."""
    own = {
        name: changes.pop(name) for name in ("train_dataset", "eval_dataset", "processing_class") if name in changes
    }
    own.setdefault("train_dataset", tasks(ground_truth=TRUTH))
    args = small_config(A2TGPOConfig, output_dir, **changes)
    return A2TGPOTrainer(str(model), args=args, environment_factory=environment, **own)


# From rollouts to gains


def expected_gains(trainer: A2TGPOTrainer, trajectory: Trajectory, answers: list[str]) -> list[float]:
    """From the definition: the conversation up to each boundary, a forward pass for each."""
    ids: list[int] = []
    ends = []
    for turn in trajectory.turns:
        ids = ids + turn.prompt_ids
        ends.append(len(ids))
        ids = ids + turn.action_ids
    if trajectory.stop_reason in (StopReason.MAX_TURNS, StopReason.TRUNCATED):
        ended = not trajectory.turns[-1].cut
        ids = ids + trainer.chat.observation_ids([trajectory.final_observation], ended=ended)
        ends.append(len(ids))
    encode = trainer.processing_class
    bridge = encode(trainer.args.answer_probe)["input_ids"]
    accepted = [encode(answer)["input_ids"] for answer in answers]
    [logps] = plain(trainer.model.eval(), [ids], [ends], [accepted], bridge)
    gains: list[float] = logps.exp().diff().tolist()
    return gains + [math.nan] * (len(trajectory.turns) - len(gains))


def assert_gains(actual: list[float], expected: list[float]) -> None:
    assert actual == pytest.approx(expected, rel=1e-4, abs=1e-9, nan_ok=True)


def test_gains_of_answered_and_cut_rollouts(tiny_model_dir: Model, tmp_path: Path):
    trainer = a2tgpo(tiny_model_dir(), tmp_path, max_turns=7, max_completion_length=600)
    rows = [{"length": 2, "ground_truth": TRUTH}] * 6
    played = trainer.rollout(rows, seed=1)
    reasons = {trajectory.stop_reason for trajectory in played}
    assert reasons == {StopReason.TERMINATED, StopReason.TRUNCATED}
    gains = trainer.information_gains(rows, played)
    for own, trajectory in zip(gains, played, strict=True):
        assert_gains(own, expected_gains(trainer, trajectory, [TRUTH]))
        answered = trajectory.stop_reason is StopReason.TERMINATED
        assert [math.isnan(gain) for gain in own] == [False] * (len(own) - 1) + [answered]


def test_gains_of_rollouts_that_end_otherwise(tiny_model_dir: Model, tmp_path: Path):
    trainer = a2tgpo(tiny_model_dir(), tmp_path, max_turns=3)
    rows = [{"length": 9, "ground_truth": TRUTH}] * 2
    played = trainer.rollout(rows)
    assert [t.stop_reason for t in played] == [StopReason.MAX_TURNS] * 2
    whole = trainer.information_gains(rows, played)
    assert not any(math.isnan(gain) for own in whole for gain in own)
    # The environment never answered the last turn: it has no gain. A failed rollout has none at all.
    unread = replace(played[0], stop_reason=StopReason.TURN_LENGTH, final_prompt=None)
    odd = [unread, replace(played[1], stop_reason=StopReason.ERROR)]
    unanswered, failed = trainer.information_gains(rows, odd)
    assert_gains(unanswered, [*whole[0][:2], math.nan])
    assert_gains(failed, [math.nan] * 3)
    assert trainer.information_gains(rows[:1], [Trajectory(task={}, stop_reason=StopReason.CONTEXT_LENGTH)]) == [[]]
    # If the probe does not fit into the context, the likelihood is unknown.
    ends = len(played[0].turns[0].prompt_ids) + 3 + len(trainer._bridge)
    trainer.budgets = replace(trainer.budgets, max_context=ends)
    assert all(math.isnan(gain) for own in trainer.information_gains(rows, played) for gain in own)


@pytest.mark.parametrize("alias", ["first", "best"])
def test_several_accepted_answers(alias: str, tiny_model_dir: Model, tmp_path: Path):
    trainer = a2tgpo(tiny_model_dir(), tmp_path, answer_alias=alias, max_turns=3)
    accepted = ["an answer that no policy would give", TRUTH]
    rows = [{"length": 9, "ground_truth": accepted}]
    played = trainer.rollout(rows)
    expected = expected_gains(trainer, played[0], accepted if alias == "best" else accepted[:1])
    assert_gains(trainer.information_gains(rows, played)[0], expected)


def test_spaces_at_the_end_of_the_probe_belong_to_the_answer(tiny_model_dir: Model, tmp_path: Path):
    """The ids are those of the whole text, in which a space is joined with the following word."""
    trainer = a2tgpo(tiny_model_dir(), tmp_path, answer_probe="answer ", max_turns=3)
    encode = trainer.processing_class
    whole = encode(f"answer {TRUTH}")["input_ids"]
    assert trainer._bridge == encode("answer")["input_ids"]
    assert trainer._bridge + trainer._answer_ids(TRUTH, "The task")[0] == whole
    rows = [{"length": 9, "ground_truth": TRUTH}]
    played = trainer.rollout(rows)
    with_space = trainer.information_gains(rows, played)[0]
    trainer.args.answer_probe = "answer"
    assert with_space != pytest.approx(trainer.information_gains(rows, played)[0], rel=1e-2)


def test_the_logarithm_as_gain(tiny_model_dir: Model, tmp_path: Path):
    rows = [{"length": 9, "ground_truth": TRUTH}]
    prob, log_prob = (
        a2tgpo(tiny_model_dir(), tmp_path, information_gain=kind, max_turns=2) for kind in ("prob", "log_prob")
    )
    played = prob.rollout(rows)
    first, second = prob.information_gains(rows, played)[0], log_prob.information_gains(rows, played)[0]
    assert [math.copysign(1, gain) for gain in first] == [math.copysign(1, gain) for gain in second]
    assert max(map(abs, second)) > 100 * max(map(abs, first))


class Reporting(Corridor):
    """Knows the answer to its tasks, and reports it after the first turn."""

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        return replace(result, info={**result.info, "ground_truth": [TRUTH]})


def test_the_environment_may_report_the_ground_truth(tiny_model_dir: Model, tmp_path: Path):
    trainer = a2tgpo(tiny_model_dir(), tmp_path, Reporting, train_dataset=tasks(), max_turns=2)
    rows = [{"length": 9}]
    played = trainer.rollout(rows)
    assert_gains(trainer.information_gains(rows, played)[0], expected_gains(trainer, played[0], [TRUTH]))
    # The row takes precedence.
    given = [replace(played[0], task={"length": 9, "ground_truth": "a wall"})]
    assert_gains(trainer.information_gains(rows, given)[0], expected_gains(trainer, played[0], ["a wall"]))


# From gains to the loss


def recorded(trainer: A2TGPOTrainer) -> tuple[dict[str, Tensor], TurnBatch]:
    """The micro-batch of two groups, and the turns that it came from."""
    batches: list[TurnBatch] = []
    credit = trainer.turn_advantages
    trainer.turn_advantages = lambda batch: (batches.append(batch), credit(batch))[1]
    trainer.model.train()
    rows = [{"length": length, "ground_truth": TRUTH} for length in (2, 9) for _ in range(4)]
    [[inputs]], _ = trainer.generation.generate(rows, trainer.accelerator.device)
    return inputs, batches[0]


def test_each_token_has_the_clip_range_of_its_turn(tiny_model_dir: Model, tmp_path: Path):
    trainer = a2tgpo(tiny_model_dir(), tmp_path, clip_beta=0.9)
    inputs, batch = recorded(trainer)
    scales, advantages = a2tgpo_clip_scale(batch, clip_beta=0.9), a2tgpo_advantages(batch)
    assert scales[batch.turn_mask].std() > 0.1
    for row, (i, turns) in enumerate(zip(inputs["rollout_ids"], inputs["turn_ids"].tolist(), strict=True)):
        for t, k in enumerate(turns):
            assert inputs["clip_scales"][row, t] == (scales[i, k] if k >= 0 else 1.0)
            assert inputs["advantages"][row, t] == (advantages[i, k] if k >= 0 else 0.0)


@pytest.mark.parametrize("level", ["turn", "token"])
@pytest.mark.parametrize(("sign", "bound"), [(1, 4e-3), (-1, 3e-3)])
def test_a_ratio_outside_its_own_range_has_no_gradient(
    sign: int, bound: float, level: str, tiny_model_dir: Model, tmp_path: Path
):
    """All turns moved by 1.1 times the bound: the range of a turn with c = 1.2 holds that, with c = 1 it does not."""
    trainer = a2tgpo(tiny_model_dir(), tmp_path, importance_sampling_level=level)
    inputs, _ = recorded(trainer)
    turn_ids = inputs["turn_ids"]
    wide = turn_ids == 1
    inputs["advantages"] = torch.where(turn_ids >= 0, float(sign), 0.0)
    inputs["clip_scales"] = torch.where(wide, 1.2, 1.0)
    trainer.current_gradient_accumulation_steps = 1
    logps = torch.full(turn_ids.shape, -5.0, requires_grad=True)
    inputs["old_per_token_logps"] = logps.detach() - math.log(1 + 1.1 * sign * bound)
    trainer.logprobs.of_batch = lambda *args, **kwargs: (logps, torch.zeros(turn_ids.shape), None)
    trainer._compute_loss(trainer.model, inputs).backward()
    assert wide.any() and (turn_ids == 0).any()
    assert torch.equal(logps.grad != 0, wide)
    [clipped] = trainer.tracker.summarise("train")["clip_ratio/region_mean"]
    assert clipped == pytest.approx(1 - (wide.sum() / (turn_ids >= 0).sum()).item())


class TurnGSPO(AgenticGRPOTrainer):
    """GSPO (arXiv 2507.18071) with a ratio for each turn; the population's standard deviation, as A2TGPO takes it."""

    def turn_advantages(self, batch: TurnBatch) -> Tensor:
        outcomes = grouped_normalize(episode_returns(batch), batch.group_ids, batch.turn_mask.any(1), eps=1e-6)
        return outcomes.unsqueeze(1) * batch.turn_mask


def test_without_process_turns_it_is_gspo(tiny_model_dir: Model, tmp_path: Path):
    prompt = [{"role": "user", "content": "Say a word."}]
    rows = Dataset.from_list([{"prompt": prompt, "ground_truth": TRUTH}] * 4)
    options = {"num_iterations": 2, "max_steps": 4, "learning_rate": 1e-2, "max_turns": 1}
    ours = a2tgpo(tiny_model_dir(), tmp_path, OneTurn, train_dataset=rows, clip_beta=0.0, **options)
    ours.train()
    args = small_config(
        AgenticGRPOConfig, tmp_path, importance_sampling_level="turn", loss_type="grpo", epsilon=3e-3,
        epsilon_high=4e-3, **options,
    )  # fmt: skip
    theirs = TurnGSPO(str(tiny_model_dir()), args=args, train_dataset=rows, environment_factory=OneTurn)
    theirs.train()
    assert history(ours, "loss") == history(theirs, "loss")
    assert history(ours, "clip_ratio/region_mean")[1] > 0
    for name, weight in parameters(ours).items():
        assert torch.equal(weight, parameters(theirs)[name]), name


@pytest.mark.parametrize("name", PAIRS)
def test_a_run_learns_and_logs_its_gains(name: str, tiny_model_dir: Model, tmp_path: Path):
    trainer_class, config_class = PAIRS[name]
    args = small_config(config_class, tmp_path, max_steps=2, log_completions=True)
    trainer = trainer_class(
        str(tiny_model_dir()), args=args, train_dataset=tasks(ground_truth=TRUTH), environment_factory=Corridor
    )
    before = parameters(trainer)
    trainer.train()
    assert all(not torch.equal(before[key], value) for key, value in parameters(trainer).items())
    keys = [f"information_gain/{key}" for key in ("mean", "std", "positive_frac", "seconds")]
    if name == "a2tgpo":
        keys += ["clip_range/low_mean", "clip_range/high_mean", "clip_range/scale_std"]
        low, high = history(trainer, "clip_range/low_mean"), history(trainer, "clip_range/high_mean")
        assert all(0.7 * 3e-3 < value < 1.3 * 3e-3 for value in low)
        assert [b / a for a, b in zip(low, high, strict=True)] == pytest.approx([4 / 3] * 2)
        assert max(history(trainer, "clip_range/scale_std")) > 0
    for key in keys:
        assert len(history(trainer, key)) == 2 and all(map(math.isfinite, history(trainer, key)))


# What cannot work


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ("", "Row 0 of the dataset has `ground_truth=''`: it must be a text that is not empty"),
        (" \n", "it must be a text that is not empty"),
        ([], "it must be a text that is not empty"),
        (["yes", ""], "it must be a text that is not empty"),
        (7, "Row 0 of the dataset has `ground_truth=7`"),
    ],
)
def test_an_empty_ground_truth(truth: Any, message: str, tiny_model_dir: Model, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        a2tgpo(tiny_model_dir(), tmp_path, train_dataset=tasks(ground_truth=truth))


def test_the_row_that_is_wrong_is_named(tiny_model_dir: Model, tmp_path: Path):
    rows = Dataset.from_list([{"length": 1, "ground_truth": TRUTH}] * 80 + [{"length": 1, "ground_truth": ""}])
    with pytest.raises(ValueError, match="Row 80 of the dataset"):
        a2tgpo(tiny_model_dir(), tmp_path, train_dataset=rows)
    with pytest.raises(ValueError, match="Row 80 of the dataset"):
        a2tgpo(tiny_model_dir(), tmp_path, eval_dataset={"other": rows})


def test_an_answer_without_a_token(tiny_model_dir: Model, tmp_path: Path):
    """A character that is a control token of the model is no text, and the answer has no other character."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir())
    tokenizer.add_special_tokens({"additional_special_tokens": ["\u241f"]})
    with pytest.raises(ValueError, match="has no token in this model's vocabulary"):
        a2tgpo(
            tiny_model_dir(), tmp_path, train_dataset=tasks(ground_truth=["ok", "\u241f"]), processing_class=tokenizer
        )


def test_no_ground_truth_anywhere(tiny_model_dir: Model, tmp_path: Path):
    trainer = a2tgpo(tiny_model_dir(), tmp_path, train_dataset=tasks(), max_turns=2)
    with pytest.raises(ValueError, match=r"The task \{'length': \d\} has no ground truth.*column `ground_truth`"):
        trainer.train()


@pytest.mark.parametrize("options", [{}, {"use_vllm": True, "vllm_mode": "server"}])
def test_an_engine_that_cannot_compute_likelihoods(options: dict[str, Any], tmp_path: Path):
    with pytest.raises(ValueError, match='`information_gain_engine="vllm"` needs .*`vllm_mode="colocate"`'):
        small_config(A2TGPOConfig, tmp_path, information_gain_engine="vllm", **options)


def test_an_empty_probe(tiny_model_dir: Model, tmp_path: Path):
    with pytest.raises(ValueError, match="`answer_probe` must open the answer"):
        a2tgpo(tiny_model_dir(), tmp_path, answer_probe="")


def test_a_template_without_a_generation_prompt(tiny_model_dir: Model, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir())
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    with pytest.raises(ValueError, match="ignores `add_generation_prompt`"):
        a2tgpo(tiny_model_dir(), tmp_path, processing_class=tokenizer)
