"""All criteria and assigners: forms of targets, static shapes, ignored regions, ranks."""

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import detops
from detops import GroundTruth
from detops.geometry.points import points_in_boxes
from detops.reference.atss_match import atss_match

SIDE, STRIDES, CLASSES, BINS = 64, (8, 16, 32), 3, 5
SHAPES = [(SIDE // stride, SIDE // stride) for stride in STRIDES]
PAD_TO, PAD_IGNORED_TO = 12, 3
Losses = dict[str, Tensor]
Criterion = Callable[[Any], Losses]  # a function of the targets


def boxes_of(seed: int, batch: int = 2, most: int = 6) -> tuple[list[Tensor], list[Tensor]]:
    """Make up to `most` boxes per image, some of them ignored."""
    g = torch.Generator().manual_seed(seed)
    boxes, labels = [], []
    for _ in range(batch):
        n = int(torch.randint(0, most + 1, (), generator=g))
        low = torch.rand(n, 2, generator=g) * 40
        boxes.append(torch.cat([low, low + 8 + torch.rand(n, 2, generator=g) * 24], 1))
        labels.append(torch.randint(-1, CLASSES, (n,), generator=g))
    return boxes, labels


def regions_of(seed: int, batch: int = 2, most: int = PAD_IGNORED_TO) -> list[Tensor]:
    """Make ignored regions, larger than boxes; the last has no area, sides in the wrong order, or a NaN."""
    boxes, _ = boxes_of(seed + 1000, batch, most)
    broken = torch.tensor([[9.0, 9, 9, 60], [50, 50, 4, 60], [float("nan"), 0, 60, 60]])
    larger = [region[: most - 1] + torch.tensor([0, 0, 24, 24]) for region in boxes]
    return [torch.cat([region, broken[(seed + b) % 3][None]]) for b, region in enumerate(larger)]


def maps_of(seed: int, *channels: int, batch: int = 2) -> list[list[Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [[torch.randn(batch, c, *shape, generator=g) for shape in SHAPES] for c in channels]


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def centernet(seed: int) -> tuple[list[Tensor], Criterion]:
    g = torch.Generator().manual_seed(seed)
    maps = leaves([torch.randn(2, c, 16, 16, generator=g) for c in (CLASSES, 2, 2)])
    criterion = detops.CenterNetLoss(CLASSES)
    return maps, lambda targets: criterion(maps[0], maps[1], maps[2], targets, (SIDE, SIDE))


def gfl(seed: int) -> tuple[list[Tensor], Criterion]:
    scores, sides = (leaves(part) for part in maps_of(seed, CLASSES, 4 * BINS))
    criterion = detops.GFLLoss(CLASSES, BINS - 1, STRIDES)
    return scores + sides, lambda targets: criterion(scores, sides, targets)


def ld(seed: int) -> tuple[list[Tensor], Criterion]:
    *maps, soft = maps_of(seed, CLASSES, 4 * BINS, 4 * BINS)
    scores, sides = (leaves(part) for part in maps)
    criterion = detops.LDLoss(CLASSES, BINS - 1, STRIDES, ld_region="main+vlr")
    return scores + sides, lambda targets: criterion(scores, sides, targets, soft_targets=soft)


def yolox(seed: int) -> tuple[list[Tensor], Criterion]:
    (rows,) = maps_of(seed, 5 + CLASSES)
    outputs = leaves([row.permute(0, 2, 3, 1)[:, None].contiguous() for row in rows])
    criterion = detops.YOLOXLoss(CLASSES, STRIDES, use_l1=True)
    return outputs, lambda targets: criterion(outputs, targets)


def super_gradients(seed: int) -> tuple[list[Tensor], Criterion]:
    outputs, _ = yolox(seed)
    criterion = detops.YoloXFastDetectionLoss(STRIDES, CLASSES)

    def call(targets: Any) -> Losses:
        loss, components = criterion(outputs, targets)
        return {"loss": loss, "components": components}

    return outputs, call


CRITERIA = {"CenterNet": centernet, "GFL": gfl, "LD": ld, "YOLOX": yolox, "super-gradients": super_gradients}
for_each_criterion = pytest.mark.parametrize("name", CRITERIA)


def results(name: str, targets: Any, seed: int = 0) -> tuple[Losses, list[Tensor]]:
    """Return the losses and the gradient of their sum."""
    maps, call = CRITERIA[name](seed)
    losses = call(targets)
    total = sum(losses.values(), torch.zeros(())).sum()
    return losses, list(torch.autograd.grad(total, maps))


def forms_of(boxes: list[Tensor], labels: list[Tensor], regions: list[Tensor] | None = None) -> dict[str, Any]:
    """Return the same targets in every form that criteria take; with regions, only in forms that can hold them."""
    truth = GroundTruth.from_boxes(boxes, labels, ignored=regions)
    dicts: list[dict[str, Any]] = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]
    padded = truth.pad_to(PAD_TO, ignored=PAD_IGNORED_TO)
    if regions is not None:
        for target, region in zip(dicts, regions, strict=True):
            flags = [0] * len(target["boxes"]) + [1] * len(region)
            target["boxes"] = torch.cat([target["boxes"], region])
            target["labels"] = torch.cat([target["labels"], torch.zeros(len(region), dtype=torch.int64)])
            target["iscrowd"] = torch.tensor(flags)
        return {"GroundTruth": truth, "padded": padded, "list of dicts": dicts, "tuple of dicts": tuple(dicts)}
    ragged = detops.RaggedBatch.from_list(boxes), detops.RaggedBatch.from_list(labels)
    return {
        "GroundTruth": truth,
        "padded": padded,
        "pair of lists": (boxes, labels),
        "list of two lists": [boxes, labels],
        "pair of RaggedBatches": ragged,
        "pair of tensors": (padded.boxes, padded.labels.masked_fill(~padded.exists(), -1)),
        "pair of Python lists": ([b.tolist() for b in boxes], [n.tolist() for n in labels]),
        "list of dicts": dicts,
        "to_list": truth.to_list(),
        "int32 labels": GroundTruth(padded.boxes, padded.labels.int(), padded.sample_sizes),
    }


@for_each_criterion
@pytest.mark.parametrize("with_regions", [False, True])
def test_criteria_take_every_form(name: str, with_regions: bool) -> None:
    for seed in range(2):
        boxes, labels = boxes_of(seed)
        forms = forms_of(boxes, labels, regions_of(seed) if with_regions else None)
        losses, gradients = results(name, forms.pop("GroundTruth"), seed)
        assert all(loss.isfinite().all() for loss in losses.values())
        for form, targets in forms.items():
            others, their_gradients = results(name, targets, seed)
            # CenterNet's size and offset are sums over boxes, and more zeros are summed in another order.
            tolerance = 1e-6 if name == "CenterNet" and form in ("padded", "pair of tensors", "int32 labels") else 0.0
            for key, loss in losses.items():
                torch.testing.assert_close(others[key], loss, rtol=tolerance, atol=0)
            for mine, theirs in zip(gradients, their_gradients, strict=True):
                assert torch.equal(mine, theirs), form


@pytest.mark.parametrize("with_regions", [False, True])
def test_assigners_and_targets_take_every_form(with_regions: bool) -> None:
    anchors, points = detops.grid_anchors(SHAPES, STRIDES, 4.0), detops.grid_points(SHAPES, STRIDES)
    sizes = [height * width for height, width in SHAPES]
    g = torch.Generator().manual_seed(0)
    logits, objectness = torch.randn(2, len(points), CLASSES, generator=g), torch.randn(2, len(points), generator=g)
    pred = torch.cat([points[:, :2] - 8, points[:, :2] + 8], 1).expand(2, -1, -1)
    calls: dict[str, Callable[[Any], tuple[Tensor | None, ...]]] = {
        "atss": lambda targets: detops.atss_assign(anchors, sizes, targets, CLASSES),
        "simota": lambda targets: detops.simota_assign(logits, objectness, pred, points, targets),
        "centernet": lambda targets: detops.centernet_targets(targets, (16, 16), (SIDE, SIDE), CLASSES),
    }
    for seed in range(2):
        boxes, labels = boxes_of(seed)
        forms = forms_of(boxes, labels, regions_of(seed) if with_regions else None)
        truth = forms.pop("GroundTruth")
        for name, call in calls.items():
            expected = call(truth)
            for form, targets in forms.items():
                for mine, theirs in zip(call(targets), expected, strict=True):
                    if theirs is None:
                        assert mine is None or mine.all()  # padded regions have no effect
                    else:
                        assert mine is not None
                        assert torch.equal(mine, theirs), (name, form)


def from_lists(seed: int) -> GroundTruth:
    return GroundTruth.from_boxes(*boxes_of(seed), pad_to=PAD_TO)


def from_rows(seed: int) -> GroundTruth:
    rows = [
        torch.tensor([float(b), float(label), *((box[:2] + box[2:]) / 2).tolist(), *(box[2:] - box[:2]).tolist()])
        for b, parts in enumerate(zip(*boxes_of(seed), strict=True))
        for box, label in zip(*parts, strict=True)
    ]
    return GroundTruth.from_rows(torch.stack(rows) if rows else torch.zeros(0, 6), 2, pad_to=PAD_TO)


def collated(seed: int) -> GroundTruth:
    """Some batches have crowds, and some do not."""
    regions = regions_of(seed) if seed % 3 else [torch.zeros(0, 4)] * 2
    targets = forms_of(*boxes_of(seed), regions)["list of dicts"]
    images = torch.zeros(2, 3, SIDE, SIDE)
    samples = list(zip(images, targets, strict=True))
    return detops.collate(samples, pad_to=PAD_TO, pad_ignored_to=PAD_IGNORED_TO)[1]


SOURCES = {"lists": from_lists, "rows": from_rows, "collate": collated}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ["CenterNet", "GFL", "YOLOX"])
def test_padded_batches_compile_once(name: str, source: str) -> None:
    torch._dynamo.reset()
    compilations = 0

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        nonlocal compilations
        compilations += 1
        return graph.forward

    maps, call = CRITERIA[name](0)
    compiled = torch.compile(call, fullgraph=True, dynamic=False, backend=backend)
    counts = set()
    for seed in range(50):
        truth = SOURCES[source](seed)
        counts.add(int(truth.exists().sum()))
        losses = compiled(truth)
        if seed % 10 == 0:
            for key, loss in call(truth).items():
                assert torch.equal(losses[key], loss)
            gradients = torch.autograd.grad(sum(losses.values(), torch.zeros(())), maps)
            assert all(gradient.isfinite().all() for gradient in gradients)
    assert len(counts) > 5
    assert compilations == 1


def covered_share(anchor: list[float], region: list[float]) -> float:
    """Return the fraction of an anchor's own area that lies in a region; nothing lies in one with a NaN."""
    if any(side != side for side in region):
        return 0.0
    width = min(anchor[2], region[2]) - max(anchor[0], region[0])
    height = min(anchor[3], region[3]) - max(anchor[1], region[1])
    return max(width, 0) * max(height, 0) / ((anchor[2] - anchor[0]) * (anchor[3] - anchor[1]))


@pytest.mark.parametrize("ignore_overlap", [0.5, 0.0, 0.8, 1.0])
def test_atss_takes_no_anchor_of_which_much_is_ignored(ignore_overlap: float) -> None:
    """MMDetection's `ignore_iof_thr`: such anchors are not candidates, and neither positive nor negative."""
    anchors, sizes = detops.grid_anchors(SHAPES, STRIDES, 4.0), [height * width for height, width in SHAPES]
    found_ignored = 0
    for seed in range(8):
        boxes, labels = boxes_of(seed)
        regions = regions_of(seed)
        ignored = torch.tensor(
            [
                [any(covered_share(a, r) > ignore_overlap for r in region.tolist()) for a in anchors.tolist()]
                for region in regions
            ]
        )
        truth = GroundTruth.from_boxes(boxes, labels, ignored=regions)
        inner = torch.rand(2, len(anchors), generator=torch.Generator().manual_seed(seed)) < 0.8
        for valid in (None, inner):
            found = detops.atss_assign(anchors, sizes, truth, CLASSES, valid=valid, ignore_overlap=ignore_overlap)
            taking = ~ignored if valid is None else valid & ~ignored
            for b in range(2):
                index, iou, *_ = atss_match(
                    anchors,
                    sizes,
                    boxes[b][None],
                    labels[b][None],
                    None,
                    taking[b : b + 1],
                    CLASSES,
                    9,
                    0.01,
                    False,
                    False,
                )
                expected = [-2 if skip else n for skip, n in zip(ignored[b].tolist(), index[0].tolist(), strict=True)]
                assert found.box_index[b].tolist() == expected
                torch.testing.assert_close(found.quality[b].double(), iou[0].double(), rtol=1e-5, atol=1e-6)
                assert (found.labels[b][ignored[b]] == -1).all()
            assert found.num_positives == (found.box_index >= 0).sum()
        found_ignored += int(ignored.sum())
    assert (found_ignored > 0) == (ignore_overlap < 1)


def test_simota_ignores_points_in_regions_that_no_box_takes() -> None:
    points = detops.grid_points(SHAPES, STRIDES)
    both = 0
    for seed in range(8):
        boxes, labels = boxes_of(seed)
        regions = regions_of(seed)
        g = torch.Generator().manual_seed(seed)
        logits, objectness = torch.randn(2, len(points), CLASSES, generator=g), torch.randn(2, len(points), generator=g)
        pred = torch.cat([points[:, :2] - 8, points[:, :2] + 8], 1).expand(2, -1, -1)
        plain = detops.simota_assign(logits, objectness, pred, points, (boxes, labels))
        truth = GroundTruth.from_boxes(boxes, labels, ignored=regions)
        found = detops.simota_assign(logits, objectness, pred, points, truth)
        for b in range(2):
            for a, (x, y, _) in enumerate(points.tolist()):
                inside = any(x1 <= x < x2 and y1 <= y < y2 for x1, y1, x2, y2 in regions[b].tolist())
                index = int(plain.box_index[b, a])
                assert found.box_index[b, a] == (-2 if inside and index < 0 else index)
                both += inside and index >= 0
        assert torch.equal(found.labels, plain.labels)
        assert torch.equal(found.quality, plain.quality)
        assert found.num_positives == plain.num_positives
    assert both > 0  # a region does not change a point that has a box


def test_ignored_points_have_no_objectness_loss() -> None:
    for seed in range(4):
        boxes, labels = boxes_of(seed)
        regions = regions_of(seed)
        truth = GroundTruth.from_boxes(boxes, labels, ignored=regions)
        outputs, call = yolox(seed)
        criterion = detops.YOLOXLoss(CLASSES, STRIDES, use_l1=True)
        assert all(
            torch.equal(loss, mine)
            for loss, mine in zip(call(truth).values(), criterion(outputs, truth).values(), strict=True)
        )
        found = criterion.assign(outputs, truth)
        assert (found.box_index == -2).any()
        losses, plain = call(truth), call((boxes, labels))
        objectness = torch.cat([output.detach()[..., 4].flatten(1) for output in outputs], 1)
        total = 0.0
        for b in range(2):
            for logit, index in zip(objectness[b].double(), found.box_index[b].tolist(), strict=True):
                if index != -2:
                    total += torch.nn.functional.softplus(logit).item() - (logit.item() if index >= 0 else 0)
        expected = total / max(int(found.num_positives), 1)
        assert losses["loss_obj"].item() == pytest.approx(expected, rel=1e-5)
        assert losses["loss_obj"] < plain["loss_obj"]
        assert torch.equal(losses["loss_bbox"], plain["loss_bbox"])
        assert torch.equal(losses["loss_cls"], plain["loss_cls"])
        gradients = torch.autograd.grad(losses["loss_obj"], outputs)
        gradient = torch.cat([g[..., 4].flatten(1) for g in gradients], 1)
        assert torch.equal(gradient == 0, found.box_index == -2)


def test_centernet_gives_ignored_cells_no_negative_loss() -> None:
    for seed in range(4):
        boxes, labels = boxes_of(seed)
        regions = regions_of(seed)
        truth = GroundTruth.from_boxes(boxes, labels, ignored=regions)
        maps, call = centernet(seed)
        weight = torch.ones(2, 1, 16, 16)
        for b, region in enumerate(regions):
            for y in range(16):
                for x in range(16):
                    cx, cy = 4 * (x + 0.5), 4 * (y + 0.5)
                    if any(x1 <= cx < x2 and y1 <= cy < y2 for x1, y1, x2, y2 in region.tolist()):
                        weight[b, 0, y, x] = 0
        assert 0 < weight.sum() < weight.numel()
        targets = detops.centernet_targets(truth, (16, 16), (SIDE, SIDE), CLASSES)
        assert targets.negative_weight is not None
        assert torch.equal(targets.negative_weight, weight)
        p, heat = maps[0].detach().double().sigmoid(), targets.heatmap.double()
        loss = -p.log() * (1 - p) ** 2 * (heat == 1) - (1 - p).log() * p**2 * (1 - heat) ** 4 * weight * (heat != 1)
        losses = call(truth)
        expected = (loss.sum() / targets.num_objects).item()
        assert losses["loss_center_heatmap"].item() == pytest.approx(expected, rel=1e-5)
        (gradient,) = torch.autograd.grad(losses["loss_center_heatmap"], maps[:1])
        skipped = (weight == 0).expand_as(heat) & (heat != 1)
        assert (gradient[skipped] == 0).all()
        assert (gradient[~skipped] != 0).all()


@for_each_criterion
def test_regions_change_nothing_where_they_hold_nothing(name: str) -> None:
    boxes, labels = boxes_of(5)
    nothing = torch.tensor([[[200.0, 200, 300, 300], [5, 5, 5, 60], [60, 60, 2, 2], [float("nan"), 0, 64, 64]]] * 2)
    truth = GroundTruth.from_boxes(boxes, labels)
    padding = GroundTruth(
        truth.boxes, truth.labels, truth.sample_sizes,
        ignored=torch.cat([nothing, torch.tensor([[[0.0, 0, 64, 64]]] * 2)], 1), ignored_sizes=torch.tensor([4, 4]),
    )  # fmt: skip
    expected, gradients = results(name, truth)
    for other in (GroundTruth.from_boxes(boxes, labels, ignored=nothing), padding):
        losses, theirs = results(name, other)
        assert all(torch.equal(losses[key], loss) for key, loss in expected.items())
        assert all(torch.equal(a, b) for a, b in zip(gradients, theirs, strict=True))
    everything = GroundTruth.from_boxes(boxes, labels, ignored=torch.tensor([[[-99.0, -99, 199, 199]]] * 2))
    losses, _ = results(name, everything)
    assert not all(torch.equal(losses[key], loss) for key, loss in expected.items())


def test_points_in_boxes_against_a_loop() -> None:
    points = detops.grid_points([(3, 5)], [8])
    boxes = torch.tensor([[[4.0, 4, 20, 12], [0, 0, 40, 24]], [[5, 5, 4, 4], [12, 0, 28, 24]]])
    exists = torch.tensor([[True, False], [True, True]])
    found = points_in_boxes(points, boxes, exists)
    for b in range(2):
        for a, (x, y, _) in enumerate(points.tolist()):
            inside = [
                bool(real) and x1 <= x < x2 and y1 <= y < y2
                for real, (x1, y1, x2, y2) in zip(exists[b], boxes[b].tolist(), strict=True)
            ]
            assert bool(found[b, a]) == any(inside)


@for_each_criterion
def test_validation_waits_for_no_other_rank(name: str) -> None:
    """Without gradients no rank waits for another, so that one may validate alone; with them it does."""
    truth = GroundTruth.from_boxes(*boxes_of(2))
    _, call = CRITERIA[name](0)
    alone = call(truth)
    waiting = AssertionError("this would wait for the other ranks")
    with (
        mock.patch.object(dist, "is_initialized", return_value=True),
        mock.patch.object(dist, "get_world_size", return_value=2),
        mock.patch.object(dist, "all_reduce", side_effect=waiting) as all_reduce,
    ):
        with torch.no_grad():
            losses = call(truth)
        with torch.inference_mode():
            call(truth)
        assert not all_reduce.called
        if name != "super-gradients":  # its fast variant averages only on request
            with pytest.raises(AssertionError, match="wait for the other ranks"):
                call(truth)
    for key, loss in losses.items():
        assert torch.equal(loss, alone[key])
        assert not loss.requires_grad


@for_each_criterion
def test_targets_of_another_batch_or_device(name: str) -> None:
    _, call = CRITERIA[name](0)
    first = {"CenterNet": "heatmap_logits", "GFL": "cls_scores", "LD": "cls_scores"}.get(name, "model_output")
    with pytest.raises(ValueError, match=f"targets: expected 2 images, as {first} has, got 3"):
        call(GroundTruth.from_boxes(*boxes_of(0, batch=3)))
    with pytest.raises(ValueError, match=f"targets: expected a tensor on cpu, as {first} is, got meta"):
        call(GroundTruth.from_boxes(*boxes_of(0)).to("meta"))
    wrong: Sequence[Any] = (None, 3, boxes_of(0)[0], (boxes_of(0)[0],), {"boxes": []})
    for targets in wrong:
        with pytest.raises((TypeError, ValueError), match=r"^(targets|boxes|labels)(\[\d\])?:"):
            call(targets)
