"""centernet_targets: equal to a loop over boxes with MMDetection's rules, and sound on boxes that break those."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

import detops
from detops.ragged import RaggedBatch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def reference(boxes, labels, feature_size, image_size, classes, min_overlap=0.3, min_radius=0, elliptical=None):
    """One box at a time, in float64; lists of tensors in, maps and the number of centres out."""
    (h, w), batch = feature_size, len(boxes)
    heat, wh = torch.zeros(batch, classes, h, w, dtype=torch.float64), torch.zeros(batch, 2, h, w, dtype=torch.float64)
    offset, weight = torch.zeros_like(wh), torch.zeros_like(wh)
    rx, ry = w / image_size[1], h / image_size[0]
    for b in range(batch):
        for (x1, y1, x2, y2), label in zip(boxes[b].double().tolist(), labels[b].tolist(), strict=True):
            if not all(map(math.isfinite, (x1, y1, x2, y2))) or not 0 <= label < classes or x2 < x1 or y2 < y1:
                continue
            if x2 <= 0 or y2 <= 0 or x1 >= image_size[1] or y1 >= image_size[0]:
                continue
            cx, cy, bw, bh = (x1 + x2) / 2 * rx, (y1 + y2) / 2 * ry, (x2 - x1) * rx, (y2 - y1) * ry
            ix, iy = min(max(int(cx), 0), w - 1), min(max(int(cy), 0), h - 1)
            radius = max(min_radius, int(detops.gaussian_radius(bh, bw, min_overlap)))
            radii = torch.tensor([[radius, radius]])
            if elliptical is not None:
                radii = torch.tensor(
                    [[max(min_radius, int(bw / 2 * elliptical)), max(min_radius, int(bh / 2 * elliptical))]]
                )
            detops.draw_heatmap(heat[b], torch.tensor([[ix, iy]]), radii, torch.tensor([label]))
            wh[b, :, iy, ix] = torch.tensor([bw, bh])
            offset[b, :, iy, ix] = torch.tensor([cx - ix, cy - iy], dtype=torch.float64)
            weight[b, :, iy, ix] = 1
    return heat, wh, offset, weight, max(1, int((heat == 1).sum()))


def random_boxes(seed, batch, most, image_size, device="cpu"):
    """Make boxes in multiples of 1/4, so that float32 and float64 agree on every floor; some reach beyond the image."""
    g = torch.Generator().manual_seed(seed)
    boxes, labels = [], []
    for _ in range(batch):
        n = int(torch.randint(0, most + 1, (), generator=g))
        size = torch.tensor([image_size[1], image_size[0]])
        low = (torch.rand(n, 2, generator=g) * 1.4 - 0.2) * size
        high = low + torch.rand(n, 2, generator=g) ** 2 * size
        boxes.append(((torch.cat([low, high], 1) * 4).round() / 4).to(device))
        labels.append(torch.randint(-1, 4, (n,), generator=g).to(device))
    return boxes, labels


def assert_equal(targets, expected, tolerance=1e-5):
    heat, wh, offset, weight, count = expected
    for got, wanted in ((targets.heatmap, heat), (targets.wh, wh), (targets.offset, offset), (targets.weight, weight)):
        torch.testing.assert_close(got.double().cpu(), wanted, rtol=tolerance, atol=tolerance)
    assert targets.num_objects.item() == count


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    most=st.sampled_from([0, 1, 7, 40]),
    shapes=st.sampled_from(
        [((8, 8), (32, 32)), ((7, 16), (28, 64)), ((1, 1), (16, 16)), ((20, 12), (80, 48)), ((2, 3), (16, 12))]
    ),
    options=st.sampled_from([{}, {"min_overlap": 0.7}, {"min_radius": 2}, {"elliptical": 0.5}]),
)
def test_matches_reference(seed, batch, most, shapes, options):
    boxes, labels = random_boxes(seed, batch, most, shapes[1])
    targets = detops.centernet_targets((boxes, labels), *shapes, num_classes=3, **options)
    assert_equal(targets, reference(boxes, labels, *shapes, 3, **options))


@pytest.mark.parametrize("device", DEVICES)
def test_forms_of_a_batch_agree(device):
    boxes, labels = random_boxes(3, 3, 9, (32, 32), device)
    shapes = ((8, 8), (32, 32))
    expected = detops.centernet_targets((boxes, labels), *shapes, 3)
    xyxy, ids = RaggedBatch.from_list(boxes), RaggedBatch.from_list(labels)
    padding = ~xyxy.mask
    xyxy.tensor[padding], ids.tensor[padding] = torch.nan, 1
    for got, wanted in zip(detops.centernet_targets((xyxy, ids), *shapes, 3)[:5], expected[:5], strict=True):
        assert torch.equal(got, wanted)
    full = detops.centernet_targets((xyxy.tensor, ids.tensor.masked_fill(padding, -1)), *shapes, 3)
    assert torch.equal(full.heatmap, expected.heatmap)
    assert_equal(expected, reference([b.cpu() for b in boxes], [i.cpu() for i in labels], *shapes, 3))


def test_known_scene():
    """Two images with the box (20, 20, 36, 36), with the values of MMDetection's head."""
    boxes = torch.tensor([[[20.0, 20, 36, 36]], [[20, 20, 36, 36]]])
    targets = detops.centernet_targets((boxes, torch.tensor([[0], [2]])), (8, 8), (64, 64), 4)
    assert targets.heatmap.nonzero().tolist() == [[0, 0, 3, 3], [1, 2, 3, 3]]
    assert targets.heatmap.sum() == 2
    assert targets.wh[:, :, 3, 3].tolist() == [[2, 2], [2, 2]]
    assert targets.offset[:, :, 3, 3].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert targets.weight.sum() == 4
    assert targets.num_objects == 2


