"""GFLLoss and LDLoss against the head as MMDetection computes it, level by level and image by image."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from op import two_ranks
from torch._subclasses import FakeTensorMode

import detops
from detops.portable import atss_match as portable_atss
from detops.portable import background_losses as portable_background
from detops.portable import positive_losses as portable_positives
from detops.portable import positive_losses_backward as portable_gradient
from detops.portable import vlr_weights as portable_region
from detops.reference.atss_match import atss_match
from detops.reference.vlr_weights import vlr_weights

SHAPES, STRIDES, CLASSES, BINS = [(8, 12), (4, 6), (2, 3)], (8, 16, 32), 3, 17
SIZES = [h * w for h, w in SHAPES]
EPS = torch.finfo(torch.float32).eps
PORTABLE = {
    "atss_match": portable_atss.atss_match,
    "background_losses": portable_background.background_losses,
    "vlr_weights": portable_region.vlr_weights,
    "positive_losses_": portable_positives.positive_losses_,
    "positive_losses_backward": portable_gradient.positive_losses_backward,
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def scene(seed, batch=2, counts=(4, 3, 0, 5)):
    """Make class and box logits, a teacher's, and boxes and labels per image; some boxes are to be skipped."""
    g = torch.Generator().manual_seed(seed)
    maps = [
        [torch.randn(batch, channels, *shape, generator=g) for shape in SHAPES]
        for channels in (CLASSES, 4 * BINS, 4 * BINS)
    ]
    boxes, labels = [], []
    for n in counts[:batch]:
        low = torch.rand(n, 2, generator=g) * torch.tensor([70.0, 40.0])
        boxes.append(torch.cat([low, low + 10 + torch.rand(n, 2, generator=g) * 30], 1))
        labels.append(torch.randint(-1, CLASSES, (n,), generator=g))
    return (*maps, boxes, labels)


def plain_losses(cls_scores, bbox_preds, soft, boxes, labels, image_sizes=None, normalize=False, ld=True, ignored=None):
    """Four lists of losses per level, in float64."""
    anchors = detops.grid_anchors(SHAPES, STRIDES)
    batch, found = len(boxes), []
    valid = torch.ones(batch, len(anchors), dtype=torch.bool)
    if image_sizes is not None:
        corner = (anchors[:, :2] + anchors[:, 2:]) / 2
        for b, (height, width) in enumerate(image_sizes):
            valid[b] = (corner[:, 0] < width) & (corner[:, 1] < height)
    for b, regions in enumerate(ignored or ()):
        for a, (x1, y1, x2, y2) in enumerate(anchors.tolist()):
            for left, top, right, bottom in regions.tolist():
                width, height = min(x2, right) - max(x1, left), min(y2, bottom) - max(y1, top)
                if max(width, 0) * max(height, 0) > 0.5 * (x2 - x1) * (y2 - y1):
                    valid[b, a] = False
    for b in range(batch):
        found.append(
            atss_match(
                anchors, SIZES, boxes[b][None], labels[b][None], None, valid[b : b + 1], CLASSES, 9, 0.01, False, False
            )[0][0]
        )
    count = max(sum(max(int((index >= 0).sum()), 1) for index in found), 1)
    sums = {"cls": [], "bbox": [], "dfl": [], "ld": [], "weight": []}
    start = 0
    for level, (scores, preds, teacher, stride) in enumerate(zip(cls_scores, bbox_preds, soft, STRIDES, strict=True)):
        part = dict.fromkeys(sums, torch.zeros((), dtype=torch.float64))
        for b in range(batch):
            x = scores[b].double().flatten(1).T  # (A, C)
            raw, other = (t[b].double().flatten(1).T.reshape(-1, 4, BINS) for t in (preds, teacher))
            index = found[b][start : start + SIZES[level]]
            positive = index >= 0
            target = torch.zeros_like(x)
            weight = x.sigmoid().amax(1).detach()[positive]
            point = ((anchors[:, :2] + anchors[:, 2:]) / 2)[start : start + SIZES[level]][positive].double() / stride
            distance = (raw[positive].softmax(2) * torch.arange(BINS)).sum(2)
            pred = torch.cat([point - distance[:, :2], point + distance[:, 2:]], 1)
            gt, label = boxes[b].double()[index[positive]] / stride, labels[b][index[positive]]
            iou = 1 - detops.box_iou_loss(pred.detach(), gt, reduction="none")
            target[positive.nonzero()[:, 0], label] = iou
            quality = (target - x.sigmoid()).abs() ** 2 * F.binary_cross_entropy_with_logits(
                x, target, reduction="none"
            )
            part["cls"] = part["cls"] + quality[valid[b, start : start + SIZES[level]]].sum() / (count + EPS)
            giou = detops.box_iou_loss(pred, gt, "giou", reduction="none")
            part["bbox"] = part["bbox"] + 2 * (weight * giou).sum() / (1 + EPS)
            exact = torch.cat([point - gt[:, :2], gt[:, 2:] - point], 1).clamp(0, BINS - 1.1)
            low = exact.floor().long()
            log_p = raw[positive].log_softmax(2)
            dfl = -log_p.gather(2, low[..., None])[..., 0] * (low + 1 - exact)
            dfl = dfl - log_p.gather(2, low[..., None] + 1)[..., 0] * (exact - low)
            part["dfl"] = part["dfl"] + 0.25 * (weight[:, None] * dfl).sum() / (4 + EPS)
            student, master = (raw[positive] / 10).log_softmax(2), (other[positive] / 10).softmax(2)
            kd = 100 * F.kl_div(student, master, reduction="none").mean(2)
            part["ld"] = part["ld"] + 0.25 * (weight[:, None] * kd).sum() / (4 + EPS)
            part["weight"] = part["weight"] + weight.sum()
        for name, value in part.items():
            sums[name].append(value)
        start += SIZES[level]
    total = torch.stack(sums["weight"]).sum()
    divisor = total + 1e-6 if ld else total.clamp(min=1)
    sums["bbox"], sums["dfl"] = ([value / divisor for value in sums[name]] for name in ("bbox", "dfl"))
    if normalize:
        sums["ld"] = [value / divisor for value in sums["ld"]]
    return {f"loss_{name}": sums[name] for name in ("cls", "bbox", "dfl", "ld")}


