"""Two trainer processes that share a server: every process gets the completions of its own prompts."""

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
    assert {len(turns) for turns in ranks[1]["played"]} == {4}  # the first process had ended by then
    for rank in ranks:
        steps = [entry for entry in rank["log"] if "sampling/importance_sampling_ratio/mean" in entry]
        assert len(steps) == 2
        for entry in steps:
            assert entry["sampling/sampling_logp_difference/max"] < 1e-4
            assert entry["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=1e-4)


def test_prefetched_rollouts_have_the_weights_of_one_step_on_all_processes(ranks: list[dict[str, Any]]):
    """The first process has ended while the second samples its last turns. Weights are sent after both have ended."""
    assert [rank["prefetched"] for rank in ranks] == [[[0], [0], [1]]] * 2


def test_trl_gives_a_process_the_completions_of_another(ranks: list[dict[str, Any]]):
    """The reason why the loop does not use TRL's `generate`: if processes send different numbers of prompts, each
    computes its part of the completions from its own number. TRL's tool loop sends such prompts as soon as one rollout
    ends before another."""
    assert ranks[0]["trl"]["returned"] == ranks[0]["trl"]["sent"]
    assert ranks[1]["trl"]["sent"] == [[20, 21]]
    assert ranks[1]["trl"]["returned"] == [[8, 9]]  # the second prompt of the first process
