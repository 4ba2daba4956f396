"""box_iou_loss and BoxIoULoss."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

import detops
from detops.geometry.boxes import to_cxcywh, to_xyxy

KINDS = ("iou", "giou", "diou", "ciou", "iou_squared")


def one_pair(p, t, kind, eps=1e-7):
    """The formulas, for two xyxy boxes; one with a negative side is empty, at its centre."""
    p, t = ([f((b[i % 2] + b[i % 2 + 2]) / 2, b[i]) for i, f in enumerate((min, min, max, max))] for b in (p, t))
    w, h, tw, th = p[2] - p[0], p[3] - p[1], t[2] - t[0], t[3] - t[1]
    inter = max(0, min(p[2], t[2]) - max(p[0], t[0])) * max(0, min(p[3], t[3]) - max(p[1], t[1]))
    union = w * h + tw * th - inter
    iou = inter / union if union > eps else 0
    hull_w, hull_h = max(p[2], t[2]) - min(p[0], t[0]), max(p[3], t[3]) - min(p[1], t[1])
    hull, diagonal = hull_w * hull_h, hull_w**2 + hull_h**2
    distance = ((p[0] + p[2] - t[0] - t[2]) ** 2 + (p[1] + p[3] - t[1] - t[3]) ** 2) / 4
    turn = (math.atan2(tw, th) if tw or th else math.pi / 4) - (math.atan2(w, h) if w or h else math.pi / 4)
    v = 4 / math.pi**2 * turn**2
    diou = 1 - iou + (distance / diagonal if diagonal > eps else 0)
    return {
        "iou": 1 - iou,
        "iou_squared": 1 - iou**2,
        "giou": 1 - iou + ((hull - union) / hull if hull > eps else 0),
        "diou": diou,
        "ciou": diou + (v * v / (1 - iou + v) if 1 - iou + v > eps else 0),
    }[kind]


corner, side = st.floats(-20, 20), st.one_of(st.just(0.0), st.floats(0.01, 30), st.floats(-5, -0.01))
box = st.tuples(corner, corner, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


@pytest.mark.parametrize("kind", KINDS)
def test_matches_the_formulas(kind):
    @settings(max_examples=200, deadline=None)
    @given(pairs=st.lists(st.tuples(box, box), max_size=5), cxcywh=st.booleans())
    def check(pairs, cxcywh):
        pred, target = (torch.tensor([pair[i] for pair in pairs], dtype=torch.float64).reshape(-1, 4) for i in (0, 1))
        expected = torch.tensor([one_pair(p, t, kind) for p, t in pairs], dtype=torch.float64)
        form = "cxcywh" if cxcywh else "xyxy"
        if cxcywh:
            pred, target = to_cxcywh(pred), to_cxcywh(target)
        got = detops.box_iou_loss(pred, target, kind, reduction="none", box_format=form)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)

    check()


def test_by_hand():
    """Two squares of side 4 that overlap by half: IoU 8 / 24, no empty area in the enclosing box, a distance of 2."""
    pred, target = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 0, 6, 4]])
    expected = {"iou": 2 / 3, "iou_squared": 8 / 9, "giou": 2 / 3, "diou": 2 / 3 + 4 / 52, "ciou": 2 / 3 + 4 / 52}
    for kind, value in expected.items():
        assert detops.box_iou_loss(pred, target, kind).item() == pytest.approx(value, abs=1e-6)
    # A square of side 2 in the corner of one of side 4, and one of 2 x 4: IoU 1/4 and 1/2, the angle atan(1/2).
    assert detops.box_iou_loss(torch.tensor([[0.0, 0, 2, 2]]), pred, "giou").item() == pytest.approx(0.75, abs=1e-6)
    v = 4 / math.pi**2 * (math.pi / 4 - math.atan(0.5)) ** 2
    got = detops.box_iou_loss(torch.tensor([[0.0, 0, 2, 4]]), pred, "ciou").item()
    assert got == pytest.approx(0.5 + 1 / 32 + v * v / (0.5 + v), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["xyxy", "cxcywh"])
def test_small_boxes_far_from_the_origin_lose_no_digits(kind, form):
    g = torch.Generator().manual_seed(3)
    low, size = torch.rand(2000, 2, generator=g) * 1280, 0.5 + 60 * torch.rand(2000, 2, generator=g) ** 4
    target = torch.cat([low, low + size], 1)
    pred = target + torch.randn(2000, 4, generator=g) * 0.1 * size.repeat(1, 2)
    if form == "cxcywh":
        pred, target = to_cxcywh(pred), to_cxcywh(target)
    options = dict(reduction="none", box_format=form)
    expected = detops.box_iou_loss(pred.double(), target.double(), kind, **options)
    torch.testing.assert_close(detops.box_iou_loss(pred, target, kind, **options).double(), expected, rtol=0, atol=5e-6)
    assert (detops.box_iou_loss(target, target, kind, **options) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["xyxy", "cxcywh"])
def test_gradcheck(kind, form):
    g = torch.Generator().manual_seed(0)
    low = torch.rand(8, 2, generator=g, dtype=torch.float64) * 4
    target = torch.cat([low, low + 1 + torch.rand(8, 2, generator=g, dtype=torch.float64) * 4], 1)
    pred = target + torch.rand(8, 4, generator=g, dtype=torch.float64) * 0.7
    if form == "cxcywh":
        pred, target = to_cxcywh(pred), to_cxcywh(target)
    if kind == "ciou":  # alpha is a constant to the gradient, not to finite differences: equal angles make it 0
        pred = to_cxcywh(pred) if form == "xyxy" else pred
        shape = to_cxcywh(target)[:, 2:] if form == "xyxy" else target[:, 2:]
        pred = torch.cat([pred[:, :2], shape * 1.2], 1)
        pred = to_xyxy(pred) if form == "xyxy" else pred
    assert torch.autograd.gradcheck(
        lambda p: detops.box_iou_loss(p, target, kind, reduction="none", box_format=form),
        pred.requires_grad_(), atol=1e-4,
    )  # fmt: skip


def test_what_is_a_constant_to_the_gradient():
    pred, target = torch.tensor([[0.0, 0, 2, 4]]).requires_grad_(), torch.tensor([[1.0, 0, 5, 4]]).requires_grad_()
    assert torch.autograd.grad(detops.box_iou_loss(pred, target), target, allow_unused=True) == (None,)
    turn = math.pi / 4 - torch.atan2(pred[0, 2] - pred[0, 0], pred[0, 3] - pred[0, 1])
    aspect = 4 / math.pi**2 * turn.square()
    alpha = aspect.item() / (1 - 4 / 20 + aspect.item())  # IoU: 1 x 4 of 8 + 16 - 4
    expected = detops.box_iou_loss(pred, target, "diou") + alpha * aspect
    ours, theirs = (torch.autograd.grad(t, pred)[0] for t in (detops.box_iou_loss(pred, target, "ciou"), expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_edges_are_finite(kind, dtype):
    boxes = torch.tensor([
        [0, 0, 8, 8], [0, 0, 0, 0], [4, 4, 4, 9], [4, 4, 9, 4], [900, 900, 901, 901], [8, 0, 16, 8], [8, 8, 0, 0],
        [0, 0, 1e-3, 1e-3],
    ])  # fmt: skip
    pred = boxes[:, None].expand(8, 8, 4).to(dtype).requires_grad_()
    loss = detops.box_iou_loss(pred, boxes.expand(8, 8, 4).to(dtype), kind, reduction="none")
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.isfinite().all()
    assert (loss >= -1e-6).all()
    assert loss[0, 0].abs() < 1e-6
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_up_to_what_can_be_squared(kind):
    pred = torch.tensor([[0, 0, 1e18, 2e18], [-1e18, 0, 0, 1e18], [0, 0, 1, 1]], requires_grad=True)
    loss = detops.box_iou_loss(pred, torch.tensor([[0, 0, 1e18, 1e18]] * 3), kind, reduction="none")
    assert loss.isfinite().all()
    assert loss[0] < loss[1]
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_boxes(kind, reduction):
    empty = torch.zeros(0, 4, requires_grad=True)
    loss = detops.box_iou_loss(empty, torch.zeros(0, 4), kind, reduction=reduction)
    loss.backward()
    assert loss.item() == 0
    assert empty.grad.shape == (0, 4)


def test_weight_reduction_and_layout():
    g = torch.Generator().manual_seed(1)
    pred, target = torch.rand(2, 3, 4, generator=g), torch.rand(2, 3, 4, generator=g)
    pred[..., 2:] += 1
    target[..., 2:] += 1
    elements = detops.box_iou_loss(pred, target, "giou", reduction="none")
    weight = torch.rand(2, 3, generator=g)
    assert elements.shape == (2, 3)
    eps = torch.finfo(torch.float32).eps
    for options, expected in (
        (dict(), elements.mean()), (dict(reduction="sum"), elements.sum()),
        (dict(weight=weight), (elements * weight).mean()),
        (dict(weight=weight, avg_factor=2.0), (elements * weight).sum() / (2 + eps)),
        (dict(avg_factor=torch.tensor(5.0)), elements.sum() / (5 + eps)),
    ):  # fmt: skip
        torch.testing.assert_close(detops.box_iou_loss(pred, target, "giou", **options), expected)
    strided = torch.stack([pred, pred], -1)[..., 0]
    assert torch.equal(detops.box_iou_loss(strided, target, "giou"), elements.mean())
    module = detops.BoxIoULoss("giou", loss_weight=2.0)
    torch.testing.assert_close(module(pred, target, weight, 2.0), 2 * (elements * weight).sum() / (2 + eps))


def test_no_host_sync_and_compiles_whole():
    pred, target = torch.rand(5, 4).requires_grad_(), torch.rand(5, 4)

    def step(pred):
        return sum(detops.box_iou_loss(pred, target, kind) for kind in KINDS)

    assert detops.count_syncs(lambda: step(pred).backward()) == 0
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert step(mode.from_tensor(pred)).shape == ()
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(pred), step(pred))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pred": torch.zeros(3)}, ValueError, r"pred: expected shape \(\.\.\., 4\), got \(3,\)"),
        ({"pred": torch.zeros(2, 4).long()}, TypeError, "pred: expected a floating-point tensor, got int64"),
        ({"target": torch.zeros(3, 4)}, ValueError, r"target: expected shape \(2, 4\) to match pred, got \(3, 4\)"),
        ({"target": torch.zeros(2, 4, device="meta")}, ValueError, "target: expected a tensor on cpu, as pred is"),
        ({"kind": "eiou"}, ValueError, "kind: expected one of iou, giou, diou, ciou, iou_squared, got 'eiou'"),
        ({"box_format": "xywh"}, ValueError, "box_format: expected 'xyxy' or 'cxcywh', got 'xywh'"),
        ({"reduction": "total"}, ValueError, "reduction: expected"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        detops.box_iou_loss(**dict(pred=torch.zeros(2, 4), target=torch.zeros(2, 4)) | change)
    with pytest.raises(ValueError, match="kind: expected one of"):
        detops.BoxIoULoss("l1")
