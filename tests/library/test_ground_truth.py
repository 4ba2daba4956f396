"""GroundTruth: the same boxes from every source, errors that name what is wrong, padding, and copies in one piece."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import detops
from detops import GroundTruth, RaggedBatch
from detops.geometry.boxes import to_cxcywh

# Corners that are multiples of 1/4 in images whose sides are powers of two: exact as xyxy, xywh, cxcywh and fractions.
SIZES = [(64, 128), (32, 64), (128, 64)]
BOXES = [
    torch.tensor([[8.0, 12.0, 40.5, 60.25], [0.0, 0.0, 4.0, 4.0]]),
    torch.zeros(0, 4),
    torch.tensor([[10.0, 20.0, 30.0, 44.0]]),
]
LABELS = [torch.tensor([3, 1]), torch.zeros(0, dtype=torch.int64), torch.tensor([0])]
SAMPLE_SIZES = torch.tensor([2, 0, 1])


def padded() -> tuple[Tensor, Tensor]:
    boxes, labels = (RaggedBatch.from_list(part).tensor for part in (BOXES, LABELS))
    return boxes, labels


def cxcywh(b: int) -> Tensor:
    return to_cxcywh(BOXES[b])


def fractions(b: int) -> Tensor:
    height, width = SIZES[b]
    return cxcywh(b) / torch.tensor([width, height] * 2)


def rows(normalized: bool = False) -> Tensor:
    """Return YOLO's rows, with the images in no order."""
    found = [
        torch.cat([torch.tensor([float(b), float(LABELS[b][n])]), (fractions(b) if normalized else cxcywh(b))[n]])
        for b, n in ((2, 0), (0, 0), (0, 1))
    ]
    return torch.stack(found)


def dicts(**extra: Callable[[int], Any]) -> list[dict[str, Any]]:
    return [{"boxes": BOXES[b], "labels": LABELS[b]} | {k: make(b) for k, make in extra.items()} for b in range(3)]


def transformers() -> list[dict[str, Any]]:
    return [
        {"boxes": fractions(b), "class_labels": LABELS[b], "size": torch.tensor(SIZES[b]), "image_id": b}
        for b in range(3)
    ]


def coco(category_ids: list[int] | None = None) -> list[list[dict[str, Any]]]:
    return [
        [
            {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": category_ids[label] if category_ids else label}
            for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True)
        ]
        for boxes, labels in zip(BOXES, LABELS, strict=True)
    ]


class BoundingBoxes(Tensor):
    """Like torchvision's `tv_tensors.BoundingBoxes`: a tensor with a format and the size of its image."""

    format: Any
    canvas_size: tuple[int, int]


def bounding_boxes(boxes: Tensor, form: str, size: tuple[int, int]) -> BoundingBoxes:
    made = boxes.as_subclass(BoundingBoxes)
    made.format, made.canvas_size = SimpleNamespace(name=form), size
    return made


def in_format(b: int, form: str) -> Tensor:
    size = BOXES[b][:, 2:] - BOXES[b][:, :2]
    return {"XYXY": BOXES[b], "XYWH": torch.cat([BOXES[b][:, :2], size], 1), "CXCYWH": cxcywh(b)}[form]


def from_bounding_boxes(form: str) -> GroundTruth:
    return GroundTruth.from_dicts(dicts(boxes=lambda b: bounding_boxes(in_format(b, form), form, SIZES[b])))


ROADS: dict[str, Callable[[], GroundTruth]] = {
    "lists of tensors": lambda: GroundTruth.from_boxes(BOXES, LABELS),
    "tuples of tensors": lambda: GroundTruth.from_boxes(tuple(BOXES), tuple(LABELS)),
    "numpy arrays": lambda: GroundTruth.from_boxes(
        [b.numpy().astype(np.float64) for b in BOXES], [n.numpy().astype(np.int32) for n in LABELS]
    ),
    "Python lists": lambda: GroundTruth.from_boxes([b.tolist() for b in BOXES], [n.tolist() for n in LABELS]),
    "RaggedBatches": lambda: GroundTruth.from_boxes(RaggedBatch.from_list(BOXES), RaggedBatch.from_list(LABELS)),
    "boxes ragged, labels padded": lambda: GroundTruth.from_boxes(RaggedBatch.from_list(BOXES), padded()[1]),
    "padded tensors": lambda: GroundTruth(*padded(), SAMPLE_SIZES),
    "padded tensors, int32": lambda: GroundTruth(padded()[0], padded()[1].int(), SAMPLE_SIZES.int()),
    "float64": lambda: GroundTruth.from_boxes([b.double() for b in BOXES], LABELS),
    "torchvision's dicts": lambda: GroundTruth.from_dicts(dicts(image_id=lambda b: b, area=lambda b: 0)),
    "torchvision's dicts, 1 for the first class": lambda: GroundTruth.from_dicts(
        [target | {"labels": target["labels"] + 1} for target in dicts()], first_label=1
    ),
    "dicts of numpy arrays": lambda: GroundTruth.from_dicts(
        [{"boxes": b.numpy().astype(np.float64), "labels": n.numpy()} for b, n in zip(BOXES, LABELS, strict=True)]
    ),
    "dicts of lists": lambda: GroundTruth.from_dicts(
        [{"boxes": b.tolist(), "labels": n.tolist()} for b, n in zip(BOXES, LABELS, strict=True)]
    ),
    "BoundingBoxes, xyxy": lambda: from_bounding_boxes("XYXY"),
    "BoundingBoxes, xywh": lambda: from_bounding_boxes("XYWH"),
    "BoundingBoxes, cxcywh": lambda: from_bounding_boxes("CXCYWH"),
    "rows": lambda: GroundTruth.from_rows(rows(), 3),
    "rows, padded": lambda: GroundTruth.from_rows(rows(), 3, pad_to=2),
    "rows, normalised": lambda: GroundTruth.from_rows(rows(True), 3, normalized=True, image_sizes=SIZES),
    "rows, normalised and padded": lambda: GroundTruth.from_rows(
        rows(True), 3, normalized=True, image_sizes=torch.tensor(SIZES), pad_to=7
    ),
    "Transformers' labels": lambda: GroundTruth.from_transformers(transformers()),
    "Transformers' labels, sizes apart": lambda: GroundTruth.from_transformers(
        [{"boxes": t["boxes"], "class_labels": t["class_labels"]} for t in transformers()], image_sizes=SIZES
    ),
    "COCO": lambda: GroundTruth.from_coco(coco()),
    "COCO, with ids": lambda: GroundTruth.from_coco(coco([18, 2, 90, 7]), [18, 2, 90, 7]),
}


