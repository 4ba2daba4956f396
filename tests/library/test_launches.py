"""count_launches: the kernels that a GPU would run, counted on any device."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves, tree_map

import detops
from detops import ops
from detops.diagnostics.launches import count_kernels, count_launches

X = torch.rand(4, 6)
CALLS = {
    "element-wise": (lambda: (X + 1) * X, 2),
    "views": (lambda: X.view(6, 4).T[1:].unsqueeze(0).expand(3, -1, -1).split(2), 0),
    "allocations": (lambda: (torch.empty(3), torch.empty_like(X), X.new_empty(2)), 0),
    "fills": (lambda: (torch.zeros(3), torch.ones_like(X), torch.arange(5), X.new_full((2,), 1.0)), 4),
    "a copy": (lambda: X.T.contiguous(), 1),
    "no copy": (lambda: X.contiguous(), 0),
    "reading a number": (lambda: X.sum().item(), 1),
    "nothing to compute": (lambda: X[:0] + 1, 0),
    "a sum of nothing": (lambda: X[:0].sum(), 1),
    "in place": (lambda: X.clone().mul_(2), 2),
    "a list": (lambda: torch.stack([X, X]), 1),
    "a composition": (lambda: F.binary_cross_entropy_with_logits(X, X, reduction="none"), 5),
}


@pytest.mark.parametrize("name", CALLS)
def test_operators(name):
    call, launches = CALLS[name]
    assert count_launches(call) == launches


def test_backward_counts():
    x = X.clone().requires_grad_()
    forward = count_launches(lambda: (x * x).sum())
    assert forward == 2
    # The gradient 1 is filled in and expanded; each factor's gradient is a product, and both are added.
    assert count_launches(lambda: torch.autograd.grad((x * x).sum(), x)) == forward + 1 + 2 + 1


def test_arguments_and_errors():
    assert count_launches(lambda a, b: a + b, X, b=X) == 1
    with pytest.raises(ZeroDivisionError):
        count_launches(lambda: 1 / 0)


def test_an_op_of_detops_counts_what_its_launcher_starts():
    pytest.importorskip("triton")
    maps, centers = torch.zeros(2, 1, 20, 30), torch.full((2, 3, 2), 9)
    radii = torch.full((2, 3), 2)

    def draw(**options):
        ops.draw_gaussians_(maps, options.get("centers", centers), radii, None, None, 6.0, 1.0)

    assert count_launches(draw) == 1
    strided = centers.flip(-1).transpose(0, 1).contiguous().transpose(0, 1)
    assert count_launches(draw, centers=strided) == 2  # made contiguous
    assert maps.max() == 1  # and it was drawn


def test_counting_changes_nothing():
    """An op that writes into its arguments still does so exactly once."""
    gradient = torch.full((5,), 2.0)
    count_launches(lambda: ops.scale_gradient_([gradient], torch.tensor(3.0)))
    assert torch.equal(gradient, torch.full((5,), 6.0))
    x = torch.zeros(3)
    assert count_launches(lambda: x.index_put_((torch.tensor([1]),), torch.tensor(1.0), accumulate=True)) >= 1
    assert x.tolist() == [0, 1, 0]


def test_launches_follow_the_kernels_and_not_the_boxes():
    def draw(boxes):
        centers, radii = torch.randint(0, 20, (boxes, 2)), torch.ones(boxes, dtype=torch.int64)
        maps, index = torch.zeros(2, 20, 20), torch.zeros(boxes, dtype=torch.int64)
        return count_launches(detops.draw_heatmap, maps, centers, radii, index)

    assert draw(50) == draw(5)


def truth(count):
    low = torch.rand(2, count, 2) * 100
    return detops.GroundTruth(torch.cat([low, low + 20], 2), torch.arange(2 * count).view(2, count) % 3)


def leaves(*shapes):
    return [torch.randn(2, *shape).requires_grad_() for shape in shapes]


SIDES = (16, 8, 4)
MAPS = {side: (side, side) for side in (32, *SIDES)}


def heatmaps():
    return leaves((3, *MAPS[32]), (2, *MAPS[32]), (2, *MAPS[32]))


def raw_maps():
    return leaves(*((1, *MAPS[side], 8) for side in SIDES))


def dense_maps():
    """Class logits and box logits."""
    return leaves(*((3, *MAPS[side]) for side in SIDES)), leaves(*((68, *MAPS[side]) for side in SIDES))


def two_heads():
    return dense_maps(), dense_maps()


def query_outputs():
    return [torch.randn(2, 30, 3).requires_grad_(), torch.rand(2, 30, 4).requires_grad_()]


CENTERNET, YOLOX = detops.CenterNetLoss(3), detops.YOLOXLoss(3)
GFL, LD = (kind(3, strides=(8, 16, 32)) for kind in (detops.GFLLoss, detops.LDLoss))
TAL = detops.TaskAlignedLoss(3)
SET = detops.SetLoss(3)
SIZES = torch.full((2, 2), 128)

# What makes the network's outputs, what is called with them and the ground truth, and how many kernels it launches:
# of a criterion forward and backward. A call that launches fewer lowers its number here.
CRITERIA = {
    "CenterNetLoss": (heatmaps, lambda maps, truth: CENTERNET(*maps, truth, (128, 128)), 11),
    "YOLOXLoss": (raw_maps, lambda maps, truth: YOLOX(maps, truth), 15),
    "GFLLoss": (dense_maps, lambda maps, truth: GFL(*maps, truth), 16),
    "LDLoss": (dense_maps, lambda maps, truth: LD(*maps, truth, soft_targets=[m.detach() for m in maps[1]]), 17),
    "TaskAlignedLoss": (dense_maps, lambda maps, truth: TAL(*maps, truth), 19),
    "TaskAlignedLoss, two heads": (two_heads, lambda maps, truth: TAL(*maps[0], truth, one_to_one=maps[1]), 29),
    "SetLoss": (query_outputs, lambda maps, truth: SET(*maps, (truth.boxes, truth.labels)), 21),
}
CALLS_OF_MAPS = {
    "centernet_targets": (list, lambda maps, truth: detops.centernet_targets(truth, (32, 32), (128, 128), 3), 6),
    "decode_centernet": (heatmaps, lambda maps, truth: detops.decode_centernet(*maps, (128, 128)), 6),
    "decode_yolox": (raw_maps, lambda maps, truth: detops.decode_yolox(maps), 17),
    "decode_gfl": (dense_maps, lambda maps, truth: detops.decode_gfl(*maps, (8, 16, 32)), 16),
    "decode_detr": (query_outputs, lambda maps, truth: detops.decode_detr(*maps, SIZES), 17),
    "nms_mask": (list, lambda maps, truth: detops.nms_mask(truth.boxes, truth.boxes[..., 0], 0.5), 4),
}


@pytest.mark.parametrize(("name", "more", "launches"), [
    ("paste_masks", (), 4), ("masks_to_rle", (False,), 15), ("masks_to_rle", (True,), 20)
])  # fmt: skip
def test_masks_launch_few_kernels(name, more, launches):
    """Pasting, COCO's run lengths, and COCO's strings."""
    pytest.importorskip("triton")
    masks, boxes = torch.rand(3, 28, 28), torch.tensor([[0.0, 0, 30, 40], [10, 10, 60, 60], [5, 5, 20, 20]])
    assert count_launches(getattr(detops.ops, name), masks, boxes, 100, 80, 0.5, *more) == launches


def test_the_drop_in_launches_few_kernels():
    """super-gradients' interface: rows of targets, and components that its trainer logs."""
    pytest.importorskip("triton")
    criterion, maps = detops.YoloXDetectionLoss(strides=(8, 16, 32), num_classes=3), raw_maps()
    rows = torch.tensor([[0, 0, 17.0, 17, 26, 26], [1, 1, 30, 40, 40, 40]])

    def step():
        torch.autograd.grad(criterion(maps, rows)[0], maps)

    step()
    assert count_launches(step) == 38


