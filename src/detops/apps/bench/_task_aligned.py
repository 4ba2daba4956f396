"""What the suites of the task-aligned family share: its scenes, and assignment and losses as heads in use have them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.assign.tal import RULES, match_aligned
from detops.criteria.task_aligned import TaskAlignedLoss
from detops.geometry.distances import boxes_to_distances, distances_to_boxes, distribution_to_distances
from detops.geometry.points import grid_points
from detops.ground_truth import GroundTruth
from detops.losses.iou import box_iou_loss

IMAGE, STRIDES, BINS = 640, (8, 16, 32), 17
CONFIGS = (  # images, classes, boxes per image
    (16, 80, 20),
    (8, 80, 100),
    (2, 80, 1000),
    (16, 365, 300),
)
RULE = RULES["ppyoloe"]


class Scene:
    """A batch of 640 x 640 pixels, 8,400 points: boxes, and the maps of a network that has begun to find them.

    Attributes:
        points: (A, 3).
        truth: Boxes and labels.
        scores: Class logits of each level, (B, C, H, W).
        preds: Box logits of each level, (B, 4 * 17, H, W).
    """

    def __init__(self, batch: int, classes: int, counts: int | list[int], device: str) -> None:
        g = torch.Generator().manual_seed(batch)
        numbers = [counts] * batch if isinstance(counts, int) else counts
        shapes = [(IMAGE // s, IMAGE // s) for s in STRIDES]
        self.points = grid_points(shapes, STRIDES, device)
        most = max(numbers)
        wh = 8 + IMAGE / 3 * torch.rand(batch, most, 2, generator=g) ** 3
        low = torch.rand(batch, most, 2, generator=g) * (IMAGE - wh)
        boxes, labels = torch.cat([low, low + wh], -1), torch.randint(classes, (batch, most), generator=g)
        sizes = None if isinstance(counts, int) else torch.tensor(numbers, device=device)
        self.truth = GroundTruth(boxes.to(device), labels.to(device), sizes)
        self.scores = [(torch.randn(batch, classes, *s, generator=g) - 4).to(device) for s in shapes]
        self.preds = [torch.randn(batch, 4 * BINS, *s, generator=g).to(device) for s in shapes]
        for preds in self.preds:  # distances of about two strides
            preds.unflatten(1, (4, BINS))[:, :, 2] += 4
        self.classes = classes

    def criterion(self) -> TaskAlignedLoss:
        """PP-YOLOE's losses."""
        return TaskAlignedLoss(self.classes, BINS - 1, STRIDES)

    def logits(self) -> list[Tensor]:
        """Class logits (B, A_l, C)."""
        return [level.detach().flatten(2).transpose(1, 2) for level in self.scores]

    def boxes(self) -> Tensor:
        """Predicted boxes (B, A, 4)."""
        return plain_boxes(self.preds, self.points).detach()

    def assign(self) -> Any:
        """Assign the boxes."""
        return match_aligned(self.logits(), self.boxes(), self.points, self.truth, RULE)


def plain_boxes(preds: list[Tensor], points: Tensor) -> Tensor:
    """Predicted boxes (B, A, 4) by PyTorch's softmax."""
    raw = torch.cat([level.flatten(2) for level in preds], 2).transpose(1, 2)
    return distances_to_boxes(points[:, :2], distribution_to_distances(raw, BINS - 1) * points[:, 2:])


def plain_assign(logits: Tensor, pred: Tensor, points: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """PP-YOLOE's assignment with tensors of images x boxes x points.

    Args:
        logits: (B, A, C).
        pred: (B, A, 4).
        points: (A, 3).
        boxes: (B, N, 4).
        labels: (B, N).

    Returns:
        (B, A) index of the box, -1 for none; (B, A) quality.
    """
    sides = torch.minimum(boxes[:, :, None, 2:], pred[:, None, :, 2:]) - torch.maximum(
        boxes[:, :, None, :2], pred[:, None, :, :2]
    )
    inter = sides.clamp(min=0).prod(-1)
    area, other = ((b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) for b in (boxes, pred))
    u = inter / (area[..., None] + other[:, None] - inter + 1e-9)  # (B, N, A)
    p = logits.sigmoid().transpose(1, 2).gather(1, labels[..., None].expand(-1, -1, logits.shape[1]))
    m = p * u.pow(6)
    xy = points[:, :2]
    inside = torch.cat([xy - boxes[:, :, None, :2], boxes[:, :, None, 2:] - xy], -1).amin(-1) > 1e-9
    best = (m * inside).topk(RULE.topk, dim=2).indices
    taken = torch.zeros_like(inside).scatter_(2, best, value=True) & inside & (m > 0)
    contested = taken.sum(1, keepdim=True) > 1
    highest = F.one_hot(u.argmax(1), u.shape[1]).transpose(1, 2).bool()
    taken = torch.where(contested, highest, taken)
    m, u = m * taken, u * taken
    quality = (m / (m.amax(2, keepdim=True) + 1e-9) * u.amax(2, keepdim=True)).amax(1)
    index = taken.to(torch.uint8).argmax(1)
    return index.where(taken.any(1), -1), quality


def loop_assign(logits: Tensor, pred: Tensor, points: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same image by image."""
    found = [
        plain_assign(logits[b : b + 1], pred[b : b + 1], points, boxes[b : b + 1], labels[b : b + 1])
        for b in range(len(boxes))
    ]
    return torch.cat([index for index, _ in found]), torch.cat([quality for _, quality in found])


def plain_loss(scene: Scene, assign: Any) -> Tensor:
    """PP-YOLOE's whole loss: predictions of all levels joined, dense class targets, box losses by boolean masks."""
    logits = torch.cat([level.flatten(2) for level in scene.scores], 2).transpose(1, 2)
    raw = torch.cat([level.flatten(2) for level in scene.preds], 2).transpose(1, 2)
    stride, boxes = scene.points[:, 2:], scene.truth.boxes
    distances = distribution_to_distances(raw, BINS - 1)
    with torch.no_grad():
        pred = distances_to_boxes(scene.points[:, :2], distances * stride)
        index, quality = assign(logits, pred, scene.points, boxes, scene.truth.labels)
        label = scene.truth.labels.gather(1, index.clamp(min=0)).where(index >= 0, scene.classes)
        hot = F.one_hot(label, scene.classes + 1)[..., :-1]
        target = hot * quality[..., None]
        divisor = target.sum().clamp(min=1)
    weight = 0.75 * logits.sigmoid().square() * (1 - hot) + target
    cls = (weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")).sum() / divisor
    positive = index >= 0
    point = (scene.points[:, :2] / stride).expand(len(boxes), -1, -1)[positive]
    gt = (
        boxes.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, 4))[positive]
        / stride.expand(len(boxes), -1, 1)[positive]
    )
    w = quality[positive]
    giou = box_iou_loss(distances_to_boxes(point, distances[positive]), gt, "giou", reduction="none")
    exact = boxes_to_distances(point, gt, BINS - 1, 0.01).reshape(-1)
    low, rows = exact.long(), raw[positive].reshape(-1, BINS)
    dfl = F.cross_entropy(rows, low, reduction="none") * (low + 1 - exact)
    dfl = dfl + F.cross_entropy(rows, low + 1, reduction="none") * (exact - low)
    box = 2.5 * (w * giou).sum() + 0.5 * (w * dfl.view(-1, 4).mean(1)).sum()
    total: Tensor = cls + box / divisor
    return total
