"""The plan of the micro-batches: which training sequences are computed together. Numbers in, numbers out.

A forward pass computes (sequences) x (longest sequence) positions, padding included, or the tokens alone if sequences
are packed. The loss is a sum over sequences with a global normaliser, so the update does not depend on the plan; time
and memory do.
"""

from __future__ import annotations

from collections.abc import Sequence


def cut_by_rows(order: Sequence[int], max_rows: int) -> list[list[int]]:
    """Micro-batches of `max_rows` sequences (the last may have fewer) in the order given.

    Args:
        order: numbers of the sequences.
        max_rows: sequences of a micro-batch.
    """
    return [list(order[start : start + max_rows]) for start in range(0, len(order), max_rows)]


def cut_by_tokens(
    order: Sequence[int], lengths: Sequence[int], max_tokens: int, packed: bool = False
) -> list[list[int]]:
    """Micro-batches of at most `max_tokens` positions each. Long sequences come first, so that those of similar
    length share a micro-batch and need little padding.

    Args:
        order: numbers of the sequences.
        lengths: tokens of each sequence, by its number.
        max_tokens: maximum number of positions of a micro-batch.
        packed: whether sequences are packed. Then short sequences fill the space that long ones leave.

    Raises:
        ValueError: a single sequence is longer than `max_tokens`.
    """
    parts: list[list[int]] = []
    sizes: list[int] = []  # positions of each part
    for row in sorted(order, key=lambda row: -lengths[row]):
        if lengths[row] > max_tokens:
            raise ValueError(f"Sequence {row} has {lengths[row]} tokens: more than max_tokens ({max_tokens}).")
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
    """Halves the largest micro-batches until there are `count`. Empty ones are added when nothing is left to split.

    Args:
        parts: micro-batches as numbers of sequences.
        lengths: tokens of each sequence, by its number.
        count: required number of micro-batches, at least `len(parts)`.
        packed: whether sequences are packed.
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
    """Assigns each sequence to a process, so that all compute about equally many tokens. Few sequences move.

    The sequence whose move balances most goes from the process with the most tokens to the one with the fewest, until
    no move reduces the difference between the two.

    Args:
        lengths: tokens of each sequence, by process.

    Returns:
        The process of each sequence, in the same form.
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
        parts: micro-batches as numbers of sequences.
        lengths: tokens of each sequence, by its number.
        packed: whether sequences are packed; otherwise they are padded to the longest of their micro-batch.
    """
    if packed:
        return sum(lengths[row] for part in parts for row in part)
    return sum(len(part) * max((lengths[row] for row in part), default=0) for part in parts)
