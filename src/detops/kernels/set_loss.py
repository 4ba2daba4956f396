"""`set_loss` in Triton: a kernel over queries for the box losses, and one over logits.

The first leaves the label and the IoU of each query for the second, which reads the logits and writes their gradient
once. No atomics, so the same bits every run; the blocks' sums are added by PyTorch in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.kernels._boxes import overlap
from detops.kernels._iou_loss import EPS, GIOU, iou_loss
from detops.kernels._launch import cdiv, kernel, next_power_of_2
from detops.kernels._softplus import log1p_of, power

BLOCK_Q, BLOCK_X = 64, 2048
SOFTMAX, FOCAL, VARIFOCAL, MAL, IA_BCE, VARIFOCAL_LIVE, POSITION = (tl.constexpr(kind) for kind in range(7))


@triton.jit
def _box(boxes, at, step, mask):
    """Centre and size of boxes."""
    pointer = boxes + at
    return (
        tl.load(pointer, mask=mask, other=0),
        tl.load(pointer + step, mask=mask, other=0),
        tl.load(pointer + 2 * step, mask=mask, other=0),
        tl.load(pointer + 3 * step, mask=mask, other=0),
    )


@triton.jit
def _overlap_of(px, py, pw, ph, tx, ty, tw, th):
    """IoU of boxes of centre and size, within 0 .. 1."""
    inter, union = overlap(
        px - pw / 2, py - ph / 2, px + pw / 2, py + ph / 2, pw * ph,
        tx - tw / 2, ty - th / 2, tx + tw / 2, ty + th / 2, tw * th,
    )  # fmt: skip
    iou = inter / (union + EPS) + 0 * (px + py + pw + ph)
    return tl.where(iou < 0, 0.0, tl.where(iou > 1, 1.0, iou))


@kernel(tensors=11, num_warps=2)
def query_kernel(
    preds,  # (S, B, Q, 4), contiguous, as all that follow
    boxes,  # (B, N, 4)
    labels,  # (B, N)
    index,  # (S, B, Q)
    box_index,  # (S, B, Q)
    quality,  # (S, B, Q), not read without HAS_QUALITY
    scale,  # (S, 2)
    found_labels,  # (S, B, Q) int32: the label, -1 for background, -2 for a query whose logits are not read
    found_quality,  # (S, B, Q)
    gradients,  # (2, S, B, Q, 4), not written without WITH_GRADIENT
    sums,  # (2, S, B * blocks), with their factors
    S,
    B,
    Q,
    N,
    C,
    l1_weight,
    giou_weight,
    HAS_QUALITY: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Label, IoU and box losses of a block of queries."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    s, b = (tl.program_id(1) // B).to(tl.int64), tl.program_id(1) % B
    inside = q < Q
    at = (s * B + b) * Q + q
    px, py, pw, ph = _box(preds, at * 4, 1, inside)
    px, py, pw, ph = px.to(COMPUTE), py.to(COMPUTE), pw.to(COMPUTE), ph.to(COMPUTE)
    n = tl.load(index + at, mask=inside, other=-2)
    has = (n >= 0) & (n < N)
    label = tl.load(labels + b * N + n, mask=has, other=-1).to(tl.int32)
    label = tl.where((label >= 0) & (label < C), label, -1)
    tl.store(found_labels + at, tl.where(n < -1, -2, label), mask=inside)
    if HAS_QUALITY:
        u = tl.load(quality + at, mask=has, other=0).to(COMPUTE)
        u = tl.where(u < 0, 0.0, tl.where(u > 1, 1.0, u))
    else:
        tx, ty, tw, th = _box(boxes, (b * N + n) * 4, 1, has)
        u = _overlap_of(px, py, pw, ph, tx.to(COMPUTE), ty.to(COMPUTE), tw.to(COMPUTE), th.to(COMPUTE))
    tl.store(found_quality + at, tl.where(has, u, 0.0), mask=inside)
    m = tl.load(box_index + at, mask=inside, other=-1)
    paired = (m >= 0) & (m < N)
    tx, ty, tw, th = _box(boxes, (b * N + m) * 4, 1, paired)
    tx, ty, tw, th = tx.to(COMPUTE), ty.to(COMPUTE), tw.to(COMPUTE), th.to(COMPUTE)
    dx, dy, dw, dh = px - tx, py - ty, pw - tw, ph - th
    l1 = tl.abs(dx) + tl.abs(dy) + tl.abs(dw) + tl.abs(dh)
    giou, gx, gy, gw, gh = iou_loss(px, py, pw, ph, tx, ty, tw, th, GIOU)
    part = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    by = tl.load(scale + s * 2 + 1).to(COMPUTE)
    by_l1, by_giou = by * l1_weight, by * giou_weight
    tl.store(sums + part, by_l1 * tl.sum(tl.where(paired, l1, 0.0), 0))
    tl.store(sums + tl.num_programs(0) * tl.num_programs(1) + part, by_giou * tl.sum(tl.where(paired, giou, 0.0), 0))
    if WITH_GRADIENT:
        dtype = gradients.dtype.element_ty
        by_l1, by_giou = tl.where(paired, by_l1, 0.0), tl.where(paired, by_giou, 0.0)
        out = gradients + at * 4
        tl.store(out, (by_l1 * _sign(dx)).to(dtype), mask=inside)
        tl.store(out + 1, (by_l1 * _sign(dy)).to(dtype), mask=inside)
        tl.store(out + 2, (by_l1 * _sign(dw)).to(dtype), mask=inside)
        tl.store(out + 3, (by_l1 * _sign(dh)).to(dtype), mask=inside)
        out += S * B * Q * 4
        tl.store(out, tl.where(paired, by_giou * gx, 0.0).to(dtype), mask=inside)
        tl.store(out + 1, tl.where(paired, by_giou * gy, 0.0).to(dtype), mask=inside)
        tl.store(out + 2, tl.where(paired, by_giou * gw, 0.0).to(dtype), mask=inside)
        tl.store(out + 3, tl.where(paired, by_giou * gh, 0.0).to(dtype), mask=inside)


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@kernel(tensors=6)
def logit_kernel(
    logits,  # (S, B, Q, C), rows contiguous
    found_labels,  # (S, B, Q)
    found_quality,  # (S, B, Q)
    scale,  # (S, 2)
    gradient,  # (S, B, Q, C), rows contiguous; not written without WITH_GRADIENT
    sums,  # (S, B * blocks)
    B,
    Q,
    C,
    logit_set,
    logit_image,
    logit_query,
    gradient_set,
    gradient_image,
    gradient_query,
    class_weight,
    alpha,
    gamma,
    exponent,
    factor,
    KIND: tl.constexpr,
    FIXED: tl.constexpr,
    SQUARE: tl.constexpr,
    SQUARE_GAMMA: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Class loss of a block of one image's logits; every kind but softmax."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    s, b = (tl.program_id(1) // B).to(tl.int64), (tl.program_id(1) % B).to(tl.int64)
    q, c = element // C, element % C
    inside = q < Q
    at = (s * B + b) * Q + q
    label = tl.load(found_labels + at, mask=inside, other=-2)
    reads = label >= -1
    x = tl.load(logits + s * logit_set + b * logit_image + q * logit_query + c, mask=reads, other=0).to(COMPUTE)
    e = tl.exp(-tl.abs(x))
    r = 1 / (1 + e)
    p, rest = tl.where(x < 0, e * r, r), tl.where(x < 0, r, e * r)
    poison = x * 0
    cost = tl.maximum(x, 0.0) + log1p_of(e) + poison
    weight = factor * power(p, exponent, SQUARE)
    loss = weight * cost
    if FIXED:
        g = weight * p
    else:
        g = weight * (p + exponent * rest * cost)
    mine = (label == c.to(tl.int32)) & reads
    u = tl.load(found_quality + at, mask=mine, other=0).to(COMPUTE)
    if KIND == FOCAL:
        low = tl.maximum(-x, 0.0) + log1p_of(e) + poison
        own = alpha * power(rest, gamma, SQUARE_GAMMA)
        loss = tl.where(mine, own * low, loss)
        g = tl.where(mine, -own * (rest + gamma * p * low), g)
    elif KIND == MAL:
        target = power(u, gamma, SQUARE_GAMMA)
        loss, g = tl.where(mine, cost - target * x, loss), tl.where(mine, p - target, g)
    elif KIND == IA_BCE:
        target = power(p, alpha, False) * power(u, 1 - alpha, False)
        target = tl.where(target < 0.01, 0.01, target)
        loss, g = tl.where(mine, cost - target * x, loss), tl.where(mine, p - target, g)
    elif KIND == POSITION:
        apart = tl.abs(u - p)
        own = tl.where(u > 0, alpha, 1 - alpha)
        near = power(apart, gamma, SQUARE_GAMMA)
        turn = tl.where(apart > 0, gamma * near / tl.where(apart > 0, apart, 1.0), 0.0)
        turn = tl.where(p > u, turn, -turn)
        loss = tl.where(mine, own * near * (cost - u * x), loss)
        g = tl.where(mine, own * (turn * p * rest * (cost - u * x) + near * (p - u)), g)
    else:
        if KIND == VARIFOCAL_LIVE:
            mine = mine & (u > 0)
        loss = tl.where(mine, u * (cost - u * x), loss)
        g = tl.where(mine, u * (p - u), g)
    part = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    by = tl.load(scale + s * 2).to(COMPUTE) * class_weight
    tl.store(sums + part, by * tl.sum(tl.where(reads, loss, 0.0), 0))
    if WITH_GRADIENT:
        g = by * g
        out = gradient + s * gradient_set + b * gradient_image + q * gradient_query + c
        tl.store(out, tl.where(reads, g, 0.0).to(gradient.dtype.element_ty), mask=inside)


@kernel(tensors=5)
def softmax_kernel(
    logits,  # (S, B, Q, C), rows contiguous
    found_labels,  # (S, B, Q)
    scale,  # (S, 2)
    gradient,  # (S, B, Q, C), rows contiguous; not written without WITH_GRADIENT
    sums,  # (S, B * blocks)
    B,
    Q,
    C,
    logit_set,
    logit_image,
    logit_query,
    gradient_set,
    gradient_image,
    gradient_query,
    class_weight,
    factor,
    WITH_GRADIENT: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Weighted cross entropy of a block of queries."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    q = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    s, b = (tl.program_id(1) // B).to(tl.int64), (tl.program_id(1) % B).to(tl.int64)
    columns = tl.arange(0, BLOCK_C)
    label = tl.load(found_labels + (s * B + b) * Q + q, mask=q < Q, other=-2)
    reads = label >= -1
    cell = (q[:, None] < Q) & (columns[None, :] < C)
    row = logits + s * logit_set + b * logit_image + q[:, None] * logit_query + columns[None, :]
    x = tl.load(row, mask=cell & reads[:, None], other=0).to(COMPUTE)
    poison = tl.sum(tl.where(x == x, 0.0, 1.0), 1)
    x = tl.where(columns[None, :] < C, x, float("-inf"))
    e = tl.exp(x - tl.max(x, 1)[:, None])
    total = tl.sum(e, 1)
    weight = tl.where(label >= 0, 1.0, factor).to(COMPUTE)
    mine = columns[None, :] == tl.where(label >= 0, label, C - 1)[:, None]
    own = tl.sum(tl.where(mine, x, 0.0), 1)
    loss = weight * (tl.log(total) + tl.max(x, 1) - own)
    loss = tl.where(poison > 0, float("nan"), loss)
    part = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    by = tl.load(scale + s * 2).to(COMPUTE) * class_weight
    tl.store(sums + part, by * tl.sum(tl.where(reads, loss, 0.0), 0))
    if WITH_GRADIENT:
        g = (by * weight)[:, None] * (e / total[:, None] - tl.where(mine, 1.0, 0.0))
        g = tl.where((poison > 0)[:, None], float("nan"), g)
        out = gradient + s * gradient_set + b * gradient_image + q[:, None] * gradient_query + columns[None, :]
        tl.store(out, tl.where(reads[:, None], g, 0.0).to(gradient.dtype.element_ty), mask=cell)


def set_loss(
    class_logits: Tensor,
    pred_boxes: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    index: Tensor,
    box_index: Tensor | None,
    quality: Tensor | None,
    scale: Tensor,
    weights: list[float],
    kind: int,
    alpha: float,
    gamma: float,
    factor: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch both kernels; meaning as in `detops.reference.set_loss`."""
    sets, batch, queries, classes = class_logits.shape
    dtype = accumulate_dtype(class_logits)
    double = dtype == torch.float64
    gradient = torch.empty_like(class_logits) if with_gradient else class_logits.new_empty(0)
    of_boxes = pred_boxes.new_empty((2, *pred_boxes.shape) if with_gradient else 0)
    if sets * batch * queries == 0:
        return class_logits.new_zeros((sets, 3), dtype=dtype), gradient, of_boxes
    labels = torch.empty(index.shape, dtype=torch.int32, device=index.device)
    found = torch.empty(index.shape, dtype=dtype, device=index.device)
    scales = scale.to(dtype).contiguous()
    blocks = cdiv(queries, BLOCK_Q)
    sums = found.new_empty(2, sets, batch * blocks)
    query_kernel(
        (blocks, sets * batch),
        (
            pred_boxes.contiguous(), gt_boxes.contiguous(), gt_labels.contiguous(), index.contiguous(),
            (index if box_index is None else box_index).contiguous(),
            found if quality is None else quality.contiguous(), scales, labels, found, of_boxes, sums,
        ),
        (sets, batch, queries, gt_boxes.shape[1], classes, float(weights[1]), float(weights[2])),
        (quality is not None, with_gradient, double, BLOCK_Q),
    )  # fmt: skip
    rows = gradient.stride()[:3] if with_gradient else (0, 0, 0)
    sizes = (batch, queries, classes, *class_logits.stride()[:3], *rows, float(weights[0]))
    if kind == SOFTMAX.value:
        columns = next_power_of_2(classes)
        block = max(1, BLOCK_X // columns)
        grid = (cdiv(queries, block), sets * batch)
        parts = found.new_empty(sets, batch * grid[0])
        softmax_kernel(
            grid, (class_logits, labels, scales, gradient, parts), (*sizes, float(factor)),
            (with_gradient, double, block, columns),
        )  # fmt: skip
    else:
        fixed = kind in (VARIFOCAL.value, MAL.value)
        exponent = 2.0 if kind == IA_BCE.value else float(gamma)
        background = 1.0 if kind == IA_BCE.value else float(alpha if fixed else 1 - alpha)
        grid = (cdiv(queries * classes, BLOCK_X), sets * batch)
        parts = found.new_empty(sets, batch * grid[0])
        logit_kernel(
            grid, (class_logits, labels, found, scales, gradient, parts),
            (*sizes, float(alpha), float(gamma), exponent, background),
            (kind, fixed, exponent == 2, gamma == 2, with_gradient, double, BLOCK_X),
        )  # fmt: skip
    return torch.cat([parts.sum(1, keepdim=True), sums.sum(2).mT], 1), gradient, of_boxes
