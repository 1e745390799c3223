"""Every algorithm trains in a window, and the information gain reads the prompts that the policy read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_information_gain import plain
from tests.toys import Corridor
from tests.trainers.small import TRAINERS, history, small_config, tasks


Model = Callable[..., Path]
TRUTH = "the exit"
PAIRS = [(trainer, config) for trainer, config, _ in TRAINERS.values()]
A2TGPO = TRAINERS["a2tgpo"][:2]


def trainer_of(pair: tuple[Any, Any], model: Path, output_dir: Path, **changes: Any) -> Any:
    trainer_class, config_class = pair
    options = {"context": "window", "history_length": 1, "max_completion_length": 400, **changes}
    args = small_config(config_class, output_dir, **options)
    rows = tasks(ground_truth=TRUTH)
    return trainer_class(str(model), args=args, train_dataset=rows, environment_factory=Corridor)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
def test_every_algorithm_trains_in_a_window(pair: tuple[Any, Any], tiny_model_dir: Model, tmp_path: Path):
    options = {"history_length": 0, "num_iterations": 2, "beta": 0.1, "max_steps": 2}
    trainer = trainer_of(pair, tiny_model_dir(), tmp_path, **options)
    trainer.train()
    assert max(history(trainer, "grad_norm")) > 1e-4
    assert history(trainer, "episode/turns")[0] > 1.5  # each turn is a training sequence


@pytest.mark.parametrize("history_length", [0, 1])
def test_gains_in_a_window(history_length: int, tiny_model_dir: Model, tmp_path: Path):
    """From the definition: the likelihood of the answer after each prompt, including the last, unanswered one."""
    trainer = trainer_of(A2TGPO, tiny_model_dir(), tmp_path, history_length=history_length)
    rows = [{"length": 9, "ground_truth": TRUTH}] * 2
    played = trainer.rollout(rows)
    encode = trainer.processing_class
    bridge, answer = (encode(text)["input_ids"] for text in (trainer.args.answer_probe, TRUTH))
    for trajectory, gains in zip(played, trainer.information_gains(rows, played), strict=True):
        prompts: list[list[int]] = []
        ids: list[int] = []
        for turn in trajectory.turns:
            prompts.append((ids if turn.extends else []) + turn.prompt_ids)
            ids = prompts[-1] + turn.action_ids
        prompts.append((ids if trajectory.final_prompt.extends else []) + trajectory.final_prompt.ids)
        assert len(prompts) == 5
        ends = [[len(prompt)] for prompt in prompts]
        logps = torch.cat(plain(trainer.model.eval(), prompts, ends, [[answer]] * 5, bridge))
        assert gains == pytest.approx(logps.exp().diff().tolist(), rel=1e-3, abs=1e-9)
