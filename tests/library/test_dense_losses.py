"""The losses of dense heads by kinds, against PyTorch's autograd and against published implementations' numbers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op import assert_no_syncs
from torch import Tensor

import detops
from detops.geometry.points import grid_points
from detops.losses._class_loss import CLASS_KINDS, ClassLoss
from detops.losses._dense import BOX_KINDS, ClassDivisor, DenseLosses, Match, WeightDivisor, dense_losses

SHAPES, STRIDES, CLASSES, BINS = [(8, 6), (4, 3), (2, 2)], (8, 16, 32), 3, 9


def class_losses(x: Tensor, target: Tensor, positive: Tensor, kind: str, gamma: float, alpha: float) -> Tensor:
    """Each logit's loss, as the papers have it; `positive` is where the label is."""
    p, bce = x.sigmoid(), F.binary_cross_entropy_with_logits(x, target, reduction="none")
    if kind == "quality":
        return (target - p).abs() ** gamma * bce
    if kind == "bce":
        return bce
    if kind == "varifocal":
        return torch.where(positive, target, alpha * p**gamma) * bce
    return (alpha * target + (1 - alpha) * (1 - target)) * (target - p).abs() ** gamma * bce


def scene(seed: int, given: bool = False, masked: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """Make class and box logits, a random match, and its valid points."""
    g = torch.Generator().manual_seed(seed)
    scores, preds = (
        [torch.randn(2, channels, *shape, generator=g).to(dtype).requires_grad_() for shape in SHAPES]
        for channels in (CLASSES, 4 * BINS)
    )
    points = grid_points(SHAPES, STRIDES, offset=0.5)
    low = torch.rand(2, 4, 2, generator=g) * 30
    boxes = torch.cat([low, low + 4 + torch.rand(2, 4, 2, generator=g) * 40], 2)
    labels = torch.tensor([[0, 1, 2, 1]] * 2)
    valid = torch.rand(2, len(points), generator=g) < 0.7 if masked else None
    taken = torch.rand(2, len(points), generator=g) < 0.3
    index = torch.randint(4, (2, len(points)), generator=g).where(taken if valid is None else taken & valid, -1)
    quality = torch.rand(2, len(points), generator=g) if given else None
    return scores, preds, Match(points, boxes, labels, index, len(points), valid, quality, quality)


def plain_losses(scores: list[Tensor], preds: list[Tensor], match: Match, losses: DenseLosses, scale: float) -> Tensor:
    """Rows 0 to 3, level by level, in float64."""
    rows, start, (kind, gamma, alpha) = [], 0, losses.class_loss
    for level, maps in zip(scores, preds, strict=True):
        size = level.shape[2] * level.shape[3]
        here = slice(start, start + size)
        start += size
        x, raw = level.double().flatten(2).transpose(1, 2), maps.double().flatten(2).transpose(1, 2)
        raw, index, point = raw.unflatten(2, (4, BINS)), match.index[:, here], match.points[here].double()
        chosen = index.clamp(min=0)
        box = match.boxes.double().gather(1, chosen[..., None].expand(-1, -1, 4))
        positive = F.one_hot(match.labels.gather(1, chosen), CLASSES).bool() & (index >= 0)[..., None]
        distance = (raw.softmax(3) * torch.arange(BINS)).sum(3)
        pred = torch.cat([-distance[..., :2], distance[..., 2:]], 2)
        target = (box - point[:, [0, 1, 0, 1]]) / point[:, 2:]
        iou = 1 - detops.box_iou_loss(pred.detach(), target, "iou", reduction="none")
        quality = iou if match.quality is None else match.quality[:, here].double()
        cost = class_losses(x, torch.where(positive, quality[..., None], 0), positive, kind, gamma, alpha)
        if match.valid is not None:
            cost = cost.where(match.valid[:, here, None], 0)
        weight = x.detach().sigmoid().amax(2) if match.weight is None else match.weight[:, here].double()
        weight = weight.where(index >= 0, 0)
        box_loss = detops.box_iou_loss(pred, target, losses.box_kind, reduction="none")
        exact = torch.cat([-target[..., :2], target[..., 2:]], 2).clamp(0, BINS - 1 - losses.margin)[..., None]
        share = (1 - (exact - torch.arange(BINS)).abs()).clamp(min=0)
        dfl = -(share * raw.log_softmax(3)).sum((2, 3))
        rows.append([scale * cost.sum(), weight.sum(), (weight * box_loss).sum(), (weight * dfl).sum()])
    return torch.stack([torch.stack(row) for row in rows], 1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", CLASS_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_equals_autograd(kind: Any, given: bool, masked: bool, dtype: torch.dtype) -> None:
    for seed, box_kind in enumerate(BOX_KINDS):
        scores, preds, match = scene(seed, given, masked, dtype)
        weights = (0.5, 2.0, 0.25, 1.0, 1.0)
        losses = DenseLosses(ClassLoss(kind, 1.5 if seed else 2.0, 0.4), box_kind, 0.01 if seed else 0.1, 1.0, weights)
        by_level = seed % 2 == 0
        divisor, of_boxes = ClassDivisor(torch.tensor([[2, 0]]), 1.0, 0.5), WeightDivisor(0.0 if seed else 1e3, 1.0)
        expected = plain_losses(scores, preds, match, losses, 1 / 3.5)
        factor = 1 / (max(float(expected[1].detach().sum()), of_boxes.least) + 1)
        if seed > 2:
            factor, of_boxes = 1 / 3.5, None
        found = dense_losses(scores, preds, match, losses, divisor, of_boxes, by_level=by_level)
        expected = expected[[0, 2, 3]] * torch.tensor([[0.5], [2 * factor], [0.25 * factor]]).double()
        expected = expected if by_level else expected.sum(1, keepdim=True)
        found = torch.stack([torch.stack(parts) for parts in found])
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        # With different factors per loss and level, as in a criterion.
        factor = torch.rand(expected.shape, generator=torch.Generator().manual_seed(seed))
        slopes = torch.autograd.grad((found * factor).sum(), [*scores, *preds])
        exact = torch.autograd.grad((expected * factor).sum(), [*scores, *preds])
        for slope, other in zip(slopes, exact, strict=True):
            assert slope.dtype == dtype
            torch.testing.assert_close(slope, other, rtol=2e-3 if dtype == torch.float16 else 1e-4, atol=2e-6)


# The scene: an image of 96 x 96, strides 8, 16 and 32, points at half cells, two classes; class logits -2 + i / 1000 at
# point i, box logits 6 at bin 2 and 0 elsewhere; one box of class 1. What was assigned to it, and the losses.
PUBLISHED = {
    "super-gradients' PPYoloELoss, task alignment, varifocal loss": (
        dict(class_loss=ClassLoss("varifocal", 2.0, 0.75), box_kind="giou", margin=0.01), 17, (1.0, 2.5, 0.5),
        {40: 0.043807, 41: 0.055361, 42: 0.010444, 51: 0.047744, 52: 0.540684, 53: 0.709852, 54: 0.105462,
         63: 0.021884, 64: 0.221134, 65: 0.285804, 66: 0.046798, 76: 0.015984, 77: 0.019966},
        (1.305669, 0.969228, 1.716648), (0.489174, 1.202078),
    ),
    "the same, focal loss": (
        dict(class_loss=ClassLoss("quality"), box_kind="giou", margin=0.01), 17, (1.0, 2.5, 0.5),
        {40: 0.043807, 41: 0.055361, 42: 0.010444, 51: 0.047744, 52: 0.540684, 53: 0.709852, 54: 0.105462,
         63: 0.021884, 64: 0.221134, 65: 0.285804, 66: 0.046798, 76: 0.015984, 77: 0.019966},
        (0.761983, 0.969228, 1.716648), (0.809992, 1.202078),
    ),
    "the same, ATSS, varifocal loss": (
        dict(class_loss=ClassLoss("varifocal", 2.0, 0.75), box_kind="giou", margin=0.01), 17, (1.0, 2.5, 0.5),
        {52: 0.678465, 53: 0.709853, 54: 0.516527, 64: 0.583516, 65: 0.608918},
        (1.564476, 0.979045, 1.703019), (0.065222, 1.180814),
    ),
    "the same, ATSS, focal loss": (
        dict(class_loss=ClassLoss("focal", 2.0, 0.25), box_kind="giou", margin=0.01), 17, (1.0, 2.5, 0.5),
        {52: 0.678465, 53: 0.709853, 54: 0.516527, 64: 0.583516, 65: 0.608918},
        (0.448345, 0.979045, 1.703019), (0.376534, 1.180814),
    ),
    "LibreYOLO's YOLO9Loss": (
        dict(class_loss=ClassLoss("bce"), box_kind="ciou", margin=0.01), 16, (0.5, 7.5, 1.5),
        {40: 0.029837, 41: 0.038091, 51: 0.028437, 52: 0.541253, 53: 0.694218, 54: 0.079264, 63: 0.011215,
         64: 0.203175, 65: 0.259255, 66: 0.031138},
        (14.662440, 2.782204, 5.002110), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_numbers_of_published_implementations(name: str) -> None:
    """These divide all three losses by the sum of the target scores, at least 1, and DFL by the four sides."""
    kinds, bins, weights, assigned, expected, slopes = PUBLISHED[name]
    shapes, strides = [(12, 12), (6, 6), (3, 3)], (8, 16, 32)
    points, logits = grid_points(shapes, strides, offset=0.5), -2 + torch.arange(189.0) / 1000
    target = torch.zeros(1, 189)
    target[0, list(assigned)] = torch.tensor(list(assigned.values()))
    index = torch.where(target > 0, 0, -1)
    boxes, labels = torch.tensor([[[19.0, 20, 63.5, 57]]]), torch.tensor([[1]])
    scores = [part.view(1, 1, *shape).repeat(1, 2, 1, 1).requires_grad_()
              for part, shape in zip(logits.split([144, 36, 9]), shapes, strict=True)]  # fmt: skip
    bin_2 = F.one_hot(torch.tensor(2), bins).repeat(4)[None, :, None, None] * 6.0
    preds = [bin_2.repeat(1, 1, *shape).requires_grad_() for shape in shapes]
    match = Match(points, boxes, labels, index, 189, None, target, target)
    factors = (*weights[:2], weights[2] / 4, 0.0, 0.0)
    found = dense_losses(
        scores, preds, match, DenseLosses(**kinds, weights=factors), ClassDivisor(target.sum().view(1, 1))
    )
    found = torch.cat([torch.stack(parts) for parts in found])
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=0)
    found.sum().backward()
    if slopes is not None:
        of_scores = sum(float(level.grad.sum()) for level in scores)
        of_preds = sum(float(level.grad.abs().sum()) for level in preds)
        torch.testing.assert_close((of_scores, of_preds), slopes, rtol=2e-5, atol=0)


def total(scores: Any, preds: Any, match: Match, losses: DenseLosses) -> Tensor:
    parts = dense_losses(scores, preds, match, losses, ClassDivisor(torch.full((1, 1), 3)))
    return torch.stack([torch.stack(part) for part in parts]).sum()


def test_a_second_head_is_levels_that_follow() -> None:
    """Two heads in one call give each one's losses and gradients, with a scale of its own."""
    heads = [scene(seed, given=True) for seed in (2, 3)]
    losses, counts = DenseLosses(ClassLoss("varifocal"), weights=(0.5, 2.0, 0.25, 0.0, 0.0)), torch.tensor([[3], [7]])
    merged = [torch.cat([head[2][i] for head in heads], int(i not in (0,))) for i in (0, 3, 7, 7)]
    match = heads[0][2]._replace(points=merged[0], index=merged[1], quality=merged[2], weight=merged[3])
    heads[1][2].boxes.copy_(match.boxes)
    scores, preds = ([level for head in heads for level in head[i]] for i in range(2))
    together = dense_losses(scores, preds, match, losses, ClassDivisor(counts))
    alone = [dense_losses(*heads[i][:2], heads[i][2], losses, ClassDivisor(counts[i : i + 1])) for i in range(2)]
    torch.testing.assert_close(together, [(a, b) for (a,), (b,) in zip(*alone, strict=True)])
    one = [loss for parts in together[:1] + together[2:] for loss in parts]  # one loss is left out
    slopes = torch.autograd.grad(sum(one), [*scores, *preds])
    rest = [parts[i] for parts in (alone[0][0], alone[1][0], alone[0][2], alone[1][2]) for i in range(1)]
    torch.testing.assert_close(slopes, torch.autograd.grad(sum(rest), [*scores, *preds]))


def test_a_match_is_a_constant_and_is_not_waited_for() -> None:
    scores, preds, match = scene(0, given=True)
    match = match._replace(quality=match.quality.requires_grad_(), boxes=match.boxes.requires_grad_())
    losses = DenseLosses(ClassLoss("varifocal", alpha=0.75), "ciou", margin=0.01)

    def step() -> tuple[Tensor, ...]:
        loss = total(scores, preds, match, losses)
        return torch.autograd.grad(loss, [*scores, *preds, match.quality, match.boxes], allow_unused=True)

    *slopes, of_quality, of_boxes = step()
    assert all(slope.any() for slope in slopes[: len(scores)])
    assert any(slope.any() for slope in slopes[len(scores) :])
    assert of_quality is None
    assert of_boxes is None
    assert detops.count_syncs(step) == 0
    assert_no_syncs(lambda: total(scores, preds, match, losses))


def test_compiles_whole() -> None:
    scores, preds, match = scene(1, given=True, masked=True)
    losses = DenseLosses(ClassLoss("focal"), "ciou")

    def loss(*maps: Tensor) -> Tensor:
        return total(maps[:3], maps[3:], match, losses)

    expected = torch.autograd.grad(loss(*scores, *preds), [*scores, *preds])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*scores, *preds), [*scores, *preds])
    torch.testing.assert_close(found, expected)
