"""`set_match` in Triton: kernels for which boxes take part and for all costs, and a program per problem to solve it.

Parts of as many queries go together, so that there are three launches unless numbers of queries differ.
"""

from itertools import groupby

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._assignment import assign_kernel, blocks
from detops.kernels._boxes import overlap
from detops.kernels._launch import cdiv, kernel, level_of, map_of, number_of
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
    logits,  # a tuple: each part's (S, B, Q, C), of any strides
    preds,  # a tuple: each part's (S, B, Q, 4), of any strides
    totals,  # (R, B, Q) logarithms of the sums of exponentials, not read without SOFTMAX
    boxes,  # (B, N, 4)
    labels,  # (B, N)
    valid,  # (B, N) which of the boxes take part
    extra,  # (S, B, Q, N) of the first part, of any strides, not read without HAS_EXTRA
    costs,  # (R, G, B, N, Q // G)
    firsts,  # tuples, of each part: its first set
    logit_strides,
    pred_strides,
    B,
    Q,
    N,
    G,
    each,
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
    PARTS: tl.constexpr,
    IS_SOFTMAX: tl.constexpr,
    HAS_EPS: tl.constexpr,
    SQUARE: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The costs of one box at a block of queries of one set."""
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1)
    row = tl.program_id(2) // B
    b = (tl.program_id(2) % B).to(tl.int64)
    which = level_of(row, firsts, PARTS)
    s = (row - number_of(firsts, which, PARTS, 1, 0)).to(tl.int64)
    if tl.load(valid + b * N + n) > 0:
        inside = q < each * G
        label = tl.load(labels + b * N + n).to(tl.int64)
        at = s * number_of(logit_strides, which, PARTS, 4, 0) + b * number_of(logit_strides, which, PARTS, 4, 1)
        at += q * number_of(logit_strides, which, PARTS, 4, 2) + label * number_of(logit_strides, which, PARTS, 4, 3)
        x = tl.load(map_of(logits, which, PARTS) + at, mask=inside, other=0).to(tl.float32)
        if IS_SOFTMAX:
            total = tl.load(totals + (row * B + b) * Q + q, mask=inside, other=0)
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
        at = s * number_of(pred_strides, which, PARTS, 4, 0) + b * number_of(pred_strides, which, PARTS, 4, 1)
        pred = map_of(preds, which, PARTS) + at + q * number_of(pred_strides, which, PARTS, 4, 2)
        pred_number = number_of(pred_strides, which, PARTS, 4, 3)
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
            cost += tl.load(more, mask=q < tl.where(which == 0, each * G, 0), other=0).to(tl.float32)
        problem = (row.to(tl.int64) * G + q // each) * B + b
        tl.store(costs + (problem * N + n) * each + q % each, cost, mask=inside)


def set_match(
    class_logits: list[Tensor],
    pred_boxes: list[Tensor],
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
    batch, most, device = *gt_labels.shape, gt_boxes.device
    sets, counts = [len(one) for one in class_logits], [one.shape[2] for one in class_logits]
    boxes, labels = gt_boxes.contiguous(), gt_labels.contiguous()
    valid = torch.empty((batch, most), dtype=torch.uint8, device=device)
    rows = [number * batch * count for number, count in zip(sets, counts, strict=True)]
    index = torch.empty(sum(rows), dtype=torch.int64, device=device)
    query = torch.empty((sum(sets), groups, batch, most), dtype=torch.int64, device=device)
    if valid.numel():
        valid_kernel(
            (cdiv(valid.numel(), BLOCK),),
            (boxes, labels, valid if sample_sizes is None else sample_sizes.contiguous(), valid),
            (most, valid.numel(), num_classes),
            (sample_sizes is not None, BLOCK),
        )
    weights = (float(alpha), float(gamma), float(eps), float(class_cost), float(box_cost), float(giou_cost))
    part = 0
    for count, same in groupby(counts):
        run = slice(part, part + len(list(same)))
        queries = query[sum(sets[:part]) : sum(sets[: run.stop])]
        found = index[sum(rows[:part]) : sum(rows[: run.stop])]
        each = count // groups
        if queries.numel() == 0 or each == 0:
            queries.fill_(-1)
            found.fill_(-1)
            part = run.stop
            continue
        if each * groups < count:
            found.fill_(-1)
        logits, preds = (tuple(one.detach() for one in every[run]) for every in (class_logits, pred_boxes))
        costs = torch.empty((len(queries) * groups * batch, most, each), dtype=torch.float32, device=device)
        totals = costs
        if kind == SOFTMAX:
            totals = torch.cat([one.to(torch.float32).logsumexp(-1) for one in logits])
        extra = None if extra_cost is None or part > 0 else extra_cost.detach()
        cost_kernel(
            (cdiv(count, BLOCK), most, len(queries) * batch),
            (logits, preds, totals, boxes, labels, valid, preds[0] if extra is None else extra, costs),
            (
                tuple(sum(sets[part:i]) for i in range(run.start, run.stop)),
                tuple(stride for one in logits for stride in one.stride()),
                tuple(stride for one in preds for stride in one.stride()),
                batch, count, most, groups, each, *(preds[0] if extra is None else extra).stride(), *weights,
            ),
            (len(logits), kind == SOFTMAX, eps > 0, gamma == 2, extra is not None, BLOCK),
        )  # fmt: skip
        assign_kernel(
            (len(costs),),
            (costs, valid, valid, queries, found),
            (each, most, batch, groups, count),
            (False, True, *blocks(each, most)),
        )
        part = run.stop
    return query, index, valid.view(torch.bool)
