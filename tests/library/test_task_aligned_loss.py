"""TaskAlignedLoss: the numbers of super-gradients and LibreYOLO, and of plain PyTorch on random scenes."""

import copy
import pickle
from typing import Any

import pytest
import torch
from op import assert_compiles_whole, assert_no_syncs, two_ranks
from torch import Tensor

import detops
from detops import TaskAlignedLoss
from detops.apps.bench import _task_aligned as bench
from detops.assign.tal import RULES
from detops.reference import decode_distances as reference_boxes
from detops.reference import tal_match as reference_match

SHAPES, STRIDES, CLASSES = [(12, 12), (6, 6), (3, 3)], (8, 16, 32), 2
YOLOV9: dict[str, Any] = dict(
    rule="yolov9", class_loss="bce", box_kind="ciou", cls_weight=0.5, bbox_weight=7.5, dfl_weight=1.5
)

Maps = list[Tensor]


def maps(rows: Tensor) -> Maps:
    """Leaves (B, channels, H, W) of each level, from rows (B, A, channels)."""
    levels = rows.split([h * w for h, w in SHAPES], 1)
    return [
        level.transpose(1, 2).unflatten(2, shape).clone().requires_grad_()
        for level, shape in zip(levels, SHAPES, strict=True)
    ]


def published(bins: int) -> tuple[Maps, Maps, tuple[Tensor, Tensor]]:
    """One box in 96 x 96 pixels; logits that rise from point to point, and all distances about two strides."""
    count = sum(h * w for h, w in SHAPES)
    scores = (-2 + 0.001 * torch.arange(count))[None, :, None].expand(1, count, CLASSES)
    sides = torch.zeros(1, count, 4, bins)
    sides[..., 2] = 6
    return maps(scores), maps(sides.flatten(2)), (torch.tensor([[[19.0, 20, 63.5, 57]]]), torch.tensor([[1]]))


def rows(levels: Maps) -> Tensor:
    return torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)


@pytest.mark.parametrize(
    ("options", "bins", "losses", "slopes"),
    [
        ({}, 17, (1.305669, 0.969228, 1.716648), (0.489174, 1.202078)),
        ({"class_loss": "focal"}, 17, (0.761983, 0.969228, 1.716648), (0.809992, 1.202078)),
        (YOLOV9, 16, (14.662440, 2.782204, 5.002110), None),
    ],
    ids=["PP-YOLOE", "PP-YOLOE, focal", "YOLOv9"],
)
def test_values_of_the_originals(options: dict[str, Any], bins: int, losses: tuple[float, ...], slopes: Any) -> None:
    """What super-gradients' PPYoloELoss and LibreYOLO's YOLO9Loss return."""
    scores, preds, targets = published(bins)
    found = TaskAlignedLoss(CLASSES, bins - 1, STRIDES, **options)(scores, preds, targets)
    assert list(found) == ["loss_cls", "loss_bbox", "loss_dfl"]
    torch.testing.assert_close(torch.stack(list(found.values())), torch.tensor(losses), rtol=3e-6, atol=0)
    torch.stack(list(found.values())).sum().backward()
    if slopes is not None:
        assert rows([s.grad for s in scores]).sum().item() == pytest.approx(slopes[0], abs=5e-6)  # type: ignore[misc]
        assert rows([p.grad for p in preds]).abs().sum().item() == pytest.approx(slopes[1], abs=5e-6)  # type: ignore[misc]


def test_assignment_of_the_originals() -> None:
    scores, preds, targets = published(16)
    found = TaskAlignedLoss(CLASSES, 15, STRIDES, **YOLOV9).assign(scores, preds, targets)
    assert (found.box_index[0] >= 0).nonzero().flatten().tolist() == [40, 41, 51, 52, 53, 54, 63, 64, 65, 66]
    quality = [0.029837, 0.038091, 0.028437, 0.541253, 0.694218, 0.079264, 0.011215, 0.203175, 0.259255, 0.031138]
    torch.testing.assert_close(found.quality[found.box_index >= 0], torch.tensor(quality), rtol=0, atol=1e-6)


