"""A model that calls tools in its own chat format, trained with GAGPO: look prices up and add them up.

    python examples/tool_agent.py
    python examples/tool_agent.py --model_name_or_path Qwen/Qwen2.5-1.5B-Instruct --use_vllm true

The class is one for TRL's `environment_factory`, too: `reset`, and public methods that are tools. `finish` is ours: it
judges the answer. Every argument of `GAGPOConfig`, and so of TRL's `GRPOConfig`, can be given.
"""

from __future__ import annotations

import random
import re
from typing import Any

from datasets import Dataset
from trl import ModelConfig, TrlParser

from trl_agentic import GAGPOConfig, GAGPOTrainer, StepResult


GOODS = ["apple", "pear", "loaf of bread", "jar of honey", "bag of flour"]


class Shop:
    """The prices of the list are those of today: they can only be found by asking."""

    def reset(self, seed: int, **row: Any) -> str:
        draw = random.Random(seed)
        self.prices = {name: draw.randint(1, 9) for name in GOODS}
        self.wanted = {name: draw.randint(1, 3) for name in draw.sample(GOODS, 2)}
        wanted = " and ".join(f"{count} times the {name}" for name, count in self.wanted.items())
        return f"What do I pay for {wanted}? Ask for the prices, then answer with the sum alone."

    def price(self, name: str) -> int:
        """Says what one piece costs today.

        Args:
            name: what is asked for, such as "pear".
        """
        if name not in self.prices:
            raise ValueError(f"There is no {name!r} here, but: {', '.join(GOODS)}.")
        return self.prices[name]

    def finish(self, answer: str) -> StepResult:
        """Judges the turn without a call, which ends the episode."""
        total = sum(count * self.prices[name] for name, count in self.wanted.items())
        right = [int(number) for number in re.findall(r"\d+", answer)] == [total]
        return StepResult("", reward=float(right), terminated=True, info={"success": right})


def main() -> None:
    parser = TrlParser((GAGPOConfig, ModelConfig))
    parser.set_defaults(
        model_name_or_path="Qwen/Qwen2.5-0.5B-Instruct",
        output_dir="outputs/shop",
        per_device_train_batch_size=16,
        num_generations=8,
        max_turns=6,
        max_turn_tokens=64,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        invalid_action_penalty=0.1,
        max_steps=200,
        logging_steps=1,
    )
    training, model = parser.parse_args_and_config()
    trainer = GAGPOTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=Dataset.from_list([{"seed": seed} for seed in range(1024)]),
        environment_factory=Shop,
    )
    trainer.train()
    trainer.save_model()
    played = trainer.rollout([{"seed": seed} for seed in range(2000, 2064)])
    trainer.record_evaluation("after training", played)
    trainer.create_model_card()
    print(f"New lists paid rightly: {sum(bool(trajectory.success) for trajectory in played)} of {len(played)}")


if __name__ == "__main__":
    main()
