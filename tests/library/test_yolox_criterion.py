"""YOLOXLoss and super-gradients' classes: whole losses against the loop over images, every kind of input."""

from typing import Any

import pytest
import torch
from op import assert_replays_in_cuda_graph, two_ranks
from torch import Tensor
from torch._subclasses import FakeTensorMode
from yolox_scenes import EXACT, FAST, STRIDES, decided, raw_outputs, yolox_scene

import detops
from detops.apps.bench._yolox import loop_loss
from detops.geometry.boxes import to_xyxy
from detops.reference.simota_match import simota_match
from detops.reference.yolox_loss import KINDS, yolox_loss

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SIZE = 64


def data(seed, **options):
    """Make raw maps (B, 1, H, W, 5 + C), rows (T, 6), and the arguments of simota_match."""
    args = yolox_scene(seed, size=SIZE, **options)
    levels, objectness, pred, cells, gt, labels, sizes = args
    outputs = [
        rows.unflatten(1, (1, SIZE // s, SIZE // s))
        for rows, s in zip(raw_outputs(levels, objectness, pred, cells), STRIDES, strict=True)
    ]
    rows = [
        torch.cat([torch.tensor([float(b), float(labels[b, n])]), gt[b, n]])
        for b in range(len(gt))
        for n in range(gt.shape[1] if sizes is None else int(sizes[b]))
    ]
    return outputs, torch.stack(rows) if rows else torch.zeros(0, 6), args


def leaves_of(outputs):
    return [output.clone().requires_grad_() for output in outputs]


@pytest.mark.parametrize("use_l1", [False, True])
def test_equals_the_loop_over_images(use_l1):
    criterion, compared = detops.YoloXDetectionLoss(STRIDES, 4, use_l1=use_l1), 0
    for seed in range(40):
        outputs, targets, args = data(seed, boxes=seed % 9, ragged=seed % 2 == 1)
        if not decided(*args, EXACT, margin=1e-4):
            continue
        mine, theirs = leaves_of(outputs), leaves_of(outputs)
        loss, components = criterion(mine, targets)
        expected = loop_loss(theirs, targets, args[3], use_l1)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        loss.backward()
        expected.backward()
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
        assert components[5] == loss
        compared += 1
    assert compared > 10


@pytest.mark.parametrize("kind", ["iou", "iou_linear", "giou", "diou", "ciou"])
@pytest.mark.parametrize("name", ["YoloXDetectionLoss", "YoloXFastDetectionLoss"])
def test_is_the_two_definitions_one_after_the_other(name, kind):
    rule = EXACT if name == "YoloXDetectionLoss" else FAST
    options = dict(iou_type=kind, use_l1=True, iou_weight=2.0, obj_weight=0.5, cls_weight=1.5)
    criterion = getattr(detops, name)(STRIDES, 4, cls_pos_weight=[0.5, 1.0, 2.0, 3.0], **options)
    compared = 0
    for seed in range(20):
        outputs, targets, args = data(seed, boxes=5, odd=seed % 2 == 1)
        if not decided(*args, rule, margin=1e-4):
            continue
        leaves = [output.nan_to_num(0.5, 4.0, -4.0).requires_grad_() for output in outputs]
        levels = [leaf.detach().flatten(1, 3) for leaf in leaves]
        raw = torch.cat(levels, 1)
        side = args[3][:, 2:]
        pred = torch.cat([raw[..., :2] * side + (args[3][:, :2] - side / 2), raw[..., 2:4].exp() * side], -1)
        sample = ([level[..., 5:] for level in levels], raw[..., 4], pred, *args[3:])
        if not decided(*sample, rule, margin=1e-4):
            continue
        index, iou, _ = simota_match(*sample, *rule)
        count = (index >= 0).sum()
        scale = 1 / count.clamp(min=1).expand(2)
        position = KINDS.index("iou_squared" if kind == "iou" else kind.removesuffix("_linear"))
        numbers = (torch.tensor([0.5, 1.0, 2.0, 3.0]), position, True, 2.0, 0.5, 1.5, True)
        _, expected, gradients = yolox_loss(levels, *args[3:6], index, iou, scale, *numbers)
        loss, components = criterion(leaves, targets)
        torch.testing.assert_close(components[:4].double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            loss.double(), (expected * torch.tensor([2, 0.5, 1.5, 1])).sum(), rtol=1e-4, atol=1e-5
        )
        given = ((args[5] >= 0) & torch.ones_like(args[5], dtype=torch.bool)).sum()
        assert components[4] == pytest.approx((count / given).item())
        loss.backward()
        for leaf, gradient in zip(leaves, gradients, strict=True):
            torch.testing.assert_close(leaf.grad.flatten(1, 3).double(), gradient, rtol=1e-3, atol=1e-4)
        compared += 1
    assert compared > 4


WEIGHTS = {"box_weight": 2.0, "obj_weight": 0.5, "cls_weight": 1.5}


def parts_by_definition(
    levels: list[Tensor], args: tuple[Any, ...], found: detops.Assignment, use_l1: bool, **alone: float
) -> tuple[Tensor, list[Tensor]]:
    """Return the op's four losses (4,) and the gradient of their weighted sum; `alone` sets the other weights to 0."""
    scale = 1 / found.num_positives.clamp(min=1).expand(2)
    weights = [alone.get(name, 0.0) for name in WEIGHTS]
    numbers = (None, KINDS.index("iou_squared"), use_l1 and "box_weight" in alone, *weights, True)
    return yolox_loss(levels, *args[3:6], found.box_index, found.quality, scale, *numbers)[1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("use_l1", [False, True])
def test_each_loss_can_be_weighed_alone(use_l1: bool, dtype: torch.dtype) -> None:
    criterion = detops.YOLOXLoss(4, STRIDES, use_l1=use_l1, **WEIGHTS)
    outputs, _, args = data(2, boxes=5)
    leaves = leaves_of([output.to(dtype) for output in outputs])
    levels = [leaf.detach().double().flatten(1, 3) for leaf in leaves]
    truth = detops.GroundTruth._of_cxcywh(args[4], args[5], None)
    losses, found = criterion(leaves, truth), criterion.assign(leaves, truth)
    assert list(losses) == ["loss_bbox", "loss_obj", "loss_cls"]
    assert found.num_positives > 5
    parts, _ = parts_by_definition(levels, args, found, use_l1, **WEIGHTS)
    values = (2.0 * parts[0] + (parts[3] if use_l1 else 0), 0.5 * parts[1], 1.5 * parts[2])
    tolerance = dict(rtol=1e-3, atol=1e-5) if dtype == torch.float32 else dict(rtol=2e-3, atol=1e-3)
    alone = []
    for (name, loss), value, weight in zip(losses.items(), values, WEIGHTS, strict=True):
        torch.testing.assert_close(loss.double(), value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        _, expected = parts_by_definition(levels, args, found, use_l1, **{weight: WEIGHTS[weight]})
        got = torch.autograd.grad(loss, leaves, retain_graph=True)
        for mine, theirs in zip(got, expected, strict=True):
            assert mine.dtype == dtype
            torch.testing.assert_close(mine.flatten(1, 3).double(), theirs, **tolerance)
        assert sum(gradient.abs().sum() for gradient in got) > 0
        alone.append(got)
    factors = (3.0, 0.0, -0.25)
    total = sum(factor * loss for factor, loss in zip(factors, losses.values(), strict=True))
    for together in (torch.autograd.grad(total, leaves, retain_graph=True), torch.autograd.grad(total, leaves)):
        for mine, *each in zip(together, *alone, strict=True):
            expected = sum(factor * gradient.double() for factor, gradient in zip(factors, each, strict=True))
            torch.testing.assert_close(mine.double(), expected, **tolerance)


def test_the_drop_ins_are_the_criterion_with_other_names() -> None:
    outputs, targets, args = data(3, boxes=6, ragged=True)
    truth = detops.GroundTruth.from_rows(targets, 2)
    for use_l1 in (False, True):
        for drop_in, ours in (
            (detops.YoloXDetectionLoss(STRIDES, 4, use_l1), detops.YOLOXLoss(4, STRIDES, use_l1=use_l1)),
            (
                detops.YoloXFastDetectionLoss(STRIDES, 4, use_l1, obj_loss_fix=True),
                detops.YOLOXLoss(
                    4, STRIDES, use_l1=use_l1, candidates="own", dynamic_ks_bias=1.1, obj_divisor="points"
                ),
            ),
        ):
            loss, components = drop_in(outputs, targets)
            losses = ours(outputs, truth)
            assert torch.equal(torch.stack(list(losses.values())).sum(), loss)
            assert torch.equal(5 * components[0] + components[3], losses["loss_bbox"])
            assert torch.equal(components[1:3], torch.stack([losses["loss_obj"], losses["loss_cls"]]))
            assert dict(zip(drop_in.component_names, components.tolist(), strict=True))["Loss"] == loss
            for mine, theirs in zip(ours.assign(outputs, truth), drop_in.assign(outputs, targets), strict=True):
                assert torch.equal(mine, theirs)
    pair = detops.RaggedBatch(to_xyxy(args[4]), sample_sizes=args[6]), args[5]
    padded = detops.YOLOXLoss(4, STRIDES).assign(outputs, pair)
    rows = detops.YoloXDetectionLoss(STRIDES, 4).assign(outputs, targets)
    start = torch.cat([torch.zeros(1, dtype=torch.int64), args[6].cumsum(0)[:-1]])[:, None]
    assert torch.equal(rows.box_index, (padded.box_index + start).where(padded.box_index >= 0, -1))


def test_super_gradients_own_conventions() -> None:
    outputs, targets, _ = data(4, boxes=6)
    expected = detops.YoloXDetectionLoss(STRIDES, 4, iou_weight=5.0, obj_weight=1.0, cls_weight=1.0)(outputs, targets)
    got = detops.YoloXDetectionLoss(STRIDES, 4, iou_weight=None, obj_weight=None, cls_weight=None)(outputs, targets)
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.equal(mine, theirs)
    whole = torch.tensor([[0, 1, 20, 20, 12, 10], [1, 2, 30, 34, 20, 14], [1, 0, 8, 9, 10, 10]])
    for dtype in (torch.int32, torch.int64):
        for mine, theirs in zip(
            detops.YoloXDetectionLoss(STRIDES, 4)(outputs, whole.to(dtype)),
            detops.YoloXDetectionLoss(STRIDES, 4)(outputs, whole.float()),
            strict=True,
        ):
            assert torch.equal(mine, theirs)
    far = torch.tensor(
        [[0, 1, 900, 900, 10, 10], [1, 2, 900, 900, 10, 10], [1, 2, 800, 900, 10, 10], [0, -1, 5, 5, 4, 4]]
    )
    assert detops.YoloXDetectionLoss(STRIDES, 4)(outputs, far)[1][4] == pytest.approx(1 / 3)


def test_every_form_of_targets_and_output():
    outputs, targets, (_, _, _, _, gt, labels, sizes) = data(1, boxes=6, ragged=True)
    criterion = detops.YoloXDetectionLoss(STRIDES, 4)
    expected = criterion(outputs, targets)
    rows = torch.cat([labels[..., None].float(), gt], -1)
    lists = [to_xyxy(gt[b, :n]) for b, n in enumerate(sizes.tolist())]
    forms = [
        detops.RaggedBatch(rows, sample_sizes=sizes),
        (detops.RaggedBatch(to_xyxy(gt), sample_sizes=sizes), detops.RaggedBatch(labels, sample_sizes=sizes)),
        (lists, [labels[b, :n].int() for b, n in enumerate(sizes.tolist())]),
        targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))],
    ]
    for form in forms:
        for output in (outputs, tuple(outputs), (torch.zeros(3), outputs)):
            for a, b in zip(criterion(output, form), expected, strict=True):
                torch.testing.assert_close(a, b)
    assert criterion.component_names == ["iou", "obj", "cls", "l1", "num_fg", "Loss"]
    channels_first = [o[:, 0].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)[:, None] for o in outputs]
    torch.testing.assert_close(criterion(channels_first, targets)[0], expected[0])


