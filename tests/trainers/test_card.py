"""The model card, and its upload to the Hub: the real client against a server on loopback."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import trl_agentic
from tests.toys import Corridor
from tests.trainers.hub_server import HubServer
from tests.trainers.small import small_config, tasks
from tests.trainers.test_tool_environments import Counter
from trl_agentic import GAGPOConfig, GAGPOTrainer, SearchEnv, Trajectory
from trl_agentic.environments.pool import EnvironmentPool
from trl_agentic.evaluation.command import parser
from trl_agentic.types import StopReason, Turn


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


def rollout(success: bool, task_type: str, **info: float) -> Trajectory:
    turns = [Turn([1], [2], None, "go", "here", "here", info=dict(info))]
    return Trajectory({"task_type": task_type}, turns, StopReason.TERMINATED, success=success)


def test_a_card_has_its_evaluation_in_text_and_metadata(
    tiny_model_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["recipes/walk.py", "--output_dir", "my walks"])
    args = small_config(GAGPOConfig, tmp_path)
    trainer = GAGPOTrainer(str(tiny_model_dir()), args=args, train_dataset=tasks(), environment_factory=Corridor)
    before = [rollout(False, "short"), rollout(False, "long", score=0.5)]
    trainer.record_evaluation("before", before)
    trainer.record_evaluation("after", [rollout(True, "short", score=1.0), *before, rollout(True, "long", score=1.0)])
    trainer.create_model_card(model_name="walker")

    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| task type | before: `Corridor` | after: `Corridor` |" in text
    assert "| long | 0.0% (0/1) | 50.0% (1/2) |" in text
    assert "| All | 0.0% (0/2) | 50.0% (2/4) |" in text
    assert "| mean score | 0.250 | 0.625 |" in text
    assert "```bash\nrecipes/walk.py --output_dir 'my walks'\n```" in text
    assert f"the local policy `{tiny_model_dir().name}`, trained on `Corridor`" in text
    command = "trl-agentic evaluate walker --environment tests.toys:Corridor --max_turns 4 --max_turn_tokens 6"
    assert f"{command} --temperature 1.0 --output_dir evaluation" in text
    assert f"- trl-agentic: {trl_agentic.__version__}\n- TRL: {version('trl')}\n" in text
    assert "huggingface.co/papers/2605.13217" in text and "None" not in text
    data = ModelCard(text).data
    assert {"trl-agentic", "gagpo", "corridor"} <= set(data.tags)
    results = {(result.metric_name, result.metric_value) for result in data.eval_results}
    assert results == {("success", 0.5), ("success (long)", 0.5), ("success (short)", 0.5), ("score", 0.625)}
    assert {result.dataset_name for result in data.eval_results} == {"Corridor"}
    # A card that is written again, as with every checkpoint, is the same.
    trainer.create_model_card(model_name="walker")
    assert (tmp_path / "README.md").read_text(encoding="utf-8").splitlines()[-40:] == text.splitlines()[-40:]


def test_a_card_evaluates_with_the_prompts_and_the_sampling_of_the_run(
    tiny_model_dir: Callable[..., Path], tmp_path: Path
):
    changes = {"context": "window", "history_length": 3, "eval_temperature": 0.4, "top_p": 0.9}
    changes["chat_template_kwargs"] = {"enable_thinking": False}
    args = small_config(GAGPOConfig, tmp_path, **changes)
    trainer = GAGPOTrainer(str(tiny_model_dir()), args=args, train_dataset=tasks(), environment_factory=Corridor)
    trainer.create_model_card(model_name="walker")
    [line] = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("trl-agentic ev")]
    arguments = parser().parse_args(shlex.split(line)[2:])
    assert (arguments.max_turns, arguments.max_turn_tokens) == (args.max_turns, args.max_turn_tokens)
    assert (arguments.temperature, arguments.top_p, arguments.history_length) == (0.4, 0.9, 3)
    assert arguments.chat_template_kwargs == {"enable_thinking": False}


def test_a_card_names_no_command_that_cannot_work(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    class Local(Corridor):
        pass

    args = small_config(GAGPOConfig, tmp_path)
    trainer = GAGPOTrainer(str(tiny_model_dir()), args=args, train_dataset=tasks(), environment_factory=Local)
    trainer.create_model_card(model_name="walker")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "trained on `Local`" in text and "trl-agentic evaluate" not in text
    assert EnvironmentPool(Counter).metadata(None).arguments is None
    assert EnvironmentPool(Corridor).metadata(None).arguments == "tests.toys:Corridor"


def test_metadata_of_an_environment():
    pytest.importorskip("bm25s", reason="needs the `search` extra")
    make = partial(SearchEnv, split="test", num_questions=2, action_format="plain", instructions="")
    metadata = EnvironmentPool({"held out": make}).metadata("held out")
    assert (metadata.name, metadata.split, metadata.tag, str(metadata)) == (
        "SearchEnv",
        "test",
        "search",
        "`SearchEnv` (split `test`)",
    )
    assert metadata.arguments == "search split=test num_questions=2 action_format=plain instructions="


@pytest.mark.slow
def test_a_model_and_an_adapter_are_published(hub: HubServer, tiny_model_dir: Callable[..., Path], tmp_path: Path):
    pytest.importorskip("peft", reason="needs the `peft` extra")
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1",
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "tests" / "trainers" / "push.py"), str(tiny_model_dir()), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"

    assert hub.private == {"tester/walker": True, "tester/adapter": False}
    messages = [(repo, message) for repo, message, token in hub.commits if token == "Bearer hf_test"]
    assert len(messages) == len(hub.commits)
    assert ("tester/walker", "Training in progress, step 1") in messages
    assert ("tester/walker", "Trained") in messages
    assert messages[-1] == ("tester/adapter", "End of training")

    files = hub.files["tester/walker"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert all(torch.equal(value, load_file(tmp_path / "full" / "model.safetensors")[name])
               for name, value in load(files["model.safetensors"]).items())  # fmt: skip
    for name, content in files.items():
        if "/" not in name:
            (tmp_path / "fetched").mkdir(exist_ok=True)
            (tmp_path / "fetched" / name).write_bytes(content)
    AutoModelForCausalLM.from_pretrained(tmp_path / "fetched")
    assert AutoTokenizer.from_pretrained(tmp_path / "fetched").chat_template
    text = files["README.md"].decode()
    card = ModelCard(text)
    assert {"trl", "trl-agentic", "gagpo", "alfworld"} <= set(card.data.tags)
    assert {(r.dataset_name, r.dataset_split, r.metric_type) for r in card.data.eval_results} == {
        ("ALFWorldEnv", "valid_unseen", "success_rate")
    }
    assert "eval: `ALFWorldEnv` (split `valid_unseen`)" in text and "| All | " in text
    assert "trained on `ALFWorldEnv` (split `train`)" in text
    assert "trl-agentic evaluate tester/walker --environment alfworld split=valid_unseen num_games=4" in text

    files = hub.files["tester/adapter"]
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= files.keys()
    assert "model.safetensors" not in files
    text = files["README.md"].decode()
    card = ModelCard(text)
    assert card.data.library_name == "peft"
    assert {"trl-agentic", "gagpo", "alfworld"} <= set(card.data.tags)
    assert f"an adapter on the local policy `{tiny_model_dir().name}`" in text
    assert "| task type | after: `ALFWorldEnv` (split `valid_unseen`) |" in text
