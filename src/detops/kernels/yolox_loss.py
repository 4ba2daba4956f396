"""`yolox_loss` in Triton: one pass over each level's outputs, which writes the gradient too.

A program owns a run of cells of one image. What positives need is computed for all its cells at once, and only where it
has any; each program leaves four sums, which PyTorch adds in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32  # cells of a program
EPS = tl.constexpr(1e-16)
QUARTER = tl.constexpr(0.7853981633974483)  # pi / 4
SQUARED, PLAIN, GIOU, DIOU = (tl.constexpr(kind) for kind in range(4))


@triton.jit
def _share(high, low):
    """1 where `high` is higher, 1/2 where both are equal, else 0."""
    return tl.where(high > low, 1.0, tl.where(high == low, 0.5, 0.0))


@triton.jit
def _overlap(center, size, other_center, other_size):
    """Length of an overlap along one axis, and how it grows with centre and size of the first."""
    low, high = center - size / 2, center + size / 2
    other_low, other_high = other_center - other_size / 2, other_center + other_size / 2
    length = tl.minimum(high, other_high) - tl.maximum(low, other_low)
    opened = tl.where(length >= 0, 1.0, 0.0)
    upper, lower = _share(other_high, high) * opened, _share(low, other_low) * opened
    return tl.where(length < 0, 0.0, length), upper - lower, (upper + lower) / 2


@triton.jit
def _hull(center, size, other_center, other_size):
    """The same of the run that holds both."""
    low, high = center - size / 2, center + size / 2
    other_low, other_high = other_center - other_size / 2, other_center + other_size / 2
    upper, lower = _share(high, other_high), _share(other_low, low)
    return tl.maximum(high, other_high) - tl.minimum(low, other_low), upper - lower, (upper + lower) / 2


@triton.jit
def _atan_ratio(w, h):
    """atan(w / h) for w >= 0 and h > 0: reduced twice by pi / 4, then its series."""
    t = (w - h) / (w + h)
    m = tl.abs(t)
    far = m > 0.41421356
    z = tl.where(far, (m - 1) / (m + 1), m)
    s = z * z
    series = -1.0 / 19
    series = series * s + 1.0 / 17
    series = series * s - 1.0 / 15
    series = series * s + 1.0 / 13
    series = series * s - 1.0 / 11
    series = series * s + 1.0 / 9
    series = series * s - 1.0 / 7
    series = series * s + 1.0 / 5
    series = series * s - 1.0 / 3
    part = z * (series * s + 1) + tl.where(far, QUARTER, 0.0)
    return QUARTER + tl.where(t < 0, -part, part)


@triton.jit
def _iou_loss(px, py, pw, ph, tx, ty, tw, th, KIND: tl.constexpr):
    """Loss of cxcywh boxes, and its gradient by each number of the first."""
    ox, ox_center, ox_size = _overlap(px, pw, tx, tw)
    oy, oy_center, oy_size = _overlap(py, ph, ty, th)
    inter = ox * oy
    by_x, by_y, by_w, by_h = oy * ox_center, ox * oy_center, oy * ox_size, ox * oy_size
    union = pw * ph + tw * th - inter
    divisor = union + EPS
    iou = inter / divisor
    g_x, g_y = (by_x + iou * by_x) / divisor, (by_y + iou * by_y) / divisor
    g_w, g_h = (by_w - iou * (ph - by_w)) / divisor, (by_h - iou * (pw - by_h)) / divisor
    if KIND == SQUARED:
        loss = 1 - iou * iou
        slope = -2 * iou
        g_x, g_y, g_w, g_h = slope * g_x, slope * g_y, slope * g_w, slope * g_h
    elif KIND == PLAIN:
        loss = 1 - iou
        g_x, g_y, g_w, g_h = -g_x, -g_y, -g_w, -g_h
    else:
        hx, hx_center, hx_size = _hull(px, pw, tx, tw)
        hy, hy_center, hy_size = _hull(py, ph, ty, th)
        if KIND == GIOU:
            area = hx * hy
            least = tl.maximum(area, EPS)
            empty = (area - union) / least
            keeps = 1 - tl.where(area >= EPS, empty, 0.0)
            giou = iou - empty
            opened = tl.where((giou < -1) | (giou > 1), 0.0, 1.0)
            g_x = -opened * (g_x - (hy * hx_center * keeps + by_x) / least)
            g_y = -opened * (g_y - (hx * hy_center * keeps + by_y) / least)
            g_w = -opened * (g_w - (hy * hx_size * keeps - (ph - by_w)) / least)
            g_h = -opened * (g_h - (hx * hy_size * keeps - (pw - by_h)) / least)
            loss = 1 - tl.where(giou < -1, -1.0, tl.where(giou > 1, 1.0, giou))
        else:
            dx, dy = px - tx, py - ty
            diagonal = hx * hx + hy * hy + EPS
            distance = (dx * dx + dy * dy) / diagonal
            g_x = -g_x + 2 * (dx - distance * hx * hx_center) / diagonal
            g_y = -g_y + 2 * (dy - distance * hy * hy_center) / diagonal
            g_w = -g_w - 2 * distance * hx * hx_size / diagonal
            g_h = -g_h - 2 * distance * hy * hy_size / diagonal
            loss = 1 - iou + distance
            if KIND != DIOU:
                height = ph + EPS
                factor = 0.25 / (QUARTER * QUARTER)  # 4 / pi^2
                turn = _atan_ratio(tw, th + EPS) - _atan_ratio(pw, height)
                aspect = factor * turn * turn
                alpha = aspect / (1 - iou + aspect + EPS)
                slope = -2 * factor * turn / (height * height + pw * pw) * alpha
                g_w += slope * height
                g_h -= slope * pw
                loss += alpha * aspect
    return loss + 0 * (px + py + pw + ph), g_x, g_y, g_w, g_h  # what is not finite shows: tl.minimum drops a NaN


@triton.jit
def _softplus(x):
    """log(1 + e^x) and the sigmoid of x; both NaN where x is not finite."""
    e = tl.exp(-tl.abs(x))
    r = 1 / (1 + e)
    poison = x * 0
    # log(1 + e) as 2 atanh(e / (2 + e)), which keeps the small end.
    z = e / (2 + e)
    s = z * z
    series = 2.0 / 15
    series = series * s + 2.0 / 13
    series = series * s + 2.0 / 11
    series = series * s + 2.0 / 9
    series = series * s + 2.0 / 7
    series = series * s + 2.0 / 5
    series = series * s + 2.0 / 3
    series = series * s + 2.0
    return tl.maximum(x, 0.0) + z * series + poison, tl.where(x < 0, e * r, r) + poison


@triton.jit
def loss_kernel(
    output,  # (B, R, 5 + C)
    stride_b,
    stride_r,
    stride_c,
    gradient,  # (B, R, 5 + C) contiguous
    cells,  # (A, 3)
    boxes,  # (B, N, 4)
    labels,  # (B, N)
    index,  # (B, A)
    matched,  # (B, A)
    scale,  # (2,)
    pos_weight,  # (C,)
    parts,  # (programs, 4)
    first_part,
    start,
    R,
    C,
    A,
    N,
    iou_weight,
    obj_weight,
    cls_weight,
    KIND: tl.constexpr,
    USE_L1: tl.constexpr,
    HAS_POS_WEIGHT: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Losses and gradient of a run of cells."""
    b = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < R
    a = start + row
    one, other = tl.load(scale), tl.load(scale + 1)
    chosen = tl.load(index + b * A + a, mask=inside, other=-1)
    label = tl.load(labels + b * N + chosen, mask=(chosen >= 0) & (chosen < N), other=-1).to(tl.int64)
    is_object = (chosen >= 0) & (chosen < N)
    positive = is_object & (label >= 0) & (label < C)
    source = output + b * stride_b + row.to(tl.int64) * stride_r
    sink = gradient + (b * R + row) * (5 + C)

    logit = tl.load(source + 4 * stride_c, mask=inside, other=0.0).to(tl.float32)
    down, p = _softplus(logit)
    wanted = tl.where(is_object, 1.0, 0.0)
    obj = tl.sum(tl.where(inside, down - wanted * logit, 0.0), 0)
    if WITH_GRADIENT:
        tl.store(sink + 4, (obj_weight * other * (p - wanted)).to(gradient.dtype.element_ty), mask=inside)

    iou_sum = tl.full((), 0, tl.float32)
    l1_sum = tl.full((), 0, tl.float32)
    cls_sum = tl.full((), 0, tl.float32)
    g_x = tl.zeros((BLOCK,), tl.float32)
    g_y = tl.zeros((BLOCK,), tl.float32)
    g_w = tl.zeros((BLOCK,), tl.float32)
    g_h = tl.zeros((BLOCK,), tl.float32)
    any_positive = tl.max(positive.to(tl.int32), 0) > 0
    if any_positive:
        side = tl.load(cells + a * 3 + 2, mask=inside, other=1.0)
        grid_x = tl.load(cells + a * 3, mask=inside, other=0.0) / side - 0.5
        grid_y = tl.load(cells + a * 3 + 1, mask=inside, other=0.0) / side - 0.5
        x = tl.load(source, mask=positive, other=0.0).to(tl.float32)
        y = tl.load(source + stride_c, mask=positive, other=0.0).to(tl.float32)
        w = tl.load(source + 2 * stride_c, mask=positive, other=0.0).to(tl.float32)
        h = tl.load(source + 3 * stride_c, mask=positive, other=0.0).to(tl.float32)
        box = boxes + (b * N + chosen) * 4
        tx = tl.load(box, mask=positive, other=0.0)
        ty = tl.load(box + 1, mask=positive, other=0.0)
        tw = tl.load(box + 2, mask=positive, other=1.0)
        th = tl.load(box + 3, mask=positive, other=1.0)
        pw, ph = tl.exp(w) * side, tl.exp(h) * side
        loss, g_x, g_y, g_w, g_h = _iou_loss((x + grid_x) * side, (y + grid_y) * side, pw, ph, tx, ty, tw, th, KIND)
        iou_sum += tl.sum(tl.where(positive, loss, 0.0), 0)
        g_x, g_y = g_x * iou_weight * side, g_y * iou_weight * side
        g_w, g_h = g_w * iou_weight * pw, g_h * iou_weight * ph
        if USE_L1:
            away_x, away_y = x - (tx / side - grid_x), y - (ty / side - grid_y)
            away_w, away_h = w - tl.log(tw / side + 1e-8), h - tl.log(th / side + 1e-8)
            away = tl.abs(away_x) + tl.abs(away_y) + tl.abs(away_w) + tl.abs(away_h)
            l1_sum += tl.sum(tl.where(positive, away, 0.0), 0)
            g_x += _share(away_x, 0.0) - _share(0.0, away_x)
            g_y += _share(away_y, 0.0) - _share(0.0, away_y)
            g_w += _share(away_w, 0.0) - _share(0.0, away_w)
            g_h += _share(away_h, 0.0) - _share(0.0, away_h)
    if WITH_GRADIENT:
        kind = gradient.dtype.element_ty
        tl.store(sink, tl.where(positive, one * g_x, 0.0).to(kind), mask=inside)
        tl.store(sink + 1, tl.where(positive, one * g_y, 0.0).to(kind), mask=inside)
        tl.store(sink + 2, tl.where(positive, one * g_w, 0.0).to(kind), mask=inside)
        tl.store(sink + 3, tl.where(positive, one * g_h, 0.0).to(kind), mask=inside)
    if WITH_GRADIENT or any_positive:
        share = tl.load(matched + b * A + a, mask=inside, other=0.0)[:, None]
        for c in range(0, C, BLOCK_C):
            column = c + tl.arange(0, BLOCK_C)[None, :]
            known = positive[:, None] & (column < C)
            value = tl.load(source[:, None] + (5 + column) * stride_c, mask=known, other=0.0).to(tl.float32)
            negative, high = _softplus(value)
            target = tl.where(column == label[:, None], share, 0.0)
            weight = 1.0
            if HAS_POS_WEIGHT:
                weight = tl.load(pos_weight + column, mask=column < C, other=1.0)
            loss = weight * target * (negative - value) + (1 - target) * negative
            cls_sum += tl.sum(tl.sum(tl.where(known, loss, 0.0), 1), 0)
            if WITH_GRADIENT:
                g = cls_weight * one * ((1 - target) * high - weight * target * (1 - high))
                g = tl.where(known, g, 0.0).to(gradient.dtype.element_ty)
                tl.store(sink[:, None] + 5 + column, g, mask=inside[:, None] & (column < C))
    part = parts + (first_part + b * tl.num_programs(0) + tl.program_id(0)) * 4
    tl.store(part, iou_sum * one)
    tl.store(part + 1, obj * other)
    tl.store(part + 2, cls_sum * one)
    tl.store(part + 3, l1_sum * one)


