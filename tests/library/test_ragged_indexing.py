"""Indexing, mapping and masks over ragged batches against plain loops over the samples."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged_batches import cases, rests, seeds
from torch import Tensor
from torch.autograd import gradcheck

from detops.ragged import (
    RaggedBatch,
    batched_bool_indexing,
    batched_bool_indexing_write,
    batched_index_mapping,
    batched_indexing_access,
    batched_indexing_write,
    batched_inverse_indexing_access,
    get_indices_from_mask,
    get_mask_from_indices,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool]
INDEX_DTYPES = [torch.int32, torch.int64]
GARBAGE = [0, 1, -1, 100, -1000, 2**31 - 1, -(2**31)]

Shape = tuple[int, ...]
batch_shapes = st.lists(st.integers(0, 3), min_size=1, max_size=2).map(tuple)
dtypes = st.sampled_from(DTYPES)
index_dtypes = st.sampled_from(INDEX_DTYPES)


def values(shape: Shape, dtype: torch.dtype, gen: torch.Generator, contiguous: bool = True) -> Tensor:
    data = torch.randint(-50, 50, shape, generator=gen)
    data = (data > 0) if dtype == torch.bool else data.to(dtype)
    if not contiguous:
        data = data.transpose(0, -1).contiguous().transpose(0, -1)
    return data


def indices(
    batch_shape: Shape,
    width: int,
    low: int,
    high: int,
    dtype: torch.dtype,
    gen: torch.Generator,
    unique: bool = False,
) -> RaggedBatch:
    """Draw random numbers of valid indices in [low, high), followed by garbage."""
    rows, counts = [], []
    for _ in range(math.prod(batch_shape)):
        count = int(torch.randint(0, width + 1, (), generator=gen))
        if unique:
            count = min(count, high)
            row = torch.randperm(high, generator=gen)[:count] if high else torch.zeros(0, dtype=torch.int64)
            row = row - high * torch.randint(0, 2, row.shape, generator=gen)
        else:
            row = torch.randint(low, high, (count,), generator=gen)
        garbage = torch.randint(0, len(GARBAGE), (width - count,), generator=gen)
        rows.append(torch.cat([row, torch.tensor(GARBAGE)[garbage]]))
        counts.append(count)
    tensor = torch.stack(rows) if rows else torch.zeros(0, width, dtype=torch.int64)
    sizes = torch.tensor(counts, dtype=dtype).reshape(batch_shape)
    return RaggedBatch(tensor.to(dtype).reshape(*batch_shape, width), sample_sizes=sizes)


def samples(batch_shape: Shape) -> list[Tensor]:
    return list(torch.cartesian_prod(*[torch.arange(n) for n in batch_shape]).reshape(-1, len(batch_shape)))


def pairs(index: RaggedBatch, size: int) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Yields (sample, position, wrapped index) of the valid indices in range."""
    for where in samples(index.batch_shape):
        b = tuple(where.tolist())
        for j in range(int(index.sample_sizes[b])):
            i = int(index.tensor[b][j])
            i += size if i < 0 else 0
            if 0 <= i < size:
                yield b, j, i


@cases
@given(batch_shapes, st.integers(0, 4), st.integers(0, 5), rests, dtypes, index_dtypes, seeds, st.data())
def test_access(
    batch_shape: Shape,
    size: int,
    width: int,
    rest: Shape,
    dtype: torch.dtype,
    index_dtype: torch.dtype,
    seed: int,
    draw: st.DataObject,
) -> None:
    gen = torch.Generator().manual_seed(seed)
    index = indices(batch_shape, width, -size - 2, size + 2, index_dtype, gen)
    data = values((*batch_shape, size, *rest), dtype, gen, contiguous=seed % 2 == 1)
    nb = len(batch_shape)
    dim = draw.draw(st.integers(nb, nb + len(rest)))
    got = batched_indexing_access(data.transpose(nb, dim), index, 3.5, dim)
    expected = torch.full((*batch_shape, width, *rest), 3.5).to(dtype)
    for b, j, i in pairs(index, size):
        expected[b][j] = data[b][i]
    assert got.dtype == dtype
    assert got.non_uniform_dim == dim
    assert torch.equal(got.tensor.transpose(nb, dim), expected)
    assert torch.equal(got.sample_sizes, index.sample_sizes)


