"""Low-resolution maps of images, for the tests of everything that takes them, and what F.interpolate makes of them."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from pycocotools import mask as coco
from torch import Tensor

from detops.geometry.resizing import bilinear_positions, nearest_positions

Size = tuple[int, int]
CPU = torch.device("cpu")


class MapScene(NamedTuple):
    """The arguments of the op `maps_to_rle` up to its threshold."""

    maps: Tensor
    y: Tensor
    x: Tensor
    via_y: Tensor | None
    via_x: Tensor | None
    windows: Tensor | None


def map_scene(
    seed: int,
    count: int = 3,
    map_size: Size = (5, 7),
    image_size: Size = (23, 31),
    via: Size | None = None,
    kind: str = "noise",
    dtype: torch.dtype = torch.float32,
    windows: bool = False,
    nearest: bool = False,
    odd: bool = False,
) -> MapScene:
    """Maps and positions.

    Args:
        seed: The same seed gives the same scene.
        count: Number of maps.
        map_size: Their height and width.
        image_size: Height and width of the image.
        via: Size of a first resize.
        kind: "noise"; "blobs", smooth; "ties", quarters, so that many values are exactly the threshold; or "flat",
            within a few ulps of 0.1.
        dtype: Of the maps.
        windows: Cut to windows, some of them empty, inverted or beyond the image.
        nearest: The last resize is nearest.
        odd: Some cells are NaN, infinite or huge.
    """
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, *map_size, generator=g)
    if kind == "blobs" and count:
        rough = torch.randn(count, 1, 4, 4, generator=g)
        maps = F.interpolate(rough, size=map_size, mode="bicubic")[:, 0] + 0.05 * maps
    elif kind == "ties":
        maps = (maps * 4).round() / 4
    elif kind == "flat":
        maps = 0.1 + torch.randint(-3, 4, maps.shape, generator=g) * 7.5e-9
    if odd:
        cell = torch.randint(15, maps.shape, generator=g)
        for value, number in enumerate((float("nan"), float("inf"), -float("inf"), 3e38, -3e38)):
            maps[cell == value] = number
    grid = via or map_size
    place = nearest_positions if nearest else bilinear_positions
    y, x = (place(0, grid[axis], image_size[axis], CPU) for axis in (0, 1))
    via_y, via_x = (None if via is None else bilinear_positions(0, map_size[i], via[i], CPU) for i in (0, 1))
    cuts = None
    if windows:
        size = torch.tensor(image_size[::-1] * 2)
        cuts = (torch.rand(count, 4, generator=g) * 1.4 * size - 0.2 * size).to(torch.int32)
        cuts[:, 2:] = cuts[:, :2] + (torch.rand(count, 2, generator=g) * size[:2] - 2).to(torch.int32)
    return MapScene(maps.to(dtype), y, x, via_y, via_x, cuts)


def map_scenes(largest: int = 70) -> st.SearchStrategy[MapScene]:
    """Scenes with images of up to `largest` pixels a side."""
    side = st.integers(1, largest)
    return st.builds(
        map_scene,
        seed=st.integers(0, 10**6),
        count=st.sampled_from([0, 1, 3]),
        map_size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
        image_size=st.tuples(side, side),
        via=st.none() | st.tuples(st.integers(1, 30), st.integers(1, 30)),
        kind=st.sampled_from(["noise", "blobs", "ties", "flat"]),
        dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
        windows=st.booleans(),
        nearest=st.booleans(),
        odd=st.booleans(),
    )


THRESHOLDS = (0.0, 0.5, -0.3, 0.1, 1.0)


def encoded(pasted: Tensor) -> list[bytes]:
    """The strings that pycocotools makes of pixels (N, H, W)."""
    pixels = pasted.numpy().astype(np.uint8)
    return [coco.encode(np.asfortranarray(mask))["counts"] for mask in pixels]


def interpolated(maps: Tensor, *sizes: Any) -> Tensor:
    """The maps after one F.interpolate after another, bilinear: (N, H, W)."""
    value = maps.float()[:, None]
    for size in sizes:
        value = F.interpolate(value, size=tuple(size), mode="bilinear", align_corners=False)
    return value[:, 0]


def blob_maps(count: int, cells: int, seed: int = 0, share: float = 0.047) -> Tensor:
    """Logits (count, cells, cells) of smooth round objects that cover about a share of the image."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*[(torch.arange(cells) + 0.5) / cells] * 2, indexing="ij")
    center, turn = 0.15 + 0.7 * torch.rand(count, 2, 1, 1, generator=g), 6 * torch.rand(count, 1, 1, generator=g)
    dx, dy = x - center[:, 0], y - center[:, 1]
    radius: Tensor = (share / torch.pi) ** 0.5 * (1 + 0.2 * torch.sin(3 * torch.atan2(dy, dx) + turn))
    return 20 * (radius - torch.hypot(dx, dy))