def leaves_of(maps):
    return [m.clone().requires_grad_() for m in maps]


def assert_equal(got, expected, mine, theirs):
    for name, values in got.items():
        for value, other in zip(values, expected[name], strict=True):
            torch.testing.assert_close(value.double(), other, rtol=1e-4, atol=1e-6)
    sum(torch.stack(v).sum() for v in got.values()).backward()
    sum(torch.stack(expected[name]).sum() for name in got).backward()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_ld_equals_the_plain_head(padded, normalize):
    image_sizes = [(64, 96), (40, 64), (64, 96), (33, 70)] if padded else None
    for seed in range(8):
        cls_scores, bbox_preds, soft, boxes, labels = scene(seed, batch=4)
        if seed % 2:  # early in training the weights' sum is below 1
            cls_scores = [scores - 6 for scores in cls_scores]
        mine, theirs = (leaves_of([*cls_scores, *bbox_preds]) for _ in range(2))
        criterion = detops.LDLoss(CLASSES, strides=STRIDES, normalize_ld=normalize)
        got = criterion.level_losses(mine[:3], mine[3:], (boxes, labels), image_sizes, soft_targets=soft)
        expected = plain_losses(theirs[:3], theirs[3:], soft, boxes, labels, image_sizes, normalize)
        assert set(got) == set(expected)
        assert_equal(got, expected, mine, theirs)


@pytest.mark.parametrize("padded", [False, True])
def test_ignored_regions_take_no_part(padded: bool) -> None:
    sizes = [(64, 96), (40, 64), (64, 96), (33, 70)] if padded else None
    regions = [torch.tensor([[0.0, 0, 60, 50]]), torch.tensor([[20.0, 4, 96, 64], [0, 0, 96, 30]]), torch.zeros(0, 4),
               torch.tensor([[-200.0, -200, 300, 300]])]  # fmt: skip
    for seed in range(4):
        cls_scores, bbox_preds, soft, boxes, labels = scene(seed, batch=4)
        truth = detops.GroundTruth.from_boxes(boxes, labels, ignored=regions, image_sizes=sizes)
        for ld in (False, True):
            mine, theirs = (leaves_of([*cls_scores, *bbox_preds]) for _ in range(2))
            if ld:
                got = detops.LDLoss(CLASSES, strides=STRIDES).level_losses(mine[:3], mine[3:], truth, soft_targets=soft)
            else:
                got = detops.GFLLoss(CLASSES, strides=STRIDES).level_losses(mine[:3], mine[3:], truth)
            expected = plain_losses(theirs[:3], theirs[3:], soft, boxes, labels, sizes, ld=ld, ignored=regions)
            assert_equal(got, expected, mine, theirs)
            assert all((level.grad[3] == 0).all() for level in mine)  # all of the fourth image is ignored
        found = detops.GFLLoss(CLASSES, strides=STRIDES).assign(cls_scores, truth)
        assert (found.box_index[3] == -2).all()
        assert not (found.box_index[2] == -2).any()
        assert (found.box_index[:2] == -2).any(1).all()


