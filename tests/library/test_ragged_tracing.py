"""Ragged batches where PyTorch traces them: no synchronisation, compilation, inference mode, trees."""

import pytest
import torch
import torch.utils._pytree as pytree
from ragged_batches import same
from torch import Tensor
from torch._subclasses import FakeTensorMode

import detops.ragged as ragged
from detops.ragged import RaggedBatch


def masked_product(tensor: Tensor, mask: Tensor | None = None) -> Tensor:
    assert mask is not None
    return tensor * mask.unsqueeze(-1)


def many_operations(
    data: Tensor, index: Tensor, sizes: Tensor, into: Tensor, mask: Tensor, rows: Tensor, image: Tensor
) -> list[Tensor]:
    """Call every operation whose result has a shape that is known beforehand."""
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
        listed.apply(masked_product),
        listed.to(torch.float64, non_blocking=True),
        first.flatten_batch_dims().get_non_uniform_dimension_transposed_to(2),
        second.reshape_batch_dims((-1, 1)).to_dtype(torch.float64),
        RaggedBatch.from_concatenated(rows, image, 3, max_size=2),
        RaggedBatch.from_concatenated(rows[:0], image[:0], 3, max_size=2),
        ragged.batched_inverse_indexing_access(data[:, :0], indices, 4, 7),
        RaggedBatch.FromFullTensor(data).mask,
        RaggedBatch.Empty(3, 1, data.device, batch_shape=2).sample_sizes,
    ]
    return [result.with_padded_set_to(0).tensor if isinstance(result, RaggedBatch) else result for result in results]


def many_arguments() -> tuple[Tensor, ...]:
    gen = torch.Generator().manual_seed(0)
    data, into = (torch.randn(2, 6, 3, generator=gen, requires_grad=True) for _ in range(2))
    index = torch.tensor([[0, 100, 5], [-1, 2, 2]])
    mask = torch.rand((2, 6), generator=gen) < 0.5
    rows = torch.randn(4, 3, generator=gen, requires_grad=True)
    return data, index, torch.tensor([1, 3]), into, mask, rows, torch.tensor([2, 0, 2, 2])


def test_no_synchronisation() -> None:
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        arguments = [mode.from_tensor(argument) for argument in many_arguments()]
        fakes = many_operations(*arguments)
        torch.stack([f.sum() for f in fakes if f.requires_grad]).sum().backward()
        with pytest.raises(Exception, match="_local_scalar_dense"):
            RaggedBatch(arguments[0], sample_sizes=arguments[2]).split()
    for fake, real in zip(fakes, many_operations(*many_arguments()), strict=True):
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


@pytest.mark.gpu
def test_no_synchronisation_on_a_gpu() -> None:
    arguments = [a.detach().cuda().requires_grad_(a.requires_grad) for a in many_arguments()]
    many_operations(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = many_operations(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = many_operations(*many_arguments())
    assert all(torch.allclose(got.cpu(), wanted) for got, wanted in zip(results, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic: bool) -> None:
    arguments = many_arguments()
    compiled = torch.compile(many_operations, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected, got = many_operations(*arguments), compiled(*arguments)
    assert same(got, expected)
    wanted, found = (
        torch.autograd.grad([r.square().sum() for r in results if r.requires_grad], [arguments[i] for i in (0, 3, 5)])
        for results in (expected, got)
    )
    assert all(torch.allclose(a, b) for a, b in zip(wanted, found, strict=True))


def test_a_batch_goes_through_a_compiled_function() -> None:
    batch = RaggedBatch(torch.ones(2, 3), sample_sizes=torch.tensor([1, 3]))
    double = torch.compile(
        lambda b: b.apply(lambda t: t * 2).with_padded_set_to(0), fullgraph=True, backend="aot_eager"
    )
    assert double(batch).tensor.tolist() == [[2, 0, 0], [2, 2, 2]]
    assert double(batch).sample_sizes.tolist() == [1, 3]


@pytest.mark.parametrize("dynamic", [False, True])
def test_padding_of_a_leaf_is_set_in_a_compiled_function(dynamic: bool) -> None:
    leaf = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], requires_grad=True)

    def squares(data: Tensor, sizes: Tensor) -> Tensor:
        batch = RaggedBatch(data, sample_sizes=sizes)
        batch.set_padded_to(7)
        return batch.tensor.square()

    compiled = torch.compile(squares, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    result = compiled(leaf, torch.tensor([1, 3]))
    assert result.tolist() == [[1, 49, 49], [16, 25, 36]]
    assert leaf.tolist() == [[1, 7, 7], [4, 5, 6]]
    result.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [[2, 0, 0], [8, 10, 12]]


def test_inference_mode_leaves_the_batch_fit_for_training() -> None:
    arguments = many_arguments()
    with torch.inference_mode():
        inferred = many_operations(*arguments)
    assert same(inferred, many_operations(*arguments))
    data = torch.ones(1, 2, requires_grad=True)
    batch = RaggedBatch(data, sample_sizes=torch.tensor([1]))
    with torch.inference_mode():
        batch.with_padded_set_to(0)
    torch.where(batch.mask, batch.tensor, 0).sum().backward()
    assert data.grad is not None
    assert data.grad.tolist() == [[1, 0]]


def test_pytree() -> None:
    batch = RaggedBatch(torch.ones(2, 3, 4), sample_sizes=torch.tensor([1, 2]), non_uniform_dim=2).unsqueeze_data_dim(1)
    leaves, spec = pytree.tree_flatten({"boxes": batch})
    again = pytree.tree_unflatten(leaves, spec)["boxes"]
    assert again.non_uniform_dim == batch.non_uniform_dim
    assert again.mask.shape == (2, 4)
    moved = pytree.tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, batch)
    assert moved.dtype == torch.float64
