"""The Gaussians of boxes in tiles of a map, for several Triton kernels."""

import triton
import triton.language as tl

EPS = tl.constexpr(1.1920928955078125e-07)  # of float32; lower values are not drawn
LIMIT = tl.constexpr(2.0**30)  # of a pixel that is returned
PLAIN = tl.constexpr(2.0**22)  # below it, halves are numbers of float32 and their sums exact


@triton.jit
def reaches(
    centers, radii, box, hit, left, top, ELLIPTICAL: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr
):
    """Narrow `hit` to the boxes, at indices `box`, whose Gaussian is valid and reaches the tile at (left, top).

    Some may miss it by a millionth of their radius: more than what is rounded here, and `gaussian` is exact.
    """
    double: tl.constexpr = centers.dtype.element_ty == tl.float64 or radii.dtype.element_ty == tl.float64
    POSITION: tl.constexpr = tl.float64 if double else tl.float32
    components: tl.constexpr = 2 if ELLIPTICAL else 1
    x = tl.load(centers + 2 * box, mask=hit, other=0).to(POSITION)
    y = tl.load(centers + 2 * box + 1, mask=hit, other=0).to(POSITION)
    rx = tl.load(radii + components * box, mask=hit, other=0).to(POSITION)
    ry = rx
    if ELLIPTICAL:
        ry = tl.load(radii + components * box + 1, mask=hit, other=0).to(POSITION)
    # A comparison with NaN is false, so this drops NaN, infinity and negative radii.
    hit = hit & (rx >= 0) & (rx < float("inf")) & (ry >= 0) & (ry < float("inf"))
    hit = hit & (tl.abs(x) < float("inf")) & (tl.abs(y) < float("inf"))
    rx, ry = (rx + 0.5) * (1 + 2**-19), (ry + 0.5) * (1 + 2**-19)
    hit = hit & (left - x <= rx) & (left + BLOCK_W - 1 - x >= -rx)
    return hit & (top - y <= ry) & (top + BLOCK_H - 1 - y >= -ry)


@triton.jit
def next_lane(hit, lanes, lane, BLOCK_N: tl.constexpr):
    """Return the first lane above `lane` that hits, or BLOCK_N if there is none."""
    return tl.min(tl.where(hit & (lanes > lane), lanes, BLOCK_N), 0)


@triton.jit
def gaussian(centers, radii, n, rows, columns, factor, ELLIPTICAL: tl.constexpr, COMPUTE: tl.constexpr):
    """Return the Gaussian of box `n` at the pixels of a tile, and which of them its diameter covers.

    The box is read again rather than reduced from the vectors of `reaches`, because its lines are in the cache.
    """
    components: tl.constexpr = 2 if ELLIPTICAL else 1
    x, y = tl.load(centers + 2 * n), tl.load(centers + 2 * n + 1)
    rx = tl.load(radii + components * n)
    ry = rx
    if ELLIPTICAL:
        ry = tl.load(radii + components * n + 1)
    double: tl.constexpr = centers.dtype.element_ty == tl.float64 or radii.dtype.element_ty == tl.float64
    if double or tl.float64 == COMPUTE:
        left, right, step_x = _extent(x, rx, factor, COMPUTE)
        top, bottom, step_y = _extent(y, ry, factor, COMPUTE)
        dx, dy = columns.to(tl.float64) - x.to(tl.float64), rows.to(tl.float64) - y.to(tl.float64)
    else:
        if _is_plain(x, rx) & _is_plain(y, ry):
            left, right, step_x = _plain_extent(x, rx, factor)
            top, bottom, step_y = _plain_extent(y, ry, factor)
        else:
            left, right, step_x = _extent(x, rx, factor, COMPUTE)
            top, bottom, step_y = _extent(y, ry, factor, COMPUTE)
        # Rounded once, as if from float64: there a difference of float32 is exact, or one of the two is negligible.
        dx, dy = columns.to(tl.float32) - x.to(tl.float32), rows.to(tl.float32) - y.to(tl.float32)
    tx, ty = dx.to(COMPUTE) * step_x, dy.to(COMPUTE) * step_y
    in_x, in_y = (columns >= left) & (columns <= right), (rows >= top) & (rows <= bottom)
    return tl.exp(-0.5 * ty * ty)[:, None] * tl.exp(-0.5 * tx * tx)[None, :], in_y[:, None] & in_x[None, :]


@triton.jit
def _extent(center, radius, factor, COMPUTE: tl.constexpr):
    """Return the first and the last pixel that a diameter covers along an axis, and the Gaussian's exponent's scale."""
    c, r = center.to(tl.float64), radius.to(tl.float64)
    first = tl.minimum(tl.maximum(tl.ceil(c - r - 0.5), -LIMIT), LIMIT)
    last = tl.minimum(tl.maximum(tl.floor(c + r + 0.5), -LIMIT), LIMIT)
    return first.to(tl.int32), last.to(tl.int32), (factor / (2 * r + 1)).to(COMPUTE)


@triton.jit
def _is_plain(center, radius):
    """Whether the center is an integer, and twice the radius plus 1 a number in float32, of moderate size."""
    c, r = center.to(tl.float32), radius.to(tl.float32)
    return (c == tl.floor(c)) & (tl.abs(c) < PLAIN) & (2 * r == tl.floor(2 * r)) & (r < PLAIN)


@triton.jit
def _plain_extent(center, radius, factor):
    """The same as `_extent` of such a box, without float64: a quotient of float32 is the same rounded once or twice."""
    c, r = center.to(tl.float32), radius.to(tl.float32)
    reach = tl.floor(r + 0.5)
    return (c - reach).to(tl.int32), (c + reach).to(tl.int32), tl.div_rn(factor, 2 * r + 1)
