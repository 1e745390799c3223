"""Two trainer processes against one server: every completion belongs to the prompt that asked for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import launch


@pytest.fixture(scope="module")
def ranks(model: Path, server: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return launch("../vllm/two_ranks.py", model, server, out=tmp_path_factory.mktemp("ranks"))


def test_completions_belong_to_their_prompts(ranks: list[dict[str, Any]]):
    """A completion of another prompt would have other log-probabilities than the trainer computes for it."""
    assert [set(rank["tasks"]) for rank in ranks] == [{0}, {7}]
    assert {len(turns) for turns in ranks[0]["played"]} == {1}
    assert {len(turns) for turns in ranks[1]["played"]} == {4}  # the first process waited for none of the later ones
    for rank in ranks:
        steps = [entry for entry in rank["log"] if "sampling/importance_sampling_ratio/mean" in entry]
        assert len(steps) == 2
        for entry in steps:
            assert entry["sampling/sampling_logp_difference/max"] < 1e-4
            assert entry["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=1e-4)


def test_rollouts_ahead_have_the_weights_of_one_step_on_all_processes(ranks: list[dict[str, Any]]):
    """The second process is at its last turns while the first has ended: nobody sends weights before it has, too."""
    assert [rank["ahead"] for rank in ranks] == [[[0], [0], [1]]] * 2


def test_trl_gives_a_process_the_completions_of_another(ranks: list[dict[str, Any]]):
    """Why the loop does not use TRL's `generate`: where processes send unequally many prompts, it cuts by their own
    number. Its tool loop does so as soon as one rollout ends before another."""
    assert ranks[0]["trl"]["got"] == ranks[0]["trl"]["asked"]
    assert ranks[1]["trl"]["asked"] == [[20, 21]]
    assert ranks[1]["trl"]["got"] == [[8, 9]]  # the second prompt of the first process
