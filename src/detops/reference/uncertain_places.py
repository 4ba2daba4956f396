"""What `uncertain_places` means: of candidates on a map, those whose logits are nearest to 0."""

import math

import torch
from torch import Tensor

from detops.reference.maps_at_points import maps_at_points


def uncertain_places(maps: Tensor, index: Tensor, points: Tensor, count: int, border: bool) -> Tensor:
    """Choose the candidates whose logits have the least magnitude; ties by the lower place, NaN last.

    Args:
        maps: (B, Q, h, w) logits.
        index: (B, M) integers, map of each row of points; where it is none of them, all logits are 0.
        points: (B, M, K, 2) candidates, x and y, 0 .. 1 within the map; `maps_at_points` says how maps are read.
        count: Number of candidates to choose, 0 .. K.
        border: Whether borders go on.

    Returns:
        (B, M, count) int64 places among the K, ascending.

    Reference:
        Kirillov et al., "PointRend: Image Segmentation as Rendering", 2020, 3.1.
    """
    values = maps_at_points(maps, index, points, False, border).abs()
    chosen = torch.empty(*index.shape, count, dtype=torch.int64)
    for b in range(len(values)):
        for m in range(values.shape[1]):
            own = values[b, m].tolist()
            order = sorted(range(len(own)), key=lambda k: (math.isnan(own[k]), own[k], k))
            chosen[b, m] = torch.tensor(sorted(order[:count]), dtype=torch.int64)
    return chosen