def test_memory_layout_does_not_change_the_gradient():
    outputs, targets, _ = data(1, boxes=6)
    first = leaves_of(outputs)
    detops.YoloXDetectionLoss(STRIDES, 4)(first, targets)[0].backward()
    second = [o[:, 0].permute(0, 3, 1, 2).contiguous().requires_grad_() for o in outputs]
    detops.YoloXDetectionLoss(STRIDES, 4)([o.permute(0, 2, 3, 1)[:, None] for o in second], targets)[0].backward()
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a.grad[:, 0].permute(0, 3, 1, 2), b.grad)


@pytest.mark.parametrize("name", ["YoloXDetectionLoss", "YoloXFastDetectionLoss"])
@pytest.mark.parametrize("rows", [
    [], [[0, 0, 900, 900, 10, 10]], [[0, 0, 10, 10, -3, 5]], [[0, 9, 10, 10, 5, 5]], [[5, 0, 10, 10, 5, 5]],
    [[0, 0, float("nan"), 1, 1, 1]], [[0, 1.5, 10, 10, 5, 5]],
])  # fmt: skip
def test_without_a_match_objectness_is_trained(name, rows):
    outputs = leaves_of(data(2, boxes=1)[0])
    criterion = getattr(detops, name)(STRIDES, 4, use_l1=True)
    loss, components = criterion(outputs, torch.tensor(rows, dtype=torch.float32).reshape(-1, 6))
    expected = sum(torch.nn.functional.softplus(o[..., 4]).sum() for o in outputs)
    torch.testing.assert_close(loss, expected)
    assert components.tolist()[0] == components.tolist()[2] == components.tolist()[3] == 0
    assert components[4] == 1  # neither positives nor boxes count as none
    loss.backward()
    for output in outputs:
        assert (output.grad[..., 4] > 0).all()
        assert (output.grad[..., :4] == 0).all()
        assert (output.grad[..., 5:] == 0).all()


