"""InstanceMasks: where it comes from, what it holds and refuses, and results for other libraries."""

import json
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mask_scenes import full_masks, instances, round_masks
from torch import Tensor

import detops
from detops import InstanceMasks
from detops.masks.placement import Mode

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
MODES: tuple[Mode, ...] = ("detectron2", "torchvision")


def fields(found: InstanceMasks) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return found.boxes, found.labels, found.scores, found.masks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    """Other dtypes give the results of float32 for the same numbers."""
    found = instances(1)
    boxes, scores, masks = (t.to(dtype) for t in (found.boxes, found.scores, found.masks))
    # torchvision truncates float64 boxes in float64.
    for mode in MODES if dtype != torch.float64 else ("detectron2",):
        narrow = InstanceMasks(boxes, found.labels.to(torch.int32), scores, masks, found.image_size, mode=mode)
        wide = InstanceMasks(boxes.float(), found.labels, scores.float(), masks.float(), found.image_size, mode=mode)
        assert torch.equal(narrow.paste(), wide.paste())
        assert narrow.to_rle() == wide.to_rle()


def test_logits() -> None:
    found = instances(2)
    logits = found.masks.logit().to(torch.float16)
    same = InstanceMasks(found.boxes, found.labels, found.scores, logits, found.image_size, logits=True)
    assert same.masks.dtype == torch.float32
    assert torch.equal(same.masks, logits.float().sigmoid())


@pytest.mark.parametrize("logits", [False, True])
def test_the_mask_of_the_class_is_taken(logits: bool) -> None:
    found = instances(3)
    masks = torch.rand(6, 5, 5, 7, generator=torch.Generator().manual_seed(0))
    own = torch.stack([masks[n, label] for n, label in enumerate(found.labels)])

    def of_classes(masks: Tensor) -> InstanceMasks:
        return InstanceMasks.from_class_masks(*fields(found)[:3], masks, found.image_size, logits=logits)

    assert torch.equal(of_classes(masks).masks, own.sigmoid() if logits else own)
    assert torch.equal(of_classes(masks[:, :1]).masks, masks[:, 0].sigmoid() if logits else masks[:, 0])
    found.labels[1], found.labels[4] = -1, 5
    result = of_classes(masks)
    assert not result.masks[[1, 4]].any()
    assert torch.equal(result.masks[0], own[0].sigmoid() if logits else own[0])
    with detops.checked(), pytest.raises(ValueError, match=r"labels: instance 1 has -1, expected a value in 0 \.\. 4"):
        of_classes(masks)


def test_from_torchvision() -> None:
    found = instances(4)
    boxes, labels, scores, masks = fields(found)
    output: dict[str, Any] = {"boxes": boxes, "labels": labels, "scores": scores, "masks": masks[:, None]}
    result = InstanceMasks.from_torchvision(output, found.image_size)
    assert result.mode == "torchvision"
    assert result.to_rle() == replace(found, mode="torchvision").to_rle() != found.to_rle()
    with pytest.raises(ValueError, match=r"masks: expected raw masks, got pasted ones, \(6, 1, 23, 31\)"):
        InstanceMasks.from_torchvision(output | {"masks": torch.zeros(6, 1, 23, 31)}, found.image_size)
    with pytest.raises(TypeError, match="masks: expected a floating-point tensor, got list"):
        InstanceMasks.from_torchvision(output | {"masks": masks.tolist()}, found.image_size)
    del output["masks"]
    with pytest.raises(ValueError, match="output: expected boxes, labels, scores, masks, found no masks"):
        InstanceMasks.from_torchvision(output, found.image_size)


