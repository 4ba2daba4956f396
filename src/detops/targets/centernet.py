"""CenterNet's training targets for a whole batch: heatmap, size and offset maps, and the divisor of the losses."""

from typing import NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.arguments import accumulate_dtype, renamed
from detops.diagnostics.checked import unchecked
from detops.geometry.levels import Size, require_fitting_sizes, require_size, xy_of
from detops.ground_truth import GroundTruth, Targets, require_ground_truth
from detops.targets.heatmap import draw_heatmap_batched
from detops.targets.radius import Formula, require_overlap


class CenterNetTargets(NamedTuple):
    """The training targets of a CenterNet.

    Attributes:
        heatmap: (B, C, H, W), 1 at the centre of each box in the map of its class, falling off around it.
        wh: (B, 2, H, W), width and height of the box in cells, at its centre's cell; 0 elsewhere.
        offset: (B, 2, H, W), x and y of the centre minus its cell; 0 elsewhere.
        weight: (B, 2, H, W), 1 at the cells that hold a centre, 0 elsewhere.
        num_objects: 0-d int64, number of distinct centres (class and cell), at least 1: the losses' divisor.
        negative_weight: (B, 1, H, W), 0 at cells whose centre lies in an ignored region, else 1; None without
            ignored regions.
    """

    heatmap: Tensor
    wh: Tensor
    offset: Tensor
    weight: Tensor
    num_objects: Tensor
    negative_weight: Tensor | None = None


