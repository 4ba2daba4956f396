"""`prototype_losses` in PyTorch: the masks of some positives of all images at a time, on the whole grid."""

import torch
from torch import Tensor
from torch.nn import functional as F

from detops.arguments import accumulate_dtype

CHUNK = 16  # positives per image whose masks exist at once
FAR = 100.0


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
    """Compute chunk by chunk; arguments and meaning as in `detops.reference.prototype_losses`.

    Positives come first, and on the CPU the chunks end with them; elsewhere their number would have to be waited for.
    """
    dtype, device = accumulate_dtype(coefficients), coefficients.device
    batch, points, depth = coefficients.shape
    height, width = prototypes.shape[2:]
    total = torch.zeros((), dtype=dtype, device=device)
    of_rows = torch.zeros(coefficients.shape if with_gradient else 0, dtype=dtype, device=device)
    of_maps = torch.zeros((batch, depth, height * width) if with_gradient else 0, dtype=dtype, device=device)
    positive = (index >= 0) & (index < cells.shape[1])
    count = points
    if device.type == "cpu" and positive.numel():
        count = int(positive.sum(1).amax())
    order = positive.logical_not().byte().argsort(dim=1, stable=True)
    with torch.autocast(device.type, enabled=False):
        basis, marks = prototypes.to(dtype).flatten(2), labels.flatten(2)
        for first in range(0, count if cells.shape[1] else 0, CHUNK):
            some = order[:, first : first + CHUNK]  # (B, M)
            which = torch.where(positive, index, 0).gather(1, some).to(torch.int64)
            box = cells.to(torch.float32).gather(1, which[..., None].expand(-1, -1, 4))
            area = ((box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])).abs()
            used = positive.gather(1, some) & (area > 0)
            weight = area.to(dtype).reciprocal().where(used, 0)[..., None]
            inside = _inside(box, (height, width), kind) & used[..., None]
            y = marks.gather(1, which[..., None].expand(-1, -1, height * width))
            there = used[..., None]
            row = coefficients.gather(1, some[..., None].expand(-1, -1, depth)).to(dtype).where(there, 0)
            z = row @ basis  # (B, M, h w)
            loss = (F.softplus(z) + z * 0 - z * y).where(inside, (y & there) * FAR if kind else 0)
            total = total + (loss * weight).sum()
            if with_gradient:
                slope = ((z.sigmoid() + z * 0 - y.to(dtype)) * weight).where(inside, 0)
                own = (slope @ basis.mT).where(there, 0)
                of_rows.scatter_add_(1, some[..., None].expand(-1, -1, depth), own)
                of_maps += row.mT @ slope
    if scale is not None:
        factor = scale.to(dtype)
        total, of_rows, of_maps = total * factor, of_rows * factor, of_maps * factor
    return total, of_rows, of_maps.view(prototypes.shape) if with_gradient else of_maps


def _inside(box: Tensor, size: tuple[int, int], kind: int) -> Tensor:
    """Mark the cells of boxes (B, M, 4): (B, M, h w)."""
    marks = []
    for axis in range(2):
        low, high = box[..., axis, None], box[..., axis + 2, None]
        if kind:
            low, high = torch.minimum(low, high) - 1, torch.maximum(low, high) + 1
        cell = torch.arange(size[1 - axis], device=box.device, dtype=torch.float32)
        marks.append((low <= cell) & (cell < high))
    return (marks[1][..., :, None] & marks[0][..., None, :]).flatten(2)