def test_from_detectron2() -> None:
    found = instances(5)
    fields = dict(pred_classes=found.labels, scores=found.scores, pred_masks=found.masks[:, None])
    as_object = SimpleNamespace(pred_boxes=SimpleNamespace(tensor=found.boxes), image_size=found.image_size, **fields)
    result = InstanceMasks.from_detectron2(as_object)
    assert result.mode == "detectron2"
    assert result.to_rle() == found.to_rle()
    as_mapping = fields | {"pred_boxes": found.boxes, "pred_masks": found.masks[:, None].expand(-1, 5, -1, -1)}
    assert InstanceMasks.from_detectron2(as_mapping, found.image_size).to_rle() == found.to_rle()
    with pytest.raises(ValueError, match="instances: expected image_size, found no image_size"):
        InstanceMasks.from_detectron2(as_mapping)


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_stays(mode: Mode) -> None:
    found = instances(mode=mode)
    assert found.mode == mode
    assert found[2:].mode == found[3].mode == found[found.scores > 0.5].mode == found.to("cpu").mode == mode
    own = found.masks[:, None]
    assert InstanceMasks.from_class_masks(*fields(found)[:3], own, found.image_size, mode=mode).mode == mode
    for other in MODES:
        changed = replace(found, mode=other)
        assert torch.equal(changed.paste(), instances(mode=other).paste())
        assert found.mode == mode


def test_instances_are_selected_by_numbers_slices_and_masks() -> None:
    found = instances()
    for index in ([4, 1], slice(1, 3), found.scores > 0.5, torch.tensor([0, 0])):
        for chosen, whole in zip(fields(found[index]), fields(found), strict=True):
            assert torch.equal(chosen, whole[index])
    for number in (3, -3, torch.tensor(3), np.int64(3)):
        assert torch.equal(found[number].boxes, found.boxes[3:4])  # type: ignore[index]
    assert len(found[[]]) == 0
    with pytest.raises(IndexError):
        found[6]
    with pytest.raises(IndexError, match=r"index: expected a number, a slice or a list, got shape \(1, 2\)"):
        found[[[0, 1]]]  # type: ignore[list-item]


def test_moves_and_describes_itself() -> None:
    found = instances()
    assert found.to("cpu").to_rle() == found.to_rle()
    assert InstanceMasks(*fields(found), np.array([6, 8])).image_size == (6, 8)  # type: ignore[arg-type]
    assert repr(found) == "InstanceMasks(6 masks (5, 7) in an image 23 x 31)"
    assert not replace(found, masks=found.masks.clone().requires_grad_()).masks.requires_grad


