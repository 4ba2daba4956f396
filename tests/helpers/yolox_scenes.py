"""Batches for the tests of YOLOX: predictions near some of the boxes, as in training."""

import torch
from torch import Tensor

from detops import grid_points
from detops.reference import simota_match as definition

STRIDES = (8, 16, 32)

# Options of simota_match: radius, center_only, own_candidates, topk, k_scale, iou_weight, class_weight.
Rule = tuple[float, bool, bool, int, float, float, float]
EXACT: Rule = (2.5, False, False, 10, 1.0, 3.0, 1.0)
FAST: Rule = (2.5, False, True, 10, 1.1, 3.0, 1.0)


# Tensors of simota_match: class logits by level, objectness, predictions, cells, boxes (cxcywh), labels, sizes.
YoloxScene = tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]


def yolox_scene(
    seed: int,
    batch: int = 2,
    boxes: int = 5,
    classes: int = 4,
    size: int = 64,
    dtype: torch.dtype = torch.float32,
    index_dtype: torch.dtype = torch.int64,
    odd: bool = False,
    coarse: bool = False,
    ragged: bool = False,
) -> YoloxScene:
    """Make the tensors of simota_match, without its options.

    With `odd` some boxes lie off the image, have no size, a negative one, NaN or infinity, or a label that is no class,
    and some predictions are not finite. With `coarse` numbers repeat, so that there are ties.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        value = torch.randn(shape, generator=g)
        return value.round() if coarse else value

    cells = grid_points([(size // s, size // s) for s in STRIDES], STRIDES)
    count = len(cells)
    wh = torch.rand(batch, boxes, 2, generator=g) * size * 0.6 + 2
    gt = torch.cat([torch.rand(batch, boxes, 2, generator=g) * size, wh], -1)
    if coarse:
        gt = (gt / 8).round() * 8
    labels = torch.randint(0, classes, (batch, boxes), generator=g)
    if boxes:
        near = torch.randint(0, boxes, (batch, count), generator=g)
        pred = gt.gather(1, near[..., None].expand(-1, -1, 4)).clone()
        pred[..., 2:] *= (normal(batch, count, 2) * 0.2).exp()
        pred[..., :2] += normal(batch, count, 2) * 4
        lost = torch.rand(batch, count, generator=g) < 0.3
        pred[lost] = torch.cat([cells[:, :2], cells[:, 2:].expand(-1, 2)], 1).expand(batch, -1, -1)[lost]
    else:
        pred = torch.cat([cells[:, :2], cells[:, 2:].expand(-1, 2)], 1).expand(batch, -1, -1).clone()
    logits, objectness = normal(batch, count, classes) * 2 - 2, normal(batch, count) * 2 - 1
    if odd and boxes:
        kind = torch.randint(9, (batch, boxes), generator=g)
        gt[..., 0][kind == 0] += 3 * size
        gt[..., 2][kind == 1] = 0
        gt[..., 3][kind == 2] = -5
        gt[..., 1][kind == 3] = float("nan")
        gt[..., 2][kind == 4] = float("inf")
        labels[kind == 5] = classes
        labels[kind == 6] = -1
        broken = torch.randint(40, (batch, count), generator=g)
        pred[..., 2][broken == 0] = float("nan")
        pred[..., 3][broken == 1] = float("inf")
        logits[..., 0][broken == 2] = float("nan")
        objectness[broken == 3] = float("nan")
        logits[..., 0][broken == 4] = 1e4
        objectness[broken == 5] = 90
        logits[..., -1][broken == 5] = 95
    sizes = torch.randint(0, boxes + 1, (batch,), generator=g) if ragged else None
    per_level = [(size // s) ** 2 for s in STRIDES]
    levels = [level.to(dtype) for level in logits.split(per_level, 1)]
    return levels, objectness.to(dtype), pred, cells, gt, labels.to(index_dtype), sizes


def raw_outputs(
    levels: list[Tensor], objectness: Tensor, pred: Tensor, cells: Tensor, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Return each level's rows (B, A_l, 5 + C) of a network that predicts these boxes."""
    side = cells[:, 2:]
    t = torch.cat([pred[..., :2] / side - (cells[:, :2] / side - 0.5), (pred[..., 2:] / side).log()], -1)
    outputs: list[Tensor] = []
    start = 0
    for level in levels:
        end = start + level.shape[1]
        outputs.append(torch.cat([t[:, start:end], objectness[:, start:end, None], level], -1).to(dtype))
        start = end
    return outputs


def decided(
    levels: list[Tensor],
    objectness: Tensor,
    pred: Tensor,
    cells: Tensor,
    gt: Tensor,
    labels: Tensor,
    sizes: Tensor | None,
    rule: Rule,
    margin: float = 1e-3,
) -> bool:
    """Return whether float32 must decide alike: each decision is a tie of equal inputs, or clear by `margin`."""
    radius, center_only, own_only, topk, k_scale, iou_weight, class_weight = rule
    for b in range(len(objectness)):
        count = gt.shape[1] if sizes is None else int(sizes[b])
        scores = torch.cat([level[b] for level in levels])
        boxes, label = gt[b, :count], labels[b, :count]
        own, best = definition.regions(cells, boxes, label, scores.shape[1], radius, center_only)
        iou = definition.pair_iou(boxes, pred[b])
        cost = definition.costs(scores, objectness[b], label, iou, iou_weight, class_weight)
        cost = cost.nan_to_num(posinf=1e9) + 1e6 * ~best
        for n in range(count):
            allowed = own[n] if own_only else own.any(0)
            total = k_scale * iou[n][allowed].sort(descending=True).values[:topk].sum().item()
            if abs(total - round(total)) < margin and total > 0.5 and total != round(total):
                return False
            if not clear(cost[n][allowed], margin):
                return False
        if not own_only and not all(clear(column, margin) for column in cost[own.any(1)].T):
            return False
    return True


def clear(values: Tensor, margin: float) -> bool:
    gaps = values.sort().values.diff()
    return not ((gaps > 0) & (gaps < margin)).any()
