"""The ragged batch itself, reductions and packing; no synchronisation, compilation, public names."""

import functools
import math
from collections import namedtuple

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

import detops.ragged as ragged
from detops.ragged import RaggedBatch
from detops.ragged.batch import RaggedError

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

cases = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**16)
rests = st.lists(st.integers(1, 3), max_size=2).map(tuple)


@st.composite
def batches(draw, dtypes=(torch.float32, torch.int64, torch.bool), max_batch_dims=3):
    """A random batch with NaN (or a large number) in the padding, its sizes known in one form only."""
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


def parts(batch):
    """The samples of a batch as a flat list, by a plain loop."""
    dim = batch.non_uniform_dim - batch.num_batch_dims
    flat = batch.tensor.reshape(-1, *batch.shape[batch.num_batch_dims :]) if batch.tensor.numel() else None
    if flat is None:
        shape = batch.shape[batch.num_batch_dims :]
        flat = batch.tensor.new_zeros(batch.total_num_samples_in_batch, *shape)
    return [s.narrow(dim, 0, int(n)) for s, n in zip(flat, batch.sample_sizes.flatten(), strict=True)]


def leaves(nested):
    return [leaf for part in nested for leaf in (leaves(part) if isinstance(part, list) else [part])]


def same(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@cases
@given(batches())
def test_mask_and_sizes_say_the_same(batch):
    again = RaggedBatch(batch.tensor, mask=batch.mask, non_uniform_dim=batch.non_uniform_dim)
    assert torch.equal(again.sample_sizes, batch.sample_sizes)
    assert again.sample_sizes.dtype == torch.int64
    assert batch.mask.shape == (*batch.batch_shape, batch.max_sample_size)
    assert batch.mask is batch.mask
    assert batch.total_num_entries == int(batch.mask.sum())
    assert batch.total_num_samples_in_batch == math.prod(batch.batch_shape)


@cases
@given(batches())
def test_padding(batch):
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
def test_filler_is_cast(dtype, value, expected):
    batch = RaggedBatch(torch.zeros(1, 2, dtype=dtype), sample_sizes=torch.tensor([1]))
    got = batch.with_padded_set_to(value).tensor[0, 1].item()
    assert got == expected or (expected is None and math.isnan(got))


@cases
@given(batches(), st.data())
def test_dimensions(batch, data):
    nb, dim = batch.num_batch_dims, batch.non_uniform_dim
    plain = parts(batch.with_padded_set_to(0))

    moved = batch.get_non_uniform_dimension_transposed_to(data.draw(st.integers(nb, batch.dim() - 1)))
    back = moved.get_non_uniform_dimension_transposed_to(dim).with_padded_set_to(0)
    assert same(parts(back), plain)

    place = data.draw(st.integers(nb, batch.dim()))
    wider = batch.unsqueeze_data_dim(place)
    assert wider.max_sample_size == batch.max_sample_size
    assert (
        same(parts(batch.unsqueeze_data_dim(place - batch.dim() - 1).detach()), parts(wider))
        or batch.dtype.is_floating_point
    )
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


def test_broadcast_batch_dims():
    one = RaggedBatch(torch.zeros(1, 2, 3), sample_sizes=torch.tensor([[1, 2]]))
    two = RaggedBatch(torch.zeros(4, 1, 3, 2), sample_sizes=torch.tensor([[0], [1], [2], [3]]))
    first, second = RaggedBatch.broadcast_batch_dims([one, two])
    assert first.batch_shape == second.batch_shape == (4, 2)
    assert first.sample_sizes.tolist() == [[1, 2]] * 4
    assert second.sample_sizes.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]


@cases
@given(batches())
def test_formats_give_the_samples_back(batch):
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
def test_from_concatenated(num_rows, batch_size, rest, max_size, index_dtype, seed):
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


