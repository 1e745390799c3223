"""Rows that are laid end to end in one train as padded rows do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig

from tests.invariant.partitions import Partitions, gradients
from tests.invariant.test_micro_batches import TASKS, noise, trainer_of
from tests.toys import Corridor
from tests.trainers.small import history, parameters, small_config, tasks
from trl_agentic import AgenticGRPOConfig, AgenticGRPOTrainer, GAGPOTrainer
from trl_agentic.trainers.batches import BatchBuilder


PARTS = [[0, 5, 2], [7], [], [1, 3, 4, 6]]  # one pass has a single row, and one none that counts


def packing_trainer(model: Path, output_dir: Path, attention: str = "sdpa", **changes: Any) -> GAGPOTrainer:
    return trainer_of(
        model, output_dir, 8, 1, num_iterations=2, invalid_action_penalty=0.1, max_tokens_per_micro_batch=10_000,
        pack_micro_batches=True, model_init_kwargs={"attn_implementation": attention}, **changes,
    )  # fmt: skip


def assert_same_gradients(trainer: GAGPOTrainer) -> None:
    """Padded and packed, in double precision but for norms and the head of the model."""
    generation = Partitions(trainer, TASKS, shift=noise)
    trainer.model.double()
    found = []
    for trainer.logprobs.packs in (False, True):
        found.append(gradients(trainer, generation, PARTS))
    assert max(gradient.abs().max() for gradient in found[0]) > 1e-4
    for padded, packed in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-6, atol=2e-8)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_give_the_same_gradient(attention: str, model_dir: Path, tmp_path: Path):
    assert_same_gradients(packing_trainer(model_dir, tmp_path, attention))


def test_with_an_adapter_and_layers_that_are_computed_twice(model_dir: Path, tmp_path: Path):
    peft = pytest.importorskip("peft", reason="needs the `peft` extra")
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = packing_trainer(model_dir, tmp_path, peft_config=adapter, pad_to_multiple_of=64)
    trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert trainer.model.get_base_model().model.layers[0].gradient_checkpointing
    assert_same_gradients(trainer)


LENGTHS = [1, 9, 1, 2, 1, 5]


@pytest.mark.parametrize("lengths", [LENGTHS, [1, 1, 1], [7], [1]], ids=str)
@pytest.mark.parametrize("arch", ["qwen2", "qwen3", "llama"])
def test_rows_of_any_length_have_the_same_log_probabilities(
    lengths: list[int], arch: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
):
    trainer = packing_trainer(tiny_model_dir(arch), tmp_path)
    trainer.model.double().eval()
    width, generator = max(*lengths, 3), torch.Generator().manual_seed(0)
    mask = torch.tensor([[1] * length + [0] * (width - length) for length in lengths])
    ids = torch.randint(5, 500, mask.shape, generator=generator)
    found = []
    for trainer.logprobs.packs in (False, True):
        with torch.no_grad():
            found.append(
                trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, width - 1, compute_entropy=True)
            )
    (padded, padded_entropy, _), (packed, packed_entropy, _) = found
    assert (padded != 0).sum() == sum(lengths) - len(lengths)
    torch.testing.assert_close(packed, padded, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(packed_entropy, padded_entropy, rtol=1e-6, atol=1e-7)


def test_flex_attention_keeps_rows_apart(model_dir: Path, tmp_path: Path):
    """Without gradients, which torch does not compute for it on CPUs, and without compiling it, for speed."""
    trainer = packing_trainer(model_dir, tmp_path, "flex_attention")
    assert trainer.model.config._attn_implementation == "flex_attention"
    trainer.model.eval()
    mask = torch.tensor([[1] * length + [0] * (9 - length) for length in LENGTHS])
    ids = torch.randint(5, 500, mask.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        trainer.logprobs.check_packing(trainer.model, torch.device("cpu"))
        packed = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 8)[0]
        trainer.model.set_attn_implementation("eager")
        trainer.logprobs.packs = False
        padded = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 8)[0]
    assert (padded != 0).any()
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own_loss", [True, False])
def test_a_packed_run_is_the_padded_run(own_loss: bool, model_dir: Path, tmp_path: Path):
    """Old and reference log-probabilities, evaluation and TRL's own loss included; nothing but tokens is computed."""
    runs = []
    for pack in (False, True):
        own = {"max_tokens_per_micro_batch": 300, "max_context_length": 300}
        changes = own if own_loss else {"loss_type": "dr_grpo"}
        args = small_config(
            AgenticGRPOConfig, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=2,
            optim="sgd", learning_rate=0.02, max_grad_norm=0.0, num_iterations=2, beta=0.1, pack_micro_batches=pack,
            invalid_action_penalty=0.1, eval_strategy="steps", eval_steps=2, eval_on_start=False, **changes,
        )  # fmt: skip
        assert args.uses_own_loss is own_loss
        trainer = AgenticGRPOTrainer(
            str(model_dir), args=args, train_dataset=tasks(), eval_dataset=tasks(4), environment_factory=Corridor
        )
        positions = 0

        def count(module: Any, args: Any, kwargs: dict[str, Tensor]) -> None:
            nonlocal positions
            if kwargs.get("past_key_values") is None:  # the policy does not sample
                positions += kwargs["input_ids"].numel()

        trainer.model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
        trainer.train()
        keys = ("loss", "kl", "entropy", "clip_ratio/region_mean", "eval_loss")
        logged = {key: history(trainer, key) for key in keys}
        assert all(logged.values())
        runs.append((logged, parameters(trainer), positions, history(trainer, "num_tokens")))
    (padded_log, padded, padded_positions, tokens), (packed_log, packed, packed_positions, same_tokens) = runs
    assert same_tokens == tokens and packed_positions < padded_positions
    for key, values in padded_log.items():
        assert packed_log[key] == pytest.approx(values, rel=1e-4, abs=1e-6), key
    for name, weight in padded.items():
        torch.testing.assert_close(packed[name], weight, rtol=1e-5, atol=1e-6)


