"""`centernet_cells` in Triton: a program per run of boxes of one image.

It computes its boxes, and then looks through all later boxes of the image, whose cells it computes anew, for such as
share a cell or a centre. Every operation is rounded on its own, so that cells and radii are those of the other forms.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.kernels._launch import cdiv, kernel

BLOCK = 32  # boxes per program, and later boxes per step
LARGEST = tl.constexpr(2**30)  # radius


@triton.jit
def _quotient(a, b, DOUBLE: tl.constexpr):
    """Return a / b, correctly rounded."""
    if DOUBLE:
        result = a / b
    else:
        result = tl.div_rn(a, b)
    return result


@triton.jit
def _root(a, DOUBLE: tl.constexpr):
    """Return the square root, correctly rounded."""
    if DOUBLE:
        result = tl.sqrt(a)
    else:
        result = tl.sqrt_rn(a)
    return result


@triton.jit
def _radius(h, w, o, of_same, of_shift, DOUBLE: tl.constexpr, LEGACY: tl.constexpr):
    """Return the radius, as detops.geometry.corners computes it."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    low, high = tl.minimum(h, w), tl.maximum(h, w)
    q = tl.where(high > 0, _quotient(low, tl.where(high > 0, high, 1.0).to(COMPUTE), DOUBLE), 0.0).to(COMPUTE)
    total, half = 1 + q, (1 - q) * (1 - q)
    overlap, twice = tl.cast(o, COMPUTE), tl.cast(2 * o, COMPUTE)
    same = _root(half + 4 * q * tl.cast(of_same, COMPUTE), DOUBLE)
    inward = 2 * _root(half + 4 * q * overlap, DOUBLE)
    outward = twice * _root(half + _quotient(4 * q, overlap + 0 * q, DOUBLE), DOUBLE)
    apart = outward + twice * total
    if LEGACY:
        root = _quotient(tl.cast(8 * o * (1 - o), COMPUTE) * q, apart, DOUBLE)
        least = tl.minimum(tl.minimum((total + same) * 0.5, total + inward * 0.5), root)
    else:
        rest = tl.cast(2 * (1 - o), COMPUTE) * q
        shifted = _quotient(2 * q * tl.cast(of_shift, COMPUTE), total + same, DOUBLE)
        least = tl.minimum(_quotient(rest, 2 * total + inward, DOUBLE), _quotient(rest, apart, DOUBLE))
        least = tl.minimum(shifted, least)
    return tl.where((low >= 0) & (high < float("inf")), high * least, float("nan"))


@triton.jit
def _whole(radius, least):
    """Return a radius as an integer; -1 for NaN."""
    found = tl.minimum(tl.maximum(tl.floor(radius), tl.cast(least, radius.dtype)), LARGEST)
    return tl.where(radius == radius, found, -1.0).to(tl.int64)


@triton.jit
def _cells(boxes, labels, n, exists, classes, W, H, image_w, image_h, ratio_x, ratio_y, COMPUTE: tl.constexpr):
    """Return labels, centres, cells and sizes of boxes."""
    x1 = tl.load(boxes + 4 * n, mask=exists, other=0).to(COMPUTE)
    y1 = tl.load(boxes + 4 * n + 1, mask=exists, other=0).to(COMPUTE)
    x2 = tl.load(boxes + 4 * n + 2, mask=exists, other=0).to(COMPUTE)
    y2 = tl.load(boxes + 4 * n + 3, mask=exists, other=0).to(COMPUTE)
    label = tl.load(labels + n, mask=exists, other=-1).to(tl.int64)
    # Comparisons with NaN are false.
    valid = exists & (label >= 0) & (label < classes) & (x2 > 0) & (y2 > 0)
    valid = valid & (x1 < tl.cast(image_w, COMPUTE)) & (y1 < tl.cast(image_h, COMPUTE)) & (x2 >= x1) & (y2 >= y1)
    valid = valid & (x1 > -float("inf")) & (y1 > -float("inf")) & (x2 < float("inf")) & (y2 < float("inf"))
    x1, y1 = tl.where(valid, x1, 0.0), tl.where(valid, y1, 0.0)
    x2, y2 = tl.where(valid, x2, 0.0), tl.where(valid, y2, 0.0)
    ratio_x, ratio_y = tl.cast(ratio_x, COMPUTE), tl.cast(ratio_y, COMPUTE)
    cx, cy = (x1 + x2) * ratio_x * 0.5, (y1 + y2) * ratio_y * 0.5
    column = tl.minimum(tl.maximum(tl.floor(cx), 0.0), tl.cast(W - 1, COMPUTE))
    row = tl.minimum(tl.maximum(tl.floor(cy), 0.0), tl.cast(H - 1, COMPUTE))
    w, h = (x2 - x1) * ratio_x, (y2 - y1) * ratio_y
    return tl.where(valid, label, -1), cx, cy, column, row, w, h


