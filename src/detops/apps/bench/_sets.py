"""What the suites of the DETR family share: its outputs and boxes, and the loop over layers and images in use today."""

import importlib
import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CLASSES = 80
HAS_SCIPY = all(importlib.util.find_spec(name) is not None for name in ("numpy", "scipy"))
Indices = list[tuple[Tensor, Tensor]]  # of each image: queries, boxes


class Scene:
    """Outputs of all layers, and boxes of 1 to `boxes` per image."""

    def __init__(
        self, layers: int, batch: int, queries: int, boxes: int, device: str, classes: int | None = None
    ) -> None:
        classes = CLASSES if classes is None else classes
        g = torch.Generator().manual_seed(0)
        self.logits = (torch.randn(layers, batch, queries, classes, generator=g) * 1.5 - 3).to(device)
        self.pred = _boxes(g, layers, batch, queries).to(device)
        self.boxes = _boxes(g, batch, boxes).to(device)
        self.labels = torch.randint(0, classes, (batch, boxes), generator=g).to(device)
        sizes = torch.randint(max(1, boxes // 2), boxes + 1, (batch,), generator=g).tolist()
        self.sizes = torch.tensor(sizes, device=device)
        self.targets = [
            {"boxes": self.boxes[b, :size], "class_labels": self.labels[b, :size]} for b, size in enumerate(sizes)
        ]


def _boxes(g: torch.Generator, *shape: int) -> Tensor:
    return torch.cat([torch.rand(*shape, 2, generator=g), 0.02 + 0.4 * torch.rand(*shape, 2, generator=g)], -1)


def loop_match(scene: Scene, groups: int = 1) -> list[Indices]:
    """Layer by layer: the cost of all queries and all boxes of the batch, copied to the host, solved image by image."""
    return [match_layer(*layer, scene.targets, groups) for layer in zip(scene.logits, scene.pred, strict=True)]


@torch.no_grad()
def match_layer(logits: Tensor, pred: Tensor, targets: Sequence[dict[str, Tensor]], groups: int = 1) -> Indices:
    """The pairs of one layer, by SciPy."""
    linear_sum_assignment = importlib.import_module("scipy.optimize").linear_sum_assignment
    batch, queries = pred.shape[:2]
    labels, boxes = (torch.cat([target[name] for target in targets]) for name in ("class_labels", "boxes"))
    p = logits.flatten(0, 1).sigmoid()[:, labels]
    positive = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
    l1 = torch.cdist(pred.flatten(0, 1), boxes, p=1)
    giou = all_giou(pred.flatten(0, 1), boxes)
    cost = (5 * l1 + 2 * (positive - negative) - 2 * giou).view(batch, queries, -1).cpu()
    found: Indices = []
    for b, part in enumerate(cost.split([len(target["boxes"]) for target in targets], -1)):
        pairs = [linear_sum_assignment(group) for group in part[b].chunk(groups)]
        each = queries // groups
        rows = torch.cat([torch.as_tensor(q) + g * each for g, (q, _) in enumerate(pairs)])
        found.append((rows, torch.cat([torch.as_tensor(n) for _, n in pairs])))
    return found


def all_giou(first: Tensor, second: Tensor) -> Tensor:
    """(N, M) GIoU of boxes (N, 4) and (M, 4), cxcywh."""
    low, high = first[:, None, :2] - first[:, None, 2:] / 2, first[:, None, :2] + first[:, None, 2:] / 2
    other_low, other_high = second[:, :2] - second[:, 2:] / 2, second[:, :2] + second[:, 2:] / 2
    inter = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(-1)
    union = first[:, 2:].prod(-1)[:, None] + second[:, 2:].prod(-1) - inter
    hull = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).prod(-1)
    return inter / union - (hull - union) / hull


def loop_loss(scene: Scene, matched: list[Indices] | None = None) -> Tensor:
    """RT-DETR's losses layer by layer: one-hot targets, and the GIoU of all pairs with all pairs of the batch."""
    count = max(int(sum(len(target["boxes"]) for target in scene.targets)), 1)
    total = scene.logits.new_zeros(())
    for layer, (logits, pred) in enumerate(zip(scene.logits, scene.pred, strict=True)):
        indices = match_layer(logits, pred, scene.targets) if matched is None else matched[layer]
        images = torch.cat([torch.full_like(rows, b) for b, (rows, _) in enumerate(indices)])
        rows = torch.cat([rows for rows, _ in indices])
        boxes, labels = (
            torch.cat([target[name][n] for target, (_, n) in zip(scene.targets, indices, strict=True)])
            for name in ("boxes", "class_labels")
        )
        chosen = pred[images, rows]
        giou = all_giou(chosen, boxes).diag()
        quality = _iou(chosen.detach(), boxes).diag()
        classes = torch.full(logits.shape[:2], logits.shape[2], dtype=torch.int64, device=logits.device)
        classes[images, rows] = labels
        one_hot = F.one_hot(classes, logits.shape[2] + 1)[..., :-1]
        score = torch.zeros_like(classes, dtype=logits.dtype)
        score[images, rows] = quality.to(logits.dtype)
        target = score[..., None] * one_hot
        weight = 0.75 * logits.sigmoid().detach() ** 2 * (1 - one_hot) + target
        total = total + F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / count
        total = total + 5 * F.l1_loss(chosen, boxes, reduction="sum") / count + 2 * (1 - giou).sum() / count
    return total


def _iou(first: Tensor, second: Tensor) -> Tensor:
    low, high = first[:, None, :2] - first[:, None, 2:] / 2, first[:, None, :2] + first[:, None, 2:] / 2
    other_low, other_high = second[:, :2] - second[:, 2:] / 2, second[:, :2] + second[:, 2:] / 2
    inter = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(-1)
    return inter / (first[:, 2:].prod(-1)[:, None] + second[:, 2:].prod(-1) - inter)