@cases
@given(batch_shapes, st.integers(0, 4), st.integers(0, 5), rests, dtypes, index_dtypes, seeds, st.data())
def test_write_and_inverse_access(
    batch_shape: Shape,
    size: int,
    width: int,
    rest: Shape,
    dtype: torch.dtype,
    index_dtype: torch.dtype,
    seed: int,
    draw: st.DataObject,
) -> None:
    gen = torch.Generator().manual_seed(seed)
    index = indices(batch_shape, width, -size - 2, size + 2, index_dtype, gen)
    data = values((*batch_shape, width, *rest), dtype, gen, contiguous=seed % 2 == 1)
    into = values((*batch_shape, size, *rest), dtype, gen)
    nb = len(batch_shape)
    dim = draw.draw(st.integers(nb, nb + len(rest)))
    written, inverse = into.clone(), torch.full(into.shape, 2.5).to(dtype)
    for b, j, i in pairs(index, size):  # in order, so that the last duplicate wins
        written[b][i] = data[b][j]
        inverse[b][i] = data[b][j]
    before = into.clone()
    got = batched_indexing_write(data.transpose(nb, dim), index, into.transpose(nb, dim), dim)
    assert torch.equal(got.transpose(nb, dim), written)
    assert torch.equal(into, before)
    got = batched_inverse_indexing_access(data.transpose(nb, dim), index, size, 2.5, dim)
    assert got.dtype == dtype
    assert torch.equal(got.transpose(nb, dim), inverse)
    ragged = RaggedBatch.FromFullTensor(into.transpose(nb, dim), dim, nb)
    batch = batched_indexing_write(data.transpose(nb, dim), index, ragged, dim)
    assert batch.non_uniform_dim == dim
    assert torch.equal(batch.tensor.transpose(nb, dim), written)


@cases
@given(batch_shapes, st.integers(0, 4), st.integers(0, 4), st.integers(0, 5), rests, dtypes, seeds, st.data())
def test_mapping(
    batch_shape: Shape,
    num_source: int,
    num_target: int,
    width: int,
    rest: Shape,
    dtype: torch.dtype,
    seed: int,
    draw: st.DataObject,
) -> None:
    gen = torch.Generator().manual_seed(seed)
    nb = len(batch_shape)
    target_index = indices(batch_shape, width, -num_target - 1, num_target + 1, torch.int64, gen)
    source_index = target_index.create_with_sample_sizes_like_self(
        torch.randint(-num_source - 1, num_source + 1, (*batch_shape, width), generator=gen).int()
    )
    source = values((*batch_shape, num_source, *rest), dtype, gen, contiguous=seed % 2 == 1)
    target = values((*batch_shape, num_target, *rest), dtype, gen)
    expected = target.clone()
    from_source = {(b, j): i for b, j, i in pairs(source_index, num_source)}
    for b, j, i in pairs(target_index, num_target):
        if (b, j) in from_source:
            expected[b][i] = source[b][from_source[b, j]]
    assert torch.equal(batched_index_mapping(source, source_index, target_index, target), expected)
    dim, other_dim = (draw.draw(st.integers(nb, nb + len(rest))) for _ in range(2))
    got = batched_index_mapping(
        RaggedBatch.FromFullTensor(source.transpose(nb, dim), dim, nb),
        source_index,
        target_index,
        RaggedBatch.FromFullTensor(target.transpose(nb, other_dim), other_dim, nb),
    )
    assert got.non_uniform_dim == other_dim
    assert torch.equal(got.tensor.transpose(nb, other_dim), expected)


