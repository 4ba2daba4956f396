"""D-FINE's losses of box distributions: fine-grained localization (FGL) and decoupled distillation (DDF)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detops.geometry.boxes import iou_of_pairs, to_xyxy

TEMPERATURE = 5.0


class Distributions(NamedTuple):
    """D-FINE's distributions of all layers.

    Attributes:
        corners: (L, B, Q, 4 * bins) logits: left, top, right, bottom.
        references: (L, B, Q, 4) cxcywh, boxes that distances are measured from; constants.
        teacher_logits: (B, Q, C) class logits of the last layer; constants.
        values: (bins,) what each bin stands for, from `bin_values`.
        scale: By which distances are divided.
    """

    corners: Tensor
    references: Tensor
    teacher_logits: Tensor
    values: Tensor
    scale: float


def local_losses(
    local: Distributions, pred_boxes: Sequence[Tensor], parts: Sequence[int], boxes: Tensor, index: Tensor,
    scale: Tensor, weights: Sequence[float],
) -> Tensor:  # fmt: skip
    """Return (R, 2) FGL and DDF of the layers of all parts.

    Args:
        local: The distributions.
        pred_boxes: (S, B, Q, 4) cxcywh of each part.
        parts: Five numbers of each part: first layer, number of layers, first query, number of queries, and whether it
            learns from the last layer.
        boxes: (B, N, 4) cxcywh.
        index: int64 box of each query of the parts; -1 for none.
        scale: (R,) factors of FGL.
        weights: Further factors of both.
    """
    found, row = [], 0
    for pred, (layer, layers, first, count, distils) in zip(
        pred_boxes, zip(*[iter(parts)] * 5, strict=True), strict=True
    ):
        place = slice(layer, layer + layers), slice(None), slice(first, first + count)
        size = pred.shape[:3].numel()
        pairs, index = index[:size].view(pred.shape[:3]), index[size:]
        has_box = pairs >= 0
        targets = torch.zeros_like(pred)
        if boxes.shape[1]:
            each = pairs.clamp(min=0)[..., None].expand(-1, -1, -1, 4)
            targets = boxes.expand(layers, -1, -1, -1).gather(2, each)
        iou = iou_of_pairs(to_xyxy(pred.detach()), to_xyxy(targets)).where(has_box, 0)
        corners = local.corners[place]
        fgl = fine_grained_loss(corners, local.references[place], targets, iou, local.values, local.scale)
        rows = [fgl * scale[row : row + layers] * weights[0], torch.zeros_like(fgl)]
        if distils:
            queries = place[2]
            weight = iou.where(has_box, local.teacher_logits[:, queries].amax(-1).sigmoid())
            teacher = local.corners[-1:, :, queries]
            rows[1] = weights[1] * distillation_loss(corners, teacher, weight, has_box, len(local.values))
        found.append(torch.stack(rows, 1))
        row += layers
    return torch.cat(found)


def bin_values(bins: int, up: float, scale: float, device: torch.device) -> Tensor:
    """Return (bins + 1,) what each bin stands for: dense around 0, up to 2 * up * scale at both ends."""
    most = abs(up) * abs(scale)
    step = (most + 1) ** (2 / (bins - 2))
    half = [step**i - 1 for i in range(1, bins // 2)]
    return torch.tensor([-2 * most, *[-value for value in reversed(half)], 0.0, *half, 2 * most], device=device)


def fine_grained_loss(
    corners: Tensor, references: Tensor, targets: Tensor, quality: Tensor, values: Tensor, scale: float
) -> Tensor:
    """Return (S,) the sum over queries and sides of quality * cross entropy towards the two bins next to the distance.

    Args:
        corners: (S, B, Q, 4 * bins) logits: left, top, right, bottom.
        references: (S, B, Q, 4) cxcywh, boxes that distances are measured from; constants.
        targets: (S, B, Q, 4) cxcywh, box of each query.
        quality: (S, B, Q) factor, 0 for a query without a box.
        values: (bins,) from `bin_values`.
        scale: By which distances are divided.

    Reference:
        Peng et al., "D-FINE: Redefine Regression Task in DETRs as Fine-grained Distribution Refinement", 2024.
    """
    logits = corners.unflatten(-1, (4, len(values)))
    distance = _distances(references, targets, abs(scale)).clamp(values[0], values[-1])
    left = (torch.searchsorted(values, distance.contiguous(), right=True) - 1).clamp(0, len(values) - 2)
    low, high = values[left], values[left + 1]
    right_share = (distance - low) / (high - low)
    lse = logits.logsumexp(-1)
    near = logits.gather(-1, torch.stack([left, left + 1], -1))
    loss = lse - near[..., 0] * (1 - right_share) - near[..., 1] * right_share
    has_box = (quality > 0)[..., None]
    total: Tensor = (loss * quality[..., None]).where(has_box, 0).sum((1, 2, 3))
    return total


def _distances(references: Tensor, boxes: Tensor, scale: float) -> Tensor:
    center, size = references[..., :2], references[..., 2:] / scale + 1e-16
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    return torch.cat([(center - low) / size, (high - center) / size], -1) - scale / 2


def distillation_loss(corners: Tensor, teacher: Tensor, weight: Tensor, matched: Tensor, bins: int) -> Tensor:
    """Return (S,) the weighted divergence of all queries' distributions from the last layer's.

    With M matched queries and U others, each mean over queries and sides:

        (sqrt(M) * mean over the matched + sqrt(U) * mean over the others) / (sqrt(M) + sqrt(U))

    Args:
        corners: (S, B, Q, 4 * bins) logits of the layers that learn.
        teacher: (1 or S, B, Q, 4 * bins) logits of the last layer; constants.
        weight: (S, B, Q) factor of each query; constants.
        matched: (S, B, Q) bool.
        bins: Number of bins of a side.
    """
    logits = corners.unflatten(-1, (4, bins)) / TEMPERATURE
    log_p = (teacher.detach().unflatten(-1, (4, bins)) / TEMPERATURE).log_softmax(-1)
    # Term by term, so that it is exactly 0 for the teacher itself.
    divergence = (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1)
    loss = (divergence.sum(-1) / 4 * weight.detach() * TEMPERATURE**2).flatten(1)
    of_matched = matched.flatten(1)
    counts = [part.sum(1) for part in (of_matched, ~of_matched)]
    roots = [count.sqrt() for count in counts]
    # A mean over nothing is 0, and so is its root.
    means = [loss.where(part, 0).sum(1) / count.clamp(min=1)
             for part, count in zip((of_matched, ~of_matched), counts, strict=True)]  # fmt: skip
    total: Tensor = (means[0] * roots[0] + means[1] * roots[1]) / (roots[0] + roots[1]).clamp(min=1e-12)
    return total
