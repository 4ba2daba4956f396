"""The definition of `atss_match`: adaptive training sample selection, one image and one box at a time."""

import torch
from torch import Tensor


def atss_match(
    anchors: Tensor,
    level_sizes: list[int],
    gt_boxes: Tensor,
    gt_labels: Tensor,
    sample_sizes: Tensor | None,
    valid: Tensor | None,
    num_classes: int,
    topk: int,
    margin: float,
    strict: bool,
    all_boxes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the box of each anchor, their IoU, and the threshold of each box.

    A box's candidates are, on each level, the `topk` anchors whose centres are nearest to its own. Its threshold is the
    mean of their IoUs plus their standard deviation (unbiased; 0 for a single candidate). The box is assigned to the
    candidates whose IoU is at least this threshold and whose centre lies in it. An anchor that several boxes qualify
    for gets the one of them with the highest IoU, or that of all boxes. Ties go to the lower index. Boxes with a
    negative side, an area that float32 cannot hold, or a label that is no class are not assigned.

    Args:
        anchors: (A, 4) xyxy in pixels, level after level.
        level_sizes: Number of anchors of each level.
        gt_boxes: (B, N, 4) xyxy in pixels.
        gt_labels: (B, N) integers.
        sample_sizes: (B,) number of boxes per image; None for N.
        valid: (B, A) bool, which anchors take part in each image; None for all.
        num_classes: Labels are 0 .. num_classes - 1.
        topk: Number of candidates per level.
        margin: An anchor's centre lies in a box if it is more than this many pixels from each side.
        strict: The IoU must be above the threshold.
        all_boxes: An anchor that several boxes qualify for goes to the highest IoU of all boxes of its image.

    Returns:
        (B, A) int64 index of the box, -1 for none; (B, A) IoU, 0 for none; (B, N) threshold, infinite for a box
        without a candidate; (B,) int64 number of anchors that have a box.

    Reference:
        Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample
        Selection", 2020.
    """
    batch, count = len(gt_boxes), len(anchors)
    index = torch.full((batch, count), -1, dtype=torch.int64)
    matched = torch.zeros(batch, count, dtype=torch.float64)
    thresholds = torch.full(gt_labels.shape, torch.inf, dtype=torch.float64)
    for b in range(batch):
        exists = torch.ones(count, dtype=torch.bool) if valid is None else valid[b]
        boxes = gt_boxes.shape[1] if sample_sizes is None else int(sample_sizes[b])
        overlaps: dict[int, Tensor] = {}  # of each box, in order
        takers: dict[int, list[int]] = {}  # of each anchor
        for n in range(boxes):
            box, label = gt_boxes[b, n].double(), int(gt_labels[b, n])
            area = (box[2:] - box[:2]).float().prod()
            if not area.isfinite() or (box[2:] < box[:2]).any() or not 0 <= label < num_classes:
                continue
            overlaps[n], distance, inside = pairs(anchors, box, margin)
            candidates = nearest(distance, exists, level_sizes, topk)
            if not candidates:
                continue
            found = overlaps[n][candidates]
            # Relative to the first: the mean of equal IoUs (of a small box within all its candidates) is then exact.
            apart = found - found[0]
            threshold = found[0] + apart.mean() + (apart.std() if len(found) > 1 else 0)
            thresholds[b, n] = threshold
            for a, iou in zip(candidates, found, strict=True):
                if inside[a] and (iou > threshold if strict else iou >= threshold):
                    takers.setdefault(a, []).append(n)
        for a, claims in takers.items():
            rivals = list(overlaps) if all_boxes and len(claims) > 1 else claims
            winner = max(rivals, key=lambda n: (float(overlaps[n][a]), -n))
            index[b, a], matched[b, a] = winner, overlaps[winner][a]
    return index, matched, thresholds, (index >= 0).sum(1)


def pairs(anchors: Tensor, box: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (A,) each: IoU with a box, squared distance of the centres, whether the anchor's centre is in the box."""
    anchor = anchors.double()
    inter = (torch.minimum(anchor[:, 2:], box[2:]) - torch.maximum(anchor[:, :2], box[:2])).clamp(min=0).prod(1)
    union = (anchor[:, 2:] - anchor[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - inter
    center = (anchor[:, :2] + anchor[:, 2:]) / 2
    distance = (center - (box[:2] + box[2:]) / 2).square().sum(1)
    inside = torch.cat([center - box[:2], box[2:] - center], 1).amin(1) > margin
    return (inter / union).nan_to_num(0.0), distance, inside


def nearest(distance: Tensor, exists: Tensor, level_sizes: list[int], topk: int) -> list[int]:
    """Return the indices of the nearest anchors of each level."""
    chosen, start = [], 0
    for size in level_sizes:
        there = [a for a in range(start, start + size) if exists[a]]
        chosen += sorted(there, key=lambda a: (distance[a].item(), a))[:topk]
        start += size
    return chosen
