"""The op point_mask_losses: all forms give the losses and sums of the reference, and those of PyTorch's functions."""

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

op = Op("point_mask_losses")
LABELS = (torch.bool, torch.uint8, *DTYPES)


def arguments(
    seed: int, groups: int = 1, label_dtype: torch.dtype = torch.uint8, label_size: tuple[int, int] = (8, 6),
    as_given: bool = False, nearest: bool = True, border: bool = True, with_gradient: bool = True, **scene: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Maps, index, points, labels, nearest, border, with_gradient."""
    maps, index, points = point_scene(seed, **{"rows": 2 * groups, **scene})
    labels = label_scene(seed, points, groups, label_size, label_dtype, as_given)
    return 3 * maps, index, points, labels, nearest, border, with_gradient


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(100)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        maps=st.sampled_from([0, 1, 4]),
        groups=st.sampled_from([1, 2, 3]),
        points=st.sampled_from([0, 1, 9, 40]),
        size=st.tuples(st.integers(0, 6), st.integers(0, 9)),
        dtype=st.sampled_from(DTYPES),
        shared=st.booleans(),
        odd=st.booleans(),
        nearest=st.booleans(),
        border=st.booleans(),
        as_given=st.booleans(),
        label_dtype=st.sampled_from(LABELS),
        label_size=st.tuples(st.integers(0, 5), st.integers(0, 9)),
        with_gradient=st.booleans(),
    )
    def check(**options: Any) -> None:
        args = arguments(**options)
        losses = torch.float32 if options["dtype"] != torch.float64 else form.computes(torch.float64)
        dtypes = (losses, losses, form.computes(options["dtype"]))
        for found, expected, dtype in zip(form(*args), op.reference(*args), dtypes, strict=True):
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, **TOLERANCES[dtype]._asdict())

    check()


@op.for_each_form
def test_is_what_pytorch_computes(form: Form) -> None:
    maps, index, points, labels, *rest = arguments(1, points=1500, size=(11, 8), as_given=True)
    losses, sums, _ = form(maps, index, points, labels, *rest)
    grid = 2 * points - 1
    for b, m in ((index >= 0) & (index < maps.shape[1])).nonzero().tolist():
        own = maps[b, index[b, m]][None, None]
        x = F.grid_sample(own, grid[b, m][None, None], padding_mode="border", align_corners=False)[0, 0, 0]
        p, y = x.sigmoid(), labels[b, m].float()
        assert losses[b, m, 0].item() == pytest.approx(F.binary_cross_entropy_with_logits(x, y).item(), rel=1e-4)
        assert sums[b, m].tolist() == pytest.approx([2 * (p * y).sum().item() + 1, (p + y).sum().item() + 1], rel=1e-4)
        assert losses[b, m, 1].item() == pytest.approx((1 - sums[b, m, 0] / sums[b, m, 1]).item(), rel=1e-4)


@op.for_each_form
def test_each_group_has_all_masks(form: Form) -> None:
    maps, _, points, labels, *rest = arguments(4, groups=3, points=40, nearest=False)
    index = torch.arange(4).repeat(2)[:6].expand(2, -1)
    expected = [form(maps, index[:, i : i + 2], points[:, i : i + 2], labels, *rest)[0] for i in (0, 2, 4)]
    assert torch.equal(form(maps, index, points, labels, *rest)[0], torch.cat(expected, 1))
    assert expected[0].unique().numel() == 8


@op.for_each_form
def test_masks_without_pixels_are_empty(form: Form) -> None:
    maps, index, points, _, *_ = arguments(6)
    whole = torch.ones(2, 2, 4, 6)
    expected = form(maps, index, points, torch.zeros(2, 2, 9), True, True, True)
    for nearest in (False, True):
        for labels in (whole[:, :, :0], whole[..., :0]):
            for found, other in zip(form(maps, index, points, labels, nearest, True, True), expected, strict=True):
                assert torch.equal(found, other)


@op.for_each_form
def test_large_logits_and_those_that_are_not_finite(form: Form) -> None:
    maps = torch.tensor([1e4, -1e4, 100, -100, 0, torch.nan, torch.inf, -torch.inf]).view(1, 8, 1, 1)
    points = torch.full((1, 8, 1, 2), 0.5)
    labels = torch.tensor([0.0, 1, 1, 0, 1, 1, 1, 0]).view(1, 8, 1)
    losses, sums, gradient = form(maps, torch.arange(8)[None], points, labels, True, True, True)
    assert losses[0, :5, 0].tolist() == pytest.approx([1e4, 1e4, 0, 0, 0.693147], rel=1e-5, abs=1e-30)
    assert losses[0, :5, 1].tolist() == pytest.approx([0.5, 0.5, 0, 0, 1 - 2 / 2.5], abs=1e-6)
    assert losses[0, 5:].isnan().all()
    assert sums[0, 5:].isnan().all()
    assert gradient[0, :5].isfinite().all()
    assert gradient[0, 5:].isnan().all()


@op.for_each_form
def test_what_has_no_map_is_not_read(form: Form) -> None:
    maps, _, points, labels, *rest = arguments(3, label_dtype=torch.float32)
    maps[:], points[:], labels[:] = torch.nan, torch.nan, torch.nan
    losses, sums, gradient = form(maps, torch.tensor([[-1, 4], [9, -2]]), points, labels, *rest)
    assert not losses.any()
    assert (sums == 1).all()
    assert not gradient.any()


def test_a_cell_that_is_not_finite_spoils_none_beside_it() -> None:
    """Points at centres of cells read one cell each: the gradient of a broken one stays there."""
    maps = torch.zeros(1, 1, 3, 4)
    maps[0, 0, 1, 2] = torch.inf
    x, y = (torch.arange(4) + 0.5) / 4, (torch.arange(3) + 0.5) / 3
    points = torch.stack([x.expand(3, 4), y[:, None].expand(3, 4)], -1).view(1, 1, 12, 2)
    labels = torch.zeros(1, 1, 12)
    broken = op(maps, torch.zeros(1, 1).long(), points, labels, True, True, True)[2].isnan()
    assert broken.all()  # by the sums of dice
    for count in (1, 1500):  # at once, and in several runs
        same = points[:, :, 6:7].expand(-1, -1, count, -1)
        broken = op(maps, torch.zeros(1, 1).long(), same, torch.zeros(1, 1, count), True, True, True)[2].isnan()
        assert broken.nonzero().tolist() == [[0, 0, 1, 2]]


@pytest.mark.parametrize("points", [300, 1024, 1025, 3000])
def test_many_points_give_the_gradient_of_the_reference(points: int) -> None:
    """Up to 1,024 of a pair are handled at once, more in several runs."""
    args = arguments(6, groups=2, points=points, size=(7, 9), nearest=False, dtype=torch.float64)
    torch.testing.assert_close(op(*args), op.reference(*args))


@pytest.mark.parametrize("points", [300, 1500])
def test_the_gradient_is_the_same_where_maps_are_views(points: int) -> None:
    maps, index, where, labels, *rest = arguments(6, groups=3, points=points)
    turned = maps.transpose(2, 3).contiguous().transpose(2, 3)
    gradient = op(turned, index, where, labels, *rest)[2]
    assert gradient.is_contiguous()
    torch.testing.assert_close(gradient, op(maps, index, where, labels, *rest)[2])


def test_views_are_read_where_they_are() -> None:
    for as_given in (False, True):
        maps, index, points, labels, *rest = arguments(5, as_given=as_given, label_dtype=torch.float32)
        expected = op(maps, index, points, labels, *rest)
        turned = maps.transpose(1, 3).contiguous().transpose(1, 3)
        spaced = torch.stack([labels, labels], -1)[..., 0]
        assert not turned.is_contiguous()
        assert not spaced.is_contiguous()
        for mine, other in zip(op(turned, index, points.double(), spaced, *rest), expected, strict=True):
            torch.testing.assert_close(mine, other)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(7, groups=3, points=5000, nearest=False)
    assert_same_bits_for_any_threads(lambda: op(*args))


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for nearest, as_given in ((False, True), (True, False)):
        args = arguments(8, groups=2, points=700, size=(20, 30), odd=True, nearest=nearest, as_given=as_given)
        for found, expected in zip(op(*moved(args, "cuda")), op.reference(*args), strict=True):
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


@for_each_device
@pytest.mark.parametrize("as_given", [False, True])
def test_opcheck(device: str, as_given: bool) -> None:
    op.check(*moved(arguments(9, as_given=as_given), device))


def test_compiles_whole() -> None:
    assert_compiles_whole(op, *(arguments(1, points=n) for n in (4, 9)))


@pytest.mark.parametrize(
    "change",
    [
        dict(maps=torch.zeros(2, 4, 5)),
        dict(maps=torch.zeros(2, 4, 5, 7).long()),
        dict(points=torch.zeros(2, 2, 9, 3)),
        dict(points=torch.zeros(1, 2, 9, 2)),
        dict(index=torch.zeros(2, 3).long()),
        dict(labels=torch.zeros(2, 3, 4, 4)),
        dict(labels=torch.zeros(1, 2, 4, 4)),
        dict(labels=torch.zeros(2, 2, 8)),
        dict(labels=torch.zeros(2, 9)),
        dict(labels=torch.zeros(2, 2, 4, 4).long()),
        dict(labels=torch.zeros(2, 2, 9, dtype=torch.complex64)),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(2), **change)


KERNELS = [
    Kernel("pair_kernel",
           dict(maps=maps, index="*i64", points="*fp32", labels=labels, losses=sums, sums=sums, Q="i32", h="i32",
                w="i32", M="i32", P="i32", N="i32", H="i32", W="i32", map_image="i32", map_query="i32", map_row="i32",
                map_column="i32", point_image="i32", point_row="i32", point_number="i32", point_axis="i32",
                label_image="i32", label_mask="i32", label_row="i32", label_column="i32"),
           dict(WIDE=False, GIVEN=labels == "*fp32", NEAREST=labels == "*u8", BORDER=True, BLOCK=512), 4)
    for maps, labels, sums in (("*fp16", "*u8", "*fp32"), ("*fp32", "*fp32", "*fp32"), ("*fp64", "*u8", "*fp64"))
]  # fmt: skip
