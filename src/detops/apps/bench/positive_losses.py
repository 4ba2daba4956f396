"""`detops bench gfl`: GFL's and LD's losses and gradients against the head, level by level and image by image.

`detops bench gfl_boxes`: the gradient of the box logits alone.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detops import ops
from detops.apps.bench.atss_match import BATCH, CLASSES, COUNTS, IMAGE, STRIDES, loop
from detops.apps.bench.runner import Case
from detops.assign.atss import match
from detops.criteria.gfl import GFLLoss
from detops.criteria.ld import LDLoss
from detops.diagnostics.syncs import count_syncs
from detops.geometry.distances import boxes_to_distances, distances_to_boxes, distribution_to_distances
from detops.geometry.points import grid_anchors
from detops.losses.iou import box_iou_loss
from detops.portable.positive_losses import positive_losses_ as portable_positives
from detops.portable.positive_losses_backward import positive_losses_backward as portable_gradient

BINS = 17


def plain_loss(
    cls_scores: list[Tensor], bbox_preds: list[Tensor], soft: list[Tensor] | None, boxes: Tensor, labels: Tensor,
    anchors: Tensor, sizes: list[int],
) -> Tensor:  # fmt: skip
    """Assignment by a loop over images, then the losses of each level by masks, plain PyTorch throughout."""
    found = loop(anchors, sizes, boxes, labels)
    index, label = (torch.stack([pair[i] for pair in found]) for i in (0, 1))
    count = sum(max(int((row >= 0).sum().item()), 1) for row in index)
    parts, weights, start = [], [], 0
    levels = zip(cls_scores, bbox_preds, soft or bbox_preds, STRIDES, sizes, strict=True)
    for scores, preds, teacher, stride, size in levels:
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
        if soft is not None:
            taught = teacher.permute(0, 2, 3, 1).reshape(-1, 4 * BINS)[positive].reshape(-1, BINS)
            master = (taught / 10).softmax(1)
            kd = F.kl_div((logits / 10).log_softmax(1), master, reduction="none").mean(1) * 100
            box = box + 0.25 / 4 * (weight[:, None] * kd.reshape(-1, 4)).sum()
        parts.append((((target - x.sigmoid()).abs() ** 2 * entropy).sum() / count, box))
        weights.append(weight.sum())
        start += size
    divisor = torch.stack(weights).sum().clamp(min=1).item()
    return torch.stack([quality + box / divisor for quality, box in parts]).sum()


class Scene:
    """Maps of images of 800 x 1344 pixels, 80 classes, and boxes."""

    def __init__(self, count: int, device: str) -> None:
        g = torch.Generator().manual_seed(count)
        shapes = [(-(-IMAGE[0] // s), -(-IMAGE[1] // s)) for s in STRIDES]
        self.anchors, self.sizes = grid_anchors(shapes, STRIDES, device=device), [h * w for h, w in shapes]
        wh = 16 + 500 * torch.rand(BATCH, count, 2, generator=g) ** 2
        low = torch.rand(BATCH, count, 2, generator=g) * (torch.tensor([IMAGE[1], IMAGE[0]]) - wh)
        self.boxes = torch.cat([low, low + wh], -1).to(device)
        self.labels = torch.randint(CLASSES, (BATCH, count), generator=g).to(device)
        self.scores = [(torch.randn(BATCH, CLASSES, *s, generator=g) - 4).to(device) for s in shapes]
        self.preds, self.soft = (
            [torch.randn(BATCH, 4 * BINS, *s, generator=g).to(device) for s in shapes] for _ in range(2)
        )

    def matched(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cells, boxes, labels and the box of each anchor, as the ops take them."""
        side = (self.anchors[:, 2:3] - self.anchors[:, :1]) / 8
        cells = torch.cat([(self.anchors[:, :2] + self.anchors[:, 2:]) / 2, side], 1)
        found = match(self.anchors, self.sizes, self.boxes, self.labels, CLASSES, 9, None)
        return cells, self.boxes, self.labels, found.index


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Few and many boxes, without and with a teacher; `kernel` is the op at the positives alone."""
    for count in COUNTS[: 1 if quick else None]:
        scene = Scene(count, device)
        leaves = [level.requires_grad_() for level in (*scene.scores, *scene.preds)]
        floor = partial(_copy, scene.scores)
        for name, soft in (("GFL", None), ("LD", scene.soft)):
            if kernel:
                gradients = [torch.zeros_like(level) for level in scene.scores]
                arguments = (gradients, scene.scores, scene.preds, soft or [], *scene.matched(), None,
                             torch.ones(1, device=device), 2.0, 10.0, 45 * count)  # fmt: skip
                ours: Callable[[], object] = partial(_quietly, ops.positive_losses_, *arguments)
                sides = {"batched PyTorch": partial(_quietly, portable_positives, *arguments)}
            else:
                ours = partial(_gradient, partial(_ours, scene, soft), leaves)
                plain = partial(plain_loss, scene.scores, scene.preds, soft, scene.boxes, scene.labels, scene.anchors,
                                scene.sizes)  # fmt: skip
                sides = {"loop": partial(_gradient, plain, leaves)}
            syncs = {"ours": count_syncs(ours), **{key: count_syncs(side) for key, side in sides.items()}}
            yield Case(f"{name}, {count} boxes", ours, floor, sides, "copy of scores", syncs)


def box_cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """The op that backward is for the box logits, against filling as much with zeros; `kernel` changes nothing."""
    for count in COUNTS[: 1 if quick else None]:
        scene = Scene(count, device)
        cells, boxes, _, index = scene.matched()
        weight, factors = (index >= 0).to(torch.float32), torch.ones(4, len(STRIDES), device=device)
        for name, soft in (("GFL", []), ("LD", scene.soft)):
            arguments = (scene.preds, soft, cells, boxes, index, weight, None, factors, 10.0, 45 * count)
            ours, side = partial(ops.positive_losses_backward, *arguments), partial(portable_gradient, *arguments)
            syncs = {"ours": count_syncs(ours), "batched PyTorch": count_syncs(side)}
            floor = partial(_zeros, scene.preds)
            yield Case(f"{name}, {count} boxes", ours, floor, {"batched PyTorch": side}, "zero fill", syncs)


def _ours(scene: Scene, soft: list[Tensor] | None) -> Tensor:
    criterion = _CRITERIA[soft is not None]
    teacher = () if soft is None else (soft,)
    losses = criterion(scene.scores, scene.preds, scene.boxes, scene.labels, *teacher)
    return torch.stack(list(losses.values())).sum()


_CRITERIA = (GFLLoss(CLASSES, strides=STRIDES), LDLoss(CLASSES, strides=STRIDES, normalize_ld=True))


def _quietly(op: Callable[..., object], *arguments: Any) -> object:
    with torch.no_grad():
        return op(*arguments)


def _gradient(loss: Callable[[], Tensor], leaves: list[Tensor]) -> object:
    return torch.autograd.grad(loss(), leaves)


def _copy(levels: list[Tensor]) -> object:
    return [level.detach().clone() for level in levels]


def _zeros(levels: list[Tensor]) -> object:
    return [torch.zeros_like(level) for level in levels]
