"""The examples run as they stand, on tiny models and for two steps."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trl_agentic import check_environment
from trl_agentic.evaluation.command import main as evaluate


EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ON_A_CPU = [] if torch.cuda.is_available() else ["--use_cpu", "true", "--bf16", "false"]


def test_there_are_no_others():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"own_environment.py", "tool_agent.py"}


@pytest.mark.parametrize(
    ("name", "arch", "says"),
    [("own_environment", "qwen2", "All: "), ("tool_agent", "qwen2", "New lists paid rightly: ")],
)
def test_an_example_trains_and_evaluates(
    name: str,
    arch: str,
    says: str,
    tiny_model_dir: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    arguments = ["--model_name_or_path", str(tiny_model_dir(arch)), "--output_dir", str(tmp_path / "out")]
    few = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--max_turn_tokens", "8", "--max_turns", "2"]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, *few, *ON_A_CPU])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert says in capsys.readouterr().out
    assert {"model.safetensors", "README.md"} <= {path.name for path in (tmp_path / "out").iterdir()}


def environment(name: str, kind: str) -> Any:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))[kind]


def test_the_treasure_can_be_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for policy in ("expert", "random"):
        evaluate([policy, "--environment", "own_environment:Treasure", "--output_dir", str(tmp_path / policy)])
        assert ("100.0%" in capsys.readouterr().out) == (policy == "expert")
    treasure = sys.modules["own_environment"].Treasure
    check_environment(treasure, treasure().tasks()[1], ["kitchen", "Take key."])


def test_the_shop_judges_the_sum():
    shop = environment("tool_agent", "Shop")()
    assert "What do I pay for" in shop.reset(seed=0)
    total = sum(count * shop.price(name) for name, count in shop.wanted.items())
    assert shop.finish(f"{total}").reward == 1.0 and shop.finish(f"{total}").info["success"] is True
    assert shop.finish(f"{total} or {total + 1}").reward == 0.0 and shop.finish("much").reward == 0.0
    with pytest.raises(ValueError, match="There is no 'pearl' here, but: apple"):
        shop.price("pearl")
