"""The op yolox_loss: every form gives the numbers and gradients of the definition."""

import math
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
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)
from yolox_scenes import raw_outputs, yolox_scene

from detops import grid_points
from detops.geometry.boxes import to_xyxy
from detops.reference import yolox_loss as definition
from detops.reference.yolox_loss import KINDS

op = Op("yolox_loss")


def arguments(
    seed: int,
    kind: int = 0,
    use_l1: bool = True,
    pos_weight: bool = False,
    dtype: torch.dtype = torch.float32,
    classes: int = 4,
    gradient: bool = True,
    cxcywh: bool = True,
    one_scale: bool = False,
    **options: Any,
) -> list[Any]:
    """Make outputs with a random box at some of the cells."""
    g = torch.Generator().manual_seed(seed)
    levels, objectness, pred, cells, gt, labels, _ = yolox_scene(seed, classes=classes, size=32, **options)
    outputs = raw_outputs(levels, objectness, pred, cells, dtype)
    index = torch.full(objectness.shape, -1)
    if gt.shape[1]:
        index = torch.randint(-3, gt.shape[1], objectness.shape, generator=g).clamp(min=-2)
    iou = torch.rand(objectness.shape, generator=g)
    weight = torch.rand(classes, generator=g) + 0.5 if pos_weight else None
    scale = torch.tensor(0.1).expand(2) if one_scale else torch.tensor([0.1, 0.05])
    boxes = gt if cxcywh else to_xyxy(gt)
    return [outputs, cells, boxes, labels, index, iou, scale, weight, kind, use_l1, 5.0, 0.7, 1.3, gradient, cxcywh]


def compare(form: Form, args: list[Any], rtol: float, atol: float) -> None:
    weighted, losses, gradients = form(*args)
    sums, expected, slopes = op.reference(*args)
    torch.testing.assert_close(weighted.double(), sums, rtol=max(rtol, 1e-5), atol=1e-5)
    torch.testing.assert_close(losses.double(), expected, rtol=max(rtol, 1e-5), atol=1e-5)
    for gradient, slope, output in zip(gradients, slopes, args[0], strict=True):
        assert gradient.dtype == output.dtype
        assert gradient.shape == slope.shape
        torch.testing.assert_close(gradient.double(), slope.double(), rtol=rtol, atol=atol)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(200)
    @given(
        seed=st.integers(0, 10**6),
        kind=st.integers(0, 4),
        use_l1=st.booleans(),
        pos_weight=st.booleans(),
        dtype=st.sampled_from(DTYPES),
        classes=st.sampled_from([1, 4, 17, 80]),
        batch=st.sampled_from([0, 1, 2]),
        boxes=st.sampled_from([0, 1, 5]),
        index_dtype=st.sampled_from([torch.int32, torch.int64]),
        cxcywh=st.booleans(),
        one_scale=st.booleans(),
    )
    def check(dtype: torch.dtype, **options: Any) -> None:
        compare(form, arguments(dtype=dtype, **options), *TOLERANCES[form.computes(dtype)])

    check()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", range(5))
def test_gpu_matches_reference(kind: int) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        args = arguments(1, kind, dtype=dtype, boxes=9, pos_weight=True)
        _, losses, gradients = moved(op(*moved(args, "cuda")), "cpu")
        _, expected, slopes = op.reference(*args)
        rtol, atol = TOLERANCES[dtype]
        torch.testing.assert_close(losses.double(), expected, rtol=max(rtol, 1e-4), atol=1e-5)
        for gradient, slope in zip(gradients, slopes, strict=True):
            torch.testing.assert_close(gradient.double(), slope.double(), rtol=max(rtol, 1e-3), atol=max(atol, 1e-4))


@pytest.mark.parametrize("form", [*op.forms, op.reference], ids=str)
def test_by_hand(form: Form) -> None:
    """One cell of 8 pixels that predicts its box exactly, and one beside it without a box."""
    cells = grid_points([(1, 2)], [8])
    output = torch.zeros(1, 2, 7)
    output[0, 0, :2] = 0.5  # the centre of its cell, and e^0 * 8 pixels wide and high
    boxes, labels = torch.tensor([[[4.0, 4, 8, 8]]]), torch.tensor([[1]])
    index, iou = torch.tensor([[0, -1]]), torch.tensor([[1.0, 0]])
    args = [[output], cells, boxes, labels, index, iou, torch.ones(2), None, 0, True, 5.0, 1.0, 1.0, True]
    half = math.log(2)
    _, losses, (gradient,) = form(*args)
    torch.testing.assert_close(losses.float(), torch.tensor([0, 2 * half, 2 * half, 0]), rtol=0, atol=1e-6)
    expected = torch.tensor([[0.0, 0, 0, 0, -0.5, 0.5, -0.5], [0, 0, 0, 0, 0.5, 0, 0]])
    # At a tie of both corners autograd gives each side half: what grows outwards and inwards is the same.
    torch.testing.assert_close(gradient[0, :, 4:].float(), expected[:, 4:], rtol=0, atol=1e-6)
    assert gradient[0, 1, :4].abs().sum() == 0


