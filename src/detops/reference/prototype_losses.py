"""What `prototype_losses` means: one positive at a time, and its mask on the whole grid."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

YOLO, YOLACT = range(2)
FAR = 100.0  # what a true cell costs where YOLACT's crop leaves a probability of 0: PyTorch's limit of its logarithm


def prototype_losses(
    coefficients: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    index: Tensor,
    cells: Tensor,
    scale: Tensor | None,
    kind: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of all positives' losses, and its gradients.

    With z the product of a positive's coefficients and the prototypes, and y the label of a cell of its box:

        kind
        0 yolo    sum over cells with x1 <= c < x2 (rows alike) of BCE(z, y), over the box's area in cells
        1 yolact  the same with the box's sides in order, a cell more on each side and within the grid, and 100 for
                  each true cell beyond

    A box without an area, or with one that is not finite, costs nothing.

    Args:
        coefficients: (B, A, K) floating point.
        prototypes: (B, K, h, w).
        labels: (B, N, h, w) bool, contiguous.
        index: (B, A) integers, box of each row of coefficients; where it is none of them, the row is not read.
        cells: (B, N, 4) xyxy of the boxes in cells, float32.
        scale: 0-d factor of the loss and of the gradients; None for 1.
        kind: See above.
        with_gradient: Whether the gradients are wanted; if not they come back empty.

    Returns:
        0-d loss, and its gradients by coefficients and by prototypes: float32, float64 for coefficients of that.

    Reference:
        Bolya et al., "YOLACT: Real-time Instance Segmentation", 2019.
    """
    dtype = torch.float64 if coefficients.dtype == torch.float64 else torch.float32
    total = torch.zeros((), dtype=torch.float64)
    of_rows = torch.zeros(coefficients.shape, dtype=torch.float64)
    of_maps = torch.zeros(prototypes.shape, dtype=torch.float64)
    factor = 1.0 if scale is None else scale.item()
    for b in range(len(index)):
        for a in range(index.shape[1]):
            n = int(index[b, a])
            if not 0 <= n < cells.shape[1]:
                continue
            x1, y1, x2, y2 = cells[b, n]
            area = ((x2 - x1) * (y2 - y1)).abs().item()
            if not 0 < area < math.inf:
                continue
            inside = _inside(cells[b, n].tolist(), labels.shape[2:], kind)
            row, basis = coefficients[b, a].to(dtype).double(), prototypes[b].to(dtype).double()
            z = (row[:, None, None] * basis).sum(0)
            y = labels[b, n].double()
            total += ((F.softplus(z) + z * 0 - z * y) / area)[inside].sum()
            if kind == YOLACT:
                total += FAR * y[~inside].sum() / area
            slope = torch.where(inside, (z.sigmoid() + z * 0 - y) * factor / area, 0)
            of_rows[b, a] = (slope * basis)[:, inside].sum(1)
            of_maps[b] += torch.where(inside, row[:, None, None] * slope, 0)
    if not with_gradient:
        of_rows, of_maps = torch.zeros(0), torch.zeros(0)
    return (total * factor).to(dtype), of_rows.to(dtype), of_maps.to(dtype)


def _inside(box: list[float], size: tuple[int, ...], kind: int) -> Tensor:
    """Mark the cells of a box, (h, w)."""
    marks = []
    for axis in range(2):
        low, high, cell = box[axis], box[axis + 2], torch.arange(size[1 - axis])
        if kind == YOLACT:
            low, high = min(low, high) - 1, max(low, high) + 1
        marks.append((low <= cell) & (cell < high))
    return marks[1][:, None] & marks[0]
