"""`RaggedBatch.apply`: which arguments a function gets."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detops.ragged import RaggedBatch
from detops.ragged.batch import RaggedError


def test_apply_counts_required_parameters() -> None:
    batch = RaggedBatch(torch.tensor([[1.0, 4.0]]), sample_sizes=torch.tensor([2]))

    class Scale(torch.nn.Module):
        def forward(self, tensor: Tensor, mask: Tensor) -> Tensor:
            return tensor * mask

        def by_size(self, tensor: Tensor, mask: Tensor, sizes: Tensor) -> Tensor:
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


def by_name(tensor: Tensor, mask: Tensor | None = None, sample_sizes: Tensor | None = None) -> Tensor:
    assert mask is not None
    assert sample_sizes is not None
    return tensor * mask + sample_sizes.unsqueeze(-1)


def by_keyword(tensor: Tensor, *, factor: float = 10, sample_sizes: Tensor) -> Tensor:
    return tensor * factor + sample_sizes.unsqueeze(-1)


def positional_only(tensor: Tensor, mask: Tensor | None = None, /) -> Tensor:
    return tensor if mask is None else tensor * mask


class ByName(torch.nn.Module):
    def forward(self, tensor: Tensor, other: float = 2, mask: Tensor | None = None) -> Tensor:
        assert mask is not None
        return tensor * other * mask


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda t, mask=None: t * mask, [[1, 4, 0]]),
        (lambda t, m=7: t * m, [[7, 28, 63]]),
        (lambda mask: mask * 2, [[2, 8, 18]]),  # the first argument is the data, whatever its name
        (lambda t, m, mask=None: t * (m & mask), [[1, 4, 0]]),
        (by_name, [[3, 6, 2]]),
        (by_keyword, [[12, 42, 92]]),
        (positional_only, [[1, 4, 9]]),
        (ByName(), [[2, 8, 0]]),
    ],
)
def test_apply_passes_mask_and_sizes_by_name(
    function: Callable[..., Tensor], expected: list[list[int]], compiled: bool
) -> None:
    def run(data: Tensor, sizes: Tensor) -> Tensor:
        result = RaggedBatch(data, sample_sizes=sizes).apply(function)
        assert isinstance(result, RaggedBatch)
        return result.tensor

    if compiled:
        run = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert run(torch.tensor([[1.0, 4.0, 9.0]]), torch.tensor([2])).tolist() == expected


def test_apply_leaves_what_a_partial_has_bound() -> None:
    batch = RaggedBatch(torch.ones(1, 2), sample_sizes=torch.tensor([1]))
    bound = functools.partial(lambda t, mask, sample_sizes: t * mask + sample_sizes, mask=5)
    assert batch.apply(bound).tensor.tolist() == [[6, 6]]