@cases
@given(batches(dtypes=[*FLOATS, torch.int64]))
def test_sum_and_average(batch):
    dim = batch.non_uniform_dim - batch.num_batch_dims
    total, mean = ragged.sum_over_targets(batch), ragged.average_over_targets(batch)
    shape = batch.shape[: batch.non_uniform_dim] + batch.shape[batch.non_uniform_dim + 1 :]
    assert total.shape == mean.shape == shape
    assert total.dtype == batch.dtype
    assert mean.dtype == (batch.dtype if batch.dtype.is_floating_point else torch.float32)
    if batch.total_num_samples_in_batch == 0:
        return
    flat_total, flat_mean = (t.reshape(-1, *shape[batch.num_batch_dims :]) for t in (total, mean))
    for i, sample in enumerate(parts(batch)):
        exact = sample.double().sum(dim)
        assert torch.equal(flat_total[i].double(), exact)
        size = sample.shape[dim]
        expected = (exact / size if size else exact).float().to(mean.dtype)
        assert torch.allclose(flat_mean[i], expected, rtol=1e-3 if mean.dtype in FLOATS[:2] else 1e-6)
    empty = batch.sample_sizes == 0
    if batch.dtype.is_floating_point:
        assert ragged.average_over_targets(batch, nans_to_zero=False)[empty].isnan().all()


def test_average_in_half_precision_does_not_overflow():
    batch = RaggedBatch.FromFullTensor(torch.full((1, 4), 60000.0, dtype=torch.float16))
    assert ragged.average_over_targets(batch).item() == 60000


@pytest.mark.parametrize("reduce", [ragged.sum_over_targets, ragged.average_over_targets])
def test_nan_in_padding_reaches_no_gradient(reduce):
    data = torch.tensor([[1.0, math.nan], [math.nan, math.nan]], requires_grad=True)
    out = reduce(RaggedBatch(data, sample_sizes=torch.tensor([1, 0])))
    assert out.tolist() == [1, 0]
    out.square().sum().backward()
    assert data.grad.tolist() == [[2, 0], [0, 0]]
    for weight in (ragged.apply_mask_to_tensor(data, ~data.isnan(), 3.0),):
        data.grad = None
        weight.square().sum().backward()
        assert data.grad.tolist() == [[2, 0], [0, 0]]


def test_gradients_of_formats():
    data = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    sizes = torch.tensor([1, 3])

    def there_and_back(x):
        return RaggedBatch.from_nested(RaggedBatch(x, sample_sizes=sizes).to_nested()).tensor

    assert torch.equal(there_and_back(data), RaggedBatch(data, sample_sizes=sizes).with_padded_set_to(0).tensor)
    there_and_back(data).sum().backward()
    assert data.grad[..., 0].tolist() == [[1, 0, 0], [1, 1, 1]]
    index = torch.tensor([2, 0, 5, 0])
    rows = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: RaggedBatch.from_concatenated(x, index, 3, max_size=1).tensor, rows)


def test_from_nested_with_holes_and_limit():
    values = torch.arange(6)
    nested = torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 3, 6]), lengths=torch.tensor([2, 1]))
    assert RaggedBatch.from_nested(nested).tensor.tolist() == [[0, 1], [3, 0]]
    assert RaggedBatch.from_nested(nested, max_size=3).tensor.tolist() == [[0, 1, 0], [3, 0, 0]]


def test_apply_counts_required_parameters():
    batch = RaggedBatch(torch.tensor([[1.0, 4.0]]), sample_sizes=torch.tensor([2]))

    class Scale(torch.nn.Module):
        def forward(self, tensor, mask):
            return tensor * mask

        def by_size(self, tensor, mask, sizes):
            return tensor * sizes

    assert batch.apply(torch.sqrt).tensor.tolist() == [[1, 2]]
    assert batch.apply(functools.partial(torch.clamp, min=2)).tensor.tolist() == [[2, 4]]
    assert batch.apply(lambda t, factor=3: t * factor).tensor.tolist() == [[3, 12]]
    assert batch.apply(Scale()).tensor.tolist() == [[1, 4]]
    assert batch.apply(Scale().by_size).tensor.tolist() == [[2, 8]]
    first, second = batch.apply(lambda t, m, n: (t + n.unsqueeze(-1), m.float()))
    assert first.tensor.tolist() == [[3, 6]]
    assert second.tensor.tolist() == [[1, 1]]
    with pytest.raises(RaggedError, match="proc_step"):
        batch.apply(lambda a, b, c, d: a)


