"""GAGPO through real vLLM: the weights arrive, and what vLLM tells is what the model computes."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback

from tests.rollout.attentive import attentive_model
from tests.toys import Corridor
from tests.trainers.small import history, small_config, tasks
from tests.vllm.conftest import Servers
from trl_agentic import A2TGPOConfig, A2TGPOTrainer, GAGPOConfig, GAGPOTrainer, StepResult


@pytest.fixture(autouse=True)
def cpu_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.vllm.cpu import patch_trl

    patch_trl(monkeypatch)


def trainer(
    model: Path, output_dir: Path, kind: type[GAGPOTrainer] = GAGPOTrainer, peft_config: Any = None, **changes: Any
) -> GAGPOTrainer:
    args = small_config(GAGPOConfig, output_dir, **changes)
    rows = tasks(prompt="You are in a house with many rooms. " * 20)  # vLLM's cache has blocks of 128 tokens here
    return kind(str(model), args=args, train_dataset=rows, environment_factory=Corridor, peft_config=peft_config)


def options(mode: str, server: str) -> dict[str, Any]:
    if mode == "server":
        return {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server}
    return {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 512}


@pytest.fixture(params=["server", "colocate"])
def mode(request: pytest.FixtureRequest) -> Any:
    yield request.param
    gc.collect()  # a colocated engine ends with its trainer


class Remembering(GAGPOTrainer):
    """Keeps the turns of each step."""

    def _play(self, *args: Any, **kwargs: Any) -> Any:
        trajectories = super()._play(*args, **kwargs)
        self.played = [*getattr(self, "played", []), trajectories]
        return trajectories


def test_gagpo_trains(mode: str, model: Path, server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    run = trainer(model, tmp_path, Remembering, **options(mode, server))
    run.train()
    gaps = history(run, "sampling/sampling_logp_difference/max")
    ratios = history(run, "sampling/importance_sampling_ratio/mean")
    with capfd.disabled():
        print(f"\n{mode}: importance ratios {ratios}, largest gaps {gaps}")
    assert len(gaps) == 3 and max(gaps) < 1e-4
    assert ratios == pytest.approx([1.0] * 3, abs=1e-4)
    assert [{turn.policy_step for t in step for turn in t.turns} for step in run.played] == [{0}, {1}, {2}]
    assert all(norm > 0 for norm in history(run, "grad_norm"))
    assert all(0 < rate < 1 for rate in history(run, "rollout/cache_hit_rate"))
    # Afterwards, greedily: what vLLM plays is what the trained model plays.
    rows = [{"length": length} for length in (1, 2, 3)]
    by_vllm = run.rollout(rows, temperature=0.0)
    run.use_vllm = False
    by_model = run.rollout(rows, temperature=0.0)
    assert [[turn.action_ids for turn in t.turns] for t in by_vllm] == [
        [turn.action_ids for turn in t.turns] for t in by_model
    ]


def test_an_adapter_reaches_the_engine(mode: str, model: Path, server: str, tmp_path: Path):
    """LoRA is merged for vLLM and taken out again: the engine samples with it, and the base model stays as it was."""
    adapter = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    run = trainer(model, tmp_path, peft_config=adapter, learning_rate=2e-2, **options(mode, server))
    policy = run.accelerator.unwrap_model(run.model)
    base = {name: weight.clone() for name, weight in policy.named_parameters() if "lora" not in name}
    run.train()
    assert max(history(run, "sampling/sampling_logp_difference/max")) < 1e-4
    for name, weight in base.items():
        torch.testing.assert_close(policy.get_parameter(name), weight, rtol=0, atol=1e-6)
    rows = [{"length": length} for length in (1, 2, 3)]
    by_vllm = run.rollout(rows, temperature=0.0)
    run.use_vllm = False
    by_model = run.rollout(rows, temperature=0.0)
    with policy.disable_adapter():
        without = run.rollout(rows, temperature=0.0)
    played = [[[turn.action_ids for turn in t.turns] for t in side] for side in (by_vllm, by_model, without)]
    assert played[0] == played[1] != played[2]


class Comparing(A2TGPOTrainer):
    """Asks the model, too."""

    def information_gains(self, rows: Any, trajectories: Any) -> Any:
        told = super().information_gains(rows, trajectories)
        self.args.information_gain_engine = "trainer"
        self.gains = [*getattr(self, "gains", []), (told, super().information_gains(rows, trajectories))]
        self.args.information_gain_engine = "vllm"
        return told


def test_the_information_gain_from_the_prefix_cache(model: Path, tmp_path: Path):
    """With new weights at every step, the cache of the old ones would show. Untrained, a model has hardly any gain."""
    attentive_model(model).save_pretrained(tmp_path / "policy")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "policy")
    args = small_config(
        A2TGPOConfig, tmp_path, information_gain_engine="vllm", answer_alias="best",
        information_gain="log_prob", **options("colocate", ""),
    )  # fmt: skip
    rows = tasks(prompt="You are in a house with many rooms. " * 20, ground_truth=["the exit", "a door"])
    run = Comparing(str(tmp_path / "policy"), args=args, train_dataset=rows, environment_factory=Corridor)
    run.train()
    assert len(run.gains) == 3
    for told, expected in run.gains:
        for ours, theirs in zip(told, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4, nan_ok=True)
        assert any(abs(gain) > 1e-2 for gains in told for gain in gains)
    assert all(value > 0 for value in history(run, "information_gain/seconds"))
    del run
    gc.collect()


class RememberingBatches(GAGPOTrainer):
    """Keeps the turns of each step, whenever they were sampled."""

    def _next_rollouts(self, *args: Any) -> Any:
        trajectories, clock = super()._next_rollouts(*args)
        self.played = [*getattr(self, "played", []), trajectories]
        return trajectories, clock


def test_rollouts_of_the_next_step_are_sampled_beside_the_update(
    model: Path, server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """An epoch has three batches; the first of each is sampled by the weights that are trained."""
    changes = {"rollout_ahead": 1, "max_steps": 4, "learning_rate": 1e-2}
    run = trainer(model, tmp_path, RememberingBatches, **changes, **options("server", server))
    run.train()
    gaps = history(run, "sampling/sampling_logp_difference/max")
    ratios = history(run, "sampling/importance_sampling_ratio/mean")
    with capfd.disabled():
        print(f"\nahead: importance ratios {ratios}, largest gaps {gaps}")
    assert [{turn.policy_step for t in step for turn in t.turns} for step in run.played] == [{0}, {0}, {1}, {3}]
    assert max(gaps[0], gaps[3]) < 1e-4 and min(gaps[1:3]) > 1e-3
    assert ratios[0] == pytest.approx(1.0, abs=1e-4) and all(0.2 < ratio < 2 for ratio in ratios)
    assert all(norm > 0 for norm in history(run, "grad_norm"))
    seconds, ahead = history(run, "rollout/seconds"), history(run, "rollout/ahead_seconds")
    assert ahead[0] == ahead[3] == 0 and all(0 < ahead[k] <= seconds[k] for k in (1, 2))


def test_the_gap_shows_weights_that_were_not_sent(model: Path, server: str, tmp_path: Path):
    """Otherwise the test above could not fail."""

    class Forgetful(GAGPOTrainer):
        def _send_weights(self) -> None:
            if self.state.global_step == 0:
                super()._send_weights()

    run = trainer(model, tmp_path, Forgetful, learning_rate=1e-2, **options("server", server))
    run.train()
    gaps = history(run, "sampling/sampling_logp_difference/max")
    assert gaps[0] < 1e-4 and min(gaps[1:]) > 1e-2


class Killer(Corridor):
    """Before the first step in which `armed` is set, `strike` is called."""

    armed = threading.Event()
    strike: Callable[[], None]

    def step(self, action: str) -> StepResult:
        if self.armed.is_set():
            self.armed.clear()
            Killer.strike()
        return super().step(action)


class KilledBetween(TrainerCallback):
    """Strikes after the first step, and arms the environments for the third."""

    def __init__(self, serve: Servers, url: str):
        self.serve, self.url = serve, url

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.serve.kill(self.url)
            self.serve.start_again(self.url)
        if state.global_step == 2:
            Killer.armed.set()


def test_a_server_that_is_started_anew_gets_the_weights_again(
    model: Path, serve: Servers, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Between two steps, and in the midst of the rollouts of the third, which go on."""
    url = serve(model)

    def strike() -> None:
        serve.kill(url)
        threading.Thread(target=serve.start_again, args=[url]).start()

    Killer.strike = strike
    args = small_config(GAGPOConfig, tmp_path, learning_rate=1e-2, **options("server", url))
    run = GAGPOTrainer(
        str(model),
        args=args,
        train_dataset=tasks(),
        environment_factory=Killer,
        callbacks=[KilledBetween(serve, url)],
    )
    run.train()
    assert not Killer.armed.is_set() and caplog.text.count("has been started anew: the weights are sent") == 2
    assert max(history(run, "sampling/sampling_logp_difference/max")) < 1e-4

    def in_secret() -> None:  # nobody's request is broken off
        serve.kill(url)
        serve.start_again(url)

    Killer.strike = in_secret
    Killer.armed.set()
    with pytest.raises(RuntimeError, match="was started anew during the rollouts.*`resume_from_checkpoint`"):
        run.rollout([{"length": 3}])


