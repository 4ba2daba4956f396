"""CenterNet's training targets for a whole batch: heatmap, size and offset maps, and what to divide by."""

from typing import NamedTuple

import torch
from torch import Tensor

from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor
from detops.diagnostics.checked import is_checked, unchecked
from detops.ragged import RaggedBatch
from detops.ragged.padded import Batch, as_padded, boxes_with_labels
from detops.targets.heatmap import draw_heatmap_batched
from detops.targets.radius import Formula, gaussian_radius


class CenterNetTargets(NamedTuple):
    """What a CenterNet is trained on.

    Attributes:
        heatmap: (B, C, H, W), 1 at the centre of each box in the map of its class, falling off around it.
        wh: (B, 2, H, W), width and height of the box in cells, at its centre's cell; 0 elsewhere.
        offset: (B, 2, H, W), x and y of the centre minus its cell; 0 elsewhere.
        weight: (B, 2, H, W), 1 at the cells that hold a centre, 0 elsewhere.
        num_objects: 0-d int64, number of distinct centres (class and cell), at least 1: the losses' divisor.
        negative_weight: (B, 1, H, W), 0 at cells whose centre an ignored box covers, else 1; None without such.
    """

    heatmap: Tensor
    wh: Tensor
    offset: Tensor
    weight: Tensor
    num_objects: Tensor
    negative_weight: Tensor | None = None


def centernet_targets(
    boxes: Batch,
    labels: Batch,
    feature_shape: tuple[int, int],
    image_shape: tuple[int, int],
    num_classes: int,
    min_overlap: float = 0.3,
    *,
    min_radius: int = 0,
    formula: Formula = "fixed",
    elliptical: float | None = None,
    k_scale: float = 1.0,
    ignore_boxes: Batch | None = None,
    dtype: torch.dtype = torch.float32,
) -> CenterNetTargets:
    """Compute a batch's targets, without a loop over images or boxes and without host synchronisation.

    A box is scaled to the feature map; its cell is its centre, truncated, and moved onto the map where it lies
    beyond the edge (the offset still leads to the true centre). Of several boxes at one cell the last gives
    size and offset. A box is skipped that does not touch the image, has a negative side or a number that is
    not finite, or a label that is no class; a negative label means "ignore this box". `detops.checked()` names
    labels that are too large, negative sides and numbers that are not finite.

    Args:
        boxes: `RaggedBatch` (B, N, 4), or a list of B tensors (n, 4): xyxy in pixels of the image. A tensor
            (B, N, 4) is a batch without padding.
        labels: Likewise (B, N) integers, 0 .. num_classes - 1.
        feature_shape: Height and width of the maps in cells.
        image_shape: Height and width of the batch's (padded) images in pixels.
        num_classes: Number of classes C.
        min_overlap: IoU that a box keeps when its corners move by the radius.
        min_radius: Smallest radius in cells (CenterPoint: 2).
        formula: Of the radius; "legacy" for models of the CornerNet family, see `gaussian_radius`.
        elliptical: If given, radii along x and y are this fraction of half the box's width and height, and
            `min_overlap` has no say (TTFNet: 0.54).
        k_scale: Value of the heatmap at a centre.
        ignore_boxes: Likewise (B, M, 4): regions, such as crowds, whose cells carry no negative loss.
        dtype: Of the maps.

    Returns:
        The targets, on the device of the boxes.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a number is out of range.

    Example:
        >>> targets = centernet_targets(
        ...     [torch.tensor([[20.0, 20, 36, 36]])], [torch.tensor([0])], (8, 8), (64, 64), num_classes=2
        ... )
        >>> targets.offset[0, :, 3, 3], targets.wh[0, :, 3, 3], targets.num_objects
        (tensor([0.5000, 0.5000]), tensor([2., 2.]), tensor(1))

    Reference:
        Zhou et al., "Objects as Points", 2019; the numbers of MMDetection's `CenterNetHead.get_targets`.
    """
    cells = centernet_cells(
        boxes,
        labels,
        feature_shape,
        image_shape,
        num_classes,
        min_overlap,
        min_radius=min_radius,
        formula=formula,
        elliptical=elliptical,
    )
    height, width = feature_shape
    batch, device = len(cells.labels), cells.labels.device
    heatmap = torch.zeros(batch, num_classes, height, width, dtype=dtype, device=device)
    with unchecked():  # what is to be skipped has label -1 now
        cell, radius, label = (RaggedBatch(t, sample_sizes=cells.sample_sizes) for t in cells[:3])
        draw_heatmap_batched(heatmap, cell, radius, k_scale=k_scale, labels=label)
    # All maps at once, with one cell more that takes what is skipped or overwritten: no cell is written twice.
    index = cells.flat_index.where(last_at_cell(cells), height * width)
    values = torch.cat([cells.wh, cells.offset, torch.ones_like(cells.wh[..., :1])], -1).to(dtype)  # (B, N, 5)
    maps = torch.zeros(batch, 5, height * width + 1, dtype=dtype, device=device)
    maps.scatter_(2, index[:, None].expand(-1, 5, -1), values.transpose(1, 2))
    maps = maps[..., :-1].unflatten(2, (height, width))
    return CenterNetTargets(
        heatmap,
        maps[:, :2],
        maps[:, 2:4],
        maps[:, 4:].expand(-1, 2, -1, -1),
        count_centers(cells, height * width).clamp(min=1),
        None if ignore_boxes is None else ignored_cells(ignore_boxes, feature_shape, image_shape, batch, device, dtype),
    )


