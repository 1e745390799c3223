"""Ranking by BM25, with the numbers that Lucene computes: 32-bit floats, lengths kept in a byte."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable

import numpy as np

from .analysis import analyze


K1 = 0.9
B = 0.4


class SearchIndex:
    """An inverted index over documents; never changes once it is built.

    Args:
        documents (`Iterable[str]`): the texts. Where two score the same, the earlier one comes first.

    Attributes:
        vocabulary (`dict[str, int]`): number of each term.
        size (`int`): number of documents.
    """

    def __init__(self, documents: Iterable[str]) -> None:
        self.vocabulary: dict[str, int] = {}
        term_column, document_column, count_column = array("i"), array("i"), array("i")
        lengths = array("q")
        for number, document in enumerate(documents):
            terms = analyze(document)
            lengths.append(len(terms))
            for term, count in Counter(terms).items():
                term_column.append(self.vocabulary.setdefault(term, len(self.vocabulary)))
                document_column.append(number)
                count_column.append(count)
        self.size = len(lengths)
        term_numbers = np.frombuffer(term_column, dtype=np.int32)
        order = np.argsort(term_numbers, kind="stable")
        self._documents = np.frombuffer(document_column, dtype=np.int32)[order]
        document_frequency = np.bincount(term_numbers, minlength=len(self.vocabulary))
        self._starts = np.concatenate(([0], np.cumsum(document_frequency)))
        # Documents without a term do not count, as a field that is empty everywhere has no statistics.
        counted = sum(length > 0 for length in lengths)
        average = np.float32(sum(lengths) / counted) if counted else np.float32(1.0)
        self._idf = np.array(
            [math.log(1.0 + (counted - n + 0.5) / (n + 0.5)) for n in document_frequency.tolist()], dtype=np.float32
        )
        kept = np.array([byte_length(length) for length in lengths], dtype=np.float32)
        k1, b, one = np.float32(K1), np.float32(B), np.float32(1.0)
        inverse = one / (k1 * ((one - b) + b * kept / average))
        counts = np.frombuffer(count_column, dtype=np.int32)[order].astype(np.float32)
        self._saturation = one + counts * inverse[self._documents]

    def search(self, query: str, limit: int = 50) -> list[int]:
        """The best documents, best first.

        Args:
            query (`str`): any text; a word that stands in it twice counts twice.
            limit (`int`, defaults to `50`): how many at most. Documents that share no term with the query are none.

        Returns:
            `list[int]`: numbers of documents.
        """
        scores = np.zeros(self.size)
        for term, count in Counter(analyze(query)).items():
            number = self.vocabulary.get(term)
            if number is not None:
                start, end = self._starts[number], self._starts[number + 1]
                weight = np.float32(count) * self._idf[number]
                scores[self._documents[start:end]] += weight - weight / self._saturation[start:end]
        found = np.flatnonzero(scores)
        kept = scores[found].astype(np.float32)
        if len(found) > limit:
            least = np.partition(kept, len(kept) - limit)[len(kept) - limit]
            chosen = kept >= least
            found, kept = found[chosen], kept[chosen]
        return found[np.argsort(-kept, kind="stable")][:limit].tolist()


def byte_length(length: int) -> int:
    """Length of a document as Lucene stores it: exact below 40, then three bits after the leading one."""
    if length < 24:
        return length
    rest = length - 24
    shift = max(0, rest.bit_length() - 4)
    return 24 + (rest >> shift << shift)
