"""What the kernels of `simota_match` share: the regions of a box, IoU and costs, and which tiles can matter.

A tile is a run of `BLOCK_TILE` cells of one level. Its hulls are those of its centres, and of what is predicted at its
candidates: a box that does not reach them has nothing to do with the tile.
"""

import triton
import triton.language as tl

from detops.kernels._boxes import overlap
from detops.kernels._top_list import ordered

BLOCK_TILE = 32  # cells of a tile
HULL = tl.constexpr(9)  # numbers of a tile: the hull of the predictions, that of the centres, and the greatest side
NEVER = tl.constexpr(2**63 - 1)
INDEX_BITS = tl.constexpr(29)
INDEX_MASK = tl.constexpr(2**29 - 1)
LOG_FLOOR = tl.constexpr(-100.0)
LOG_EPS = tl.constexpr(1e-8)


@triton.jit
def log_terms(a, b):
    """Return the logarithms of p and 1 - p, for p = sqrt(sigmoid(a) sigmoid(b)), each at least `LOG_FLOOR`."""
    a = tl.minimum(tl.maximum(a, -1e4), 1e4)
    b = tl.minimum(tl.maximum(b, -1e4), 1e4)
    soft_a = tl.maximum(-a, 0.0) + tl.log(1 + tl.exp(-tl.abs(a)))
    soft_b = tl.maximum(-b, 0.0) + tl.log(1 + tl.exp(-tl.abs(b)))
    log_p = tl.maximum(-0.5 * (soft_a + soft_b), LOG_FLOOR)
    # With u = e^-a + e^-b + e^-a e^-b: 1 - p = u / (1 + u + sqrt(1 + u)). For large a and b u is left as a logarithm.
    ea = tl.exp(-tl.minimum(tl.maximum(a, -40.0), 80.0))
    eb = tl.exp(-tl.minimum(tl.maximum(b, -40.0), 80.0))
    u = ea + eb + ea * eb
    low = tl.minimum(a, b)
    log_u = tl.where(low > 30, -low + tl.log(1 + tl.exp(-tl.abs(a - b))), tl.log(u))
    return log_p, tl.maximum(log_u - tl.log(1 + u + tl.sqrt(1 + u)), LOG_FLOOR)


@triton.jit
def regions(x, y, side, cx, cy, x1, y1, x2, y2, radius, CENTER_ONLY: tl.constexpr):
    """Return whether cells are a box's own candidates, and whether they are among the best."""
    near = (tl.abs(x - cx) < radius * side) & (tl.abs(y - cy) < radius * side)
    if CENTER_ONLY:
        own = near
        best = near
    else:
        in_box = (x > x1) & (x < x2) & (y > y1) & (y < y2)
        own = in_box | near
        best = in_box & near
    return own, best


@triton.jit
def reaches(low_x, low_y, high_x, high_y, side, cx, cy, x1, y1, x2, y2, radius, CENTER_ONLY: tl.constexpr):
    """Return whether cells within a hull can be a box's own, and among the best: `regions`, rounding included."""
    away_x, away_y = tl.maximum(cx - high_x, low_x - cx), tl.maximum(cy - high_y, low_y - cy)
    near = (away_x < radius * side) & (away_y < radius * side)
    if CENTER_ONLY:
        own = near
        best = near
    else:
        in_box = (high_x > x1) & (low_x < x2) & (high_y > y1) & (low_y < y2)
        own = in_box | near
        best = in_box & near
    return own, best


@triton.jit
def tiles_of_box(hulls, tiles, T, cx, cy, x1, y1, x2, y2, radius, CENTER_ONLY: tl.constexpr, OWN: tl.constexpr):
    """Return which tiles may have an IoU with a box that is not 0, and which may have its candidates.

    With OWN these are the box's own, else those of any box.
    """
    there = tiles < T
    hull = hulls + tiles
    meets = (tl.load(hull + 2 * T, mask=there, other=0.0) > x1) & (tl.load(hull, mask=there, other=0.0) < x2)
    meets = meets & (tl.load(hull + 3 * T, mask=there, other=0.0) > y1)
    meets = meets & (tl.load(hull + T, mask=there, other=0.0) < y2) & there
    within = there
    if OWN:
        within, _ = reaches(
            tl.load(hull + 4 * T, mask=there, other=0.0), tl.load(hull + 5 * T, mask=there, other=0.0),
            tl.load(hull + 6 * T, mask=there, other=0.0), tl.load(hull + 7 * T, mask=there, other=0.0),
            tl.load(hull + 8 * T, mask=there, other=0.0), cx, cy, x1, y1, x2, y2, radius, CENTER_ONLY,
        )  # fmt: skip
        within = within & there
    return meets & within, within


@triton.jit
def iou_of(pred, mask, x1, y1, x2, y2, area):
    """Return the IoU of predictions, cxcywh at `pred`, with boxes; 0 where it is NaN."""
    cx = tl.load(pred, mask=mask, other=0.0)
    cy = tl.load(pred + 1, mask=mask, other=0.0)
    w = tl.load(pred + 2, mask=mask, other=0.0)
    h = tl.load(pred + 3, mask=mask, other=0.0)
    inter, union = overlap(x1, y1, x2, y2, area, cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h, w * h)
    iou = inter / union
    # A minimum takes the other number for a NaN; that of the size is in the area.
    return tl.where((iou >= 0) & (iou <= 3e38) & (cx == cx) & (cy == cy), iou, 0.0)


@triton.jit
def cost_of(value, o, iou, iou_weight, class_weight):
    """Return the costs without what all boxes share, from the label's logit, the objectness and the IoU."""
    log_p, log_q = log_terms(value, o)
    cost = class_weight * (log_q - log_p) - iou_weight * tl.log(iou + LOG_EPS)
    return tl.where((value == value) & (o == o), cost, float("nan"))


@triton.jit
def cost_rank(cost):
    """Costs as int32 in their order; one that is NaN counts as infinite."""
    return ordered(tl.where(cost == cost, cost, float("inf")))


@triton.jit
def box_rank(best, cost, n):
    """Pack [not among the best | cost | box] into one int64, of which the least is the same in any order."""
    worse = tl.where(best, 0, 1).to(tl.int64)
    return (worse << 62) | ((cost_rank(cost).to(tl.int64) + 2147483648) << INDEX_BITS) | n