def test_image_sizes_of_the_targets_are_used_where_none_are_given() -> None:
    cls_scores, bbox_preds, _, boxes, labels = scene(2)
    sizes, other = [(64, 96), (33, 70)], [(50, 50), (64, 96)]
    criterion = detops.GFLLoss(CLASSES, strides=STRIDES)
    truth = detops.GroundTruth.from_boxes(boxes, labels, image_sizes=sizes)
    for given, expected in ((None, sizes), (other, other)):
        losses = criterion(cls_scores, bbox_preds, truth, given)
        for name, value in criterion(cls_scores, bbox_preds, (boxes, labels), expected).items():
            assert torch.equal(losses[name], value)
    assert losses["loss_cls"] != criterion(cls_scores, bbox_preds, (boxes, labels))["loss_cls"]


@pytest.mark.parametrize("portable", [False, True])
def test_logits_beyond_an_image_are_not_read(portable, monkeypatch):
    """Attention makes them NaN if a whole row is padding."""
    if portable:
        for name, form in PORTABLE.items():
            monkeypatch.setattr(detops.ops, name, form)
    image_sizes = [(64, 96), (40, 64), (64, 96), (33, 70)]
    cls_scores, bbox_preds, soft, boxes, labels = scene(3, batch=4)
    results = []
    for value in (None, float("nan"), float("inf")):
        maps = [[level.clone() for level in levels] for levels in (cls_scores, bbox_preds, soft)]
        for stride, *levels in zip(STRIDES, *maps, strict=True):
            for b, (height, width) in enumerate(image_sizes if value is not None else ()):
                for level in levels:
                    level[b, :, -(-height // stride) :] = value
                    level[b, :, :, -(-width // stride) :] = value
        leaves = leaves_of(maps[0] + maps[1])
        criterion = detops.LDLoss(CLASSES, strides=STRIDES, ld_region="main+vlr")
        losses = criterion(leaves[:3], leaves[3:], (boxes, labels), image_sizes, soft_targets=maps[2])
        results.append((losses, torch.autograd.grad(sum(losses.values()), leaves)))
    for losses, gradients in results[1:]:
        assert all(torch.equal(losses[name], value) for name, value in results[0][0].items())
        assert all(torch.equal(a, b) for a, b in zip(gradients, results[0][1], strict=True))


def test_gfl_equals_the_plain_head():
    for seed in range(8, 12):
        cls_scores, bbox_preds, soft, boxes, labels = scene(seed)
        mine, theirs = (leaves_of([*cls_scores, *bbox_preds]) for _ in range(2))
        criterion = detops.GFLLoss(CLASSES, strides=STRIDES)
        got = criterion.level_losses(mine[:3], mine[3:], (boxes, labels))
        expected = plain_losses(theirs[:3], theirs[3:], soft, boxes, labels, ld=False)
        assert set(got) == {"loss_cls", "loss_bbox", "loss_dfl"}
        whole = criterion(cls_scores, bbox_preds, (boxes, labels))
        for name, value in whole.items():
            torch.testing.assert_close(value, torch.stack(got[name]).sum())
        assert_equal(got, expected, mine, theirs)


def test_gfl_divides_by_1_at_least():
    """Early in training the sum of the weights is below 1."""
    cls_scores, bbox_preds, soft, boxes, labels = scene(1)
    mine, theirs = (leaves_of([*(level - 6 for level in cls_scores), *bbox_preds]) for _ in range(2))
    got = detops.GFLLoss(CLASSES, strides=STRIDES).level_losses(mine[:3], mine[3:], (boxes, labels))
    expected = plain_losses(theirs[:3], theirs[3:], soft, boxes, labels, ld=False)
    assert torch.stack(expected["loss_bbox"]).sum() < 0.5
    assert_equal(got, expected, mine, theirs)


@pytest.mark.parametrize("padded", [False, True])
def test_the_region_beside_the_positives_learns_too(padded):
    shapes, anchors = [(64, 96), (40, 70)] if padded else None, detops.grid_anchors(SHAPES, STRIDES)
    for seed in range(4):
        cls_scores, bbox_preds, soft, boxes, labels = scene(seed)
        options = dict(strides=STRIDES, temperature=4.0)
        alone = detops.LDLoss(CLASSES, **options)(cls_scores, bbox_preds, (boxes, labels), shapes, soft_targets=soft)
        leaves = leaves_of(bbox_preds)
        criterion = detops.LDLoss(CLASSES, ld_region="main+vlr", **options)
        got = criterion.level_losses(cls_scores, leaves, (boxes, labels), shapes, soft_targets=soft)
        for name, value in alone.items():
            torch.testing.assert_close(torch.stack(got[name]).sum(), value)
        worth = torch.zeros(2, len(anchors), dtype=torch.float64)
        corner = (anchors[:, :2] + anchors[:, 2:]) / 2
        for b in range(2):
            valid = torch.ones(1, len(anchors), dtype=torch.bool)
            if padded:
                valid[0] = (corner[:, 0] < shapes[b][1]) & (corner[:, 1] < shapes[b][0])
            threshold = atss_match(
                anchors, SIZES, boxes[b][None], labels[b][None], None, valid, CLASSES, 9, 0.01, False, False
            )[2][0]
            worth[b] = vlr_weights(anchors, boxes[b][None], threshold[None], valid)[0]
        assert (worth > 0).sum() > 5
        theirs, start = leaves_of([level.double() for level in bbox_preds]), 0
        for level, (mine, other) in enumerate(zip(theirs, soft, strict=True)):
            student, master = (
                (t.double().flatten(2).transpose(1, 2).unflatten(2, (4, BINS)) / 4).log_softmax(3)
                for t in (mine, other)
            )
            kd = 16 * (master.exp() * (master - student)).mean(3).sum(2)
            expected = 0.25 * (worth[:, start : start + SIZES[level]] * kd).sum() / 16
            torch.testing.assert_close(got["loss_ld_vlr"][level].double(), expected, rtol=1e-4, atol=1e-6)
            expected.backward()
            start += SIZES[level]
        torch.stack(got["loss_ld_vlr"]).sum().backward()
        for mine, other in zip(leaves, theirs, strict=True):
            torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-3, atol=1e-6)


def test_each_loss_has_its_own_gradient_and_a_second_pass_the_same():
    cls_scores, bbox_preds, soft, boxes, labels = scene(5)
    leaves = leaves_of([*cls_scores, *bbox_preds])
    losses = detops.LDLoss(CLASSES, strides=STRIDES)(leaves[:3], leaves[3:], (boxes, labels), soft_targets=soft)
    alone = [torch.autograd.grad(value, leaves, retain_graph=True) for value in losses.values()]
    weights = (2.0, 0.5, 3.0, 0.1)
    total = sum(w * value for w, value in zip(weights, losses.values(), strict=True))
    for _ in range(2):
        together = torch.autograd.grad(total, leaves, retain_graph=True)
        for i, gradient in enumerate(together):
            expected = sum(w * part[i] for w, part in zip(weights, alone, strict=True))
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    only_boxes = leaves_of(bbox_preds)
    losses = detops.LDLoss(CLASSES, strides=STRIDES)(cls_scores, only_boxes, (boxes, labels), soft_targets=soft)
    sum(losses.values()).backward()
    for leaf, gradient in zip(only_boxes, zip(*alone, strict=True), strict=False):
        assert leaf.grad is not None
        assert len(gradient) == 4


def test_backward_takes_the_boxes_that_forward_had():
    """A loader may write the next batch into the same memory between forward and backward."""
    cls_scores, bbox_preds, _, boxes, labels = scene(5, counts=(4, 4))
    boxes, labels, leaves = torch.stack(boxes), torch.stack(labels), leaves_of([*cls_scores, *bbox_preds])
    loss = sum(detops.GFLLoss(CLASSES, strides=STRIDES)(leaves[:3], leaves[3:], (boxes, labels)).values())
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    boxes += 7
    labels.zero_()
    for gradient, expected in zip(torch.autograd.grad(loss, leaves), first, strict=True):
        assert torch.equal(gradient, expected)


def test_a_copy_gives_the_same_and_takes_no_anchors_along():
    cls_scores, bbox_preds, soft, boxes, labels = scene(6)
    criterion = detops.LDLoss(CLASSES, strides=STRIDES, temperature=4.0)
    new = len(pickle.dumps(criterion))
    losses = criterion(cls_scores, bbox_preds, (boxes, labels), soft_targets=soft)
    assert len(pickle.dumps(criterion)) == new
    for copied in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert copied.state_dict() == {}
        for name, value in copied(cls_scores, bbox_preds, (boxes, labels), soft_targets=soft).items():
            assert torch.equal(value, losses[name])


def test_kept_anchors_change_nothing():
    criterion, other = (detops.GFLLoss(CLASSES, strides=STRIDES) for _ in range(2))
    cls_scores, bbox_preds, _, boxes, labels = scene(6)
    half = [[level[..., :1, :] for level in part] for part in (cls_scores, bbox_preds)]
    first = criterion(cls_scores, bbox_preds, (boxes, labels))
    criterion(*half, (boxes, labels))
    for name, value in criterion(cls_scores, bbox_preds, (boxes, labels)).items():
        assert torch.equal(value, first[name])
    turned = [[level.unflatten(3, (-1, 3)).flatten(2, 3) for level in part] for part in (cls_scores, bbox_preds)]
    for maps in (half, turned):
        for name, value in other(*maps, (boxes, labels)).items():
            assert torch.equal(value, criterion(*maps, (boxes, labels))[name])


@pytest.mark.parametrize("region", ["main", "main+vlr"])
def test_portable_ops_give_the_same(region, monkeypatch):
    """The portable ops reserve memory for the number of positives that the criterion computes."""
    cls_scores, bbox_preds, soft, boxes, labels = scene(7)
    criterion, found = detops.LDLoss(CLASSES, strides=STRIDES, ld_region=region), []
    for _ in range(2):
        leaves = leaves_of([*cls_scores, *bbox_preds])
        losses = criterion(leaves[:3], leaves[3:], (boxes, labels), soft_targets=soft)
        sum(losses.values()).backward()
        found.append([*losses.values(), *(leaf.grad for leaf in leaves)])
        for name, portable in PORTABLE.items():
            monkeypatch.setattr(detops.ops, name, portable)
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "boxes", [torch.zeros(2, 0, 4), torch.full((2, 1, 4), float("nan")), torch.tensor([[[500.0, 500, 510, 510]]] * 2),
              torch.tensor([[[-1e20, -1e20, 1e20, 1e20]]] * 2)],
)  # fmt: skip
def test_without_a_positive_everything_carries_a_gradient(boxes):
    cls_scores, bbox_preds, soft, *_ = scene(1)
    leaves = leaves_of([*cls_scores, *bbox_preds])
    labels = torch.zeros(2, boxes.shape[1]).long()
    losses = detops.LDLoss(CLASSES, strides=STRIDES)(leaves[:3], leaves[3:], (boxes, labels), soft_targets=soft)
    assert losses["loss_bbox"] == losses["loss_dfl"] == losses["loss_ld"] == 0
    background = sum((F.softplus(s) * s.sigmoid() ** 2).sum() for s in cls_scores) / 2  # each image counts as one
    torch.testing.assert_close(losses["loss_cls"], background)
    sum(losses.values()).backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_half_precision():
    cls_scores, bbox_preds, _, boxes, labels = scene(2)
    criterion = detops.GFLLoss(CLASSES, strides=STRIDES)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = [[m.to(dtype) for m in maps] for maps in (cls_scores, bbox_preds)]
        expected = criterion(*[[m.float() for m in maps] for maps in rounded], (boxes, labels))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = criterion(*rounded, (boxes, labels))
        for name, value in got.items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_a_loss_scale_saves_the_gradients_of_float16():
    """Early in training they would underflow in float16; a loss scale prevents it."""
    cls_scores, bbox_preds, _, boxes, labels = scene(2, counts=(40, 40))
    leaves = leaves_of([*((level / 4 - 5).half() for level in cls_scores), *(level.half() for level in bbox_preds)])
    wide = leaves_of([leaf.detach().float() for leaf in leaves])
    for part in (leaves, wide):
        losses = detops.GFLLoss(CLASSES, strides=STRIDES)(part[:3], part[3:], (boxes, labels))
        (sum(losses.values()) * 2**16).backward()
    for leaf, exact in zip(leaves, wide, strict=True):
        torch.testing.assert_close(leaf.grad.float(), exact.grad, rtol=2e-3, atol=1e-4)
    assert wide[0].grad.abs().median() < 2**16 * 1e-7  # float16 begins at 6e-8


@pytest.mark.parametrize("device", DEVICES)
def test_no_host_sync_and_compiles_whole(device):
    cls_scores, bbox_preds, soft, boxes, labels = scene(3)
    ragged = [detops.RaggedBatch.from_list(t).to_device(device) for t in (boxes, labels)]
    maps = [[m.to(device) for m in part] for part in (cls_scores, bbox_preds, soft)]
    shapes = torch.tensor([[64, 96], [50, 90]], device=device)
    criterion = detops.LDLoss(CLASSES, strides=STRIDES, ld_region="main+vlr")

    def step(*flat):
        return sum(criterion(flat[:3], flat[3:6], tuple(ragged), shapes, soft_targets=flat[6:]).values())

    leaves = leaves_of([m for part in maps for m in part])
    assert detops.count_syncs(lambda: step(*leaves).backward()) == 0
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert step(*(mode.from_tensor(leaf) for leaf in leaves)).shape == ()
    compiled = leaves_of([leaf.detach() for leaf in leaves])
    torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled).backward()
    for ours, theirs in zip(compiled[:6], leaves[:6], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert leaves[6].grad is None  # the teacher's


def test_batches_of_other_sizes_are_not_compiled_each():
    """There are more sizes than PyTorch's limit of eight recompilations."""
    torch._dynamo.reset()
    criterion = detops.LDLoss(CLASSES, strides=(8,), ld_region="main+vlr")

    def step(cls_scores, bbox_preds, boxes, labels, soft):
        return sum(criterion(cls_scores, bbox_preds, (boxes, labels), soft_targets=soft).values())

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for n in range(1, 12):
        cls_scores, bbox_preds, soft, boxes, labels = scene(n, counts=(n, n))
        maps = [torch.cat([part[0], part[0]], -1)[..., : 12 + n] for part in (cls_scores, bbox_preds, soft)]
        mine, theirs = (leaves_of(maps[:2]) for _ in range(2))
        for f, leaves in ((compiled, mine), (step, theirs)):
            f(leaves[:1], leaves[1:], torch.stack(boxes), torch.stack(labels), maps[2:]).backward()
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def half_a_step(rank: int, ranks: int) -> list[list[torch.Tensor]]:
    """The gradients of GFL's and LD's losses of this rank's images, as DDP averages them."""
    cls_scores, bbox_preds, soft, boxes, labels = scene(4, batch=4)
    part = slice(rank * 4 // ranks, (rank + 1) * 4 // ranks)
    found = []
    for criterion in (detops.GFLLoss(CLASSES, strides=STRIDES),
                      detops.LDLoss(CLASSES, strides=STRIDES, normalize_ld=True)):  # fmt: skip
        leaves = leaves_of([m[part] for m in (*cls_scores, *bbox_preds)])
        teacher = {} if len(found) == 0 else {"soft_targets": [m[part] for m in soft]}
        sum(criterion(leaves[:3], leaves[3:], (boxes[part], labels[part]), **teacher).values()).backward()
        found.append([leaf.grad / ranks for leaf in leaves])
    return found


def test_a_group_of_one_rank_changes_nothing(tmp_path):
    """There the divisors are summed up between the ops, and PyTorch divides."""
    cls_scores, bbox_preds, soft, boxes, labels = scene(6)
    criteria = [detops.GFLLoss(CLASSES, strides=STRIDES)]
    criteria += [detops.LDLoss(CLASSES, strides=STRIDES, normalize_ld=on, ld_region="main+vlr") for on in (False, True)]

    def steps():
        found = []
        for criterion in criteria:
            teacher = {} if type(criterion) is detops.GFLLoss else {"soft_targets": soft}
            for call in (criterion, criterion.level_losses):
                leaves = leaves_of([*cls_scores, *bbox_preds])
                losses = call(leaves[:3], leaves[3:], (boxes, labels), **teacher)
                parts = [part for value in losses.values() for part in (value if isinstance(value, list) else [value])]
                sum((i + 1) * part for i, part in enumerate(parts)).backward()
                found.append([*parts, *(leaf.grad for leaf in leaves)])
        return found

    alone = steps()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.testing.assert_close(steps(), alone)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_give_the_gradient_of_one(tmp_path):
    whole, halves = two_ranks(half_a_step, tmp_path)
    for kind in (0, 1):
        for gradient, *parts in zip(whole[kind], *(half[kind] for half in halves), strict=True):
            torch.testing.assert_close(torch.cat(parts), gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cls_scores": torch.zeros(1)}, TypeError, "cls_scores: expected a list of tensors, got Tensor"),
        ({"cls_scores": [torch.zeros(1, 3, 2, 2)]}, ValueError, "cls_scores: expected 2 levels, one per stride, got 1"),
        ({"bbox_preds": [torch.zeros(1, 67, 2, 2)] * 2}, ValueError, r"bbox_preds: expected shape \(B, 68, H, W\)"),
        ({"bbox_preds": [torch.zeros(1, 68, 2, 3)] * 2}, ValueError, "bbox_preds: expected the shape of cls_scores"),
        ({"soft_targets": [torch.zeros(1, 36, 2, 2)] * 2}, ValueError, r"soft_targets: expected shape \(B, 68, H, W\)"),
        ({"targets": (torch.zeros(2, 1, 4), torch.zeros(2, 1).long())}, ValueError, "targets: expected 1 images"),
        ({"targets": (torch.zeros(2, 1, 4), torch.zeros(2, 1).long()), "image_sizes": [(9, 9)]}, ValueError,
         "targets: expected 1 images, as cls_scores has, got 2"),
        ({"cls_scores": [torch.zeros(1, 3, 2, 2), torch.zeros(2, 3, 2, 2)]}, ValueError,
         "cls_scores: expected 1 images, as the first level has, got 2"),
        ({"soft_targets": [torch.zeros(2, 68, 2, 2)] * 2}, ValueError,
         "soft_targets: expected 1 images, as cls_scores has, got 2"),
        ({"bbox_preds": [torch.zeros(1, 68, 2, 2), torch.zeros(1, 68, 2, 2).half()]}, TypeError,
         r"bbox_preds: expected levels of one dtype, got torch\.float32 and torch\.float16"),
        ({"targets": ([torch.zeros(2, 4)], [torch.zeros(1).long()])}, ValueError,
         "labels: sample 0 has 1, expected 2, as boxes has"),
        ({"image_sizes": [4, 4]}, ValueError, "image_sizes: expected a height and a width for each of 1 images"),
        ({"soft_targets": ()}, ValueError, "soft_targets: expected 2 levels, one per stride, got 0"),
        ({"image_shapes": [(4, 4)]}, TypeError, "image_shapes: this argument is now image_sizes"),
        ({"boxes": torch.zeros(1, 1, 4)}, TypeError, r"boxes: this argument is now targets=\(boxes, labels\)"),
        ({"per_level": True}, TypeError, "per_level: this argument is now the method `level_losses`"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, error, message):
    good = dict(cls_scores=[torch.zeros(1, 3, 2, 2)] * 2, bbox_preds=[torch.zeros(1, 68, 2, 2)] * 2,
                soft_targets=[torch.zeros(1, 68, 2, 2)] * 2, targets=(torch.zeros(1, 1, 4), torch.zeros(1, 1).long()))  # fmt: skip
    with pytest.raises(error, match=message):
        detops.LDLoss(3, strides=(8, 16))(**good | change)
    for options, text in ((dict(strides=[(8, 4)]), "strides: expected whole numbers"), (dict(reg_max=0), "reg_max: expected"),
                          (dict(beta=0), "beta: expected a number above 0"), (dict(topk=1001), r"topk: expected 1 \.\. 1000"),
                          (dict(anchor_scale=float("nan")), "anchor_scale: expected a number above 0, got nan"),
                          (dict(temperature=0.5), "temperature: expected at least 1"),
                          (dict(ld_region="vlr"), 'ld_region: expected "main" or "main\\+vlr"')):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            detops.LDLoss(3, **options)
