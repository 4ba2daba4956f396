"""The radius of a box's Gaussian (`gaussian_radius`), and a single Gaussian as a small tensor."""

import math
from typing import Literal, overload

import torch
from torch import Tensor

from detops.arguments import FLOATS, describe
from detops.geometry.corners import corner_radius

Formula = Literal["fixed", "legacy"]


@overload
def gaussian_radius(height: float, width: float, min_overlap: float = ..., formula: Formula = ...) -> float: ...
@overload
def gaussian_radius(
    height: Tensor, width: Tensor | float, min_overlap: float = ..., formula: Formula = ...
) -> Tensor: ...
@overload
def gaussian_radius(height: float, width: Tensor, min_overlap: float = ..., formula: Formula = ...) -> Tensor: ...


def gaussian_radius(
    height: Tensor | float, width: Tensor | float, min_overlap: float = 0.7, formula: Formula = "fixed"
) -> Tensor | float:
    """Return how far the corners of a box may move while its IoU with the box stays at least `min_overlap`.

    The smallest of three cases, with r the shift of each corner along x and y alike, and o the overlap:

        both inward:        (h - 2 r)(w - 2 r) / (h w) = o           4 r^2 - 2 (h + w) r + (1 - o) h w = 0
        both outward:       h w / ((h + 2 r)(w + 2 r)) = o           4 o r^2 + 2 o (h + w) r + (o - 1) h w = 0
        both the same way:  s / (2 h w - s) = o, s = (h - r)(w - r)  r^2 - (h + w) r + h w (1 - o) / (1 + o) = 0

    Detectors draw a Gaussian of this radius around a key point. The roots are computed without cancellation, so
    thin boxes (1 x 100000) and tiny ones keep float32's full precision.

    Args:
        height: Height of the boxes, a number or a tensor of any shape, in any unit. Tensors of integers count
            as float32; half precision is computed in float32 and returned in its own dtype.
        width: Width of the boxes in the same unit; broadcasts against `height`.
        min_overlap: The IoU to keep, above 0 and at most 1.
        formula: "fixed" solves the three equations. "legacy" repeats an algebra slip of the first CornerNet
            (radii up to 2.5 times as large) that CenterNet, CenterPoint, mmdet3d and OpenPCDet were trained with.

    Returns:
        The radius, not rounded: a number for two numbers, else a tensor. 0 where a box has zero area; NaN
        where a side is negative or not finite.

    Raises:
        TypeError: A side is neither a number nor a real tensor.
        ValueError: `min_overlap` or `formula` is out of range.

    Example:
        >>> round(gaussian_radius(10, 20, min_overlap=0.7), 4)
        1.0774
        >>> gaussian_radius(torch.tensor([8.0, 100.0]), torch.tensor([8.0, 100.0]), 0.3)
        tensor([ 1.8091, 22.6139])

    Reference:
        Law and Deng, "CornerNet: Detecting Objects as Paired Keypoints", 2018, section 3.2.
    """
    require_overlap(min_overlap, formula)
    given = [("height", height), ("width", width)]
    for name, value in given:
        if isinstance(value, Tensor) and (value.dtype == torch.bool or value.is_complex()):
            raise TypeError(f"{name}: expected numbers, got {describe(value)}")
        if not isinstance(value, Tensor | float | int):
            raise TypeError(f"{name}: expected a number or a tensor, got {type(value).__name__}")
    if not isinstance(height, Tensor) and not isinstance(width, Tensor):
        h = torch.tensor(float(height), dtype=torch.float64)
        return float(
            corner_radius(h, torch.tensor(float(width), dtype=torch.float64), min_overlap, formula == "legacy")
        )

    tensors = [value for _, value in given if isinstance(value, Tensor)]
    dtype = torch.promote_types(tensors[0].dtype, tensors[-1].dtype)
    result = dtype if dtype in FLOATS else torch.float32
    compute = torch.float64 if result == torch.float64 else torch.float32
    h, w = (
        v.to(compute) if isinstance(v, Tensor) else torch.full((), float(v), dtype=compute, device=tensors[0].device)
        for _, v in given
    )
    return corner_radius(h, w, min_overlap, formula == "legacy").to(result)


def require_overlap(min_overlap: float, formula: str) -> None:
    """Check the arguments of a radius.

    Raises:
        ValueError: One is out of range.
    """
    if not 0 < min_overlap <= 1:
        raise ValueError(f"min_overlap: expected a number above 0 and at most 1, got {min_overlap!r}")
    if formula not in ("fixed", "legacy"):
        raise ValueError(f'formula: expected "fixed" or "legacy", got {formula!r}')


def gaussian_kernel(
    radius: int, sigma: float, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """Return one Gaussian as a tensor, 1 at its centre.

    Args:
        radius: Half the size, at least 0: the result has 2 radius + 1 rows and columns.
        sigma: Standard deviation in pixels, above 0.
        dtype: Dtype of the result, floating point.
        device: Device of the result.

    Returns:
        (2 radius + 1, 2 radius + 1): exp(-(dx^2 + dy^2) / (2 sigma^2)), and 0 where that is below float32's
        epsilon.

    Raises:
        ValueError: `radius` is negative, or `sigma` is not above 0.

    Example:
        >>> gaussian_kernel(1, sigma=1.0)
        tensor([[0.3679, 0.6065, 0.3679],
                [0.6065, 1.0000, 0.6065],
                [0.3679, 0.6065, 0.3679]])

    Reference:
        Law and Deng, "CornerNet", 2018; values as in MMDetection's `gaussian2D`.
    """
    if isinstance(radius, bool) or not isinstance(radius, int) or radius < 0:
        raise ValueError(f"radius: expected an integer of at least 0, got {radius!r}")
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma: expected a finite number above 0, got {sigma!r}")
    t = torch.arange(-radius, radius + 1, dtype=torch.float64, device=device) / sigma
    kernel = torch.exp(-(t[:, None] ** 2 + t**2) / 2)
    return torch.where(kernel >= torch.finfo(torch.float32).eps, kernel, 0).to(dtype)
