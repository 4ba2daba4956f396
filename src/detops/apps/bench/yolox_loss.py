"""`detops bench yolox`: YOLOX's loss and gradient, with SimOTA, against the loop over images and batched PyTorch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detops import ops
from detops.apps.bench.runner import Case
from detops.criteria.yolox import YoloXDetectionLoss, YoloXFastDetectionLoss
from detops.diagnostics.syncs import count_syncs
from detops.geometry.boxes import boxes_at_cells
from detops.geometry.points import grid_cells
from detops.portable.simota_match import simota_match as portable_match
from detops.portable.yolox_loss import yolox_loss as portable_loss

BATCH, CLASSES, SIDE, STRIDES = 8, 80, 640, (8, 16, 32)
COUNTS = (("at most 20", 1, 20), ("at most 100", 1, 100), ("100", 100, 100), ("500", 500, 500))
LOOP_LIMIT = 100  # boxes; with more, the loop's dense costs take gigabytes
EPS = 1e-8


@dataclass
class Scene:
    """Raw maps (B, 1, H, W, 5 + C), and boxes as rows (T, 6) and padded, with what their cells are."""

    outputs: list[Tensor]
    targets: Tensor
    boxes: Tensor  # (B, N, 4) cxcywh
    labels: Tensor  # (B, N)
    sizes: Tensor
    cells: Tensor


def scene(least: int, most: int, device: str, batch: int = BATCH, classes: int = CLASSES, side: int = SIDE) -> Scene:
    """Seeded boxes, mostly small as COCO's are, and predictions near some of them, as a network in training has."""
    g = torch.Generator().manual_seed(most)
    shapes = [(side // s, side // s) for s in STRIDES]
    cells = grid_cells(shapes, STRIDES)
    sizes = torch.randint(least, most + 1, (batch,), generator=g)
    wh = 8 + 0.5 * side * torch.rand(batch, most, 2, generator=g) ** 2
    boxes = torch.cat([wh / 2 + (side - wh) * torch.rand(batch, most, 2, generator=g), wh], -1)
    labels = torch.randint(classes, (batch, most), generator=g)
    # Each cell says the box whose centre is nearest, more or less, if that is not far.
    away = (cells[None, :, None, :2] - boxes[:, None, :, :2]).square().sum(-1)  # (B, A, N)
    away = away.masked_fill(torch.arange(most) >= sizes[:, None, None], torch.inf)
    nearest = away.min(2)
    near = boxes.gather(1, nearest.indices[..., None].expand(-1, -1, 4))
    grid = cells[:, :2] / cells[:, 2:] - 0.5
    said = torch.cat([near[..., :2] / cells[:, 2:] - grid, (near[..., 2:] / cells[:, 2:]).log()], -1)
    fits = (nearest.values < (3 * cells[:, 2]) ** 2)[..., None]
    noise = torch.randn(batch, len(cells), 4, generator=g)
    raw = torch.cat(
        [torch.where(fits, said + 0.3 * noise, noise), torch.randn(batch, len(cells), 1 + classes, generator=g) - 4], -1
    )
    outputs = [
        part.unflatten(1, (1, *shape)).contiguous().to(device)
        for part, shape in zip(raw.split([h * w for h, w in shapes], 1), shapes, strict=True)
    ]
    exists = torch.arange(most) < sizes[:, None]
    image = torch.arange(batch)[:, None].expand(-1, most)
    targets = torch.cat([image[exists][:, None], labels[exists][:, None], boxes[exists]], 1)
    moved = (t.to(device) for t in (targets, boxes, labels, sizes, cells))
    return Scene(outputs, *moved)


def loop_match(
    scores: Tensor, objectness: Tensor, pred: Tensor, cells: Tensor, boxes: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One image as the original assigns it: candidates by a mask, dense costs, a top-k a box.

    Returns:
        (A,) bool cells with a box; for these, in order, the index of the box and the IoU.
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


def predictions(data: Scene) -> tuple[list[Tensor], Tensor, Tensor]:
    """Class logits of each level, objectness (B, A), and boxes (B, A, 4) cxcywh."""
    levels = [output.detach().flatten(1, 3) for output in data.outputs]
    raw = torch.cat([level[..., :5] for level in levels], 1)
    return [level[..., 5:] for level in levels], raw[..., 4], boxes_at_cells(raw, data.cells)


def op_alone(data: Scene, own: bool, match: Callable[..., tuple[Tensor, Tensor]], loss: Callable[..., Any]) -> Any:
    """Assignment, losses and gradient by two functions that are the ops, or mean the same."""
    levels = [output.detach().flatten(1, 3) for output in data.outputs]
    truth = (data.cells, data.boxes, data.labels)
    rule = (2.5, False, own, 10, 1.1 if own else 1.0, 3.0, 1.0)
    index, iou = match(*predictions(data), *truth, data.sizes, *rule)
    scale = 1 / (index >= 0).sum().clamp(min=1).expand(2)
    return loss(levels, *truth, index, iou, scale, None, 0, False, 5.0, 1.0, 1.0, True)


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Both rules with few and many boxes; `kernel` leaves out the module and autograd."""
    for name, least, most in COUNTS[: 1 if quick else None]:
        data = scene(least, most, device)
        leaves = [output.requires_grad_() for output in data.outputs]
        copies = [torch.empty_like(leaf) for leaf in leaves]

        def floor(leaves: list[Tensor] = leaves, copies: list[Tensor] = copies) -> object:
            return [copy.copy_(leaf.detach()) for leaf, copy in zip(leaves, copies, strict=True)]

        for rule, criterion in (
            ("exact", YoloXDetectionLoss(STRIDES, CLASSES)),
            ("fast", YoloXFastDetectionLoss(STRIDES, CLASSES)),
        ):
            own = rule == "fast"
            ours = partial(op_alone, data, own, ops.simota_match, ops.yolox_loss)
            if not kernel:
                ours = partial(_gradient, partial(criterion, leaves, data.targets), leaves)
            baselines = {"batched PyTorch": partial(op_alone, data, own, portable_match, portable_loss)}
            if not own and most <= LOOP_LIMIT:
                baselines["loop"] = partial(_gradient, partial(_loop, data), leaves)
            syncs = {"ours": count_syncs(ours), **{key: count_syncs(fn) for key, fn in baselines.items()}}
            yield Case(f"{rule} rule, {name} boxes", ours, floor, baselines, "copy of outputs", syncs)


def _gradient(loss: Callable[[], tuple[Tensor, ...]], leaves: list[Tensor]) -> object:
    return torch.autograd.grad(loss()[0], leaves)


def _loop(data: Scene) -> tuple[Tensor]:
    return (loop_loss(data.outputs, data.targets, data.cells),)
