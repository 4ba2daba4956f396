"""Parts of tensors of sets of outputs, as `detops.reference.set_loss` has them."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Part(NamedTuple):
    """Some sets and queries of one tensor (S, B, Q, ...).

    Attributes:
        tensor: Which of the tensors.
        place: Its sets, images and queries there.
        sets: Its sets among those of all parts.
        rows: Its queries among those of all parts, each (sets, B, queries).
    """

    tensor: int
    place: tuple[slice, slice, slice]
    sets: slice
    rows: slice

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """The part itself."""
        return tensors[self.tensor][self.place]


def parts_of(parts: Sequence[int], batch: int) -> list[Part]:
    """Read the numbers of parts: tensor, first set, number of sets, first query, number of queries."""
    found, sets, rows = [], 0, 0
    for tensor, first_set, count, first, queries in zip(*[iter(parts)] * 5, strict=True):
        place = slice(first_set, first_set + count), slice(None), slice(first, first + queries)
        size = count * batch * queries
        found.append(Part(tensor, place, slice(sets, sets + count), slice(rows, rows + size)))
        sets, rows = sets + count, rows + size
    return found


def gaps_of(parts: Sequence[int], shapes: Sequence[Sequence[int]]) -> list[tuple[int, tuple[slice, slice, slice]]]:
    """Return where no part is: tensors, and places (sets, images, queries) in them, of shapes (S, B, Q, ...)."""
    found = []
    for tensor, shape in enumerate(shapes):
        own = [part[1:] for part in zip(*[iter(parts)] * 5, strict=True) if part[0] == tensor]
        begin, seen = 0, list[tuple[int, int]]()
        for s in range(shape[0] + 1):
            taken = sorted((first, first + count) for from_, sets, first, count in own if from_ <= s < from_ + sets)
            free: list[tuple[int, int]] = []
            end = 0
            for first, last in [*taken, (shape[2], shape[2])]:
                if first > end:
                    free.append((end, first))
                end = max(end, last)
            if s == shape[0] or free != seen:  # sets that have the same gaps go together
                found += [(tensor, (slice(begin, s), slice(None), slice(*gap))) for gap in seen]
                begin, seen = s, free
    return found