@pytest.mark.parametrize("road", ROADS)
def test_the_same_boxes_by_every_road(road: str) -> None:
    truth = ROADS[road]()
    assert len(truth) == 3
    assert truth.boxes.device == truth.device == torch.device("cpu")
    for b, target in enumerate(truth.to_list()):
        kept = target["labels"] >= 0  # from_rows keeps the boxes of other images as ignored ones
        assert torch.equal(target["boxes"][kept].float(), BOXES[b])
        assert torch.equal(target["labels"][kept].long(), LABELS[b])
        assert torch.equal(truth.cxcywh()[b][: len(kept)][kept].float(), cxcywh(b))
    assert int((truth.exists() & (truth.labels >= 0)).sum()) == 3
    assert truth.boxes.dtype == (torch.float64 if road == "float64" else torch.float32)
    assert not truth.boxes.requires_grad
    with detops.checked():  # nothing here is skipped for its values
        detops.centernet_targets(truth, (16, 32), (64, 128), num_classes=4)


def test_sizes_and_formats_that_come_along() -> None:
    sizes = torch.tensor(SIZES)
    for truth in (
        GroundTruth.from_boxes(BOXES, LABELS, image_sizes=SIZES),
        GroundTruth.from_boxes(BOXES, LABELS, image_sizes=sizes),
        from_bounding_boxes("XYXY"),
        GroundTruth.from_transformers(transformers()),
        GroundTruth.from_rows(rows(), 3, image_sizes=SIZES),
        GroundTruth.from_coco(coco(), image_sizes=SIZES),
    ):
        assert truth.image_sizes is not None
        assert torch.equal(truth.image_sizes, sizes)
    one_of_three = dicts()
    one_of_three[1]["boxes"] = bounding_boxes(BOXES[1], "XYXY", SIZES[1])
    assert GroundTruth.from_dicts(one_of_three).image_sizes is None


def test_no_boxes_and_no_images() -> None:
    nothing = [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2
    for truth in (
        GroundTruth.from_boxes(*nothing),
        GroundTruth.from_boxes([[], []], [[], []]),
        GroundTruth.from_boxes([torch.zeros(0)] * 2, [torch.zeros(0)] * 2),
        GroundTruth.from_boxes([np.zeros((0, 4))] * 2, [np.zeros(0)] * 2),
        GroundTruth.from_dicts([{"boxes": [], "labels": []}, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}]),
        GroundTruth.from_rows(torch.zeros(0, 6), 2),
        GroundTruth.from_coco([[], []]),
        GroundTruth.from_transformers([{"boxes": [], "class_labels": [], "size": (4, 4)}] * 2),
    ):
        assert truth.boxes.shape == (2, 0, 4)
        assert truth.labels.shape == (2, 0)
        assert (truth.boxes.dtype, truth.labels.dtype) == (torch.float32, torch.int64)
        assert truth.pad_to(3).exists().sum() == 0
        assert truth.to_list()[1]["boxes"].shape == (0, 4)
    for truth in (
        GroundTruth(torch.zeros(0, 5, 4), torch.zeros(0, 5, dtype=torch.int64)),
        GroundTruth.from_dicts([], pad_to=5),
        GroundTruth.from_coco([], pad_to=5),
        GroundTruth.from_transformers([], pad_to=5),
        GroundTruth.from_rows(torch.zeros(0, 6), 0, pad_to=5),
    ):
        assert truth.boxes.shape == (0, 5, 4)
        assert truth.exists().shape == (0, 5)
        assert len(truth) == 0
        assert truth.to_list() == []