@pytest.mark.parametrize("count", [2, 70])
@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_launch_few_kernels(name, count):
    """Forward and backward, however many boxes there are; what sums the losses counts too."""
    pytest.importorskip("triton")
    make, call, launches = CRITERIA[name]
    maps, targets = make(), truth(count)

    def step():
        losses = call(maps, targets)
        torch.autograd.grad(sum(losses.values()), tree_leaves(maps))

    step()  # what is kept for the next step is made
    assert count_launches(step) == launches


@pytest.mark.parametrize("name", ["GFLLoss", "LDLoss", "TaskAlignedLoss"])
def test_the_range_of_float16_takes_one_launch(name):
    """The class gradients are written multiplied by 2^14, which backward divides by."""
    pytest.importorskip("triton")
    make, call, launches = CRITERIA[name]
    maps, targets = tree_map(lambda level: level.detach().half().requires_grad_(), make()), truth(5)

    def step():
        torch.autograd.grad(sum(call(maps, targets).values()), tree_leaves(maps))

    step()
    assert count_launches(step) == launches + 1


@pytest.mark.parametrize("name", CALLS_OF_MAPS)
def test_other_calls_launch_few_kernels(name):
    pytest.importorskip("triton")
    make, call, launches = CALLS_OF_MAPS[name]
    maps = make()
    for count in (2, 70):
        targets = truth(count)
        call(maps, targets)
        assert count_launches(call, maps, targets) == launches


@pytest.mark.gpu
def test_the_profiler_agrees():
    x = X.cuda()
    assert count_kernels(lambda: ((x + 1) * x).cpu()) == 2 == count_launches(lambda: (x + 1) * x)
    maps, centers = torch.zeros(2, 1, 20, 30, device="cuda"), torch.full((2, 3, 2), 9, device="cuda")
    radii = torch.full((2, 3), 2, device="cuda")
    assert count_kernels(ops.draw_gaussians_, maps, centers, radii, None, None, 6.0, 1.0) == 1
