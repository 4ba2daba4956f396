"""PPYoloELoss: the numbers of super-gradients in each switch, from whatever layout its networks have."""

from typing import Any

import pytest
import torch
from op import assert_no_syncs
from torch import Tensor

import detops
from detops import PPYoloELoss
from detops.geometry.points import anchors_at

SHAPES, STRIDES = [(12, 12), (6, 6), (3, 3)], (8, 16, 32)
COUNT = sum(h * w for h, w in SHAPES)
TARGETS = torch.tensor([[0, 1, 41.25, 38.5, 44.5, 37]])
VALUES = {  # TAL or ATSS, varifocal or focal: class, IoU, distribution loss, sum; gradients
    (False, True): ((1.305669, 0.969228, 1.716648, 3.991545), 0.489174, 1.202078),
    (False, False): ((0.761983, 0.969228, 1.716648, 3.447859), 0.809992, 1.202078),
    (True, True): ((1.564476, 0.979045, 1.703019, 4.246540), 0.065222, 1.180814),
    (True, False): ((0.448345, 0.979045, 1.703019, 3.130409), 0.376534, 1.180814),
}


def outputs(
    order: tuple[int, ...] = (0, 1, 2), transposed: bool = False
) -> tuple[Tensor, Tensor, tuple[object, tuple[Any, ...]]]:
    """Leaves of class and box logits, and what a network returns of them; levels in an order."""
    points = [detops.grid_points([SHAPES[i]], [STRIDES[i]]) for i in order]
    starts = [0, 144, 180]
    rank = torch.cat([starts[i] + torch.arange(len(p)) for i, p in zip(order, points, strict=True)])
    scores = (-2 + 0.001 * rank)[None, :, None].repeat(1, 1, 2)
    if transposed:
        scores = scores.transpose(1, 2).contiguous()
    scores.requires_grad_()
    preds = torch.zeros(1, COUNT, 4, 17)
    preds[..., 2] = 6
    preds = preds.flatten(2).requires_grad_()
    at = torch.cat(points)
    six = (scores.transpose(1, 2) if transposed else scores, preds, anchors_at(at, 5.0), at[:, :2],
           [len(p) for p in points], at[:, 2:])  # fmt: skip
    return scores, preds, (None, six)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)], ids=["YOLO-NAS", "PP-YOLOE"])
@pytest.mark.parametrize("transposed", [True, False], ids=["classes first", "points first"])
@pytest.mark.parametrize(("static", "varifocal"), VALUES)
def test_values_of_the_original(static: bool, varifocal: bool, transposed: bool, order: tuple[int, ...]) -> None:
    expected, of_scores, of_preds = VALUES[static, varifocal]
    scores, preds, given = outputs(order, transposed)
    criterion = PPYoloELoss(2, use_varifocal_loss=varifocal, use_static_assigner=static)
    loss, parts = criterion(given, TARGETS)
    assert criterion.component_names == ["loss_cls", "loss_iou", "loss_dfl", "loss"]
    assert not parts.requires_grad
    torch.testing.assert_close(parts, torch.tensor(expected), rtol=3e-6, atol=0)
    assert loss.detach() == parts[3]
    loss.backward()
    assert scores.grad is not None
    assert preds.grad is not None
    assert scores.grad.sum().item() == pytest.approx(of_scores, abs=1e-5)
    assert preds.grad.abs().sum().item() == pytest.approx(of_preds, abs=1e-5)
    assert scores.grad.is_contiguous()


def test_the_assigner_may_be_switched_between_two_calls() -> None:
    _, _, given = outputs()
    criterion = PPYoloELoss(2)
    static = criterion.assign(given, TARGETS)
    assert (static.box_index[0] >= 0).nonzero().flatten().tolist() == [52, 53, 54, 64, 65]
    quality = torch.tensor([0.678465, 0.709853, 0.516527, 0.583516, 0.608918])
    torch.testing.assert_close(static.quality[static.box_index >= 0], quality, rtol=0, atol=2e-6)
    criterion.use_static_assigner = False
    aligned = criterion.assign(given, TARGETS)
    assert (aligned.box_index[0] >= 0).nonzero().flatten().tolist() == [
        40, 41, 42, 51, 52, 53, 54, 63, 64, 65, 66, 76, 77
    ]  # fmt: skip
    assert criterion(given, TARGETS)[0].item() == pytest.approx(3.991545, rel=3e-6)


