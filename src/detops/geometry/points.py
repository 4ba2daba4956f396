"""Where a dense head predicts: the points of a feature pyramid, and the anchors at them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from detops.geometry.levels import Size, feature_sizes_of

KEPT_GRIDS = 32  # sizes of inputs whose points a criterion keeps; multi-scale training has about ten


def grid_points(
    feature_sizes: Sequence[Size],
    strides: Sequence[int],
    device: torch.device | str = "cpu",
    offset: float = 0.5,
) -> Tensor:
    """Return the points of a feature pyramid, level by level, row by row.

    Args:
        feature_sizes: Height and width of each level in cells.
        strides: Pixels per cell of each level.
        device: Device of the result.
        offset: Where in its cell a point lies, as a fraction of the cell: 0.5 is the centre (YOLOX), 0 the top left
            corner (GFL).

    Returns:
        (A, 3) float32: x, y and stride of each point, in pixels.

    Raises:
        ValueError: There is not exactly one stride per level.

    Example:
        >>> grid_points([(1, 2)], [8])
        tensor([[ 4.,  4.,  8.],
                [12.,  4.,  8.]])
    """
    if len(feature_sizes) != len(strides):
        raise ValueError(f"strides: expected {len(feature_sizes)}, one per level, got {len(strides)}")
    levels = []
    for (height, width), stride in zip(feature_sizes, strides, strict=True):
        y, x = ((torch.arange(side, device=device, dtype=torch.float32) + offset) * stride for side in (height, width))
        rows = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1)
        levels.append(torch.cat([rows, torch.full_like(rows[:, :1], stride)], 1))
    return torch.cat(levels)


def grid_anchors(
    feature_sizes: Sequence[Size],
    strides: Sequence[int] = (8, 16, 32, 64, 128),
    scale: float = 8.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the anchors of GFL: one square per cell, level by level, row by row.

    Args:
        feature_sizes: Height and width of each level in cells.
        strides: Pixels per cell of each level.
        scale: Side of an anchor, in strides.
        device: Device of the result.

    Returns:
        (A, 4) float32 xyxy in pixels, centred at (x * stride, y * stride): the corner of the cell, not its middle.

    Raises:
        ValueError: There is not exactly one stride per level.

    Example:
        >>> grid_anchors([(1, 2)], [8])
        tensor([[-32., -32.,  32.,  32.],
                [-24., -32.,  40.,  32.]])

    Reference:
        MMDetection's configuration of ATSS, GFL and LD.
    """
    return anchors_at(grid_points(feature_sizes, strides, device, offset=0.0), scale)


def anchors_at(points: Tensor, scale: float) -> Tensor:
    """Return squares (A, 4) xyxy around points (A, 3), with sides of `scale` strides."""
    half = points[:, 2:] * (scale / 2)
    return torch.cat([points[:, :2] - half, points[:, :2] + half], 1)


def points_in_images(points: Tensor, image_sizes: Tensor, offset: float = 0.0) -> Tensor:
    """Return (B, A) bool, which points' cells begin within their image, not in the padding of its batch.

    Args:
        points: (A, 3), as from `grid_points`.
        image_sizes: (B, 2) height and width of each image in pixels.
        offset: The offset that the points were made with.
    """
    corner = points[:, :2] - offset * points[:, 2:] if offset else points[:, :2]
    return (corner < image_sizes.flip(1)[:, None]).all(-1)


def points_in_boxes(points: Tensor, boxes: Tensor, exists: Tensor) -> Tensor:
    """Return (B, A) bool, which points lie in any of an image's boxes.

    Args:
        points: (A, 3), as from `grid_points`.
        boxes: (B, M, 4) xyxy in pixels.
        exists: (B, M) bool, which boxes are real.
    """
    xy = points[:, None, :2]  # (A, 1, 2)
    inside = ((xy >= boxes[:, None, :, :2]) & (xy < boxes[:, None, :, 2:])).all(-1)  # (B, A, M)
    return (inside & exists[:, None]).any(-1)


_GRIDS: dict[tuple[tuple[int, ...], float], "GridCache"] = {}  # by strides and offset


def kept_points(levels: Sequence[Tensor], strides: Sequence[int], offset: float = 0.5) -> Tensor:
    """Return `grid_points` for maps (B, C, H, W), kept for the next call with maps of the same sizes."""
    if torch.compiler.is_compiling():
        return grid_points(feature_sizes_of(levels), strides, levels[0].device, offset)
    cache = _GRIDS.setdefault((tuple(strides), offset), GridCache())
    return cache.get(levels, lambda sizes, device: (grid_points(sizes, strides, device, offset),))[0]


class GridCache:
    """Points of the feature sizes that a criterion has met, kept for the next call with the same sizes."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, torch.device], tuple[Tensor, ...]] = {}

    def __getstate__(self) -> dict[str, object]:
        """Leave the points out of copies: they may be megabytes on a device that the reader does not have."""
        return {"_kept": {}}

    def get(
        self, levels: Sequence[Tensor], make: Callable[[list[Size], torch.device], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Return the points that `make` returns for these maps.

        Args:
            levels: Each level's (B, C, H, W).
            make: Takes the levels' heights and widths, and the device.
        """
        sizes, first = feature_sizes_of(levels), levels[0]
        # A traced or captured tensor must not outlive its graph.
        keep = type(first) in (Tensor, nn.Parameter) and not torch.compiler.is_compiling()
        keep = keep and not (first.device.type == "cuda" and torch.cuda.is_current_stream_capturing())
        if not keep:
            return make(sizes, first.device)
        # Threads may share a module: no step here breaks if another has changed the dictionary since the last.
        key = (tuple(sizes), first.device)
        kept = self._kept.get(key)
        if kept is None:
            kept = make(sizes, first.device)
            for old in list(self._kept)[: max(len(self._kept) - KEPT_GRIDS + 1, 0)]:
                self._kept.pop(old, None)
            self._kept[key] = kept
        return kept