def random_scene(seed: int, batch: int = 2, bins: int = 17) -> tuple[Maps, Maps, tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    count = sum(h * w for h, w in SHAPES)
    scores = torch.randn(batch, count, CLASSES, generator=g) - 2
    sides = torch.randn(batch, count, 4, bins, generator=g)
    if bins == 1:
        sides = 2 + sides.abs() / 4
    else:
        sides[..., 2] += 3
    low = torch.rand(batch, 4, 2, generator=g) * 60
    boxes = torch.cat([low, low + 8 + torch.rand(batch, 4, 2, generator=g) * 30], 2)
    return maps(scores), maps(sides.flatten(2)), (boxes, torch.randint(-1, CLASSES, (batch, 4), generator=g))


@pytest.mark.parametrize("seed", range(4))
def test_plain_pytorch_gives_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form in use, with tensors of boxes x points, masks, and dense targets."""
    monkeypatch.setattr(bench, "IMAGE", 128)
    scene = bench.Scene(2, 5, 8, "cpu")
    scene.truth = detops.GroundTruth(scene.truth.boxes.roll(seed, 1) + seed, scene.truth.labels)
    leaves = [level.requires_grad_() for level in (*scene.scores, *scene.preds)]
    ours = scene.criterion()(scene.scores, scene.preds, scene.truth)
    plain = bench.plain_loss(scene, bench.plain_assign)
    total = torch.stack(list(ours.values())).sum()
    torch.testing.assert_close(total, plain, rtol=1e-5, atol=1e-5)
    pairs = zip(torch.autograd.grad(total, leaves), torch.autograd.grad(plain, leaves), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bins", [1, 17])
def test_the_assignment_is_that_of_the_predicted_boxes(rule: Any, bins: int) -> None:
    scores, preds, (boxes, labels) = random_scene(1, bins=bins)
    criterion = TaskAlignedLoss(CLASSES, bins - 1, STRIDES, rule=rule)
    points = detops.grid_points(SHAPES, STRIDES)
    pred = reference_boxes.decode_distances(preds, points).float().detach()
    found = criterion.assign(scores, preds, (boxes, labels))
    public = detops.tal_assign(rows(scores).detach(), pred, points, (boxes, labels), rule=criterion.rule)
    assert torch.equal(found.box_index, public.box_index)
    torch.testing.assert_close(found.quality, public.quality, rtol=0, atol=1e-5)
    assert found.num_positives > 0
    reach = None if rule != "yolov9" or bins == 1 else 15.99
    assert criterion.rule.reach == reach


def test_a_head_of_plain_distances() -> None:
    """Their box loss is the IoU loss of the boxes, by autograd."""
    scores, preds, targets = random_scene(2, bins=1)
    criterion = TaskAlignedLoss(CLASSES, 0, STRIDES)
    losses = criterion(scores, preds, targets)
    assert list(losses) == ["loss_cls", "loss_bbox"]
    found, points = criterion.assign(scores, preds, targets), detops.grid_points(SHAPES, STRIDES)
    stride = points[:, 2:]
    pred = detops.distances_to_boxes(points[:, :2], rows(preds) * stride) / stride
    gt = targets[0].gather(1, found.box_index.clamp(min=0)[..., None].expand(-1, -1, 4)) / stride
    plain = 2.5 * detops.box_iou_loss(pred, gt, "giou", weight=found.quality, reduction="sum")
    plain = plain / found.quality.sum().clamp(min=1)
    torch.testing.assert_close(losses["loss_bbox"], plain, rtol=1e-4, atol=1e-5)
    pairs = zip(torch.autograd.grad(losses["loss_bbox"], preds), torch.autograd.grad(plain, preds), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_a_second_head_predicts_each_box_once() -> None:
    """Its losses stand apart, and are those of the same head alone with one point per box."""
    scores, preds, targets = random_scene(3)
    other_scores, other_preds, _ = random_scene(4)
    criterion = TaskAlignedLoss(CLASSES, 16, STRIDES, rule="yolov8", class_loss="bce")
    both = criterion(scores, preds, targets, one_to_one=(other_scores, other_preds))
    first = criterion(scores, preds, targets)
    rule = RULES["yolov8"]._replace(topk=1)
    second = TaskAlignedLoss(CLASSES, 16, STRIDES, rule=rule, class_loss="bce")(other_scores, other_preds, targets)
    assert both == first | {f"{name}_one_to_one": loss for name, loss in second.items()}
    once = criterion.assign(other_scores, other_preds, targets, topk=1)
    for b in range(2):
        taken = once.box_index[b][once.box_index[b] >= 0]
        assert len(taken) > 0
        assert len(taken.unique()) == len(taken)
    torch.stack(list(both.values())).sum().backward()
    for levels in (other_scores, other_preds):
        assert any(level.grad is not None and level.grad.any() for level in levels)


def test_points_in_padding_and_in_ignored_regions_take_no_part() -> None:
    scores, preds, (boxes, labels) = random_scene(5)
    criterion = TaskAlignedLoss(CLASSES, 16, STRIDES, class_loss="bce")
    sizes = [(64, 96), (96, 96)]
    criterion(scores, preds, (boxes, labels), sizes)["loss_cls"].backward()
    assert not scores[0].grad[0, :, 8:].any()  # type: ignore[index]
    assert scores[0].grad[0, :, :8].all()  # type: ignore[index]
    for level in scores:
        level.grad = None
    region = torch.tensor([[[0.0, 0, 96, 96]], [[0, 0, 0, 0]]])
    truth = detops.GroundTruth(boxes, labels, ignored=region, ignored_sizes=torch.tensor([1, 0]))
    found = criterion.assign(scores, preds, truth)
    assert ((found.box_index[0] == -2) == (found.labels[0] < 0)).all()
    criterion(scores, preds, truth)["loss_cls"].backward()
    trained = rows([level.grad for level in scores])[0].any(1)  # type: ignore[misc]
    assert torch.equal(trained, found.box_index[0] >= 0)


def test_no_box_trains_the_background() -> None:
    scores, preds, _ = random_scene(6)
    empty = (torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64))
    losses = TaskAlignedLoss(CLASSES, 16, STRIDES)(scores, preds, empty)
    x = rows(scores).double()
    expected = (0.75 * x.sigmoid().square() * torch.nn.functional.softplus(x)).sum()
    torch.testing.assert_close(losses["loss_cls"].double(), expected, rtol=1e-5, atol=0)
    assert losses["loss_bbox"] == losses["loss_dfl"] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    scores, preds, targets = random_scene(7)
    criterion = TaskAlignedLoss(CLASSES, 16, STRIDES)
    short = [[level.detach().to(dtype).requires_grad_() for level in levels] for levels in (scores, preds)]
    same = [[level.detach().float().requires_grad_() for level in levels] for levels in short]
    ours, theirs = criterion(*short, targets), criterion(*same, targets)
    for name, loss in ours.items():
        torch.testing.assert_close(loss.float(), theirs[name], rtol=1e-4, atol=1e-5)
    torch.stack(list(ours.values())).sum().backward()
    assert all(level.grad.isfinite().all() for level in short[0])


def test_channels_last_maps_are_read_where_they_are() -> None:
    scores, preds, targets = random_scene(8)
    criterion = TaskAlignedLoss(CLASSES, 16, STRIDES)
    expected = criterion(scores, preds, targets)
    torch.stack(list(expected.values())).sum().backward()
    last = [
        [level.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for level in levels]
        for levels in (scores, preds)
    ]
    found = criterion(*last, targets)
    torch.stack(list(found.values())).sum().backward()
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[name])
    for mine, other in zip(last[0] + last[1], scores + preds, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    assert last[0][0].grad.is_contiguous(memory_format=torch.channels_last)


def test_syncs_compilation_copies_and_pickles() -> None:
    scores, preds, targets = random_scene(9)
    criterion = TaskAlignedLoss(CLASSES, 16, STRIDES, **YOLOV9)

    def losses(scores: Maps, preds: Maps, boxes: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return criterion(scores, preds, (boxes, labels), one_to_one=(scores, preds))

    expected = losses(scores, preds, *targets)
    assert assert_no_syncs(losses, scores, preds, *targets).keys() == expected.keys()
    assert_compiles_whole(losses, (scores, preds, *targets), rtol=1e-5, atol=1e-6)
    for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert other(scores, preds, targets)["loss_cls"] == expected["loss_cls"]


def half_a_step(rank: int, ranks: int) -> list[Tensor]:
    """Gradients of a rank's share of four images, times its share of the batch as DDP's mean has it."""
    scores, preds, (boxes, labels) = random_scene(10, batch=4)
    part = slice(rank * 4 // ranks, (rank + 1) * 4 // ranks)
    own = [[level.detach()[part].requires_grad_() for level in levels] for levels in (scores, preds)]
    losses = TaskAlignedLoss(CLASSES, 16, STRIDES)(*own, (boxes[part], labels[part]), one_to_one=(own[0], own[1]))
    (torch.stack(list(losses.values())).sum() / ranks).backward()
    return [level.grad for level in own[0] + own[1] if level.grad is not None]


@pytest.mark.slow
def test_two_ranks_give_the_gradient_of_one(tmp_path: Any) -> None:
    whole, halves = two_ranks(half_a_step, tmp_path)
    assert len(whole) == 6
    for gradient, *parts in zip(whole, *halves, strict=True):
        torch.testing.assert_close(torch.cat(parts), gradient, rtol=1e-4, atol=1e-7)


def test_the_whole_loss_by_the_definition() -> None:
    """The assignment's qualities come from the definition's, which decides alike."""
    scores, preds, (boxes, labels) = random_scene(11)
    criterion = TaskAlignedLoss(CLASSES, 16, STRIDES)
    points = detops.grid_points(SHAPES, STRIDES)
    pred = reference_boxes.decode_distances(preds, points)
    logits = [level.detach().flatten(2).transpose(1, 2) for level in scores]
    index, quality = reference_match.tal_match(
        logits, pred.detach(), points, boxes, labels, None, None, 1.0, 6.0, 13, False, False, True, False, 1e-9,
        float("inf"), 0.0, 1e-9,
    )  # fmt: skip
    found = criterion.assign(scores, preds, (boxes, labels))
    assert torch.equal(found.box_index, index)
    torch.testing.assert_close(found.quality.double(), quality, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes: expected at least 1, got 0"),
        ({"reg_max": -1}, "reg_max: expected at least 0, got -1"),
        ({"rule": "atss"}, "rule: expected a TalRule or one of"),
        ({"class_loss": "quality"}, "class_loss: expected 'varifocal', 'focal' or 'bce', got 'quality'"),
        ({"alpha": 2.0}, r"alpha: expected 0 \.\. 1, or None, got 2.0"),
        ({"box_kind": "siou"}, "box_kind: expected giou, ciou, iou, diou or iou_squared, got 'siou'"),
    ],
)
def test_errors_name_the_argument(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskAlignedLoss(**dict(num_classes=2) | options)


def test_errors_of_the_maps() -> None:
    scores, preds, targets = random_scene(12)
    criterion = TaskAlignedLoss(CLASSES, 15, STRIDES)
    with pytest.raises(ValueError, match=r"bbox_preds: expected shape \(B, 64, H, W\), got \(2, 68, 12, 12\)"):
        criterion(scores, preds, targets)
    with pytest.raises(TypeError, match="cls_scores: expected levels of one dtype"):
        TaskAlignedLoss(CLASSES, 16, STRIDES)([scores[0].half(), *scores[1:]], preds, targets)
    one = ([level[:1] for level in scores], [level[:1] for level in preds])
    with pytest.raises(ValueError, match="one_to_one: expected"):
        TaskAlignedLoss(CLASSES, 16, STRIDES)(scores, preds, targets, one_to_one=one)


def test_a_second_head_takes_one_point_per_box() -> None:
    scores, preds, targets = random_scene(12)
    both = TaskAlignedLoss(CLASSES, 16, STRIDES)(scores, preds, targets, one_to_one=(scores, preds))
    alone = TaskAlignedLoss(CLASSES, 16, STRIDES, rule=detops.TalRule(topk=1))(scores, preds, targets)
    for name, loss in alone.items():
        torch.testing.assert_close(both[f"{name}_one_to_one"], loss)
        assert both[name] != loss