def test_conversions():
    batch = RaggedBatch(torch.ones(2, 3), sample_sizes=torch.tensor([1, 3]))
    names = ["int", "long", "bool", "half", "bfloat16", "float", "double", "cfloat", "cdouble"]
    for name in names:
        assert getattr(batch, name)().dtype == getattr(torch.ones(1), name)().dtype
    assert batch.to(torch.float64).dtype == batch.to_dtype(torch.float64).dtype == torch.float64
    assert batch.cpu().device == batch.to_device("cpu").device == torch.device("cpu")
    meta = batch.to("meta")
    assert meta.device == meta.sample_sizes.device == meta.mask.device == torch.device("meta")
    batch.requires_grad = True
    assert batch.requires_grad
    assert not batch.detach().requires_grad
    again = batch.apply(lambda t: t * 2)
    again.retain_grad()
    assert again.retains_grad
    clone = batch.detach().as_self_with_cloned_data()
    clone[0, 0] = 7
    assert clone[0, 0] == 7
    assert batch[0, 0] == 1
    assert batch.size(1) == 3
    assert batch.size() == batch.shape
    for word in ("RaggedBatch", "tensor=", "mask=", "sample_sizes=", "non_uniform_dim=", "batch_shape="):
        assert word in repr(batch)
    clone.set_tensor(torch.zeros(2, 3, 5))
    assert clone.shape == (2, 3, 5)


def test_empty_and_full():
    assert RaggedBatch.Empty(3, 2, "cpu").shape == (0, 0, 0)
    assert RaggedBatch.Empty(4, 2, "cpu", num_batch_dims=2).batch_shape == (0, 0)
    assert RaggedBatch.Empty(4, 3, "cpu", batch_shape=(2, 3)).shape == (2, 3, 0, 0)
    assert RaggedBatch.Empty(2, 1, "cpu", batch_shape=5).sample_sizes.tolist() == [0] * 5
    full = RaggedBatch.FromFullTensor(torch.zeros(2, 4, 3), non_uniform_dim=2)
    assert full.sample_sizes.tolist() == [3, 3]
    assert full.mask.all()


def test_apply_mask_to_tensor():
    data = torch.arange(12).reshape(2, 3, 2)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    expected = data.clone()
    expected[~mask] = -1
    assert torch.equal(ragged.apply_mask_to_tensor(data, mask, -1.9), expected)
    assert torch.equal(ragged.apply_mask_to_tensor(data, mask.int(), -1.9), expected)
    assert ragged.apply_mask_to_tensor(data, torch.tensor([[True], [False]]))[1].abs().sum() == 0
    assert ragged.apply_mask_to_tensor(torch.zeros(0, 3), torch.zeros(0, dtype=torch.bool)).shape == (0, 3)


def test_squeeze_except_batch_and_sample():
    batch = RaggedBatch(torch.zeros(4, 1, 1, 1, 3, 1), sample_sizes=torch.ones(4, 1).long(), non_uniform_dim=3)
    squeezed = ragged.squeeze_except_batch_and_sample(batch)
    assert squeezed.shape == (4, 1, 1, 3)
    assert squeezed.non_uniform_dim == 2
    assert ragged.squeeze_except_batch_and_sample(torch.zeros(1, 1, 1, 2)).shape == (1, 1, 2)