@cases
@given(batch_shapes, st.integers(0, 5), rests, dtypes, seeds, st.integers(0, 6), st.data())
def test_bool_indexing_and_write(
    batch_shape: Shape, size: int, rest: Shape, dtype: torch.dtype, seed: int, max_size: int, draw: st.DataObject
) -> None:
    gen = torch.Generator().manual_seed(seed)
    nb = len(batch_shape)
    data = values((*batch_shape, size, *rest), dtype, gen, contiguous=seed % 2 == 1)
    mask = torch.rand((*batch_shape, size), generator=gen) < 0.5
    sizes = torch.randint(0, size + 1, batch_shape, generator=gen)
    dim = draw.draw(st.integers(nb, nb + len(rest)))
    ragged = RaggedBatch(data.transpose(nb, dim), sample_sizes=sizes, non_uniform_dim=dim)
    if dtype.is_floating_point:
        ragged = ragged.with_padded_set_to(math.nan)
    ragged_mask = RaggedBatch(mask, sample_sizes=sizes)
    poisoned = ragged.tensor.transpose(nb, dim)
    rows: dict[tuple[int, ...], Tensor] = {}
    for where in samples(batch_shape):
        b = tuple(where.tolist())
        rows[b] = (mask[b] & (torch.arange(size) < sizes[b])).nonzero().squeeze(1)
    largest = max((len(r) for r in rows.values()), default=0)
    for limit in (None, max_size):
        width = largest if limit is None else limit
        expected = torch.zeros((*batch_shape, width, *rest), dtype=dtype)
        for b, r in rows.items():
            expected[b][: len(r[:width])] = data[b][r[:width]]
        for got in (
            batched_bool_indexing(ragged, ragged_mask, max_size=limit),
            batched_bool_indexing(ragged, mask, max_size=limit),
        ):
            assert got.non_uniform_dim == dim
            assert torch.equal(got.tensor.transpose(nb, dim), expected)
            assert got.sample_sizes.tolist() == _nested([min(len(r), width) for r in rows.values()], batch_shape)
        assert torch.equal(batched_bool_indexing(poisoned, ragged_mask, max_size=limit).tensor, expected)
        assert torch.equal(batched_bool_indexing(poisoned, ragged_mask.mask & mask, max_size=limit).tensor, expected)

    picked = batched_bool_indexing(ragged, ragged_mask)
    written = picked.apply(torch.zeros_like if dtype == torch.bool else lambda t: -t)
    expected = poisoned.clone()
    for b, r in rows.items():
        expected[b][r] = False if dtype == torch.bool else -data[b][r]
    for m in (ragged_mask, mask):
        got = batched_bool_indexing_write(written, m, ragged)
        assert torch.equal(got.tensor.transpose(nb, dim).nan_to_num(7), expected.nan_to_num(7))
    front = written.get_non_uniform_dimension_transposed_to(nb)
    plain = batched_bool_indexing_write(front, ragged_mask, poisoned)
    assert torch.equal(plain.nan_to_num(7), expected.nan_to_num(7))


def _nested(flat: list[int], shape: Shape) -> Any:
    return torch.tensor(flat, dtype=torch.int64).reshape(shape).tolist()


def test_bool_write_with_too_few_and_too_many_entries() -> None:
    into = torch.tensor([[1, 2, 3], [4, 5, 6]])
    mask = torch.tensor([[True, True, True], [False, True, False]])
    entries = RaggedBatch(torch.tensor([[7, 99], [8, 9]]), sample_sizes=torch.tensor([1, 2]))
    assert batched_bool_indexing_write(entries, mask, into).tolist() == [[7, 2, 3], [4, 8, 6]]


