"""The op point_mask_losses_backward_: all forms write the gradient of the losses, as autograd has it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ahead_of_time import Kernel
from hypothesis import given
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
from point_scenes import label_scene, point_scene
from torch import Tensor

op = Op("point_mask_losses_backward_")
op_of_losses = Op("point_mask_losses")
LABELS = (torch.bool, torch.uint8, *DTYPES)


def arguments(
    seed: int, groups: int = 1, label_dtype: torch.dtype = torch.uint8, label_size: tuple[int, int] = (8, 6),
    as_given: bool = False, nearest: bool = True, border: bool = True, known: bool = False, common: bool = False,
    **scene: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Gradient, maps, index, points, labels, sums, factors, nearest, border, known."""
    maps, index, points = point_scene(seed, **{"rows": 2 * groups, **scene})
    labels = label_scene(seed, points, groups, label_size, label_dtype, as_given)
    maps = 2 * maps
    assert index is not None
    given = (maps, index, points, labels)
    _, sums, gradient = op_of_losses.reference(*given, nearest, border, True)
    factors = torch.randn(*points.shape[:2], 2, generator=torch.Generator().manual_seed(seed))
    if common:
        factors = torch.where(((index >= 0) & (index < maps.shape[1]))[..., None], 3.0, factors)
    if not known:
        gradient = torch.full_like(gradient, torch.nan)
    return gradient, *given, sums, factors, nearest, border, known


def run(form: Form, args: tuple[Any, ...]) -> Tensor:
    gradient: Tensor = args[0].clone()
    assert form(gradient, *args[1:]) is None
    return gradient


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(100)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        maps=st.sampled_from([0, 1, 4]),
        groups=st.sampled_from([1, 2, 3]),
        points=st.sampled_from([0, 1, 9, 70]),
        size=st.tuples(st.integers(0, 6), st.sampled_from([0, 1, 7, 35])),
        dtype=st.sampled_from(DTYPES),
        shared=st.booleans(),
        odd=st.booleans(),
        nearest=st.booleans(),
        border=st.booleans(),
        as_given=st.booleans(),
        label_dtype=st.sampled_from(LABELS),
        label_size=st.tuples(st.integers(0, 5), st.integers(0, 9)),
        known=st.booleans(),
        common=st.booleans(),
    )
    def check(**options: Any) -> None:
        args = arguments(**options)
        found, expected = run(form, args), run(op.reference, args)
        torch.testing.assert_close(found, expected, **TOLERANCES[form.computes(options["dtype"])]._asdict())

    check()


@op.for_each_form
@pytest.mark.parametrize("border", [False, True])
def test_is_what_autograd_computes(form: Form, border: bool) -> None:
    gradient, maps, index, points, labels, sums, factors, *rest = arguments(
        1, groups=3, points=1500, size=(11, 8), as_given=True, border=border
    )
    leaf = maps.clone().requires_grad_()
    total, padding = leaf.sum() * 0, "border" if border else "zeros"
    for b, m in ((index >= 0) & (index < maps.shape[1])).nonzero().tolist():
        own, grid = leaf[b, index[b, m]][None, None], 2 * points[b, m][None, None] - 1
        x = F.grid_sample(own, grid, padding_mode=padding, align_corners=False)[0, 0, 0]
        p, y = x.sigmoid(), labels[b, m].float()
        dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
        total = total + factors[b, m, 0] * F.binary_cross_entropy_with_logits(x, y) + factors[b, m, 1] * dice
    (expected,) = torch.autograd.grad(total, leaf)
    found = run(form, (gradient, maps, index, points, labels, sums, factors, *rest))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_maps_without_a_pair_are_zero_and_not_read() -> None:
    gradient, maps, _, points, labels, sums, factors, *rest = arguments(2, maps=5)
    maps[0, [0, 1, 3, 4]] = torch.nan
    found = run(op, (gradient, maps, torch.tensor([[2, -1], [9, -3]]), points, labels, sums, factors, *rest))
    assert found[0, 2].any()
    assert not found[0, [0, 1, 3, 4]].any()
    assert not found[1].any()


def test_one_factor_scales_what_is_known() -> None:
    """Losses of pairs without a map have no say in it."""
    gradient, *args = arguments(3, known=True, common=True, odd=True)
    assert args[5].unique().numel() > 1
    for name in ("maps", "points", "sums"):  # not read
        args[["maps", "index", "points", "labels", "sums"].index(name)].fill_(torch.nan)
    torch.testing.assert_close(run(op, (gradient, *args)), 3 * gradient)


def test_views_are_read_where_they_are() -> None:
    gradient, maps, index, points, labels, *rest = arguments(5, label_dtype=torch.float32)
    expected = run(op, (gradient, maps, index, points, labels, *rest))
    turned = maps.transpose(1, 3).contiguous().transpose(1, 3)
    spaced = torch.stack([labels, labels], -1)[..., 0]
    assert not turned.is_contiguous()
    found = run(op, (gradient, turned, index, points.double(), spaced, *rest))
    torch.testing.assert_close(found, expected)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(7, groups=3, points=3000, nearest=False)
    assert_same_bits_for_any_threads(lambda: run(op, args))


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for dtype in DTYPES:
        args = arguments(8, dtype=dtype, groups=2, points=300, size=(20, 70), odd=True)
        found = run(op, moved(args, "cuda")).cpu()
        torch.testing.assert_close(found, run(op.reference, args), **TOLERANCES[dtype]._asdict())


@for_each_device
@pytest.mark.parametrize("as_given", [False, True])
def test_opcheck(device: str, as_given: bool) -> None:
    op.check(*moved(arguments(9, as_given=as_given), device))


def test_compiles_whole() -> None:
    def written(gradient: Tensor, *tensors: Tensor) -> Tensor:
        gradient = gradient.clone()
        op(gradient, *tensors, True, True, False)
        return gradient

    assert_compiles_whole(written, *(arguments(1, points=n)[:7] for n in (4, 9)))


@pytest.mark.parametrize(
    "change",
    [
        dict(gradient=torch.zeros(2, 4, 5)),
        dict(maps=torch.zeros(2, 4, 5)),
        dict(maps=torch.zeros(2, 4, 5, 7).long()),
        dict(points=torch.zeros(2, 2, 8, 3)),
        dict(index=torch.zeros(2, 3).long()),
        dict(labels=torch.zeros(2, 3, 4, 4)),
        dict(sums=torch.zeros(2, 2)),
        dict(factors=torch.zeros(2, 3, 2)),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(2), **change)


KERNELS = [
    Kernel("slope_kernel",
           dict(maps=maps, index="*i64", points="*fp32", labels=labels, sums=slopes, factors=slopes, slopes=slopes,
                Q="i32", h="i32", w="i32", M="i32", P="i32", N="i32", H="i32", W="i32", map_image="i32",
                map_query="i32", map_row="i32", map_column="i32", point_image="i32", point_row="i32",
                point_number="i32", point_axis="i32", label_image="i32", label_mask="i32", label_row="i32",
                label_column="i32"),
           dict(WIDE=False, GIVEN=labels == "*fp32", NEAREST=labels == "*u8", BORDER=True, BLOCK=256), 4)
    for maps, labels, slopes in (("*fp16", "*u8", "*fp32"), ("*fp32", "*fp32", "*fp32"), ("*fp64", "*u8", "*fp64"))
]  # fmt: skip
