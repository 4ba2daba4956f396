"""Random ragged batches, and their samples by a plain loop."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from detops.ragged import RaggedBatch

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

cases = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**16)
rests = st.lists(st.integers(1, 3), max_size=2).map(tuple)


@st.composite
def batches(
    draw: st.DrawFn,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.int64, torch.bool),
    max_batch_dims: int = 3,
) -> RaggedBatch:
    """Draw a batch with NaN (or a large number) in the padding, its sizes known in one form only."""
    batch_shape = tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=max_batch_dims)))
    size, rest, dtype = draw(st.integers(0, 4)), draw(rests), draw(st.sampled_from(list(dtypes)))
    gen = torch.Generator().manual_seed(draw(seeds))
    nb = len(batch_shape)
    dim = draw(st.integers(nb, nb + len(rest)))
    data = torch.randint(-9, 10, (*batch_shape, size, *rest), generator=gen).to(dtype)
    sizes = torch.randint(0, size + 1, batch_shape, generator=gen)
    mask = torch.arange(size) < sizes.unsqueeze(-1)
    if dtype.is_floating_point:
        data[~mask] = math.nan
    elif dtype != torch.bool:
        data[~mask] = 10**6
    data = data.transpose(nb, dim)
    if draw(st.booleans()):
        return RaggedBatch(data, mask=mask, non_uniform_dim=dim)
    return RaggedBatch(
        data, sample_sizes=sizes.to(draw(st.sampled_from([torch.int32, torch.int64]))), non_uniform_dim=dim
    )


def parts(batch: RaggedBatch) -> list[Tensor]:
    """Cut a batch into its samples, in one flat list."""
    dim = batch.non_uniform_dim - batch.num_batch_dims
    flat = batch.tensor.reshape(batch.total_num_samples_in_batch, *batch.shape[batch.num_batch_dims :])
    return [s.narrow(dim, 0, int(n)) for s, n in zip(flat, batch.sample_sizes.flatten(), strict=True)]


def leaves(nested: list[Any]) -> list[Tensor]:
    """Flatten nested lists of tensors."""
    return [leaf for part in nested for leaf in (leaves(part) if isinstance(part, list) else [part])]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Return whether two lists hold equal tensors."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
