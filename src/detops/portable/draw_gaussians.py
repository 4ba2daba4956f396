"""`draw_gaussians_` in whole-batch PyTorch: used on devices without a kernel."""

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.geometry.positions import position_dtype
from detops.ragged.padded import exists

EPS = torch.finfo(torch.float32).eps
# Map values of the Gaussians that are drawn at once, so that memory does not grow with the boxes. On 2 CPU cores
# 1 << 20 was up to three times as fast as 1 << 24, for which memory is mapped anew each time.
CHUNK_VALUES = 1 << 20


def profiles(center: Tensor, radius: Tensor, size: int, factor: float, dtype: torch.dtype) -> Tensor:
    """Compute every Gaussian along one axis.

    Args:
        center: (T,) position along the axis.
        radius: (T,) radius along the axis.
        size: Length S of the axis.
        factor: Diameter over sigma.
        dtype: Dtype of the result.

    Returns:
        (T, S) values, NaN beyond the Gaussian's diameter.
    """
    pixels = torch.arange(size, device=center.device, dtype=center.dtype)
    offset = pixels - center[:, None]
    inside = (offset >= (-radius - 0.5)[:, None]) & (offset <= (radius + 0.5)[:, None])
    t = (offset * (factor / (2 * radius + 1))[:, None]).to(dtype)
    return torch.exp(-0.5 * t * t).where(inside, torch.nan)


def draw_gaussians_(
    heatmap: Tensor,
    centers: Tensor,
    radii: Tensor,
    labels: Tensor | None,
    sample_sizes: Tensor | None,
    diameter_to_sigma_factor: float,
    k_scale: float,
) -> None:
    """Draw every box of a batch; arguments and meaning as in `detops.reference.draw_gaussians`.

    A bounded number of boxes at once is drawn as whole maps, and each is reduced into its map by maximum.
    """
    batch, classes, height, width = heatmap.shape
    count = centers.shape[1]
    if heatmap.numel() == 0 or count == 0:
        return
    device = heatmap.device
    position = position_dtype(device)
    compute = accumulate_dtype(heatmap)

    xy = centers.to(position)  # (B, N, 2)
    r = (radii if radii.dim() == 3 else radii[..., None]).to(position).expand(batch, count, 2)
    valid = (xy.isfinite() & r.isfinite() & (r >= 0)).all(-1)  # (B, N)
    sample = torch.arange(batch, device=device)[:, None].expand(batch, count)
    target = sample * classes  # (B, N), index into the B * C maps
    if labels is not None:
        label = labels.to(torch.int64)
        valid = valid & (label >= 0) & (label < classes)
        target = target + label
    if sample_sizes is not None:
        valid = valid & exists(sample_sizes, count)
    xy, r = xy.where(valid[..., None], 0), r.where(valid[..., None], 0)
    target = target.where(valid, sample * classes)

    xy, r, target, valid = xy.reshape(-1, 2), r.reshape(-1, 2), target.reshape(-1), valid.reshape(-1)
    # (B * C, H * W): the maps themselves if they can be viewed so, else a copy that is copied back at the end.
    maps = heatmap.to(compute).reshape(batch * classes, height * width)
    step = max(1, CHUNK_VALUES // (height * width))
    for begin in range(0, batch * count, step):
        part = slice(begin, begin + step)
        gx = profiles(xy[part, 0], r[part, 0], width, diameter_to_sigma_factor, compute)
        gy = profiles(xy[part, 1], r[part, 1], height, diameter_to_sigma_factor, compute)
        gy = gy.where(valid[part, None], torch.nan) * k_scale
        value = (gy[:, :, None] * gx[:, None, :]).flatten(1)  # (t, H * W), NaN where nothing is drawn
        value = value.masked_fill_(value < EPS * k_scale, 0).nan_to_num_(nan=-torch.inf)
        maps.scatter_reduce_(0, target[part, None].expand_as(value), value, "amax")
    if not (heatmap.dtype == compute and heatmap.is_contiguous()):
        heatmap.copy_(maps.view(heatmap.shape))
