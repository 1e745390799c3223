"""Every algorithm trains on every environment with the data that it needs. The README's table comes from `CASES`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import trl_agentic
from tests.trainers.small import history, small_config
from trl_agentic import ALFWorldEnv, SearchEnv, WebShopEnv


ALGORITHMS = ("GAGPO", "A2TGPO", "GiGPO", "IGPO", "AgenticGRPO", "AgenticRLOO")
RULES = ALGORITHMS  # the name that tests/coverage_table.py imports
NEED_TRUTH = ("A2TGPO", "IGPO")
ENVIRONMENTS: dict[str, Any] = {
    "ALFWorld": partial(ALFWorldEnv, num_games=4, show_admissible=False),
    "WebShop": partial(WebShopEnv, split="test", num_goals=4, num_products=100, show_admissible=False),
    "Search": partial(SearchEnv, num_questions=4, format_penalty=0.5),
}
CASES = [
    (algorithm, environment, "transformers")
    for algorithm in ALGORITHMS
    for environment in ENVIRONMENTS
    if algorithm not in NEED_TRUTH or environment == "Search"
]


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "environment", "backend"), CASES)
def test_a_step_changes_the_policy(
    algorithm: str, environment: str, backend: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
):
    assert backend == "transformers"
    config_class, trainer_class = (
        getattr(trl_agentic, f"{algorithm}Config"),
        getattr(trl_agentic, f"{algorithm}Trainer"),
    )
    probe = {"answer_probe": "answer "} if algorithm in NEED_TRUTH else {}
    args = small_config(
        config_class, tmp_path, max_steps=1, per_device_train_batch_size=4, num_generations=4, max_turns=2,
        max_completion_length=1500, **probe,
    )  # fmt: skip
    make = partial(ENVIRONMENTS[environment], action_format="plain", instructions="")
    # An untrained policy earns no reward: the length of its answers is rewarded, so that there is a gradient.
    trainer = trainer_class(
        str(tiny_model_dir()), lambda completions, **kwargs: [float(len(c[0]["content"])) for c in completions],
        args=args, environment_factory=make,
    )  # fmt: skip
    trainer.train()
    assert history(trainer, "grad_norm")[0] > 0
    assert all(math.isfinite(value) for value in history(trainer, "loss"))
    assert history(trainer, "episode/stop_error") == [0.0]
    assert history(trainer, "episode/success") == [0.0]
