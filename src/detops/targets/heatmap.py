"""Gaussian heatmaps: boxes' centres and radii in, dense maps out, for a whole batch in one call.

Both functions check shapes, dtypes and devices, convert their arguments to the form that the op `draw_gaussians_`
takes, and draw in place.
"""

import math

import torch
from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor
from detops.diagnostics.checked import is_checked
from detops.geometry.gaussians import as_gaussians, check_factor, check_gaussians, check_numbers
from detops.ragged.padded import Batch


def draw_heatmap(
    heatmaps: Tensor,
    centers: Tensor,
    radii: Tensor,
    heatmap_idxes: Tensor,
    diameter_to_sigma_factor: float = 6.0,
    k_scale: float = 1.0,
) -> Tensor:
    """Draw a Gaussian for each box into the map of its index, in place.

    The value at an offset (dx, dy) from the centre is k_scale * exp(-(dx^2 + dy^2) / (2 sigma^2)), with
    sigma = (2 radius + 1) / diameter_to_sigma_factor, within the radius; values below float32's epsilon times
    the peak are zero. A map keeps the larger of its own value and the drawn one. Gaussians are cut at the edges of
    the map. A box with a map index out of range, a negative radius or a number that
    is not finite is skipped (`detops.checked()` names it instead). Not differentiable.

    Args:
        heatmaps: (M, H, W) maps, float32, float16, bfloat16 or float64, of any strides.
        centers: (T, 2) x and y in pixels of the maps; integers, or floats for sub-pixel Gaussians.
        radii: (T,) in pixels, integers or floats; or (T, 2), a radius along x and one along y.
        heatmap_idxes: (T,) integers, the map of each box, 0 .. M - 1.
        diameter_to_sigma_factor: Diameter (2 radius + 1) of a Gaussian over its sigma.
        k_scale: Value at the centre.

    Returns:
        `heatmaps`.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: Shapes or devices do not match, or a factor is out of range.

    Example:
        >>> maps = torch.zeros(2, 3, 5)
        >>> _ = draw_heatmap(maps, torch.tensor([[1, 1]]), torch.tensor([1]), torch.tensor([1]))
        >>> maps[1]
        tensor([[0.0183, 0.1353, 0.0183, 0.0000, 0.0000],
                [0.1353, 1.0000, 0.1353, 0.0000, 0.0000],
                [0.0183, 0.1353, 0.0183, 0.0000, 0.0000]])

    Reference:
        Law and Deng, "CornerNet", 2018. Arguments as in ACCV-Lab's `draw_heatmap`.
    """
    _check_maps("heatmaps", heatmaps, 3, "(M, H, W)")
    check_numbers("centers", centers, 2)
    count = centers.shape[0]
    require_shape("centers", centers, (count, 2))
    check_numbers("radii", radii, 1)
    require_shape("radii", radii, (count, 2)[: max(radii.dim(), 1)], "to match centers")
    require_tensor("heatmap_idxes", heatmap_idxes, INTEGERS, "an integer tensor of shape (T,)")
    require_shape("heatmap_idxes", heatmap_idxes, (count,), "to match centers")
    for name, value in (("centers", centers), ("radii", radii), ("heatmap_idxes", heatmap_idxes)):
        require_device(name, value, heatmaps, "heatmaps")
    maps, xy, r, label = (t.unsqueeze(0) for t in (heatmaps, centers.detach(), radii.detach(), heatmap_idxes))
    if is_checked():
        check_gaussians(maps, xy, r, label, None, "heatmap_idxes")
    _draw(maps, xy, r, label, None, diameter_to_sigma_factor, k_scale)
    return heatmaps


def draw_heatmap_batched(
    heatmap: Tensor,
    centers: Batch,
    radii: Batch,
    diameter_to_sigma_factor: float = 6.0,
    k_scale: float = 1.0,
    labels: Batch | None = None,
) -> Tensor:
    """Draw the Gaussians of a batch of images, in place: into one map per image, or one map per class.

    Gaussians are drawn, and boxes skipped, as in `draw_heatmap`. Padding is never read.

    Args:
        heatmap: (B, H, W), or (B, C, H, W) with `labels`; float32, float16, bfloat16 or float64, of any strides.
        centers: `RaggedBatch` (B, N, 2), or a list of B tensors (n, 2): x and y in pixels of the map; integers,
            or floats for sub-pixel Gaussians. A tensor (B, N, 2) is a batch without padding.
        radii: (B, N) in pixels in the same forms, or (B, N, 2) for a radius along x and one along y.
        diameter_to_sigma_factor: Diameter (2 radius + 1) of a Gaussian over its sigma.
        k_scale: Value at the centre.
        labels: (B, N) integers in the same forms, the class of each box, 0 .. C - 1; None for one map per image.

    Returns:
        `heatmap`.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a factor is out of range.

    Example:
        >>> heatmap = torch.zeros(2, 3, 4, 4)  # two images, three classes
        >>> centers = [torch.tensor([[1, 1], [3, 2]]), torch.zeros(0, 2, dtype=torch.int64)]
        >>> radii = [torch.tensor([1, 0]), torch.zeros(0, dtype=torch.int64)]
        >>> labels = [torch.tensor([2, 0]), torch.zeros(0, dtype=torch.int64)]
        >>> draw_heatmap_batched(heatmap, centers, radii, labels=labels).amax((2, 3))
        tensor([[1., 0., 1.],
                [0., 0., 0.]])

    Reference:
        Law and Deng, "CornerNet", 2018. Arguments as in ACCV-Lab's `draw_heatmap_batched`.
    """
    if labels is None:
        _check_maps("heatmap", heatmap, 3, "(B, H, W)")
        maps = heatmap.unsqueeze(1)
    else:
        _check_maps("heatmap", heatmap, 4, "(B, C, H, W), as labels are given")
        maps = heatmap
    boxes = as_gaussians(centers, radii, labels, maps, "heatmap")
    _draw(maps, *boxes, diameter_to_sigma_factor, k_scale)
    return heatmap


def _draw(
    maps: Tensor,
    centers: Tensor,
    radii: Tensor,
    labels: Tensor | None,
    sizes: Tensor | None,
    factor: float,
    k_scale: float,
) -> None:
    """Call the op after the checks that both forms share."""
    factor = check_factor(factor)
    if not (isinstance(k_scale, int | float) and 0 <= k_scale < math.inf):
        raise ValueError(f"k_scale: expected a finite number of at least 0, got {k_scale!r}")
    ops.draw_gaussians_(
        heatmap=maps,
        centers=centers,
        radii=radii,
        labels=labels,
        sample_sizes=sizes,
        diameter_to_sigma_factor=factor,
        k_scale=float(k_scale),
    )


def _check_maps(name: str, maps: object, dims: int, form: str) -> None:
    tensor = require_tensor(name, maps, FLOATS, f"a floating-point tensor {form}")
    if tensor.dim() != dims:
        raise ValueError(f"{name}: expected shape {form}, got {tuple(tensor.shape)}")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: expected a tensor that needs no gradient, as it is written in place")
    if not torch.compiler.is_compiling() and 0 in tensor.stride() and _overlaps_itself(tensor):
        raise ValueError(f"{name}: expected a tensor of its own memory, got an expanded one; clone() it first")


def _overlaps_itself(tensor: Tensor) -> bool:
    return any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))
