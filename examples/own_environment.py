"""An environment of one's own, trained on with GAGPO: find a key and carry it to the door.

    python examples/own_environment.py
    python examples/own_environment.py --use_vllm true --vllm_mode colocate --max_steps 500
    trl-agentic view outputs/treasure --output rollouts.html

Every argument of `GAGPOConfig`, and so of TRL's `GRPOConfig`, can be given; without, they are those of `main`. The
floor and the ceiling, from the folder of this file:

    trl-agentic evaluate random --environment own_environment:Treasure --output_dir evaluation/random
    trl-agentic evaluate expert --environment own_environment:Treasure --output_dir evaluation/expert
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import ModelConfig, TrlParser

from trl_agentic import GAGPOConfig, GAGPOTrainer, StepResult
from trl_agentic.evaluation import save_trajectories, success_by_task_type


DOORS = {
    "hall": ["kitchen", "library"],
    "kitchen": ["hall", "cellar"],
    "library": ["hall", "attic"],
    "cellar": ["kitchen"],
    "attic": ["library"],
}
INSTRUCTIONS = (
    "A key lies in one of the rooms. Find it, take it, and use it in the hall. Answer with one action: the name of a "
    "room that a door leads to, `take key`, or `use key`."
)


class Treasure:
    """Five rooms. An observation is the whole state, so that the rollouts of a group are compared room by room."""

    max_steps = 12

    def reset(self, key: str, **row: Any) -> str:
        self.key: str | None = key  # its room; `None` once it was taken
        self.room, self.steps = "hall", 0
        return self.describe()

    def describe(self) -> str:
        here = {self.room: "A key lies here. ", None: "You carry the key. "}.get(self.key, "")
        return f"You are in the {self.room}. {here}Doors: {', '.join(DOORS[self.room])}."

    def step(self, action: str) -> StepResult:
        self.steps += 1
        action = action.strip().lower().rstrip(".")
        valid, won = True, False
        if action in DOORS[self.room]:
            self.room = action
        elif action == "take key" and self.key == self.room:
            self.key = None
        elif action == "use key" and self.key is None and self.room == "hall":
            won = True
        else:
            valid = False
        return StepResult(
            "The door opens." if won else self.describe(),
            reward=1.0 if won else 0.0,
            terminated=won,
            truncated=not won and self.steps >= self.max_steps,
            info={"success": won, "is_action_valid": valid},
        )

    def close(self) -> None:
        """There is nothing to free."""

    def tasks(self) -> list[dict[str, Any]]:
        """The rows to play: their columns are the arguments of `reset`, and `prompt` is shown first."""
        return [
            {"prompt": [{"role": "user", "content": INSTRUCTIONS}], "key": room, "task_type": f"key in the {room}"}
            for room in DOORS
        ]

    # Two optional players for `trl-agentic evaluate`, in addition to policies.

    def random_policy(self, draw: random.Random) -> Callable[[str], str]:
        return lambda observation: draw.choice([*DOORS[self.room], "take key", "use key"])

    def expert_policy(self) -> Callable[[str], str]:
        def act(observation: str) -> str:
            goal = self.key or "hall"
            if self.room == goal:
                return "take key" if self.key else "use key"
            # From an outer room there is one way, from the hall to the side where the goal is.
            doors = DOORS[self.room]
            return next((room for room in doors if goal == room or goal in DOORS[room]), doors[0])

        return act


def main() -> None:
    parser = TrlParser((GAGPOConfig, ModelConfig))
    parser.set_defaults(
        model_name_or_path="Qwen/Qwen2.5-0.5B-Instruct",
        output_dir="outputs/treasure",
        per_device_train_batch_size=16,
        num_generations=8,
        max_turns=12,
        max_turn_tokens=16,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        invalid_action_penalty=0.1,
        max_steps=100,
        logging_steps=1,
        save_trajectories_steps=25,
    )
    training, model = parser.parse_args_and_config()
    rows = Treasure().tasks()
    trainer = GAGPOTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=Dataset.from_list(rows * 64),
        environment_factory=Treasure,
    )
    trainer.train()
    trainer.save_model()

    played = trainer.rollout(rows * 8)
    trainer.record_evaluation("after training", played)
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        save_trajectories(Path(training.output_dir) / "after.parquet", played)
        for task_type, rate in success_by_task_type(played).items():
            print(f"{task_type}: {rate}")


if __name__ == "__main__":
    main()
