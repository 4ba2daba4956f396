"""`centernet_maps` in Triton: a program per run of cells of one image, which finds the box of each cell.

Every cell is written once, zeros included, in one launch.
"""

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._cells import box_of_cells
from detops.kernels._launch import cdiv, kernel

BLOCK = 256  # cells per program
BLOCK_N = 32  # boxes at once


@kernel(tensors=5, num_warps=4)
def maps_kernel(
    wh,  # (B, N, 2)
    offset,  # (B, N, 2)
    index,  # (B, N)
    used,  # (B, N) uint8
    maps,  # (B, 5, cells)
    N,
    cells,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write all maps of a run of cells."""
    b = tl.program_id(1).to(tl.int64)
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = box_of_cells(index + b * N, used + b * N, cell, N, BLOCK, BLOCK_N)
    found, box = n >= 0, (b * N + n) * 2
    sink = maps + b * 5 * cells + cell
    kind = maps.dtype.element_ty
    for axis in tl.static_range(2):
        size = tl.load(wh + box + axis, mask=found, other=0.0)
        shift = tl.load(offset + box + axis, mask=found, other=0.0)
        tl.store(sink + axis * cells, size.to(kind), mask=cell < cells)
        tl.store(sink + (2 + axis) * cells, shift.to(kind), mask=cell < cells)
    tl.store(sink + 4 * cells, found.to(kind), mask=cell < cells)


def centernet_maps(
    wh: Tensor, offset: Tensor, index: Tensor, used: Tensor, height: int, width: int, dtype: torch.dtype
) -> Tensor:
    """Launch one program per run of cells; arguments and meaning as in `detops.reference.centernet_maps`."""
    batch, count = index.shape
    maps = torch.empty(batch, 5, height, width, dtype=dtype, device=index.device)
    if maps.numel():
        maps_kernel(
            (cdiv(height * width, BLOCK), batch),
            (wh.contiguous(), offset.contiguous(), index.contiguous(), used.contiguous().view(torch.uint8), maps),
            (count, height * width),
            (BLOCK, BLOCK_N),
        )
    return maps
