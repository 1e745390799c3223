"""Benchmark of the information gain: its methods agree."""

from __future__ import annotations

import pytest
import torch

from benchmarks.information_gain import logprob_pass, make_model, measure, per_boundary


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_a_line_of_the_table(dtype: torch.dtype, largest: float):
    model = make_model("small", "cpu", dtype)
    assert model.dtype == dtype
    cells = [cell.strip() for cell in measure(model, turns=3, length=64, count=2, repeats=1).strip("| ").split("|")]
    assert cells[:2] == ["3", "64"] and len(cells) == 8
    assert 0 <= float(cells[-1]) < largest


def test_per_boundary_equals_the_log_prob_pass_at_its_boundary():
    model = make_model("small", "cpu", torch.float32)
    rollouts, probe = torch.randint(1000, (2, 30)), torch.randint(1000, (20,))
    scores = per_boundary(model, rollouts, [10, 30], probe)
    whole = torch.cat([rollouts, probe.expand(2, -1)], 1)
    means = [logprob_pass(model, row[None])[0, -4:].mean() for row in whole]
    torch.testing.assert_close(scores[:, 1], torch.stack(means), rtol=0, atol=1e-5)
