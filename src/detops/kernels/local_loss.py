"""`local_loss` in Triton: the last layer's confidence, how much queries count, the losses, and their sums.

A program has some sides of queries of one layer and image, all bins of each; it reads both layers' logits where they
are and writes the gradient once.
"""

import torch
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.geometry.set_parts import gaps_of, parts_of
from detops.kernels._launch import cdiv, kernel, level_of, next_power_of_2, number_of
from detops.kernels._local import distance_of, log_softmax, quality_of, shares_of_bins

BLOCK = 16  # sides per program
TEMPERATURE = tl.constexpr(5.0)


@kernel(tensors=2)
def confidence_kernel(
    logits,  # (B, Q, C), of any strides
    confidence,  # (B, Q)
    Q,
    C,
    logit_image,
    logit_query,
    logit_class,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The highest class probability of a block of queries of the last layer."""
    q, c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK_C)
    b = tl.program_id(1).to(tl.int64)
    at = logits + b * logit_image + q[:, None] * logit_query + c[None, :] * logit_class
    x = tl.load(at, mask=(q[:, None] < Q) & (c[None, :] < C), other=float("-inf"))
    x = x.to(tl.float64 if DOUBLE else tl.float32)
    most = tl.max(x, 1)
    most += tl.sum(tl.where(x == x, 0.0, float("nan")), 1)
    e = tl.exp(-tl.abs(most))
    tl.store(confidence + b * Q + q, tl.where(most < 0, e / (1 + e), 1 / (1 + e)), mask=q < Q)


@kernel(tensors=2)
def share_kernel(
    index,  # (rows,)
    shares,  # (R, 2)
    firsts,  # tuples, of each part: its first layer among those of all parts,
    sizes,  # its queries, first row, first layer, first query, and whether it learns
    B,
    N,
    PARTS: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What a query with a box, and one without, counts in the distillation of a layer."""
    row = tl.program_id(0)
    which = level_of(row, firsts, PARTS)
    count = number_of(sizes, which, PARTS, 5, 0) * B
    s = (row - number_of(firsts, which, PARTS, 1, 0)).to(tl.int64)
    first = number_of(sizes, which, PARTS, 5, 1) + s * count
    matched = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        n = tl.load(index + first + at, mask=at < count, other=-1)
        matched += ((n >= 0) & (n < N)).to(tl.int32)
    found = tl.sum(matched, 0)
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    root, rest = tl.sqrt(found.to(COMPUTE)), tl.sqrt((count - found).to(COMPUTE))
    total = root + rest
    tl.store(shares + row * 2, tl.where(root > 0, 1 / tl.where(root > 0, root * total, 1.0), 0.0))
    tl.store(shares + row * 2 + 1, tl.where(rest > 0, 1 / tl.where(rest > 0, rest * total, 1.0), 0.0))


@kernel(tensors=11)
def local_kernel(
    preds,  # a tuple: each part's (S, B, Q, 4), of any strides
    corners,  # (L, B, Q, 4 * BINS), rows contiguous
    references,  # (L, B, Q, 4), rows contiguous
    confidence,  # (B, Q)
    boxes,  # (B, N, 4)
    index,  # (rows,)
    values,  # (BINS,)
    scale,  # (R,)
    shares,  # (R, 2)
    gradient,  # like corners; not written without WITH_GRADIENT
    sums,  # (R, 2, B * blocks), with their factors
    firsts,  # tuples, as of `share_kernel`
    sizes,
    pred_strides,
    B,
    N,
    BINS,
    corner_layer,
    corner_image,
    corner_query,
    reference_layer,
    reference_image,
    reference_query,
    gradient_layer,
    gradient_image,
    gradient_query,
    L,
    Q,
    reach,
    fgl_weight,
    ddf_weight,
    PARTS: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Both losses of a block of sides of one layer and image."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row, b = tl.program_id(1) // B, (tl.program_id(1) % B).to(tl.int64)
    which = level_of(row, firsts, PARTS)
    s = (row - number_of(firsts, which, PARTS, 1, 0)).to(tl.int64)
    count = number_of(sizes, which, PARTS, 5, 0)
    layer, before = s + number_of(sizes, which, PARTS, 5, 2), number_of(sizes, which, PARTS, 5, 3)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    q, side = element // 4, element % 4
    inside = q < count
    n = tl.load(index + number_of(sizes, which, PARTS, 5, 1) + (s * B + b) * count + q, mask=inside, other=-1)
    has = (n >= 0) & (n < N)
    quality = quality_of(preds, pred_strides, boxes, which, s, b, q, n, has, N, PARTS, COMPUTE)
    j = tl.arange(0, BLOCK_J)[None, :]
    there = inside[:, None] & (j < BINS)
    own = b * corner_image + (before + q) * corner_query + side * BINS
    z = tl.load(corners + layer * corner_layer + own[:, None] + j, mask=there, other=0).to(COMPUTE)
    # Fine-grained localization.
    at = layer * reference_layer + b * reference_image + (before + q) * reference_query
    distance = distance_of(references, at, boxes, b, n, has, N, side, reach, COMPUTE)
    wanted = shares_of_bins(distance, values, j, BINS, COMPUTE)
    log_p = log_softmax(z, there)
    counts = quality > 0
    by = tl.load(scale + row).to(COMPUTE) * fgl_weight * quality
    fgl = tl.sum(tl.where(there, -wanted * log_p, 0.0), 1)
    fgl = tl.where(counts, by * fgl, 0.0)
    g = tl.where(counts[:, None], by[:, None] * (tl.exp(log_p) - wanted), 0.0)
    # Distillation.
    ddf = tl.zeros((BLOCK,), COMPUTE)
    if number_of(sizes, which, PARTS, 5, 4) > 0:
        teacher = tl.load(corners + (L - 1).to(tl.int64) * corner_layer + own[:, None] + j, mask=there, other=0)
        log_t = log_softmax(teacher.to(COMPUTE) / TEMPERATURE, there)
        log_s = log_softmax(z / TEMPERATURE, there)
        sure = tl.load(confidence + b * Q + before + q, mask=inside, other=0).to(COMPUTE)
        matched, other = tl.load(shares + row * 2).to(COMPUTE), tl.load(shares + row * 2 + 1).to(COMPUTE)
        weight = tl.where(has, quality * matched, sure * other) * (ddf_weight * TEMPERATURE * TEMPERATURE / 4)
        ddf = weight * tl.sum(tl.where(there, tl.exp(log_t) * (log_t - log_s), 0.0), 1)
        g += (weight / TEMPERATURE)[:, None] * (tl.exp(log_s) - tl.exp(log_t))
    block, blocks = tl.program_id(0), tl.num_programs(0)
    part = row.to(tl.int64) * 2 * B * blocks + b * blocks + block
    tl.store(sums + part, tl.sum(tl.where(inside, fgl, 0.0), 0))
    tl.store(sums + part + B * blocks, tl.sum(tl.where(inside, ddf, 0.0), 0))
    if WITH_GRADIENT:
        place = layer * gradient_layer + b * gradient_image + (before + q) * gradient_query + side * BINS
        tl.store(gradient + place[:, None] + j, g.to(gradient.dtype.element_ty), mask=there)


@kernel(tensors=2)
def sum_kernel(
    parts,  # (rows, count)
    losses,  # (rows,)
    count,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up the sums of one loss's blocks."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float64 if DOUBLE else tl.float32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(parts + row * count + at, mask=at < count, other=0)
    tl.store(losses + row, tl.sum(total, 0))


def tables(
    parts: list[int], distils: list[int], pred_boxes: list[Tensor], batch: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The tuples of numbers that kernels take: first layers, sizes, and strides of predicted boxes."""
    split = parts_of(parts, batch)
    firsts = tuple(part.sets.start for part in split)
    sizes: tuple[int, ...] = ()
    for i, (part, learns) in enumerate(zip(split, distils, strict=True)):
        _, layer, _, first, count = parts[5 * i : 5 * i + 5]
        sizes += (count, part.rows.start, layer, first, int(learns != 0))
    return firsts, sizes, tuple(stride for one in pred_boxes for stride in one.stride())


def local_loss(
    corners: Tensor,
    references: Tensor,
    teacher_logits: Tensor,
    pred_boxes: list[Tensor],
    parts: list[int],
    distils: list[int],
    gt_boxes: Tensor,
    index: Tensor,
    values: Tensor,
    scale: Tensor,
    reach: float,
    weights: list[float],
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Launch the kernels; meaning as in `detops.reference.local_loss`."""
    layers, batch, queries, _ = corners.shape
    dtype, sets, bins = accumulate_dtype(corners), len(scale), len(values)
    double = dtype == torch.float64
    gradient = torch.empty_like(corners) if with_gradient else corners.new_empty(0)
    if with_gradient:
        for _, place in gaps_of(parts, [corners.shape]):
            gradient[place].zero_()
    if len(index) == 0:
        return corners.new_zeros((sets, 2), dtype=dtype), gradient
    confidence = torch.empty((batch, queries), dtype=dtype, device=corners.device)
    shares = confidence.new_empty(sets, 2)
    classes = teacher_logits.shape[2]
    firsts, sizes, strides = tables(parts, distils, pred_boxes, batch)
    count = len(firsts)
    if any(distils):
        confidence_kernel(
            (cdiv(queries, BLOCK), batch), (teacher_logits, confidence), (queries, classes, *teacher_logits.stride()),
            (double, BLOCK, next_power_of_2(classes)),
        )  # fmt: skip
        share_kernel((sets,), (index, shares), (firsts, sizes, batch, gt_boxes.shape[1]), (count, double, 256))
    blocks = cdiv(4 * max(parts[4::5]), BLOCK)
    sums = confidence.new_empty(sets, 2, batch * blocks)
    rows = references if references.stride(3) == 1 else references.contiguous()
    local_kernel(
        (blocks, sets * batch),
        (
            tuple(pred_boxes), corners, rows, confidence, gt_boxes.contiguous(), index, values, scale.contiguous(),
            shares, gradient, sums,
        ),
        (
            firsts, sizes, strides, batch, gt_boxes.shape[1], bins, *corners.stride()[:3], *rows.stride()[:3],
            *(gradient.stride()[:3] if with_gradient else (0, 0, 0)), layers, queries, abs(float(reach)),
            float(weights[0]), float(weights[1]),
        ),
        (count, with_gradient, double, BLOCK, next_power_of_2(bins)),
    )  # fmt: skip
    losses = sums.new_empty(sets, 2)
    sum_kernel((sets * 2,), (sums, losses), (sums.shape[2],), (double, 256))
    return losses, gradient
