"""`uncertain_places` in whole-batch PyTorch."""

import torch
from torch import Tensor

from detops.geometry.ordering import least_places
from detops.portable.maps_at_points import maps_at_points


def uncertain_places(maps: Tensor, index: Tensor, points: Tensor, count: int, border: bool) -> Tensor:
    """Choose for all rows at once; arguments and meaning as in `detops.reference.uncertain_places`."""
    with torch.autocast(maps.device.type, enabled=False):
        return least_places(maps_at_points(maps, index, points, False, border).abs(), count)
