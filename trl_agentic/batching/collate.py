"""Layout of a micro-batch: ragged training sequences in, padded tensors out. Each token is laid out once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from trl_agentic.batching.rows import TrainingSequence
from trl_agentic.batching.turns import spread_to_tokens


def collate(
    sequences: Sequence[TrainingSequence],
    pad_token_id: int,
    multiple: int,
    device: torch.device,
    turn_values: dict[str, tuple[Tensor, float]],
) -> dict[str, Tensor]:
    """Lays out the sequences of one micro-batch as padded tensors under TRL's keys.

    All sequences begin in the first column, so that positions are those of sampling and the width is that of the
    longest sequence. The columns are split into prompt and completion where the shortest prompt ends: the rest of a
    longer prompt stands in the completion columns, outside `tool_mask`.

    Args:
        sequences: n training sequences, at least one.
        pad_token_id: id of the padding.
        multiple: the width is rounded up to a multiple of it.
        device: device of the tensors.
        turn_values: values per turn by key, each (R, K) over the R rollouts of the global batch, with the value for
            tokens outside all turns. They are spread to the tokens of their turns.

    Returns:
        `prompt_ids`, `prompt_mask` of shape (n, p); `completion_ids`, `completion_mask`, `tool_mask` (1 for a token in
        the loss), `turn_ids` (-1 outside the loss), the keys of `turn_values` and, if all sequences have
        log-probabilities, `sampling_per_token_logps` of shape (n, c); `rollout_ids` of shape (n,). p is the length of
        the shortest prompt, p + c the width.
    """
    first = min(len(sequence.prompt_ids) for sequence in sequences)
    width = -(-max(map(len, sequences)) // multiple) * multiple

    def laid_out(values: Sequence[Sequence[Any]], fill: Any) -> Tensor:
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in values], device=device)

    def after_prompt(values: Sequence[Sequence[Any]], fill: Any) -> Tensor:
        pairs = zip(sequences, values, strict=True)
        return laid_out([[*[fill] * len(s.prompt_ids), *row] for s, row in pairs], fill)[:, first:]

    ids = laid_out([[*s.prompt_ids, *s.completion_ids] for s in sequences], pad_token_id)
    mask = laid_out([[1] * len(s) for s in sequences], 0)
    turn_ids = after_prompt([s.turn_ids for s in sequences], -1)
    rollouts = torch.tensor([s.rollout for s in sequences], device=device)
    batch = {
        "prompt_ids": ids[:, :first],
        "prompt_mask": mask[:, :first],
        "completion_ids": ids[:, first:],
        "completion_mask": mask[:, first:],
        "tool_mask": (turn_ids >= 0).long(),
        "turn_ids": turn_ids,
        "rollout_ids": rollouts,
    }
    for name, (values, fill) in turn_values.items():
        batch[name] = spread_to_tokens(values.to(device, torch.float32)[rollouts], turn_ids, fill)
    logprobs = [s.logprobs for s in sequences if s.logprobs is not None]
    if len(logprobs) == len(sequences):
        batch["sampling_per_token_logps"] = after_prompt(logprobs, 0.0)
    return batch


def filler(sequences: Sequence[TrainingSequence]) -> TrainingSequence:
    """The shortest of the sequences with no token in the loss, for a micro-batch without sequences of its own."""
    shortest = min(sequences, key=len)
    unknown = [-1] * len(shortest.turn_ids)
    return TrainingSequence(shortest.rollout, shortest.prompt_ids, shortest.completion_ids, unknown, shortest.logprobs)


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Padded rows laid end to end in one row of L tokens. Attention separates them by their position ids.

    Attributes:
        input_ids (`Tensor` of shape (1, L)): tokens of all rows, then padding up to a multiple.
        position_ids (`Tensor` of shape (1, L)): position of each token in its row; a row begins with 0.
        labels (`Tensor` of shape (1, L)): the token after each, -100 where it is not scored.
        mask (`Tensor` of shape (n, W), bool): where the tokens are in the padded rows.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    mask: Tensor

    def unpack(self, values: Tensor) -> Tensor:
        """Puts values computed for the labels where these tokens are in the padded rows.

        Args:
            values (`Tensor` of shape (1, L)): 0 where the label is -100.

        Returns:
            `Tensor` of shape (n, W): 0 for padding and for tokens that were not scored.
        """
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values.roll(1, dims=1))


def pack_rows(ids: Tensor, mask: Tensor, keep: int, multiple: int = 1) -> PackedRows:
    """Lays padded rows end to end, at the boundary of the model.

    Args:
        ids (`Tensor` of shape (n, W)): tokens of the rows.
        mask (`Tensor` of shape (n, W)): 1 for a token, 0 for padding.
        keep: number of last columns that are scored. The first token of a row never is, since nothing predicts it.
        multiple: L is rounded up to a multiple of it.
    """
    tokens = mask.bool()
    packed, positions = ids[tokens], (tokens.long().cumsum(1) - 1)[tokens]
    scored = torch.zeros_like(tokens)
    scored[:, -keep:] = True
    labels = torch.where(scored[tokens] & (positions > 0), packed, -100).roll(-1)
    fill = -len(packed) % multiple
    positions = torch.cat([positions, torch.arange(fill, device=positions.device)])
    return PackedRows(pad(packed, (0, fill))[None], positions[None], pad(labels, (0, fill), value=-100)[None], tokens)
