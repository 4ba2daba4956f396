"""`set_match` in Triton: kernels for which boxes take part and for all costs, and a program per problem to solve it."""

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._assignment import assign_kernel, blocks
from detops.kernels._boxes import overlap
from detops.kernels._launch import cdiv, kernel
from detops.kernels._softplus import log1p_of, power

__all__ = ["assign_kernel", "cost_kernel", "set_match", "valid_kernel"]

BLOCK = 128  # queries per program
SOFTMAX, FOCAL = range(2)


@kernel(tensors=4)
def valid_kernel(
    boxes,  # (B, N, 4)
    labels,  # (B, N)
    sizes,  # (B,), not read without HAS_SIZES
    valid,  # (B, N) uint8
    N,
    total,
    num_classes,
    HAS_SIZES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Which boxes take part."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    label = tl.load(labels + at, mask=inside, other=-1).to(tl.int64)
    fine = (label >= 0) & (label < num_classes)
    for i in tl.static_range(4):
        number = tl.load(boxes + at * 4 + i, mask=inside, other=0)
        fine = fine & (tl.abs(number) < float("inf"))
        if i > 1:
            fine = fine & (number >= 0)
    if HAS_SIZES:
        fine = fine & (at % N < tl.load(sizes + at // N, mask=inside, other=0))
    tl.store(valid + at, fine.to(tl.uint8), mask=inside)


@kernel(tensors=8)
def cost_kernel(
    logits,  # (S, B, Q, C), of any strides
    totals,  # (S, B, Q) logarithms of the sums of exponentials, not read without SOFTMAX
    preds,  # (S, B, Q, 4), of any strides
    boxes,  # (B, N, 4)
    labels,  # (B, N)
    valid,  # (B, N) which of the boxes take part
    extra,  # (S, B, Q, N), of any strides, not read without HAS_EXTRA
    costs,  # (S, G, B, N, Q // G)
    B,
    Q,
    N,
    G,
    each,
    logit_set,
    logit_image,
    logit_query,
    logit_class,
    pred_set,
    pred_image,
    pred_query,
    pred_number,
    extra_set,
    extra_image,
    extra_query,
    extra_box,
    alpha,
    gamma,
    eps,
    class_cost,
    box_cost,
    giou_cost,
    IS_SOFTMAX: tl.constexpr,
    HAS_EPS: tl.constexpr,
    SQUARE: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The costs of one box at a block of queries of one set."""
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1)
    s = (tl.program_id(2) // B).to(tl.int64)
    b = (tl.program_id(2) % B).to(tl.int64)
    if tl.load(valid + b * N + n) > 0:
        inside = q < each * G
        label = tl.load(labels + b * N + n).to(tl.int64)
        x = tl.load(logits + s * logit_set + b * logit_image + q * logit_query + label * logit_class, mask=inside,
                    other=0).to(tl.float32)  # fmt: skip
        if IS_SOFTMAX:
            total = tl.load(totals + (s * B + b) * Q + q, mask=inside, other=0)
            by_class = -tl.exp(x - total)
        else:
            y = tl.minimum(tl.maximum(x, -1e4), 1e4)
            e = tl.exp(-tl.abs(y))
            r = 1 / (1 + e)
            p, rest = tl.where(y < 0, e * r, r), tl.where(y < 0, r, e * r)
            if HAS_EPS:
                log_p, log_rest = -tl.log(p + eps), -tl.log(rest + eps)
            else:
                log_p = tl.maximum(-y, 0.0) + log1p_of(e)
                log_rest = tl.maximum(y, 0.0) + log1p_of(e)
            by_class = alpha * power(rest, gamma, SQUARE) * log_p - (1 - alpha) * power(p, gamma, SQUARE) * log_rest
            by_class = tl.where(x == x, by_class, float("nan"))
        pred = preds + s * pred_set + b * pred_image + q * pred_query
        cx = tl.load(pred, mask=inside, other=0).to(tl.float32)
        cy = tl.load(pred + pred_number, mask=inside, other=0).to(tl.float32)
        w = tl.load(pred + 2 * pred_number, mask=inside, other=0).to(tl.float32)
        h = tl.load(pred + 3 * pred_number, mask=inside, other=0).to(tl.float32)
        box = boxes + (b * N + n) * 4
        tx, ty = tl.load(box).to(tl.float32), tl.load(box + 1).to(tl.float32)
        tw, th = tl.load(box + 2).to(tl.float32), tl.load(box + 3).to(tl.float32)
        l1 = (tl.abs(cx - tx) + tl.abs(cy - ty)) + (tl.abs(w - tw) + tl.abs(h - th))
        width, height = tl.where(w > 0, w, 0.0), tl.where(h > 0, h, 0.0)
        x1, y1, x2, y2 = cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2
        u1, v1, u2, v2 = tx - tw / 2, ty - th / 2, tx + tw / 2, ty + th / 2
        inter, union = overlap(x1, y1, x2, y2, width * height, u1, v1, u2, v2, tw * th)
        hull = (tl.maximum(x2, u2) - tl.minimum(x1, u1)) * (tl.maximum(y2, v2) - tl.minimum(y1, v1))
        giou = tl.where(union > 0, inter / tl.where(union > 0, union, 1.0), 0.0)
        giou -= tl.where(hull > 0, (hull - union) / tl.where(hull > 0, hull, 1.0), 0.0)
        cost = (box_cost * l1 + class_cost * by_class) - giou_cost * giou
        if HAS_EXTRA:
            more = extra + s * extra_set + b * extra_image + q * extra_query + n * extra_box
            cost += tl.load(more, mask=inside, other=0).to(tl.float32)
        problem = (s * G + q // each) * B + b
        tl.store(costs + (problem * N + n) * each + q % each, cost, mask=inside)


def set_match(
    class_logits: Tensor,
    pred_boxes: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    sample_sizes: Tensor | None,
    num_classes: int,
    groups: int,
    kind: int,
    alpha: float,
    gamma: float,
    eps: float,
    class_cost: float,
    box_cost: float,
    giou_cost: float,
    extra_cost: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernels; meaning as in `detops.reference.set_match`."""
    sets, batch, count, _ = class_logits.shape
    each, most, device = count // groups, gt_boxes.shape[1], gt_boxes.device
    shape = (sets, groups, batch, most)
    boxes, labels = gt_boxes.contiguous(), gt_labels.contiguous()
    valid = torch.empty((batch, most), dtype=torch.uint8, device=device)
    index = torch.empty((sets, batch, count), dtype=torch.int64, device=device)
    query = torch.empty(shape, dtype=torch.int64, device=device)
    solved = 0 not in shape and each > 0
    if not solved:
        query.fill_(-1)
    if not solved or each * groups < count:
        index.fill_(-1)
    logits, preds = class_logits.detach(), pred_boxes.detach()
    if valid.numel():
        valid_kernel(
            (cdiv(valid.numel(), BLOCK),),
            (boxes, labels, valid if sample_sizes is None else sample_sizes.contiguous(), valid),
            (most, valid.numel(), num_classes),
            (sample_sizes is not None, BLOCK),
        )
    if solved:
        costs = torch.empty((sets * groups * batch, most, each), dtype=torch.float32, device=device)
        totals = logits.to(torch.float32).logsumexp(-1).contiguous() if kind == SOFTMAX else costs
        extra = preds if extra_cost is None else extra_cost.detach()
        weights = (float(alpha), float(gamma), float(eps), float(class_cost), float(box_cost), float(giou_cost))
        cost_kernel(
            (cdiv(count, BLOCK), most, sets * batch),
            (logits, totals, preds, boxes, labels, valid, extra, costs),
            (batch, count, most, groups, each, *logits.stride(), *preds.stride(), *extra.stride(), *weights),
            (kind == SOFTMAX, eps > 0, gamma == 2, extra_cost is not None, BLOCK),
        )
        assign_kernel(
            (sets * groups * batch,),
            (costs, valid, valid, query, index),
            (each, most, batch, groups, count),
            (False, True, *blocks(each, most)),
        )
    return query, index, valid.view(torch.bool)