EDGES = {  # box -> cell (x, y), offset
    "centre on the right and lower border": ([56.0, 56, 72, 72], (7, 7), (1.0, 1.0)),
    "centre beyond the right border": ([40.0, 24, 104, 40], (7, 4), (2.0, 0.0)),
    "centre beyond the left border": ([-48.0, 24, 16, 40], (0, 4), (-2.0, 0.0)),
    "zero size": ([20.0, 20, 20, 20], (2, 2), (0.5, 0.5)),
}


@pytest.mark.parametrize("case", EDGES)
def test_boxes_on_and_over_the_border(case):
    box, (x, y), offset = EDGES[case]
    targets = detops.centernet_targets(([torch.tensor([box])], [torch.tensor([0])]), (8, 8), (64, 64), 1)
    assert targets.heatmap[0, 0, y, x] == 1
    assert tuple(targets.offset[0, :, y, x].tolist()) == offset
    assert targets.weight.sum() == 2


SKIPPED = {
    "right of the image": [64.0, 0, 80, 16],
    "left of the image": [-20.0, 0, 0, 16],
    "below the image": [0.0, 70, 16, 90],
    "negative width": [30.0, 0, 10, 16],
    "NaN": [float("nan"), 0, 10, 16],
    "infinite": [float("inf"), float("inf"), float("-inf"), float("-inf")],
    "infinite size": [0.0, 0, float("inf"), 16],
}


@pytest.mark.parametrize("case", SKIPPED)
def test_boxes_that_cannot_be_drawn_are_skipped(case):
    boxes = torch.tensor([SKIPPED[case], [8.0, 8, 24, 24]])
    targets = detops.centernet_targets(([boxes], [torch.tensor([0, 0])]), (8, 8), (64, 64), 1)
    alone = detops.centernet_targets(([boxes[1:]], [torch.tensor([0])]), (8, 8), (64, 64), 1)
    for got, expected in zip(targets[:5], alone[:5], strict=True):
        assert torch.equal(got, expected)
        assert got.isfinite().all()


def test_no_boxes():
    for boxes in (torch.zeros(2, 0, 4), [torch.zeros(0, 4), torch.zeros(0, 4)]):
        labels = boxes[..., 0].long() if isinstance(boxes, torch.Tensor) else [b[:, 0].long() for b in boxes]
        targets = detops.centernet_targets((boxes, labels), (4, 4), (16, 16), 2)
        assert not any(t.any() for t in targets[:4])
        assert targets.num_objects == 1


def test_the_last_box_of_a_cell_wins_and_centres_are_counted_once():
    boxes = torch.tensor([[[0.0, 0, 8, 8], [1, 1, 7, 7], [0, 0, 8, 8]]])
    targets = detops.centernet_targets((boxes, torch.tensor([[0, 0, 1]])), (4, 4), (16, 16), 2)
    assert targets.wh[0, :, 1, 1].tolist() == [2, 2]
    assert targets.num_objects == 2
    targets = detops.centernet_targets((boxes[:, :2], torch.tensor([[0, 0]])), (4, 4), (16, 16), 2, k_scale=0.5)
    assert targets.wh[0, :, 1, 1].tolist() == [1.5, 1.5]
    assert targets.num_objects == 1
    assert targets.heatmap.max() == 0.5


def test_ignored_regions():
    """A region includes cell centres on its left and upper side, and excludes those on its right and lower side."""
    box, label = torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[0]])
    regions = RaggedBatch(torch.tensor([[[6.0, 0, 14, 8], [0, 0, 16, 16]]]), sample_sizes=torch.tensor([1]))
    truth = detops.GroundTruth.from_boxes(box, label, ignored=regions)
    targets = detops.centernet_targets(truth, (4, 4), (16, 16), 1)
    expected = torch.ones(4, 4)
    expected[0:2, 1:3] = 0
    assert torch.equal(targets.negative_weight, expected[None, None])
    assert detops.centernet_targets((box, label), (4, 4), (16, 16), 1).negative_weight is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    boxes, labels = random_boxes(5, 2, 6, (32, 32))
    targets = detops.centernet_targets((boxes, labels), (8, 8), (32, 32), 3, dtype=dtype)
    assert {t.dtype for t in targets[:4]} == {dtype}
    assert_equal(targets, reference(boxes, labels, (8, 8), (32, 32), 3), 10 * torch.finfo(dtype).eps)