@op.for_each_form
@pytest.mark.parametrize("kind", range(5), ids=KINDS)
def test_ties_zero_sizes_and_distance_are_finite(form: Form, kind: int) -> None:
    cells = grid_points([(2, 2)], [8])
    output = torch.zeros(1, 4, 6)
    boxes = torch.tensor([[[4.0, 4, 8, 8], [12, 4, 0, 0], [900, 900, 3, 3], [12, 12, 8, 4]]])
    args = [[output], cells, boxes, torch.zeros(1, 4).long(), torch.arange(4)[None], torch.ones(1, 4), torch.ones(2),
            None, kind, False, 5.0, 1.0, 1.0, True]  # fmt: skip
    _, losses, (gradient,) = form(*args)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    compare(form, args, 1e-4, 1e-4)


@op.for_each_form
@pytest.mark.parametrize("kind", range(5), ids=KINDS)
def test_logits_of_any_size_have_finite_gradients(form: Form, kind: int) -> None:
    """The exponential of 89 is beyond float32; of 42, the square of a side; of 30, products of areas."""
    pairs = [(w, h) for w in (-200.0, 0.0, 30.0, 42.0, 60.0, 89.0, 800.0) for h in (-40.0, 0.0, 41.0, 89.0, 500.0, w)]
    cells = torch.tensor([[4.0, 4, 8]]).repeat(len(pairs), 1)
    output = torch.zeros(1, len(pairs), 6)
    output[0, :, 2:4] = torch.tensor(pairs)
    args = [[output], cells, torch.tensor([[[9.0, 5, 16, 30]]]), torch.zeros(1, 1).long(),
            torch.zeros(1, len(pairs)).long(), torch.ones(1, len(pairs)), torch.ones(2), None, kind, False, 5.0, 1.0,
            1.0, True]  # fmt: skip
    _, losses, (gradient,) = form(*args)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    compare(form, args, 1e-4, 1e-4)
    output[0, 0, 2] = math.inf  # a broken number, unlike a large one, shows
    assert form(*args)[1][0].isnan()


