"""What the kernels of D-FINE's losses of box distributions share."""

import triton
import triton.language as tl

from detops.kernels._boxes import overlap
from detops.kernels._launch import map_of, number_of


@triton.jit
def place_of(strides, which, s, b, q, PARTS: tl.constexpr):
    """Where queries lie in a part (S, B, Q, 4) of any strides."""
    at = s * number_of(strides, which, PARTS, 4, 0) + b * number_of(strides, which, PARTS, 4, 1)
    return at + q * number_of(strides, which, PARTS, 4, 2)


@triton.jit
def quality_of(preds, pred_strides, boxes, which, s, b, q, n, has, N, PARTS: tl.constexpr, COMPUTE: tl.constexpr):
    """IoU of queries with their boxes; 0 where there is none, and where it is not a finite number."""
    pred = map_of(preds, which, PARTS) + place_of(pred_strides, which, s, b, q, PARTS)
    step = number_of(pred_strides, which, PARTS, 4, 3)
    px, py = tl.load(pred, mask=has, other=0).to(COMPUTE), tl.load(pred + step, mask=has, other=0).to(COMPUTE)
    pred += 2 * step
    pw, ph = tl.load(pred, mask=has, other=0).to(COMPUTE), tl.load(pred + step, mask=has, other=0).to(COMPUTE)
    box = boxes + (b * N + n) * 4
    tx, ty = tl.load(box, mask=has, other=0).to(COMPUTE), tl.load(box + 1, mask=has, other=0).to(COMPUTE)
    tw, th = tl.load(box + 2, mask=has, other=0).to(COMPUTE), tl.load(box + 3, mask=has, other=0).to(COMPUTE)
    inter, union = overlap(
        px - pw / 2, py - ph / 2, px + pw / 2, py + ph / 2, pw * ph,
        tx - tw / 2, ty - th / 2, tx + tw / 2, ty + th / 2, tw * th,
    )  # fmt: skip
    iou = inter / tl.where(union != 0, union, 1.0) + 0 * (px + py + pw + ph)
    return tl.where(has & (union != 0) & (tl.abs(iou) < float("inf")), iou, 0.0)


@triton.jit
def distance_of(references, at, boxes, b, n, has, N, side, reach, COMPUTE: tl.constexpr):
    """Distance of a side of queries' boxes from the centres of their references, which lie at `at`."""
    axis = side % 2
    center = tl.load(references + at + axis, mask=has, other=0).to(COMPUTE)
    size = tl.load(references + at + axis + 2, mask=has, other=1).to(COMPUTE) / reach + 1e-16
    box = boxes + (b * N + n) * 4 + axis
    middle = tl.load(box, mask=has, other=0).to(COMPUTE)
    half = tl.load(box + 2, mask=has, other=0).to(COMPUTE) / 2
    apart = tl.where(side < 2, center - (middle - half), middle + half - center)
    return apart / size - reach / 2


@triton.jit
def shares_of_bins(distance, values, j, BINS, COMPUTE: tl.constexpr):
    """(rows, bins) shares of the two bins next to distances (rows,); 0 at all others."""
    low = tl.load(values).to(COMPUTE)
    high = tl.load(values + BINS - 1).to(COMPUTE)
    d = tl.where(distance < low, low, tl.where(distance > high, high, distance))[:, None]
    here = tl.load(values + j, mask=j < BINS, other=float("inf")).to(COMPUTE)
    after = tl.load(values + j + 1, mask=j + 1 < BINS, other=float("inf")).to(COMPUTE)
    before = tl.load(values + j - 1, mask=(j > 0) & (j < BINS), other=float("-inf")).to(COMPUTE)
    falls = (after - d) / tl.where(after > here, after - here, 1.0)  # from 1 at its own value to 0 at the next
    rises = (d - before) / tl.where(here > before, here - before, 1.0)
    share = tl.where((d >= here) & (d < after) & (j + 1 < BINS), falls, 0.0)
    share = tl.where((d < here) & (d >= before) & (j > 0), rises, share)
    share = tl.where((d >= here) & (j == BINS - 1), 1.0, share)
    return tl.where(d == d, share, float("nan"))


@triton.jit
def log_softmax(z, there):
    """Logarithm of the softmax along the last axis; NaN where a logit is not finite."""
    x = tl.where(there, z, float("-inf"))
    top = tl.max(x, 1)[:, None]
    top = tl.where(top > float("-inf"), top, 0.0)  # of rows that are not there
    total = tl.sum(tl.where(there, tl.exp(x - top), 0.0), 1)[:, None]
    return z - top - tl.log(tl.where(total == 0, 1.0, total)) + tl.sum(tl.where(there, z * 0, 0.0), 1)[:, None]