def test_two_servers_share_the_rollouts(model: Path, serve: Servers, server: str, tmp_path: Path):
    other = serve(model)
    both = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_urls": [server, other]}
    run = trainer(model, tmp_path, **both)
    run.train()
    assert max(history(run, "sampling/sampling_logp_difference/max")) < 1e-4
    for url in (server, other):
        assert requests_served(url) > 0


def requests_served(url: str) -> float:
    import requests

    lines = requests.get(f"{url}/metrics", timeout=30).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total"))


# Bad input


def test_a_server_that_is_not_there(model: Path, tmp_path: Path):
    gone = {"use_vllm": True, "vllm_mode": "server", "vllm_server_port": 9, "vllm_server_timeout": 0.5}
    with pytest.raises(
        ConnectionError, match="There is no vLLM server.*\nVLLM_SERVER_DEV_MODE=1 vllm serve .*--port 9"
    ):
        trainer(model, tmp_path, **gone)


def test_a_server_that_was_started_as_for_inference(model: Path, serve: Servers, tmp_path: Path):
    with pytest.raises(ValueError, match="hides the endpoints that weights are sent through(.|\n)*vllm serve .*nccl"):
        trainer(model, tmp_path, **options("server", serve.plain(model)))


def test_a_context_that_is_longer_than_the_servers(model: Path, server: str, tmp_path: Path):
    with pytest.raises(ValueError, match="`max_context_length` is 2000, but .* takes 1024(.|\n)*--max-model-len 2000"):
        trainer(model, tmp_path, max_context_length=2000, **options("server", server))
    assert trainer(model, tmp_path, **options("server", server)).budgets.max_context == 1024


def test_another_model(server: str, tiny_model_dir: Callable[..., Path], tmp_path: Path):
    other = tiny_model_dir("qwen3", hidden_size=32)
    with pytest.raises(ValueError, match="hidden_size=64, but the policy .* has 32(.|\n)*vllm serve"):
        trainer(other, tmp_path, **options("server", server))


def test_another_tokenizer(server: str, model: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    from trl_agentic.trainers.vllm_preflight import check_served_model

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["cabinet"])
    args = small_config(GAGPOConfig, tmp_path, **options("server", server))
    config = trainer(model, tmp_path, **options("server", server)).model.config
    with pytest.raises(ValueError, match="has another tokenizer"):
        check_served_model([server], args, config, tokenizer, str(model))
