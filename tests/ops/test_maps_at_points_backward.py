"""The op maps_at_points_backward: all forms hand gradients to the cells that values were read from."""

from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from op import (
    DTYPES,
    TOLERANCES,
    Form,
    Op,
    assert_compiles_whole,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)
from point_scenes import point_scene
from torch import Tensor

from detops import ops

op = Op("maps_at_points_backward")


def arguments(seed: int, border: bool = True, dtype: torch.dtype = torch.float32, **scene: Any) -> tuple[Any, ...]:
    maps, index, points = point_scene(seed, **scene)
    gradient = torch.randn(points.shape[:3], generator=torch.Generator().manual_seed(seed)).to(dtype)
    return gradient, index, points, *maps.shape[1:], border


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @settings(max_examples=25 if form.interpreted else 80, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        maps=st.sampled_from([0, 1, 4]),
        rows=st.sampled_from([0, 1, 5]),
        points=st.sampled_from([0, 1, 9, 70]),
        size=st.tuples(st.integers(0, 6), st.sampled_from([0, 1, 7, 35])),
        dtype=st.sampled_from(DTYPES),
        indexed=st.booleans(),
        shared=st.booleans(),
        odd=st.booleans(),
        border=st.booleans(),
    )
    def check(**options: Any) -> None:
        args = arguments(**options)
        found, expected = form(*args), op.reference(*args)
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, **TOLERANCES[form.computes(options["dtype"])]._asdict())

    check()


@op.for_each_form
@pytest.mark.parametrize("border", [False, True])
def test_is_the_gradient_of_reading(form: Form, border: bool) -> None:
    """Reading is linear: the product of maps and their gradient is that of values and theirs."""
    maps, index, points = point_scene(4, rows=6, points=40)
    gradient = torch.randn(points.shape[:3], generator=torch.Generator().manual_seed(1))
    found = form(gradient, index, points, *maps.shape[1:], border)
    read = ops.maps_at_points(maps=maps, index=index, points=points, nearest=False, border=border)
    assert (found * maps).sum().item() == pytest.approx((gradient * read).sum().item(), rel=1e-4)


def test_maps_that_no_row_has_are_zero() -> None:
    gradient, points = torch.ones(1, 2, 3), torch.rand(1, 2, 3, 2)
    found = op(gradient, torch.tensor([[2, -1]]), points, 4, 5, 6, True)
    assert found[0, 2].sum().item() == pytest.approx(3)
    assert not found[0, [0, 1, 3]].any()


def test_nan_reaches_no_cell_of_no_weight() -> None:
    points = torch.tensor([[0.5, 0.5], [0.1, 0.9]])[None, None]  # the centre of a cell, and of one in a corner
    found = op(torch.tensor([[[torch.nan, 1.0]]]), torch.tensor([[0]]), points, 1, 5, 5, True)[0, 0]
    assert found.isnan().sum() == 1
    assert found[2, 2].isnan()
    assert found[4, 0] == 1


def test_views_are_read_where_they_are() -> None:
    gradient, index, points, *rest = arguments(5)
    spaced = torch.stack([gradient, gradient], -1)[..., 0]
    assert not spaced.is_contiguous()
    assert torch.equal(op(spaced, index, points.double(), *rest), op(gradient, index, points, *rest))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(7, rows=9, points=500, maps=3)
    assert_same_bits_for_any_threads(lambda: op(*args))


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for dtype in DTYPES:
        args = arguments(8, dtype=dtype, points=300, size=(20, 70), odd=True)
        found = op(*moved(args, "cuda")).cpu()
        torch.testing.assert_close(found, op.reference(*args), **TOLERANCES[dtype]._asdict())


@for_each_device
@pytest.mark.parametrize("indexed", [False, True])
def test_opcheck(device: str, indexed: bool) -> None:
    op.check(*moved(arguments(9, indexed=indexed), device))


def test_compiles_whole() -> None:
    def scatter(gradient: Tensor, index: Tensor, points: Tensor) -> Tensor:
        return ops.maps_at_points_backward(gradient, index, points, 4, 5, 7, True)

    assert_compiles_whole(scatter, *(arguments(1, points=n)[:3] for n in (4, 9)))


@pytest.mark.parametrize(
    "change",
    [
        dict(gradient=torch.zeros(2, 3)),
        dict(gradient=torch.zeros(2, 3, 9).long()),
        dict(points=torch.zeros(2, 3, 8, 2)),
        dict(index=torch.zeros(2, 4).long()),
        dict(count=-1),
        dict(height=-1),
        dict(width=-1),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(2), **change)


KERNELS = [
    Kernel("scatter_kernel",
           dict(gradient=kind, index="*i64", points="*fp32", out=kind, Q="i32", h="i32", w="i32", M="i32", P="i32",
                gradient_image="i32", gradient_row="i32", gradient_number="i32", point_image="i32", point_row="i32",
                point_number="i32", point_axis="i32"),
           dict(HAS_INDEX=True, BORDER=True, DOUBLE=double, TILE=tile, BLOCK=block), 4)
    for kind, double, tile, block in (("*fp16", False, 32, 64), ("*fp64", True, 8, 8))
]  # fmt: skip
