"""`top_logits` in Triton: one launch turns the logits of all levels into keys, which PyTorch sorts; another reads them.

A key is an int64 that is higher for a higher logit, and for a lower index of equal ones.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.geometry.levels import dense_map
from detops.kernels._launch import cdiv, kernel, map_of, number_of

BLOCK = 1024
NONE = tl.constexpr(-(2**63))
LOW = tl.constexpr(2**32 - 1)


@triton.jit
def _ordered(bits):
    """The bits of a float32 as an int32 that sorts as it does, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@kernel(tensors=2, num_warps=4)
def keys_kernel(
    maps,  # a tuple: each level's logits, in memory order
    keys,  # (B, logits of an image): those of a level together, in its memory order
    starts,  # tuples, of each level: its first point
    rows,  # how many it has
    inner,  # how many logits apart two points lie
    outer,  # how many logits apart two classes lie
    C,
    A,
    least,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Make the keys of a block of one image's logits of one level."""
    which = tl.program_id(1) % LEVELS
    b = (tl.program_id(1) // LEVELS).to(tl.int64)
    R, start = number_of(rows, which, LEVELS, 1, 0), number_of(starts, which, LEVELS, 1, 0)
    if tl.program_id(0) * BLOCK < C * R:
        place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        there = place < C * R
        x = tl.load(map_of(maps, which, LEVELS) + b * C * R + place, mask=there, other=0.0).to(tl.float32)
        point = place // number_of(inner, which, LEVELS, 1, 0) % R
        label = place // number_of(outer, which, LEVELS, 1, 0) % C
        index = (start + point).to(tl.int64) * C + label
        bits = _ordered((x + 0.0).to(tl.int32, bitcast=True)).to(tl.int64)
        key = tl.where(x >= least, (bits << 32) - index, NONE)
        tl.store(keys + (b * A + start) * C + place, key, mask=there)


@kernel(tensors=3, num_warps=4)
def read_kernel(keys, values, index, count, BLOCK: tl.constexpr):
    """Turn keys into logits and indices."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + i, mask=i < count, other=0)
    exists = key != NONE
    low = -key & LOW
    bits = _ordered(((key + low) >> 32).to(tl.int32))
    tl.store(values + i, tl.where(exists, bits.to(tl.float32, bitcast=True), float("nan")), mask=i < count)
    tl.store(index + i, tl.where(exists, low, 0), mask=i < count)


def top_logits(logits: list[Tensor], least: float, count: int) -> tuple[Tensor, Tensor]:
    """Launch the kernels; arguments and meaning as in `detops.reference.top_logits`."""
    batch, classes = logits[0].shape[:2]
    logits = [dense_map(level) for level in logits]
    rows = tuple(level.shape[2] * level.shape[3] for level in logits)
    by_class = [level.is_contiguous() for level in logits]
    keys = torch.empty(batch, sum(rows) * classes, dtype=torch.int64, device=logits[0].device)
    programs = cdiv(classes * max(rows), BLOCK)
    if batch and programs:
        keys_kernel(
            (programs, batch * len(logits)),
            (tuple(logits), keys),
            (
                tuple(sum(rows[:i]) for i in range(len(rows))),
                rows,
                tuple(1 if first else classes for first in by_class),
                tuple(max(size, 1) if first else 1 for first, size in zip(by_class, rows, strict=True)),
                classes,
                sum(rows),
                float(least),
            ),
            (len(logits), BLOCK),
        )
    parts = keys.split([size * classes for size in rows], 1)
    tops = [part.topk(min(count, part.shape[1]), 1).values for part in parts]  # sorted
    best = tops[0] if len(tops) == 1 else torch.cat(tops, 1).sort(1, True).values
    values = torch.empty(best.shape, dtype=torch.float32, device=best.device)
    index = torch.empty_like(best)
    if best.numel():
        read_kernel((cdiv(best.numel(), BLOCK),), (best, values, index), (best.numel(),), (BLOCK,))
    return values, index