def test_zero_size_boxes_train():
    outputs = leaves_of(data(3, boxes=1)[0])
    targets = torch.tensor([[0.0, 1, 20, 20, 0, 0], [1, 2, 30, 30, 0, 12]])
    loss, components = detops.YoloXDetectionLoss(STRIDES, 4, use_l1=True)(outputs, targets)
    assert components.isfinite().all()
    assert components[4] == 1
    loss.backward()
    assert all(output.grad.isfinite().all() for output in outputs)


def test_the_radius_is_used_by_both():
    outputs, targets, _ = data(4, boxes=8)
    for name in ("YoloXDetectionLoss", "YoloXFastDetectionLoss"):
        counts = {
            round(getattr(detops, name)(STRIDES, 4, center_sampling_radius=r)(outputs, targets)[1][4].item(), 6)
            for r in (0.5, 1.5, 2.5, 5.0)
        }
        assert len(counts) > 1


def test_options_of_the_fast_variant():
    outputs, targets, (*_, gt, _, _) = data(5, boxes=8)
    fast = detops.YoloXFastDetectionLoss(STRIDES, 4, obj_loss_fix=True)
    plain = detops.YoloXFastDetectionLoss(STRIDES, 4)
    cells, count = (
        2 * sum((SIZE // s) ** 2 for s in STRIDES),
        round(plain(outputs, targets)[1][4].item() * gt.shape[1] * 2),
    )
    assert fast(outputs, targets)[1][1] * cells == pytest.approx((plain(outputs, targets)[1][1] * count).item())
    more = detops.YoloXFastDetectionLoss(STRIDES, 4, dynamic_ks_bias=3.0)(outputs, targets)[1][4]
    none = detops.YoloXFastDetectionLoss(STRIDES, 4, dynamic_ks_bias=None)(outputs, targets)[1][4]
    assert more > plain(outputs, targets)[1][4] >= none


@pytest.mark.parametrize("obj_loss_fix", [False, True])
def test_a_loss_scale_saves_the_gradients_of_float16(obj_loss_fix):
    """Divided by the number of positives, the gradients of correctly empty cells would underflow in float16."""
    outputs, targets, _ = data(6, boxes=5)
    rounded = []
    for output in outputs:
        output[..., 4:] -= 9
        rounded.append(output.half())
    criterion = detops.YoloXFastDetectionLoss(STRIDES, 4, use_l1=True, obj_loss_fix=obj_loss_fix)
    narrow, wide = leaves_of(rounded), leaves_of([output.float() for output in rounded])
    losses = [criterion(leaves, targets) for leaves in (narrow, wide)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss, _ in losses:
        (loss * 2.0**12).backward()
    for leaf, exact in zip(narrow, wide, strict=True):
        torch.testing.assert_close(leaf.grad.float(), exact.grad, rtol=2e-3, atol=1e-3)
    assert (wide[0].grad[..., 4].abs() < 2.0**12 * 6e-8).any()


def test_half_precision_and_autocast():
    outputs, targets, _ = data(6, boxes=5)
    criterion = detops.YoloXDetectionLoss(STRIDES, 4)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = [output.to(dtype) for output in outputs]
        expected = criterion([output.float() for output in rounded], targets)
        leaves = leaves_of(rounded)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, components = criterion(leaves, targets)
        assert loss.dtype == components.dtype == torch.float32
        torch.testing.assert_close(components, expected[1])
        loss.backward()
        assert leaves[0].grad.dtype == dtype


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["YoloXDetectionLoss", "YoloXFastDetectionLoss"])
def test_no_host_sync_and_compiles_whole(name, device):
    outputs, targets, _ = data(7, boxes=5)
    outputs, targets = [output.to(device) for output in outputs], targets.to(device)
    criterion = getattr(detops, name)(STRIDES, 4, use_l1=True, cls_pos_weight=2.0).to(device)
    leaves = leaves_of(outputs)
    assert detops.count_syncs(lambda: criterion(leaves, targets)[0].backward()) == 0
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        criterion([mode.from_tensor(o).requires_grad_() for o in outputs], mode.from_tensor(targets))[0].backward()
    compiled = leaves_of(outputs)
    loss, components = torch.compile(criterion, fullgraph=True, backend="aot_eager")(compiled, targets)
    loss.backward()
    assert not components.requires_grad
    for ours, theirs in zip(compiled, leaves, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_second_pass_over_a_retained_graph():
    outputs, targets, _ = data(8, boxes=5)
    leaves = leaves_of(outputs)
    loss = 3 * detops.YoloXDetectionLoss(STRIDES, 4)(leaves, targets)[0]
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("boxes", [20, 100, 500])
def test_cuda_graph(boxes):
    outputs, targets, _ = data(9, boxes=boxes)
    leaves, targets = leaves_of([output.cuda() for output in outputs]), targets.cuda()
    criterion = detops.YoloXDetectionLoss(STRIDES, 4)

    def step():
        return torch.autograd.grad(criterion(leaves, targets)[0], leaves)

    assert_replays_in_cuda_graph(step)


def half_a_step(rank: int, ranks: int) -> list[list[torch.Tensor]]:
    """The gradients of three losses of this rank's images, as DDP averages them."""
    outputs, targets, _ = data(10, batch=4, boxes=7, ragged=True)
    part = slice(rank * 4 // ranks, (rank + 1) * 4 // ranks)
    own = targets[(targets[:, 0] >= part.start) & (targets[:, 0] < part.stop)]
    own = own - torch.tensor([part.start, 0, 0, 0, 0, 0])
    found = []
    for criterion in (detops.YoloXDetectionLoss(STRIDES, 4, use_l1=True),
                      detops.YoloXFastDetectionLoss(STRIDES, 4, sync_num_fgs=True),
                      detops.YoloXDetectionLoss(STRIDES, 4, sync_num_fgs=False)):  # fmt: skip
        leaves = [output[part].clone().requires_grad_() for output in outputs]
        criterion(leaves, own)[0].backward()
        found.append([leaf.grad / ranks for leaf in leaves])
    return found


@pytest.mark.slow
def test_two_ranks_give_the_gradient_of_one(tmp_path):
    whole, halves = two_ranks(half_a_step, tmp_path)
    for kind in (0, 1):
        for gradient, *parts in zip(whole[kind], *(half[kind] for half in halves), strict=True):
            torch.testing.assert_close(torch.cat(parts), gradient)
    assert not torch.allclose(torch.cat([half[2][0] for half in halves]), whole[2][0])  # off by the flag


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 4, 9, 9, 5, 5], "labels: sample 0, box 1 has 4, expected a value below 4"),
        ([2, 0, 9, 9, 5, 5], r"targets: row 1 has image 2, expected 0 \.\. 1"),
        ([1, 0, 9, 9, -5, 5], r"targets: row 1 has \[1, 0, 9, 9, -5, 5\], expected a width and a height of at least 0"),
        ([0, 0, 9, float("inf"), 5, 5], r"targets: row 1 has \[0, 0, 9, inf, 5, 5\], expected finite numbers"),
        ([0, 1.5, 9, 9, 5, 5], "targets: row 1 has class 1.5, expected a whole number"),
    ],
)
def test_checked_mode_names_the_box(row, message):
    outputs, _, _ = data(11)
    targets = torch.tensor([[0.0, 0, 20, 20, 9, 9], row])
    criterion = detops.YoloXDetectionLoss(STRIDES, 4)
    assert criterion(outputs, targets)[0].isfinite()
    with detops.checked(), pytest.raises(ValueError, match=message):
        criterion(outputs, targets)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_output": torch.zeros(1)}, TypeError, "model_output: expected a list of tensors, got Tensor"),
        ({"model_output": [torch.zeros(1, 1, 2, 2, 9)]}, ValueError, "model_output: expected 3 levels, one per stride, got 1"),
        ({"model_output": [torch.zeros(2, 1, 2, 2, 8)] * 3}, ValueError, r"model_output: expected shape \(B, 1, H, W, 9\)"),
        ({"targets": torch.zeros(3, 5)}, ValueError, r"targets: expected shape \(T, 6\), got \(3, 5\)"),
        ({"targets": torch.zeros(3, 6, dtype=torch.bool)}, TypeError, r"targets: expected a tensor \(T, 6\), a RaggedBatch"),
        ({"targets": "boxes"}, TypeError, "targets: expected a GroundTruth, the pair"),
        ({"targets": torch.zeros(3, 6, device="meta")}, ValueError, "targets: expected a tensor on cpu"),
        ({"targets": ([torch.zeros(1, 4)], [torch.zeros(1).long()])}, ValueError,
         "targets: expected 2 images, as model_output has, got 1"),
        ({"targets": ([torch.zeros(1, 4)] * 2, [torch.zeros(1)] * 2)}, TypeError, "labels: expected integers"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, error, message):
    good = dict(model_output=[torch.zeros(2, 1, 2, 2, 9)] * 3, targets=torch.zeros(0, 6))
    with pytest.raises(error, match=message):
        detops.YoloXDetectionLoss(STRIDES, 4)(**good | change)


