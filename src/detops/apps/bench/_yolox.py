"""Shared by YOLOX's suites: its scene, and the assignment and the loss as the original computes them."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.geometry.boxes import boxes_at_points, to_xyxy
from detops.geometry.points import grid_points
from detops.ground_truth import GroundTruth

BATCH, CLASSES, SIDE, STRIDES = 8, 80, 640, (8, 16, 32)
COUNTS = (("at most 20", 1, 20), ("at most 100", 1, 100), ("100", 100, 100), ("500", 500, 500))
LOOP_LIMIT = 100  # boxes; with more, the loop's dense costs take gigabytes
EPS = 1e-8


@dataclass
class Scene:
    """A batch of images of 640 x 640 pixels.

    Attributes:
        outputs: Raw maps of the network, (B, 1, H, W, 5 + C) per level.
        targets: The boxes as rows (T, 6): image, class, cxcywh.
        boxes: The same padded, (B, N, 4) cxcywh.
        labels: (B, N).
        sizes: How many boxes each image has, (B,).
        truth: Boxes and labels as the criterion takes them.
        cells: x, y and stride of each cell, (A, 3).
    """

    outputs: list[Tensor]
    targets: Tensor
    boxes: Tensor
    labels: Tensor
    sizes: Tensor
    truth: GroundTruth
    cells: Tensor


def scene(least: int, most: int, device: str) -> Scene:
    """Make seeded boxes, mostly small as in COCO, and predictions near some of them, as in training."""
    g = torch.Generator().manual_seed(most)
    shapes = [(SIDE // s, SIDE // s) for s in STRIDES]
    cells = grid_points(shapes, STRIDES)
    sizes = torch.randint(least, most + 1, (BATCH,), generator=g)
    wh = 8 + 0.5 * SIDE * torch.rand(BATCH, most, 2, generator=g) ** 2
    boxes = torch.cat([wh / 2 + (SIDE - wh) * torch.rand(BATCH, most, 2, generator=g), wh], -1)
    labels = torch.randint(CLASSES, (BATCH, most), generator=g)
    # Each cell predicts the box whose centre is nearest, with some error, if that is not far.
    away = (cells[None, :, None, :2] - boxes[:, None, :, :2]).square().sum(-1)  # (B, A, N)
    away = away.masked_fill(torch.arange(most) >= sizes[:, None, None], torch.inf)
    nearest = away.min(2)
    near = boxes.gather(1, nearest.indices[..., None].expand(-1, -1, 4))
    grid = cells[:, :2] / cells[:, 2:] - 0.5
    predicted = torch.cat([near[..., :2] / cells[:, 2:] - grid, (near[..., 2:] / cells[:, 2:]).log()], -1)
    fits = (nearest.values < (3 * cells[:, 2]) ** 2)[..., None]
    noise = torch.randn(BATCH, len(cells), 4, generator=g)
    raw = torch.cat(
        [
            torch.where(fits, predicted + 0.3 * noise, noise),
            torch.randn(BATCH, len(cells), 1 + CLASSES, generator=g) - 4,
        ],
        -1,
    )
    outputs = [
        part.unflatten(1, (1, *shape)).contiguous().to(device)
        for part, shape in zip(raw.split([h * w for h, w in shapes], 1), shapes, strict=True)
    ]
    exists = torch.arange(most) < sizes[:, None]
    image = torch.arange(BATCH)[:, None].expand(-1, most)
    targets = torch.cat([image[exists][:, None], labels[exists][:, None], boxes[exists]], 1)
    targets, boxes, labels, sizes = (t.to(device) for t in (targets, boxes, labels, sizes))
    truth = GroundTruth(to_xyxy(boxes), labels, sizes)
    return Scene(outputs, targets, boxes, labels, sizes, truth, cells.to(device))


def loop_match(
    scores: Tensor, objectness: Tensor, pred: Tensor, cells: Tensor, boxes: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One image as the original assigns it: candidates by a mask, dense costs, one top-k per box.

    Returns:
        Which cells have a box (A,); and for these, in order, the index of the box and the IoU.
    """
    x, y, side = cells[:, 0], cells[:, 1], cells[:, 2]
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    in_box = (x > low[:, :1]) & (x < high[:, :1]) & (y > low[:, 1:]) & (y < high[:, 1:])  # (n, A)
    near = ((x - boxes[:, :1]).abs() < 2.5 * side) & ((y - boxes[:, 1:2]).abs() < 2.5 * side)
    candidate = in_box.any(0) | near.any(0)
    both = (in_box & near)[:, candidate]
    pred, scores, objectness = pred[candidate], scores[candidate], objectness[candidate]
    top_left = torch.maximum(low[:, None], pred[:, :2] - pred[:, 2:] / 2)
    bottom_right = torch.minimum(high[:, None], pred[:, :2] + pred[:, 2:] / 2)
    inter = (bottom_right - top_left).clamp(min=0).prod(2)
    iou = inter / (boxes[:, 2:].prod(1)[:, None] + pred[:, 2:].prod(1) - inter)
    probability = (scores.sigmoid() * objectness.sigmoid()[:, None]).sqrt()  # (a, C)
    wanted = F.one_hot(labels, scores.shape[1]).to(scores.dtype)
    shape = (len(boxes), *probability.shape)
    entropy = F.binary_cross_entropy(
        probability[None].expand(shape), wanted[:, None].expand(shape).contiguous(), reduction="none"
    )
    cost = entropy.sum(2) - 3 * (iou + EPS).log() + 1e5 * ~both
    picked = torch.zeros_like(cost)
    ks = iou.topk(min(10, iou.shape[1]), dim=1).values.sum(1).int().clamp(min=1)
    for n in range(len(boxes)):
        _, place = cost[n].topk(int(ks[n].item()), largest=False)
        picked[n, place] = 1
    contested = picked.sum(0) > 1
    if contested.sum() > 0:
        winner = cost[:, contested].argmin(0)
        picked[:, contested] = 0
        picked[winner, contested] = 1
    taken = picked.sum(0) > 0
    positive = candidate.clone()
    positive[candidate] = taken
    box = picked[:, taken].argmax(0)
    return positive, box, (picked * iou).sum(0)[taken]


