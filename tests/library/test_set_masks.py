"""SetLoss with masks: they take part in matching, and matched queries are trained towards them."""

from typing import Any

import pytest
import torch
from set_scenes import set_scene
from torch import Tensor

from detops import MaskRule, SetLoss, SetMasks, hungarian_match, point_mask_cost, point_mask_loss

Scene = tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor, Tensor]


def scene(seed: int, layers: int = 2, queries: int = 6) -> Scene:
    """Logits, boxes, targets, mask logits (L, B, Q, 8, 10) and masks (B, N, 32, 40)."""
    found = set_scene(seed, sets=layers, queries=queries)
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(layers, 2, queries, 8, 10, generator=g)
    masks = torch.rand(2, 3, 32, 40, generator=g) > 0.5
    return found["class_logits"], found["pred_boxes"], (found["gt_boxes"], found["gt_labels"]), maps, masks


def rule(**options: Any) -> MaskRule:
    """Points that are drawn anew from one seed."""
    return MaskRule(generator=torch.Generator().manual_seed(5), **options)


@pytest.mark.parametrize("groups", [1, 2])
def test_losses_are_those_of_the_queries_that_the_costs_choose(groups: int) -> None:
    logits, boxes, targets, maps, masks = scene(1)
    criterion = SetLoss(4, kind="ia_bce", groups=groups, mask_rule=rule(num_points=30))
    found = criterion(logits, boxes, targets, masks=SetMasks(maps, masks))
    g = torch.Generator().manual_seed(5)
    points = torch.rand(30, 2, generator=g)
    costs = [point_mask_cost(layer, masks, points) for layer in maps]
    extra = torch.stack([5 * bce + 5 * dice for bce, dice in costs])
    query = hungarian_match(logits, boxes, targets, groups=groups, extra_cost=extra)
    sums = torch.zeros(2)
    for layer in range(2):
        index = query[layer].transpose(0, 1).flatten(1)
        losses = point_mask_loss(maps[layer], masks.repeat(1, groups, 1, 1), index, num_points=30, generator=g)
        sums += torch.stack([*losses.values()])
    torch.testing.assert_close(torch.stack([found["loss_mask_bce"], found["loss_mask_dice"]]), 5 * sums)


def test_masks_decide_where_boxes_and_classes_do_not() -> None:
    logits, boxes, (truth, labels), maps, masks = scene(2, layers=1)
    logits, boxes = torch.zeros_like(logits), torch.full_like(boxes, 0.5)
    wanted = torch.tensor([[4, 0, 5], [1, 3, 2]])
    for b in range(2):
        for n in range(3):
            block = torch.zeros(8, 10, dtype=torch.bool)
            block[2 * n : 2 * n + 2] = True
            masks[b, n] = block.repeat_interleave(4, 0).repeat_interleave(4, 1)
            maps[0, b, wanted[b, n]] = 20.0 * block - 10
    bce = []
    for cost in (5.0, 0.0):
        criterion = SetLoss(4, mask_rule=rule(num_points=200, bce_cost=cost, dice_cost=cost))
        found = criterion(logits, boxes, (truth, labels), masks=SetMasks(maps[0], masks))
        bce.append(found["loss_mask_bce"])
    assert bce[0] < 1  # of points at edges
    assert bce[1] > 5


def test_gradients_reach_the_maps_of_matched_queries_alone() -> None:
    logits, boxes, targets, maps, masks = scene(3)
    layers = [layer.clone().requires_grad_() for layer in maps]
    criterion = SetLoss(4, mask_rule=rule())
    found = criterion(logits, boxes, targets, masks=SetMasks(layers, [*masks]))
    (found["loss_mask_bce"] + found["loss_mask_dice"]).backward()
    for layer in layers:
        assert layer.grad is not None
        assert layer.grad.flatten(2).any(2).sum(1).tolist() == [3, 3]
    stacked = maps.clone().requires_grad_()
    criterion = SetLoss(4, mask_rule=rule())
    again = criterion(logits, boxes, targets, masks=SetMasks(stacked, masks))
    torch.testing.assert_close(again, found)
    (again["loss_mask_bce"] + again["loss_mask_dice"]).backward()
    torch.testing.assert_close(stacked.grad, torch.stack([layer.grad for layer in layers]))  # type: ignore[misc]


def test_the_other_losses_are_those_without_masks_where_masks_weigh_nothing() -> None:
    logits, boxes, targets, maps, masks = scene(4)
    criterion = SetLoss(4, mask_rule=rule(bce_cost=0.0, dice_cost=0.0))
    found = criterion(logits, boxes, targets, masks=SetMasks(maps, masks))
    plain = criterion(logits, boxes, targets)
    assert list(plain) == ["loss_cls", "loss_bbox", "loss_giou"]
    torch.testing.assert_close({name: found[name] for name in plain}, plain)
    assert list(found) == [*plain, "loss_mask_bce", "loss_mask_dice"]


def test_errors() -> None:
    logits, boxes, targets, maps, masks = scene(5)
    criterion = SetLoss(4)
    for given, message in (
        (maps[:1], "mask_logits: expected 2 layers"),
        (maps[:, :, :4], r"mask_logits: expected shape \(2, 6, h, w\)"),
        (maps.long(), "mask_logits: expected a floating"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            criterion(logits, boxes, targets, masks=SetMasks(given, masks))
    with pytest.raises(ValueError, match="masks: expected"):
        criterion(logits, boxes, targets, masks=SetMasks(maps, masks[:, :2]))