def test_passes_are_filled_up_to_the_budget(model_dir: Path, tmp_path: Path):
    """What is counted are tokens, so that there are fewer passes; each step still has one."""
    trainer = trainer_of(model_dir, tmp_path, 2, 4, max_tokens_per_micro_batch=200, max_context_length=200)
    trainer.model.train()
    trajectories, credit = trainer.generation.scored_rollouts(TASKS)

    def passes(packs: bool, **changes: Any) -> list[list[dict[str, Tensor]]]:
        args = copy.copy(trainer.args)
        for name, value in changes.items():
            setattr(args, name, value)
        builder = BatchBuilder(args, 0, packs, has_logprobs=False, may_sort=True, max_context=200)
        return builder.build("train", trajectories, credit, torch.device("cpu"))[0]

    counts = {}
    for packs in (False, True):
        [step] = passes(packs, gradient_accumulation_steps=1, steps_per_generation=1)
        tokens = [int(batch["prompt_mask"].sum() + batch["completion_mask"].sum()) for batch in step]
        counts[packs] = len(tokens)
        assert max(tokens) <= 200
    assert counts[True] < counts[False]
    steps = passes(True, gradient_accumulation_steps=9, steps_per_generation=9)
    assert [len(step) for step in steps] == [1] * 9


def test_a_model_in_which_rows_see_one_another(model_dir: Path, tmp_path: Path):
    """OPT makes its mask without positions. The run ends before a rollout, with the field to change."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=32, max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "opt")
    tokenizer.save_pretrained(tmp_path / "opt")
    trainer = packing_trainer(tmp_path / "opt", tmp_path / "out")
    with pytest.raises(ValueError, match="in this model they do.* Set `pack_micro_batches=False`"):
        trainer.train()
    assert not trainer._nonfinite_guard.sampled[1] and trainer.state.global_step == 0