def test_to_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments of `supervision.Detections`, as its constructor names and shapes them."""
    stub = ModuleType("supervision")
    stub.Detections = lambda **fields: SimpleNamespace(**fields)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", stub)
    found = round_masks(3)
    detections = found.to_supervision(threshold=0.4)
    assert detections.xyxy.shape == (3, 4)
    assert detections.mask.dtype == bool
    assert (detections.mask == found.paste(threshold=0.4).numpy()).all()
    assert detections.confidence.tolist() == found.scores.tolist()
    assert detections.class_id.tolist() == [0, 1, 2]
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs supervision: pip install "supervision"'):
        found.to_supervision()


def test_rows_of_results_are_strict_json() -> None:
    """JSON has no NaN; category ids of numpy become plain ones."""
    boxes = torch.tensor([[1.0, 1, 5, 5], [float("nan"), 1, 5, 5], [1, 1, 5, 5], [1, 1, float("inf"), 5]])
    scores = torch.tensor([0.9, 0.8, float("nan"), 0.7])
    found = replace(full_masks(boxes, (8, 8)), scores=scores)
    rows = found.to_coco(3, category_ids=np.array([18]))  # type: ignore[arg-type]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert [(row["category_id"], row["bbox"]) for row in rows] == [(18, [1.0, 1.0, 4.0, 4.0])]
    with pytest.raises(ValueError, match=r"labels: expected 0 \.\. -1, one per category, got 0"):
        found.to_coco(3, category_ids=[])


@pytest.mark.parametrize("device", DEVICES)
def test_syncs(device: str) -> None:
    for mode in MODES:
        found = instances(device=device, mode=mode)
        assert detops.count_syncs(found.paste) == 0
        assert detops.count_syncs(found.crops) == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
def test_compiles_whole(device: str, mode: Mode) -> None:
    def paste(boxes: Tensor, labels: Tensor, scores: Tensor, masks: Tensor, image_size: tuple[int, int]) -> Tensor:
        return InstanceMasks(boxes, labels, scores, masks, image_size, logits=True, mode=mode).paste()

    compiled = torch.compile(paste, fullgraph=True, backend="aot_eager")
    sizes: tuple[tuple[int, int, tuple[int, int]], ...] = ((0, 6, (23, 31)), (1, 3, (40, 20)))
    for seed, count, size in sizes:
        args = (*fields(instances(seed, count, device)), size)
        assert torch.equal(compiled(*args), paste(*args))


GOOD: dict[str, Any] = dict(
    boxes=torch.zeros(3, 4),
    labels=torch.zeros(3, dtype=torch.int64),
    scores=torch.zeros(3),
    masks=torch.zeros(3, 28, 28),
    image_size=(6, 8),
)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boxes": torch.zeros(3, 5)}, ValueError, r"boxes: expected shape \(N, 4\), got \(3, 5\)"),
        (
            {"boxes": torch.zeros(3, 4, dtype=torch.int64)},
            TypeError,
            "boxes: expected a floating-point tensor, got int64",
        ),
        ({"labels": torch.zeros(3)}, TypeError, "labels: expected integers, got float32"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, ValueError, r"labels: expected shape \(3,\) to match boxes"),
        ({"scores": torch.zeros(3, 1)}, ValueError, r"scores: expected shape \(3,\) to match boxes, got \(3, 1\)"),
        ({"masks": torch.zeros(3, 1, 28, 28)}, ValueError, r"masks: expected shape \(3, h, w\) with h and w at least"),
        ({"masks": torch.zeros(3, 0, 28)}, ValueError, r"masks: .* at least 1, got \(3, 0, 28\)"),
        ({"image_size": (6, 0)}, ValueError, r"image_size: expected a height and a width of at least 1.*got \(6, 0\)"),
        ({"image_size": (2**16, 2**16)}, ValueError, r"image_size: .* below 2\^31 pixels"),
        ({"image_size": (np.int32(2**16), np.int32(2**16))}, ValueError, r"image_size: .* below 2\^31 pixels"),
        ({"image_size": (6, 8, 3)}, ValueError, r"image_size: expected a height and a width .* got \(6, 8, 3\)"),
        ({"image_size": 6}, TypeError, "image_size: expected a height and a width .* got 6"),
        ({"image_size": (6.5, 8)}, TypeError, r"image_size: expected a height and a width .* got \(6.5, 8\)"),
        ({"mode": "opencv"}, ValueError, 'mode: expected "detectron2" or "torchvision", got \'opencv\''),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        InstanceMasks(**GOOD | change)


@pytest.mark.parametrize("method", ["paste", "crops", "to_rle", "to_coco", "areas", "iou", "draw", "to_supervision"])
def test_errors_of_methods(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threshold is a keyword of all methods, and none takes a mode."""
    stub = ModuleType("supervision")
    stub.Detections = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", stub)
    found = InstanceMasks(**GOOD)
    first: dict[str, tuple[Any, ...]] = {"to_coco": (1,), "iou": (found,), "draw": (np.zeros((6, 8, 3), np.uint8),)}
    args = first.get(method, ())
    for wrong in (0, 1e-46):  # the second is 0 in float32
        with pytest.raises(ValueError, match=f"threshold: expected a number above 0, got {wrong}"):
            getattr(found, method)(*args, threshold=wrong)
    with pytest.raises(TypeError, match="threshold: expected a number above 0, got \\[\\]"):
        getattr(found, method)(*args, threshold=[])
    with pytest.raises(TypeError, match="unexpected keyword argument 'mode'"):
        getattr(found, method)(*args, mode="torchvision")
    last = {"paste": (None,), "to_coco": (1, None)}.get(method, args)
    with pytest.raises(TypeError, match="positional argument"):
        getattr(found, method)(*last, 0.5)


def test_boxes_that_are_not_finite_are_named_in_checked_mode() -> None:
    boxes = torch.zeros(3, 4)
    boxes[1, 2] = torch.inf
    assert InstanceMasks(**GOOD | {"boxes": boxes}).areas().tolist() == [0, 0, 0]
    with (
        detops.checked(),
        pytest.raises(ValueError, match=r"boxes: instance 1 has \[0.0, 0.0, inf, 0.0\], expected finite"),
    ):
        InstanceMasks(**GOOD | {"boxes": boxes})


def test_errors_of_iou() -> None:
    found = InstanceMasks(**GOOD)
    with pytest.raises(ValueError, match=r"other: expected masks in an image of size \(6, 8\), got \(8, 6\)"):
        found.iou(InstanceMasks(**GOOD | {"image_size": (8, 6)}))
