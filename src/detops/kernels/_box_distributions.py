"""A box as four distributions, for the Triton kernels at positives. Tiles are (4 sides, bins)."""

import triton
import triton.language as tl

from detops.kernels._iou_loss import PLAIN, iou_loss


@triton.jit
def load_sides(maps, stride_c, BINS: tl.constexpr, BLOCK_J: tl.constexpr):
    """Load the logits at a point; minus infinity beyond the bins."""
    s, j = tl.arange(0, 4)[:, None], tl.arange(0, BLOCK_J)[None, :]
    return tl.load(maps + (s * BINS + j) * stride_c, mask=j < BINS, other=-float("inf")).to(tl.float32)


@triton.jit
def softmax(x, BINS: tl.constexpr, BLOCK_J: tl.constexpr):
    """Return distributions (4, bins) and log sum exp (4,); NaN where a logit is not finite."""
    inside = tl.arange(0, BLOCK_J)[None, :] < BINS
    poison = tl.sum(tl.where(inside, x, 0.0) * 0, 1)
    top = tl.max(x, 1)
    e = tl.where(inside, tl.exp(x - top[:, None]), 0.0)
    total = tl.sum(e, 1)
    return e / total[:, None] + poison[:, None], top + tl.log(total) + poison


@triton.jit
def _side(values, i):
    """Return number i of four values."""
    return tl.sum(tl.where(tl.arange(0, 4) == i, values, 0.0), 0)


@triton.jit
def box_losses(raw, point, box, margin, KIND: tl.constexpr, BINS: tl.constexpr, BLOCK_J: tl.constexpr):
    """Return IoU, IoU loss of a kind, distribution focal loss, and the gradients (4, bins) of both losses."""
    s, j = tl.arange(0, 4), tl.arange(0, BLOCK_J)[None, :].to(tl.float32)
    inside = tl.arange(0, BLOCK_J)[None, :] < BINS
    p, log_sum = softmax(raw, BINS, BLOCK_J)
    if BINS == 1:  # a distance as it is
        distance = tl.sum(tl.where(inside, raw, 0.0), 1)
    else:
        distance = tl.sum(p * j, 1)
    left, top, right, bottom = _side(distance, 0), _side(distance, 1), _side(distance, 2), _side(distance, 3)
    stride = tl.load(point + 2)
    away = (tl.load(box + s) - tl.load(point + s % 2)) / stride
    x1, y1, x2, y2 = _side(away, 0), _side(away, 1), _side(away, 2), _side(away, 3)
    px, py, pw, ph = (right - left) / 2, (bottom - top) / 2, left + right, top + bottom
    tx, ty, tw, th = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    plain, _, _, _, _ = iou_loss(px, py, pw, ph, tx, ty, tw, th, PLAIN)
    loss, g_x, g_y, g_w, g_h = iou_loss(px, py, pw, ph, tx, ty, tw, th, KIND)
    half = tl.where(s % 2 == 0, g_x, g_y) / 2
    by = tl.where(s % 2 == 0, g_w, g_h) + tl.where(s < 2, -half, half)
    exact = tl.where(s < 2, -away, away)
    exact = tl.minimum(tl.maximum(exact, 0.0), BINS - 1 - margin)
    share = tl.maximum(1 - tl.abs(exact[:, None] - j), 0.0)
    poison = tl.where(away == away, 0.0, away)  # tl.minimum and tl.maximum drop a NaN
    dfl = tl.sum(log_sum - tl.sum(share * tl.where(inside, raw, 0.0), 1) + poison, 0)
    by_iou, by_dfl = by[:, None] * p * (j - distance[:, None]), p - share
    if BINS == 1:
        by_iou = by[:, None] * p
        dfl, by_dfl = dfl * 0, by_dfl * 0
    return 1 - plain, loss, dfl, by_iou, by_dfl


@triton.jit
def distillation(raw, soft, temperature, BINS: tl.constexpr, BLOCK_J: tl.constexpr):
    """Return the distillation loss and its gradient (4, bins)."""
    inside = tl.arange(0, BLOCK_J)[None, :] < BINS
    student, student_sum = softmax(raw / temperature, BINS, BLOCK_J)
    teacher, teacher_sum = softmax(soft / temperature, BINS, BLOCK_J)
    apart = (tl.where(inside, soft, 0.0) - tl.where(inside, raw, 0.0)) / temperature + (student_sum - teacher_sum)[
        :, None
    ]
    loss = tl.sum(tl.sum(tl.where(inside, teacher * apart, 0.0), 1), 0)
    return temperature * temperature * loss / BINS, temperature / BINS * (student - teacher)
