"""`detops bench gfl`: GFL's loss and gradient against the head as it is computed level by level and image by image."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.apps.bench import Case
from detops.apps.bench_atss import BATCH, CLASSES, COUNTS, IMAGE, STRIDES, loop
from detops.checks import count_syncs
from detops.criteria.gfl import GFLLoss
from detops.losses.distribution import distribution_to_distances
from detops.losses.iou import box_iou_loss
from detops.targets.atss import grid_anchors
from detops.targets.distances import boxes_to_distances, distances_to_boxes

BINS = 17


def plain_loss(
    cls_scores: list[Tensor], bbox_preds: list[Tensor], boxes: Tensor, labels: Tensor, anchors: Tensor, sizes: list[int]
) -> Tensor:
    """Assignment by a loop over images, then the losses of each level by masks, plain PyTorch throughout."""
    found = loop(anchors, sizes, boxes, labels)
    index, label = (torch.stack([pair[i] for pair in found]) for i in (0, 1))
    count = sum(max(int((row >= 0).sum().item()), 1) for row in index)
    parts, weights, start = [], [], 0
    for scores, preds, stride, size in zip(cls_scores, bbox_preds, STRIDES, sizes, strict=True):
        here = slice(start, start + size)
        x = scores.permute(0, 2, 3, 1).reshape(-1, CLASSES)
        raw = preds.permute(0, 2, 3, 1).reshape(-1, 4 * BINS)
        positive = index[:, here].reshape(-1) >= 0
        target = torch.zeros_like(x)
        point = ((anchors[here, :2] + anchors[here, 2:]) / 2).repeat(len(boxes), 1)[positive] / stride
        image = torch.arange(len(boxes), device=x.device).repeat_interleave(size)[positive]
        gt = boxes[image, index[:, here].reshape(-1)[positive]] / stride
        weight = x.detach().sigmoid().amax(1)[positive]
        pred = distances_to_boxes(point, distribution_to_distances(raw[positive], BINS - 1))
        rows = positive.nonzero()[:, 0]
        target[rows, label[:, here].reshape(-1)[positive]] = 1 - box_iou_loss(pred.detach(), gt, reduction="none")
        entropy = F.binary_cross_entropy_with_logits(x, target, reduction="none")
        giou = box_iou_loss(pred, gt, "giou", reduction="none")
        exact = boxes_to_distances(point, gt, BINS - 1).reshape(-1)
        low = exact.long()
        logits = raw[positive].reshape(-1, BINS)
        dfl = F.cross_entropy(logits, low, reduction="none") * (low + 1 - exact)
        dfl = dfl + F.cross_entropy(logits, low + 1, reduction="none") * (exact - low)
        box = 2 * (weight * giou).sum() + 0.25 / 4 * (weight[:, None] * dfl.reshape(-1, 4)).sum()
        parts.append((((target - x.sigmoid()).abs() ** 2 * entropy).sum() / count, box))
        weights.append(weight.sum())
        start += size
    divisor = torch.stack(weights).sum().clamp(min=1).item()
    return torch.stack([quality + box / divisor for quality, box in parts]).sum()


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Images of 800 x 1344 pixels, 80 classes, with few and many boxes."""
    shapes = [(-(-IMAGE[0] // s), -(-IMAGE[1] // s)) for s in STRIDES]
    anchors, sizes = grid_anchors(shapes, STRIDES, device=device), [h * w for h, w in shapes]
    criterion = GFLLoss(CLASSES, strides=STRIDES)
    for count in COUNTS[: 1 if quick else None]:
        g = torch.Generator().manual_seed(count)
        wh = 16 + 500 * torch.rand(BATCH, count, 2, generator=g) ** 2
        low = torch.rand(BATCH, count, 2, generator=g) * (torch.tensor([IMAGE[1], IMAGE[0]]) - wh)
        boxes = torch.cat([low, low + wh], -1).to(device)
        labels = torch.randint(CLASSES, (BATCH, count), generator=g).to(device)
        scores = [(torch.randn(BATCH, CLASSES, *s, generator=g) - 4).to(device).requires_grad_() for s in shapes]
        preds = [torch.randn(BATCH, 4 * BINS, *s, generator=g).to(device).requires_grad_() for s in shapes]
        ours = partial(_gradient, partial(_ours, criterion, scores, preds, boxes, labels), [*scores, *preds])
        plain = partial(plain_loss, scores, preds, boxes, labels, anchors, sizes)
        loop_: Callable[[], object] = partial(_gradient, plain, [*scores, *preds])
        syncs = {"ours": count_syncs(ours), "loop": count_syncs(loop_)}
        yield Case(
            f"{BATCH} images, {count} boxes", ours, partial(_copy, scores), {"loop": loop_}, "copy of scores", syncs
        )


def _ours(criterion: GFLLoss, scores: list[Tensor], preds: list[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
    losses = criterion(scores, preds, boxes, labels)
    return torch.stack([value for value in losses.values() if isinstance(value, Tensor)]).sum()


def _gradient(loss: Callable[[], Tensor], leaves: list[Tensor]) -> object:
    return torch.autograd.grad(loss(), leaves)


def _copy(scores: list[Tensor]) -> object:
    return [score.detach().clone() for score in scores]