def test_integers_and_other_dtypes() -> None:
    whole = [torch.tensor([[1, 2, 4, 6]], dtype=torch.int32)], [torch.tensor([1], dtype=torch.uint8)]
    truth = GroundTruth.from_boxes(*whole)
    assert truth.cxcywh().tolist() == [[[2.5, 4.0, 3.0, 4.0]]]
    assert truth.labels.dtype == torch.uint8
    assert GroundTruth.from_dicts([{"boxes": whole[0][0], "labels": whole[1][0]}]).boxes.dtype == torch.float32
    for dtype in (torch.float16, torch.bfloat16):
        half = GroundTruth.from_rows(rows(True).to(dtype), 3, normalized=True, image_sizes=SIZES, pad_to=2)
        exact = GroundTruth.from_rows(rows(True).to(dtype).float(), 3, normalized=True, image_sizes=SIZES, pad_to=2)
        assert torch.equal(half.boxes, exact.boxes)  # pixels of a large image do not fit 16 bits
    leaf = torch.rand(1, 2, 4, requires_grad=True)
    assert not GroundTruth.from_boxes(leaf, torch.zeros(1, 2, dtype=torch.int64), ignored=leaf).boxes.requires_grad
    grad_rows = torch.rand(3, 6, requires_grad=True)
    assert not GroundTruth.from_rows(grad_rows, 1, pad_to=4).boxes.requires_grad


def test_crowds_are_ignored_regions() -> None:
    crowd = [torch.tensor([0, 1]), torch.zeros(0), [False]]
    masks = [torch.arange(2.0)[:, None, None].expand(2, 4, 6), torch.zeros(0, 4, 6), torch.full((1, 4, 6), 7.0)]
    annotations = coco()
    annotations[0][1]["iscrowd"] = 1
    roads = [
        GroundTruth.from_dicts(dicts(iscrowd=lambda b: crowd[b], masks=lambda b: masks[b])),
        GroundTruth.from_transformers([t | {"iscrowd": crowd[b]} for b, t in enumerate(transformers())]),
        GroundTruth.from_coco(annotations),
        GroundTruth.from_boxes(
            [BOXES[0][:1], *BOXES[1:]], [LABELS[0][:1], *LABELS[1:]], ignored=[BOXES[0][1:], *[torch.zeros(0, 4)] * 2]
        ),
    ]
    for truth in roads:
        assert truth.sample_sizes is not None
        assert truth.sample_sizes.tolist() == [1, 0, 1]
        assert torch.equal(truth.boxes[0, 0], BOXES[0][0])
        assert truth.ignored is not None
        assert torch.equal(truth.ignored[0, 0], BOXES[0][1])
        assert truth.ignored_exists().tolist() == [[True], [False], [False]]
    assert roads[0].masks is not None
    assert roads[0].masks.shape == (3, 1, 4, 6)
    assert roads[0].masks[:, 0, 0, 0].tolist() == [0.0, 0.0, 7.0]
    none = GroundTruth.from_dicts(dicts(iscrowd=lambda b: torch.zeros(len(BOXES[b]))))
    assert none.ignored is None
    assert none.ignored_exists().shape == (3, 0)
    all_real = GroundTruth(*padded(), ignored=torch.zeros(3, 2, 4))
    assert all_real.ignored_exists().all()
    assert all_real.exists().all()


def test_masks_come_along_where_every_image_has_them() -> None:
    masks = [torch.rand(len(boxes), 5, 7) > 0.5 for boxes in BOXES]
    masks[1] = torch.zeros(0, dtype=torch.bool)
    for truth in (
        GroundTruth.from_boxes(BOXES, LABELS, masks=masks),
        GroundTruth.from_dicts(dicts(masks=lambda b: masks[b])),
        GroundTruth.from_dicts(dicts(masks=lambda b: masks[b].numpy())),
    ):
        assert truth.masks is not None
        assert truth.masks.dtype == torch.bool
        assert truth.pad_to(4).to_list()[0]["masks"].shape == (2, 5, 7)
        assert torch.equal(truth.to_list()[0]["masks"], masks[0])
        assert torch.equal(truth.to_list()[2]["masks"], masks[2])
    some = dicts(masks=lambda b: masks[b])
    del some[1]["masks"]
    assert GroundTruth.from_dicts(some).masks is None


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(0, 4),
    count=st.integers(0, 12),
    pad_to=st.sampled_from([0, 1, 3, 12]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64]),
)
def test_rows_against_a_loop(seed: int, images: int, count: int, pad_to: int, dtype: torch.dtype) -> None:
    """Some rows have unknown images, or classes that are not whole numbers; rows beyond `pad_to` are dropped."""
    g = torch.Generator().manual_seed(seed)
    flat = torch.cat(
        [
            torch.randint(-1, images + 2, (count, 1), generator=g).float(),
            torch.randint(-2, 5, (count, 1), generator=g).float(),
            torch.randint(0, 60, (count, 4), generator=g).float(),
        ],
        1,
    )
    if dtype != torch.int64:
        flat[torch.rand(count, generator=g) < 0.1, 0] += 0.5
        flat[torch.rand(count, generator=g) < 0.1, 1] += 0.25
        flat[torch.rand(count, generator=g) < 0.05, 0] = float("nan")
        flat[torch.rand(count, generator=g) < 0.05, 1] = float("inf")
        flat[torch.rand(count, generator=g) < 0.05, 1] = 1e20 if dtype != torch.float16 else float("-inf")
    expected: list[list[tuple[list[float], int]]] = [[] for _ in range(images)]
    for image, label, *box in flat.tolist():
        if image in range(images):
            expected[int(image)].append((box, int(label) if label % 1 == 0 and abs(label) < 1e9 else -1))
    truth = GroundTruth.from_rows(flat.to(dtype), images, pad_to=pad_to)
    assert truth.boxes.shape == (images, pad_to, 4)
    assert truth.sample_sizes is not None
    assert truth.sample_sizes.tolist() == [min(len(found), pad_to) for found in expected]
    for b, found in enumerate(expected):
        n = min(len(found), pad_to)
        assert truth.labels[b].tolist() == [label for _, label in found[:pad_to]] + [-1] * (pad_to - n)
        assert truth.cxcywh()[b, :n].tolist() == [box for box, _ in found[:pad_to]]
    whole = GroundTruth.from_rows(flat.to(dtype), images)
    assert whole.boxes.shape == (images, count, 4)
    for b, found in enumerate(expected):
        mine = [n for n, image in enumerate(flat[:, 0].tolist()) if image == b]
        assert whole.labels[b, mine].tolist() == [label for _, label in found]
        assert (whole.labels[b, [n for n in range(count) if n not in mine]] == -1).all()


