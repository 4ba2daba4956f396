"""The op yolox_loss: every implementation gives the numbers and gradients of the definition."""

import math

import pytest
import torch
from ahead_of_time import HAS_TRITON, assert_compiles, for_each_target, needs_triton
from hypothesis import given, settings
from hypothesis import strategies as st
from yolox_scenes import CLASS_TYPES, raw_outputs, scene

from detops import grid_points
from detops.portable.yolox_loss import yolox_loss as portable
from detops.reference import yolox_loss as definition
from detops.reference.yolox_loss import KINDS
from detops.reference.yolox_loss import yolox_loss as reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def op(*args):
    return torch.ops.detops.yolox_loss(*args)


def interpreted(*args):
    from detops.kernels.yolox_loss import yolox_loss

    return yolox_loss(*args)


IMPLEMENTATIONS = {"portable": portable, "op": op}
if HAS_TRITON and not torch.cuda.is_available():
    IMPLEMENTATIONS["triton, interpreted"] = interpreted


def arguments(seed, kind=0, use_l1=True, pos_weight=False, dtype=torch.float32, classes=4, gradient=True, **options):
    """Outputs with a random box at some of the cells."""
    g = torch.Generator().manual_seed(seed)
    levels, objectness, pred, cells, gt, labels, _ = scene(seed, classes=classes, size=32, **options)
    outputs = raw_outputs(levels, objectness, pred, cells, dtype)
    index = torch.randint(-3, gt.shape[1], objectness.shape, generator=g).clamp(min=-2) if gt.shape[1] else None
    if index is None:
        index = torch.full(objectness.shape, -1)
    iou = torch.rand(objectness.shape, generator=g)
    weight = torch.rand(classes, generator=g) + 0.5 if pos_weight else None
    scale = torch.tensor([0.1, 0.05])
    return (outputs, cells, gt, labels, index, iou, scale, weight, kind, use_l1, 5.0, 0.7, 1.3, gradient)


def compare(implementation, args, rtol, atol):
    losses, gradients = implementation(*args)
    expected, slopes = reference(*args)
    torch.testing.assert_close(losses.double(), expected, rtol=max(rtol, 1e-5), atol=1e-5)
    for gradient, slope, output in zip(gradients, slopes, args[0], strict=True):
        assert gradient.dtype == output.dtype
        assert gradient.shape == slope.shape
        torch.testing.assert_close(gradient.double(), slope.double(), rtol=rtol, atol=atol)


TOLERANCES = {torch.float32: (1e-4, 1e-5), torch.float64: (1e-6, 1e-7), torch.float16: (2e-3, 1e-3),
              torch.bfloat16: (1e-2, 1e-3)}  # fmt: skip


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_matches_reference(name):
    slow = "triton" in name

    @settings(max_examples=100 if slow else 200, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        kind=st.integers(0, 4),
        use_l1=st.booleans(),
        pos_weight=st.booleans(),
        dtype=st.sampled_from(CLASS_TYPES),
        classes=st.sampled_from([1, 4, 17, 80]),
        batch=st.sampled_from([0, 1, 2]),
        boxes=st.sampled_from([0, 1, 5]),
        index_dtype=st.sampled_from([torch.int32, torch.int64]),
    )
    def check(dtype, **options):
        rtol, atol = TOLERANCES[torch.float32 if slow and dtype == torch.float64 else dtype]
        compare(IMPLEMENTATIONS[name], arguments(dtype=dtype, **options), rtol, atol)

    check()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", range(5))
