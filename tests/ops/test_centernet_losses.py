"""The op centernet_losses: every form gives the losses and gradients of the definition."""

from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import given
from hypothesis import strategies as st
from op import (
    DTYPES,
    TOLERANCES,
    Form,
    Op,
    assert_compiles_whole,
    assert_no_syncs,
    assert_same_bits,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)

op = Op("centernet_losses")

Arguments = tuple[Any, ...]
GT_WH, GT_OFFSET, INDEX, USED, COUNT = 7, 8, 9, 10, 11  # places of arguments


def arguments(
    seed: int = 0,
    batch: int = 2,
    boxes: int = 5,
    size: tuple[int, int] = (6, 7),
    dtype: torch.dtype = torch.float32,
    wh_dtype: torch.dtype | None = None,
    wide: torch.dtype = torch.float32,
    count: float = 3,
    least: float = 1.0,
    kept: tuple[float, float, float] = (0.0, 0.0, 0.0),
    weighted: bool = False,
    channels_last: bool = False,
    with_gradient: bool = True,
) -> Arguments:
    """Return maps of two classes, and boxes at distinct cells, some of which lie beyond the map or are not used."""
    g = torch.Generator().manual_seed(seed)
    height, width = size
    logits = torch.randn(batch, 2, *size, generator=g).to(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    wh, offset = (
        torch.randn(batch, 2, *size, generator=g).to(wh_dtype or dtype).contiguous(memory_format=layout)
        for _ in range(2)
    )
    area = height * width
    index = torch.zeros(batch, boxes, dtype=torch.int64)
    for row in index:
        row.copy_(torch.randperm(max(area, boxes) + 3, generator=g)[:boxes] - 1)
    centers = torch.stack([index % width, index // width], -1)
    radii = torch.randint(0, 4, (batch, boxes), generator=g)
    labels = torch.randint(-1, 2, (batch, boxes), generator=g)
    gt_wh, gt_offset = (torch.randn(batch, boxes, 2, generator=g).to(wide) for _ in range(2))
    used = torch.rand(batch, boxes, generator=g) < 0.8
    weight = None
    if weighted:
        weight = (torch.rand(batch, *size, generator=g) < 0.7).to(
            torch.float64 if dtype == torch.float64 else torch.float32
        )
    number = torch.tensor(count)
    if number == number.trunc():
        number = number.to(torch.int64)
    return (
        logits, wh, offset, centers, radii, labels, weight, gt_wh, gt_offset, index, used, number, least, 6.0, 2.0, 4.0,
        1.5, 0.5, 0.1, 0.7, list(kept), with_gradient,
    )  # fmt: skip


def assert_matches(form: Form, args: Arguments, device: str = "cpu") -> None:
    losses, rests, gradients = moved(form(*moved(args, device)), "cpu")
    expected, left, slopes = op.reference(*args)
    assert losses.dtype == rests.dtype
    torch.testing.assert_close(losses.double(), expected.double(), rtol=2e-5, atol=1e-5)
    torch.testing.assert_close(rests.double(), left, rtol=1e-5, atol=0)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert (gradient.dtype, gradient.shape) == (slope.dtype, slope.shape)
        rtol, atol = TOLERANCES[form.computes(slope.dtype)]
        torch.testing.assert_close(gradient, slope, rtol=max(rtol, 1e-5), atol=atol)
        assert gradient.is_contiguous()


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(80)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 3]),
        boxes=st.sampled_from([0, 1, 5, 40]),
        size=st.sampled_from([(6, 7), (1, 1), (12, 30)]),
        dtype=st.sampled_from(DTYPES),
        wh_dtype=st.sampled_from([None, *DTYPES]),
        wide=st.sampled_from([torch.float32, torch.float64]),
        count=st.sampled_from([0, 1, 7, 2.5]),
        least=st.sampled_from([0.25, 1.0]),
        kept=st.sampled_from([(0.0, 0.0, 0.0), (16.0, 8.0, 4.0), (0.0, 8.0, 0.0)]),
        weighted=st.booleans(),
        channels_last=st.booleans(),
        with_gradient=st.booleans(),
    )
    def check(**options: Any) -> None:
        assert_matches(form, arguments(**options))

    check()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_matches_reference(dtype: torch.dtype) -> None:
    assert_matches(op, arguments(1, boxes=40, size=(30, 20), dtype=dtype, channels_last=True), "cuda")


