"""The list that Triton kernels keep of their best candidates."""

import pytest
import torch

pytest.importorskip("triton")

import triton.language as tl

from detops.kernels._launch import kernel
from detops.kernels._top_list import NONE, empty_list, enter, slots_for

BLOCK = 32


@kernel(tensors=4, num_warps=1)
def list_kernel(ranks, indices, found, found_indices, count, places, SLOTS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The lowest of `count` candidates, given in blocks."""
    kept, kept_indices, last, last_index = empty_list(places, SLOTS)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        rank = tl.load(ranks + at, mask=at < count, other=NONE)
        index = tl.load(indices + at, mask=at < count, other=0)
        kept, kept_indices, last, last_index = enter(kept, kept_indices, last, last_index, rank, index)
    tl.store(found + tl.arange(0, SLOTS), kept)
    tl.store(found_indices + tl.arange(0, SLOTS), kept_indices)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


RANKS = torch.tensor([-(2**31) + 1, -7, -1, 0, 3, 2**30, NONE.value - 1, NONE.value])


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 7, 40, 90])
@pytest.mark.parametrize("places", [1, 5, 32, 40])
def test_keeps_the_lowest_and_of_equal_ones_the_first(count: int, places: int) -> None:
    slots = slots_for(places)
    assert slots >= places
    g = torch.Generator().manual_seed(count + places)
    ranks, indices = RANKS[torch.randint(8, (count,), generator=g)].tolist(), torch.randperm(1000, generator=g)[:count]
    given = [torch.tensor(one or [0], dtype=torch.int32, device=DEVICE) for one in (ranks, indices.tolist())]
    found, found_indices = (torch.empty(slots, dtype=torch.int32, device=DEVICE) for _ in range(2))
    list_kernel((1,), (*given, found, found_indices), (count, places), (slots, BLOCK))
    mine = zip(found.tolist(), found_indices.tolist(), strict=True)
    candidates = [pair for pair in zip(ranks, indices.tolist(), strict=True) if pair[0] < NONE.value]
    assert sorted(pair for pair in mine if -(2**31) < pair[0] < NONE.value) == sorted(candidates)[:places]
