"""InstanceMasks of low-resolution maps of the image: query masks and prototypes, in each peer's order of operations."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from map_scenes import blob_maps, encoded, interpolated, map_scene
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor

import detops
from detops import InstanceMasks

Size = tuple[int, int]


def queries(maps: Tensor, image_size: Size, boxes: Tensor | None = None, **options: Any) -> InstanceMasks:
    """Maps with labels 0, 1, ... and falling scores."""
    labels, scores = torch.arange(len(maps)), torch.linspace(1, 0.2, len(maps))
    return InstanceMasks.from_query_masks(maps, labels, scores, image_size, boxes, **options)


def counts(found: InstanceMasks, **options: Any) -> list[bytes]:
    return [rle["counts"] for rle in found.to_rle(**options)]


sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6), cells=st.tuples(st.integers(1, 30), st.integers(1, 30)), size=sizes,
    kind=st.sampled_from(["noise", "blobs", "ties"]), half=st.booleans(),
)  # fmt: skip
def test_one_resize(seed: int, cells: Size, size: Size, kind: str, half: bool) -> None:
    """RF-DETR-Seg: pixels may differ within rounding of 0, because torch's kernels fuse and reorder."""
    maps = map_scene(seed, 3, cells, kind=kind, dtype=torch.float16 if half else torch.float32).maps
    found = queries(maps, size)
    value, pasted = interpolated(maps, size), found.paste()
    certain = F.interpolate(maps.double()[:, None], size, mode="bilinear")[:, 0].abs() > 1e-6
    assert torch.equal(pasted[certain], (value > 0)[certain])
    assert counts(found) == encoded(pasted)


def test_two_resizes_with_padding_cut_away() -> None:
    """Mask2Former: to the padded input, cut to the image, then to its size."""
    maps = blob_maps(3, 64)
    found = queries(maps, (213, 320), via=(256, 256), content=(0, 0, 256, 171))
    value = interpolated(interpolated(maps, (256, 256))[:, :171, :256], (213, 320))
    assert counts(found) == encoded(value > 0)


def test_whole_content_is_a_slice() -> None:
    maps = blob_maps(3, 40)
    for content in ((0, 0, 40, 27), (3, 5, 38, 40), (7, 0, 8, 1)):
        x1, y1, x2, y2 = content
        expected = queries(maps[:, y1:y2, x1:x2], (64, 90))
        assert counts(queries(maps, (64, 90), content=content)) == counts(expected)


def test_fractional_content_is_where_the_image_lies() -> None:
    """A letterbox of 428 x 640 in 640 covers the cells 26.5 .. 133.5 of 160: the image is a part of the whole resize."""
    maps = blob_maps(4, 160)
    found = queries(maps, (428, 640), content=(0, 26.5, 160, 133.5))
    assert counts(found) == encoded((interpolated(maps, (640, 640)) > 0)[:, 106:534])


def test_nearest_after_the_cut() -> None:
    """Transformers' Mask2Former: 384 x 384, cut, then nearest."""
    maps = blob_maps(3, 48)
    found = queries(maps, (213, 320), via=(384, 384), interpolation="nearest")
    cut = (interpolated(maps, (384, 384)) > 0).float()
    assert counts(found) == encoded(F.interpolate(cut[:, None], (213, 320), mode="nearest")[:, 0] > 0)


@pytest.mark.parametrize("threshold", [0.0, 0.7, -1.5])
def test_other_thresholds(threshold: float) -> None:
    maps = map_scene(2, 3, (20, 24), kind="blobs").maps
    found = queries(maps, (100, 130), threshold=threshold)
    assert counts(found) == encoded(interpolated(maps, (100, 130)) > threshold)
    assert counts(found) == counts(queries(maps, (100, 130)), threshold=threshold)


def test_is_strict() -> None:
    assert not queries(torch.zeros(1, 4, 4), (9, 9)).paste().any()
    assert queries(torch.full((1, 4, 4), 1e-30), (9, 9)).paste().all()


