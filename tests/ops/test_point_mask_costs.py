"""The op point_mask_costs: all forms give the costs of the reference, and those of PyTorch's functions."""

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

op = Op("point_mask_costs")


def arguments(
    seed: int, masks: int = 3, label_dtype: torch.dtype = torch.float32, as_given: bool = False, border: bool = True,
    **scene: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Logits, points, labels, border."""
    logits, _, points = point_scene(seed, **{"indexed": False, "shared": True, **scene})
    where = points[:, :1] if points.shape[1] else points.new_zeros(len(points), 1, *points.shape[2:])
    labels = label_scene(seed, where.expand(-1, masks, -1, -1), dtype=label_dtype, given=True)
    if as_given:
        g = torch.Generator().manual_seed(seed)
        values = torch.randn(*logits.shape[:2], where.shape[2], generator=g).to(logits.dtype)
        return 3 * values, None, labels, border
    return 3 * logits, where, labels, border


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(80)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        maps=st.sampled_from([0, 1, 3, 19]),
        masks=st.sampled_from([0, 1, 3, 18]),
        points=st.sampled_from([0, 1, 9, 70]),
        size=st.tuples(st.integers(0, 6), st.integers(0, 9)),
        dtype=st.sampled_from(DTYPES),
        odd=st.booleans(),
        border=st.booleans(),
        as_given=st.booleans(),
        label_dtype=st.sampled_from((torch.uint8, *DTYPES)),
    )
    def check(**options: Any) -> None:
        args = arguments(**options)
        tolerance = TOLERANCES[torch.float32 if options["dtype"] != torch.float64 else form.computes(torch.float64)]
        for found, expected in zip(form(*args), op.reference(*args), strict=True):
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, **tolerance._asdict())

    check()


@op.for_each_form
def test_is_what_pytorch_computes(form: Form) -> None:
    """More masks than a block of the C++ form, and one of Triton's, and points of several of its blocks."""
    logits, points, labels, border = arguments(1, masks=67, maps=5, points=1100, size=(11, 8))
    bce, dice = form(logits, points, labels, border)
    for b in range(2):
        grid = 2 * points[b, 0].expand(5, 1, -1, -1) - 1
        x = F.grid_sample(logits[b][:, None], grid, padding_mode="border", align_corners=False)[:, 0, 0]
        y = labels[b].float()
        for q in range(5):
            expected = F.binary_cross_entropy_with_logits(x[q].expand_as(y), y, reduction="none").mean(1)
            torch.testing.assert_close(bce[b, q], expected, rtol=1e-4, atol=1e-5)
            p = x[q].sigmoid()
            shared = 1 - (2 * (p * y).sum(1) + 1) / (p.sum() + y.sum(1) + 1)
            torch.testing.assert_close(dice[b, q], shared, rtol=1e-4, atol=1e-5)


@op.for_each_form
def test_large_logits_and_those_that_are_not_finite(form: Form) -> None:
    logits = torch.tensor([1e4, -1e4, 0, torch.nan, torch.inf]).view(1, 5, 1)
    bce, dice = form(logits, None, torch.tensor([[[1.0], [0.0]]]), True)
    assert bce[0, :3].flatten().tolist() == pytest.approx([0, 1e4, 1e4, 0, 0.693147, 0.693147], rel=1e-5, abs=1e-30)
    assert dice[0, :3].flatten().tolist() == pytest.approx([0, 0.5, 0.5, 0, 0.2, 1 - 1 / 1.5], abs=1e-6)
    assert bce[0, 3:].isnan().all()
    assert dice[0, 3:].isnan().all()


@op.for_each_form
@pytest.mark.parametrize("count", [1, 11])  # few points beside cells, and many
def test_a_cell_of_no_weight_is_not_read(form: Form, count: int) -> None:
    x, y = (torch.arange(4) + 0.5) / 4, (torch.arange(3) + 0.5) / 3
    points = torch.stack([x.expand(3, 4), y[:, None].expand(3, 4)], -1).view(1, 1, 12, 2)
    points = torch.cat([points[:, :, :6], points[:, :, 7:]], 2)[:, :, :count]  # at centres of all cells but one
    plain, labels = torch.randn(1, 9, 3, 4, generator=torch.Generator().manual_seed(1)), torch.ones(1, 2, count)
    broken = plain.clone()
    broken[0, ::2, 1, 2] = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan, torch.inf])
    for found, expected in zip(form(broken, points, labels, True), form(plain, points, labels, True), strict=True):
        torch.testing.assert_close(found, expected)


@op.for_each_form
def test_maps_without_cells_are_zero(form: Form) -> None:
    _, points, labels, border = arguments(2)
    whole = torch.ones(2, 4, 5, 7)
    expected = form(0 * whole, points, labels, border)
    for logits in (whole[:, :, :0], whole[..., :0]):
        for found, other in zip(form(logits, points, labels, border), expected, strict=True):
            assert torch.equal(found, other)


def test_a_query_spoils_no_other() -> None:
    logits, points, labels, border = arguments(3, maps=7)
    expected = op(logits, points, labels, border)
    logits[:, 2] = torch.nan
    others = [0, 1, 3, 4, 5, 6]
    for mine, other in zip(op(logits, points, labels, border), expected, strict=True):
        assert torch.equal(mine[:, others], other[:, others])
        assert mine[:, 2].isnan().all()


def test_views_are_read_where_they_are() -> None:
    logits, points, labels, border = arguments(5)
    turned = logits.transpose(1, 3).contiguous().transpose(1, 3)
    spaced = torch.stack([labels, labels], -1)[..., 0]
    assert not turned.is_contiguous()
    expected = op(logits, points, labels, border)
    for mine, other in zip(op(turned, points.double(), spaced, border), expected, strict=True):
        torch.testing.assert_close(mine, other)
    values, _, labels, border = arguments(5, as_given=True)
    spaced = torch.stack([values, values], -1)[..., 0]
    for mine, other in zip(op(spaced, None, labels, border), op(values, None, labels, border), strict=True):
        assert torch.equal(mine, other)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(7, maps=8, masks=20, points=3000)
    assert_same_bits_for_any_threads(lambda: op(*args))


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for as_given in (False, True):
        args = arguments(8, maps=35, masks=70, points=300, size=(20, 30), as_given=as_given)
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
        dict(logits=torch.zeros(2, 4, 5)),
        dict(logits=torch.zeros(2, 4, 5, 7).long()),
        dict(points=torch.zeros(2, 2, 9, 2)),
        dict(points=torch.zeros(2, 1, 8, 2)),
        dict(labels=torch.zeros(2, 3, 9, 1)),
        dict(labels=torch.zeros(1, 3, 9)),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(2), **change)


KERNELS = [
    Kernel("cost_kernel",
           dict(logits=logits, points="*fp32", labels="*fp32", bce=costs, dice=costs, Q="i32", N="i32", P="i32",
                h="i32", w="i32", logit_image="i32", logit_query="i32", logit_row="i32", logit_column="i32",
                point_image="i32", point_number="i32", point_axis="i32", label_image="i32", label_mask="i32",
                label_point="i32"),
           dict(GIVEN=given, BORDER=True, DOUBLE=costs == "*fp64", QUERIES=side, MASKS=masks, POINTS=some), 4)
    for logits, costs, given, side, masks, some in (
        ("*fp16", "*fp32", False, 16, 32, 32), ("*fp32", "*fp32", True, 16, 64, 32), ("*fp64", "*fp64", False, 8, 8, 8),
    )
]  # fmt: skip
