"""Gaussians of a batch: checks, and conversion to the form that the ops take."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from detops.arguments import FLOATS, INTEGERS, describe, require_device, require_shape, require_tensor
from detops.diagnostics.checked import is_checked
from detops.ragged.padded import Batch, as_padded, exists


class Gaussians(NamedTuple):
    """Gaussians of a batch in the form that the ops take; fields as in `detops.reference.draw_gaussians`."""

    centers: Tensor
    radii: Tensor
    labels: Tensor | None
    sample_sizes: Tensor | None


def as_gaussians(centers: Batch, radii: Batch, labels: Batch | None, maps: Tensor, maps_name: str) -> Gaussians:
    """Check a batch's Gaussians against the maps (B, C, H, W) that they belong to."""
    batch = maps.shape[0]
    xy, sizes = as_padded("centers", centers)
    r, radii_sizes = as_padded("radii", radii)
    check_numbers("centers", xy, 3)
    count = xy.shape[1]
    require_shape("centers", xy, (batch, count, 2), f"to match {maps_name}")
    check_numbers("radii", r, 2)
    require_shape("radii", r, (batch, count, 2)[: max(r.dim(), 2)], "to match centers")
    given = [("centers", xy), ("radii", r)]
    label, label_sizes = (None, None) if labels is None else as_padded("labels", labels)
    if label is not None:
        require_tensor("labels", label, INTEGERS, "integers")
        require_shape("labels", label, (batch, count), "to match centers")
        given.append(("labels", label))
    if sizes is not None:
        given.append(("sample_sizes", sizes))
    for name, value in given:
        require_device(name, value, maps, maps_name)
    if is_checked():
        _check_same_sizes(sizes, radii=radii_sizes, labels=label_sizes)
        check_gaussians(maps, xy, r, label, sizes, "labels")
    xy, r = (t.detach() if t.requires_grad else t for t in (xy, r))
    return Gaussians(xy, r, label, sizes)


def check_factor(factor: float) -> float:
    """Return a factor of diameter over sigma that the ops can take, or raise."""
    if not (isinstance(factor, int | float) and 0 < factor < math.inf):
        raise ValueError(f"diameter_to_sigma_factor: expected a finite number above 0, got {factor!r}")
    # Beyond 1e18 the square of the exponent overflows; the Gaussian is a single pixel long before that.
    return min(float(factor), 1e18)


def check_numbers(name: str, value: object, dims: int) -> None:
    """Check that a tensor of real numbers has `dims` dimensions; radii may have one more."""
    tensor = require_tensor(name, value, FLOATS + INTEGERS, "an integer or floating-point tensor")
    if tensor.dim() not in (dims, dims + (name == "radii")):
        raise ValueError(
            f"{name}: expected {dims} dimensions{' or one more' * (name == 'radii')}, got {describe(tensor)}"
        )


def _check_same_sizes(sizes: Tensor | None, **others: Tensor | None) -> None:
    """Raise if another argument has other sample sizes than the centres; reads values."""
    for name, other in others.items():
        if sizes is not None and other is not None and not torch.equal(sizes.cpu(), other.cpu()):
            raise ValueError(f"{name}: expected the sample sizes of centers {sizes.tolist()}, got {other.tolist()}")


def check_gaussians(
    maps: Tensor,
    centers: Tensor,
    radii: Tensor,
    labels: Tensor | None,
    sizes: Tensor | None,
    labels_name: str,
) -> None:
    """Raise for the first box that the op would skip; reads values, so only in checked mode."""
    batch, count = centers.shape[:2]
    real = torch.ones(batch, count, dtype=torch.bool, device=maps.device)
    if sizes is not None:
        wrong = ((sizes < 0) | (sizes > count)).nonzero()
        if len(wrong):
            b = int(wrong[0])
            raise ValueError(f"sample_sizes: sample {b} has {int(sizes[b])}, expected a value in 0 .. {count}")
        real = exists(sizes, count)
    problems = [
        ("centers", centers, ~centers.isfinite().all(-1), "finite numbers"),
        (
            "radii",
            radii,
            ~(radii.isfinite() & (radii >= 0)).view(batch, count, *radii.shape[2:] or (1,)).all(-1),
            "finite, not negative",
        ),
    ]
    if labels is not None:
        outside = (labels < 0) | (labels >= maps.shape[1])
        problems.append((labels_name, labels, outside, f"a value in 0 .. {maps.shape[1] - 1}"))
    for name, value, wrong, expected in problems:
        found = (wrong & real).nonzero()
        if len(found):
            b, n = found[0].tolist()
            where = f"box {n}" if labels_name == "heatmap_idxes" else f"sample {b}, box {n}"
            raise ValueError(f"{name}: {where} has {value[b, n].tolist()}, expected {expected}")