@op.for_each_form
@pytest.mark.parametrize("kind", range(5), ids=KINDS)
def test_a_small_box_far_away_keeps_its_digits(form: Form, kind: int) -> None:
    """A box of half a pixel at 4000: corners in float32 would be off by thousandths of its size."""
    cells = torch.tensor([[4004.0, 4004, 8]])
    output = torch.tensor([[[0.51, 0.48, math.log(0.5 / 8), math.log(0.4 / 8), 0, 0]]])
    boxes = torch.tensor([[[4004.0, 4003.875, 0.4375, 0.5]]])
    args = [[output], cells, boxes, torch.zeros(1, 1).long(), torch.zeros(1, 1).long(), torch.ones(1, 1), torch.ones(2),
            None, kind, True, 5.0, 1.0, 1.0, True]  # fmt: skip
    compare(form, args, 1e-4, 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_the_reference(kind: str) -> None:
    g = torch.Generator().manual_seed(6)
    pred, target = (torch.rand(6, 4, generator=g, dtype=torch.float64) * 4 + 1 for _ in range(2))
    if kind == "ciou":  # alpha is a constant to the gradient, not to finite differences
        pred[:, 2:] = target[:, 2:] * torch.rand(6, 1, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: definition.iou_loss(p, target, kind), pred.requires_grad_(), atol=1e-4)


@op.for_each_form
def test_without_gradient_the_losses_are_the_same(form: Form) -> None:
    args = arguments(4, boxes=5)
    _, losses, gradients = form(*args[:-2], False, True)
    torch.testing.assert_close(losses, form(*args)[1], rtol=0, atol=0)
    assert all(gradient.numel() == 0 for gradient in gradients)


@op.for_each_form
def test_any_layout(form: Form) -> None:
    args = arguments(4, boxes=5)
    _, expected, gradients = op(*args)
    first = [output.transpose(1, 2).contiguous().transpose(1, 2) for output in args[0]]
    assert not first[0].is_contiguous()
    _, losses, slopes = form(first, *args[1:])
    torch.testing.assert_close(losses, expected)
    for mine, other in zip(slopes, gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(5, boxes=5, classes=80)
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
@pytest.mark.parametrize(
    "options", [{}, {"boxes": 0, "gradient": False, "pos_weight": True}], ids=["plain", "no boxes"]
)
def test_opcheck(device: str, options: dict[str, Any]) -> None:
    op.check(*moved(arguments(7, **options), device))


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    args, more = (moved(arguments(8, boxes=boxes, pos_weight=True), device) for boxes in (3, 6))
    for form in (op, op.portable):
        losses, parts, gradients = assert_no_syncs(form, *args)
        assert (losses.shape, parts.shape) == ((3,), (4,))
        assert [gradient.shape for gradient in gradients] == [output.shape for output in args[0]]
    assert_compiles_whole(op.overload, tuple(args), tuple(more))


@op.for_each_form
def test_what_is_not_finite_shows(form: Form) -> None:
    """Objectness anywhere, or any value of a positive, that is not finite makes its loss NaN; others have no effect."""
    for channel, loss in ((4, 1), (5, 2), (0, 0), (2, 0)):
        args = arguments(2, boxes=3)
        positive = int((args[4][0] >= 0).nonzero()[0])
        rows = torch.cat(args[0], 1)
        rows[0, positive, channel] = float("nan")
        args[0] = list(rows.split([16, 4, 1], 1))
        assert form(*args)[1].isnan().tolist()[loss]
    args = arguments(2, boxes=3)
    rows = torch.cat(args[0], 1)
    free = int((args[4][0] < 0).nonzero()[0])
    rows[0, free, 6] = float("inf")
    rows[0, free, 2] = float("nan")
    args[0] = list(rows.split([16, 4, 1], 1))
    _, losses, gradients = form(*args)
    assert losses.isfinite().all()
    assert torch.cat(gradients, 1).isfinite().all()


@op.for_each_kernel
def test_indices_out_of_range_are_not_read(form: Form) -> None:
    args = arguments(3, boxes=3)
    args[4] = args[4].clone()
    args[4][0, :3] = torch.tensor([3, 10**9, -(10**9)])
    args[3] = torch.tensor([[4, -1, 10**6], [0, 1, 2]])
    _, losses, gradients = form(*args)
    assert losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    "change",
    [
        dict(outputs=[]),
        dict(outputs=[torch.zeros(2, 21, 4)]),
        dict(outputs=[torch.zeros(2, 16, 9), torch.zeros(2, 4, 9), torch.zeros(2, 1, 9).half()]),
        dict(outputs=[torch.zeros(2, 21, 9, dtype=torch.int64)]),
        dict(cells=torch.zeros(21, 2)),
        dict(gt_boxes=torch.zeros(1, 5, 4)),
        dict(gt_labels=torch.zeros(2, 4).long()),
        dict(index=torch.zeros(2, 20).long()),
        dict(iou=torch.zeros(21)),
        dict(scale=torch.zeros(3)),
        dict(class_pos_weight=torch.ones(3)),
        dict(kind=5),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(9), **change)


KERNELS = [
    Kernel("loss_kernel",
           dict(outputs=("*fp16",) * 3, gradients=("*fp16",) * 3, strides=("i32",) * 9, firsts=("i32",) * 3,
                starts=("i32",) * 3, rows=("i32",) * 3, cells="*fp32", boxes="*fp32", labels="*i64", index="*i64",
                matched="*fp32", scale="*fp32", pos_weight="*fp32", parts="*fp32", C="i32", A="i32", N="i32", scale_step="i32",
                iou_weight="fp32", obj_weight="fp32", cls_weight="fp32"),
           dict(LEVELS=3, TOGETHER=True, KIND=kind, CXCYWH=kind == 2, USE_L1=True, HAS_POS_WEIGHT=kind == 4, WITH_GRADIENT=True, BLOCK=32,
                BLOCK_C=16), 4)
    for kind in (0, 2, 4)
] + [
    Kernel("sum_kernel", dict(parts="*fp32", losses="*fp32", total="*fp32", programs="i32", iou_weight="fp32",
                              obj_weight="fp32", cls_weight="fp32"), dict(BLOCK=256), 4)
]  # fmt: skip