def test_compact():
    Boxes = namedtuple("Boxes", ["label", "boxes", "source"])
    mask = torch.tensor([[False, True, True], [True, False, False]])
    data = Boxes(torch.arange(6).reshape(2, 3), torch.randn(2, 3, 4), "camera")
    kept = ragged.get_compact_from_named_tuple(mask, data)
    assert isinstance(kept, Boxes)
    assert kept.label.tensor.tolist() == [[1, 2], [3, 0]]
    assert kept.label.mask is kept.boxes.mask or torch.equal(kept.label.mask, kept.boxes.mask)
    assert same(kept.boxes.split(), [data.boxes[i][mask[i]] for i in range(2)])
    assert kept.source == "camera"
    first, *_ = ragged.get_compact_lists(mask.int(), list(data), max_size=1)
    assert first.tensor.tolist() == [[1], [3]]
    assert ragged.get_compact_lists(torch.zeros(0, 2, dtype=torch.bool), [torch.zeros(0, 2)])[0].shape == (
        0,
        0,
    )


def test_combine_data():
    one, two, none = torch.ones(1, 4), torch.ones(2, 4), torch.empty(0)
    flat = ragged.combine_data([[one, [two]], none])
    assert flat.shape == (3, 2, 4)
    assert flat.sample_sizes.tolist() == [1, 2, 0]
    nested = ragged.combine_data([[none, one], (two, none)], flatten_batch_dims=False)
    assert nested.batch_shape == (2, 2)
    assert nested.sample_sizes.tolist() == [[0, 1], [2, 0]]
    shared = ragged.combine_data([two[:, 0], one[:, 0]], RaggedBatch.from_list([two, one]))
    assert shared.shape == (2, 2)
    for flatten in (True, False):
        empty = ragged.combine_data([torch.zeros(0, 4).long(), none.long()], flatten_batch_dims=flatten)
        assert (empty.shape, empty.dtype) == ((2, 0, 4), torch.int64)
    assert ragged.combine_data([[], []], flatten_batch_dims=False).batch_shape == (2, 0)
    assert ragged.combine_data([one, two.double()]).dtype == torch.float32


def _batch(sizes=(1, 2)):
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
def test_errors_name_the_argument(match, call):
    with pytest.raises(ValueError, match=match) as caught:
        call()
    assert isinstance(caught.value, AssertionError)


