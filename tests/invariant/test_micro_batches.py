"""However a batch is cut into micro-batches, and in whatever order its rollouts come, the update is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys import Corridor
from tests.trainers.small import history, parameters, small_config, tasks
from trl_agentic import GAGPOConfig, GAGPOTrainer
from trl_agentic.batching.micro_batches import cut_by_rows, cut_by_tokens, take_rows


# Rows of a step, steps, and the budget of tokens: a row has up to 136 of them.
CUTS = [(8, 1, None), (2, 4, None), (1, 8, None), (8, 1, 10_000), (4, 2, 150)]
LOSSES = ["turn", "dapo", "grpo"]


def trainer_of(
    model: Path, output_dir: Path, size: int, cuts: int, peft_config: Any = None, **changes: Any
) -> GAGPOTrainer:
    """Plain gradient descent without a bound on the gradient, so that the update is the gradient."""
    args = small_config(
        GAGPOConfig, output_dir, per_device_train_batch_size=size, gradient_accumulation_steps=cuts, max_steps=2,
        optim="sgd", learning_rate=0.02, max_grad_norm=0.0, **changes,
    )  # fmt: skip
    return GAGPOTrainer(
        str(model), args=args, train_dataset=tasks(), environment_factory=Corridor, peft_config=peft_config
    )


@pytest.mark.parametrize(("loss_type", "num_iterations"), [("turn", 1), ("turn", 2), ("dapo", 2), ("grpo", 2)])
def test_any_cut_trains_the_same(loss_type: str, num_iterations: int, model_dir: Path, tmp_path: Path):
    runs = []
    for size, cuts, budget in CUTS:
        trainer = trainer_of(
            model_dir, tmp_path, size, cuts, loss_type=loss_type, num_iterations=num_iterations, beta=0.1,
            max_tokens_per_micro_batch=budget, max_context_length=150,
        )  # fmt: skip
        trainer.train()
        logged = {key: history(trainer, key) for key in ("loss", "kl", "entropy", "clip_ratio/region_mean")}
        runs.append((history(trainer, "num_tokens"), logged, parameters(trainer)))
    tokens, logged, weights = runs[0]
    for other_tokens, other_logged, other_weights in runs[1:]:
        assert other_tokens == tokens  # the same rollouts
        for key, values in logged.items():
            assert other_logged[key] == pytest.approx(values, rel=1e-4, abs=1e-6), key
        for name, weight in weights.items():
            torch.testing.assert_close(other_weights[name], weight, rtol=1e-5, atol=1e-6)


TASKS = [{"length": -1}] * 4 + [{"length": 3}] * 4  # one group of one-turn episodes, one of long ones


@pytest.mark.parametrize(("budget", "multiple"), [(None, None), (None, 8), (200, 8)])
def test_micro_batches_hold_rows_of_like_length(
    budget: int | None, multiple: int | None, model_dir: Path, tmp_path: Path
):
    """A pass has no more columns than its longest row needs, and long rows are not with short ones."""
    trainer = trainer_of(model_dir, tmp_path, 2, 4, pad_to_multiple_of=multiple, max_tokens_per_micro_batch=budget)
    trainer.model.train()
    trainer._prepare_inputs(TASKS)
    steps = trainer._buffered_inputs
    widths = []
    for batch in [batch for step in steps for batch in step]:
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        widths.append(mask.size(1))
        assert mask.size(1) % (multiple or 1) == 0
        assert mask.size(1) - mask.sum(1).max() < (multiple or 1)
        assert budget is None or mask.numel() <= budget
        assert all(batch[key].shape == batch["completion_ids"].shape for key in ("turn_ids", "ref_per_token_logps"))
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[-1]
    assert len(steps) == 4 and all(steps)
    assert (max(map(len, steps)) > 1) is (budget is not None)
    assert sorted(row for step in steps for batch in step for row in batch["rollout_ids"].tolist()) == list(range(8))


def test_chance_decides_which_optimizer_step_a_rollout_is_for(model_dir: Path, tmp_path: Path):
    """Two optimizer steps on one batch: sorted as a whole, the first would have all of the long rollouts."""
    trainer = trainer_of(model_dir, tmp_path, 4, 1, steps_per_generation=2, max_tokens_per_micro_batch=200)
    trainer.model.train()
    torch.manual_seed(0)
    order = torch.randperm(8).tolist()
    torch.manual_seed(0)
    trainer._prepare_inputs(TASKS)
    drawn = [
        sorted(row for batch in step for row in batch["rollout_ids"].tolist()) for step in trainer._buffered_inputs
    ]
    assert drawn == [sorted(order[:4]), sorted(order[4:])]


def test_a_loss_with_means_over_micro_batches_keeps_their_rows(model_dir: Path, tmp_path: Path):
    changes = {"importance_sampling_level": "token", "beta": 0.0}
    trainer = trainer_of(model_dir, tmp_path, 2, 4, loss_type="dapo", **changes)
    trainer.model.train()
    kept = []
    for loss_type in ("bnpo", "dapo"):
        trainer.loss_type = loss_type
        torch.manual_seed(3)
        trainer._prepare_inputs(TASKS)
        kept.append(
            [row for step in trainer._buffered_inputs for batch in step for row in batch["rollout_ids"].tolist()]
        )
    torch.manual_seed(3)
    assert kept[0] == torch.randperm(8).tolist() != kept[1]
    assert not trainer_of(model_dir, tmp_path, 2, 4, loss_type="dapo", entropy_coef=0.1, **changes)._may_sort


def test_a_row_longer_than_the_budget(model_dir: Path, tmp_path: Path):
    """A task whose prompt is longer than that of the first one; the message names a budget that works."""
    trainer = trainer_of(model_dir, tmp_path, 8, 1, max_tokens_per_micro_batch=200)
    trainer.args.max_tokens_per_micro_batch = 40
    trainer.model.train()
    with pytest.raises(
        ValueError, match="`max_tokens_per_micro_batch` is 40, but .* to at least ([0-9]+), or"
    ) as error:
        trainer._prepare_inputs(TASKS)
    trainer.args.max_tokens_per_micro_batch = int(str(error.value).split("at least ")[1].split(",")[0])
    trainer._prepare_inputs(TASKS)
    widths = [batch["completion_ids"].size(1) for batch in trainer._buffered_inputs[0]]
    assert widths[0] == max(widths) and len(widths) > 1


def rows_of(trainer: GAGPOTrainer) -> dict[str, Tensor]:
    """Eight rollouts as one micro-batch, with the log-probabilities of an old policy that was another."""
    trainer.model.train()
    rows = trainer._generate_and_score_completions(TASKS)
    [[batch]] = trainer._micro_batches("train", rows, list(range(8)), steps=1)
    if "old_per_token_logps" in batch:
        noise = torch.rand(batch["completion_ids"].shape, generator=torch.Generator().manual_seed(0))
        batch["old_per_token_logps"] = batch["old_per_token_logps"].double() + 0.3 * noise - 0.15
    return batch


def gradients(trainer: GAGPOTrainer, rows: dict[str, Tensor], parts: list[list[int]], steps: int = 1) -> list[Tensor]:
    """Gradient of these micro-batches; `steps` optimizer steps share the rows."""
    trainer.args.steps_per_generation, trainer.current_gradient_accumulation_steps = steps, 1
    trainer.model.zero_grad()
    for part in parts:
        trainer._compute_loss(trainer.model, take_rows(rows, part)).backward()
    return [parameter.grad.clone() for parameter in trainer.model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("level", ["turn", "token", "sequence"])
def test_any_order_and_cut_of_the_rows_gives_the_same_gradient(level: str, model_dir: Path, tmp_path: Path):
    """One, many, ragged, and with one that is empty. In double precision, but for norms and the head of the model."""
    trainer = trainer_of(
        model_dir, tmp_path, 8, 1, importance_sampling_level=level, num_iterations=2, invalid_action_penalty=0.1,
        max_tokens_per_micro_batch=10_000,
    )  # fmt: skip
    rows = rows_of(trainer)
    trainer.model.double()
    lengths = (rows["prompt_mask"].sum(1) + rows["completion_mask"].sum(1)).tolist()
    cuts = [cut_by_tokens(range(8), lengths, max(lengths)), [[0, 5, 2], [7], [], [1, 3, 4, 6]]]
    for seed, size in enumerate([1, 3, 8]):
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed)).tolist()
        cuts.append(cut_by_rows(order, size))
    for trainer.loss_type in LOSSES:
        expected = gradients(trainer, rows, [list(range(8))])
        assert max(gradient.abs().max() for gradient in expected) > 1e-4
        for cut in cuts:
            for actual, wanted in zip(gradients(trainer, rows, cut), expected, strict=True):
                torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=2e-8)


def test_a_batch_that_serves_two_optimizer_steps(model_dir: Path, tmp_path: Path):
    """Each step is an update of full size: two of them are twice the one that has the whole batch."""
    trainer = trainer_of(model_dir, tmp_path, 8, 1)
    rows = rows_of(trainer)
    parts = [[0, 3, 5, 6], [1, 2, 4, 7]]
    for trainer.loss_type in LOSSES:
        together = gradients(trainer, rows, [list(range(8))])
        for apart, gradient in zip(gradients(trainer, rows, parts, steps=2), together, strict=True):
            torch.testing.assert_close(apart, 2 * gradient, rtol=1e-4, atol=1e-6)


def test_the_order_of_the_rollouts_does_not_change_their_advantages(model_dir: Path, tmp_path: Path):
    """The rows of two groups swap places: each token keeps its advantage."""
    trainer = trainer_of(model_dir, tmp_path, 8, 1)
    trainer.model.train()
    plain = trainer._rollout_seeds("train", 8)
    order = [6, 4, 7, 5, 2, 1, 0, 3]
    inputs = [{"length": 1}] * 4 + [{"length": 3}] * 4
    rows = trainer._generate_and_score_completions(inputs)
    trainer._rollout_seeds = lambda mode, count: [plain[i] for i in order]
    permuted = trainer._generate_and_score_completions([inputs[i] for i in order])
    width = min(rows["advantages"].size(1), permuted["advantages"].size(1))
    before, after = rows["rollout_ids"].argsort()[order], permuted["rollout_ids"].argsort()
    for key in ("completion_ids", "advantages"):
        torch.testing.assert_close(rows[key][before][:, :width], permuted[key][after][:, :width])
    assert rows["advantages"].abs().max() > 0.5