def test_no_host_sync_and_tracing():
    boxes, labels = random_boxes(6, 2, 6, (32, 32))
    xyxy, ids = RaggedBatch.from_list(boxes), RaggedBatch.from_list(labels)

    def call(xyxy, ids, sizes):
        batch = [RaggedBatch(t, sample_sizes=sizes) for t in (xyxy, ids)]
        return detops.centernet_targets(detops.GroundTruth.from_boxes(*batch, ignored=batch[0]), (8, 8), (32, 32), 3)

    arguments = (xyxy.tensor, ids.tensor, xyxy.sample_sizes)
    assert detops.count_syncs(call, *arguments) == 0
    with FakeTensorMode() as mode:
        call(*(mode.from_tensor(t) for t in arguments))
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(*arguments), call(*arguments), strict=True):
        torch.testing.assert_close(got, expected)


def test_checked_mode_names_the_box():
    boxes, labels = torch.tensor([[[0.0, 0, 8, 8], [1, 1, 7, 7]]]), torch.tensor([[0, -1]])
    shapes = ((4, 4), (16, 16), 2)
    with detops.checked():
        detops.centernet_targets((boxes, labels), *shapes)
        with pytest.raises(ValueError, match="labels: sample 0, box 1 has 2, expected a value below 2"):
            detops.centernet_targets((boxes, torch.tensor([[0, 2]])), *shapes)
        boxes[0, 1, 2] = 0.5
        detops.centernet_targets((boxes, labels), *shapes)  # a box that is ignored may hold anything
        labels[0, 1] = 1
        with pytest.raises(ValueError, match=r"boxes: sample 0, box 1 has .* expected x2 >= x1"):
            detops.centernet_targets((boxes, labels), *shapes)
        boxes[0, 1, 2] = torch.nan
        with pytest.raises(ValueError, match=r"boxes: sample 0, box 1 has .* expected finite"):
            detops.centernet_targets((boxes, labels), *shapes)


BOXES, LABELS = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
GOOD = {"targets": (BOXES, LABELS), "feature_size": (4, 4), "image_size": (16, 16), "num_classes": 2}
NO_TARGETS = "targets: expected a GroundTruth, the pair (boxes, labels) or a list of dicts, got "
BAD = [
    ("targets", (torch.zeros(2, 3, 5), LABELS), ValueError, "boxes: expected shape (B, N, 4), got (2, 3, 5)"),
    ("targets", (3, LABELS), TypeError, "boxes: expected a RaggedBatch, a tensor or a list of tensors, got int"),
    ("targets", (BOXES, LABELS[:, :1]), ValueError, "labels: expected shape (2, 3) to match boxes"),
    ("targets", (BOXES, torch.zeros(2, 3)), TypeError, "labels: expected integers, got float32"),
    ("targets", BOXES, TypeError, NO_TARGETS + "Tensor"),
    ("targets", None, TypeError, NO_TARGETS + "NoneType"),
    ("feature_size", (0, 4), ValueError, "feature_size: expected a height and a width of at least 1, got (0, 4)"),
    ("image_size", (1, 2, 3), ValueError, "image_size: expected a height and a width"),
    ("image_size", (16, 32), ValueError, "a cell would be 4.00 pixels high and 8.00 wide; are the two swapped?"),
    ("num_classes", 0, ValueError, "num_classes: expected at least 1, got 0"),
    ("min_overlap", 0, ValueError, "min_overlap"),
    ("min_radius", -1, ValueError, "min_radius: expected at least 0, got -1"),
    ("elliptical", 0.0, ValueError, "elliptical: expected a number above 0"),
    ("image_shape", (16, 16), TypeError, "image_shape: this argument is now image_size"),
    ("feature_shape", (4, 4), TypeError, "feature_shape: this argument is now feature_size"),
    ("boxes", BOXES, TypeError, "boxes: this argument is now targets=(boxes, labels)"),
    ("ignore_boxes", BOXES, TypeError, "ignore_boxes: this argument is now `ignored` of GroundTruth"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD)
def test_errors_name_the_argument(name, value, error, message):
    with pytest.raises(error) as caught:
        detops.centernet_targets(**{**GOOD, name: value})
    assert message in str(caught.value)
    with pytest.raises(ValueError, match=r"ignored: expected shape \(2, M, 4\) to match boxes, got \(3, 1, 4\)"):
        detops.GroundTruth(BOXES, LABELS, ignored=torch.zeros(3, 1, 4))
