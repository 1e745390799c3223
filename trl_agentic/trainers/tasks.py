"""Tasks as a dataset."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, IterableDataset

from trl_agentic.trainers.config import AgenticConfig


def task_dataset(tasks: list[dict[str, Any]]) -> Dataset:
    """Tasks as a table with all of their columns; a column that a task does not have is `None` there."""
    columns = dict.fromkeys(column for task in tasks for column in task)
    return Dataset.from_list([{column: task.get(column) for column in columns} for task in tasks])


def check_size(dataset: Dataset | IterableDataset, args: AgenticConfig) -> None:
    """Fails now where TRL would train for zero steps: the sampler drops an incomplete batch of prompts.

    Raises:
        ValueError: the dataset is empty or smaller than a batch.
    """
    if next(iter(dataset), None) is None:
        raise ValueError("`train_dataset` is empty: there is nothing to train on.")
    if not isinstance(dataset, Dataset):
        return
    prompts = args.generation_batch_size // args.num_generations
    if len(dataset) < prompts:
        raise ValueError(
            f"`train_dataset` has {len(dataset)} rows, but one batch takes {prompts} (`generation_batch_size` "
            f"{args.generation_batch_size} / `num_generations` {args.num_generations}). Add rows, lower "
            "`per_device_train_batch_size` or `gradient_accumulation_steps`, or raise `num_generations`."
        )