@cases
@given(batch_shapes, st.integers(0, 5), st.integers(0, 5), index_dtypes, seeds)
def test_mask_from_indices(batch_shape: Shape, size: int, width: int, index_dtype: torch.dtype, seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    index = indices(batch_shape, width, -size - 2, size + 2, index_dtype, gen)
    expected = torch.zeros((*batch_shape, size), dtype=torch.bool)
    for b, _, i in pairs(index, size):
        expected[b][i] = True
    assert torch.equal(get_mask_from_indices(size, index), expected)


@cases
@given(st.integers(0, 4), st.integers(0, 5), seeds)
def test_masks_and_indices_invert_each_other(batch_size: int, size: int, seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    mask = torch.rand((batch_size, size), generator=gen) < 0.5
    index = get_indices_from_mask(mask)
    assert index.dtype == torch.int64
    assert [row.tolist() for row in index.split()] == [row.nonzero().squeeze(1).tolist() for row in mask]
    assert torch.equal(get_mask_from_indices(size, index), mask)
    sizes = torch.randint(0, size + 1, (batch_size,), generator=gen)
    ragged = RaggedBatch(mask, sample_sizes=sizes)
    assert torch.equal(get_mask_from_indices(size, get_indices_from_mask(ragged)), mask & ragged.mask)
    cut = get_indices_from_mask(mask, max_size=2)
    assert cut.max_sample_size == 2
    assert [row.tolist() for row in cut.split()] == [row.nonzero().squeeze(1)[:2].tolist() for row in mask]


def test_of_duplicates_the_last_wins_and_alone_gets_the_gradient() -> None:
    data = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    into = torch.tensor([[9.0, 8.0]], requires_grad=True)
    index = RaggedBatch(torch.tensor([[1, -1, 1]]), sample_sizes=torch.tensor([2]))
    out = batched_indexing_write(data, index, into)
    assert out.tolist() == [[9, 2]]
    out.sum().backward()
    assert data.grad is not None
    assert into.grad is not None
    assert data.grad.tolist() == [[0, 1, 0]]
    assert into.grad.tolist() == [[1, 0]]


def _grad_inputs() -> tuple[RaggedBatch, RaggedBatch, Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(0)
    index = indices((2, 2), 4, 0, 3, torch.int64, gen, unique=True)
    source = index.create_with_sample_sizes_like_self(
        torch.randint(-3, 3, index.shape, generator=gen).masked_fill(~index.mask, -1000)
    )
    data = torch.randn(2, 2, 4, 2, dtype=torch.float64, generator=gen, requires_grad=True)
    into = torch.randn(2, 2, 3, 2, dtype=torch.float64, generator=gen, requires_grad=True)
    mask = torch.rand((2, 2, 3), generator=gen) < 0.6
    return index, source, data, into, mask


@pytest.mark.parametrize(
    "name", ["access", "access_dim", "inverse", "write", "mapping", "bool_indexing", "bool_indexing_write"]
)
def test_gradcheck(name: str) -> None:
    index, source, data, into, mask = _grad_inputs()
    entries = RaggedBatch(data, sample_sizes=mask.sum(-1))
    functions: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
        "access": (lambda x: batched_indexing_access(x, source, 2.0).tensor, (into,)),
        "access_dim": (lambda x: batched_indexing_access(x.transpose(2, 3), source, 2.0, 3).tensor, (into,)),
        "inverse": (lambda x: batched_inverse_indexing_access(x, index, 3), (data,)),
        "write": (lambda x, y: batched_indexing_write(x, index, y), (data, into)),
        "mapping": (
            lambda x, y: batched_index_mapping(x, source, index, y),
            (into.detach().clone().requires_grad_(), into),
        ),
        "bool_indexing": (lambda x: batched_bool_indexing(x, mask).tensor, (into,)),
        "bool_indexing_write": (
            lambda x, y: batched_bool_indexing_write(entries.create_with_sample_sizes_like_self(x), mask, y),
            (data, into),
        ),
    }
    function, inputs = functions[name]
    assert gradcheck(function, inputs)


def test_access_accumulates_gradients_of_repeated_indices() -> None:
    data = torch.zeros(1, 3, 2, requires_grad=True)
    index = RaggedBatch(torch.tensor([[2, -1, 0, 100]]), sample_sizes=torch.tensor([3]))
    batched_indexing_access(data, index).tensor.sum().backward()
    assert data.grad is not None
    assert data.grad[0, :, 0].tolist() == [1, 0, 2]


@pytest.mark.parametrize("name", ["access", "inverse", "write", "mapping", "bool_indexing", "bool_indexing_write"])
def test_nan_in_padding_reaches_no_gradient(name: str) -> None:
    one = torch.tensor([1])
    index = RaggedBatch(torch.tensor([[0, -1000]]), sample_sizes=one)
    data = torch.tensor([[1.0, math.nan]], requires_grad=True)
    into = torch.tensor([[2.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    result = {
        "access": lambda: batched_indexing_access(data, index, 0.5).tensor,
        "inverse": lambda: batched_inverse_indexing_access(data, index, 2, 0.5),
        "write": lambda: batched_indexing_write(data, index, into),
        "mapping": lambda: batched_index_mapping(data, index, index, into),
        "bool_indexing": lambda: batched_bool_indexing(RaggedBatch(data, sample_sizes=one), mask).tensor,
        "bool_indexing_write": lambda: batched_bool_indexing_write(RaggedBatch(data, sample_sizes=one), mask, into),
    }[name]()
    assert result.isfinite().all()
    (result * result).sum().backward()
    assert data.grad is not None
    assert data.grad.tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("input_data", lambda i, d: batched_indexing_access(d[:1], i)),
        ("input_data", lambda i, d: batched_indexing_access(d[:, 0], i)),
        ("input_indices", lambda i, d: batched_indexing_access(d, i.float())),
        ("input_indices", lambda i, d: batched_indexing_access(d, i.unsqueeze_data_dim(-1))),
        ("dim_to_index_in", lambda i, d: batched_indexing_access(d, i, 0.0, 0)),
        ("dim_to_index_in", lambda i, d: batched_indexing_write(d, i, d, 2)),
        ("output_num_targets", lambda i, d: batched_inverse_indexing_access(d, i, -1)),
        ("output_indices", lambda i, d: batched_inverse_indexing_access(d, i.bool(), 3)),
        ("to_write: .*float64", lambda i, d: batched_indexing_write(d.double(), i, d)),
        ("to_write: ", lambda i, d: batched_indexing_write(d.unsqueeze(-1), i, d)),
        (
            "source_indices",
            lambda i, d: batched_index_mapping(d, RaggedBatch.FromFullTensor(d[:, :1].long()), i, d),
        ),
        ("source_data", lambda i, d: batched_index_mapping(d.long(), i, i, d)),
        ("target_data", lambda i, d: batched_index_mapping(d, i, i, d[:1])),
        ("input_mask: .*bool", lambda i, d: batched_bool_indexing(d, d)),
        ("input_mask", lambda i, d: batched_bool_indexing(d, d[:, :1] > 0)),
        ("max_size", lambda i, d: batched_bool_indexing(d, d > 0, max_size=-1)),
        ("to_write", lambda i, d: batched_bool_indexing_write(d, d > 0, d)),
        (
            "to_write: .*batch shape",
            lambda i, d: batched_bool_indexing_write(i.repeat_samples(2), d > 0, d.long()),
        ),
        ("mask_num_targets", lambda i, d: get_mask_from_indices(-1, i)),
        ("mask: ", lambda i, d: get_indices_from_mask(torch.zeros(2, 3, 4, dtype=torch.bool))),
    ],
)
def test_errors_name_the_argument(match: str, call: Callable[[RaggedBatch, Tensor], Any]) -> None:
    index = RaggedBatch(torch.zeros(2, 3, dtype=torch.int64), sample_sizes=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=match) as caught:
        call(index, torch.zeros(2, 3))
    assert isinstance(caught.value, AssertionError)