def test_public_names():
    assert sorted(ragged.__all__) == sorted(
        [
            "RaggedBatch",
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


def many_operations(data, index, sizes, into, mask, rows, image):
    """Everything whose result has a shape known beforehand."""
    indices = RaggedBatch(index, sample_sizes=sizes)
    read = ragged.batched_indexing_access(data, indices, 1.5)
    read.set_padded_to(0.5)
    entries = ragged.batched_bool_indexing(data, mask, max_size=3)
    masked = RaggedBatch(data, mask=mask.sort(-1, descending=True).values)
    listed = RaggedBatch.from_list([rows, rows[:1]])
    wide = read.unsqueeze_batch_dim(1).unsqueeze_data_dim(-1)
    first, second = RaggedBatch.broadcast_batch_dims([wide, wide.repeat_samples([1, 2])])
    results = [
        read,
        entries,
        ragged.batched_indexing_write(read, indices, into),
        ragged.batched_inverse_indexing_access(read, indices, 7),
        ragged.batched_index_mapping(data, indices, indices, into),
        ragged.batched_bool_indexing_write(entries, mask, into),
        ragged.get_mask_from_indices(6, indices),
        ragged.get_indices_from_mask(mask, max_size=2),
        *ragged.get_compact_lists(mask, [data, into], max_size=2),
        ragged.sum_over_targets(read),
        ragged.average_over_targets(masked),
        ragged.apply_mask_to_tensor(data, mask),
        ragged.squeeze_except_batch_and_sample(wide),
        ragged.combine_data([[rows], [rows[:1]]], flatten_batch_dims=False),
        masked.sample_sizes,
        masked.with_padded_set_to(2).get_existence_weights(),
        listed.apply(torch.sin),
        listed.apply(lambda tensor, mask, sizes: tensor * 2),
        first.flatten_batch_dims().get_non_uniform_dimension_transposed_to(2),
        second.reshape_batch_dims((-1, 1)).to_dtype(torch.float64),
        RaggedBatch.from_concatenated(rows, image, 3, max_size=2),
        RaggedBatch.FromFullTensor(data).mask,
        RaggedBatch.Empty(3, 1, data.device, batch_shape=2).sample_sizes,
    ]
    return [result.with_padded_set_to(0).tensor if isinstance(result, RaggedBatch) else result for result in results]


def many_arguments():
    gen = torch.Generator().manual_seed(0)
    data, into = (torch.randn(2, 6, 3, generator=gen, requires_grad=True) for _ in range(2))
    index = torch.tensor([[0, 100, 5], [-1, 2, 2]])
    mask = torch.rand((2, 6), generator=gen) < 0.5
    rows = torch.randn(4, 3, generator=gen, requires_grad=True)
    return data, index, torch.tensor([1, 3]), into, mask, rows, torch.tensor([2, 0, 2, 2])


def test_no_synchronisation():
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        arguments = [mode.from_tensor(argument) for argument in many_arguments()]
        fakes = many_operations(*arguments)
        sum(f.sum() for f in fakes if f.requires_grad).backward()
        with pytest.raises(Exception, match="_local_scalar_dense"):
            RaggedBatch(arguments[0], sample_sizes=arguments[2]).split()
    for fake, real in zip(fakes, many_operations(*many_arguments()), strict=True):
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


@pytest.mark.gpu
def test_no_synchronisation_on_a_gpu():
    arguments = [a.detach().cuda().requires_grad_(a.requires_grad) for a in many_arguments()]
    many_operations(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = many_operations(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = many_operations(*many_arguments())
    assert all(torch.allclose(got.cpu(), wanted) for got, wanted in zip(results, expected, strict=True))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic):
    arguments = many_arguments()
    compiled = torch.compile(many_operations, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected, got = many_operations(*arguments), compiled(*arguments)
    assert same(got, expected)
    wanted, found = (
        torch.autograd.grad(
            sum(r.square().sum() for r in results if r.requires_grad), [arguments[i] for i in (0, 3, 5)]
        )
        for results in (expected, got)
    )
    assert all(torch.allclose(a, b) for a, b in zip(wanted, found, strict=True))


def test_a_batch_goes_through_a_compiled_function():
    batch = RaggedBatch(torch.ones(2, 3), sample_sizes=torch.tensor([1, 3]))
    double = torch.compile(
        lambda b: b.apply(lambda t: t * 2).with_padded_set_to(0), fullgraph=True, backend="aot_eager"
    )
    assert double(batch).tensor.tolist() == [[2, 0, 0], [2, 2, 2]]
    assert double(batch).sample_sizes.tolist() == [1, 3]


def test_inference_mode_leaves_the_batch_fit_for_training():
    arguments = many_arguments()
    with torch.inference_mode():
        inferred = many_operations(*arguments)
    assert same(inferred, many_operations(*arguments))
    batch = RaggedBatch(torch.ones(1, 2, requires_grad=True), sample_sizes=torch.tensor([1]))
    with torch.inference_mode():
        batch.with_padded_set_to(0)
    torch.where(batch.mask, batch.tensor, 0).sum().backward()
    assert batch.tensor.grad.tolist() == [[1, 0]]


def test_pytree():
    batch = RaggedBatch(torch.ones(2, 3, 4), sample_sizes=torch.tensor([1, 2]), non_uniform_dim=2).unsqueeze_data_dim(1)
    leaves, spec = pytree.tree_flatten({"boxes": batch})
    again = pytree.tree_unflatten(leaves, spec)["boxes"]
    assert again.non_uniform_dim == batch.non_uniform_dim
    assert again.mask.shape == (2, 4)
    moved = pytree.tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, batch)
    assert moved.dtype == torch.float64
