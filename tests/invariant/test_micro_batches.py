"""However a batch is cut into micro-batches, and in whatever order its rollouts come, the update is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.invariant.partitions import Partitions, gradients, use_loss
from tests.toys import Corridor
from tests.trainers.small import history, parameters, small_config, tasks
from trl_agentic import GAGPOConfig, GAGPOTrainer
from trl_agentic.batching.micro_batches import cut_by_rows, cut_by_tokens
from trl_agentic.rollout.engines import Sampling


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
def test_micro_batches_hold_sequences_of_similar_length(
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


def test_a_random_order_decides_which_optimizer_step_a_rollout_belongs_to(model_dir: Path, tmp_path: Path):
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


def order_of(trainer: GAGPOTrainer) -> list[int]:
    """Rollouts in the order in which the micro-batches hold them; the shuffle is the same in every call."""
    trainer.model.train()
    torch.manual_seed(3)
    trainer._prepare_inputs(TASKS)
    return [row for step in trainer._buffered_inputs for batch in step for row in batch["rollout_ids"].tolist()]


def test_a_loss_with_means_over_micro_batches_keeps_their_sequences(model_dir: Path, tmp_path: Path):
    """TRL's `bnpo`, and any entropy bonus, have a mean over each micro-batch: its sequences are not sorted."""
    changes = {"importance_sampling_level": "token", "beta": 0.0}
    sorted_by_length = order_of(trainer_of(model_dir, tmp_path, 2, 4, loss_type="dapo", **changes))
    torch.manual_seed(3)
    drawn = torch.randperm(8).tolist()
    assert sorted_by_length != drawn
    for kept in ({"loss_type": "bnpo"}, {"loss_type": "dr_grpo", "entropy_coef": 0.1}):
        assert order_of(trainer_of(model_dir, tmp_path, 2, 4, **changes, **kept)) == drawn
    assert order_of(trainer_of(model_dir, tmp_path, 2, 4, loss_type="dr_grpo", **changes)) == sorted_by_length


def test_a_sequence_longer_than_the_budget(model_dir: Path, tmp_path: Path):
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


def noise(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Differences between the log-probabilities of the old and the trained policy."""
    return 0.3 * torch.rand(batch["completion_ids"].shape, generator=torch.Generator().manual_seed(0)) - 0.15


@pytest.mark.parametrize("level", ["turn", "token", "sequence"])
def test_any_order_and_partition_of_the_sequences_gives_the_same_gradient(level: str, model_dir: Path, tmp_path: Path):
    """One, many, ragged, and with one that is empty. In double precision, but for norms and the head of the model."""
    trainer = trainer_of(
        model_dir, tmp_path, 8, 1, importance_sampling_level=level, num_iterations=2, invalid_action_penalty=0.1,
        max_tokens_per_micro_batch=10_000,
    )  # fmt: skip
    generation = Partitions(trainer, TASKS, shift=noise)
    trainer.model.double()
    lengths = generation.prepared.lengths
    cuts = [cut_by_tokens(range(8), lengths, max(lengths)), [[0, 5, 2], [7], [], [1, 3, 4, 6]]]
    for seed, size in enumerate([1, 3, 8]):
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed)).tolist()
        cuts.append(cut_by_rows(order, size))
    for loss_type in LOSSES:
        use_loss(trainer, loss_type)
        expected = gradients(trainer, generation, [list(range(8))])
        assert max(gradient.abs().max() for gradient in expected) > 1e-4
        for cut in cuts:
            for actual, wanted in zip(gradients(trainer, generation, cut), expected, strict=True):
                torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=2e-8)


def test_a_batch_that_serves_two_optimizer_steps(model_dir: Path, tmp_path: Path):
    """Each step is an update of full size: two of them are twice the one that has the whole batch."""
    trainer = trainer_of(model_dir, tmp_path, 8, 1)
    generation = Partitions(trainer, TASKS, shift=noise)
    parts = [[0, 3, 5, 6], [1, 2, 4, 7]]
    for loss_type in LOSSES:
        use_loss(trainer, loss_type)
        together = gradients(trainer, generation, [list(range(8))])
        for apart, gradient in zip(gradients(trainer, generation, parts, steps=2), together, strict=True):
            torch.testing.assert_close(apart, 2 * gradient, rtol=1e-4, atol=1e-6)


def test_the_order_of_the_rollouts_does_not_change_their_advantages(model_dir: Path, tmp_path: Path):
    """The rows of two groups swap places, and so do the rollouts within them: each token keeps its advantage."""
    trainer = trainer_of(model_dir, tmp_path, 8, 1)
    trainer.model.train()
    order, inputs, seeds = [6, 4, 7, 5, 2, 1, 0, 3], [{"length": 1}] * 4 + [{"length": 3}] * 4, list(range(100, 108))

    def played(order: list[int]) -> dict[int, tuple[list[list[int]], list[float]]]:
        """Sampled ids and advantages of the turns of each rollout, by its number before the permutation."""
        rows = [inputs[i] for i in order]
        with trainer.generation.engines.open(Sampling()) as engine:
            environments = trainer.environment_pool.take(rows)
            trajectories = trainer.runner.play(rows, [seeds[i] for i in order], environments, engine)
        batch = trainer.generation.turn_batch("train", trajectories, None)
        advantages = trainer.generation.credit(batch).advantages
        return {
            i: ([turn.action_ids for turn in trajectory.turns], advantages[place, : len(trajectory.turns)].tolist())
            for place, (i, trajectory) in enumerate(zip(order, trajectories, strict=True))
        }

    plain, permuted = played(list(range(8))), played(order)
    assert max(abs(advantage) for _, advantages in plain.values() for advantage in advantages) > 0.5
    for i, (ids, advantages) in plain.items():
        assert permuted[i][0] == ids
        assert permuted[i][1] == pytest.approx(advantages, rel=1e-5, abs=1e-6)