@pytest.mark.parametrize("static", [True, False])
def test_all_forms_of_targets(static: bool) -> None:
    _, _, given = outputs()
    criterion = PPYoloELoss(2, use_static_assigner=static)
    expected = criterion(given, TARGETS)[1]
    padded = torch.tensor([[[1, 41.25, 38.5, 44.5, 37], [0, 0, 0, 0, 0]]])
    boxes, labels = torch.tensor([[[19, 20, 63.5, 57]]]), torch.tensor([[1]])
    elsewhere = torch.cat([TARGETS, torch.tensor([[7, 0, 10, 10, 5.0, 5]])])  # of an image that is not there
    for targets in (padded, (boxes, labels), elsewhere, given and TARGETS.double()):
        torch.testing.assert_close(criterion(given, targets)[1], expected)


@pytest.mark.parametrize("static", [True, False])
def test_no_box_and_broken_boxes(static: bool) -> None:
    """They train the background; the original's loss is NaN where a box has one."""
    _, _, given = outputs()
    criterion = PPYoloELoss(2, use_static_assigner=static)
    empty = criterion(given, torch.zeros(0, 6))[1]
    assert empty[0] > 0
    assert empty[1] == empty[2] == 0
    broken = torch.tensor([[0, 1, float("nan"), 38, 44, 37], [0, 2, 41, 38, 44, 37], [0, 1, 41, 38, -4, 37]])
    torch.testing.assert_close(criterion(given, broken)[1], empty)
    torch.testing.assert_close(criterion(given, torch.cat([TARGETS, broken]))[1], criterion(given, TARGETS)[1])


def test_other_dtypes_and_no_host_sync() -> None:
    _, _, (_, six) = outputs()
    for static in (True, False):
        criterion = PPYoloELoss(2, use_static_assigner=static)
        expected = criterion(six, TARGETS)[1]
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            short = (six[0].to(dtype), six[1].to(dtype), *six[2:])
            torch.testing.assert_close(criterion(short, TARGETS)[1].float(), expected, rtol=5e-3, atol=1e-3)

        def loss(scores: Tensor, preds: Tensor, targets: Tensor, criterion: PPYoloELoss = criterion) -> Tensor:
            found: Tensor = criterion((scores, preds, *six[2:]), targets)[0]
            return found

        assert detops.count_syncs(loss, six[0], six[1], TARGETS) == 0
        padded = torch.tensor([[[1, 41.25, 38.5, 44.5, 37]]])
        assert assert_no_syncs(loss, six[0], six[1], padded).shape == ()


def test_reg_max_warns() -> None:
    with pytest.warns(DeprecationWarning, match="reg_max: ignored"):
        PPYoloELoss(2, reg_max=16)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(1, COUNT, 3), r"outputs, class logits: expected shape \(1, 189, 2\), got \(1, 189, 3\)"),
        (1, torch.zeros(1, COUNT, 66), "outputs, box logits: expected 4 \\* bins channels, got 66"),
        (1, torch.zeros(1, 9, 68), r"outputs, box logits: expected shape \(B, A, channels\), got \(1, 9, 68\)"),
        (3, torch.zeros(9, 2), r"outputs, points: expected shape \(189, 2\)"),
        (4, [9, 9], "outputs, anchors per level: expected the sum 189"),
    ],
)
def test_errors_name_the_output(place: int, value: Any, message: str) -> None:
    six = list(outputs()[2][1])
    six[place] = value
    with pytest.raises(ValueError, match=message):
        PPYoloELoss(2)(six, TARGETS)
    with pytest.raises(ValueError, match=r"targets: expected shape \(T, 6\) or \(B, M, 5\), got \(3, 4\)"):
        PPYoloELoss(2)(outputs()[2], torch.zeros(3, 4))
