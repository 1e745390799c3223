"""Loss and gradient of every optimizer step are those of a reference in plain Python floats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from tests.invariant.reference import Generation
from tests.trainers.small import TRAINERS, small_config
from trl_agentic.batching.collate import collate
from trl_agentic.batching.rows import TrainingSequence, training_sequences
from trl_agentic.types import StepResult, StopReason, Trajectory, Turn


class Kinds:
    """A corridor in which the place of a rollout in its batch decides what happens to it. Rewards are exact floats."""

    def reset(self, place: int = 0, **row: Any) -> str:
        self.place, self.cell, self.steps = place, 0, 0
        if place == 4:
            raise RuntimeError("no task")
        return "Cell 0." + " far" * 500 * (place == 5)

    def step(self, action: str) -> StepResult:
        self.steps += 1
        self.cell = (self.cell + len(action)) % 3
        if self.place == 1 and self.steps == 2:
            raise RuntimeError("broken")
        info: dict[str, Any] = {"anchor_state": f"cell {self.cell}"}
        if self.place in (0, 3):
            info["is_action_valid"] = (sum(map(ord, action)) + self.steps) % 2 == 0
        if self.place == 7:
            info["is_action_valid"] = self.steps != 2
        return StepResult(
            observation=f"Cell {self.cell}." + " far" * 150 * (self.place == 2 and self.steps == 2),
            reward=(sum(map(ord, action)) % 8) / 8,
            terminated=self.place in (3, 6) and self.steps == 3,
            truncated=self.place == 7 and self.steps == 3,
            info=info,
        )

    def close(self) -> None:
        pass


# By place in the batch, with the full history and no bound on the tokens of a turn.
STOPS = ["max_turns", "error", "rollout_length", "terminated", "error", "context_length", "terminated", "truncated"]


class Recorder(TrainerCallback):
    """Record of a run: its generations, and the weights, gradients and loss of every optimizer step."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.generations: list[tuple[list[Trajectory], list[set[int]], dict[str, Tensor]]] = []
        self.steps: list[tuple[dict[str, Tensor], dict[str, Tensor], float]] = []
        self.gains: list[list[list[float]]] = []
        self._loss = 0.0
        play, build, step = trainer.runner.play, trainer.generation.batches.build, trainer.training_step

        def numbered(rows: list[dict[str, Any]], *args: Any, **options: Any) -> list[Trajectory]:
            played: list[Trajectory] = play([{**row, "place": i} for i, row in enumerate(rows)], *args, **options)
            return played

        def recorded(mode: str, trajectories: list[Trajectory], *args: Any) -> Any:
            steps, tokens = build(mode, trajectories, *args)
            rollouts = [{i for batch in parts for i in trained_rollouts(batch)} for parts in steps]
            self.generations.append((trajectories, rollouts, self._weights()))
            return steps, tokens

        def summed(*args: Any, **options: Any) -> Tensor:
            loss: Tensor = step(*args, **options)
            self._loss += loss.item()
            return loss

        gains_of = trainer.information_gains

        def gains(*args: Any) -> Any:
            found = gains_of(*args)
            self.gains.append(found)
            return found

        trainer.information_gains = gains
        trainer.runner.play, trainer.generation.batches.build, trainer.training_step = numbered, recorded, summed
        trainer.add_callback(self)

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().double().clone() for name, p in self.trainer.model.named_parameters()}

    def on_pre_optimizer_step(self, *args: Any, **options: Any) -> None:
        named = self.trainer.model.named_parameters()
        gradients = {name: parameter.grad.double().clone() for name, parameter in named}
        self.steps.append((self._weights(), gradients, self._loss))
        self._loss = 0.0


def trained_rollouts(batch: dict[str, Tensor]) -> list[int]:
    """Rollouts with a token in the loss of a micro-batch."""
    rollouts: list[int] = batch["rollout_ids"][batch["tool_mask"].any(dim=1)].tolist()
    return rollouts


ROWS: dict[str, Any] = {}
BUDGET = {"max_tokens_per_micro_batch": 700}
PACKED = {"pack_micro_batches": True, "max_tokens_per_micro_batch": 900}
WINDOW = {"context": "window", "history_length": 1}
ONE: dict[str, Any] = {}
ACCUMULATED = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
TWO = {"per_device_train_batch_size": 4, "steps_per_generation": 2}
TWO_ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
AGAIN = {"num_iterations": 2}
PENALTY = {"invalid_action_penalty": 0.5}
MASKED = {"mask_truncated_completions": True}
KL = {"beta": 0.5}
NO_KL = {"beta": 0.0}

