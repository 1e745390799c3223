"""Private names of TRL and transformers that this package relies on, all of them in `trainers/base.py`.

After an upgrade of TRL, look here first.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import (
    add_response_schema,
    get_training_chat_template,
    is_chat_template_prefix_preserving,
    parse_response,
    supports_tool_calling,
)
from trl.extras.profiling import profiling_context
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration
from trl.models.utils import disable_gradient_checkpointing, unwrap_model_for_generation
from trl.trainer import grpo_trainer
from trl.trainer.utils import pad, shuffle_sequence_dict, use_adapter

from tests.toys import Corridor, OneTurn, one_turn_reward
from tests.trainers.small import small_config, tasks
from trl_agentic import AgenticConfig, AgenticTrainer, GAGPOConfig, GAGPOTrainer
from trl_agentic.trainers import base, checkpoints, engines, evaluations, generation, validation, vllm_preflight
from trl_agentic.trainers import batches as batch_builder


def parameter_names(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_version_is_the_one_that_was_read():
    assert trl.__version__.startswith("1.16.")


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("_compute_loss", ["self", "model", "inputs"]),
        ("_calculate_rewards", ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
        ("_prepare_inputs", ["self", "generation_batch"]),
        ("compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("get_batch_samples", ["self", "epoch_iterator", "num_batches", "device"]),
        ("log", ["self", "logs", "start_time"]),
        ("evaluate", ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"]),
        (
            "evaluation_loop",
            ["self", "dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
        ),
        ("create_model_card", ["self", "model_name", "dataset_name", "tags"]),
        ("_get_train_sampler", ["self", "dataset"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
        ("_load_best_model", ["self"]),
        ("_get_output_dir", ["self", "trial"]),
        ("_load_rng_state", ["self", "checkpoint"]),
        ("_load_optimizer_and_scheduler", ["self", "checkpoint"]),
        ("_get_grad_norm", ["self", "model", "grad_norm"]),
    ],
)
def test_methods_that_are_overridden_or_called(method: str, names: list[str]):
    assert parameter_names(getattr(GRPOTrainer, method)) == names


def test_the_forward_pass_takes_what_is_passed():
    names = parameter_names(GRPOTrainer._get_per_token_logps_and_entropies)
    assert names[:5] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]
    assert {"batch_size", "compute_entropy", "compute_aux_loss"} <= set(names)


def test_the_constructor_takes_what_is_passed():
    ours, theirs = parameter_names(AgenticTrainer.__init__), parameter_names(GRPOTrainer.__init__)
    assert set(ours) - set(theirs) == {"prompt_renderer"}
    assert set(theirs) - set(ours) == {"tools", "rollout_func"}


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (pad, {"tensors", "padding_value", "padding_side", "pad_to_multiple_of"}),
        (use_adapter, {"model", "adapter_name"}),
        (profiling_context, {"trainer", "name"}),
        (disable_gradient_checkpointing, {"model", "gradient_checkpointing_kwargs"}),
        (
            unwrap_model_for_generation,
            {"model", "accelerator", "gather_deepspeed3_params", "gradient_checkpointing_kwargs"},
        ),
        (add_response_schema, {"processing_class"}),
        (supports_tool_calling, {"processing_class"}),
        (is_chat_template_prefix_preserving, {"processing_class"}),
        (get_training_chat_template, {"processing_class"}),
        (VLLMClient.__init__, {"base_url", "group_port"}),
        (VLLMClient.init_communicator, {"device"}),
        (VLLMGeneration.sync_weights, {"self"}),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_functions_that_are_called(function: Callable[..., Any], names: set[str]):
    assert names <= set(parameter_names(function))


def test_tool_calls_are_parsed_by_position():
    assert parameter_names(parse_response) == ["tokenizer", "ids", "prefix", "tools"]


def test_vllm_generation_has_the_attributes_that_are_used():
    source = inspect.getsource(VLLMGeneration)
    for name in ("llm", "tp_group", "vllm_client"):
        assert f"self.{name}" in source.replace(", _ =", " =")
    # When it sleeps, its weights are gone. It wakes them when it sends new ones; the caller wakes the cache.
    assert 'self.llm.wake_up(tags=["weights"])' in inspect.getsource(VLLMGeneration.sync_weights)
    assert "kv_cache" not in inspect.getsource(VLLMGeneration.sync_weights)
    assert 'self.llm.wake_up(tags=["kv_cache"])' in source and "self.llm.sleep(level=2)" in source


# The modules that read the arguments of a trainer. Of TRL's trainer, only `base` reads attributes.
MODULES = (base, batch_builder, checkpoints, engines, evaluations, generation, validation, vllm_preflight)
SOURCES = Path(base.__file__).parents[1]


def names_of(
    prefix: tuple[str, ...], context: type[ast.expr_context] = ast.Load, modules: tuple[Any, ...] = (base,)
) -> set[str]:
    """Attributes `x` of every `prefix.x`, such as those of `self.args`, that modules read or set."""
    found = set()
    for node in [node for module in modules for node in ast.walk(ast.parse(inspect.getsource(module)))]:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, context) and ast.unparse(node.value) in prefix:
            found.add(node.attr)
    return found


OF_VLLM = {"vllm_generation"}  # a trainer has it only with vLLM


def test_the_config_has_the_fields_that_are_read():
    read = names_of(("args", "self.args", "self._args"), modules=MODULES)
    names = read - AgenticConfig.__annotations__.keys() - vars(AgenticConfig).keys()
    assert {"seed", "num_generations", "generation_batch_size", "vllm_group_port"} <= names
    missing = {name for name in names if name not in GRPOConfig.__dataclass_fields__ and not hasattr(GRPOConfig, name)}
    assert missing == set()


def reward(completions: list[Any], **kwargs: Any) -> list[float]:
    return [one_turn_reward(completion[0]["content"]) for completion in completions]


@pytest.fixture(scope="module")
def theirs(tiny_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> GRPOTrainer:
    """TRL's own trainer after one step."""
    rows = [{"prompt": [{"role": "user", "content": "Say something."}]}] * 4
    args = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
        max_steps=1, per_device_train_batch_size=4, num_generations=4, max_completion_length=6, beta=0.1,
        num_iterations=2, save_strategy="no",
    )  # fmt: skip
    trainer = GRPOTrainer(str(tiny_model_dir()), reward, args, Dataset.from_list(rows))
    trainer.train()
    return trainer


