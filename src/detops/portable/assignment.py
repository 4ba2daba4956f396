"""`assignment` for every device without a kernel: the C++ form on a copy.

An augmenting path is as long as the numbers make it, so this waits for the device: the one op of the package that does
where there is no kernel. Without the C++ library, all problems take their steps together in PyTorch.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from detops.ragged.padded import exists


def assignment(cost: Tensor, sizes: Tensor | None) -> Tensor:
    """Return the row of each column; arguments and meaning as in `detops.reference.assignment`."""
    on_host, host_sizes = cost.cpu(), None if sizes is None else sizes.cpu()
    if torch._C._dispatch_has_kernel_for_dispatch_key("detops::assignment", "CPU"):
        with _disable_current_modes():  # what counts the launches of a GPU would take it for one, again and again
            found: Tensor = torch.ops.detops.assignment(on_host, host_sizes)
    else:
        found = _assign(on_host, host_sizes)
    return found.to(cost.device)


def _assign(cost: Tensor, sizes: Tensor | None) -> Tensor:
    problems, rows, columns = cost.shape
    there = torch.ones(problems, columns, dtype=torch.bool) if sizes is None else exists(sizes, columns)
    found = torch.full((problems, columns), -1, dtype=torch.int64)
    if problems == 0 or rows == 0 or columns == 0:
        return found
    wide = there.sum(1) > rows  # more columns than rows: each row looks for a column
    for narrow in (True, False):
        chosen = (wide != narrow).nonzero()[:, 0]
        if len(chosen) == 0:
            continue
        part, counts = cost[chosen].double(), there[chosen].sum(1)
        if narrow:
            found[chosen] = _sinks(part.mT, counts, torch.ones(len(chosen), rows, dtype=torch.bool))
        else:
            sinks = _sinks(part, torch.full_like(counts, rows), there[chosen])
            of_column = torch.full((len(chosen), columns), -1)
            found[chosen] = of_column.scatter(1, sinks, torch.arange(rows).expand_as(sinks))
    return found


def _sinks(cost: Tensor, counts: Tensor, allowed: Tensor) -> Tensor:
    """The sink of each of the first `counts` sources of each problem.

    Args:
        cost: (P, S, T) float64, of sources and sinks.
        counts: (P,).
        allowed: (P, T), the sinks that exist, not fewer than sources.

    Returns:
        (P, S) int64, -1 beyond the counts.
    """
    problems, sources, sinks = cost.shape
    finite = cost.isfinite()
    # Two numbers each, compared one after the other: how many pairs are forbidden, and the sum of the others.
    price = torch.stack([(~finite).double(), cost.where(finite, 0)])  # (2, P, S, T)
    each, places = torch.arange(problems), torch.arange(sinks)
    u, v = price.new_zeros(2, problems, sources), price.new_zeros(2, problems, sinks)
    owner, taken = torch.full((problems, sinks), -1), torch.full((problems, sources), -1)
    for i in range(min(sources, int(counts.max()))):
        length = torch.full((2, problems, sinks), torch.inf, dtype=torch.float64)
        previous, source = torch.full((problems, sinks), i), torch.full((problems,), i)
        reached, reach = torch.zeros(problems, sinks, dtype=torch.bool), price.new_zeros(2, problems)
        searching, sink = counts > i, torch.zeros(problems, dtype=torch.int64)
        while searching.any():
            by = (price[:, each, source] - v) + (reach - u[:, each, source])[..., None]
            closer = (by[0] < length[0]) | ((by[0] == length[0]) & (by[1] < length[1]))
            closer &= ~reached & searching[:, None]
            length, previous = by.where(closer, length), source[:, None].where(closer, previous)
            open_ = allowed & ~reached
            for part in length:
                open_ = open_ & (part == part.where(open_, torch.inf).amin(1, keepdim=True))
            ranked = open_.long() * (1 + (owner < 0).long())
            sink = ranked.argmax(1).where(searching, sink)
            reach = length[:, each, sink].where(searching, reach)
            reached |= searching[:, None] & (places == sink[:, None])
            source = owner[each, sink].where(searching, source)
            searching = searching & (source >= 0)
        slack = (reach[..., None] - length).where(reached, 0)
        of_owner = owner.clamp(min=0)
        u.scatter_add_(2, of_owner.expand(2, -1, -1), slack.where(owner >= 0, 0))
        u[..., i] += reach
        v = v - slack
        moving = counts > i
        while moving.any():
            at = previous[each, sink]
            owner[each[moving], sink[moving]] = at[moving]
            following = taken[each, at]
            taken[each[moving], at[moving]] = sink[moving]
            sink = following.where(moving & (at != i), sink)
            moving = moving & (at != i)
    return taken
