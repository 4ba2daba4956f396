"""What `local_loss` means: D-FINE's losses of box distributions, one layer, image, query and side at a time."""

import math

import torch
from torch import Tensor

TEMPERATURE = 5.0


def local_loss(
    corners: Tensor,
    references: Tensor,
    teacher_logits: Tensor,
    pred_boxes: list[Tensor],
    parts: list[int],
    distils: list[int],
    gt_boxes: Tensor,
    index: Tensor,
    values: Tensor,
    scale: Tensor,
    reach: float,
    weights: list[float],
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Return both losses of each layer of the parts, and the gradient of their sum.

    A side of a query has logits z over bins that stand for `values`, W. Fine-grained localization (FGL) is, at the
    queries that have a box, with u the IoU of the predicted box (0 where it is not a number),

        scale * u * sum over sides of ((1 - r) CE(z, l) + r CE(z, l + 1)),  d = (1 - r) W[l] + r W[l + 1]

    where d is the distance of the box's side from the reference's centre, in 1 / reach of its size, less reach / 2, and
    limited to W's range. Decoupled distillation (DDF) is, with M queries that have a box and U others in the layer,

        (sqrt(M) * mean over the M + sqrt(U) * mean over the U) / (sqrt(M) + sqrt(U)),  a mean over nothing being 0,
        of w * 25 * mean over sides of KL(softmax(last layer's z / 5) || softmax(z / 5))

    where w is u at queries with a box, and the last layer's highest class probability at others. Only z of the layer
    itself has a gradient.

    Args:
        corners: (L, B, Q, 4 * bins) logits of all layers: left, top, right, bottom.
        references: (L, B, Q, 4) cxcywh, what distances are measured from.
        teacher_logits: (B, Q, C) class logits of the last layer.
        pred_boxes: (S, B, queries, 4) cxcywh of each part.
        parts: Five numbers of each part: 0, its first layer, number of layers, first query, number of queries.
        distils: Of each part, whether its layers learn from the last one; if not their DDF is 0.
        gt_boxes: (B, N, 4) cxcywh.
        index: int64 box of each query, of the parts (layers, B, queries) one after the other; below 0 for none.
        values: (bins,) rising, what each bin stands for.
        scale: (R,) factors of FGL, of the layers of all parts.
        reach: By which distances are divided.
        weights: Further factors of FGL and DDF.
        with_gradient: Whether the gradient is wanted; if not it comes back empty.

    Returns:
        (R, 2) losses; the gradient of their sum, of the shape of `corners`, 0 where no part is.

    Reference:
        Peng et al., "D-FINE: Redefine Regression Task in DETRs as Fine-grained Distribution Refinement", 2024.
    """
    dtype = torch.float64 if corners.dtype == torch.float64 else torch.float32
    with torch.enable_grad():
        leaf = corners.detach().double().requires_grad_()
        fgl, ddf = rows_of_losses(
            leaf, references, teacher_logits, pred_boxes, parts, distils, gt_boxes, index, values, reach
        )
        losses = torch.stack([fgl * scale.double() * weights[0], ddf * weights[1]], 1)
        total = losses.sum()
    if not with_gradient:
        return losses.detach().to(dtype), corners.new_empty(0)
    gradient = torch.autograd.grad(total, leaf)[0] if total.requires_grad else torch.zeros_like(leaf)
    return losses.detach().to(dtype), gradient.to(corners.dtype)


def rows_of_losses(
    corners: Tensor, references: Tensor, teacher_logits: Tensor | None, pred_boxes: list[Tensor], parts: list[int],
    distils: list[int], gt_boxes: Tensor, index: Tensor, values: Tensor, reach: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(R,) FGL without factors, and DDF; without `teacher_logits` the latter is 0."""
    bins, batch, at = len(values), len(gt_boxes), 0
    rows = [corners.new_zeros(2)]
    for pred, (_, first_layer, layers, first, count), learns in zip(
        pred_boxes, zip(*[iter(parts)] * 5, strict=True), distils, strict=True
    ):
        for i in range(layers):
            fgl, matched, others = corners.new_zeros(()), list[Tensor](), list[Tensor]()
            for b in range(batch):
                for q in range(first, first + count):
                    n = int(index[at])
                    at += 1
                    z = corners[first_layer + i, b, q].view(4, bins)
                    weight = 0.0
                    if n >= 0:
                        box = gt_boxes[b, n].double()
                        weight = iou(pred[i, b, q - first].double(), box)
                        if weight > 0:
                            reference = references[first_layer + i, b, q].double()
                            fgl = fgl + weight * sum(
                                fine_grained(z[side], distance, values.double())
                                for side, distance in enumerate(distances(reference, box, reach))
                            )
                    if not learns or teacher_logits is None:
                        continue
                    if n < 0:
                        weight = teacher_logits[b, q].double().sigmoid().amax().item()
                    log_p = (corners[-1, b, q].detach().view(4, bins) / TEMPERATURE).log_softmax(1)
                    log_q = (z / TEMPERATURE).log_softmax(1)
                    divergence = (log_p.exp() * (log_p - log_q)).sum(1).mean()
                    (matched if n >= 0 else others).append(weight * TEMPERATURE**2 * divergence)
            roots = [math.sqrt(len(matched)), math.sqrt(len(others))]
            means = [torch.stack(part).mean() if part else corners.new_zeros(()) for part in (matched, others)]
            ddf = (means[0] * roots[0] + means[1] * roots[1]) / max(sum(roots), 1e-12)
            rows.append(torch.stack([fgl, ddf]))
    both = torch.stack(rows[1:]) if len(rows) > 1 else rows[0].new_zeros(0, 2)
    return both[:, 0], both[:, 1]


def iou(box: Tensor, target: Tensor) -> float:
    """IoU of two boxes (4,), cxcywh; 0 where it is not a finite number."""
    low = torch.maximum(box[:2] - box[2:] / 2, target[:2] - target[2:] / 2)
    high = torch.minimum(box[:2] + box[2:] / 2, target[:2] + target[2:] / 2)
    inter = (high - low).clamp(min=0).prod()
    found = (inter / (box[2:].prod() + target[2:].prod() - inter)).item()
    return found if math.isfinite(found) else 0.0


def distances(reference: Tensor, box: Tensor, reach: float) -> list[float]:
    """Left, top, right and bottom distance of a box from the centre of another, in 1 / reach of its size."""
    center, size = reference[:2], reference[2:] / abs(reach) + 1e-16
    low, high = box[:2] - box[2:] / 2, box[:2] + box[2:] / 2
    found: list[float] = (torch.cat([(center - low) / size, (high - center) / size]) - abs(reach) / 2).tolist()
    return found


def fine_grained(logits: Tensor, distance: float, values: Tensor) -> Tensor:
    """Cross entropy of logits (bins,) towards the two bins next to a distance, shared out by nearness."""
    distance = min(max(distance, values[0].item()), values[-1].item())
    left = min(max(int((values <= distance).sum()) - 1, 0), len(values) - 2)
    right = (distance - values[left]) / (values[left + 1] - values[left])
    log_p = logits.log_softmax(0)
    return -(1 - right) * log_p[left] - right * log_p[left + 1]
