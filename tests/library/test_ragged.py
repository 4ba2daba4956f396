"""The ragged batch itself: sizes, padding, dimensions, other formats, and errors."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged_batches import batches, cases, leaves, parts, rests, same, seeds
from torch import Tensor

import detops
import detops.ragged as ragged
from detops.ragged import RaggedBatch


@cases
@given(batches())
def test_mask_and_sizes_say_the_same(batch: RaggedBatch) -> None:
    again = RaggedBatch(batch.tensor, mask=batch.mask, non_uniform_dim=batch.non_uniform_dim)
    assert torch.equal(again.sample_sizes, batch.sample_sizes)
    assert again.sample_sizes.dtype == torch.int64
    assert batch.mask.shape == (*batch.batch_shape, batch.max_sample_size)
    assert batch.mask is batch.mask
    assert batch.total_num_entries == int(batch.mask.sum())
    assert batch.total_num_samples_in_batch == math.prod(batch.batch_shape)


@cases
@given(batches())
def test_padding(batch: RaggedBatch) -> None:
    value = 2.75
    expected = torch.full(batch.shape, value).to(batch.dtype)
    nb, dim = batch.num_batch_dims, batch.non_uniform_dim
    expected.transpose(nb, dim)[batch.mask] = batch.tensor.transpose(nb, dim)[batch.mask]
    weights = batch.get_existence_weights()
    assert weights.shape == batch.shape
    assert torch.equal(
        weights.transpose(nb, dim) == 1,
        batch.mask.reshape(batch.mask.shape + (1,) * (batch.dim() - nb - 1)).expand(weights.transpose(nb, dim).shape),
    )
    got = batch.with_padded_set_to(value)
    assert torch.equal(got.tensor, expected)
    data = batch.tensor
    batch.set_padded_to(value)
    assert batch.tensor is data
    assert torch.equal(data, expected)


@pytest.mark.parametrize("transposed", [False, True])
def test_padding_of_a_leaf_is_set(transposed: bool) -> None:
    leaf = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], requires_grad=True)
    batch = RaggedBatch(leaf.unsqueeze(-1) if transposed else leaf, sample_sizes=torch.tensor([1, 3]))
    if transposed:
        batch = batch.get_non_uniform_dimension_transposed_to(2)
    batch.set_padded_to(7)
    assert batch.tensor.flatten().tolist() == [1, 7, 7, 4, 5, 6]
    assert leaf.tolist() == [[1, 7, 7], [4, 5, 6]]
    batch.tensor.square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [[2, 0, 0], [8, 10, 12]]
    assert leaf.is_leaf


def test_padding_of_what_is_no_leaf_is_set_in_place() -> None:
    leaf = torch.tensor([[1.0, 2.0]], requires_grad=True)
    data = leaf * 2
    RaggedBatch(data, sample_sizes=torch.tensor([1])).set_padded_to(7)
    assert data.tolist() == [[2, 7]]
    data.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [[2, 0]]
    batch = RaggedBatch(leaf, sample_sizes=torch.tensor([1]))
    with torch.no_grad():
        batch.set_padded_to(3)
    assert batch.tensor is leaf
    assert leaf.tolist() == [[1, 3]]


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        (torch.int32, -4.9, -4),
        (torch.bool, 0.5, True),
        (torch.float16, -1e9, -math.inf),
        (torch.complex64, 1.5, 1.5),
        (torch.float32, math.nan, None),
    ],
)
def test_filler_is_cast(dtype: torch.dtype, value: float, expected: float | None) -> None:
    batch = RaggedBatch(torch.zeros(1, 2, dtype=dtype), sample_sizes=torch.tensor([1]))
    got = batch.with_padded_set_to(value).tensor[0, 1].item()
    assert got == expected or (expected is None and math.isnan(got))


@cases
@given(batches(), st.data())
def test_dimensions(batch: RaggedBatch, data: st.DataObject) -> None:
    nb, dim = batch.num_batch_dims, batch.non_uniform_dim
    plain = parts(batch.with_padded_set_to(0))

    moved = batch.get_non_uniform_dimension_transposed_to(data.draw(st.integers(nb, batch.dim() - 1)))
    back = moved.get_non_uniform_dimension_transposed_to(dim).with_padded_set_to(0)
    assert same(parts(back), plain)

    place = data.draw(st.integers(nb, batch.dim()))
    wider = batch.unsqueeze_data_dim(place)
    assert wider.max_sample_size == batch.max_sample_size
    assert same(parts(batch.unsqueeze_data_dim(place - batch.dim() - 1)), parts(wider))
    assert torch.equal(wider.with_padded_set_to(0).tensor.squeeze(place), batch.with_padded_set_to(0).tensor)

    more = batch.unsqueeze_batch_dim(data.draw(st.integers(0, nb)))
    assert more.non_uniform_dim == dim + 1
    assert more.sample_sizes.shape == more.batch_shape
    place = next(i for i, n in enumerate(more.batch_shape) if n == 1)
    assert same(parts(more.squeeze_batch_dim(place).with_padded_set_to(0)), plain)

    flat = batch.flatten_batch_dims()
    assert flat.batch_shape == (batch.total_num_samples_in_batch,)
    assert same(parts(flat.with_padded_set_to(0)), plain)
    assert same(parts(flat.reshape_batch_dims(tuple(batch.batch_shape)).with_padded_set_to(0)), plain)

    repeats = data.draw(st.lists(st.integers(0, 2), min_size=nb, max_size=nb))
    repeated = batch.repeat_samples(repeats)
    wanted = [n * r for n, r in zip(batch.batch_shape, repeats, strict=True)]
    assert torch.equal(repeated.mask, batch.mask.repeat(*repeats, 1))
    assert torch.equal(repeated.sample_sizes, batch.sample_sizes.repeat(*repeats))
    assert list(repeated.batch_shape) == wanted
    assert torch.equal(batch.repeat_samples(2).sample_sizes, batch.repeat_samples(2, 0).sample_sizes)
    assert same(
        parts(batch.broadcast_batch_dims_to_shape(wanted).with_padded_set_to(0)),
        parts(repeated.with_padded_set_to(0)),
    )


def test_broadcast_batch_dims() -> None:
    one = RaggedBatch(torch.zeros(1, 2, 3), sample_sizes=torch.tensor([[1, 2]]))
    two = RaggedBatch(torch.zeros(4, 1, 3, 2), sample_sizes=torch.tensor([[0], [1], [2], [3]]))
    first, second = RaggedBatch.broadcast_batch_dims([one, two])
    assert first.batch_shape == second.batch_shape == (4, 2)
    assert first.sample_sizes.tolist() == [[1, 2]] * 4
    assert second.sample_sizes.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]


@cases
@given(batches())
def test_formats_give_the_samples_back(batch: RaggedBatch) -> None:
    batch = batch.with_padded_set_to(0)
    plain = parts(batch)
    split = batch.split()
    assert same(leaves(split), plain)
    front = batch.flatten_batch_dims().get_non_uniform_dimension_transposed_to(1)
    values, index = batch.to_concatenated()
    assert index.tolist() == [i for i, n in enumerate(batch.sample_sizes.flatten().tolist()) for _ in range(n)]
    again = RaggedBatch.from_concatenated(values, index, front.shape[0], max_size=front.max_sample_size)
    assert torch.equal(again.tensor, front.tensor)
    assert torch.equal(again.sample_sizes, front.sample_sizes.long())
    if plain:
        listed = RaggedBatch.from_list(parts(front))
        assert same(parts(listed), parts(front))
        assert listed.max_sample_size == int(batch.sample_sizes.max())
        if batch.non_uniform_dim == batch.num_batch_dims:
            combined = ragged.combine_data(split, flatten_batch_dims=False)
            assert combined.batch_shape == batch.batch_shape
            assert combined.dtype == batch.dtype
            assert same(parts(combined), plain)
    trimmed = RaggedBatch.FromOversizeTensor(batch.tensor, batch.mask, non_uniform_dim=batch.non_uniform_dim)
    assert trimmed.max_sample_size == trimmed.mask.shape[-1] == max(batch.sample_sizes.flatten().tolist(), default=0)
    assert same(parts(trimmed), plain)


@cases
@given(
    st.integers(0, 8),
    st.integers(0, 4),
    rests,
    st.integers(0, 4),
    st.sampled_from([torch.int32, torch.int64]),
    seeds,
)
def test_from_concatenated(
    num_rows: int, batch_size: int, rest: tuple[int, ...], max_size: int, index_dtype: torch.dtype, seed: int
) -> None:
    gen = torch.Generator().manual_seed(seed)
    values = torch.randn(num_rows, *rest, generator=gen)
    index = torch.randint(-2, batch_size + 2, (num_rows,), generator=gen).to(index_dtype)
    rows = [values[index == i] for i in range(batch_size)]
    largest = max((len(r) for r in rows), default=0)
    for limit in (None, max_size):
        got = RaggedBatch.from_concatenated(values, index, batch_size, max_size=limit)
        size = largest if limit is None else limit
        assert got.shape == (batch_size, size, *rest)
        assert same(got.split(), [r[:size] for r in rows])
        assert torch.equal(got.tensor, got.with_padded_set_to(0).tensor)


def test_gradients_of_formats() -> None:
    data = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    sizes = torch.tensor([1, 3])

    def there_and_back(x: Tensor) -> Tensor:
        return RaggedBatch.from_nested(RaggedBatch(x, sample_sizes=sizes).to_nested()).tensor

    assert torch.equal(there_and_back(data), RaggedBatch(data, sample_sizes=sizes).with_padded_set_to(0).tensor)
    there_and_back(data).sum().backward()
    assert data.grad is not None
    assert data.grad[..., 0].tolist() == [[1, 0, 0], [1, 1, 1]]
    index = torch.tensor([2, 0, 5, 0])
    rows = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: RaggedBatch.from_concatenated(x, index, 3, max_size=1).tensor, rows)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_oversize_data_with_a_shorter_mask(dim: int, width: int) -> None:
    data = torch.arange(16).reshape(2, 4, 2).transpose(1, dim)
    mask = torch.arange(width) < torch.tensor([[1], [2]])
    sizes = torch.tensor([1, 2])
    for given_sizes in (None, sizes):
        batch = RaggedBatch.FromOversizeTensor(data, mask, given_sizes, dim)
        assert torch.equal(batch.tensor, data.narrow(dim, 0, 2))
        assert torch.equal(batch.mask, mask[:, :2])
        assert torch.equal(batch.sample_sizes, sizes)
        assert batch.non_uniform_dim == dim


def test_from_nested_with_holes_and_limit() -> None:
    values = torch.arange(6)
    nested = torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 3, 6]), lengths=torch.tensor([2, 1]))
    assert RaggedBatch.from_nested(nested).tensor.tolist() == [[0, 1], [3, 0]]
    assert RaggedBatch.from_nested(nested, max_size=3).tensor.tolist() == [[0, 1, 0], [3, 0, 0]]


def test_length() -> None:
    batch = RaggedBatch(torch.zeros(2, 3, 4), sample_sizes=torch.zeros(2, 3, dtype=torch.int64))
    assert len(batch) == 2
    assert len(batch.flatten_batch_dims()) == 6


def test_empty_and_full() -> None:
    assert RaggedBatch.Empty(3, 2, "cpu").shape == (0, 0, 0)
    assert RaggedBatch.Empty(4, 2, "cpu", num_batch_dims=2).batch_shape == (0, 0)
    assert RaggedBatch.Empty(4, 3, "cpu", batch_shape=(2, 3)).shape == (2, 3, 0, 0)
    assert RaggedBatch.Empty(2, 1, "cpu", batch_shape=5).sample_sizes.tolist() == [0] * 5
    full = RaggedBatch.FromFullTensor(torch.zeros(2, 4, 3), non_uniform_dim=2)
    assert full.sample_sizes.tolist() == [3, 3]
    assert full.mask.all()


def _batch(sizes: tuple[int, int] = (1, 2)) -> RaggedBatch:
    return RaggedBatch(torch.zeros(2, 3), sample_sizes=torch.tensor(sizes))


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("mask, sample_sizes", lambda: RaggedBatch(torch.zeros(2, 3))),
        ("tensor: ", lambda: RaggedBatch(torch.zeros(2), sample_sizes=torch.ones(2).long())),
        ("sample_sizes: .*integer", lambda: RaggedBatch(torch.zeros(2, 3), sample_sizes=torch.ones(2))),
        (
            "sample_sizes: .*batch shape",
            lambda: RaggedBatch(torch.zeros(2, 3), sample_sizes=torch.ones(3).long()),
        ),
        ("mask: ", lambda: RaggedBatch(torch.zeros(2, 3), mask=torch.ones(2, 4).bool())),
        (
            "sample_sizes: .*device",
            lambda: RaggedBatch(torch.zeros(2, 3), sample_sizes=torch.ones(2, device="meta").long()),
        ),
        (
            "non_uniform_dim",
            lambda: RaggedBatch(torch.zeros(2, 3), sample_sizes=torch.ones(2).long(), non_uniform_dim=2),
        ),
        ("filler value", lambda: _batch().int().set_padded_to(math.nan)),
        ("num_batch_dims, batch_shape", lambda: RaggedBatch.Empty(3, 1, "cpu", 1, (2,))),
        ("num_dims", lambda: RaggedBatch.Empty(2, 1, "cpu", batch_shape=(2, 3))),
        ("non_uniform_dim", lambda: RaggedBatch.FromFullTensor(torch.zeros(2, 3), 2)),
        ("tensors: ", lambda: RaggedBatch.from_list([])),
        (r"tensors\[1\]", lambda: RaggedBatch.from_list([torch.zeros(1, 2), torch.zeros(1, 3)])),
        (r"tensors\[1\]: .*int64", lambda: RaggedBatch.from_list([torch.zeros(1), torch.zeros(1).long()])),
        (r"tensors\[0\]", lambda: RaggedBatch.from_list([torch.zeros(())])),
        ("batch_index", lambda: RaggedBatch.from_concatenated(torch.zeros(3), torch.zeros(2).long(), 1)),
        ("batch_index", lambda: RaggedBatch.from_concatenated(torch.zeros(3), torch.zeros(3), 1)),
        (
            "max_size",
            lambda: RaggedBatch.from_concatenated(torch.zeros(3), torch.zeros(3).long(), 1, max_size=-1),
        ),
        ("nested", lambda: RaggedBatch.from_nested(torch.zeros(2, 3))),
        ("batch_shape", lambda: _batch().unsqueeze_batch_dim(0).to_nested()),
        ("dim: ", lambda: _batch().get_non_uniform_dimension_transposed_to(0)),
        ("dim: ", lambda: _batch().unsqueeze_data_dim(0)),
        ("dim: ", lambda: _batch().unsqueeze_batch_dim(2)),
        ("batch_dim: ", lambda: _batch().squeeze_batch_dim(0)),
        ("batch_dim: ", lambda: _batch().repeat_samples(2, 1)),
        ("batch_dim: ", lambda: _batch().repeat_samples([2], 0)),
        ("num_repeats", lambda: _batch().repeat_samples([2, 2])),
        ("num_repeats", lambda: _batch().repeat_samples(-1)),
        ("new_batch_shape", lambda: _batch().reshape_batch_dims((3, -1))),
        ("new_batch_shape", lambda: _batch().broadcast_batch_dims_to_shape([3])),
        ("data: ", lambda: RaggedBatch.broadcast_batch_dims([_batch(), _batch().unsqueeze_batch_dim(0)])),
        ("tensor: ", lambda: _batch().set_tensor(torch.zeros(2, 4))),
        ("tensor: ", lambda: _batch().create_with_sample_sizes_like_self(torch.zeros(1, 3))),
        ("non_uniform_dim", lambda: _batch().create_with_sample_sizes_like_self(torch.zeros(2, 3), -2)),
        ("mask: ", lambda: ragged.apply_mask_to_tensor(torch.zeros(2, 3), torch.ones(3).bool())),
        (r"data\[0\]", lambda: ragged.get_compact_lists(torch.ones(2, 3).bool(), [torch.zeros(2)])),
        ("data_list: .*empty", lambda: ragged.combine_data([])),
        (r"data_list\[1\]: .*str", lambda: ragged.combine_data([torch.zeros(1), "no"])),
        (r"data_list\[1\]", lambda: ragged.combine_data([[torch.zeros(1)], []], flatten_batch_dims=False)),
        ("other_with_same_sample_sizes", lambda: ragged.combine_data([torch.zeros(1)], _batch())),
    ],
)
def test_errors_name_the_argument(match: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        call()
    assert isinstance(caught.value, AssertionError)


def test_public_names() -> None:
    assert sorted(ragged.__all__) == sorted(
        [
            "RaggedBatch",
            "__version__",
            "batched_indexing_access",
            "batched_inverse_indexing_access",
            "batched_indexing_write",
            "batched_index_mapping",
            "batched_bool_indexing",
            "batched_bool_indexing_write",
            "average_over_targets",
            "sum_over_targets",
            "apply_mask_to_tensor",
            "squeeze_except_batch_and_sample",
            "get_mask_from_indices",
            "get_indices_from_mask",
            "get_compact_from_named_tuple",
            "get_compact_lists",
            "combine_data",
        ]
    )
    assert all(hasattr(ragged, name) for name in ragged.__all__)
    assert ragged.__version__ == detops.__version__