def test_constructors_name_the_argument():
    for options, message in (
        (dict(num_classes=0), "num_classes: expected at least 1"),
        (dict(strides=[]), r"strides: expected whole numbers of at least 1 pixel, the same along x and y, got \[\]"),
        (dict(strides=[(8, 4)]), "strides: expected whole numbers of at least 1 pixel"),
        (dict(iou_type="l2"), "iou_type: expected one of iou, iou_linear, giou, diou, ciou, got 'l2'"),
        (dict(center_sampling_radius=-1), "center_sampling_radius: expected at least 0"),
        (dict(cls_pos_weight=[1.0, 2.0]), "cls_pos_weight: expected a number or 4 numbers"),
        (dict(dynamic_ks_bias=-1.0), r"dynamic_ks_bias: expected 0 \.\. 1000"),
    ):
        with pytest.raises(ValueError, match=message):
            detops.YoloXFastDetectionLoss(**dict(strides=STRIDES, num_classes=4) | options)


def test_a_box_whose_area_float32_does_not_hold():
    """It is assigned like any other box."""
    outputs, _, _ = data(6, boxes=2)
    criterion = detops.YoloXDetectionLoss(STRIDES, 4)
    with detops.checked():
        loss, parts = criterion(outputs, torch.tensor([[0, 1, 32, 32, 1e20, 1e20], [0, 2, 20, 20, 30, 30]]))
    assert loss.isfinite()
    assert parts[4] > 0
