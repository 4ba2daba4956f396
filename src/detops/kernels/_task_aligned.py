"""What the kernels of `tal_match` share: overlaps, metrics, and which points are inside a box."""

import math

import triton
import triton.language as tl

from detops.kernels._boxes import overlap
from detops.kernels._iou_loss import _atan_ratio
from detops.kernels._softplus import power
from detops.kernels._tiles import logits_at
from detops.kernels._top_list import NONE

LOW = tl.constexpr(2**32 - 1)
TINY = tl.constexpr(2.0**-126)
CIOU_EPS = tl.constexpr(1e-7)
FOUR_BY_PI2 = tl.constexpr(4 / math.pi**2)


@triton.jit
def overlap_of(x1, y1, x2, y2, pred, mask, CIOU: tl.constexpr):
    """IoU, or complete IoU, of boxes with those at `pred`; 0 where it is not a number."""
    u1 = tl.load(pred, mask=mask, other=0.0).to(tl.float32)
    v1 = tl.load(pred + 1, mask=mask, other=0.0).to(tl.float32)
    u2 = tl.load(pred + 2, mask=mask, other=0.0).to(tl.float32)
    v2 = tl.load(pred + 3, mask=mask, other=0.0).to(tl.float32)
    w, h, pw, ph = x2 - x1, y2 - y1, u2 - u1, v2 - v1
    inter, union = overlap(x1, y1, x2, y2, w * h, u1, v1, u2, v2, pw * ph)
    u = inter / union
    u = tl.where((u >= 0) & (u <= 3e38), u, 0.0)
    if CIOU:
        dx, dy = (x1 + x2 - u1 - u2) / 2, (y1 + y2 - v1 - v2) / 2
        hx, hy = tl.maximum(x2, u2) - tl.minimum(x1, u1), tl.maximum(y2, v2) - tl.minimum(y1, v1)
        distance = (dx * dx + dy * dy) / (hx * hx + hy * hy + CIOU_EPS)
        turn = _atan_ratio(w, h + CIOU_EPS) - _atan_ratio(pw, ph + CIOU_EPS)
        aspect = FOUR_BY_PI2 * turn * turn
        value = u - distance - aspect / (aspect - u + 1 + CIOU_EPS) * aspect
        u = tl.where((u > 0) & (value > 0), tl.minimum(value, 1.0), 0.0)
    return u


@triton.jit
def metric_of(logit, u, alpha, beta, ALPHA_1: tl.constexpr, BETA_6: tl.constexpr):
    """p^alpha * u^beta; 0 where it is not a number or below what float32 holds in full."""
    p = 1 / (1 + tl.exp(-logit))
    if not ALPHA_1:
        p = power(p, alpha, False)
    if BETA_6:
        square = u * u
        rest = square * square * square
    else:
        rest = power(u, beta, False)
    m = p * rest
    return tl.where((m >= TINY) & (logit == logit), m, 0.0)


@triton.jit
def is_inside(points, mask, x1, y1, x2, y2, margin, reach, min_side):
    """Whether points lie in a box."""
    x = tl.load(points, mask=mask, other=0.0)
    y = tl.load(points + 1, mask=mask, other=0.0)
    stride = tl.load(points + 2, mask=mask, other=1.0)
    dx, dy = tl.maximum((min_side * stride - (x2 - x1)) / 2, 0.0), tl.maximum((min_side * stride - (y2 - y1)) / 2, 0.0)
    least = tl.minimum(tl.minimum(x - (x1 - dx), x2 + dx - x), tl.minimum(y - (y1 - dy), y2 + dy - y))
    most = tl.maximum(tl.maximum(x - x1, x2 - x), tl.maximum(y - y1, y2 - y))
    return mask & (least >= margin) & (most / stride <= reach)


@triton.jit
def read_box(boxes, labels, n, size, C):
    """A box, and whether it may take points."""
    x1, y1, x2, y2 = tl.load(boxes), tl.load(boxes + 1), tl.load(boxes + 2), tl.load(boxes + 3)
    label = tl.load(labels).to(tl.int64)
    finite = (x1 - x1 == 0) & (y1 - y1 == 0) & (x2 - x2 == 0) & (y2 - y2 == 0)
    known = finite & (x2 >= x1) & (y2 >= y1) & (label >= 0) & (label < C) & (n < size)
    return x1, y1, x2, y2, label, known


@triton.jit
def bits_of(value):
    """Numbers of at least 0 as integers in their order."""
    return value.to(tl.int32, bitcast=True).to(tl.int64)


@triton.jit
def reached_tiles(hulls, tiles, T, x1, y1, x2, y2, margin, min_side):
    """Which tiles may have a point inside a box; a little more than `is_inside`, whatever the rounding."""
    there = tiles < T
    low_x, low_y = tl.load(hulls + tiles, mask=there, other=0.0), tl.load(hulls + T + tiles, mask=there, other=0.0)
    high_x = tl.load(hulls + 2 * T + tiles, mask=there, other=0.0)
    high_y = tl.load(hulls + 3 * T + tiles, mask=there, other=0.0)
    side = min_side * tl.load(hulls + 4 * T + tiles, mask=there, other=0.0)
    dx, dy = tl.maximum((side - (x2 - x1)) / 2, 0.0), tl.maximum((side - (y2 - y1)) / 2, 0.0)
    least = tl.minimum(tl.minimum(high_x - (x1 - dx), x2 + dx - low_x), tl.minimum(high_y - (y1 - dy), y2 + dy - low_y))
    slack = 1e-5 * (tl.abs(x1) + tl.abs(y1) + tl.abs(x2) + tl.abs(y2) + side)
    return there & (least >= margin - slack)


@triton.jit
def metric_rank(
    levels, pred, strides_b, strides_r, strides_c, starts, rows, b, a, wanted, label, x1, y1, x2, y2, A, alpha, beta,
    LEVELS: tl.constexpr, CIOU: tl.constexpr, ALPHA_1: tl.constexpr, BETA_6: tl.constexpr,
):  # fmt: skip
    """The ranks of points for a box: that of the highest metric is the lowest."""
    u = overlap_of(x1, y1, x2, y2, pred + (b * A + a) * 4, wanted, CIOU)
    value = logits_at(levels, strides_b, strides_r, strides_c, starts, rows, b, a, label, wanted, LEVELS)
    m = metric_of(value, u, alpha, beta, ALPHA_1, BETA_6)
    return tl.where(wanted & (m > 0), -m.to(tl.int32, bitcast=True), NONE)