class CenterNetCells(NamedTuple):
    """Boxes on the feature map: what dense targets are filled with, and sparse losses read.

    Attributes:
        center: (B, N, 2) int64, x and y of the cell of the box's centre.
        radius: (B, N) int64, or (B, N, 2) along x and y.
        labels: (B, N) int64, -1 for boxes that are skipped.
        wh: (B, N, 2), width and height in cells.
        offset: (B, N, 2), centre minus its cell.
        flat_index: (B, N) int64, cell as y * W + x; H * W for boxes that are skipped.
        sample_sizes: (B,)
    """

    center: Tensor
    radius: Tensor
    labels: Tensor
    wh: Tensor
    offset: Tensor
    flat_index: Tensor
    sample_sizes: Tensor


def centernet_cells(
    boxes: Batch,
    labels: Batch,
    feature_shape: tuple[int, int],
    image_shape: tuple[int, int],
    num_classes: int,
    min_overlap: float = 0.3,
    *,
    min_radius: int = 0,
    formula: Formula = "fixed",
    elliptical: float | None = None,
) -> CenterNetCells:
    """Bring boxes onto the feature map; arguments and what is skipped as in `centernet_targets`."""
    xyxy, label, sizes = boxes_with_labels(boxes, labels)
    _check(xyxy, label, num_classes, min_radius, elliptical, feature=feature_shape, image=image_shape)
    (height, width), count = feature_shape, xyxy.shape[1]
    if sizes is None:
        sizes = torch.full((xyxy.shape[0],), count, device=xyxy.device)
    xyxy = xyxy.detach().to(torch.float64 if xyxy.dtype == torch.float64 else torch.float32)
    if is_checked():
        _check_values(xyxy, label, sizes, num_classes)

    low, high = xyxy[..., :2], xyxy[..., 2:]  # (B, N, 2)
    image = _pair(image_shape, xyxy)
    touches = ((high > 0) & (low < image)).all(-1)
    known = (label >= 0) & (label < num_classes)
    exists = torch.arange(count, device=xyxy.device) < sizes[:, None]
    valid = exists & known & touches & ((high >= low) & low.isfinite() & high.isfinite()).all(-1)
    # What is not valid may hold anything; zeros in its place keep every number below finite.
    low, high = low.where(valid[..., None], 0), high.where(valid[..., None], 0)

    ratio = _pair(feature_shape, xyxy) / image
    center, wh = (low + high) * ratio / 2, (high - low) * ratio
    # As floats first: a centre far beyond the map would not fit an integer.
    cell = torch.minimum(center.trunc().clamp(min=0), _pair(feature_shape, xyxy) - 1)
    if elliptical is None:
        radius = gaussian_radius(wh[..., 1], wh[..., 0], min_overlap, formula)
    else:
        radius = wh / 2 * elliptical
    index = (cell[..., 1] * width + cell[..., 0]).to(torch.int64)
    return CenterNetCells(
        cell.to(torch.int64),
        radius.floor().clamp(min_radius, 2**30).to(torch.int64),
        label.to(torch.int64).where(valid, -1),
        wh,
        center - cell,
        index.where(valid, height * width),  # beyond the map: neither written nor read
        sizes,
    )


def _pair(shape: tuple[int, int], like: Tensor) -> Tensor:
    """(height, width) as a tensor (x, y), made without a copy from the host."""
    return torch.stack([torch.full((), side, dtype=like.dtype, device=like.device) for side in reversed(shape)])


def count_centers(cells: CenterNetCells, map_size: int) -> Tensor:
    """How many distinct centres (class and cell) a batch has: 0-d int64. `map_size` is H * W."""
    keys = (cells.labels * map_size + cells.flat_index).where(cells.labels >= 0, -1)
    ordered = keys.sort(1).values
    first = torch.ones_like(ordered[:, :1], dtype=torch.bool)
    new = torch.cat([first, ordered[:, 1:] != ordered[:, :-1]], 1)[:, : keys.shape[1]]
    return (new & (ordered >= 0)).sum()


