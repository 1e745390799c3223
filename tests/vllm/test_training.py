"""Training with real vLLM: it has the current weights and reports the log-probabilities that the model computes."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback

from tests.rollout.attentive import attentive_model
from tests.toys import Corridor
from tests.trainers.small import history, small_config, tasks
from tests.vllm.conftest import InterruptingProxy, Servers
from trl_agentic import A2TGPOConfig, A2TGPOTrainer, AgenticTrainer, GAGPOConfig, GAGPOTrainer, StepResult
from trl_agentic.rollout.engine_source import TransformersSource
from trl_agentic.rollout.weight_sync import WeightSync
from trl_agentic.types import Trajectory


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


class Recording(GAGPOTrainer):
    """Records the rollouts of each step, in the order of training."""

    def information_gains(self, rows: Any, trajectories: list[Trajectory]) -> Any:
        self.played = [*getattr(self, "played", []), trajectories]
        return super().information_gains(rows, trajectories)

    def policy_steps(self) -> list[set[int | None]]:
        """The optimizer steps whose weights sampled the turns of each step."""
        return [{turn.policy_step for trajectory in step for turn in trajectory.turns} for step in self.played]


def actions_by_model(run: AgenticTrainer, rows: list[dict[str, Any]]) -> list[list[list[int]]]:
    """Greedy actions of these rows, sampled with the model that is trained."""
    model, pad_token_id = run.accelerator.unwrap_model(run.model), run.processing_class.pad_token_id
    by_vllm = run.generation.engines
    run.generation.engines = TransformersSource(
        lambda: nullcontext(model), run.eos_token_ids, pad_token_id, lambda: run.state.global_step, None
    )
    try:
        return greedy_actions(run, rows)
    finally:
        run.generation.engines = by_vllm


def greedy_actions(run: AgenticTrainer, rows: list[dict[str, Any]]) -> list[list[list[int]]]:
    """Greedy actions of these rows, sampled with the engine of the run."""
    return [[turn.action_ids for turn in t.turns] for t in run.rollout(rows, temperature=0.0)]


def test_gagpo_trains(mode: str, model: Path, server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    run = trainer(model, tmp_path, Recording, **options(mode, server))
    run.train()
    gaps = history(run, "sampling/sampling_logp_difference/max")
    ratios = history(run, "sampling/importance_sampling_ratio/mean")
    with capfd.disabled():
        print(f"\n{mode}: importance ratios {ratios}, largest gaps {gaps}")
    assert len(gaps) == 3 and max(gaps) < 1e-4
    assert ratios == pytest.approx([1.0] * 3, abs=1e-4)
    assert run.policy_steps() == [{0}, {1}, {2}]
    assert all(norm > 0 for norm in history(run, "grad_norm"))
    assert all(0 < rate < 1 for rate in history(run, "rollout/cache_hit_rate"))
    rows = [{"length": length} for length in (1, 2, 3)]  # after training, without chance
    assert greedy_actions(run, rows) == actions_by_model(run, rows)


def test_an_adapter_reaches_the_engine(mode: str, model: Path, server: str, tmp_path: Path):
    """LoRA is merged for vLLM and unmerged again: the engine samples with it, and the base model does not change."""
    adapter = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    run = trainer(model, tmp_path, peft_config=adapter, learning_rate=2e-2, **options(mode, server))
    policy = run.accelerator.unwrap_model(run.model)
    base = {name: weight.clone() for name, weight in policy.named_parameters() if "lora" not in name}
    run.train()
    assert max(history(run, "sampling/sampling_logp_difference/max")) < 1e-4
    for name, weight in base.items():
        torch.testing.assert_close(policy.get_parameter(name), weight, rtol=0, atol=1e-6)
    rows = [{"length": length} for length in (1, 2, 3)]
    by_vllm, by_model = greedy_actions(run, rows), actions_by_model(run, rows)
    with policy.disable_adapter():
        without = actions_by_model(run, rows)
    assert by_vllm == by_model != without


class Comparing(A2TGPOTrainer):
    """Computes the information gain with the model, too."""

    def information_gains(self, rows: Any, trajectories: Any) -> Any:
        by_vllm = super().information_gains(rows, trajectories)
        self.args.information_gain_engine = "trainer"
        self.gains = [*getattr(self, "gains", []), (by_vllm, super().information_gains(rows, trajectories))]
        self.args.information_gain_engine = "vllm"
        return by_vllm


def test_the_information_gain_from_the_prefix_cache(model: Path, tmp_path: Path):
    """Every step has new weights, so that entries of the old ones in the cache would change the gain. The model is one
    with larger gains than an untrained one."""
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
    for by_vllm, by_model in run.gains:
        for actual, expected in zip(by_vllm, by_model, strict=True):
            assert actual == pytest.approx(expected, abs=1e-4, nan_ok=True)
        assert any(abs(gain) > 1e-2 for gains in by_vllm for gain in gains)
    assert all(value > 0 for value in history(run, "information_gain/seconds"))
    del run
    gc.collect()


def test_rollouts_of_the_next_step_are_prefetched_during_the_update(
    model: Path, server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """An epoch has three batches. Its first one is not prefetched and has the weights that are trained."""
    changes = {"max_staleness": 1, "max_steps": 4, "learning_rate": 1e-2}
    run = trainer(model, tmp_path, Recording, **changes, **options("server", server))
    run.train()
    gaps = history(run, "sampling/sampling_logp_difference/max")
    ratios = history(run, "sampling/importance_sampling_ratio/mean")
    with capfd.disabled():
        print(f"\nprefetched: importance ratios {ratios}, largest gaps {gaps}")
    assert run.policy_steps() == [{0}, {0}, {1}, {3}]
    assert max(gaps[0], gaps[3]) < 1e-4 and min(gaps[1:3]) > 1e-3
    assert ratios[0] == pytest.approx(1.0, abs=1e-4) and all(0.2 < ratio < 2 for ratio in ratios)
    assert all(norm > 0 for norm in history(run, "grad_norm"))
    seconds, ahead = history(run, "rollout/seconds"), history(run, "rollout/ahead_seconds")
    assert ahead[0] == ahead[3] == 0 and all(0 < ahead[k] <= seconds[k] for k in (1, 2))


class FirstWeightsOnly:
    """Weight synchronisation that sends the initial weights only."""

    def __init__(self, sync: WeightSync):
        self._sync, self._is_first = sync, True

    @contextmanager
    def current(self) -> Iterator[None]:
        with self._sync.current() if self._is_first else nullcontext():
            self._is_first = False
            yield

    def invalidate(self) -> None:
        self._sync.invalidate()

    def check(self) -> None:
        self._sync.check()


def test_the_gap_shows_weights_that_were_not_sent(model: Path, server: str, tmp_path: Path):
    """Without such a gap, the tests above could not fail."""
    run = trainer(model, tmp_path, learning_rate=1e-2, **options("server", server))
    run.generation.engines.sync = FirstWeightsOnly(run.generation.engines.sync)
    run.train()
    gaps = history(run, "sampling/sampling_logp_difference/max")
    assert gaps[0] < 1e-4 and min(gaps[1:]) > 1e-2


@pytest.fixture(scope="module")
def restartable(serve: Servers, model: Path) -> str:
    """URL of a server that tests restart. Its weights are those of any test or of the checkpoint."""
    return serve(model)


class Striking(Corridor):
    """Environment that calls `strike` once, at its next step after `strike` was set."""

    strike: Callable[[], None] | None = None
    lock = threading.Lock()

    def step(self, action: str) -> StepResult:
        with self.lock:
            strike, Striking.strike = Striking.strike, None
        if strike is not None:
            strike()
        return super().step(action)


@pytest.fixture(autouse=True)
def no_strike() -> Iterator[None]:
    yield
    Striking.strike = None


class AfterStep(TrainerCallback):
    """Calls a function after an optimizer step."""

    def __init__(self, step: int, function: Callable[[], None]):
        self.step, self.function = step, function

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.function()


def striking_trainer(model: Path, output_dir: Path, server: str, *callbacks: AfterStep, **changes: Any) -> Recording:
    changes |= {"learning_rate": 1e-2, "vllm_server_timeout": 300.0, **options("server", server)}
    args = small_config(GAGPOConfig, output_dir, **changes)
    return Recording(
        str(model), args=args, train_dataset=tasks(), environment_factory=Striking, callbacks=list(callbacks)
    )


def test_a_server_that_is_restarted_between_generations_gets_the_weights_again(
    model: Path, serve: Servers, restartable: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    run = striking_trainer(model, tmp_path, restartable, AfterStep(1, lambda: serve.restart(restartable)))
    run.train()
    assert caplog.text.count("was restarted. It is joined again for weight transfer.") == 1
    gaps = history(run, "sampling/sampling_logp_difference/max")
    assert len(gaps) == 3 and max(gaps) < 1e-4


def test_a_restart_that_interrupts_requests_ends_the_run_which_continues_from_its_checkpoint(
    model: Path, serve: Servers, restartable: str, tmp_path: Path
):
    def restart_soon() -> None:
        Striking.strike = lambda: serve.restart(restartable, wait=False)

    saves = {"save_strategy": "steps", "save_steps": 1}
    run = striking_trainer(model, tmp_path, restartable, AfterStep(2, restart_soon), **saves)
    with pytest.raises(RuntimeError, match="was restarted during the rollouts.*`resume_from_checkpoint`"):
        run.train()
    assert Striking.strike is None and run.state.global_step == 2 and len(run.played) == 2
    run = striking_trainer(model, tmp_path, restartable, **saves)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 3 and run.policy_steps() == [{2}]
    assert history(run, "sampling/sampling_logp_difference/max")[-1] < 1e-4


def test_a_restart_that_interrupts_no_request_ends_the_rollouts(
    model: Path, serve: Servers, restartable: str, tmp_path: Path
):
    """The environment of the only rollout is busy while the server is restarted."""
    run = striking_trainer(model, tmp_path, restartable)
    Striking.strike = lambda: serve.restart(restartable)
    with pytest.raises(RuntimeError, match="was restarted during the rollouts.*`resume_from_checkpoint`"):
        run.rollout([{"length": 3}])
    assert Striking.strike is None


def test_a_server_that_was_not_restarted_gets_interrupted_requests_again(model: Path, server: str, tmp_path: Path):
    with InterruptingProxy(server) as proxy:

        def interrupt() -> None:
            proxy.interruptions = 3

        run = striking_trainer(model, tmp_path, proxy.url, AfterStep(1, interrupt))
        run.train()
        assert proxy.interrupted == 3
    assert run.policy_steps() == [{0}, {1}, {2}]
    assert max(history(run, "sampling/sampling_logp_difference/max")) < 1e-4


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


def test_a_missing_server(model: Path, tmp_path: Path):
    missing = {"use_vllm": True, "vllm_mode": "server", "vllm_server_port": 9, "vllm_server_timeout": 0.5}
    with pytest.raises(
        ConnectionError, match="There is no vLLM server.*\nVLLM_SERVER_DEV_MODE=1 vllm serve .*--port 9"
    ):
        trainer(model, tmp_path, **missing)


def test_a_server_without_the_flags_for_training(model: Path, serve: Servers, tmp_path: Path):
    with pytest.raises(ValueError, match="hides the endpoints that weights are sent through(.|\n)*vllm serve .*nccl"):
        trainer(model, tmp_path, **options("server", serve.plain(model)))


def test_a_context_longer_than_that_of_the_server(model: Path, server: str, tmp_path: Path):
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