def loop_loss(outputs: list[Tensor], targets: Tensor, cells: Tensor, use_l1: bool = False) -> Tensor:
    """The loss as the original computes it: image by image, the matched cells by masks, plain PyTorch throughout."""
    rows = torch.cat([output.flatten(1, 3) for output in outputs], 1)
    side = cells[:, 2:]
    grid = cells[:, :2] / side - 0.5
    pred = torch.cat([(rows[..., :2] + grid) * side, rows[..., 2:4].exp() * side], -1)
    masks, boxes, classes, exact = [], [], [], []
    for b in range(len(rows)):
        own = targets[targets[:, 0] == b]
        if len(own) == 0:
            masks.append(torch.zeros(len(cells), dtype=torch.bool, device=rows.device))
            continue
        gt, label = own[:, 2:], own[:, 1].long()
        with torch.no_grad():
            positive, box, iou = loop_match(rows[b, :, 5:], rows[b, :, 4], pred[b], cells, gt, label)
        masks.append(positive)
        boxes.append(gt[box])
        classes.append(F.one_hot(label[box], rows.shape[2] - 5) * iou[:, None])
        place, width = grid[positive], side[positive]
        exact.append(torch.cat([gt[box][:, :2] / width - place, (gt[box][:, 2:] / width + EPS).log()], 1))
    mask = torch.stack(masks)
    count = mask.sum().clamp(min=1)
    loss = F.binary_cross_entropy_with_logits(rows[..., 4], mask.to(rows.dtype), reduction="sum") / count
    if not boxes:
        return loss
    found, target = pred[mask], torch.cat(boxes)
    low = torch.maximum(found[:, :2] - found[:, 2:] / 2, target[:, :2] - target[:, 2:] / 2)
    high = torch.minimum(found[:, :2] + found[:, 2:] / 2, target[:, :2] + target[:, 2:] / 2)
    inter = (high - low).clamp(min=0).prod(1)
    overlap = inter / (found[:, 2:].prod(1) + target[:, 2:].prod(1) - inter + 1e-16)
    loss = loss + 5 * (1 - overlap**2).sum() / count
    loss = loss + F.binary_cross_entropy_with_logits(rows[mask][:, 5:], torch.cat(classes), reduction="sum") / count
    if use_l1:
        loss = loss + (rows[mask][:, :4] - torch.cat(exact)).abs().sum() / count
    return loss


def match_arguments(data: Scene, own: bool = False) -> dict[str, Any]:
    """Return the arguments of the op `simota_match`; `own` selects the rule of super-gradients' fast loss."""
    return {
        "outputs": [output.detach().flatten(1, 3) for output in data.outputs],
        "objectness": None,
        "pred_boxes": None,
        "cells": data.cells,
        "gt_boxes": data.boxes,
        "gt_labels": data.labels,
        "sample_sizes": data.sizes,
        "radius": 2.5,
        "center_only": False,
        "own_candidates": own,
        "topk": 10,
        "k_scale": 1.1 if own else 1.0,
        "iou_weight": 3.0,
        "class_weight": 1.0,
    }


def predictions(data: Scene) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return each level's class logits, and objectness and boxes (cxcywh) of all cells."""
    levels = [output.detach().flatten(1, 3) for output in data.outputs]
    raw = torch.cat([level[..., :5] for level in levels], 1)
    return [level[..., 5:] for level in levels], raw[..., 4], boxes_at_points(raw, data.cells)


def loss_arguments(data: Scene, index: Tensor, iou: Tensor) -> dict[str, Any]:
    """Return the arguments of the op `yolox_loss`, for the boxes that `simota_match` assigned."""
    return {
        "outputs": [output.detach().flatten(1, 3) for output in data.outputs],
        "cells": data.cells,
        "gt_boxes": data.boxes,
        "gt_labels": data.labels,
        "index": index,
        "iou": iou,
        "scale": 1 / (index >= 0).sum().clamp(min=1).expand(2),
        "class_pos_weight": None,
        "kind": 0,
        "use_l1": False,
        "iou_weight": 5.0,
        "obj_weight": 1.0,
        "cls_weight": 1.0,
        "with_gradient": True,
    }
