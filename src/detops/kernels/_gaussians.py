"""The Gaussians of boxes in tiles of a map, for several Triton kernels."""

import triton
import triton.language as tl

EPS = tl.constexpr(1.1920928955078125e-07)  # of float32; lower values are not drawn


@triton.jit
def reaches(
    centers, radii, box, hit, left, top, ELLIPTICAL: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr
):
    """Narrow `hit` to the boxes, at indices `box`, whose Gaussian is valid and reaches the tile at (left, top)."""
    components: tl.constexpr = 2 if ELLIPTICAL else 1
    x = tl.load(centers + 2 * box, mask=hit, other=0).to(tl.float64)
    y = tl.load(centers + 2 * box + 1, mask=hit, other=0).to(tl.float64)
    rx = tl.load(radii + components * box, mask=hit, other=0).to(tl.float64)
    ry = tl.load(radii + components * box + components - 1, mask=hit, other=0).to(tl.float64)
    # A comparison with NaN is false, so this drops NaN, infinity and negative radii.
    hit = hit & (rx >= 0) & (rx < float("inf")) & (ry >= 0) & (ry < float("inf"))
    hit = hit & (x > -float("inf")) & (x < float("inf")) & (y > -float("inf")) & (y < float("inf"))
    hit = hit & (left - x <= rx + 0.5) & (left + BLOCK_W - 1 - x >= -rx - 0.5)
    return hit & (top - y <= ry + 0.5) & (top + BLOCK_H - 1 - y >= -ry - 0.5)


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
    gx, in_x = _profile(
        columns,
        tl.load(centers + 2 * n).to(tl.float64),
        tl.load(radii + components * n).to(tl.float64),
        factor,
        COMPUTE,
    )
    gy, in_y = _profile(
        rows,
        tl.load(centers + 2 * n + 1).to(tl.float64),
        tl.load(radii + components * n + components - 1).to(tl.float64),
        factor,
        COMPUTE,
    )
    return gy[:, None] * gx[None, :], in_y[:, None] & in_x[None, :]


@triton.jit
def _profile(pixels, center, radius, factor, COMPUTE: tl.constexpr):
    """Return one axis of one Gaussian at integer `pixels`: its values, and which pixels its diameter covers."""
    offset = pixels.to(tl.float64) - center
    inside = (offset >= -radius - 0.5) & (offset <= radius + 0.5)
    t = offset.to(COMPUTE) * (factor / (2 * radius + 1)).to(COMPUTE)
    return tl.exp(-0.5 * t * t), inside
