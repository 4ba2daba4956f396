"""Seeded batches of boxes over heatmaps."""

from dataclasses import dataclass

import torch
from op import moved


@dataclass
class GaussianScene:
    """Arguments of draw_gaussians_, without the factors."""

    heatmap: torch.Tensor
    centers: torch.Tensor
    radii: torch.Tensor
    labels: torch.Tensor | None
    sizes: torch.Tensor | None

    def to(self, device: str) -> "GaussianScene":
        return GaussianScene(**moved(vars(self), device))

    def args(self, factor: float = 6.0, k_scale: float = 1.0) -> tuple[object, ...]:
        """Return all arguments except the heatmap."""
        return (self.centers, self.radii, self.labels, self.sizes, factor, k_scale)


def gaussian_scene(
    seed: int,
    batch: int = 2,
    classes: int = 3,
    height: int = 11,
    width: int = 17,
    boxes: int = 6,
    radius: int = 5,
    dtype: torch.dtype = torch.float32,
    index_dtype: torch.dtype = torch.int64,
    subpixel: bool = False,
    elliptical: bool = False,
    labelled: bool = True,
    ragged: bool = True,
    filled: bool = True,
) -> GaussianScene:
    """Make boxes in and around the maps, some of them to be skipped, over maps that are not empty."""
    g = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high + 1, shape, generator=g)

    far = radius + 2
    centers = torch.stack(
        [integers(-far, width + far, batch, boxes), integers(-far, height + far, batch, boxes)], -1
    ).to(index_dtype)
    radii = integers(-1, radius, *((batch, boxes, 2) if elliptical else (batch, boxes))).to(index_dtype)
    if subpixel:
        centers = centers + torch.rand(centers.shape, generator=g)
        radii = radii + torch.rand(radii.shape, generator=g)
    labels = integers(-1, classes, batch, boxes).to(index_dtype) if labelled else None
    sizes = integers(0, boxes, batch) if ragged else None
    shape = (batch, classes if labelled else 1, height, width)
    heatmap = torch.rand(shape, generator=g) - 0.5 if filled else torch.zeros(shape)
    return GaussianScene(heatmap.to(dtype), centers, radii, labels, sizes)
