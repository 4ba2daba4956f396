"""`uncertain_places` in Triton: a launch that reads maps at points, and PyTorch's selection."""

from torch import Tensor

from detops.geometry.ordering import least_places
from detops.kernels.maps_at_points import maps_at_points


def uncertain_places(maps: Tensor, index: Tensor, points: Tensor, count: int, border: bool) -> Tensor:
    """Launch them; arguments and meaning as in `detops.reference.uncertain_places`."""
    return least_places(maps_at_points(maps, index, points, False, border).abs_(), count)