@renamed(
    image_shape="image_size", feature_shape="feature_size", ignore_boxes="`ignored` of GroundTruth, given as targets",
    boxes="targets=(boxes, labels)", labels="targets=(boxes, labels)",
)  # fmt: skip
def centernet_targets(
    targets: Targets,
    feature_size: Size,
    image_size: Size,
    num_classes: int,
    min_overlap: float = 0.3,
    *,
    min_radius: int = 0,
    formula: Formula = "fixed",
    elliptical: float | None = None,
    k_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> CenterNetTargets:
    """Compute a batch's targets, without a loop over images or boxes and without host synchronisation.

    A box is scaled to the feature map; its cell is its centre, truncated, and moved onto the map where it lies
    beyond the edge (the offset still leads to the true centre). Where several boxes share a cell, the last one sets
    size and offset. A box is skipped if it does not touch the image, has a negative side or a number that is
    not finite, or a label that is no class; a negative label means "ignore this box". `detops.checked()` names
    labels that are too large, negative sides and numbers that are not finite.

    Args:
        targets: `GroundTruth`, the pair (boxes, labels), or a list of dicts; boxes xyxy in pixels of the image, labels
            0 .. num_classes - 1. Cells in ignored regions, such as crowds, carry no negative loss.
        feature_size: Height and width of the maps in cells.
        image_size: Height and width of the batch's (padded) images in pixels.
        num_classes: Number of classes C.
        min_overlap: IoU that a box keeps when its corners move by the radius.
        min_radius: Smallest radius in cells (CenterPoint: 2).
        formula: Formula of the radius as in `gaussian_radius`; "legacy" for models of the CornerNet family.
        elliptical: If given, radii along x and y are this fraction of half the box's width and height, and
            `min_overlap` is not used (TTFNet: 0.54).
        k_scale: Value of the heatmap at a centre.
        dtype: Dtype of the maps.

    Returns:
        The targets, on the device of the boxes.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a number is out of range.

    Example:
        >>> boxes, labels = [torch.tensor([[20.0, 20, 36, 36]])], [torch.tensor([0])]
        >>> targets = centernet_targets((boxes, labels), (8, 8), (64, 64), num_classes=2)
        >>> targets.offset[0, :, 3, 3], targets.wh[0, :, 3, 3], targets.num_objects
        (tensor([0.5000, 0.5000]), tensor([2., 2.]), tensor(1))

    Reference:
        Zhou et al., "Objects as Points", 2019; values as in MMDetection's `CenterNetHead.get_targets`.
    """
    truth = require_ground_truth(targets, num_classes)
    cells = centernet_cells(
        truth, feature_size, image_size, num_classes, min_overlap,
        min_radius=min_radius, formula=formula, elliptical=elliptical,
    )  # fmt: skip
    height, width = feature_size
    batch, device = len(cells.labels), cells.labels.device
    heatmap = torch.zeros(batch, num_classes, height, width, dtype=dtype, device=device)
    with unchecked():  # boxes to be skipped have label -1 by now
        draw_heatmap_batched(heatmap, cells.center, cells.radius, k_scale=k_scale, labels=cells.labels)
    maps = ops.centernet_maps(
        wh=cells.wh,
        offset=cells.offset,
        index=cells.flat_index,
        used=cells.last,
        height=height,
        width=width,
        dtype=dtype,
    )
    return CenterNetTargets(
        heatmap,
        maps[:, :2],
        maps[:, 2:4],
        maps[:, 4:].expand(-1, 2, -1, -1),
        cells.num_centers.clamp(min=1),
        ignored_cells(truth, feature_size, image_size, dtype),
    )


class CenterNetCells(NamedTuple):
    """Boxes on the feature map, from which dense targets are filled and sparse losses are computed.

    Attributes:
        center: (B, N, 2) int64, x and y of the cell of the box's centre.
        radius: (B, N) int64, or (B, N, 2) along x and y.
        labels: (B, N) int64, -1 for boxes that are skipped.
        wh: (B, N, 2), width and height in cells.
        offset: (B, N, 2), centre minus its cell.
        flat_index: (B, N) int64, cell as y * W + x; H * W for boxes that are skipped.
        last: (B, N) bool, the boxes that are not skipped and come last among those of their cell.
        num_centers: 0-d int64, number of distinct centres (class and cell) of the batch.
    """

    center: Tensor
    radius: Tensor
    labels: Tensor
    wh: Tensor
    offset: Tensor
    flat_index: Tensor
    last: Tensor
    num_centers: Tensor


def centernet_cells(
    targets: GroundTruth,
    feature_size: Size,
    image_size: Size,
    num_classes: int,
    min_overlap: float = 0.3,
    *,
    min_radius: int = 0,
    formula: Formula = "fixed",
    elliptical: float | None = None,
) -> CenterNetCells:
    """Scale boxes to the feature map; arguments and skipped boxes as in `centernet_targets`.

    Raises:
        ValueError: A size or number is out of range.
    """
    height, width = require_size("feature_size", feature_size)
    image_size = require_size("image_size", image_size)
    require_fitting_sizes((height, width), image_size)
    if min_radius < 0:
        raise ValueError(f"min_radius: expected at least 0, got {min_radius!r}")
    if elliptical is not None and not 0 < elliptical <= 2:
        raise ValueError(f"elliptical: expected a number above 0 and at most 2, got {elliptical!r}")
    require_overlap(min_overlap, formula)
    cells = ops.centernet_cells(
        boxes=targets.boxes.detach(),
        labels=targets.labels,
        sample_sizes=targets.sample_sizes,
        map_size=[height, width],
        image_size=list(image_size),
        num_classes=num_classes,
        min_overlap=float(min_overlap),
        min_radius=min_radius,
        legacy=formula == "legacy",
        elliptical=0.0 if elliptical is None else float(elliptical),
    )
    return CenterNetCells(*cells)


def ignored_cells(
    targets: GroundTruth, feature_size: Size, image_size: Size, dtype: torch.dtype = torch.float32
) -> Tensor | None:
    """Return (B, 1, H, W): 0 where the centre of a cell lies in an ignored region, else 1; None without regions."""
    if targets.ignored is None:
        return None
    regions = targets.ignored.detach()
    regions = regions.to(accumulate_dtype(regions))
    scaled = regions * (xy_of(feature_size, regions) / xy_of(image_size, regions)).repeat(2)  # (B, M, 4), cells
    within = []
    for axis, size in ((1, feature_size[0]), (0, feature_size[1])):
        middle = torch.arange(size, dtype=torch.float32, device=regions.device) + 0.5
        within.append((middle >= scaled[..., axis, None]) & (middle < scaled[..., axis + 2, None]))
    rows, columns = within  # (B, M, H), (B, M, W)
    rows = rows & targets.ignored_exists()[..., None]
    # A product over regions, as a matrix product over M: how many regions cover each cell.
    covering = rows.to(torch.float32).transpose(1, 2) @ columns.to(torch.float32)  # (B, H, W)
    return (covering == 0).to(dtype).unsqueeze(1)
