"""Input that cannot work fails before training, with a message that names the argument and the fix."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import AutoTokenizer

from tests.tiny_model import build_tiny_tokenizer
from tests.toys import Corridor
from tests.trainers.small import small_config, tasks
from trl_agentic import (
    A2TGPOConfig,
    AgenticConfig,
    AgenticGRPOConfig,
    AgenticRLOOConfig,
    AgenticTrainer,
    GAGPOConfig,
    GAGPOTrainer,
    GiGPOConfig,
    IGPOConfig,
    StepResult,
)
from trl_agentic.trainers.config import TRL_LOSS_TYPES


Model = Callable[..., Path]


def construct(model: Any, output_dir: Path, environment: Any = Corridor, **changes: Any) -> GAGPOTrainer:
    own = {"train_dataset": tasks()} | {
        name: changes.pop(name)
        for name in ("train_dataset", "processing_class", "reward_funcs", "prompt_renderer")
        if name in changes
    }
    args = small_config(GAGPOConfig, output_dir, **changes)
    return GAGPOTrainer(str(model), args=args, environment_factory=environment, **own)


# The model and its tokenizer


def test_a_tokenizer_without_chat_template(tiny_model_dir: Model, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir())
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template.*tokenizer.chat_template"):
        construct(tiny_model_dir(), tmp_path, processing_class=tokenizer)


def test_a_chat_template_that_drops_turns(tiny_model_dir: Model, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir())
    tokenizer.chat_template = (
        "{{ messages[-1].content }}<|im_end|>{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    with pytest.raises(ValueError, match="chat template"):
        construct(tiny_model_dir(), tmp_path, processing_class=tokenizer)


class OneTool:
    """A tool-style environment."""

    def reset(self, **row: Any) -> str:
        return "Go."

    def look(self) -> str:
        """Looks around."""
        return "A room."


def test_a_template_without_tools_for_a_tool_style_environment(tiny_model_dir: Model, tmp_path: Path):
    tokenizer = build_tiny_tokenizer("qwen2")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(ValueError, match="does not support tool calling"):
        construct(tiny_model_dir("qwen2"), tmp_path, OneTool, processing_class=tokenizer)


# Sizes and budgets


def test_groups_that_do_not_divide_the_batch(tmp_path: Path):
    with pytest.raises(ValueError, match="generation_batch_size.*num_generations"):
        small_config(GAGPOConfig, tmp_path, num_generations=3)


def test_a_context_that_cannot_hold_the_first_prompt(tiny_model_dir: Model, tmp_path: Path):
    with pytest.raises(ValueError, match="first prompt has .* tokens.*`max_turn_tokens`.*`max_context_length`"):
        construct(tiny_model_dir(), tmp_path, max_context_length=20)
    long = tasks(prompt=[{"role": "user", "content": "word " * 3000}])
    with pytest.raises(ValueError, match="the context holds 4096"):
        construct(tiny_model_dir(), tmp_path, train_dataset=long)


@pytest.mark.parametrize(
    ("changes", "longest", "fields"),
    [
        ({}, 34 + 160, "`max_context_length` or `max_completion_length`"),
        ({"pad_to_multiple_of": 8}, 200, "`max_context_length` or `max_completion_length`"),
        ({"max_context_length": 120}, 120, "`max_context_length` or `max_completion_length`"),
        ({"context": "window"}, 4096, "`max_context_length`: "),
        ({"context": "window", "max_context_length": 120}, 120, "`max_context_length`: "),
    ],
)
def test_a_budget_smaller_than_the_longest_row(
    changes: dict[str, Any], longest: int, fields: str, tiny_model_dir: Model, tmp_path: Path
):
    message = f"`max_tokens_per_micro_batch` is {longest - 1}, .* at least {longest}, or lower {fields}"
    with pytest.raises(ValueError, match=message):
        construct(tiny_model_dir(), tmp_path, max_tokens_per_micro_batch=longest - 1, **changes)
    construct(tiny_model_dir(), tmp_path, max_tokens_per_micro_batch=longest, **changes)


def test_a_history_that_overflows_the_context(tiny_model_dir: Model, tmp_path: Path):
    changes = {"context": "window", "max_turn_tokens": 20, "max_completion_length": 400, "max_turns": 9}
    message = "`history_length` is 5, but .* 154 tokens and the context holds 120 .* to at most 3, lower"
    with pytest.raises(ValueError, match=message):
        construct(tiny_model_dir(), tmp_path, history_length=5, max_context_length=120, **changes)
    construct(tiny_model_dir(), tmp_path, history_length=3, max_context_length=120, **changes)
    construct(tiny_model_dir(), tmp_path, history_length=500, max_context_length=250, **changes)  # has nine turns


def test_the_length_of_rendered_prompts_is_not_checked(tiny_model_dir: Model, tmp_path: Path):
    """A renderer need not show whole answers."""
    changes = {
        "context": "window",
        "history_length": 5,
        "max_context_length": 120,
        "max_turn_tokens": 20,
        "max_turns": 9,
    }
    construct(
        tiny_model_dir(), tmp_path, prompt_renderer=lambda view: [{"role": "user", "content": view.observation}],
        max_completion_length=400, **changes,
    )  # fmt: skip


def test_clip_ranges_that_the_loss_would_not_read(tiny_model_dir: Model, tmp_path: Path):
    class Wide(AgenticTrainer):
        def turn_clip_scales(self, batch: Any) -> Any:
            return torch.ones_like(batch.rewards)

    def wide(**changes: Any) -> Wide:
        args = small_config(AgenticConfig, tmp_path, **changes)
        return Wide(str(tiny_model_dir()), args=args, train_dataset=tasks(), environment_factory=Corridor)

    message = "`Wide.turn_clip_scales` has no effect on TRL's `loss_type='bnpo'`.* Set .* to one of turn, grpo"
    with pytest.raises(ValueError, match=message):
        wide(loss_type="bnpo")
    for level in ("token", "turn"):
        wide(importance_sampling_level=level, loss_type="dapo")


def test_a_renderer_needs_the_window(tiny_model_dir: Model, tmp_path: Path):
    def renderer(view: Any) -> Any:
        return view.observation

    with pytest.raises(ValueError, match="`prompt_renderer` needs `context='window'`, but `context` is 'full'"):
        construct(tiny_model_dir(), tmp_path, prompt_renderer=renderer)
    with pytest.raises(TypeError, match="`prompt_renderer` must return a list of messages .* got 'You stand"):
        construct(tiny_model_dir(), tmp_path, context="window", prompt_renderer=renderer)


def test_a_dataset_without_rows(tiny_model_dir: Model, tmp_path: Path):
    for empty in (Dataset.from_list([]), IterableDataset.from_generator(lambda: iter([]))):
        with pytest.raises(ValueError, match="`train_dataset` is empty"):
            construct(tiny_model_dir(), tmp_path, train_dataset=empty)


def test_a_dataset_smaller_than_a_batch(tiny_model_dir: Model, tmp_path: Path):
    with pytest.raises(ValueError, match="`train_dataset` has 1 rows, but one batch takes 2.*`num_generations` 4"):
        construct(tiny_model_dir(), tmp_path, train_dataset=tasks(1))


# Environments


@pytest.mark.parametrize("environment", [None, {}], ids=["none", "empty"])
def test_no_environment(environment: Any, tiny_model_dir: Model, tmp_path: Path):
    with pytest.raises(ValueError, match="`environment_factory` is missing"):
        construct(tiny_model_dir(), tmp_path, environment)


def test_an_instance_for_a_class(tiny_model_dir: Model, tmp_path: Path):
    with pytest.raises(TypeError, match=r"`environment_factory` must be callable, got Corridor. Pass the class"):
        construct(tiny_model_dir(), tmp_path, Corridor())
    with pytest.raises(TypeError, match=r"`environment_factory\['walk'\]` must be callable"):
        construct(tiny_model_dir(), tmp_path, {"walk": Corridor()})


def test_one_instance_for_all_rollouts(tiny_model_dir: Model, tmp_path: Path):
    shared = Corridor()
    with pytest.raises(ValueError, match="same Corridor twice"):
        construct(tiny_model_dir(), tmp_path, lambda: shared)


def test_a_row_of_an_unknown_environment(tiny_model_dir: Model, tmp_path: Path):
    rows = Dataset.from_list([{"environment": "walk"}] * 100 + [{"environment": "swim"}])
    with pytest.raises(ValueError, match=r"`environment='swim'`.*\['walk'\]"):
        construct(tiny_model_dir(), tmp_path, {"walk": Corridor}, train_dataset=rows)
    with pytest.raises(ValueError, match="`environment=None`"):
        construct(tiny_model_dir(), tmp_path, {"walk": Corridor})


def test_no_tasks(tiny_model_dir: Model, tmp_path: Path):
    class NoTasks(Corridor):
        tasks = None

    class EmptyTasks(Corridor):
        def tasks(self) -> list[dict[str, Any]]:
            return []

    with pytest.raises(ValueError, match="NoTasks has no method `tasks"):
        construct(tiny_model_dir(), tmp_path, NoTasks, train_dataset=None)
    with pytest.raises(ValueError, match=r"EmptyTasks.tasks\(\) is empty"):
        construct(tiny_model_dir(), tmp_path, EmptyTasks, train_dataset=None)


def corridor_with(**methods: Any) -> type[Corridor]:
    return type("Odd", (Corridor,), methods)


def step_with(**changes: Any) -> Callable[..., StepResult]:
    return lambda self, action: StepResult(**({"observation": "You see nothing."} | changes))


def random_reset(self: Corridor, count: Any = iter(range(1000)), **row: Any) -> str:  # noqa: B008
    return f"{Corridor.reset(self)} It is day {next(count)}."


@pytest.mark.parametrize(
    ("environment", "error", "message"),
    [
        (corridor_with(close=None), TypeError, "Odd has no method `close`"),
        (corridor_with(reset=lambda self, **row: 3), TypeError, "Odd.reset must return .* `str`, got int"),
        (corridor_with(reset=random_reset), ValueError, "two different first observations"),
        (
            corridor_with(step=lambda self, action: ("", 0.0)),
            TypeError,
            "Odd.step must return a `StepResult`, got tuple",
        ),
        (corridor_with(step=step_with(observation=None)), TypeError, "`observation` must be `str`, got NoneType"),
        (corridor_with(step=step_with(reward=math.nan)), ValueError, "`reward` is nan"),
        (corridor_with(step=step_with(reward="1")), ValueError, "`reward` is '1'"),
        (corridor_with(step=step_with(info=None)), TypeError, "`info` must be a dict, got NoneType"),
        (
            corridor_with(step=step_with(info={"success": 1})),
            ValueError,
            r"`info\['success'\]` must be of type `bool`",
        ),
        (corridor_with(step=step_with(info={"anchor_state": 4})), ValueError, r"`info\['anchor_state'\]`.*`str`"),
    ],
)
def test_an_environment_that_breaks_the_protocol(
    environment: Any, error: type[Exception], message: str, tiny_model_dir: Model, tmp_path: Path
):
    with pytest.raises(error, match=message):
        construct(tiny_model_dir(), tmp_path, environment)


def test_a_tool_style_environment_without_tools_or_reset(tiny_model_dir: Model, tmp_path: Path):
    with pytest.raises(ValueError, match="neither a `step` method nor public methods"):
        construct(tiny_model_dir("qwen2"), tmp_path, type("Empty", (), {"reset": lambda self, **row: "x"}))
    with pytest.raises(ValueError, match="Empty has no `reset` method"):
        construct(tiny_model_dir("qwen2"), tmp_path, type("Empty", (), {"look": OneTool.look}))


# Rewards


def test_reward_weights_for_other_functions(tiny_model_dir: Model, tmp_path: Path):
    with pytest.raises(ValueError, match="`reward_weights` has 2 values for 1 reward functions"):
        construct(tiny_model_dir(), tmp_path, reward_funcs=lambda **kwargs: [0.0], reward_weights=[1.0, 2.0])


# The config


@pytest.mark.parametrize(
    ("config_class", "changes", "message"),
    [
        (AgenticConfig, {"max_turns": 0}, "`max_turns` must be at least 1, got 0"),
        (AgenticConfig, {"max_turn_tokens": 0}, "`max_turn_tokens` must be at least 1"),
        (AgenticConfig, {"max_tokens_per_micro_batch": 0}, "`max_tokens_per_micro_batch` must be at least 1, got 0"),
        (
            AgenticConfig,
            {"max_tokens_per_micro_batch": 500, "loss_type": "dr_grpo"},
            "`loss_type='dr_grpo'` does not support `max_tokens_per_micro_batch=500`. Use one of turn, grpo, dapo",
        ),
        (
            AgenticConfig,
            {"max_tokens_per_micro_batch": 500, "delta": 2.0},
            "`delta` is not supported by `loss_type='dapo'`. Leave it at None, or .* TRL's own loss types: bnpo",
        ),
        (
            AgenticConfig,
            {"vllm_importance_sampling_mode": "turn_clip"},
            "`vllm_importance_sampling_mode` must be one of .*turn_truncate, turn_mask.*, got 'turn_clip'",
        ),
        (AgenticConfig, {"max_completion_length": None}, "`max_completion_length` must be a number"),
        (
            AgenticConfig,
            {"max_turn_tokens": 200},
            r"`max_turn_tokens` \(200\) is more than `max_completion_length` \(160",
        ),
        (
            AgenticConfig,
            {"accelerator_config": {"split_batches": True}},
            "`accelerator_config.split_batches` is not supported: leave it at False",
        ),
        (AgenticConfig, {"context": "last"}, "`context` must be one of full, window, got 'last'"),
        (AgenticConfig, {"history_length": -1}, "`history_length` must be at least 0, got -1"),
        (
            AgenticConfig,
            {"context": "window", "importance_sampling_level": "sequence"},
            "`importance_sampling_level='sequence'` does not fit `context='window'`.* Use 'turn'",
        ),
        (
            AgenticConfig,
            {"context": "window", "vllm_importance_sampling_mode": "sequence_mask"},
            "`vllm_importance_sampling_mode='sequence_mask'` does not fit .* Use 'turn_mask'",
        ),
        (
            AgenticConfig,
            {"context": "window", "loss_type": "bnpo"},
            "`loss_type='bnpo'` does not support `context='window'`. Use one of turn, grpo, dapo",
        ),
        (AgenticConfig, {"overlong_turn": "retry"}, "`overlong_turn` must be one of continue, stop, got 'retry'"),
        (AgenticConfig, {"invalid_action_penalty": -1.0}, "`invalid_action_penalty` must be at least 0, got -1.0"),
        (AgenticConfig, {"importance_sampling_level": "word"}, "`importance_sampling_level` must be .*got 'word'"),
        (AgenticConfig, {"multi_objective_aggregation": "normalize_then_sum"}, "`multi_objective_aggregation` is not"),
        (AgenticConfig, {"max_tool_calling_iterations": 3}, "`max_tool_calling_iterations` is not.*`max_turns`"),
        (AgenticConfig, {"generation_kwargs": {"num_beams": 2}}, "`generation_kwargs` is not supported"),
        (
            AgenticConfig,
            {"use_vllm": True, "generation_kwargs": {"seed": 2}},
            "`generation_kwargs` must not set `seed`",
        ),
        (AgenticConfig, {"use_transformers_continuous_batching": True}, "`use_transformers_continuous_batching` is"),
        (
            GAGPOConfig,
            {"loss_type": "bnpo"},
            "`loss_type='bnpo'` does not support `importance_sampling_level='turn'`. Use one of turn, grpo, dapo",
        ),
        (GAGPOConfig, {"delta": 2.0}, "`delta` is not supported by `loss_type='turn'`. Leave it at None"),
        (
            GAGPOConfig,
            {"entropy_coef": 0.1},
            "`entropy_coef` is not supported by `loss_type='turn'`. Leave it at 0.0",
        ),
        (
            GAGPOConfig,
            {"top_entropy_quantile": 0.5},
            "`top_entropy_quantile` is not supported by `loss_type='turn'`. Leave it at 1.0",
        ),
        (
            AgenticGRPOConfig,
            {"off_policy_mask_threshold": 0.5},
            "`off_policy_mask_threshold` is not supported by `loss_type='dapo'`. Leave it at None",
        ),
        (
            AgenticGRPOConfig,
            {"use_adaptive_entropy": True, "loss_type": "grpo"},
            "`use_adaptive_entropy` is not supported by `loss_type='grpo'`. Leave it at False",
        ),
        (GAGPOConfig, {"gamma": 1.5}, r"`gamma` must lie in \[0, 1\], got 1.5"),
        (GAGPOConfig, {"lam": -0.1}, r"`lam` must lie in \[0, 1\]"),
        (GAGPOConfig, {"advantage_norm": "turn"}, "`advantage_norm` must be one of group, anchor, batch, none"),
        (GAGPOConfig, {"singleton_value": "zero"}, "`singleton_value` must be one of self, group_mean"),
        (GiGPOConfig, {"gamma": 2.0}, r"`gamma` must lie in \[0, 1\]"),
        (A2TGPOConfig, {"gamma": 1.5}, r"`gamma` must lie in \[0, 1\], got 1.5"),
        (A2TGPOConfig, {"clip_beta": -0.1}, r"`clip_beta` must lie in \[0, 1\], got -0.1"),
        (A2TGPOConfig, {"turn_group_norm": "batch"}, "`turn_group_norm` must be one of turn, pooled, got 'batch'"),
        (A2TGPOConfig, {"min_turn_group": 0}, "`min_turn_group` must be at least 1, got 0"),
        (A2TGPOConfig, {"information_gain": "kl"}, "`information_gain` must be one of prob, log_prob, got 'kl'"),
        (A2TGPOConfig, {"answer_alias": "all"}, "`answer_alias` must be one of first, best, got 'all'"),
        (A2TGPOConfig, {"information_gain_tokens": 0}, "`information_gain_tokens` must be at least 1"),
        (A2TGPOConfig, {"penalty_in_return": False}, "`penalty_in_return` must be True: A2TGPO"),
        (A2TGPOConfig, {"scale_rewards": "none"}, "`scale_rewards` has no effect on this algorithm.* use `alpha`"),
        (A2TGPOConfig, {"loss_type": "bnpo"}, "`loss_type` must be one of grpo, dapo, turn, got 'bnpo'"),
        (A2TGPOConfig, {"delta": 2.0}, "`delta` is not supported by `loss_type='grpo'`. Leave it at None"),
        (IGPOConfig, {"gamma": -0.5}, r"`gamma` must lie in \[0, 1\], got -0.5"),
        (IGPOConfig, {"normalization": "both"}, "`normalization` must be one of joint, separate, got 'both'"),
        (IGPOConfig, {"penalty_in_return": False}, "`penalty_in_return` must be True: IGPO"),
        (AgenticGRPOConfig, {"penalty_in_return": False}, "`penalty_in_return` must be True: GRPO"),
        (AgenticRLOOConfig, {"penalty_in_return": False}, "`penalty_in_return` must be True: RLOO"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_config_values(config_class: type[AgenticConfig], changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        small_config(config_class, tmp_path, **changes)


@pytest.mark.parametrize("loss_type", TRL_LOSS_TYPES)
def test_options_of_trls_loss_fit_its_own_loss_types(loss_type: str, tmp_path: Path):
    args = small_config(AgenticConfig, tmp_path, loss_type=loss_type, delta=2.0, entropy_coef=0.1)
    assert not args.uses_own_loss and args.delta == 2.0


def test_defaults_are_valid_and_those_of_the_methods(tmp_path: Path):
    cpu = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    grpo, rloo, gigpo, gagpo = (cls(**cpu) for cls in (AgenticGRPOConfig, AgenticRLOOConfig, GiGPOConfig, GAGPOConfig))
    assert (gagpo.gamma, gagpo.lam, gagpo.beta, gagpo.advantage_norm) == (0.95, 0.8, 0.01, "group")
    assert (gagpo.importance_sampling_level, gagpo.loss_type, gagpo.penalty_in_return) == ("turn", "turn", False)
    assert (gigpo.gamma, gigpo.step_advantage_weight, gigpo.beta, gigpo.penalty_in_return) == (0.95, 1.0, 0.01, False)
    for config in (grpo, rloo, gigpo):
        assert (config.importance_sampling_level, config.loss_type, config.epsilon) == ("token", "dapo", 0.2)
        assert config.uses_own_loss
    a2tgpo, igpo = A2TGPOConfig(**cpu), IGPOConfig(**cpu)
    assert (a2tgpo.gamma, a2tgpo.alpha, a2tgpo.clip_beta, a2tgpo.beta) == (1.0, 1.0, 0.3, 0.0)
    assert (a2tgpo.epsilon, a2tgpo.epsilon_high, a2tgpo.loss_type) == (3e-3, 4e-3, "grpo")
    assert (a2tgpo.turn_group_norm, a2tgpo.rescale_accumulation, a2tgpo.min_turn_group) == ("turn", True, 2)
    assert (a2tgpo.information_gain, a2tgpo.answer_alias) == ("prob", "first")
    assert A2TGPOConfig(importance_sampling_level="token", **cpu).uses_own_loss  # for its clip ranges
    assert (igpo.gamma, igpo.normalization, igpo.beta, igpo.epsilon) == (1.0, "joint", 0.001, 0.2)
    assert igpo.uses_own_loss and gagpo.uses_own_loss
    assert not AgenticConfig(loss_type="bnpo", **cpu).uses_own_loss
    assert grpo.penalty_in_return and rloo.penalty_in_return and grpo.scale_rewards == "group" and grpo.beta == 0.0


def test_the_config_of_another_trainer(tiny_model_dir: Model, tmp_path: Path):
    with pytest.raises(TypeError, match="`args` must be an `AgenticConfig`, got NoneType"):
        GAGPOTrainer(str(tiny_model_dir()), environment_factory=Corridor)


def test_a_trainer_without_an_algorithm(tiny_model_dir: Model, tmp_path: Path):
    args = small_config(AgenticConfig, tmp_path)
    trainer = AgenticTrainer(str(tiny_model_dir()), args=args, train_dataset=tasks(), environment_factory=Corridor)
    with pytest.raises(NotImplementedError, match="AgenticTrainer must define `turn_advantages`"):
        trainer.train()
