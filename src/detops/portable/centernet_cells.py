"""`centernet_cells` in PyTorch: all boxes at once; boxes that share a cell or a centre are found by sorting."""

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.geometry.corners import corner_radius
from detops.geometry.levels import xy_of
from detops.ragged.padded import exists

Cells = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


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
) -> Cells:
    """Compute all boxes; arguments and meaning as in `detops.reference.centernet_cells`."""
    (height, width), count = map_size, labels.shape[1]
    xyxy = boxes.to(accumulate_dtype(boxes))
    low, high = xyxy[..., :2], xyxy[..., 2:]  # (B, N, 2)
    shape, image = xy_of(map_size, xyxy), xy_of(image_size, xyxy)
    touches = ((high > 0) & (low < image)).all(-1)
    valid = touches & ((high >= low) & low.isfinite() & high.isfinite()).all(-1)
    valid = valid & (labels >= 0) & (labels < num_classes)
    if sample_sizes is not None:
        valid = valid & exists(sample_sizes, count)
    # What is not valid may hold anything; zeros in its place keep every number below finite.
    low, high = low.where(valid[..., None], 0), high.where(valid[..., None], 0)

    ratio = shape / image
    center, wh = (low + high) * ratio / 2, (high - low) * ratio
    # As floats first: a centre far beyond the map would not fit an integer.
    cell = torch.minimum(center.trunc().clamp(min=0), shape - 1)
    radius = wh / 2 * elliptical if elliptical > 0 else corner_radius(wh[..., 1], wh[..., 0], min_overlap, legacy)
    radius = radius.floor().clamp(min_radius, 2**30).where(radius == radius, -1)
    cells, label = cell.to(torch.int64), labels.to(torch.int64).where(valid, -1)
    # Beyond the map, a cell is neither written nor read.
    index = (cells[..., 1] * width + cells[..., 0]).where(valid, height * width)
    return (
        cells,
        radius.to(torch.int64),
        label,
        wh,
        center - cell,
        index,
        _last(index) & valid,
        _distinct((label * (height * width) + index).where(valid, -1)),
    )


def _last(index: Tensor) -> Tensor:
    """Return (B, N) bool, which are the last with their number in the row."""
    ordered, order = index.sort(dim=1, stable=True)
    last = torch.ones_like(ordered[:, :1], dtype=torch.bool)
    new = torch.cat([ordered[:, 1:] != ordered[:, :-1], last], 1)[:, : ordered.shape[1]]
    return torch.zeros_like(new).scatter(1, order, new)


def _distinct(keys: Tensor) -> Tensor:
    """Count different numbers of each row that are not negative, over all rows: 0-d int64."""
    ordered = keys.sort(1).values
    first = torch.ones_like(ordered[:, :1], dtype=torch.bool)
    new = torch.cat([first, ordered[:, 1:] != ordered[:, :-1]], 1)[:, : keys.shape[1]]
    return (new & (ordered >= 0)).sum()
