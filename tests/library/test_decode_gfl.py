"""decode_gfl against a loop over levels, scores and boxes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

import detops
from detops import ops

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def overlap(a, b):
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0


def plain_decode(cls_scores, bbox_preds, strides, image_sizes, threshold, iou_threshold, limit, candidates):
    """For each image, a list of (box, score, label); scores in float32, as they are compared."""
    images = []
    for b in range(len(cls_scores[0])):
        found = []
        for scores, preds, stride in zip(cls_scores, bbox_preds, strides, strict=True):
            level = []
            for y in range(scores.shape[2]):
                for x in range(scores.shape[3]):
                    raw = preds[b, :, y, x].float().view(4, -1).softmax(1)
                    left, top, right, bottom = ((raw * torch.arange(raw.shape[1])).sum(1) * stride).tolist()
                    box = [x * stride - left, y * stride - top, x * stride + right, y * stride + bottom]
                    if image_sizes is not None:
                        height, width = image_sizes[b]
                        box = [min(max(v, 0), side) for v, side in zip(box, (width, height) * 2, strict=True)]
                    for label, score in enumerate(scores[b, :, y, x].float().sigmoid().tolist()):
                        if score >= threshold:
                            level.append((box, score, label))
            found += sorted(level, key=lambda f: -f[1])[:candidates]
        kept = []
        for box, score, label in sorted(found, key=lambda f: -f[1]):
            has_area = box[2] > box[0] and box[3] > box[1]
            if has_area and all(label != other or overlap(box, better) <= iou_threshold for better, _, other in kept):
                kept.append((box, score, label))
        images.append(kept[:limit])
    return images


def maps(seed, batch=2, classes=3, bins=5, dtype=torch.float32, coarse=False):
    g = torch.Generator().manual_seed(seed)
    shapes = ((4, 6), (2, 3))
    scores = [torch.randn(batch, classes, *shape, generator=g) * 1.5 for shape in shapes]
    preds = [torch.randn(batch, 4 * bins, *shape, generator=g) * 2 for shape in shapes]
    if coarse:
        scores = [level.round() for level in scores]
    return [level.to(dtype) for level in scores], [level.to(dtype) for level in preds]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.sampled_from([0, 1, 2]),
    classes=st.sampled_from([1, 3]),
    bins=st.sampled_from([2, 5, 17]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    coarse=st.booleans(),
    clipped=st.booleans(),
    threshold=st.sampled_from([0.0, 0.2, 0.9]),
    limit=st.sampled_from([1, 5, 200]),
    candidates=st.sampled_from([3, 1000]),
)
def test_equals_plain_decoding(clipped, threshold, limit, candidates, **options):
    cls_scores, bbox_preds = maps(**options)
    sizes, iou = [(28, 44), (32, 20)][: len(cls_scores[0])] if clipped else None, 0.437
    got = detops.decode_gfl(
        cls_scores,
        bbox_preds,
        (8, 16),
        sizes,
        score_threshold=threshold,
        iou_threshold=iou,
        max_detections=limit,
        candidates=candidates,
    )
    expected = plain_decode(cls_scores, bbox_preds, (8, 16), sizes, threshold, iou, limit, candidates)
    assert got.boxes.shape == (len(cls_scores[0]), limit, 4)
    assert got.boxes.dtype == got.scores.dtype == torch.float32
    for b, found in enumerate(expected):
        n = len(found)
        assert got.labels[b].tolist() == [label for *_, label in found] + [-1] * (limit - n)
        torch.testing.assert_close(got.scores[b, :n], torch.tensor([score for _, score, _ in found]))
        boxes = torch.tensor([box for box, *_ in found], dtype=torch.float32).reshape(-1, 4)
        torch.testing.assert_close(got.boxes[b, :n], boxes, rtol=1e-4, atol=1e-3)
        assert not got.scores[b, n:].any()
        assert not got.boxes[b, n:].any()


def test_what_is_not_finite_is_no_detection():
    scores, preds = torch.zeros(1, 1, 1, 3), torch.zeros(1, 8, 1, 3)
    scores[..., 0], preds[0, 1, 0, 1] = float("nan"), float("nan")
    got = detops.decode_gfl([scores], [preds], [8], iou_threshold=1.0)
    assert (got.labels >= 0).sum() == 1
    assert got.boxes[0, 0].tolist() == [12, -4, 20, 4]
    assert got.boxes.isfinite().all()


def test_boxes_without_area_are_no_detections() -> None:
    """The last cell begins beyond an image 100 pixels wide; another box has a distance of 0 to all sides."""
    scores, preds = torch.full((1, 2, 1, 5), -9.0), torch.zeros(1, 4 * 3, 1, 5)
    scores[0, 1, 0, 4] = 3.0
    preds[0, 0, 0, 4] = 200.0  # left side: no distance
    size = [(32, 100)]
    assert detops.decode_gfl([scores], [preds], [32]).boxes[0, 0].tolist() == [128, -32, 160, 32]
    found = detops.decode_gfl([scores], [preds], [32], size)
    assert (found.labels == -1).all()
    assert not found.scores.any()
    preds[0, 6, 0, 4] = 200.0  # right side: none either
    assert (detops.decode_gfl([scores], [preds], [32]).labels == -1).all()
    preds[0, 6, 0, 4], preds[0, 0, 0, 4] = 0.0, 0.0
    assert detops.decode_gfl([scores], [preds], [32], size).boxes[0, 0].tolist() == [96, 0, 100, 32]


def test_a_score_at_the_threshold_is_a_detection():
    scores, preds = torch.zeros(1, 1, 1, 1), torch.zeros(1, 8, 1, 1)
    assert detops.decode_gfl([scores], [preds], [8], score_threshold=0.5).labels[0, 0] == 0
    assert detops.decode_gfl([scores], [preds], [8], score_threshold=0.500001).labels[0, 0] == -1


@pytest.mark.parametrize("device", DEVICES)
def test_no_host_sync_and_compiles_whole(device):
    cls_scores, bbox_preds = ([level.to(device) for level in part] for part in maps(2))
    shapes = torch.tensor([[30, 40], [32, 48]], device=device)

    def decode(*levels):
        return detops.decode_gfl(levels[:2], levels[2:], (8, 16), shapes, max_detections=10)

    assert detops.count_syncs(decode, *cls_scores, *bbox_preds) == 0
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert decode(*(mode.from_tensor(t) for t in (*cls_scores, *bbox_preds))).boxes.shape == (2, 10, 4)
    compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(*cls_scores, *bbox_preds), decode(*cls_scores, *bbox_preds), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cls_scores": torch.zeros(1)}, TypeError, "cls_scores: expected a list of tensors, got Tensor"),
        ({"strides": [8, 16]}, ValueError, "cls_scores: expected 2 levels, one per stride, got 1"),
        ({"bbox_preds": [torch.zeros(1, 9, 2, 2)]}, ValueError, r"bbox_preds: expected 4 \* \(reg_max \+ 1\) channels, got 9"),
        ({"bbox_preds": [torch.zeros(1, 8, 2, 3)]}, ValueError, "bbox_preds: expected the shape of cls_scores"),
        ({"image_sizes": [(2, 2), (3, 3)]}, ValueError, "image_sizes: expected a height and a width for each of 1"),
        ({"strides": [0]}, ValueError, r"strides: expected whole numbers of at least 1 pixel.* got \[0\]"),
        ({"strides": [(8, 4)]}, ValueError, r"strides: expected whole numbers of at least 1 pixel.* got \[\(8, 4\)\]"),
        ({"cls_scores": [torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 1, 1)], "strides": [8, 16]}, ValueError,
         r"cls_scores: expected shape \(B, 1, H, W\), got \(1, 3, 1, 1\)"),
        ({"score_threshold": 2}, ValueError, r"score_threshold: expected 0 \.\. 1, got 2"),
        ({"max_detections": 0}, ValueError, "max_detections: expected at least 1, got 0"),
        ({"candidates": 0}, ValueError, "candidates: expected at least 1, got 0"),
        ({"image_shapes": [(2, 2)]}, TypeError, "image_shapes: this argument is now image_sizes"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, error, message):
    good = dict(cls_scores=[torch.zeros(1, 1, 2, 2)], bbox_preds=[torch.zeros(1, 8, 2, 2)], strides=[8])
    with pytest.raises(error, match=message):
        detops.decode_gfl(**good | change)


def test_points_in_the_middle_of_their_cells_and_plain_distances():
    """Where the assignment puts the points of a head of four distances, and no suppression: a top-k of scores."""
    points = detops.grid_points([(2, 3), (1, 1)], (8, 16))
    scores = [torch.zeros(1, 2, 2, 3), torch.full((1, 2, 1, 1), 1.0)]
    sides = [torch.full((1, 4, 2, 3), 0.5), torch.tensor([1.0, 2, 0.5, 0]).view(1, 4, 1, 1)]
    found = detops.decode_gfl(scores, sides, (8, 16), iou_threshold=None, point_offset=0.5, max_detections=14)
    boxes = ops.decode_distances(sides, points)[0]
    assert found.boxes[0, :2].tolist() == boxes[6:].tolist() * 2
    expected = boxes[:6].repeat_interleave(2, 0)
    torch.testing.assert_close(found.boxes[0, 2:], expected, rtol=0, atol=0)
    assert found.labels[0].tolist() == [0, 1] * 7
