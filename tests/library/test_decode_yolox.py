"""decode_yolox against a loop over cells and boxes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

import detops

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def overlap(a, b):
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def plain_decode(outputs, strides, image_sizes, score_threshold, iou_threshold, limit, candidates):
    """For each image, a list of (box, score, label); scores in float32, as they are compared."""
    images = []
    for b in range(len(outputs[0])):
        found = []
        for output, stride in zip(outputs, strides, strict=True):
            for y in range(output.shape[2]):
                for x in range(output.shape[3]):
                    row = output[b, 0, y, x].float()
                    score, label = (row[5:].sigmoid() * row[4].sigmoid()).max(0)
                    if score >= score_threshold:
                        cx, cy = (row[0].item() + x) * stride, (row[1].item() + y) * stride
                        w, h = math.exp(row[2]) * stride, math.exp(row[3]) * stride
                        found.append(([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], score.item(), label.item()))
        kept = []
        for box, score, label in sorted(found, key=lambda f: -f[1])[:candidates]:
            if image_sizes is not None:
                height, width = image_sizes[b]
                box = [min(max(v, 0), side) for v, side in zip(box, (width, height) * 2, strict=True)]
            has_area = box[2] > box[0] and box[3] > box[1]
            if has_area and all(label != other or overlap(box, better) <= iou_threshold for better, _, other in kept):
                kept.append((box, score, label))
        images.append(kept[:limit])
    return images


def maps(seed, batch=2, classes=3, shapes=((4, 6), (2, 3)), dtype=torch.float32, coarse=False):
    g = torch.Generator().manual_seed(seed)
    outputs = [torch.randn(batch, 1, *shape, 5 + classes, generator=g) * 1.5 for shape in shapes]
    if coarse:
        for output in outputs:
            output[..., 4:] = output[..., 4:].round()
    return [output.to(dtype) for output in outputs]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.sampled_from([0, 1, 2]),
    classes=st.sampled_from([1, 3]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    coarse=st.booleans(),
    clipped=st.booleans(),
    score_threshold=st.sampled_from([0.0, 0.2, 0.9]),
    limit=st.sampled_from([1, 5, 100]),
    candidates=st.sampled_from([3, 1000]),
)
def test_equals_plain_decoding(clipped, score_threshold, limit, candidates, **options):
    outputs, threshold = maps(**options), 0.437
    sizes = [(22, 28), (32, 9)][: len(outputs[0])] if clipped else None
    got = detops.decode_yolox(
        outputs,
        (8, 16),
        sizes,
        score_threshold=score_threshold,
        iou_threshold=threshold,
        max_detections=limit,
        candidates=candidates,
    )
    expected = plain_decode(outputs, (8, 16), sizes, score_threshold, threshold, limit, candidates)
    assert got.boxes.shape == (len(outputs[0]), limit, 4)
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
    outputs = [torch.zeros(1, 1, 2, 2, 6)]
    outputs[0][0, 0, 0, 0, 4] = float("nan")
    outputs[0][0, 0, 0, 1, 5] = float("nan")
    outputs[0][0, 0, 1, 0, 2] = 200.0  # e^200 pixels
    got = detops.decode_yolox(outputs, [8], iou_threshold=1.0)
    assert (got.labels >= 0).sum() == 1
    assert got.boxes[0, 0].tolist() == [4, 4, 12, 12]
    assert got.boxes.isfinite().all()


def test_boxes_without_area_are_no_detections() -> None:
    raw = torch.zeros(1, 1, 1, 3, 6)
    raw[0, 0, 0, 0, 2] = -200.0  # e^-200 pixels wide
    found = detops.decode_yolox([raw], [8], iou_threshold=None)
    assert (found.labels >= 0).sum() == 2
    found = detops.decode_yolox([raw], [8], [(8, 12)], iou_threshold=None)  # the third lies beyond the image
    assert found.boxes[0, 0].tolist() == [4, 0, 12, 4]
    assert (found.labels >= 0).sum() == 1
    assert not found.scores[0, 1:].any()


def test_a_score_at_the_threshold_is_a_detection():
    outputs = [torch.zeros(1, 1, 1, 1, 6)]  # a half of a half
    assert detops.decode_yolox(outputs, [8], score_threshold=0.25).labels[0, 0] == 0
    assert detops.decode_yolox(outputs, [8], score_threshold=0.2500001).labels[0, 0] == -1


def test_takes_what_the_loss_takes():
    outputs = maps(1)
    assert torch.equal(detops.decode_yolox((None, outputs), (8, 16)).boxes, detops.decode_yolox(outputs, (8, 16)).boxes)


@pytest.mark.parametrize("device", DEVICES)
def test_no_host_sync_and_compiles_whole(device):
    outputs = [output.to(device) for output in maps(2)]

    def decode(*outputs):
        return detops.decode_yolox(outputs, (8, 16), max_detections=10)

    assert detops.count_syncs(decode, *outputs) == 0
    with FakeTensorMode() as mode:
        assert decode(*(mode.from_tensor(o) for o in outputs)).boxes.shape == (2, 10, 4)
    compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(*outputs), decode(*outputs), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_output": torch.zeros(1)}, TypeError, "model_output: expected a list of tensors, got Tensor"),
        ({"strides": [8, 16]}, ValueError, "model_output: expected 2 levels, one per stride, got 1"),
        ({"model_output": [torch.zeros(1, 2, 2, 6)]}, ValueError, r"model_output: expected shape \(B, 1, H, W, 5 \+ C\)"),
        ({"strides": [0]}, ValueError, r"strides: expected whole numbers of at least 1 pixel.* got \[0\]"),
        ({"score_threshold": 2}, ValueError, r"score_threshold: expected 0 \.\. 1, got 2"),
        ({"max_detections": 0}, ValueError, "max_detections: expected at least 1, got 0"),
        ({"candidates": 0}, ValueError, "candidates: expected at least 1, got 0"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        detops.decode_yolox(**dict(model_output=[torch.zeros(1, 1, 2, 2, 6)], strides=[8]) | change)
