"""What `assignment` means: exact linear sum assignment, one problem and one box at a time."""

import math

import torch
from torch import Tensor

Rank = tuple[int, float]  # how many forbidden pairs, then the sum of the costs of the others


def assignment(cost: Tensor, sizes: Tensor | None) -> Tensor:
    """Return the row that each column is assigned.

    Each column gets a row of its own, min(Q, n) pairs in all, so that the sum of their costs is the least there is. A
    pair whose cost is not finite is forbidden: it is taken only where there is no other way, as few as possible, and
    then the sum is that of the other pairs. Of several optima the one is returned that the steps below lead to.

    Args:
        cost: (P, Q, N) numbers; of problem p the columns from `sizes[p]` on are padding.
        sizes: (P,) number of columns n of each problem; None for N.

    Returns:
        (P, N) int64 row of each column, -1 for none.

    Reference:
        Kuhn, "The Hungarian method", 1955; the shortest augmenting paths of Jonker and Volgenant, 1987.
    """
    problems, rows, columns = cost.shape
    found = torch.full((problems, columns), -1, dtype=torch.int64)
    for p in range(problems):
        count = columns if sizes is None else min(max(math.ceil(sizes[p].item()), 0), columns)
        numbers = [[_rank(value) for value in line] for line in cost[p, :, :count].double().tolist()]
        if count <= rows:
            for n, q in enumerate(_assign([list(column) for column in zip(*numbers, strict=True)])):
                found[p, n] = q
        else:
            for q, n in enumerate(_assign(numbers)):
                found[p, n] = q
    return found


def _rank(value: float) -> Rank:
    return (0, value) if math.isfinite(value) else (1, 0.0)


def _assign(cost: list[list[Rank]]) -> list[int]:
    """The sink of each source, which are rows and not more than the sinks.

    Each source in turn looks for the shortest path, by way of sinks that are taken, to a sink that is free; ties go to
    a free sink, then to the lower one. Lengths are costs less two potentials, u of sources and v of sinks, which keep
    them from being negative.
    """
    sources, sinks = len(cost), len(cost[0]) if cost else 0
    u, v = [(0, 0.0)] * sources, [(0, 0.0)] * sinks
    owner, taken = [-1] * sinks, [-1] * sources
    for start in range(sources):
        length: list[Rank] = [(sinks + 1, math.inf)] * sinks
        previous, reached, source, reach = [start] * sinks, dict[int, Rank](), start, (0, 0.0)
        while True:
            base = _minus(reach, u[source])
            for j in range(sinks):
                by = _plus(_minus(cost[source][j], v[j]), base)
                if j not in reached and by < length[j]:
                    length[j], previous[j] = by, source
            sink = min((j for j in range(sinks) if j not in reached), key=lambda j: (length[j], owner[j] >= 0, j))
            reached[sink] = reach = length[sink]
            if owner[sink] < 0:
                break
            source = owner[sink]
        u[start] = _plus(u[start], reach)
        for j, distance in reached.items():
            if owner[j] >= 0:
                u[owner[j]] = _plus(u[owner[j]], _minus(reach, distance))
            v[j] = _minus(v[j], _minus(reach, distance))
        while True:
            source = owner[sink] = previous[sink]
            taken[source], sink = sink, taken[source]
            if source == start:
                break
    return taken


def _plus(a: Rank, b: Rank) -> Rank:
    return a[0] + b[0], a[1] + b[1]


def _minus(a: Rank, b: Rank) -> Rank:
    return a[0] - b[0], a[1] - b[1]