def test_rows_need_no_sync() -> None:
    sizes, flat = torch.tensor(SIZES), rows(True)
    for options in ({}, {"pad_to": 4}, {"normalized": True, "pad_to": 1}, {"normalized": True}):
        call = lambda flat, sizes, options=options: GroundTruth.from_rows(flat, 3, image_sizes=sizes, **options)  # noqa: E731
        assert detops.count_syncs(call, flat, sizes) == 0
        with FakeTensorMode() as mode:
            fake = call(mode.from_tensor(flat), mode.from_tensor(sizes))
        compiled = torch.compile(call, fullgraph=True, backend="eager")(flat, sizes)
        real = call(flat, sizes)
        for name, tensor in real._tensors().items():
            assert getattr(fake, name).shape == tensor.shape
            assert torch.equal(getattr(compiled, name), tensor)


def test_other_forms_need_no_sync() -> None:
    """From tensors on a device, every form is made without waiting for it."""
    targets = transformers()
    for target in targets:
        target["iscrowd"] = None
    calls: tuple[Callable[[], GroundTruth], ...] = (
        lambda: GroundTruth.from_boxes(BOXES, LABELS, ignored=BOXES, image_sizes=torch.tensor(SIZES), pad_to=9),
        lambda: GroundTruth.from_dicts(dicts(), pad_to=9),
        lambda: GroundTruth.from_transformers(targets),
    )
    for call in calls:
        assert detops.count_syncs(call) == 0


def test_padding() -> None:
    masks = [torch.ones(len(boxes), 2, 2) for boxes in BOXES]
    truth = GroundTruth.from_boxes(BOXES, LABELS, ignored=BOXES, masks=masks, image_sizes=SIZES)
    for more in (truth.pad_to(5), GroundTruth.from_boxes(BOXES, LABELS, ignored=BOXES, masks=masks, pad_to=5)):
        assert more.boxes.shape == (3, 5, 4)
        assert more.masks is not None
        assert more.masks.shape == (3, 5, 2, 2)
        assert (more.labels[:, 2:] == -1).all()
        assert torch.equal(more.exists(), torch.arange(5) < SAMPLE_SIZES[:, None])
        assert more.ignored is not None
        assert more.ignored.shape == (3, 2, 4)
    assert torch.equal(truth.pad_to(5).pad_to(2).boxes, truth.boxes)
    both = truth.pad_to(6, ignored=4)
    assert both.ignored is not None
    assert (both.boxes.shape[1], both.ignored.shape[1]) == (6, 4)
    assert torch.equal(both.ignored_exists(), torch.arange(4) < SAMPLE_SIZES[:, None])
    only = truth.pad_to(None, ignored=4)
    assert torch.equal(only.boxes, truth.boxes)
    for made in (
        GroundTruth.from_boxes(BOXES, LABELS, pad_to=6, pad_ignored_to=3),
        GroundTruth.from_dicts(dicts(), pad_to=6, pad_ignored_to=3),
        GroundTruth.from_transformers(transformers(), pad_to=6, pad_ignored_to=3),
        GroundTruth.from_coco(coco(), pad_to=6, pad_ignored_to=3),
        GroundTruth.from_rows(rows(), 3, pad_to=6).pad_to(6, ignored=3),
    ):
        assert made.boxes.shape == (3, 6, 4)
        assert made.ignored is not None  # so that batches with and without crowds have one form
        assert made.ignored.shape == (3, 3, 4)
        assert not made.ignored_exists().any()
    full = GroundTruth(*padded())
    assert full.pad_to(4).exists().sum(1).tolist() == [2, 2, 2]
    rows_kept = GroundTruth.from_rows(rows(), 3).pad_to(5)
    assert torch.equal(rows_kept.cxcywh()[:, :3], GroundTruth.from_rows(rows(), 3).cxcywh())


TOO_SMALL: dict[str, tuple[Callable[[], object], str]] = {
    "pad_to": (lambda: GroundTruth.from_boxes(BOXES, LABELS, pad_to=1), "pad_to: expected at least 2, .* got 1"),
    "method": (lambda: GroundTruth.from_boxes(BOXES, LABELS).pad_to(1), "pad_to: expected at least 2, .* got 1"),
    "without sizes": (lambda: GroundTruth(*padded()).pad_to(1), "pad_to: expected at least 2, .* got 1"),
    "on a device": (
        lambda: GroundTruth(*(t.to("meta") for t in (*padded(), SAMPLE_SIZES))).pad_to(1),
        "pad_to: expected at least 2, as an image may have so many, got 1",
    ),
    "dicts": (lambda: GroundTruth.from_dicts(dicts(), pad_to=0), "pad_to: expected at least 2, .* got 0"),
    "ignored": (
        lambda: GroundTruth.from_boxes(BOXES, LABELS, ignored=BOXES, pad_ignored_to=1),
        "pad_ignored_to: expected at least 2, .* got 1",
    ),
}