def yolox_loss(
    outputs: list[Tensor],
    cells: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    index: Tensor,
    iou: Tensor,
    scale: Tensor,
    class_pos_weight: Tensor | None,
    kind: int,
    use_l1: bool,
    iou_weight: float,
    obj_weight: float,
    cls_weight: float,
    with_gradient: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Launch the kernel for each level; arguments and meaning as in `detops.reference.yolox_loss`.

    All dtypes are computed in float32, float64 too.
    """
    batch, (num_cells, num_boxes) = len(outputs[0]), (index.shape[1], gt_boxes.shape[1])
    num_classes = outputs[0].shape[2] - 5
    cell, boxes, matched, factors = (t.to(torch.float32).contiguous() for t in (cells, gt_boxes, iou, scale))
    pos_weight = None if class_pos_weight is None else class_pos_weight.to(torch.float32).contiguous()
    programs = [triton.cdiv(output.shape[1], BLOCK) for output in outputs]
    parts = factors.new_zeros(batch * sum(programs), 4)
    gradients = [
        torch.empty_like(output, memory_format=torch.contiguous_format) if with_gradient else output.new_empty(0)
        for output in outputs
    ]
    start = first_part = 0
    with torch.cuda.device_of(index):
        for output, gradient, count in zip(outputs, gradients, programs, strict=True):
            if batch and count:
                loss_kernel[(count, batch)](
                    output, *output.stride(), gradient, cell, boxes, gt_labels.contiguous(), index.contiguous(),
                    matched, factors, factors if pos_weight is None else pos_weight, parts, first_part, start,
                    output.shape[1], num_classes, num_cells, num_boxes, iou_weight, obj_weight, cls_weight, KIND=kind,
                    USE_L1=use_l1, HAS_POS_WEIGHT=pos_weight is not None, WITH_GRADIENT=with_gradient, BLOCK=BLOCK,
                    BLOCK_C=min(128, triton.next_power_of_2(max(num_classes, 1))), num_warps=4,
                )  # fmt: skip
            start += output.shape[1]
            first_part += batch * count
    total = parts.to(torch.float64).sum(0)
    return total if outputs[0].dtype == torch.float64 else total.to(torch.float32), gradients