# Every pair of algorithm, context, micro-batches, updates, KL and penalty that can influence one another.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("gagpo", ROWS | TWO | AGAIN | PENALTY | KL),
    ("gagpo", WINDOW | PACKED | ACCUMULATED | AGAIN | NO_KL | MASKED | PENALTY | {"penalty_in_return": True}),
    ("gagpo", BUDGET | TWO_ACCUMULATED | KL | {"loss_type": "dapo", "importance_sampling_level": "token"}),
    ("gigpo", WINDOW | BUDGET | TWO | AGAIN | PENALTY | KL | {"loss_type": "grpo"}),
    ("gigpo", PACKED | ONE | AGAIN | NO_KL | MASKED | PENALTY | {"penalty_in_return": True, "loss_type": "dapo"}),
    ("grpo", WINDOW | ROWS | TWO_ACCUMULATED | AGAIN | PENALTY | KL | MASKED | {"loss_type": "grpo"}),
    ("grpo", PACKED | TWO | NO_KL | {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    ("grpo", BUDGET | ONE | KL | {"loss_type": "turn", "temperature": 0.7}),
    ("rloo", BUDGET | ACCUMULATED | AGAIN | KL | PENALTY | {"loss_type": "turn", "use_bias_correction_kl": True}),
    ("rloo", WINDOW | PACKED | TWO | NO_KL | MASKED | {"loss_type": "dapo", "importance_sampling_level": "turn"}),
    ("a2tgpo", ROWS | TWO | AGAIN | PENALTY | KL | {"answer_alias": "best", "information_gain": "log_prob"}),
    ("a2tgpo", WINDOW | PACKED | ONE | AGAIN | MASKED | {"loss_type": "dapo"}),
    ("igpo", BUDGET | TWO_ACCUMULATED | PENALTY | NO_KL | {"loss_type": "grpo"}),
    ("igpo", WINDOW | ROWS | ACCUMULATED | AGAIN | KL | MASKED | {"answer_alias": "best", "loss_type": "turn"}),
]


def model_with(path: Path, weights: dict[str, Tensor] | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").double().eval()
    if weights is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
    return model


@pytest.mark.parametrize(("algorithm", "changes"), CASES, ids=[f"{i}-{name}" for i, (name, _) in enumerate(CASES)])
def test_every_optimizer_step_is_that_of_the_reference(
    algorithm: str, changes: dict[str, Any], model_dir: Path, tmp_path: Path
):
    trainer_class, config_class, _ = TRAINERS[algorithm]
    options: dict[str, Any] = {
        "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "epsilon": 0.02, "epsilon_high": 0.03,
        "max_context_length": 600, "max_failed_rollouts": 0.5, "environment_retries": 0, "prefetch_resets": False,
        "shuffle_dataset": False, "max_turns": 4, "max_completion_length": 160,
    }  # fmt: skip
    args = small_config(config_class, tmp_path, **(options | changes))
    updates = args.steps_per_generation // args.gradient_accumulation_steps
    of_generation = updates * args.num_iterations
    args.max_steps = of_generation + 1
    rows = Dataset.from_list([{"ground_truth": ["12", "two rooms", "exit"]}] * 4)
    trainer = trainer_class(str(model_dir), args=args, train_dataset=rows, environment_factory=Kinds)
    trainer.model.double()
    if trainer.ref_model is not None:
        trainer.ref_model.double()
    recorder = Recorder(trainer)
    trainer.train()

    initial, tokenizer = model_with(model_dir), AutoTokenizer.from_pretrained(model_dir)
    assert len(recorder.steps) == of_generation + 1 and len(recorder.generations) == 2
    generations = []
    for (trajectories, rollouts, weights), gains in zip(recorder.generations, recorder.gains, strict=True):
        assert [t.stop_reason.value for t in trajectories] == STOPS
        old = model_with(model_dir, weights)
        generation = Generation(args, algorithm, trajectories, old, initial, tokenizer, gains)
        accumulated = args.gradient_accumulation_steps
        parts = [set().union(*rollouts[u * accumulated : (u + 1) * accumulated]) for u in range(updates)]
        assert sorted(i for part in parts for i in part) == generation.trained
        generations.append((generation, parts))
    for step, (weights, gradients, loss) in enumerate(recorder.steps):
        generation, parts = generations[step // of_generation]
        model = model_with(model_dir, weights)
        expected = generation.loss(model, parts[step % updates], updates)
        expected.backward()
        wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
        norm = torch.stack([gradient.norm() for gradient in wanted.values()]).norm()
        difference = torch.stack([(gradients[name] - wanted[name]).norm() for name in wanted]).norm()
        assert norm > 1e-3
        assert loss == pytest.approx(expected.item(), rel=1e-4, abs=1e-7), f"step {step}"
        assert difference <= 1e-4 * norm, f"step {step}: {difference} of {norm}"


TURN = Turn(prompt_ids=[1, 2], action_ids=[3, 4], logprobs=None, action="", observation="", anchor_state="")


@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize("reason", StopReason)
def test_only_failed_and_cut_rollouts_are_left_out(reason: StopReason, mask_truncated: bool):
    trajectory = Trajectory(task={}, turns=[TURN], stop_reason=reason)
    [sequence] = training_sequences(trajectory, 0, 0, mask_truncated, has_logprobs=False)
    is_cut = reason.value in ("turn_length", "rollout_length", "context_length")
    left_out = reason.value == "error" or (mask_truncated and is_cut)
    assert sequence.turn_ids == ([-1, -1] if left_out else [0, 0])


@pytest.mark.parametrize("known", [(True, True), (True, False), (False, True), (False, False)])
def test_sampling_logprobs_are_laid_out_only_if_all_sequences_have_them(known: tuple[bool, bool]):
    sequences = [
        TrainingSequence(i, [1], [2, 3], [0, 0], [-0.5, -1.0] if has_logprobs else None)
        for i, has_logprobs in enumerate(known)
    ]
    batch = collate(sequences, 0, 1, torch.device("cpu"), {})
    assert ("sampling_per_token_logps" in batch) == all(known)