def test_a_trainer_has_the_attributes_that_are_read(theirs: GRPOTrainer):
    own = set(vars(AgenticTrainer)) | names_of(("self",), ast.Store)
    names = names_of(("self",)) - own - OF_VLLM
    assert {"_tokenizer", "eos_token_ids", "ref_model"} <= names
    assert {"_metrics", "_logs", "_pending_metrics", "_pending_extra_logs"} <= names  # of the tracker
    shared = {"chat_template", "reward_weights", "_step", "_buffered_inputs"}
    assert shared <= own | set(AgenticTrainer.__annotations__)  # ours to set, TRL's to read
    assert 'partial(setattr, self, "environments")' in inspect.getsource(base)  # likewise
    names |= shared | {"environments"}
    missing = {name for name in names if not hasattr(theirs, name)}
    assert missing == set()
    assert {"prompt", "completion", "rewards", "advantages", "extra"} <= theirs._logs.keys()
    assert theirs._metrics.keys() == {"train", "eval"}
    assert isinstance(theirs._pending_extra_logs, dict) and isinstance(theirs._pending_metrics, dict)
    missing = {name for name in names_of(("self._dist",)) if not hasattr(theirs._dist, name)}
    assert missing == set()


@pytest.mark.parametrize("name", sorted(OF_VLLM))
def test_a_trainer_with_vllm_has_the_attributes_that_are_read(name: str):
    assert name in names_of(("self",))
    assert f"self.{name} = " in inspect.getsource(GRPOTrainer.__init__)


def private_names(of: type) -> set[str]:
    """Names with one underscore that a class and its bases define or set, those of this package left out."""
    kinds = [kind for kind in of.__mro__ if kind is not object and not kind.__module__.startswith("trl_agentic")]
    found = {name for kind in kinds for name in vars(kind)}
    for kind in kinds:
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind)))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def test_every_private_name_is_one_that_this_file_checks(theirs: GRPOTrainer):
    """Names of TRL and transformers that are read, called or overridden: no more than those below, nor fewer."""
    known = private_names(AgenticTrainer)
    overridden = {name for name in vars(AgenticTrainer) if name in known}
    used = {name for name in names_of(("self", "super()")) if name in known}
    assert overridden | used == {
        "_buffered_inputs", "_calculate_rewards", "_compute_loss", "_dist", "_get_grad_norm", "_get_output_dir",
        "_get_per_token_logps_and_entropies", "_get_train_sampler", "_load_best_model",
        "_load_optimizer_and_scheduler", "_load_rng_state", "_logs", "_metrics", "_name", "_paper",
        "_pending_extra_logs", "_pending_metrics", "_prepare_inputs", "_save_checkpoint", "_step", "_tag_names",
        "_tokenizer",
    }  # fmt: skip
    assert "_generate_and_score_completions" not in overridden


