"""A signal to one process, or a NaN in one process, stops all of them at the same step."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.distributed.launch import launch


pytestmark = pytest.mark.distributed


def test_what_happens_to_one_process_stops_both(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    ranks = launch("stopping.py", tiny_model_dir(), out=tmp_path)
    checkpoint = tmp_path / "stopped" / "checkpoint-1"
    assert (checkpoint / "generation_0.pt").is_file() and (checkpoint / "generation_1.pt").is_file()
    for rank in ranks:
        assert (rank["code"], rank["stopped at"]) == (0, 1)
        for name, parameter in rank["whole"].items():
            assert torch.equal(rank["resumed"][name], parameter), name
        assert rank["error"].startswith("The loss or a log-probability of update 1 is not finite: rollout ")
        named = [int(number) for number in re.findall(r"rollout (\d+) of the batch \(task {'length': ", rank["error"])]
        assert len(named) == 6 and set(named) <= set(range(12, 24))  # half of those that the second process sampled
    assert ranks[0]["error"] == ranks[1]["error"]