def test_gpu_matches_reference(kind):
    for dtype in CLASS_TYPES[:3]:
        args = arguments(1, kind, dtype=dtype, boxes=9, pos_weight=True)
        moved = [t.cuda() if isinstance(t, torch.Tensor) else t for t in args]
        moved[0] = [output.cuda() for output in args[0]]
        losses, gradients = op(*moved)
        expected, slopes = reference(*args)
        rtol, atol = TOLERANCES[dtype]
        torch.testing.assert_close(losses.cpu().double(), expected, rtol=max(rtol, 1e-4), atol=1e-5)
        for gradient, slope in zip(gradients, slopes, strict=True):
            torch.testing.assert_close(
                gradient.cpu().double(), slope.double(), rtol=max(rtol, 1e-3), atol=max(atol, 1e-4)
            )


def test_by_hand():
    """One cell of 8 pixels that says the box exactly, and one beside it without a box."""
    cells = grid_points([(1, 2)], [8])
    output = torch.zeros(1, 2, 7)
    output[0, 0, :2] = 0.5  # the centre of its cell, and e^0 * 8 pixels wide and high
    boxes, labels = torch.tensor([[[4.0, 4, 8, 8]]]), torch.tensor([[1]])
    index, iou = torch.tensor([[0, -1]]), torch.tensor([[1.0, 0]])
    args = ([output], cells, boxes, labels, index, iou, torch.ones(2), None, 0, True, 5.0, 1.0, 1.0, True)
    half = math.log(2)
    for implementation in (*IMPLEMENTATIONS.values(), reference):
        losses, (gradient,) = implementation(*args)
        torch.testing.assert_close(losses.float(), torch.tensor([0, 2 * half, 2 * half, 0]), rtol=0, atol=1e-6)
        expected = torch.tensor([[0.0, 0, 0, 0, -0.5, 0.5, -0.5], [0, 0, 0, 0, 0.5, 0, 0]])
        # At a tie of both corners autograd gives each side half: what grows outwards and inwards is the same.
        torch.testing.assert_close(gradient[0, :, 4:].float(), expected[:, 4:], rtol=0, atol=1e-6)
        assert gradient[0, 1, :4].abs().sum() == 0


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", range(5), ids=KINDS)
def test_ties_zero_sizes_and_distance_are_finite(name, kind):
    cells = grid_points([(2, 2)], [8])
    output = torch.zeros(1, 4, 6)
    boxes = torch.tensor([[[4.0, 4, 8, 8], [12, 4, 0, 0], [900, 900, 3, 3], [12, 12, 8, 4]]])
    args = ([output], cells, boxes, torch.zeros(1, 4).long(), torch.arange(4)[None], torch.ones(1, 4), torch.ones(2),
            None, kind, False, 5.0, 1.0, 1.0, True)  # fmt: skip
    losses, (gradient,) = IMPLEMENTATIONS[name](*args)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    compare(IMPLEMENTATIONS[name], args, 1e-4, 1e-4)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", range(5), ids=KINDS)
def test_a_small_box_far_away_keeps_its_digits(name, kind):
    """Half a pixel at 4000: corners in float32 would be off by parts in a thousand of it."""
    cells = torch.tensor([[4004.0, 4004, 8]])
    output = torch.tensor([[[0.51, 0.48, math.log(0.5 / 8), math.log(0.4 / 8), 0, 0]]])
    boxes = torch.tensor([[[4004.0, 4003.875, 0.4375, 0.5]]])
    args = ([output], cells, boxes, torch.zeros(1, 1).long(), torch.zeros(1, 1).long(), torch.ones(1, 1), torch.ones(2),
            None, kind, True, 5.0, 1.0, 1.0, True)  # fmt: skip
    compare(IMPLEMENTATIONS[name], args, 1e-4, 1e-4)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_what_is_not_finite_shows(name):
    """A broken objectness anywhere and broken numbers of a positive make their loss NaN; others do not count."""
    for channel, loss in ((4, 1), (5, 2), (0, 0), (2, 0)):
        args = list(arguments(2, boxes=3))
        positive = int((args[4][0] >= 0).nonzero()[0])
        rows = torch.cat(args[0], 1)
        rows[0, positive, channel] = float("nan")
        args[0] = list(rows.split([16, 4, 1], 1))
        assert IMPLEMENTATIONS[name](*args)[0].isnan().tolist()[loss]
    args = list(arguments(2, boxes=3))
    rows = torch.cat(args[0], 1)
    free = int((args[4][0] < 0).nonzero()[0])
    rows[0, free, 6] = float("inf")
    rows[0, free, 2] = float("nan")
    args[0] = list(rows.split([16, 4, 1], 1))
    losses, gradients = IMPLEMENTATIONS[name](*args)
    assert losses.isfinite().all()
    assert torch.cat(gradients, 1).isfinite().all()


