"""On multi-turn rollouts, loss and gradients of AgenticGRPOTrainer equal those of TRL's GRPOTrainer.

Both receive the same token ids, masks, log-probabilities and returns. TRL computes its own advantage of each rollout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from tests.invariant.partitions import Partitions
from tests.toys import Corridor
from tests.trainers.small import small_config, tasks
from trl_agentic import AgenticGRPOConfig, AgenticGRPOTrainer


SHARED = {"beta": 0.1, "epsilon": 0.1, "epsilon_high": 0.15, "num_generations": 4}
# All loss types that GRPOTrainer has and that are accepted at a level: `grpo` and `dapo` are this package's own loss.
CASES = [
    *((loss_type, level, {}) for level in ("token", "sequence")
      for loss_type in ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")
      if (loss_type, level) != ("vespo", "sequence")),  # it computes the sequence's ratio itself
    *((loss_type, level, {"max_tokens_per_micro_batch": 4096}) for level in ("token", "sequence")
      for loss_type in ("grpo", "dapo")),
]  # fmt: skip


def ours(model: Path, out: Path, **changes: Any) -> AgenticGRPOTrainer:
    args = small_config(AgenticGRPOConfig, out, **SHARED, **changes)
    return AgenticGRPOTrainer(str(model), args=args, train_dataset=tasks(), environment_factory=Corridor)


def theirs(model: Path, out: Path, **changes: Any) -> GRPOTrainer:
    options = {name: value for name, value in vars(small_config(AgenticGRPOConfig, out, **SHARED)).items()
               if name in ("max_completion_length", "per_device_train_batch_size", "report_to")}  # fmt: skip
    args = GRPOConfig(output_dir=str(out), use_cpu=True, bf16=False, **options, **SHARED, **changes)
    rows = tasks().map(lambda row: {"prompt": "Walk."})
    return GRPOTrainer(str(model), lambda completions, **kwargs: [0.0] * len(completions), args, rows)


@pytest.fixture(scope="module")
def batch(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Tensor]:
    """Training sequences of two groups of four rollouts, off policy, and the returns of the rollouts."""
    trainer = ours(model_dir, tmp_path_factory.mktemp("batch"))
    trainer.model.train()
    played, _ = trainer.generation.scored_rollouts([{"length": 2}] * 4 + [{"length": 3}] * 4)
    for trajectory, reward in zip(played, [0.25, 1.0, 0.0, 0.5, 2.0, 0.0, 0.0, 0.125], strict=True):
        trajectory.turns[0].reward = 0.0
        trajectory.turns[-1].reward = reward
    partitions = Partitions(trainer, trajectories=played)
    by_rollout = sorted(range(8), key=lambda i: partitions.prepared.sequences[i].rollout)
    rows = partitions.micro_batch(by_rollout)
    assert rows["rollout_ids"].tolist() == list(range(8)) and (rows["turn_ids"].amax(1) > 0).any()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        logps = trainer.logprobs.of_batch(trainer.model, rows)[0]
    rows["old_per_token_logps"] = logps + 0.2 * torch.randn(logps.shape, generator=noise)
    rows["ref_per_token_logps"] = logps + 0.2 * torch.randn(logps.shape, generator=noise)
    return rows, torch.tensor([trajectory.episode_return for trajectory in played])


def loss_and_gradients(trainer: Any, rows: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, rows)
    loss.backward()
    return loss.item(), {n: p.grad.detach() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("loss_type", "level", "changes"), CASES, ids=lambda value: str(value) if value else "trl")
def test_loss_and_gradients_are_those_of_trl(
    loss_type: str,
    level: str,
    changes: dict[str, Any],
    batch: tuple[dict[str, Tensor], Tensor],
    model_dir: Path,
    tmp_path: Path,
):
    rows, returns = batch
    options = {"loss_type": loss_type, "importance_sampling_level": level}
    groups = returns.view(-1, 4)
    advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
    names = (
        "prompt_ids prompt_mask completion_ids completion_mask tool_mask num_items_in_batch "
        "old_per_token_logps ref_per_token_logps"
    )
    plain = {name: rows[name] for name in names.split()} | {"advantages": advantages}
    expected, their_gradients = loss_and_gradients(theirs(model_dir, tmp_path / "theirs", **options), plain)
    actual, our_gradients = loss_and_gradients(ours(model_dir, tmp_path / "ours", **options, **changes), dict(rows))
    assert actual == pytest.approx(expected, rel=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    norm = torch.cat([gradient.flatten() for gradient in their_gradients.values()]).norm()
    assert norm > 1e-3
    for name, gradient in their_gradients.items():
        difference = (our_gradients[name] - gradient).norm()
        assert difference <= 1e-5 * norm, f"{name}: {difference} of {norm}"
