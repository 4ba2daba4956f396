"""`set_loss_backward_` in Triton: programs that scale read the factor first, and return if it is 1."""

import torch
import triton.language as tl
from torch import Tensor

from detops.geometry.set_parts import gaps_of, parts_of
from detops.kernels._launch import cdiv, kernel, level_of, map_of, number_of

BLOCK_Q, BLOCK_X = 64, 2048


@kernel(tensors=2, scalars=("upstream",), num_warps=8)
def scale_kernel(
    gradients,  # a tuple: each part's (S, B, Q, C), rows contiguous
    upstream,  # (R, 3)
    firsts,  # tuples, of each part: its first set,
    counts,  # its number of queries
    strides,
    B,
    C,
    PARTS: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scale a block of one image's gradients by the logits."""
    r, b = tl.program_id(1) // B, (tl.program_id(1) % B).to(tl.int64)
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    factor = tl.load(upstream + r * 3).to(COMPUTE)
    if factor != 1.0:
        which = level_of(r, firsts, PARTS)
        s = (r - number_of(firsts, which, PARTS, 1, 0)).to(tl.int64)
        element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        q, c = element // C, element % C
        inside = q < number_of(counts, which, PARTS, 1, 0)
        at = s * number_of(strides, which, PARTS, 3, 0) + b * number_of(strides, which, PARTS, 3, 1)
        pointer = map_of(gradients, which, PARTS) + at + q * number_of(strides, which, PARTS, 3, 2) + c
        value = tl.load(pointer, mask=inside, other=0).to(COMPUTE) * factor
        tl.store(pointer, value.to(pointer.dtype.element_ty), mask=inside)


@kernel(tensors=3, num_warps=2)
def box_kernel(
    found,  # a tuple: each part's (S, B, Q, 4), of contiguous tensors
    box_gradients,  # (2, rows, 4)
    upstream,  # (R, 3)
    firsts,  # tuples, of each part: its first set,
    sizes,  # its number of queries, and its first row
    strides,
    B,
    rows,
    PARTS: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the gradients of both box losses of a block of queries."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    r, b = tl.program_id(1) // B, (tl.program_id(1) % B).to(tl.int64)
    which = level_of(r, firsts, PARTS)
    s = (r - number_of(firsts, which, PARTS, 1, 0)).to(tl.int64)
    Q = number_of(sizes, which, PARTS, 2, 0)
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = number < 4 * Q
    q, d = number // 4, number % 4
    at = (number_of(sizes, which, PARTS, 2, 1) + (s * B + b) * Q + q) * 4 + d
    l1 = tl.load(box_gradients + at, mask=inside, other=0).to(COMPUTE)
    giou = tl.load(box_gradients + rows.to(tl.int64) * 4 + at, mask=inside, other=0).to(COMPUTE)
    by_l1, by_giou = tl.load(upstream + r * 3 + 1).to(COMPUTE), tl.load(upstream + r * 3 + 2).to(COMPUTE)
    place = s * number_of(strides, which, PARTS, 3, 0) + b * number_of(strides, which, PARTS, 3, 1)
    pointer = map_of(found, which, PARTS) + place + q * number_of(strides, which, PARTS, 3, 2) + d
    tl.store(pointer, (l1 * by_l1 + giou * by_giou).to(pointer.dtype.element_ty), mask=inside)


def set_loss_backward_(
    gradients: list[Tensor], box_gradients: Tensor, pred_boxes: list[Tensor], parts: list[int], upstream: Tensor
) -> Tensor:
    """Launch both kernels; meaning as in `detops.reference.set_loss_backward`."""
    batch, rows, sets = pred_boxes[0].shape[1], box_gradients.shape[1], len(upstream)
    flat = pred_boxes[0].new_empty((sum(one.shape[:3].numel() for one in pred_boxes), 4))
    split = flat.split([one.shape[:3].numel() for one in pred_boxes])
    found = [one.view(other.shape) for one, other in zip(split, pred_boxes, strict=True)]
    for tensor, place in gaps_of(parts, [one.shape for one in found]):
        found[tensor][place].zero_()
    if rows == 0:
        return flat
    every = parts_of(parts, batch)
    firsts = tuple(part.sets.start for part in every)
    scaled, boxes = (tuple(part.of(tensors) for part in every) for tensors in (gradients, found))
    of_logits, of_boxes = (tuple(n for one in one_kind for n in one.stride()[:3]) for one_kind in (scaled, boxes))
    counts, classes = tuple(one.shape[2] for one in boxes), gradients[0].shape[3]
    sizes = tuple(n for part, count in zip(every, counts, strict=True) for n in (count, part.rows.start))
    factors = upstream.contiguous()
    scale_kernel(
        (cdiv(max(counts) * classes, BLOCK_X), sets * batch), (scaled, factors),
        (firsts, counts, of_logits, batch, classes), (len(every), gradients[0].dtype == torch.float64, BLOCK_X),
    )  # fmt: skip
    box_kernel(
        (cdiv(max(counts) * 4, BLOCK_Q * 4), sets * batch), (boxes, box_gradients, factors),
        (firsts, sizes, of_boxes, batch, rows),
        (len(every), box_gradients.dtype == torch.float64, BLOCK_Q * 4),
    )  # fmt: skip
    return flat
