"""Which rows are computed together, and how they are laid out. Numbers and tensors in, tensors out.

A forward pass computes (rows) x (longest row) positions, padding included, or the tokens alone where rows are packed.
The loss is a sum over rows with a global normaliser, so the update does not depend on how rows are cut into
micro-batches; time and memory do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


# What stands where a row has nothing; 0 for all other keys.
_FILL = {"turn_ids": -1}


def cut_by_rows(order: Sequence[int], max_rows: int) -> list[list[int]]:
    """Micro-batches of `max_rows` rows (the last may have fewer) in the order given.

    Args:
        order: numbers of the rows.
        max_rows: rows of a micro-batch.
    """
    return [list(order[start : start + max_rows]) for start in range(0, len(order), max_rows)]


def cut_by_tokens(
    order: Sequence[int], lengths: Sequence[int], max_tokens: int, packed: bool = False
) -> list[list[int]]:
    """Micro-batches of at most `max_tokens` positions each, long rows first: like beside like, as padding wants it.

    Args:
        order: numbers of the rows.
        lengths: tokens of each row, by its number.
        max_tokens: the most positions of a micro-batch.
        packed: whether rows are packed. Then short rows fill up what long ones leave.

    Raises:
        ValueError: a row alone is longer than `max_tokens`.
    """
    parts: list[list[int]] = []
    sizes: list[int] = []  # positions of each part
    for row in sorted(order, key=lambda row: -lengths[row]):
        if lengths[row] > max_tokens:
            raise ValueError(f"Row {row} has {lengths[row]} tokens: more than max_tokens ({max_tokens}).")
        for i in range(0 if packed else max(0, len(parts) - 1), len(parts)):
            added = lengths[row] if packed else lengths[parts[i][0]]
            if sizes[i] + added <= max_tokens:
                parts[i].append(row)
                sizes[i] += added
                break
        else:
            parts.append([row])
            sizes.append(lengths[row])
    return parts


def split_to(
    parts: Sequence[Sequence[int]], lengths: Sequence[int], count: int, packed: bool = False
) -> list[list[int]]:
    """Halves the largest micro-batches until there are `count`; empty ones are added when no rows are left to split.

    Args:
        parts: micro-batches as numbers of rows.
        lengths: tokens of each row, by its number.
        count: how many there must be, at least `len(parts)`.
        packed: whether rows are packed.
    """
    split = [list(part) for part in parts]
    while len(split) < count:
        sizes = [computed_tokens([part], lengths, packed) if len(part) > 1 else 0 for part in split]
        largest = max(range(len(split)), key=sizes.__getitem__, default=-1)
        if largest < 0 or sizes[largest] == 0:
            split.append([])
        else:
            half = len(split[largest]) // 2
            split[largest : largest + 1] = [split[largest][:half], split[largest][half:]]
    return split


def balanced(lengths: Sequence[Sequence[int]]) -> list[list[int]]:
    """To which process each row goes, so that all have about equally many tokens to compute. Few rows move.

    The row whose move evens out the most goes from the process with the most tokens to the one with the fewest, until
    no move makes the two more alike.

    Args:
        lengths: tokens of each row, by process.

    Returns:
        The process of each row, in the same form.
    """
    places = [[process] * len(rows) for process, rows in enumerate(lengths)]
    held = {process: [(process, row) for row in range(len(rows))] for process, rows in enumerate(lengths)}
    loads = [sum(rows) for rows in lengths]
    while True:
        most, fewest = loads.index(max(loads)), loads.index(min(loads))
        gap = loads[most] - loads[fewest]
        movable = [(origin, row) for origin, row in held[most] if 0 < lengths[origin][row] < gap]
        if not movable:
            return places
        origin, row = best = min(movable, key=lambda at: abs(gap - 2 * lengths[at[0]][at[1]]))
        held[most].remove(best)
        held[fewest].append(best)
        places[origin][row] = fewest
        loads[most] -= lengths[origin][row]
        loads[fewest] += lengths[origin][row]


def computed_tokens(parts: Sequence[Sequence[int]], lengths: Sequence[int], packed: bool = False) -> int:
    """Positions that the forward passes over these micro-batches compute.

    Args:
        parts: micro-batches as numbers of rows.
        lengths: tokens of each row, by its number.
        packed: whether rows are packed, or else padded to the longest of their micro-batch.
    """
    if packed:
        return sum(lengths[row] for part in parts for row in part)
    return sum(len(part) * max((lengths[row] for row in part), default=0) for part in parts)


def take_rows(rows: dict[str, Tensor], part: Sequence[int], multiple: int = 1) -> dict[str, Tensor]:
    """A micro-batch as tensors, without the padding that these rows do not need.

    All rows begin in the first column, so that positions are those of sampling and the width is that of the longest
    row. The columns are cut into prompt and completion where the shortest prompt ends: the rest of a longer prompt
    stands among the completions, outside `tool_mask`.

    Args:
        rows: `prompt_ids`, `prompt_mask` of shape (N, P), left-padded; `completion_ids`, `completion_mask` of shape
            (N, C), right-padded; and any keys of shape (N, C), (N,) or ().
        part: numbers of the n rows to take. If there are none, the shortest row is taken with no token in the loss.
        multiple: the width is rounded up to a multiple of it.

    Returns:
        The same keys: prompts of shape (n, p), completions and all other (N, C) keys of shape (n, c), with p the
        shortest prompt and p + c the longest row.
    """
    if not part:
        lengths = rows["prompt_mask"].sum(1) + rows["completion_mask"].sum(1)
        filler = take_rows(rows, [int(lengths.argmin())], multiple)
        nothing = {"tool_mask": 0, "turn_ids": -1}
        return filler | {key: torch.full_like(filler[key], nothing[key]) for key in nothing if key in filler}
    prompt_width, completion_width = rows["prompt_ids"].size(1), rows["completion_ids"].size(1)
    index = torch.tensor(part, device=rows["prompt_ids"].device)
    prompts = rows["prompt_mask"][index].sum(1)
    lengths = prompts + rows["completion_mask"][index].sum(1)
    first, width = int(prompts.min()), -(-int(lengths.max()) // multiple) * multiple
    # The column, in [prompts | completions | one column of nothing], that each new column shows.
    columns = (prompt_width - prompts)[:, None] + torch.arange(width, device=index.device)
    columns = columns.clamp(max=prompt_width + completion_width)

    def flush(name: str, prompt: Tensor | None, completion: Tensor) -> Tensor:
        value = pad(completion[index], (prompt_width if prompt is None else 0, 1), value=_FILL.get(name, 0))
        if prompt is not None:
            value = torch.cat([prompt[index], value], dim=1)
        return value.gather(1, columns)

    taken = {}
    for kind in ("ids", "mask"):
        value = flush(kind, rows[f"prompt_{kind}"], rows[f"completion_{kind}"])
        taken[f"prompt_{kind}"], taken[f"completion_{kind}"] = value[:, :first], value[:, first:]
    for name, value in rows.items():
        if name not in taken:
            if value.dim() == 2:
                taken[name] = flush(name, None, value)[:, first:]
            else:
                taken[name] = value[index] if value.dim() else value
    return taken


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows laid end to end in one, of L tokens: the form in which attention tells rows by their positions.

    Attributes:
        input_ids (`Tensor` of shape (1, L)): the tokens of all rows, then those that fill up to a multiple.
        position_ids (`Tensor` of shape (1, L)): the place of each token in its row; a row begins with 0.
        labels (`Tensor` of shape (1, L)): the token behind each, -100 where it is not to be scored.
        mask (`Tensor` of shape (n, W), bool): where the tokens stood in the padded rows.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    mask: Tensor

    def unpack(self, values: Tensor) -> Tensor:
        """What was computed for the labels, where these tokens stood in the padded rows.

        Args:
            values (`Tensor` of shape (1, L)): 0 where the label is -100.

        Returns:
            `Tensor` of shape (n, W): 0 for padding and for tokens that were not scored.
        """
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values.roll(1, dims=1))


def pack_rows(ids: Tensor, mask: Tensor, keep: int, multiple: int = 1) -> PackedRows:
    """Lays padded rows end to end.

    Args:
        ids (`Tensor` of shape (n, W)): tokens of the rows.
        mask (`Tensor` of shape (n, W)): 1 where there is a token, 0 where there is padding.
        keep: how many of the last columns are scored. The first token of a row never is: nothing predicts it.
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