def test_boxes_are_the_extents_or_the_given() -> None:
    maps = blob_maps(3, 30)
    maps[1] = -1
    found = queries(maps, (50, 80))
    for n, mask in enumerate(found.paste()):
        y, x = mask.nonzero(as_tuple=True)
        box = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0]
        assert found.boxes[n].tolist() == [float(v) for v in box]
    boxes = torch.rand(3, 4)
    assert torch.equal(queries(maps, (50, 80), boxes).boxes, boxes)


def test_all_methods_agree() -> None:
    found = queries(blob_maps(4, 30), (50, 80))
    pasted = found.paste()
    assert found.areas().tolist() == pasted.sum((1, 2)).tolist()
    assert torch.equal(found.paste(2), pasted[2])
    assert torch.equal(found.paste([3, 1]), pasted[[3, 1]])
    assert (found.paste(packed=True).numpy() == np.packbits(pasted.numpy(), axis=2)).all()
    expected = torch.from_numpy(coco.iou(found.to_rle(), found.to_rle(), [False] * 4)).float()
    torch.testing.assert_close(found.iou(found), expected)
    drawn = torch.zeros_like(pasted)
    for n, (mask, x, y) in enumerate(found.crops()):
        assert mask.any(0).all() or mask.any()
        drawn[n, y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    assert torch.equal(drawn, pasted)
    rows = found.to_coco(7, [10, 20, 30, 40])
    assert [row["category_id"] for row in rows] == [10, 20, 30, 40]
    assert [row["segmentation"]["counts"].encode() for row in rows] == counts(found)
    assert counts(found[1:3]) == counts(found)[1:3]
    assert counts(found.to("cpu")) == counts(found)
    assert repr(found) == "InstanceMasks(4 maps (30, 30) in an image 50 x 80)"


def test_overlap_with_masks_in_boxes() -> None:
    """Both kinds in one image, each by its own rule."""
    maps = queries(torch.ones(1, 4, 4), (20, 30))
    roi = InstanceMasks(torch.tensor([[0.0, 0, 15, 20]]), torch.zeros(1, dtype=torch.int64), torch.ones(1),
                        torch.ones(1, 28, 28), (20, 30))  # fmt: skip
    assert maps.iou(roi).tolist() == [[0.5]]


def test_nothing() -> None:
    none = queries(torch.zeros(0, 4, 4), (20, 30))
    assert none.to_rle() == none.crops() == []
    assert none.boxes.shape == (0, 4)
    assert none.paste().shape == (0, 20, 30)
    assert none.iou(none).shape == (0, 0)
    empty = queries(torch.full((2, 4, 4), -1.0), (20, 30))
    assert [crop.mask.shape for crop in empty.crops()] == [(0, 0)] * 2
    assert empty.draw(Image.new("RGB", (30, 20))).size == (30, 20)


def test_draw_colours_masks_beyond_their_boxes() -> None:
    found = queries(torch.ones(1, 4, 4), (40, 60), torch.tensor([[20.0, 20, 30, 30]]))
    picture = np.asarray(found.draw(np.zeros((40, 60, 3), np.uint8)))
    assert picture[2, 2].any()


def yolo_masks(z: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Products enlarged, cut at 0, and cropped to boxes."""
    value = interpolated(z, size)
    y, x = torch.arange(size[0])[:, None], torch.arange(size[1])
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
    return (value > 0) & (x >= x1) & (x < x2) & (y >= y1) & (y < y2)


def prototype_scene(seed: int = 0, count: int = 4, cells: Size = (20, 24)) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients and prototypes in sixteenths, whose products have no rounding; and boxes in an image of 60 x 80."""
    g = torch.Generator().manual_seed(seed)
    coefficients = torch.randint(-16, 17, (count, 8), generator=g) / 16
    prototypes = torch.randint(-16, 17, (8, *cells), generator=g) / 16
    low = torch.rand(count, 2, generator=g) * torch.tensor([40.0, 30])
    return coefficients, prototypes, torch.cat([low, low + 5 + 30 * torch.rand(count, 2, generator=g)], 1)


def prototype_masks(coefficients: Tensor, prototypes: Tensor, boxes: Tensor, **options: Any) -> InstanceMasks:
    labels, scores = torch.arange(len(boxes)), torch.ones(len(boxes))
    return InstanceMasks.from_prototypes(coefficients, prototypes, boxes, labels, scores, (60, 80), **options)


@pytest.mark.parametrize("seed", range(3))
def test_yolo_crops_pixels(seed: int) -> None:
    coefficients, prototypes, boxes = prototype_scene(seed)
    found = prototype_masks(coefficients, prototypes, boxes)
    expected = yolo_masks(torch.einsum("nk,khw->nhw", coefficients, prototypes), boxes, (60, 80))
    assert counts(found) == encoded(expected)
    assert counts(found[[2, 0]]) == encoded(expected[[2, 0]])
    assert torch.equal(found.boxes, boxes)
    whole = prototype_masks(coefficients, prototypes, boxes, crop=None)
    assert (whole.areas() > found.areas()).all()


def test_crop_on_the_grid() -> None:
    """Cells outside the box are 0; they leak nothing here, as the others are cut at a half."""
    coefficients, prototypes, boxes = prototype_scene(1)
    z = torch.einsum("nk,khw->nhw", coefficients, prototypes)
    scaled = boxes * torch.tensor([24 / 80, 20 / 60] * 2)
    y, x = torch.arange(20)[:, None], torch.arange(24)
    x1, y1, x2, y2 = scaled[:, :, None, None].unbind(1)
    z = z * ((x >= x1) & (x < x2) & (y >= y1) & (y < y2))
    found = prototype_masks(coefficients, prototypes, boxes, crop="prototypes", threshold=0.5)
    assert counts(found) == encoded(interpolated(z, (60, 80)) > 0.5)


def test_yolact() -> None:
    """The sigmoid, a crop with a cell of padding, and the resize."""
    coefficients, prototypes, boxes = prototype_scene(2)
    boxes[0, 2] = boxes[0, 0]  # a box of no width keeps two cells
    p = torch.einsum("nk,khw->nhw", coefficients, prototypes).sigmoid()
    y, x = torch.arange(20)[:, None], torch.arange(24)
    relative = boxes / torch.tensor([80.0, 60, 80, 60])
    x1, x2 = (relative[:, 0::2] * 24 + torch.tensor([-1, 1])).clamp(0, 24)[:, :, None, None].unbind(1)
    y1, y2 = (relative[:, 1::2] * 20 + torch.tensor([-1, 1])).clamp(0, 20)[:, :, None, None].unbind(1)
    p = p * ((x >= x1) & (x < x2) & (y >= y1) & (y < y2))
    found = prototype_masks(coefficients, prototypes, boxes, crop="prototypes", activation="sigmoid", padding=1)
    assert counts(found) == encoded(interpolated(p, (60, 80)) > 0.5)


def test_prototypes_of_a_letterbox() -> None:
    """Boxes are in the image; the grid crop finds them within the content."""
    coefficients, prototypes, boxes = prototype_scene(3)
    inner = prototypes[:, 3:18]
    for crop in ("image", "prototypes"):
        found = prototype_masks(coefficients, prototypes, boxes, crop=crop, content=(0, 3, 24, 18))
        assert counts(found) == counts(prototype_masks(coefficients, inner, boxes, crop=crop))


def test_boxes_that_are_not_finite_have_no_pixels() -> None:
    coefficients, prototypes, boxes = prototype_scene(0)
    boxes[0, 1], boxes[1, 2] = float("nan"), float("inf")
    boxes[2] = torch.tensor([30.0, 30, 10, 10])
    areas = prototype_masks(coefficients, prototypes, boxes).areas().tolist()
    assert areas[0] == areas[2] == 0
    assert areas[1] > 0


def decoded(rles: list[NDArray[np.int32]], shapes: NDArray[np.int32], corners: NDArray[np.int32], size: Size) -> Tensor:
    """The pixels of compact masks."""
    masks = torch.zeros(len(rles), *size, dtype=torch.bool)
    for n, (lengths, (h, w), (x, y)) in enumerate(zip(rles, shapes, corners, strict=True)):
        assert lengths.sum() == h * w
        assert (lengths[1:] > 0).all()
        values = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(w, h).T
        masks[n, y : y + h, x : x + w] = torch.from_numpy(values.copy())
    return masks


def test_compact_masks_of_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run lengths of the extents, down their columns."""
    package, module = ModuleType("supervision"), ModuleType("supervision.detection.compact_mask")
    package.Detections = lambda **fields: SimpleNamespace(**fields)  # type: ignore[attr-defined]
    module.CompactMask = lambda *fields: fields  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", package)
    monkeypatch.setitem(sys.modules, "supervision.detection.compact_mask", module)
    maps = torch.cat([blob_maps(3, 20), torch.full((1, 20, 20), -1.0), torch.ones(1, 20, 20)])
    for found in (queries(maps, (50, 80)), queries(map_scene(1, 4, (9, 9)).maps, (50, 80))):
        rles, shapes, corners, size = found.to_supervision(compact=True).mask
        assert size == (50, 80)
        assert shapes.dtype == corners.dtype == rles[0].dtype == np.int32
        assert torch.equal(decoded(rles, shapes, corners, size), found.paste())


def test_a_bad_logit_is_named_in_checked_mode() -> None:
    maps = blob_maps(3, 10)
    maps[1, 2, 3] = float("nan")
    assert (
        queries(maps, (20, 20)).areas()[[0, 2]].tolist() == queries(blob_maps(3, 10), (20, 20)).areas()[[0, 2]].tolist()
    )
    with detops.checked(), pytest.raises(ValueError, match="mask_logits: entry 1 has a value that is not finite"):
        queries(maps, (20, 20))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": float("nan")}, ValueError, "threshold: expected a finite number, got nan"),
        ({"threshold": None}, TypeError, "threshold: expected a finite number, got None"),
        ({"content": (0, 0, 0, 4)}, ValueError, "content: expected .x1, y1, x2, y2. with 0 <= x1 < x2"),
        ({"content": (0, 0, 11, 4)}, ValueError, r"content: expected a part of 10 x 10 \(width x height\)"),
        ({"content": (0, 0, 17, 4), "via": (20, 16)}, ValueError, "content: expected a part of 16 x 20"),
        ({"content": 3}, TypeError, "content: expected"),
        ({"content": (0, 0, 4.5, 4), "interpolation": "nearest"}, ValueError, "content: expected whole numbers"),
        ({"via": (0, 4)}, ValueError, r"via: expected a height and a width of at least 1, got \(0, 4\)"),
        ({"via": 4}, TypeError, "via: expected a height and a width of at least 1, got 4"),
        ({"interpolation": "cubic"}, ValueError, "interpolation: expected .* got 'cubic'"),
    ],
)
def test_errors_name_the_argument(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        queries(torch.zeros(2, 10, 10), (20, 30), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefficients": torch.zeros(4)}, r"coefficients: expected shape \(N, K\), got \(4,\)"),
        ({"prototypes": torch.zeros(7, 5, 5)}, r"prototypes: expected shape \(8, h, w\) .* got \(7, 5, 5\)"),
        ({"boxes": torch.zeros(3, 4)}, r"boxes: expected shape \(4, 4\) to match coefficients, got \(3, 4\)"),
        ({"crop": "grid"}, 'crop: expected "image", "prototypes" or None, got \'grid\''),
        ({"activation": "relu"}, "activation: expected \"sigmoid\" or None, got 'relu'"),
        ({"padding": 1}, r'padding: expected 0, or with crop="prototypes" a number of cells, got 1'),
    ],
)
def test_errors_of_prototypes(change: dict[str, Any], message: str) -> None:
    good = dict(zip(("coefficients", "prototypes", "boxes"), prototype_scene(), strict=True))
    with pytest.raises(ValueError, match=message):
        prototype_masks(**good | change)


def test_compiles_whole() -> None:
    """With boxes that are given, the maps' kind of masks is made, and what needs no pixels of its own, in one graph."""

    def areas(maps: Tensor, boxes: Tensor) -> Tensor:
        return queries(maps, (40, 50), boxes).areas()

    args = blob_maps(3, 20), torch.zeros(3, 4)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(areas, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*args), areas(*args))
