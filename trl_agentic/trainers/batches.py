"""Batch builder: from scored trajectories and their credit to the micro-batches of every accumulation step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from trl_agentic.batching.collate import collate, filler
from trl_agentic.batching.micro_batches import balanced, cut_by_rows, cut_by_tokens, split_to
from trl_agentic.batching.rows import TrainingSequence, shuffle_order, training_sequences, update_of_rollouts
from trl_agentic.trainers.config import AgenticConfig
from trl_agentic.types import Trajectory


@dataclass(frozen=True, slots=True)
class TurnCredit:
    """Credit of a generation, computed once from the hooks of the trainer.

    Attributes:
        advantages (`Tensor` of shape (B, K)): advantage of each turn of the global batch.
        clip_scales (`Tensor` of shape (B, K), *optional*): factor on the clip range of each turn.
        diagnostics: further columns (B, K) of saved trajectories, by name; empty if none are saved.
    """

    advantages: Tensor
    clip_scales: Tensor | None
    diagnostics: dict[str, Tensor]


MicroBatch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class PreparedGeneration:
    """Training sequences of a generation in the order of training, with everything that a micro-batch is made of.

    Attributes:
        sequences: training sequences of this process.
        update_of: optimizer step of each sequence, counted from 0 in the generation.
        credit: credit of the global batch.
        totals: numbers of the global batch: tokens of each rollout, and what the loss types divide by.
        pad_token_id: id of the padding.
        multiple: widths are rounded up to a multiple of it.
        device: device of the tensors.
    """

    sequences: list[TrainingSequence]
    update_of: list[int]
    credit: TurnCredit
    totals: dict[str, Tensor]
    pad_token_id: int
    multiple: int
    device: torch.device

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, rounded up to the multiple."""
        return [-(-len(sequence) // self.multiple) * self.multiple for sequence in self.sequences]

    def micro_batch(self, part: Sequence[int], in_step: int = 1) -> MicroBatch:
        """Lays out a micro-batch.

        Args:
            part: indices of its sequences. If there are none, a sequence without tokens in the loss stands in.
            in_step: number of micro-batches of its accumulation step.
        """
        values: dict[str, tuple[Tensor, float]] = {"advantages": (self.credit.advantages, 0.0)}
        if self.credit.clip_scales is not None:
            values["clip_scales"] = self.credit.clip_scales, 1.0
        chosen = [self.sequences[i] for i in part] or [filler(self.sequences)]
        batch = collate(chosen, self.pad_token_id, self.multiple, self.device, values)
        batch |= self.totals
        batch["rollout_tokens"] = self.totals["rollout_tokens"][batch["rollout_ids"]]
        batch["num_micro_batches"] = torch.tensor(in_step, device=self.device)
        return batch


class BatchBuilder:
    """Builder of micro-batches. All processes call it together.

    Every process gets exactly as many accumulation steps as TRL expects, each with equally many micro-batches. The
    loss does not depend on the split.

    Args:
        args: arguments of the trainer.
        pad_token_id: id of the padding.
        packs: whether the sequences of a micro-batch are packed.
        has_logprobs: whether rollouts have sampling log-probabilities.
        may_sort: whether sequences of similar length may share a micro-batch; not if the loss has a mean over each
            micro-batch.
        max_context: tokens of the model's context.
    """

    def __init__(
        self, args: AgenticConfig, pad_token_id: int, packs: bool, has_logprobs: bool, may_sort: bool, max_context: int
    ):
        self._args, self._pad_token_id, self._packs = args, pad_token_id, packs
        self._has_logprobs, self._may_sort, self._max_context = has_logprobs, may_sort, max_context
        self.updates_per_generation = args.steps_per_generation // math.gcd(
            args.steps_per_generation, args.gradient_accumulation_steps
        )
        """Optimizer steps that share a generation, each with rollouts of its own."""

    def build(
        self, mode: str, trajectories: list[Trajectory], credit: TurnCredit, device: torch.device
    ) -> tuple[list[list[MicroBatch]], int]:
        """Builds the micro-batches of a generation.

        Args:
            mode: `"train"`, or `"eval"` for a single step in the order of the rollouts.
            trajectories: rollouts of this process.
            credit: credit of the global batch.
            device: device of the tensors.

        Returns:
            Micro-batches by accumulation step, of which there are `steps_per_generation` in training and one in
            evaluation; and the number of tokens of the generation over all processes.

        Raises:
            ValueError: a sequence of any process is longer than `max_tokens_per_micro_batch`.
        """
        prepared = self.prepare(mode, trajectories, credit, device)
        updates, steps_of_update = 1, 1
        if mode == "train":
            updates = self.updates_per_generation
            steps_of_update = self._args.steps_per_generation // updates
        steps: list[list[MicroBatch]] = []
        for update in range(updates):
            own = [i for i, of in enumerate(prepared.update_of) if of == update]
            for parts in self._plan(own, prepared.lengths, mode, steps_of_update):
                steps.append([prepared.micro_batch(part, len(parts)) for part in parts])
        return steps, sum(gather_object([sum(map(len, prepared.sequences))]))

    def prepare(
        self, mode: str, trajectories: list[Trajectory], credit: TurnCredit, device: torch.device
    ) -> PreparedGeneration:
        """Makes training sequences and puts them into the order of training: the first part of [`build`]."""
        is_training, count = mode == "train", len(trajectories)
        first, mask_truncated = PartialState().process_index * count, self._args.mask_truncated_completions
        by_rollout = [
            training_sequences(trajectory, i, self._pad_token_id, mask_truncated, self._has_logprobs)
            for i, trajectory in enumerate(trajectories, start=first)
        ]
        totals = _totals(by_rollout, device)
        positions = gather_object(shuffle_order(count) if is_training else list(range(count)))
        updates = self.updates_per_generation if is_training else 1
        update_of = update_of_rollouts(positions, count, updates)
        sequences = [sequence for sequences in by_rollout for sequence in sequences]
        if is_training and self._balances:
            sequences = _balance(sequences, update_of)
        sequences.sort(key=lambda sequence: positions[sequence.rollout])
        of_sequences = [update_of[sequence.rollout] for sequence in sequences]
        multiple = self._args.pad_to_multiple_of or 1
        return PreparedGeneration(sequences, of_sequences, credit, totals, self._pad_token_id, multiple, device)

    @property
    def _balances(self) -> bool:
        """Whether sequences move between processes. Without a budget of tokens, work is counted in sequences."""
        by_tokens = self._args.max_tokens_per_micro_batch is not None
        return PartialState().num_processes > 1 and by_tokens and self._may_sort

    def _plan(self, own: list[int], lengths: list[int], mode: str, steps: int) -> list[list[list[int]]]:
        """Plan of the micro-batches of one update: indices of sequences, by micro-batch and accumulation step."""
        args, budget = self._args, self._args.max_tokens_per_micro_batch
        if budget is None:
            size = args.per_device_train_batch_size if mode == "train" else args.per_device_eval_batch_size
            parts = cut_by_rows(sorted(own, key=lambda i: -lengths[i]) if self._may_sort else own, size)
        else:
            self._check_longest(max(lengths), budget)
            parts = cut_by_tokens(own, lengths, budget, self._packs)
        count = max(steps, *gather_object([len(parts)]))
        parts = split_to(parts, lengths, count, self._packs)
        return [parts[step * count // steps : (step + 1) * count // steps] for step in range(steps)]

    def _check_longest(self, longest: int, budget: int) -> None:
        """Fails on every process if a sequence of any of them is longer than a micro-batch may be."""
        longest = max(gather_object([longest]))
        if longest > budget:
            raise ValueError(
                f"`max_tokens_per_micro_batch` is {budget}, but a training sequence has {longest} tokens. Set it to "
                f"at least {longest}, or to {self._max_context}, the longest that the context allows; or lower "
                f"`max_completion_length` ({self._args.max_completion_length})."
            )


def _totals(by_rollout: list[list[TrainingSequence]], device: torch.device) -> dict[str, Tensor]:
    tokens = gather_object([sum(sequence.trained_tokens for sequence in sequences) for sequences in by_rollout])
    turns = gather_object([sum(sequence.trained_turns for sequence in sequences) for sequences in by_rollout])
    return {
        "rollout_tokens": torch.tensor(tokens, device=device),
        "num_rollouts_in_batch": torch.tensor(sum(number > 0 for number in tokens), device=device),
        "num_items_in_batch": torch.tensor(sum(tokens), device=device),
        "num_turns_in_batch": torch.tensor(sum(turns), device=device),
    }


def _balance(sequences: list[TrainingSequence], update_of: Sequence[int]) -> list[TrainingSequence]:
    """Sequences that this process trains on when all processes have about equally many tokens in each update.

    The loss is a sum over sequences with a global normaliser, so any process may compute any of them.

    Args:
        sequences: those of the rollouts that this process sampled.
        update_of: optimizer step of each rollout of the global batch, counted from 0.
    """
    sizes = [(update_of[sequence.rollout], len(sequence)) for sequence in sequences]
    known: list[list[tuple[int, int]]] = gather_object([sizes])
    own = PartialState().process_index
    destinations = [own] * len(sequences)
    for update in set(update_of):
        lengths = [[tokens for of, tokens in process if of == update] for process in known]
        here = [i for i, (of, _) in enumerate(sizes) if of == update]
        for i, process in zip(here, balanced(lengths)[own], strict=True):
            destinations[i] = process
    pairs = list(zip(destinations, sequences, strict=True))
    moved: list[tuple[int, Any]] = gather_object([pair for pair in pairs if pair[0] != own])
    stay = [sequence for process, sequence in pairs if process == own]
    return stay + [sequence for process, sequence in moved if process == own]
