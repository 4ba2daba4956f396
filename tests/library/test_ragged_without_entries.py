"""Ragged operations on data without an entry: the result stays connected to the data, whose gradient is empty."""

from collections import namedtuple
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import detops.ragged as ragged
from detops.ragged import RaggedBatch

Named = namedtuple("Named", ["data"])
NO_SIZES = torch.zeros(2, dtype=torch.int64)
NO_MASK = torch.zeros(2, 0, dtype=torch.bool)


def no_indices(width: int = 0) -> RaggedBatch:
    """Two samples without a valid index, padded to `width`."""
    return RaggedBatch(torch.full((2, width), 100), sample_sizes=NO_SIZES)


def batch_of(data: Tensor) -> RaggedBatch:
    return RaggedBatch(data, sample_sizes=NO_SIZES)


def nested_of(data: Tensor) -> Tensor:
    return torch.nested.nested_tensor_from_jagged(data.flatten(0, 1), torch.tensor([0, 0, 0]))


# Each takes data (2, 0, 4).
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "batched_indexing_access": lambda x: ragged.batched_indexing_access(x, no_indices(3)).tensor,
    "batched_indexing_access of a batch": lambda x: ragged.batched_indexing_access(batch_of(x), no_indices(3)).tensor,
    "batched_inverse_indexing_access": lambda x: ragged.batched_inverse_indexing_access(x, no_indices(), 3),
    "batched_inverse_indexing_access, padded": lambda x: ragged.batched_inverse_indexing_access(x, no_indices(5), 3),
    "batched_indexing_write": lambda x: ragged.batched_indexing_write(x, no_indices(), torch.ones(2, 3, 4)),
    "batched_indexing_write into it": lambda x: ragged.batched_indexing_write(torch.ones(2, 3, 4), no_indices(), x),
    "batched_index_mapping": lambda x: ragged.batched_index_mapping(x, no_indices(), no_indices(), torch.ones(2, 3, 4)),
    "batched_index_mapping into it": lambda x: ragged.batched_index_mapping(
        torch.ones(2, 3, 4), no_indices(), no_indices(), x
    ),
    "batched_bool_indexing": lambda x: ragged.batched_bool_indexing(x, NO_MASK, max_size=3).tensor,
    "batched_bool_indexing_write": lambda x: ragged.batched_bool_indexing_write(
        batch_of(x), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3, 4)
    ),
    "get_compact_lists": lambda x: ragged.get_compact_lists(NO_MASK, [x], max_size=3)[0].tensor,
    "get_compact_from_named_tuple": lambda x: (
        ragged.get_compact_from_named_tuple(NO_MASK, Named(x), max_size=3).data.tensor
    ),
    "sum_over_targets": lambda x: ragged.sum_over_targets(batch_of(x)),
    "average_over_targets": lambda x: ragged.average_over_targets(batch_of(x)),
    "apply_mask_to_tensor": lambda x: ragged.apply_mask_to_tensor(x, NO_MASK),
    "squeeze_except_batch_and_sample": lambda x: ragged.squeeze_except_batch_and_sample(batch_of(x)).tensor,
    "combine_data": lambda x: ragged.combine_data([x[0], torch.ones(2, 4), x[1]]).tensor,
    "combine_data, another shape": lambda x: ragged.combine_data([x.flatten(), torch.ones(2, 4)]).tensor,
    "combine_data, nothing else": lambda x: ragged.combine_data([x[0], x[1].flatten()]).tensor,
    "from_list": lambda x: RaggedBatch.from_list([x[0], torch.ones(2, 4), x[1]]).tensor,
    "from_list, another shape": lambda x: RaggedBatch.from_list([x.flatten(), torch.ones(2, 4)]).tensor,
    "from_concatenated": lambda x: (
        RaggedBatch.from_concatenated(x.flatten(0, 1), torch.zeros(0, dtype=torch.int64), 2, max_size=3).tensor
    ),
    "from_nested": lambda x: RaggedBatch.from_nested(nested_of(x), max_size=3).tensor,
    "FromOversizeTensor": lambda x: RaggedBatch.FromOversizeTensor(x, sample_sizes=NO_SIZES).tensor,
    "with_padded_set_to": lambda x: batch_of(x).with_padded_set_to(1).tensor,
    "repeat_samples": lambda x: batch_of(x).repeat_samples(2).tensor,
    "reshape_batch_dims": lambda x: batch_of(x).reshape_batch_dims((1, 2)).tensor,
    "to_concatenated": lambda x: batch_of(x).to_concatenated()[0],
    "to_nested": lambda x: batch_of(x).to_nested().values(),
    "split": lambda x: torch.cat(batch_of(x).split()),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradient_is_empty(name: str) -> None:
    data = torch.zeros(2, 0, 4, requires_grad=True)
    result = OPERATIONS[name](data)
    assert result.dtype == torch.float32
    (3 * result).sum().backward()
    assert data.grad is not None
    assert data.grad.shape == (2, 0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.complex64, torch.int32, torch.bool])
def test_results_are_filled(dtype: torch.dtype) -> None:
    data = torch.zeros(2, 0, 4, dtype=dtype)
    read = ragged.batched_indexing_access(data, no_indices(3), 1.0)
    assert torch.equal(read.tensor, torch.ones(2, 3, 4, dtype=dtype))
    rows = RaggedBatch.from_concatenated(data[0], torch.zeros(0, dtype=torch.int64), 2, max_size=3)
    assert torch.equal(rows.tensor, torch.zeros(2, 3, 4, dtype=dtype))
    rows.set_padded_to(1)  # in memory of its own
    assert torch.equal(rows.tensor, read.tensor)


@pytest.mark.parametrize("dynamic", [False, True])
def test_list_compiles_whole(dynamic: bool) -> None:
    samples = [torch.zeros(0), torch.zeros(0, 4, requires_grad=True), torch.zeros(3, 0)]
    compiled = torch.compile(
        lambda *samples: RaggedBatch.from_list(samples).tensor, fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    assert compiled(*samples).shape == (3, 0, 4)
    assert compiled(*samples, torch.ones(2, 4)).shape == (4, 2, 4)
