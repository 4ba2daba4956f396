"""CenterNetLoss: the numbers of dense targets and plain losses, its gradients, its normaliser over ranks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op import assert_replays_in_cuda_graph, two_ranks
from torch._subclasses import FakeTensorMode

import detops

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def plain_loss(heatmap_logits, wh, offset, boxes, labels, image_size, num_classes):
    """MMDetection's definition, one box at a time, in float64.

    Boxes are visited in order, maps are filled at their centres, and the losses are written as there.
    """
    batch, _, height, width = heatmap_logits.shape
    heat = torch.zeros(heatmap_logits.shape, dtype=torch.float64)
    targets = torch.zeros(batch, 4, height, width, dtype=torch.float64)
    weight = torch.zeros(batch, 1, height, width, dtype=torch.float64)
    ratio_y, ratio_x = height / image_size[0], width / image_size[1]
    for b, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
        for (x1, y1, x2, y2), label in zip(image_boxes.tolist(), image_labels.tolist(), strict=True):
            w, h = (x2 - x1) * ratio_x, (y2 - y1) * ratio_y
            cx, cy = (x1 + x2) * ratio_x / 2, (y1 + y2) * ratio_y / 2
            x, y = min(int(cx), width - 1), min(int(cy), height - 1)
            radius = max(0, int(detops.gaussian_radius(h, w, 0.3)))
            sigma = (2 * radius + 1) / 6
            for j in range(max(0, y - radius), min(height, y + radius + 1)):
                for i in range(max(0, x - radius), min(width, x + radius + 1)):
                    value = torch.tensor(-((i - x) ** 2 + (j - y) ** 2) / (2 * sigma**2), dtype=torch.float64).exp()
                    heat[b, label, j, i] = torch.maximum(heat[b, label, j, i], value)
            targets[b, :, y, x] = torch.tensor([w, h, cx - x, cy - y], dtype=torch.float64)
            weight[b, 0, y, x] = 1
    count = max(1, int((heat == 1).sum()))
    p = heatmap_logits.double().sigmoid()
    positive = -p.log() * (1 - p) ** 2 * (heat == 1)
    negative = -(1 - p).log() * p**2 * (1 - heat) ** 4
    return {
        "loss_center_heatmap": (positive + negative).sum() / count,
        "loss_wh": 0.1 * ((wh - targets[:, :2]).abs() * weight).sum() / (2 * count),
        "loss_offset": ((offset - targets[:, 2:]).abs() * weight).sum() / (2 * count),
    }


def scene(seed, batch=2, num_classes=3, boxes=5, size=64, cells=16, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    maps = [torch.randn(batch, c, cells, cells + min(cells, 4), generator=g).to(dtype) for c in (num_classes, 2, 2)]
    counts = torch.randint(0, boxes + 1, (batch,), generator=g).tolist()
    low = [torch.rand(n, 2, generator=g) * size for n in counts]
    box = [torch.cat([xy, xy + torch.rand(xy.shape, generator=g) * 30], 1) for xy in low]
    labels = [torch.randint(num_classes, (n,), generator=g) for n in counts]
    return maps, box, labels, (size, size + 16)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), boxes=st.sampled_from([0, 1, 5, 30]), cells=st.sampled_from([1, 8, 16]))
def test_equals_the_plain_loss(seed, boxes, cells):
    maps, box, labels, shape = scene(seed, boxes=boxes, cells=cells)
    maps = [m.requires_grad_() for m in maps]
    got = detops.CenterNetLoss(3)(*maps, (box, labels), shape)
    expected = plain_loss(*maps, box, labels, shape, 3)
    assert list(got) == ["loss_center_heatmap", "loss_wh", "loss_offset"]
    for name, value in expected.items():
        torch.testing.assert_close(got[name].double(), value, rtol=2e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    gradients = torch.autograd.grad(sum(got.values()), maps)
    for ours, theirs in zip(gradients, torch.autograd.grad(sum(expected.values()), maps), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_two_boxes_at_one_cell():
    """With one class they are one object, with two classes two; the last box sets size and offset."""
    logits, wh, offset = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    boxes = [torch.tensor([[16.0, 16, 40, 40], [24, 24, 32, 32]])]
    for labels, count in (([1, 1], 1), ([0, 1], 2)):
        losses = detops.CenterNetLoss(2)(logits, wh, offset, (boxes, [torch.tensor(labels)]), (64, 64))
        assert losses["loss_wh"].item() == pytest.approx(0.1 * (1 + 1) / (2 * count))
        assert losses["loss_offset"].item() == pytest.approx((0.5 + 0.5) / (2 * count))


def test_without_boxes_it_still_has_a_gradient():
    maps, *_ = scene(1)
    maps = [m.requires_grad_() for m in maps]
    nothing = [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2
    losses = detops.CenterNetLoss(3)(*maps, nothing, (64, 80))
    sum(losses.values()).backward()
    assert losses["loss_wh"].item() == losses["loss_offset"].item() == 0
    assert losses["loss_center_heatmap"].item() > 0
    assert all(m.grad is not None and m.grad.isfinite().all() for m in maps)
    empty, no_images = [m[:0] for m in maps], (torch.zeros(0, 0, 4), torch.zeros(0, 0, dtype=torch.int64))
    assert sum(detops.CenterNetLoss(3)(*empty, no_images, (64, 80)).values()).item() == 0


def test_options_are_those_of_the_targets():
    maps, boxes, labels, shape = scene(3, boxes=20)
    crowd = [torch.tensor([[0.0, 0, 40, 50]]), torch.zeros(0, 4)]
    truth = detops.GroundTruth.from_boxes(boxes, labels, ignored=crowd)
    for options in ({"min_radius": 2, "formula": "legacy"}, {"elliptical": 0.54}, {"min_overlap": 0.7}):
        targets = detops.centernet_targets(truth, (16, 20), shape, 3, **options)
        expected = detops.gaussian_focal_loss(
            maps[0],
            targets.heatmap,
            pos_weight=0.5,
            neg_weight=3.0,
            negative_weight=targets.negative_weight,
            avg_factor=targets.num_objects,
            from_logits=True,
        )
        criterion = detops.CenterNetLoss(3, heatmap_weight=2.0, pos_weight=0.25, neg_weight=1.5, **options)
        got = criterion(*maps, truth, shape)["loss_center_heatmap"]
        torch.testing.assert_close(got, expected)


def test_half_precision_and_autocast():
    maps, boxes, labels, shape = scene(4)
    expected = detops.CenterNetLoss(3)(*maps, (boxes, labels), shape)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = detops.CenterNetLoss(3)(*(m.to(dtype) for m in maps), (boxes, labels), shape)
        for name, value in expected.items():
            assert got[name].dtype == torch.float32
            torch.testing.assert_close(got[name], value, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_no_host_sync_and_compiles_whole(device):
    maps, boxes, labels, shape = scene(5)
    maps = [m.to(device) for m in maps]
    boxes, labels = (detops.RaggedBatch.from_list(t).to_device(device) for t in (boxes, labels))
    criterion = detops.CenterNetLoss(3)

    def step(*maps):
        return sum(criterion(*maps, detops.GroundTruth.from_boxes(boxes, labels, ignored=boxes), shape).values())

    leaves = [m.clone().requires_grad_() for m in maps]
    assert detops.count_syncs(lambda: step(*leaves).backward()) == 0
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fakes = [mode.from_tensor(m) for m in maps]
        ragged = [
            detops.RaggedBatch(mode.from_tensor(t.tensor), sample_sizes=mode.from_tensor(t.sample_sizes))
            for t in (boxes, labels)
        ]
        sum(criterion(*(f.requires_grad_() for f in fakes), ragged, shape).values()).backward()
    compiled = [m.clone().requires_grad_() for m in maps]
    torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled).backward()
    for ours, theirs in zip(compiled, leaves, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.gpu
def test_cuda_graph():
    maps, boxes, labels, shape = scene(6)
    maps = [m.cuda().requires_grad_() for m in maps]
    boxes, labels = (detops.RaggedBatch.from_list(t).to_device("cuda") for t in (boxes, labels))
    criterion = detops.CenterNetLoss(3)

    def step():
        return torch.autograd.grad(sum(criterion(*maps, (boxes, labels), shape).values()), maps)

    assert_replays_in_cuda_graph(step)


def half_a_step(rank: int, ranks: int) -> list[torch.Tensor]:
    """The gradients of the loss of this rank's images, as DDP averages them."""
    maps, boxes, labels, shape = scene(7, batch=4, boxes=9)
    part = slice(rank * 4 // ranks, (rank + 1) * 4 // ranks)
    leaves = [m[part].clone().requires_grad_() for m in maps]
    sum(detops.CenterNetLoss(3)(*leaves, (boxes[part], labels[part]), shape).values()).backward()
    return [leaf.grad / ranks for leaf in leaves]


@pytest.mark.slow
def test_two_ranks_give_the_gradient_of_one(tmp_path):
    whole, halves = two_ranks(half_a_step, tmp_path)
    for gradient, *parts in zip(whole, *halves, strict=True):
        torch.testing.assert_close(torch.cat(parts), gradient)
        assert gradient.abs().sum() > 0


def test_checked_mode_names_the_box_and_the_logit():
    maps, boxes, labels, shape = scene(8)
    wrong = [torch.tensor([[0.0, 0, 5, 5]])] * 2, [torch.tensor([-1]), torch.tensor([7])]
    criterion = detops.CenterNetLoss(3)
    with detops.checked(), pytest.raises(ValueError, match="labels: sample 1, box 0 has 7, expected a value below 3"):
        criterion(*maps, wrong, shape)
    criterion(*maps, wrong, shape)
    maps[0][1, 2, 3, 4] = float("inf")
    with detops.checked(), pytest.raises(ValueError, match=r"heatmap_logits: \(1, 2, 3, 4\) has inf, expected finite"):
        criterion(*maps, (boxes, labels), shape)
    assert criterion(*maps, (boxes, labels), shape)["loss_center_heatmap"].isnan()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heatmap_logits": torch.zeros(1, 2, 4, 4)}, r"heatmap_logits: expected shape \(B, 3, H, W\), got"),
        ({"wh": torch.zeros(1, 4, 4, 4)}, r"wh: expected shape \(1, 2, 4, 4\) to match heatmap_logits"),
        ({"offset": torch.zeros(1, 2, 4, 4, device="meta")}, "offset: expected a tensor on cpu"),
        (
            {"targets": (torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.int64))},
            "targets: expected 1 images, as heatmap_logits has, got 2",
        ),
        (
            {"targets": (torch.zeros(1, 1, 4), torch.zeros(1, 2, dtype=torch.int64))},
            r"labels: expected shape \(1, 1\) to match boxes",
        ),
        ({"image_size": (0, 4)}, "image_size: expected a height and a width of at least 1"),
        ({"image_size": (64.0, 64.0)}, "image_size: expected a height and a width of at least 1, got"),
        ({"image_size": (16, 64)}, "image_size: expected .* a cell would be 4.00 pixels high and 16.00 wide"),
    ],
)
def test_errors_name_the_argument(change, message):
    good = dict(
        heatmap_logits=torch.zeros(1, 3, 4, 4),
        wh=torch.zeros(1, 2, 4, 4),
        offset=torch.zeros(1, 2, 4, 4),
        targets=(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.int64)),
        image_size=(16, 16),
    )
    with pytest.raises(ValueError, match=message):
        detops.CenterNetLoss(3)(**good | change)
    with pytest.raises(ValueError, match="num_classes: expected at least 1"):
        detops.CenterNetLoss(0)
