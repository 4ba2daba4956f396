"""Decoding: peaks to boxes, ties to the lower index, fixed shapes without synchronisation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

import detops

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def plain_decode(logits, wh, offset, image_size, image_sizes, k, kernel):
    """One cell at a time: a list of (box, score, label) per image."""
    reach, images = kernel // 2, []
    _, classes, height, width = logits.shape
    for b in range(len(logits)):
        peaks = []
        for c in range(classes):
            for y in range(height):
                for x in range(width):
                    window = logits[b, c, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
                    if (logits[b, c, y, x] >= window).all():
                        peaks.append((-logits[b, c, y, x].item(), c, y, x))
        found = []
        for negative, c, y, x in sorted(peaks)[:k]:
            w, h = wh[b, :, y, x].tolist()
            cx, cy = x + offset[b, 0, y, x].item(), y + offset[b, 1, y, x].item()
            sx, sy = image_size[1] / width, image_size[0] / height
            box = [(cx - w / 2) * sx, (cy - h / 2) * sy, (cx + w / 2) * sx, (cy + h / 2) * sy]
            if image_sizes is not None:
                bottom, right = image_sizes[b]
                box = [min(max(v, 0), side) for v, side in zip(box, (right, bottom) * 2, strict=True)]
            if box[2] > box[0] and box[3] > box[1]:
                found.append((box, torch.tensor(-negative).sigmoid().item(), c))
        images.append(found)
    return images


def assert_equals(got, expected, k):
    assert got.boxes.shape == (len(expected), k, 4)
    for b, found in enumerate(expected):
        n = len(found)
        assert got.labels[b].tolist() == [label for *_, label in found] + [-1] * (k - n)
        torch.testing.assert_close(got.scores[b, :n], torch.tensor([score for _, score, _ in found]))
        boxes = torch.tensor([box for box, *_ in found], dtype=torch.float32).reshape(-1, 4)
        torch.testing.assert_close(got.boxes[b, :n], boxes, rtol=1e-5, atol=1e-4)
        assert not got.scores[b, n:].any()
        assert not got.boxes[b, n:].any()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(0, 1, 3, 3), (2, 3, 7, 9), (1, 1, 1, 1), (1, 2, 4, 5)]),
    k=st.sampled_from([1, 4, 40]),
    kernel=st.sampled_from([1, 3, 5]),
    levels=st.sampled_from([2, 5, 1000]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    clipped=st.booleans(),
)
def test_equals_plain_decoding(seed, shape, k, kernel, levels, dtype, clipped):
    """Few levels make many ties and plateaus."""
    g = torch.Generator().manual_seed(seed)
    logits = ((torch.randint(levels, shape, generator=g) - levels // 2) * (4 / levels)).to(dtype)
    wh, offset = (torch.rand(shape[0], 2, *shape[2:], generator=g).to(dtype) for _ in range(2))
    wh = wh * 1.25 - 0.25  # some have no area
    image, sizes = (shape[2] * 10, shape[3] * 10), [(50, 40), (20, 90)][: shape[0]] if clipped else None
    got = detops.decode_centernet(logits, wh, offset, image, k, kernel, image_sizes=sizes)
    assert_equals(got, plain_decode(logits.float(), wh.float(), offset.float(), image, sizes, k, kernel), k)


def test_decodes_its_own_targets():
    boxes = [torch.tensor([[8.0, 12, 40, 60], [50, 10, 90, 44], [8, 70, 20, 90]]), torch.zeros(0, 4)]
    labels = [torch.tensor([2, 0, 1]), torch.zeros(0, dtype=torch.int64)]
    targets = detops.centernet_targets((boxes, labels), (24, 24), (96, 96), num_classes=3)
    got = detops.decode_centernet(
        torch.logit(targets.heatmap, eps=1e-6), targets.wh, targets.offset, (96, 96), max_detections=3
    )
    order = got.labels[0].argsort()
    assert got.labels[0, order].tolist() == [0, 1, 2]
    torch.testing.assert_close(got.boxes[0, order], boxes[0][[1, 2, 0]])
    assert (got.scores[1] < 1e-5).all()


def test_nms_drops_the_lower_of_a_class_and_keeps_the_shape():
    logits = torch.full((1, 2, 8, 8), -9.0)
    wh, offset = torch.full((1, 2, 8, 8), 6.0), torch.zeros(1, 2, 8, 8)
    logits[0, 0, 4, 2], logits[0, 0, 4, 4], logits[0, 1, 4, 4] = 3.0, 2.0, 1.0
    plain = detops.decode_centernet(logits, wh, offset, (8, 8), max_detections=3)
    got = detops.decode_centernet(logits, wh, offset, (8, 8), max_detections=3, iou_threshold=0.4)
    assert plain.labels.tolist() == [[0, 0, 1]]
    assert got.labels.tolist() == [[0, 1, -1]]
    assert got.scores[0].tolist() == pytest.approx([0.952574, 0.731059, 0.0], abs=1e-6)
    assert torch.equal(got.boxes[0, :2], plain.boxes[0, [0, 2]])
    assert torch.equal(
        detops.decode_centernet(logits, wh, offset, (8, 8), max_detections=3, iou_threshold=0.6).boxes, plain.boxes
    )


def test_values_that_are_not_finite():
    logits = torch.full((1, 1, 3, 9), -1.0)
    logits[0, 0, 1, 1], logits[0, 0, 1, 5], logits[0, 0, :, 8] = float("nan"), float("inf"), float("-inf")
    got = detops.decode_centernet(logits, torch.ones(1, 2, 3, 9), torch.zeros(1, 2, 3, 9), (3, 9), max_detections=100)
    assert got.scores[0, 0] == 1
    assert got.boxes[0, 0].tolist() == [4.5, 0.5, 5.5, 1.5]
    assert got.scores.isfinite().all()
    assert ((got.labels[0] == -1) == (got.scores[0] == 0)).all()
    # Around the NaN and the infinity nothing is a maximum.
    assert not ((got.boxes[0, 1:, 0] < 2.5) & (got.labels[0, 1:] >= 0)).any()


@pytest.mark.parametrize("device", DEVICES)
def test_no_host_sync_and_compiles_whole(device):
    g = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, c, 8, 8, generator=g).to(device) for c in (3, 2, 2)]

    def decode(*maps):
        return detops.decode_centernet(*maps, (32, 32), max_detections=10, iou_threshold=0.5)

    assert detops.count_syncs(decode, *maps) == 0
    with FakeTensorMode() as mode:
        assert decode(*(mode.from_tensor(m) for m in maps)).boxes.shape == (2, 10, 4)
    compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")(*maps)
    for ours, theirs in zip(compiled, decode(*maps), strict=True):
        assert torch.equal(ours, theirs)


def test_boxes_without_area_are_no_detections() -> None:
    logits = torch.full((1, 1, 2, 5), -9.0)
    logits[0, 0, 0, 0], logits[0, 0, 0, 2], logits[0, 0, 0, 4] = 3.0, 2.0, 1.0
    wh, offset = torch.ones(1, 2, 2, 5), torch.full((1, 2, 2, 5), 0.5)
    wh[0, 0, 0, 0], wh[0, 1, 0, 2] = 0.0, -1.0
    found = detops.decode_centernet(logits, wh, offset, (8, 20), max_detections=3)
    assert found.boxes[0, 0].tolist() == [16, 0, 20, 4]
    assert found.labels.tolist() == [[0, -1, -1]]
    assert (found.scores > 0).tolist() == [[True, False, False]]
    found = detops.decode_centernet(logits, wh, offset, (8, 20), max_detections=3, image_sizes=[(8, 16)])
    assert (found.labels == -1).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"heatmap_logits": torch.zeros(2, 4, 4)}, ValueError, r"heatmap_logits: expected shape \(B, C, H, W\)"),
        ({"wh": torch.zeros(1, 1, 4, 4)}, ValueError, r"wh: expected shape \(1, 2, 4, 4\) to match heatmap_logits"),
        ({"max_detections": 0}, ValueError, "max_detections: expected at least 1, got 0"),
        ({"kernel": 4}, ValueError, "kernel: expected an odd number of at least 1, got 4"),
        ({"image_size": (4,)}, ValueError, "image_size: expected a height and a width"),
        ({"image_size": (16, 40)}, ValueError, "image_size: expected .* 4.00 pixels high and 10.00 wide; are the two"),
        ({"image_sizes": [(4, 4)] * 2}, ValueError, "image_sizes: expected a height and a width for each of 1 images"),
        ({"image_shape": (16, 16)}, TypeError, "image_shape: this argument is now image_size"),
        ({"k": 5}, TypeError, "k: this argument is now max_detections"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    good = dict(
        heatmap_logits=torch.zeros(1, 2, 4, 4),
        wh=torch.zeros(1, 2, 4, 4),
        offset=torch.zeros(1, 2, 4, 4),
        image_size=(16, 16),
    )
    with pytest.raises(error, match=message):
        detops.decode_centernet(**good | change)
