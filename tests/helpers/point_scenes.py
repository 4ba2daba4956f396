"""Random maps, and points on them: off the map, on its borders and on ties as well."""

import torch
from torch import Tensor

Scene = tuple[Tensor, Tensor | None, Tensor]


def point_scene(
    seed: int,
    batch: int = 2,
    maps: int = 4,
    rows: int = 3,
    points: int = 9,
    size: tuple[int, int] = (5, 7),
    dtype: torch.dtype = torch.float32,
    indexed: bool = True,
    shared: bool = False,
    odd: bool = False,
) -> Scene:
    """Maps (B, Q, h, w), an index (B, M) with some that are none, and points (B, M, P, 2).

    Args:
        seed: Of the numbers.
        batch: B.
        maps: Q.
        rows: M; without an index Q.
        points: P.
        size: h and w.
        dtype: Of the maps; uint8 and bool hold 0 and 1.
        indexed: Whether there is an index.
        shared: Whether all rows of an image have the same points, by a stride of 0.
        odd: Whether some points are off the map, NaN or infinite, and some cells too, where nothing reads them.
    """
    g = torch.Generator().manual_seed(seed)
    rows = rows if indexed else maps
    values = torch.randn(batch, maps, *size, generator=g)
    values = (values > 0).to(dtype) if dtype in (torch.uint8, torch.bool) else values.to(dtype)
    where = torch.rand(batch, 1 if shared else rows, points, 2, generator=g)
    kind = torch.randint(6, where.shape[:3], generator=g)
    where[kind == 0] = (where[kind == 0] * 8).round() / 8  # on centres, borders and ties of some sizes
    if odd:
        where[kind == 1] = where[kind == 1] * 6 - 3
        where[..., 0][kind == 2] = torch.nan
        where[..., 1][kind == 3] = torch.inf
    index = torch.randint(-2, maps + 2, (batch, rows), generator=g) if indexed else None
    return values, index, where.expand(batch, rows, points, 2)


def label_scene(
    seed: int, points: Tensor, groups: int = 1, size: tuple[int, int] = (8, 6), dtype: torch.dtype = torch.uint8,
    given: bool = False,
) -> Tensor:  # fmt: skip
    """Masks (B, N, H, W) of 0 and 1, where N goes `groups` times into the rows of points; or labels (B, M, P)."""
    g = torch.Generator().manual_seed(seed)
    batch, rows, number = points.shape[:3]
    shape = (batch, rows, number) if given else (batch, rows // groups, *size)
    return (torch.rand(shape, generator=g) > 0.5).to(dtype)
