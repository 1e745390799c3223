"""Trains for two steps and publishes, on a hub that $HF_ENDPOINT names: python tests/trainers/push.py MODEL OUT

The full model is pushed with every checkpoint (`push_to_hub=True`), the adapter by hand.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig

from tests.trainers.small import small_config
from trl_agentic import ALFWorldEnv, GAGPOConfig, GAGPOTrainer


def environment(split: str) -> Any:
    return partial(ALFWorldEnv, split=split, num_games=4, max_steps=3, action_format="plain", show_admissible=False,
                   instructions="")  # fmt: skip


def trainer(model: str, out: Path, **changes: Any) -> GAGPOTrainer:
    factories = {"train": environment("train"), "evaluation": environment("valid_unseen")}
    rows = {name: [{**row, "environment": name} for row in make().tasks()] for name, make in factories.items()}
    own = {"peft_config": changes.pop("peft_config")} if "peft_config" in changes else {}
    args = small_config(GAGPOConfig, out, max_steps=2, max_completion_length=1024, per_device_eval_batch_size=4,
                        num_generations_eval=1, **changes)  # fmt: skip
    return GAGPOTrainer(
        model, args=args, train_dataset=Dataset.from_list(rows["train"]),
        eval_dataset=Dataset.from_list(rows["evaluation"]), environment_factory=factories, **own,
    )  # fmt: skip


def main() -> None:
    model, out = sys.argv[1], Path(sys.argv[2])
    full = trainer(
        model, out / "full", push_to_hub=True, hub_model_id="tester/walker", hub_private_repo=True, save_steps=1,
        save_strategy="steps", eval_strategy="steps", eval_steps=1, save_only_model=True, hub_always_push=True,
    )  # fmt: skip
    full.train()
    full.push_to_hub("Trained")

    adapter = trainer(model, out / "adapter", peft_config=LoraConfig(r=4, target_modules=["q_proj"]))
    adapter.train()
    adapter.record_evaluation("after", adapter.rollout(list(adapter.eval_dataset)), "evaluation")
    adapter.push_to_hub()


if __name__ == "__main__":
    main()
