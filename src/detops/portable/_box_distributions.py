"""Parts of `positive_losses_` and its backward in whole-batch PyTorch: maps at points, boxes as distributions."""

from typing import NamedTuple

import torch
from torch import Tensor

from detops.geometry.ordering import true_first
from detops.portable._iou_loss import PLAIN, iou_loss


def slots_of(index: Tensor, region: Tensor | None, most: int) -> Tensor:
    """Return (B, M) slots: the points of each image that have a box or are in the region, then others; M <= most."""
    there = index >= 0 if region is None else (index >= 0) | (region > 0)
    return true_first(there)[:, : min(most, index.shape[1])]


def at(maps: Tensor, rows: Tensor, wide: torch.dtype) -> Tensor:
    """Return the channels (B, M, C) of maps (B, C, H, W) at rows (B, M)."""
    return maps.flatten(2).gather(2, rows[:, None].expand(-1, maps.shape[1], -1)).to(wide).transpose(1, 2)


class Level(NamedTuple):
    """The slots of one level. Slots of other levels are masked: their row is 0 and their logits are zeros.

    Attributes:
        rows: (B, M) row of the point within the level.
        positive: (B, M) bool, whether the point has a box.
        raw: (B, M, 4, bins) logits of the distributions.
        box: (B, M, 4) xyxy, relative to the point, in strides; a box of two strides around it if it has none.
        chosen: (B, M) index of the box, 0 if there is none.
    """

    rows: Tensor
    positive: Tensor
    raw: Tensor
    box: Tensor
    chosen: Tensor


def level_at(preds: Tensor, slots: Tensor, start: int, points: Tensor, boxes: Tensor, index: Tensor) -> Level:
    """Read one level's maps."""
    wide = torch.float64 if preds.dtype == torch.float64 else torch.float32
    size = preds.shape[2] * preds.shape[3]
    here = (slots >= start) & (slots < start + size)
    rows, slots = (slots - start).where(here, 0), slots.where(here, start)
    found = index.gather(1, slots)
    positive, point = here & (found >= 0) & (found < boxes.shape[1]), points.to(wide)[slots]
    chosen = found.where(positive, 0)
    box = torch.tensor([-1.0, -1, 1, 1], dtype=wide, device=preds.device).expand(*slots.shape, 4)
    if boxes.shape[1]:
        read = boxes.to(wide).gather(1, chosen[..., None].expand(-1, -1, 4))
        box = ((read - point[..., :2].repeat(1, 1, 2)) / point[..., 2:]).where(positive[..., None], box)
    raw = at(preds, rows, wide).unflatten(2, (4, -1)).where(here[..., None, None], 0)
    return Level(rows, positive, raw, box, chosen)


class Sides(NamedTuple):
    """IoU (B, M) and losses (B, M) of boxes, and the losses' gradients (B, M, 4, bins) by the logits."""

    iou: Tensor
    iou_loss: Tensor
    dfl: Tensor
    iou_loss_gradient: Tensor
    dfl_gradient: Tensor


def sides_of(raw: Tensor, box: Tensor, kind: int, margin: float) -> Sides:
    """Compute the losses of logits (B, M, 4, bins) against boxes (B, M, 4), as in `Level`; `kind` as in `iou_loss`."""
    last = raw.shape[3] - 1
    p, log_p, bins = raw.softmax(3), raw.log_softmax(3), torch.arange(last + 1, dtype=raw.dtype, device=raw.device)
    distance = (p * bins).sum(3) if last else raw[..., 0]
    low, high = distance[..., :2], distance[..., 2:]
    pred = torch.cat([(high - low) / 2, low + high], -1)
    target = torch.cat([(box[..., :2] + box[..., 2:]) / 2, box[..., 2:] - box[..., :2]], -1)
    loss, by = iou_loss(pred, target, kind)
    iou = 1 - iou_loss(pred, target, PLAIN)[0]
    by = torch.cat([by[..., 2:] - by[..., :2] / 2, by[..., 2:] + by[..., :2] / 2], -1)
    if last == 0:
        return Sides(iou, loss, torch.zeros_like(loss), by[..., None], torch.zeros_like(raw))
    exact = torch.cat([-box[..., :2], box[..., 2:]], -1).clamp(0, last - margin)
    share = (1 - (exact[..., None] - bins).abs()).clamp(min=0)  # weights of the two bins beside the target
    dfl = -(share * log_p).sum((2, 3))
    return Sides(iou, loss, dfl, by[..., None] * p * (bins - distance[..., None]), p - share)


def distillation(raw: Tensor, soft: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the distillation loss (B, M) of logits (B, M, 4, bins) and its gradient."""
    log_s, log_t = (raw / temperature).log_softmax(3), (soft / temperature).log_softmax(3)
    t = log_t.exp()
    return temperature**2 * (t * (log_t - log_s)).mean(3).sum(2), temperature / raw.shape[3] * (log_s.exp() - t)