@pytest.mark.parametrize("name", ["op", *(n for n in IMPLEMENTATIONS if "triton" in n)])
def test_indices_out_of_range_are_not_read(name):
    args = list(arguments(3, boxes=3))
    args[4] = args[4].clone()
    args[4][0, :3] = torch.tensor([3, 10**9, -(10**9)])
    args[3] = torch.tensor([[4, -1, 10**6], [0, 1, 2]])
    losses, gradients = IMPLEMENTATIONS[name](*args)
    assert losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_without_gradient_and_in_any_layout():
    args = arguments(4, boxes=5)
    expected, gradients = op(*args)
    assert torch.equal(op(*args[:-1], False)[0], expected)
    assert op(*args[:-1], False)[1][0].numel() == 0
    for implementation in (op, portable, *(IMPLEMENTATIONS[n] for n in IMPLEMENTATIONS if "triton" in n)):
        first = [output.transpose(1, 2).contiguous().transpose(1, 2) for output in args[0]]
        assert not first[0].is_contiguous()
        losses, slopes = implementation(first, *args[1:])
        torch.testing.assert_close(losses, expected)
        torch.testing.assert_close(slopes[0], gradients[0], rtol=1e-4, atol=1e-6)


def test_any_number_of_threads_gives_the_same_bits():
    args = arguments(5, boxes=5, classes=80)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(op(*args))
    finally:
        torch.set_num_threads(before)
    for losses, gradients in found[1:]:
        assert torch.equal(losses, found[0][0])
        assert all(torch.equal(a, b) for a, b in zip(gradients, found[0][1], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_the_reference(kind):
    g = torch.Generator().manual_seed(6)
    pred, target = (torch.rand(6, 4, generator=g, dtype=torch.float64) * 4 + 1 for _ in range(2))
    if kind == "ciou":  # alpha is a constant to the gradient, not to finite differences
        pred[:, 2:] = target[:, 2:] * torch.rand(6, 1, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: definition.iou_loss(p, target, kind), pred.requires_grad_(), atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    for args in (arguments(7), arguments(8, boxes=0, gradient=False, pos_weight=True)):
        args = [t.to(device) if isinstance(t, torch.Tensor) else t for t in args]
        args[0] = [output.to(device) for output in args[0]]
        torch.library.opcheck(torch.ops.detops.yolox_loss.default, tuple(args))


@needs_triton
@for_each_target
def test_compiles_ahead_of_time(target):
    types = dict(output="*fp16", stride_b="i32", stride_r="i32", stride_c="i32", gradient="*fp16", cells="*fp32",
                 boxes="*fp32", labels="*i64", index="*i64", matched="*fp32", scale="*fp32", pos_weight="*fp32",
                 parts="*fp32", first_part="i32", start="i32", R="i32", C="i32", A="i32", N="i32", iou_weight="fp32",
                 obj_weight="fp32", cls_weight="fp32")  # fmt: skip
    cases = [
        ("loss_kernel", types, dict(KIND=kind, USE_L1=True, HAS_POS_WEIGHT=kind == 4, WITH_GRADIENT=True, BLOCK=32,
                                    BLOCK_C=128), 4)
        for kind in (0, 2, 4)
    ]  # fmt: skip
    assert_compiles("yolox_loss", cases, target)