@pytest.mark.parametrize("form", [*op.forms, op.reference], ids=str)
def test_l1_by_hand(form: Form) -> None:
    """Two boxes of three are used, at cells 1 and 3; weights 0.1 and 0.7, divisor 2 * 2."""
    args = list(arguments(boxes=3, batch=1, size=(2, 2), count=2))
    args[1], args[2] = torch.tensor([[[[1.0, 2], [3, 4]], [[5, 6], [7, 8]]]]), torch.zeros(1, 2, 2, 2)
    args[GT_WH] = torch.tensor([[[3.0, 6], [0, 0], [4, 1]]])
    args[GT_OFFSET] = torch.tensor([[[0.5, 0], [9, 9], [0, -0.25]]])
    args[INDEX], args[USED] = torch.tensor([[1, 0, 3]]), torch.tensor([[True, False, True]])
    losses, rests, (_, by_wh, by_offset) = form(*args)
    assert losses.tolist()[1:] == pytest.approx([0.1 / 4 * (1 + 0 + 0 + 7), 0.7 / 4 * 0.75])
    assert rests.tolist() == [1, 1, 1]
    assert by_wh.flatten().tolist() == pytest.approx([0, -0.1 / 4, 0, 0, 0, 0, 0, 0.1 / 4])
    assert by_offset.flatten().tolist() == pytest.approx([0, -0.7 / 4, 0, 0, 0, 0, 0, 0.7 / 4])


@op.for_each_form
def test_numbers_that_are_not_finite(form: Form) -> None:
    """Where they are used they show; elsewhere they are not read."""
    args = list(arguments(4, boxes=12))
    used = args[USED]
    used[0, 3], args[INDEX][0, 3] = True, 41  # of 42
    used[0, (args[INDEX][0] == 41) & (torch.arange(12) != 3)] = False
    plain = form(*args)
    args[GT_WH] = args[GT_WH].masked_fill(~used[..., None], torch.nan)
    assert_same_bits(form(*args), plain)
    args[GT_WH][0, 3, 0] = torch.nan
    losses, _, gradients = form(*args)
    assert losses.isnan().tolist() == [False, True, False]
    assert all(gradient.isfinite().all() for gradient in gradients)


@op.for_each_form
def test_any_layout(form: Form) -> None:
    args = arguments(4, batch=3, boxes=9)
    views = [torch.stack([value, value], -1)[..., 0] for value in (*args[1:3], *args[GT_WH : USED + 1])]
    assert_same_bits(form(args[0], *views[:2], *args[3:GT_WH], *views[2:], *args[COUNT:]), form(*args))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(4, batch=5, boxes=20, size=(100, 90))
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
@pytest.mark.parametrize(
    "options", [{}, {"boxes": 0, "weighted": True}, {"batch": 0}, {"with_gradient": False}], ids=str
)
def test_opcheck(device: str, options: dict[str, Any]) -> None:
    op.check(*moved(arguments(5, **options), device))


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    args, more = (moved(arguments(8, boxes=boxes), device) for boxes in (5, 7))
    for form in (op, op.portable):
        assert [one.shape for one in assert_no_syncs(form, *args)[2]] == [(2, 2, 6, 7)] * 3
    assert_compiles_whole(op.overload, args, more)


@pytest.mark.parametrize(
    "change",
    [
        dict(logits=torch.zeros(2, 2, 6)),
        dict(wh=torch.zeros(2, 2, 6, 7, dtype=torch.int64)),
        dict(offset=torch.zeros(2, 3, 6, 7)),
        dict(gt_wh=torch.zeros(2, 5, 3)),
        dict(gt_offset=torch.zeros(2, 4, 2)),
        dict(index=torch.zeros(3, 5)),
        dict(used=torch.ones(2, 5)),
        dict(count=torch.ones(2)),
        dict(kept=[0.0]),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(9), **change)


KERNELS = [
    Kernel("cells_kernel",
           dict(wh="*" + name, offset="*" + name, gt_wh="*fp32", gt_offset="*fp32", index="*i64", used="*u8",
                count="*i64", by_wh="*" + name, by_offset="*" + name, parts="*" + wide, N="i32", H="i32", W="i32",
                least="fp32", wh_weight="fp32", offset_weight="fp32", wh_kept="fp32", offset_kept="fp32", wh_b="i32",
                wh_d="i32", wh_y="i32", wh_x="i32", offset_b="i32", offset_d="i32", offset_y="i32", offset_x="i32"),
           dict(WITH_GRADIENT=on, BLOCK=256, BLOCK_N=32), 4)
    for name, wide, on in (("fp32", "fp32", True), ("fp16", "fp32", True), ("fp64", "fp64", False))
] + [
    Kernel("sum_kernel",
           dict(sums="*fp32", parts="*fp32", count="*i64", losses="*fp32", rests="*fp32", tiles="i32", programs="i32",
                least="fp32", wh_weight="fp32", offset_weight="fp32", heatmap_kept="fp32", wh_kept="fp32",
                offset_kept="fp32"),
           dict(DOUBLE=False, BLOCK=1024), 4)
]  # fmt: skip
