"""Shared by GFL's suites: its scene, and the assignment and the losses as a head in use today computes them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.assign.atss import AnchorMatch, AtssRule, match_anchors
from detops.geometry.distances import boxes_to_distances, distances_to_boxes, distribution_to_distances
from detops.geometry.points import grid_anchors
from detops.ground_truth import GroundTruth
from detops.losses.iou import box_iou_loss

BATCH, CLASSES, IMAGE, STRIDES, BINS = 4, 80, (800, 1344), (8, 16, 32, 64, 128), 17
COUNTS = (20, 100)  # boxes per image


class Scene:
    """A batch of images of 800 x 1344 pixels: anchors, boxes and labels, and the maps of a network and its teacher.

    Attributes:
        anchors: (A, 4) xyxy in pixels.
        sizes: Number of anchors per level.
        boxes: (B, N, 4) xyxy in pixels.
        labels: (B, N).
        truth: Boxes and labels as criteria take them.
        scores: Class logits of each level, (B, C, H, W).
        preds: Box logits of each level, (B, 4 * 17, H, W).
        soft: The box logits of a teacher.
    """

    def __init__(self, count: int, device: str) -> None:
        g = torch.Generator().manual_seed(count)
        shapes = [(-(-IMAGE[0] // s), -(-IMAGE[1] // s)) for s in STRIDES]
        self.anchors, self.sizes = grid_anchors(shapes, STRIDES, device=device), [h * w for h, w in shapes]
        wh = 16 + 500 * torch.rand(BATCH, count, 2, generator=g) ** 2
        low = torch.rand(BATCH, count, 2, generator=g) * (torch.tensor([IMAGE[1], IMAGE[0]]) - wh)
        self.boxes = torch.cat([low, low + wh], -1).to(device)
        self.labels = torch.randint(CLASSES, (BATCH, count), generator=g).to(device)
        self.truth = GroundTruth(self.boxes, self.labels)
        self.scores = [(torch.randn(BATCH, CLASSES, *s, generator=g) - 4).to(device) for s in shapes]
        self.preds, self.soft = (
            [torch.randn(BATCH, 4 * BINS, *s, generator=g).to(device) for s in shapes] for _ in range(2)
        )

    def match(self) -> AnchorMatch:
        """Assign the boxes."""
        return match_anchors(self.anchors, self.sizes, self.truth, CLASSES, AtssRule(), None)

    def points(self) -> Tensor:
        """Return centre and stride of each anchor, (A, 3)."""
        stride = (self.anchors[:, 2:3] - self.anchors[:, :1]) / 8
        return torch.cat([(self.anchors[:, :2] + self.anchors[:, 2:]) / 2, stride], 1)


def loop_match(anchors: Tensor, sizes: list[int], boxes: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Assign image by image, with all pairs of a box and an anchor; thresholds box by box."""
    center, found = (anchors[:, :2] + anchors[:, 2:]) / 2, []
    for image, label in zip(boxes, labels, strict=True):
        sides = torch.minimum(anchors[:, None, 2:], image[:, 2:]) - torch.maximum(anchors[:, None, :2], image[:, :2])
        inter = sides.clamp(min=0).prod(2)
        areas = (anchors[:, 2:] - anchors[:, :2]).prod(1)[:, None] + (image[:, 2:] - image[:, :2]).prod(1)
        iou = inter / (areas - inter)  # (A, n)
        distance = (center[:, None] - (image[:, :2] + image[:, 2:]) / 2).square().sum(2).sqrt()
        chosen, start = [], 0
        for size in sizes:
            level = distance[start : start + size]
            chosen.append(level.topk(min(9, size), dim=0, largest=False).indices + start)
            start += size
        candidates = torch.cat(chosen)  # (K, n)
        overlap = iou.gather(0, candidates)
        taken = overlap >= overlap.mean(0) + overlap.std(0)
        best = torch.full_like(iou, -torch.inf)
        for n in range(len(image)):
            middle = center[candidates[:, n]]
            inside = torch.cat([middle - image[n, :2], image[n, 2:] - middle], 1).amin(1) > 0.01
            kept = candidates[taken[:, n] & inside, n]
            best[kept, n] = iou[kept, n]
        value, owner = best.max(1)
        positive = value > -torch.inf
        assigned = torch.full_like(owner, -1)
        assigned[positive] = label[owner[positive]]
        found.append((owner.where(positive, -1), assigned))
    return found


def plain_loss(
    cls_scores: list[Tensor], bbox_preds: list[Tensor], soft: list[Tensor] | None, boxes: Tensor, labels: Tensor,
    anchors: Tensor, sizes: list[int],
) -> Tensor:  # fmt: skip
    """Assign by a loop over images, then compute the losses of each level by masks, all in plain PyTorch."""
    found = loop_match(anchors, sizes, boxes, labels)
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