@pytest.mark.parametrize("case", TOO_SMALL)
def test_too_little_padding_raises(case: str) -> None:
    call, message = TOO_SMALL[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_rows_without_room_are_dropped_or_named() -> None:
    truth = GroundTruth.from_rows(rows(), 3, pad_to=1)
    assert truth.boxes[0].tolist() == [BOXES[0][0].tolist()]
    with detops.checked(), pytest.raises(ValueError, match="rows: expected at most pad_to = 1 boxes per image, got 2"):
        GroundTruth.from_rows(rows(), 3, pad_to=1)


def whole() -> GroundTruth:
    """Make ground truth with every field."""
    masks = [torch.rand(len(boxes), 3, 5) > 0.5 for boxes in BOXES]
    made = GroundTruth.from_boxes(BOXES, LABELS, ignored=BOXES[::-1], image_sizes=SIZES, masks=masks)
    return made._replaced({"boxes": made.boxes, "_cxcywh": made.cxcywh()})


def assert_same(truth: GroundTruth, other: GroundTruth) -> None:
    mine, theirs = truth._tensors(), other._tensors()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor.cpu(), theirs[name].cpu()), name


class Copies(TorchDispatchMode):
    """Counts copies, and separately those to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.across, self.non_blocking = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name == "aten::_to_copy" and torch.device(kwargs.get("device", "cpu")).type != "cpu":
            self.across += 1
            self.non_blocking = kwargs.get("non_blocking", False)
        return func(*args, **kwargs)


def test_it_moves_in_one_copy() -> None:
    truth = whole()
    with Copies() as copies:
        moved = truth.to("meta", non_blocking=True)
    assert copies.across == 1
    assert copies.non_blocking
    assert len(moved._tensors()) == 8
    for name, tensor in moved._tensors().items():
        mine = getattr(truth, name)
        assert (tensor.shape, tensor.dtype, tensor.device.type) == (mine.shape, mine.dtype, "meta")
    assert truth.to("cpu") is truth
    assert moved.to("meta") is moved
    assert moved.to("meta", non_blocking=True).device.type == "meta"


@pytest.mark.gpu
def test_it_moves_to_a_gpu_and_back() -> None:
    truth = whole()
    for source in (truth, truth.pin_memory()):
        moved = source.to("cuda", non_blocking=True)
        assert moved.device.type == "cuda"
        assert moved.to("cuda") is moved
        assert_same(moved, truth)
        assert_same(moved.to("cpu"), truth)
    assert truth.pin_memory().is_pinned()
    assert not truth.is_pinned()


def test_pinning_makes_one_buffer_and_a_second_time_no_copy() -> None:
    truth, calls = whole(), []

    def pin(tensor: Tensor) -> Tensor:
        calls.append(tensor.shape)
        return tensor.clone()

    with mock.patch.object(Tensor, "pin_memory", pin):
        pinned = truth.pin_memory()
        assert len(calls) == 1
        assert_same(pinned, truth)
        starts = {tensor.untyped_storage().data_ptr() for tensor in pinned._tensors().values()}
        assert len(starts) == 1
        assert all(tensor.data_ptr() % 16 == 0 for tensor in pinned._tensors().values())
        with mock.patch.object(Tensor, "is_pinned", return_value=True):
            assert pinned.is_pinned()
            again = pinned.pin_memory()
        assert len(calls) == 1
        assert again.boxes.data_ptr() == pinned.boxes.data_ptr()
        with Copies() as copies, mock.patch.object(Tensor, "copy_", side_effect=AssertionError("packed anew")):
            pinned.to("meta")
        assert copies.across == 1
    # Tensors that are part of a buffer, or lie in it in another order, are packed anew.
    part = GroundTruth(pinned.boxes, pinned.labels)
    with mock.patch.object(Tensor, "pin_memory", pin):
        assert_same(part.pin_memory(), part)
    both = GroundTruth(truth.boxes, truth.labels, ignored=truth.boxes + 1)
    both = both._unpacked(*both._packed(None))
    assert both.ignored is not None
    swapped = GroundTruth(both.ignored, both.labels, ignored=both.boxes)
    assert_same(swapped._unpacked(*swapped._packed(None)), swapped)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(0, 3),
    boxes=st.integers(0, 3),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64, torch.int64]),
    labels=st.sampled_from([torch.uint8, torch.int16, torch.int64]),
    crop=st.booleans(),
)
def test_one_buffer_holds_any_shapes_and_dtypes(
    batch: int, boxes: int, dtype: torch.dtype, labels: torch.dtype, crop: bool
) -> None:
    box = torch.arange(batch * (boxes + 1) * 4).reshape(batch, boxes + 1, 4).to(dtype)[:, :boxes]
    truth = GroundTruth(
        box if crop else box.contiguous(),
        torch.arange(batch * boxes).reshape(batch, boxes).to(labels),
        masks=torch.ones(batch, boxes, 3, 1, dtype=torch.bool),
        image_sizes=torch.full((batch, 2), 0.5),
    )
    buffer, pieces = truth._packed(None)
    assert buffer.dtype == torch.uint8
    assert_same(truth._unpacked(buffer, pieces), truth)
    assert_same(truth._unpacked(buffer.clone(), pieces), truth)


def test_copies_pickles_and_trees() -> None:
    truth = whole()
    for other in (copy.deepcopy(truth), pickle.loads(pickle.dumps(truth)), copy.copy(truth)):
        assert_same(other, truth)
        assert repr(other) == repr(truth)
    assert copy.deepcopy(truth).boxes.data_ptr() != truth.boxes.data_ptr()
    leaves, spec = tree_flatten({"targets": truth, "x": 1})
    assert len(leaves) == 9
    assert_same(tree_unflatten(leaves, spec)["targets"], truth)
    plain = GroundTruth(*padded())
    doubled = tree_map(lambda tensor: tensor * 2, plain)  # fields that are None are no leaves
    assert isinstance(doubled, GroundTruth)
    assert torch.equal(doubled.boxes, plain.boxes * 2)
    assert doubled.sample_sizes is None
    with pytest.raises(AttributeError):
        plain.boxes = plain.boxes  # type: ignore[misc]


def test_replaced_boxes_are_the_boxes() -> None:
    """The centres and sizes that were kept from rows belong to the old boxes, and must not be used."""
    truth = GroundTruth.from_rows(rows(), 3, pad_to=2)
    doubled = dataclasses.replace(truth, boxes=truth.boxes * 2)
    assert torch.equal(doubled.cxcywh(), truth.cxcywh() * 2)
    relabelled = dataclasses.replace(truth, labels=truth.labels + 1)
    assert torch.equal(relabelled.cxcywh(), truth.cxcywh())
    for same in (
        truth.pad_to(5),
        truth.pad_to(None, ignored=2),
        truth._unpacked(*truth._packed(None)),
        copy.copy(truth),
    ):
        assert torch.equal(same._cxcywh[:, :2], truth._cxcywh)  # type: ignore[index, arg-type]


def test_what_it_says() -> None:
    assert repr(GroundTruth.from_boxes(BOXES, LABELS)) == "GroundTruth(3 images, padded to 2 boxes, on cpu)"
    also = "GroundTruth(3 images, padded to 2 boxes, on cpu, with image_sizes, ignored, masks)"
    assert repr(whole()) == also
    assert repr(whole().to("meta")) == also.replace("cpu", "meta")


def first(change: dict[str, Any]) -> list[dict[str, Any]]:
    """Make dicts whose second image is changed; None removes a key."""
    targets = dicts()
    targets[1] = {key: value for key, value in (targets[1] | change).items() if value is not None}
    return targets


TRUTH: Any = GroundTruth  # to be called with arguments of wrong types
ERRORS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: TRUTH.from_boxes(BOXES, LABELS[:2]), ValueError, r"labels: expected shape \(3, 2\) to match boxes"),
    (lambda: TRUTH.from_boxes(BOXES, LABELS[::-1]), ValueError, "labels: sample 0 has 1, expected 2, as boxes has"),
    (lambda: TRUTH.from_boxes(BOXES, [n.float() + 0.5 for n in LABELS]), TypeError, "labels: expected integers, got float32"),
    (lambda: TRUTH.from_boxes(BOXES, [torch.tensor([True]), *LABELS[1:]]), ValueError, r"labels\[2\]: expected torch.bool"),
    (lambda: TRUTH.from_boxes([b[:, :3] for b in BOXES], LABELS), ValueError, r"boxes: expected shape \(B, N, 4\), got \(3, 2, 3\)"),
    (lambda: TRUTH.from_boxes([*BOXES[:2], BOXES[2].double()], LABELS), ValueError, r"boxes\[2\]: expected torch.float32 on cpu"),
    (lambda: TRUTH.from_boxes([*BOXES[:2], BOXES[2].to("meta")], LABELS), ValueError, r"boxes\[2\]: expected .* got .* on meta"),
    (lambda: TRUTH.from_boxes([BOXES[0], "x", BOXES[2]], LABELS), TypeError, "boxes: expected a tensor per image, got str"),
    (lambda: TRUTH.from_boxes([[[1, 2, 3, 4], [5]]], [[0, 0]]), TypeError, "boxes: expected a tensor per image, got list"),
    (lambda: TRUTH.from_boxes(None, LABELS), TypeError, "boxes: expected a RaggedBatch, a tensor or a list of tensors, got None"),
    (lambda: TRUTH.from_boxes([], []), ValueError, "boxes: expected a tensor per image, got an empty list"),
    (lambda: TRUTH.from_boxes(BOXES, LABELS, ignored=BOXES[:2]), ValueError, r"ignored: expected shape \(3, M, 4\) to match boxes"),
    (lambda: TRUTH.from_boxes(BOXES, LABELS, image_sizes=[(4, 4)]), ValueError, r"image_sizes: .* 3 images, got shape \(1, 2\)"),
    (lambda: TRUTH.from_boxes(BOXES, LABELS, image_sizes=[4, 4, 4]), ValueError, r"image_sizes: .* 3 images, got shape \(3,\)"),
    (lambda: TRUTH.from_boxes(BOXES, LABELS, masks=torch.zeros(3, 2, 5)), ValueError, r"masks: expected shape \(3, 2, H, W\)"),
    (lambda: TRUTH.from_boxes(BOXES, LABELS, masks=[torch.zeros(1, 2, 2)] * 3), ValueError, "masks: sample 0 has 1, expected 2"),
    (lambda: TRUTH.from_boxes(BOXES, LABELS, masks=[torch.zeros(2, 2, 2), torch.zeros(0), torch.zeros(1, 3, 3)]), ValueError,
     r"masks: expected one height and width in the batch, got \[\(2, 2\), \(3, 3\)\]"),
    (lambda: TRUTH(*padded(), torch.tensor([2, 0])), ValueError, r"sample_sizes: expected shape \(3,\) to match boxes"),
    (lambda: TRUTH(*padded(), torch.tensor([2.0, 0, 1])), TypeError, "sample_sizes: expected integers, got float32"),
    (lambda: TRUTH(padded()[0], padded()[1].to("meta")), ValueError, "labels: expected a tensor on cpu, as boxes is"),
    (lambda: TRUTH(BOXES, LABELS), TypeError, "boxes: expected numbers, got list"),
    (lambda: TRUTH.from_dicts([dicts()[0], BOXES[1]]), TypeError, "targets: image 1: expected a dict, got Tensor"),
    (lambda: TRUTH.from_dicts(first({"boxes": None})), ValueError,
     'targets: image 1: expected the key "boxes", got labels'),
    (lambda: TRUTH.from_dicts(transformers()), ValueError,
     'targets: image 0: expected the key "labels", got boxes, class_labels, size, image_id; for Transformers\' labels, Gr'),
    (lambda: TRUTH.from_dicts(first({"boxes": torch.zeros(1, 5)})), ValueError,
     r'targets: image 1, "boxes": expected shape \(n, 4\), got \(1, 5\)'),
    (lambda: TRUTH.from_dicts(first({"boxes": [["a"]]})), TypeError, 'targets: image 1, "boxes": expected a tensor, an array'),
    (lambda: TRUTH.from_dicts(first({"boxes": BOXES[2]})), ValueError, 'targets: image 1, "labels": expected 1, one per box, got 0'),
    (lambda: TRUTH.from_dicts(first({"iscrowd": [0]})), ValueError, 'targets: image 1, "iscrowd": expected 0, one per box, got 1'),
    (lambda: TRUTH.from_dicts(first({"masks": torch.zeros(1, 2, 2)})), ValueError,
     'targets: image 1, "masks": expected 0, one per box, got 1'),
    (lambda: TRUTH.from_dicts(first({"boxes": BOXES[2], "labels": [0.5]})), TypeError,
     'targets: image 1, "labels": expected integers, got float32'),
    (lambda: TRUTH.from_dicts(first({"boxes": bounding_boxes(BOXES[2], "XYWHR", (4, 4)), "labels": [1]})), ValueError,
     'targets: image 1, "boxes": expected BoundingBoxes of format XYXY, XYWH or CXCYWH, got XYWHR'),
    (lambda: TRUTH.from_rows([[0] * 6], 1), TypeError, r"rows: expected a tensor \(T, 6\) of numbers, got list"),
    (lambda: TRUTH.from_rows(torch.zeros(2, 5), 1), ValueError, r"rows: expected shape \(T, 6\), got \(2, 5\)"),
    (lambda: TRUTH.from_rows(rows(True), 3, normalized=True), ValueError,
     "image_sizes: expected a height and a width per image, as boxes are normalised, got None"),
    (lambda: TRUTH.from_rows(rows(True), 3, normalized=True, image_sizes=SIZES[:2]), ValueError,
     r"image_sizes: expected a height and a width for each of 3 images, got shape \(2, 2\)"),
    (lambda: TRUTH.from_transformers([{"boxes": fractions(0), "class_labels": LABELS[0]}]), ValueError,
     'image_sizes: expected a height and a width per image, as boxes are normalised and image 0 has no "size"'),
    (lambda: TRUTH.from_transformers(transformers(), image_sizes=SIZES[:1]), ValueError, "image_sizes: .* 3 images"),
    (lambda: TRUTH.from_transformers(dicts()), ValueError, 'targets: image 0: expected the key "class_labels"'),
    (lambda: TRUTH.from_coco([[{"bbox": [1, 2, 3, 4]}]]), ValueError,
     'annotations: image 0, annotation 0: expected the key "category_id", got bbox'),
    (lambda: TRUTH.from_coco([[], [{"bbox": [1, 2, 3], "category_id": 1}]]), ValueError,
     'annotations: image 1, annotation 0, "bbox": expected 4 numbers, got 3'),
    (lambda: TRUTH.from_coco(coco(), [5, 6]), ValueError,
     'annotations: image 0, annotation 0, "category_id": expected one of category_ids, got 3'),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_name_the_argument(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def use(truth: object) -> None:
    detops.centernet_targets(truth, (8, 8), (64, 64), num_classes=4)  # type: ignore[arg-type]


NAN = float("nan")
SKIPPED: list[tuple[list[float], int, str]] = [
    ([0, 0, 5, 5], 4, "labels: sample 1, box 0 has 4, expected a value below 4"),
    ([5, 0, 4, 5], 0, r"boxes: sample 1, box 0 has \[5.0, 0.0, 4.0, 5.0\], expected x2 >= x1 and y2 >= y1"),
    ([5, NAN, 9, 5], 0, r"boxes: sample 1, box 0 has \[5.0, nan, 9.0, 5.0\], expected finite numbers"),
    ([0, 0, 0.5, 1], 0, "boxes: all lie within one pixel, expected boxes in pixels: are they normalised"),
]


@pytest.mark.parametrize(("box", "label", "message"), SKIPPED)
def test_checked_mode_names_what_is_skipped(box: list[float], label: int, message: str) -> None:
    boxes = [torch.zeros(0, 4), torch.tensor([box], dtype=torch.float32)]
    labels = [torch.zeros(0, dtype=torch.int64), torch.tensor([label])]
    truth = GroundTruth.from_boxes(boxes, labels)
    for form in (truth, (boxes, labels), truth.to_list()):
        use(form)
        with detops.checked(), pytest.raises(ValueError, match=message):
            use(form)
    with detops.checked():  # a box that is ignored, or padding, may hold anything
        use((boxes, [labels[0], labels[1] * 0 - 1]))
        use(GroundTruth(truth.boxes, truth.labels, torch.tensor([0, 0])))


def test_checked_mode_knows_pixels_from_fractions() -> None:
    fractional = GroundTruth.from_boxes([BOXES[0] / 128, BOXES[2] / 128], [LABELS[0], LABELS[2]])
    with detops.checked(), pytest.raises(ValueError, match="are they normalised"):
        use(fractional)
    with detops.checked():
        use(
            ([torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[0.0, 0, 30, 30]])], [torch.tensor([0]), torch.tensor([1])])
        )
        use(([torch.zeros(1, 4)], [torch.tensor([0])]))  # a box without size does not show its unit
        use(([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]))


def test_checked_mode_names_sizes_and_rows() -> None:
    boxes, labels = padded()
    for sizes, message in (
        ([2, 3, 0], r"boxes: sample 1 has 3 entries, expected 0 \.\. 2"),
        ([-1, 0, 0], "sample 0 has -1"),
    ):
        with detops.checked(), pytest.raises(ValueError, match=message):
            use(GroundTruth(boxes, labels, torch.tensor(sizes)))
    with detops.checked(), pytest.raises(ValueError, match=r"ignored: sample 2 has 9 entries, expected 0 \.\. 2"):
        use(GroundTruth(boxes, labels, ignored=boxes, ignored_sizes=torch.tensor([0, 1, 9])))
    with detops.checked(), pytest.raises(ValueError, match="labels: sample 0 has 1, expected 2, as boxes has"):
        GroundTruth.from_boxes(RaggedBatch.from_list(BOXES), RaggedBatch.from_list(LABELS[::-1]))
    for row, message in (
        ([3.0, 0, 5, 5, 1, 1], r"rows: row 1 has image 3, expected 0 \.\. 2"),
        ([0.5, 0, 5, 5, 1, 1], r"rows: row 1 has image 0.5, expected 0 \.\. 2"),
        ([0.0, 0.5, 5, 5, 1, 1], "rows: row 1 has class 0.5, expected a whole number"),
        ([0.0, 0, 5, NAN, 1, 1], r"rows: row 1 has \[0, 0, 5, nan, 1, 1\], expected finite numbers"),
        ([0.0, 0, 5, 5, -1, 1], r"rows: row 1 has \[0, 0, 5, 5, -1, 1\], expected a width and a height of at least 0"),
    ):
        flat = torch.tensor([[0.0, 0, 5, 5, 1, 1], row])
        GroundTruth.from_rows(flat, 3)
        with detops.checked(), pytest.raises(ValueError, match=message):
            GroundTruth.from_rows(flat, 3)


def test_what_is_no_ground_truth() -> None:
    message = r"targets: expected a GroundTruth, the pair \(boxes, labels\) or a list of dicts, got "
    for wrong, got in ((None, "NoneType"), (BOXES[0], "Tensor"), ((BOXES, LABELS, LABELS), "tuple"), ({}, "dict")):
        with pytest.raises(TypeError, match=message + got):
            use(wrong)


def test_torchvision_itself() -> None:
    pytest.importorskip("PIL")
    import loaded_torchvision

    loaded_torchvision.load()
    from torchvision import tv_tensors

    expected = GroundTruth.from_boxes(BOXES, LABELS, image_sizes=SIZES)
    for form in ("XYXY", "XYWH", "CXCYWH"):
        targets = [
            target | {"boxes": tv_tensors.BoundingBoxes(in_format(b, form), format=form, canvas_size=SIZES[b])}
            for b, target in enumerate(dicts())
        ]
        assert_same(GroundTruth.from_dicts(targets), expected)
        for tensor in GroundTruth.from_dicts(targets)._tensors().values():
            assert type(tensor) is Tensor
    corners = [tv_tensors.BoundingBoxes(b, format="XYXY", canvas_size=(9, 9)) for b in BOXES]
    assert type(GroundTruth.from_boxes(corners, LABELS).boxes) is Tensor
    rotated = tv_tensors.BoundingBoxes(torch.zeros(1, 5), format="XYWHR", canvas_size=(9, 9))
    with pytest.raises(ValueError, match='image 0, "boxes": expected BoundingBoxes of format XYXY, XYWH or CXCYWH'):
        GroundTruth.from_dicts([{"boxes": rotated, "labels": torch.tensor([0])}])
    masks = [tv_tensors.Mask(torch.ones(len(b), 4, 4, dtype=torch.uint8)) for b in BOXES]
    made = GroundTruth.from_dicts(dicts(masks=lambda b: masks[b])).masks
    assert type(made) is Tensor