def test_no_other_module_touches_them():
    """Collaborators get what they need as arguments. `self._x` of a class that is no trainer is its own."""
    known = private_names(AgenticTrainer)
    card = {"_tag_names", "_name", "_paper"}  # which algorithms set
    for file in sorted(SOURCES.rglob("*.py")):
        if file == Path(base.__file__):
            continue
        for kind in [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.ClassDef)]:
            is_trainer = any(ast.unparse(parent).endswith("Trainer") for parent in kind.bases)
            nodes = [node for node in ast.walk(kind) if is_trainer]
            defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
            read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
            assert not (defined | read) & known - card, file
        foreign = {
            node.attr
            for node in ast.walk(ast.parse(file.read_text("utf-8")))
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("trainer", "self.trainer", "super()")
        }
        assert not foreign & known, file


def test_our_rows_have_every_key_of_theirs(theirs: GRPOTrainer, tiny_model_dir: Callable[..., Path], tmp_path: Path):
    """`_compute_loss` of TRL finds its keys; the shapes differ because each turn has its own advantage."""
    args = small_config(GAGPOConfig, tmp_path, num_iterations=2)
    trainer = GAGPOTrainer(str(tiny_model_dir()), args=args, train_dataset=tasks(), environment_factory=Corridor)
    trainer.model.train()
    [ours] = trainer._prepare_inputs([{"length": 2}] * 8)
    known = theirs._buffered_inputs[0]
    assert known.keys() <= ours.keys()
    assert {"old_per_token_logps", "ref_per_token_logps", "advantages", "num_items_in_batch"} <= known.keys()
    for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "old_per_token_logps"):
        assert ours[key].dtype == known[key].dtype and ours[key].dim() == known[key].dim() == 2
    assert ours["advantages"].shape == ours["completion_ids"].shape
    assert ours["num_items_in_batch"].dim() == known["num_items_in_batch"].dim() == 0


def test_trl_reads_the_keys_that_only_we_set():
    """A mask of sampled tokens and an advantage for each token are part of TRL's own loss."""
    loss = inspect.getsource(GRPOTrainer._compute_loss)
    assert 'completion_mask * inputs["tool_mask"]' in loss
    assert "if advantages.dim() == 1:" in loss


def test_a_batch_is_generated_and_shuffled_where_we_do_it():
    """`_prepare_inputs` is replaced: the same condition, and one draw of a permutation."""
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "generate_every = self.args.steps_per_generation * self.num_iterations" in source
    assert "if self._step % generate_every == 0 or self._buffered_inputs is None:" in source
    assert "self._buffered_inputs[self._step % self.args.steps_per_generation]" in source
    torch.manual_seed(0)
    shuffled = shuffle_sequence_dict({"a": torch.arange(9)})["a"]
    torch.manual_seed(0)
    assert torch.equal(shuffled, torch.randperm(9))


def test_backward_passes_outside_of_transformers_are_not_scaled():
    """`compute_loss` runs the backward pass of all micro-batches but the last itself."""
    assert GRPOTrainer.loss_is_scaled_for_ga is True
    source = inspect.getsource(Trainer.training_step)
    assert 'kwargs["scale_wrt_gas"] = False' in source
    if "loss_is_scaled_for_ga" in source:
        assert "if not loss_is_scaled_for_ga:" in source
    else:  # before transformers 5.19, where TRL sets what is read instead
        assert "num_items_in_batch is None) and self.compute_loss_func is None:" in source
        assert "if self.loss_is_scaled_for_ga:\n                self.compute_loss_func =" in inspect.getsource(
            GRPOTrainer.__base__.__init__
        )


def test_the_old_policy_is_skipped_under_the_same_condition():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert "generate_every = self.args.steps_per_generation * self.num_iterations" in source
    assert "self.args.gradient_accumulation_steps % generate_every != 0" in source


def test_the_card_is_made_of_class_attributes():
    for name in ("_tag_names", "_name", "_paper"):
        assert hasattr(GRPOTrainer, name)
    assert isinstance(AgenticTrainer._paper, dict)
    card = inspect.getsource(GRPOTrainer.create_model_card)
    assert all(f'self._paper.get("{key}")' in card for key in ("citation", "title", "id"))


def test_trl_knows_environments_by_the_same_argument():
    """A class without `step` works in both: TRL finds its tools in the same way as we do."""
    source = inspect.getsource(grpo_trainer.GRPOTrainer.__init__)
    assert 'elif not member_name.startswith("_"):' in source
    assert "environment_factory" in parameter_names(GRPOTrainer.__init__)


def test_an_agentic_config_is_a_grpo_config(tmp_path: Path):
    assert issubclass(AgenticConfig, GRPOConfig)
    changed = {"max_completion_length", "vllm_importance_sampling_mode"}
    for name, field in AgenticConfig.__dataclass_fields__.items():
        known = GRPOConfig.__dataclass_fields__.get(name)
        assert known is None or name in changed or known.default == field.default, name


def test_one_turn_toys_agree_with_the_reward_function():
    environment = OneTurn()
    environment.reset()
    assert environment.step("abc").reward == reward([[{"content": "abc"}]])[0]
