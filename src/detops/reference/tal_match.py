"""What `tal_match` means: task-aligned assignment, one image and one box at a time."""

import math

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny  # a metric below counts as 0
CIOU_EPS = 1e-7


def tal_match(
    class_logits: list[Tensor],
    pred_boxes: Tensor,
    points: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    sample_sizes: Tensor | None,
    valid: Tensor | None,
    alpha: float,
    beta: float,
    topk: int,
    ciou: bool,
    all_points: bool,
    all_boxes: bool,
    fallback: bool,
    margin: float,
    reach: float,
    min_side: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return the box of each point, and what the point's class is trained towards.

        m = p^alpha * u^beta

    of a box and a point, where p is the probability of the box's label that the point predicts, and u is the overlap of
    the box with the one that it predicts. A box takes the `topk` points of the highest m among those inside it. A point
    that several boxes took goes to the one of the highest u. With M and U, the highest m and the highest u of the
    points that a box has in the end, the quality of these is m / (M + eps) * U. Ties go to the lower index. What is not
    a number counts as 0, and nothing is taken for m = 0. Boxes of a negative side, of a number that is not finite, or
    of a label that is no class, take nothing.

    Args:
        class_logits: Each level's (B, A_l, C), in all A points.
        pred_boxes: (B, A, 4) xyxy in pixels.
        points: (A, 3): x, y and stride, in pixels.
        gt_boxes: (B, N, 4) xyxy in pixels.
        gt_labels: (B, N) integers.
        sample_sizes: (B,) number of boxes per image; None for N.
        valid: (B, A) bool, points that exist for an image; None for all.
        alpha: Exponent of p.
        beta: Exponent of u.
        topk: See above.
        ciou: Whether u is the complete IoU, at least 0, and not the IoU.
        all_points: Whether a box's `topk` are those of all points, of which it takes those inside.
        all_boxes: Whether a point that several boxes took goes to the highest u of all boxes of the image, and not of
            those that took it.
        fallback: Whether a box that took nothing takes the point of the highest m, wherever it lies; before contests.
        margin: A point is inside if its distance to each side is at least this many pixels,
        reach: and at most this many strides.
        min_side: For the former, boxes are at least this many strides of the point wide and high.
        eps: See above.

    Returns:
        (B, A) int64 index of the box, -1 for none; (B, A) quality, 0 for none.

    Reference:
        Feng et al., "TOOD: Task-aligned One-stage Object Detection", 2021; Xu et al., "PP-YOLOE", 2022.
    """
    index = torch.full(pred_boxes.shape[:2], -1, dtype=torch.int64)
    quality = torch.zeros(pred_boxes.shape[:2], dtype=torch.float64)
    for b in range(len(pred_boxes)):
        count = gt_boxes.shape[1] if sample_sizes is None else int(sample_sizes[b])
        boxes, labels = gt_boxes[b, :count].double(), gt_labels[b, :count].long()
        logits = torch.cat([level[b] for level in class_logits]).double()
        there = torch.ones(len(points), dtype=torch.bool) if valid is None else valid[b]
        known = boxes.isfinite().all(1) & (boxes[:, 2:] >= boxes[:, :2]).all(1)
        known &= (labels >= 0) & (labels < logits.shape[1])
        u = overlaps(boxes, pred_boxes[b].double(), ciou)
        m = metric(logits, labels, u, alpha, beta)
        inside = regions(points.double(), boxes, margin, reach, min_side)
        takers: dict[int, list[int]] = {}  # of each point
        for n in known.nonzero()[:, 0].tolist():
            for a in taken(m[n], inside[n], there, topk, all_points, fallback):
                takers.setdefault(a, []).append(n)
        for a, rivals in takers.items():
            if len(rivals) > 1 and all_boxes:
                rivals = known.nonzero()[:, 0].tolist()
            index[b, a] = min(rivals, key=lambda n: (-u[n, a].item(), n))
        for n in range(count):
            own = index[b] == n
            if own.any():
                quality[b, own] = m[n, own] / (m[n, own].max() + eps) * u[n, own].max()
    return index, quality


def taken(m: Tensor, inside: Tensor, there: Tensor, topk: int, all_points: bool, fallback: bool) -> list[int]:
    """The points that a box takes, by its row of each."""
    possible = [a for a in (there & (m > 0)).nonzero()[:, 0].tolist() if all_points or inside[a]]
    best = sorted(possible, key=lambda a: (-m[a].item(), a))[:topk]
    found = [a for a in best if inside[a]]
    if not found and fallback:
        anywhere = (there & (m > 0)).nonzero()[:, 0].tolist()
        found = sorted(anywhere, key=lambda a: (-m[a].item(), a))[:1]
    return found


def metric(logits: Tensor, labels: Tensor, u: Tensor, alpha: float, beta: float) -> Tensor:
    """(n, A)."""
    p = logits.sigmoid()[:, labels.clamp(0, logits.shape[1] - 1)].T
    m = (p**alpha * u**beta).nan_to_num(0.0)
    return m.where(m >= TINY, 0)


def regions(points: Tensor, boxes: Tensor, margin: float, reach: float, min_side: float) -> Tensor:
    """(n, A) bool, whether points are inside boxes."""
    xy, stride = points[:, :2], points[:, 2:]
    low, high = boxes[:, None, :2], boxes[:, None, 2:]  # (n, 1, 2)
    grown = ((min_side * stride - (high - low)) / 2).clamp(min=0)
    least = torch.cat([xy - (low - grown), high + grown - xy], -1).amin(-1)
    most = torch.cat([xy - low, high - xy], -1).amax(-1)
    return (least >= margin) & (most / stride[:, 0] <= reach)


def overlaps(boxes: Tensor, pred: Tensor, ciou: bool) -> Tensor:
    """(n, A) IoU, or complete IoU."""
    box, pred = boxes[:, None], pred[None]
    sides = (torch.minimum(box[..., 2:], pred[..., 2:]) - torch.maximum(box[..., :2], pred[..., :2])).clamp(min=0)
    size, other = box[..., 2:] - box[..., :2], pred[..., 2:] - pred[..., :2]
    inter = sides.prod(-1)
    u = (inter / (size.prod(-1) + other.prod(-1) - inter)).nan_to_num(0.0, 0.0, 0.0)
    if not ciou:
        return u.clamp(min=0)
    apart = (box[..., :2] + box[..., 2:] - pred[..., :2] - pred[..., 2:]) / 2
    hull = torch.maximum(box[..., 2:], pred[..., 2:]) - torch.minimum(box[..., :2], pred[..., :2])
    distance = apart.square().sum(-1) / (hull.square().sum(-1) + CIOU_EPS)
    angle, other_angle = (s[..., 0].div(s[..., 1] + CIOU_EPS).atan() for s in (size, other))
    aspect = 4 / math.pi**2 * (angle - other_angle).square()
    weight = aspect / (aspect - u + 1 + CIOU_EPS)
    return (u - distance - weight * aspect).nan_to_num(0.0).clamp(0, 1).where(u > 0, 0)
