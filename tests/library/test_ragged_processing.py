"""Reductions over ragged batches, masking, squeezing and packing."""

import math
from collections import namedtuple
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from ragged_batches import FLOATS, batches, cases, parts, same
from torch import Tensor

import detops.ragged as ragged
from detops.ragged import RaggedBatch


@cases
@given(batches(dtypes=[*FLOATS, torch.int64]))
def test_sum_and_average(batch: RaggedBatch) -> None:
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


def test_average_in_half_precision_does_not_overflow() -> None:
    batch = RaggedBatch.FromFullTensor(torch.full((1, 4), 60000.0, dtype=torch.float16))
    assert ragged.average_over_targets(batch).item() == 60000


@pytest.mark.parametrize("reduce", [ragged.sum_over_targets, ragged.average_over_targets])
def test_nan_in_padding_reaches_no_gradient(reduce: Callable[[RaggedBatch], Tensor]) -> None:
    data = torch.tensor([[1.0, math.nan], [math.nan, math.nan]], requires_grad=True)
    out = reduce(RaggedBatch(data, sample_sizes=torch.tensor([1, 0])))
    assert out.tolist() == [1, 0]
    out.square().sum().backward()
    assert data.grad is not None
    assert data.grad.tolist() == [[2, 0], [0, 0]]


def test_nan_where_the_mask_is_false_reaches_no_gradient() -> None:
    data = torch.tensor([[1.0, math.nan], [math.nan, math.nan]], requires_grad=True)
    ragged.apply_mask_to_tensor(data, ~data.isnan(), 3.0).square().sum().backward()
    assert data.grad is not None
    assert data.grad.tolist() == [[2, 0], [0, 0]]


def test_apply_mask_to_tensor() -> None:
    data = torch.arange(12).reshape(2, 3, 2)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    expected = data.clone()
    expected[~mask] = -1
    assert torch.equal(ragged.apply_mask_to_tensor(data, mask, -1.9), expected)
    assert torch.equal(ragged.apply_mask_to_tensor(data, mask.int(), -1.9), expected)
    assert ragged.apply_mask_to_tensor(data, torch.tensor([[True], [False]]))[1].abs().sum() == 0
    assert ragged.apply_mask_to_tensor(torch.zeros(0, 3), torch.zeros(0, dtype=torch.bool)).shape == (0, 3)


def test_squeeze_except_batch_and_sample() -> None:
    batch = RaggedBatch(torch.zeros(4, 1, 1, 1, 3, 1), sample_sizes=torch.ones(4, 1).long(), non_uniform_dim=3)
    squeezed = ragged.squeeze_except_batch_and_sample(batch)
    assert squeezed.shape == (4, 1, 1, 3)
    assert squeezed.non_uniform_dim == 2
    assert ragged.squeeze_except_batch_and_sample(torch.zeros(1, 1, 1, 2)).shape == (1, 1, 2)


def test_compact() -> None:
    Boxes = namedtuple("Boxes", ["label", "boxes", "source"])
    mask = torch.tensor([[False, True, True], [True, False, False]])
    data = Boxes(torch.arange(6).reshape(2, 3), torch.randn(2, 3, 4), "camera")
    kept = ragged.get_compact_from_named_tuple(mask, data)
    assert isinstance(kept, Boxes)
    assert kept.label.tensor.tolist() == [[1, 2], [3, 0]]
    assert torch.equal(kept.label.mask, kept.boxes.mask)
    assert same(kept.boxes.split(), [data.boxes[i][mask[i]] for i in range(2)])
    assert kept.source == "camera"
    first, *_ = ragged.get_compact_lists(mask.int(), list(data), max_size=1)
    assert first.tensor.tolist() == [[1], [3]]
    (none,) = ragged.get_compact_lists(torch.zeros(0, 2, dtype=torch.bool), [torch.zeros(0, 2)])
    assert none.shape == (0, 0)


def test_combine_data() -> None:
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
