"""`set_loss` in Triton: a kernel over queries for the box losses, one over logits, and one that adds up.

The first leaves the label and the IoU of each query for the second, which reads the logits and writes their gradient
once; the third adds the blocks' sums in a fixed order. No atomics, so the same bits every run. All parts go together.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.geometry.set_parts import gaps_of, parts_of
from detops.kernels._boxes import overlap
from detops.kernels._iou_loss import EPS, GIOU, iou_loss
from detops.kernels._launch import cdiv, kernel, level_of, map_of, next_power_of_2, number_of
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
    preds,  # a tuple: each part's (S, B, Q, 4), of any strides
    boxes,  # (B, N, 4), contiguous, as all that follow
    labels,  # (B, N)
    index,  # (rows,)
    box_index,  # (rows,)
    quality,  # (rows,), not read without HAS_QUALITY
    scale,  # (R, 2)
    found_labels,  # (rows,) int32: the label, -1 for background, -2 for a query whose logits are not read
    found_quality,  # (rows,)
    gradients,  # (2, rows, 4), not written without WITH_GRADIENT
    sums,  # (2, R, B * blocks), with their factors
    firsts,  # tuples, of each part: its first set,
    sizes,  # its number of queries, and its first row
    pred_strides,
    B,
    N,
    C,
    rows,
    l1_weight,
    giou_weight,
    PARTS: tl.constexpr,
    HAS_QUALITY: tl.constexpr,
    CLAMP: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Label, IoU and box losses of a block of queries."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, b = tl.program_id(1) // B, (tl.program_id(1) % B).to(tl.int64)
    which = level_of(row, firsts, PARTS)
    s = (row - number_of(firsts, which, PARTS, 1, 0)).to(tl.int64)
    Q = number_of(sizes, which, PARTS, 2, 0)
    inside = q < Q
    at = number_of(sizes, which, PARTS, 2, 1) + (s * B + b) * Q + q
    place = s * number_of(pred_strides, which, PARTS, 4, 0) + b * number_of(pred_strides, which, PARTS, 4, 1)
    place += q * number_of(pred_strides, which, PARTS, 4, 2)
    px, py, pw, ph = _box(map_of(preds, which, PARTS), place, number_of(pred_strides, which, PARTS, 4, 3), inside)
    px, py, pw, ph = px.to(COMPUTE), py.to(COMPUTE), pw.to(COMPUTE), ph.to(COMPUTE)
    ix, iy, iw, ih = _within(px), _within(py), _within(pw), _within(ph)
    if CLAMP:
        px, py, pw, ph = _clamped(px), _clamped(py), _clamped(pw), _clamped(ph)
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
    by = tl.load(scale + row * 2 + 1).to(COMPUTE)
    by_l1, by_giou = by * l1_weight, by * giou_weight
    tl.store(sums + part, by_l1 * tl.sum(tl.where(paired, l1, 0.0), 0))
    tl.store(sums + tl.num_programs(0) * tl.num_programs(1) + part, by_giou * tl.sum(tl.where(paired, giou, 0.0), 0))
    if WITH_GRADIENT:
        dtype = gradients.dtype.element_ty
        ix, iy, iw, ih = paired & ix, paired & iy, paired & iw, paired & ih
        if not CLAMP:
            ix, iy, iw, ih = paired, paired, paired, paired
        out = gradients + at * 4
        tl.store(out, tl.where(ix, by_l1 * _sign(dx), 0.0).to(dtype), mask=inside)
        tl.store(out + 1, tl.where(iy, by_l1 * _sign(dy), 0.0).to(dtype), mask=inside)
        tl.store(out + 2, tl.where(iw, by_l1 * _sign(dw), 0.0).to(dtype), mask=inside)
        tl.store(out + 3, tl.where(ih, by_l1 * _sign(dh), 0.0).to(dtype), mask=inside)
        out += rows.to(tl.int64) * 4
        tl.store(out, tl.where(ix, by_giou * gx, 0.0).to(dtype), mask=inside)
        tl.store(out + 1, tl.where(iy, by_giou * gy, 0.0).to(dtype), mask=inside)
        tl.store(out + 2, tl.where(iw, by_giou * gw, 0.0).to(dtype), mask=inside)
        tl.store(out + 3, tl.where(ih, by_giou * gh, 0.0).to(dtype), mask=inside)


@triton.jit
def _within(x):
    return (x >= 0) & (x <= 1)


@triton.jit
def _clamped(x):
    """A number limited to 0 .. 1; NaN stays."""
    return tl.where(x < 0, 0.0, tl.where(x > 1, 1.0, x))


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@kernel(tensors=6, num_warps=8)
def logit_kernel(
    logits,  # a tuple: each part's (S, B, Q, C), rows contiguous
    gradients,  # a tuple: the same of the gradients; not written without WITH_GRADIENT
    found_labels,  # (rows,)
    found_quality,  # (rows,)
    scale,  # (R, 2)
    sums,  # (R, B * blocks)
    firsts,  # tuples, of each part: its first set,
    sizes,  # its number of queries, and its first row
    logit_strides,
    gradient_strides,
    B,
    C,
    class_weight,
    alpha,
    gamma,
    exponent,
    factor,
    PARTS: tl.constexpr,
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
    row, b = tl.program_id(1) // B, (tl.program_id(1) % B).to(tl.int64)
    which = level_of(row, firsts, PARTS)
    s = (row - number_of(firsts, which, PARTS, 1, 0)).to(tl.int64)
    Q = number_of(sizes, which, PARTS, 2, 0)
    q, c = element // C, element % C
    inside = q < Q
    at = number_of(sizes, which, PARTS, 2, 1) + (s * B + b) * Q + q
    label = tl.load(found_labels + at, mask=inside, other=-2)
    reads = label >= -1
    place = _row(logit_strides, which, s, b, q, PARTS) + c
    x = tl.load(map_of(logits, which, PARTS) + place, mask=reads, other=0).to(COMPUTE)
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
    by = tl.load(scale + row * 2).to(COMPUTE) * class_weight
    tl.store(sums + part, by * tl.sum(tl.where(reads, loss, 0.0), 0))
    if WITH_GRADIENT:
        gradient = map_of(gradients, which, PARTS)
        g = tl.where(reads, by * g, 0.0).to(gradient.dtype.element_ty)
        tl.store(gradient + _row(gradient_strides, which, s, b, q, PARTS) + c, g, mask=inside)


@triton.jit
def _row(strides, which, s, b, q, PARTS: tl.constexpr):
    """Where queries lie in their part."""
    place = s * number_of(strides, which, PARTS, 3, 0) + b * number_of(strides, which, PARTS, 3, 1)
    return place + q * number_of(strides, which, PARTS, 3, 2)


@kernel(tensors=5)
def softmax_kernel(
    logits,  # a tuple: each part's (S, B, Q, C), rows contiguous
    gradients,  # a tuple: the same of the gradients; not written without WITH_GRADIENT
    found_labels,  # (rows,)
    scale,  # (R, 2)
    sums,  # (R, B * blocks)
    firsts,  # tuples, of each part: its first set,
    sizes,  # its number of queries, and its first row
    logit_strides,
    gradient_strides,
    B,
    C,
    class_weight,
    factor,
    PARTS: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Weighted cross entropy of a block of queries."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    q = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, b = tl.program_id(1) // B, (tl.program_id(1) % B).to(tl.int64)
    which = level_of(row, firsts, PARTS)
    s = (row - number_of(firsts, which, PARTS, 1, 0)).to(tl.int64)
    Q = number_of(sizes, which, PARTS, 2, 0)
    columns = tl.arange(0, BLOCK_C)
    label = tl.load(found_labels + number_of(sizes, which, PARTS, 2, 1) + (s * B + b) * Q + q, mask=q < Q, other=-2)
    reads = label >= -1
    cell = (q[:, None] < Q) & (columns[None, :] < C)
    place = map_of(logits, which, PARTS) + _row(logit_strides, which, s, b, q, PARTS)[:, None] + columns[None, :]
    x = tl.load(place, mask=cell & reads[:, None], other=0).to(COMPUTE)
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
    by = tl.load(scale + row * 2).to(COMPUTE) * class_weight
    tl.store(sums + part, by * tl.sum(tl.where(reads, loss, 0.0), 0))
    if WITH_GRADIENT:
        gradient = map_of(gradients, which, PARTS)
        g = (by * weight)[:, None] * (e / total[:, None] - tl.where(mine, 1.0, 0.0))
        g = tl.where((poison > 0)[:, None], float("nan"), g)
        out = gradient + _row(gradient_strides, which, s, b, q, PARTS)[:, None] + columns[None, :]
        tl.store(out, tl.where(reads[:, None], g, 0.0).to(gradient.dtype.element_ty), mask=cell)


@kernel(tensors=3)
def sum_kernel(
    of_logits,  # (R, class_parts)
    of_boxes,  # (2, R, box_parts)
    losses,  # (R, 3)
    R,
    class_parts,
    box_parts,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up the sums of one set's blocks."""
    r, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    of_class, of_box = tl.where(k == 0, class_parts, 0), tl.where(k == 0, 0, box_parts)
    total = tl.zeros((BLOCK,), tl.float64 if DOUBLE else tl.float32)
    place = (tl.maximum(k, 1) - 1) * R + r
    for start in range(0, of_class + of_box, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(of_logits + r * class_parts + i, mask=i < of_class, other=0)
        total += tl.load(of_boxes + place * box_parts + i, mask=i < of_box, other=0)
    tl.store(losses + r * 3 + k, tl.sum(total, 0))


def set_loss(
    class_logits: list[Tensor],
    pred_boxes: list[Tensor],
    parts: list[int],
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
    clamp: bool,
    with_gradient: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Launch the three kernels; meaning as in `detops.reference.set_loss`."""
    batch, rows, sets, classes = len(gt_boxes), len(index), len(scale), class_logits[0].shape[3]
    dtype = accumulate_dtype(class_logits[0])
    double = dtype == torch.float64
    gradients = [torch.empty_like(one) for one in class_logits] if with_gradient else []
    for tensor, place in gaps_of(parts, [one.shape for one in gradients]):
        gradients[tensor][place].zero_()
    of_boxes = pred_boxes[0].new_empty((2, rows, 4) if with_gradient else 0)
    if rows == 0:
        return class_logits[0].new_zeros((sets, 3), dtype=dtype), gradients, of_boxes
    split = parts_of(parts, batch)
    labels = torch.empty(rows, dtype=torch.int32, device=index.device)
    found = torch.empty(rows, dtype=dtype, device=index.device)
    scales = scale.to(dtype).contiguous()
    preds, logits = (tuple(part.of(every) for part in split) for every in (pred_boxes, class_logits))
    firsts = tuple(part.sets.start for part in split)
    sizes = tuple(n for part, one in zip(split, preds, strict=True) for n in (one.shape[2], part.rows.start))
    queries = max(one.shape[2] for one in preds)
    blocks = cdiv(queries, BLOCK_Q)
    sums = found.new_empty(2, sets, batch * blocks)
    query_kernel(
        (blocks, sets * batch),
        (
            preds, gt_boxes.contiguous(), gt_labels.contiguous(), index, index if box_index is None else box_index,
            found if quality is None else quality.contiguous(), scales, labels, found, of_boxes, sums,
        ),
        (
            firsts, sizes, tuple(stride for one in preds for stride in one.stride()),
            batch, gt_boxes.shape[1], classes, rows, float(weights[1]), float(weights[2]),
        ),
        (len(split), quality is not None, clamp, with_gradient, double, BLOCK_Q),
    )  # fmt: skip
    out = tuple(part.of(gradients) for part in split) if with_gradient else logits
    strides = [tuple(stride for one in every for stride in one.stride()[:3]) for every in (logits, out)]
    numbers = (firsts, sizes, *strides, batch, classes, float(weights[0]))
    if kind == SOFTMAX.value:
        columns = next_power_of_2(classes)
        block = max(1, BLOCK_X // columns)
        grid = (cdiv(queries, block), sets * batch)
        of_logits = found.new_empty(sets, batch * grid[0])
        softmax_kernel(
            grid, (logits, out, labels, scales, of_logits), (*numbers, float(factor)),
            (len(split), with_gradient, double, block, columns),
        )  # fmt: skip
    else:
        fixed = kind in (VARIFOCAL.value, MAL.value)
        exponent = 2.0 if kind == IA_BCE.value else float(gamma)
        background = 1.0 if kind == IA_BCE.value else float(alpha if fixed else 1 - alpha)
        grid = (cdiv(queries * classes, BLOCK_X), sets * batch)
        of_logits = found.new_empty(sets, batch * grid[0])
        logit_kernel(
            grid, (logits, out, labels, found, scales, of_logits),
            (*numbers, float(alpha), float(gamma), exponent, background),
            (len(split), kind, fixed, exponent == 2, gamma == 2, with_gradient, double, BLOCK_X),
        )  # fmt: skip
    losses = found.new_empty(sets, 3)
    sum_kernel((sets, 3), (of_logits, sums, losses), (sets, of_logits.shape[1], sums.shape[2]), (double, 256))
    return losses, gradients, of_boxes