# No fused multiply-add: each product is rounded separately, as in every form of the op.
@kernel(tensors=11, enable_fp_fusion=False)
def cells_kernel(
    boxes,  # (B, N, 4)
    labels,  # (B, N)
    sample_sizes,  # (B,), not read without HAS_SIZES
    cell,  # (B, N, 2)
    radius,  # (B, N) or (B, N, 2)
    label,  # (B, N)
    size,  # (B, N, 2)
    offset,  # (B, N, 2)
    index,  # (B, N)
    last,  # (B, N) uint8
    counts,  # (B, programs): centres whose last box is in the run
    N,
    H,
    W,
    image_h,
    image_w,
    classes,
    least,
    ratio_x: tl.float64,  # Triton would round a Python float to float32
    ratio_y: tl.float64,
    overlap: tl.float64,
    of_same: tl.float64,  # 2 o / (1 + o)
    of_shift: tl.float64,  # (1 - o) / (1 + o)
    elliptical: tl.float64,
    HAS_SIZES: tl.constexpr,
    LEGACY: tl.constexpr,
    ELLIPTICAL: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Place a run of boxes of one image."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    b = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK
    here = first + tl.arange(0, BLOCK)
    stored = here < N
    used = N
    if HAS_SIZES:
        used = tl.minimum(tl.maximum(tl.load(sample_sizes + b).to(tl.int64), 0), N).to(tl.int32)
    n = b * N + here
    known, cx, cy, column, row, w, h = _cells(
        boxes, labels, n, here < used, classes, W, H, image_w, image_h, ratio_x, ratio_y, COMPUTE
    )
    if ELLIPTICAL:
        tl.store(radius + 2 * n, _whole(w * 0.5 * tl.cast(elliptical, COMPUTE), least), mask=stored)
        tl.store(radius + 2 * n + 1, _whole(h * 0.5 * tl.cast(elliptical, COMPUTE), least), mask=stored)
    else:
        tl.store(radius + n, _whole(_radius(h, w, overlap, of_same, of_shift, DOUBLE, LEGACY), least), mask=stored)
    place = row.to(tl.int64) * W + column.to(tl.int64)
    place = tl.where(known >= 0, place, H * W)
    tl.store(cell + 2 * n, column.to(tl.int64), mask=stored)
    tl.store(cell + 2 * n + 1, row.to(tl.int64), mask=stored)
    tl.store(label + n, known, mask=stored)
    tl.store(size + 2 * n, w, mask=stored)
    tl.store(size + 2 * n + 1, h, mask=stored)
    tl.store(offset + 2 * n, cx - column, mask=stored)
    tl.store(offset + 2 * n + 1, cy - row, mask=stored)
    tl.store(index + n, place, mask=stored)

    covered = tl.zeros((BLOCK,), tl.int32)  # by a later box of the same cell
    repeated = tl.zeros((BLOCK,), tl.int32)  # and of the same class
    for begin in range(first, used, BLOCK):
        later = begin + tl.arange(0, BLOCK)
        other, _, _, x, y, _, _ = _cells(
            boxes, labels, b * N + later, later < used, classes, W, H, image_w, image_h, ratio_x, ratio_y, COMPUTE
        )
        elsewhere = y.to(tl.int64) * W + x.to(tl.int64)
        both = (later[None, :] > here[:, None]) & (other >= 0)[None, :] & (elsewhere[None, :] == place[:, None])
        covered = tl.maximum(covered, tl.max(both.to(tl.int32), 1))
        both = both & (other[None, :] == known[:, None])
        repeated = tl.maximum(repeated, tl.max(both.to(tl.int32), 1))
    tl.store(last + n, ((known >= 0) & (covered == 0)).to(tl.uint8), mask=stored)
    found = tl.sum(((known >= 0) & (repeated == 0)).to(tl.int64), 0)
    tl.store(counts + b * tl.num_programs(0) + tl.program_id(0), found)


def centernet_cells(
    boxes: Tensor,
    labels: Tensor,
    sample_sizes: Tensor | None,
    map_size: list[int],
    image_size: list[int],
    num_classes: int,
    min_overlap: float,
    min_radius: int,
    legacy: bool,
    elliptical: float,
) -> tuple[Tensor, ...]:
    """Launch one program per run; arguments and meaning as in `detops.reference.centernet_cells`."""
    (batch, count), compute = labels.shape, accumulate_dtype(boxes)
    (height, width), (image_height, image_width) = map_size, image_size
    pairs = [labels.new_empty((batch, count, 2), dtype=kind) for kind in (torch.int64, compute, compute)]
    label, index = (labels.new_empty((batch, count), dtype=torch.int64) for _ in range(2))
    radius = torch.empty_like(pairs[0] if elliptical > 0 else label)
    last = labels.new_empty((batch, count), dtype=torch.bool)
    programs = cdiv(count, BLOCK)
    counts = labels.new_empty((batch, programs), dtype=torch.int64)
    if batch and count:
        labels = labels.contiguous()
        cells_kernel(
            (programs, batch),
            (
                boxes.contiguous(),
                labels,
                labels if sample_sizes is None else sample_sizes.contiguous(),
                pairs[0],
                radius,
                label,
                pairs[1],
                pairs[2],
                index,
                last.view(torch.uint8),
                counts,
            ),
            (
                count,
                height,
                width,
                image_height,
                image_width,
                num_classes,
                min_radius,
                width / image_width,
                height / image_height,
                min_overlap,
                2 * min_overlap / (1 + min_overlap),
                (1 - min_overlap) / (1 + min_overlap),
                elliptical,
            ),
            (
                sample_sizes is not None,
                legacy,
                elliptical > 0,
                compute == torch.float64,
                BLOCK,
            ),
        )
    return pairs[0], radius, label, pairs[1], pairs[2], index, last, counts.sum()