def last_at_cell(cells: CenterNetCells) -> Tensor:
    """(B, N) bool: boxes that are not skipped, and the last of those with their cell."""
    ordered, order = cells.flat_index.sort(dim=1, stable=True)
    last = torch.ones_like(ordered[:, :1], dtype=torch.bool)
    new = torch.cat([ordered[:, 1:] != ordered[:, :-1], last], 1)[:, : ordered.shape[1]]
    return torch.zeros_like(new).scatter(1, order, new) & (cells.labels >= 0)


def ignored_cells(
    ignore_boxes: Batch,
    feature_shape: tuple[int, int],
    image_shape: tuple[int, int],
    batch: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(B, 1, H, W): 0 where the centre of a cell lies in an ignored box, else 1."""
    regions, sizes = as_padded("ignore_boxes", ignore_boxes)
    require_tensor("ignore_boxes", regions, FLOATS + INTEGERS, "numbers")
    require_shape("ignore_boxes", regions, (batch, *regions.shape[1:2], 4), "to match boxes")
    if regions.device != device:
        raise ValueError(f"ignore_boxes: expected a tensor on {device} like boxes, got one on {regions.device}")
    regions = regions.to(torch.float64 if regions.dtype == torch.float64 else torch.float32)
    scaled = regions * (_pair(feature_shape, regions) / _pair(image_shape, regions)).repeat(2)  # (B, M, 4), cells
    within = []
    for axis, size in ((1, feature_shape[0]), (0, feature_shape[1])):
        middle = torch.arange(size, device=device) + 0.5
        within.append((middle >= scaled[..., axis, None]) & (middle < scaled[..., axis + 2, None]))
    rows, columns = within  # (B, M, H), (B, M, W)
    if sizes is not None:
        exists = torch.arange(regions.shape[1], device=device) < sizes[:, None]
        rows = rows & exists[..., None]
    # A product over regions, as a matrix product over M: how many regions cover each cell.
    covering = rows.to(torch.float32).transpose(1, 2) @ columns.to(torch.float32)  # (B, H, W)
    return (covering == 0).to(dtype).unsqueeze(1)


def _check(
    boxes: Tensor,
    labels: Tensor,
    num_classes: int,
    min_radius: int,
    elliptical: float | None,
    **shapes: tuple[int, int],
) -> None:
    """Check what can be checked without reading the device's memory."""
    require_tensor("boxes", boxes, FLOATS + INTEGERS, "an integer or floating-point tensor")
    if boxes.dim() != 3 or boxes.shape[2] != 4:
        raise ValueError(f"boxes: expected shape (B, N, 4), got {tuple(boxes.shape)}")
    require_tensor("labels", labels, INTEGERS, "integers")
    require_shape("labels", labels, tuple(boxes.shape[:2]), "to match boxes")
    require_device("labels", labels, boxes, "boxes")
    for name, shape in shapes.items():
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"{name}_shape: expected a height and a width of at least 1, got {shape!r}")
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes!r}")
    if min_radius < 0:
        raise ValueError(f"min_radius: expected at least 0, got {min_radius!r}")
    if elliptical is not None and not 0 < elliptical <= 2:
        raise ValueError(f"elliptical: expected a number above 0 and at most 2, got {elliptical!r}")


def _check_values(boxes: Tensor, labels: Tensor, sizes: Tensor, num_classes: int) -> None:
    """Raise for the first box with a label or a number that would make it skipped; reads values."""
    count = boxes.shape[1]
    wrong = ((sizes < 0) | (sizes > count)).nonzero()
    if len(wrong):
        b = int(wrong[0])
        raise ValueError(f"boxes: sample {b} has {int(sizes[b])} entries, expected 0 .. {count}")
    exists = torch.arange(count, device=boxes.device) < sizes[:, None]
    negative = (boxes[..., 2:] < boxes[..., :2]).any(-1)
    for name, value, wrong, expected in (
        ("labels", labels, labels >= num_classes, f"a value below {num_classes}"),
        ("boxes", boxes, ~boxes.isfinite().all(-1), "finite numbers"),
        ("boxes", boxes, negative, "x2 >= x1 and y2 >= y1"),
    ):
        found = (wrong & exists).nonzero()
        if len(found):
            b, n = found[0].tolist()
            raise ValueError(f"{name}: sample {b}, box {n} has {value[b, n].tolist()}, expected {expected}")
