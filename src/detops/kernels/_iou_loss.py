"""IoU losses with their gradients, for several Triton kernels."""

import triton
import triton.language as tl

EPS = tl.constexpr(1e-16)
QUARTER = tl.constexpr(0.7853981633974483)  # pi / 4
SQUARED, PLAIN, GIOU, DIOU = (tl.constexpr(kind) for kind in range(4))


@triton.jit
def share(high, low):
    """Return 1 where `high` is higher, 1/2 where both are equal, else 0."""
    return tl.where(high > low, 1.0, tl.where(high == low, 0.5, 0.0))


@triton.jit
def _overlap(center, size, other_center, other_size):
    """Return the length of an overlap along one axis, and its derivatives by centre and size of the first box."""
    low, high = center - size / 2, center + size / 2
    other_low, other_high = other_center - other_size / 2, other_center + other_size / 2
    length = tl.minimum(high, other_high) - tl.maximum(low, other_low)
    opened = tl.where(length >= 0, 1.0, 0.0)
    upper, lower = share(other_high, high) * opened, share(low, other_low) * opened
    return tl.where(length < 0, 0.0, length), upper - lower, (upper + lower) / 2


@triton.jit
def _hull(center, size, other_center, other_size):
    """Return the same for the interval that encloses both boxes."""
    low, high = center - size / 2, center + size / 2
    other_low, other_high = other_center - other_size / 2, other_center + other_size / 2
    upper, lower = share(high, other_high), share(other_low, low)
    return tl.maximum(high, other_high) - tl.minimum(low, other_low), upper - lower, (upper + lower) / 2


@triton.jit
def _atan_ratio(w, h):
    """Return atan(w / h) for w >= 0 and h > 0: the argument is reduced twice by pi / 4, then the series is summed."""
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
def iou_loss(px, py, pw, ph, tx, ty, tw, th, KIND: tl.constexpr):
    """Return the loss of cxcywh boxes, and its gradient by each coordinate of the first."""
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
    return loss + 0 * (px + py + pw + ph), g_x, g_y, g_w, g_h  # keeps NaN and infinity: tl.minimum drops a NaN
