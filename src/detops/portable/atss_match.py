"""`atss_match` in whole-batch PyTorch: used on devices without a kernel.

Boxes are processed in chunks, so that memory is bounded whatever their number. Ranks are one int64, unique to each
anchor or box, [number | index], so that ties go to the lower index.
"""

import torch
from torch import Tensor

from detops.geometry.boxes import iou_of_pairs
from detops.portable._search import LOW, bits, labelled, parts


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
    """Match boxes with anchors; arguments and meaning as in `detops.reference.atss_match`."""
    (batch, boxes), count, device = gt_labels.shape, len(anchors), gt_boxes.device
    if batch == 0 or boxes == 0 or count == 0:
        index = torch.full((batch, count), -1, dtype=torch.int64, device=device)
        iou = torch.zeros(batch, count, dtype=torch.float32, device=device)
        threshold = torch.full((batch, boxes), torch.inf, dtype=torch.float32, device=device)
        return index, iou, threshold, torch.zeros(batch, dtype=torch.int64, device=device)
    anchor, box = anchors.to(torch.float32), gt_boxes.to(torch.float32)
    sides = box[..., 2:] - box[..., :2]
    known = sides.prod(2).isfinite() & (sides >= 0).all(2) & labelled(gt_labels, sample_sizes, num_classes)
    center = (anchor[:, :2] + anchor[:, 2:]) / 2
    lanes = torch.arange(count, device=device)
    best = torch.full((batch, count), -1, dtype=torch.int64, device=device)
    anyones, times = best, torch.zeros_like(best)  # the best of all boxes, and how many took an anchor
    thresholds = []
    for chunk in parts(batch, boxes, count):
        part = box[:, chunk]  # (B, n, 4)
        distance = (center - ((part[..., :2] + part[..., 2:]) / 2)[:, :, None]).square().sum(-1)
        key = (bits(distance.nan_to_num(torch.inf)) << 32) | lanes
        if valid is not None:
            key = key.masked_fill(~valid[:, None], torch.iinfo(torch.int64).max)
        levels = [k.topk(min(topk, k.shape[2]), dim=2, largest=False).values for k in key.split(level_sizes, 2)]
        nearest = torch.cat(levels, 2)  # (B, n, K)
        there = (nearest != torch.iinfo(torch.int64).max) & known[:, chunk, None]
        index = (nearest & LOW).where(there, 0)
        candidate = anchor[index]  # (B, n, K, 4)
        iou = iou_of_pairs(candidate, part[:, :, None]).where(there, 0)
        number = there.sum(2)
        top = iou.amax(2)  # the mean is taken relative to it: the mean of equal IoUs is then exact, and they reach it
        mean = top + (iou - top[..., None]).where(there, 0).sum(2) / number.clamp(min=1)
        spread = (iou - mean[..., None]).where(there, 0).square().sum(2) / (number - 1).clamp(min=1)
        threshold = mean + spread.sqrt()
        thresholds.append(threshold.where(number > 0, torch.inf))
        middle = center[index]
        inside = torch.cat([middle - part[:, :, None, :2], part[:, :, None, 2:] - middle], -1).amin(-1) > margin
        taken = there & inside & (iou > threshold[..., None] if strict else iou >= threshold[..., None])
        # The highest IoU, then the lowest box.
        which = torch.arange(chunk.start, chunk.stop, device=device)[:, None]
        rank = ((bits(iou) << 32) | (LOW - which)).masked_fill(~taken, -1)
        best = best.scatter_reduce(1, index.flatten(1), rank.flatten(1), "amax")
        if all_boxes:
            times = times.scatter_add(1, index.flatten(1), taken.flatten(1).to(torch.int64))
            rank = (bits(iou_of_pairs(anchor, part[:, :, None])) << 32) | (LOW - which)
            anyones = torch.maximum(anyones, rank.masked_fill(~known[:, chunk, None], -1).amax(1))
    if all_boxes:
        best = torch.where(times > 1, anyones, best)
    found = best >= 0
    index = (LOW - (best & LOW)).where(found, 0)
    iou = iou_of_pairs(anchor, box.gather(1, index[..., None].expand(-1, -1, 4)))
    return index.where(found, -1), iou.where(found, 0), torch.cat(thresholds, 1), found.sum(1)
