"""`draw_gaussians_` in whole-batch PyTorch: what runs where there is no kernel."""

import warnings

import torch
from torch import Tensor

# Eight times as fast here as scatter_reduce_, which is past its beta.
warnings.filterwarnings("ignore", r"index_reduce\(\) is in beta")

EPS = torch.finfo(torch.float32).eps
CHUNK_VALUES = 1 << 22  # drawn Gaussians held at once, in map values: memory does not grow with the boxes


def profiles(center: Tensor, radius: Tensor, size: int, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One axis of every Gaussian.

    Args:
        center: (T,) position along the axis.
        radius: (T,) radius along the axis.
        size: Length S of the axis.
        factor: Diameter over sigma.
        dtype: What the result is computed in.

    Returns:
        (T, S) values, and (T, S) bool: within the Gaussian's diameter.
    """
    pixels = torch.arange(size, device=center.device, dtype=center.dtype)
    offset = pixels - center[:, None]
    inside = (offset >= (-radius - 0.5)[:, None]) & (offset <= (radius + 0.5)[:, None])
    t = (offset * (factor / (2 * radius + 1))[:, None]).to(dtype)
    return torch.exp(-0.5 * t * t), inside


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

    Boxes are drawn as whole maps, a bounded number at once, and reduced into their map by maximum.
    """
    batch, classes, height, width = heatmap.shape
    count = centers.shape[1]
    if heatmap.numel() == 0 or count == 0:
        return
    device = heatmap.device
    # Positions in float64 give every backend the same pixels; MPS has no float64.
    position = torch.float32 if device.type == "mps" else torch.float64
    compute = torch.float64 if heatmap.dtype == torch.float64 else torch.float32

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
        valid = valid & (torch.arange(count, device=device) < sample_sizes[:, None])
    xy, r = xy.where(valid[..., None], 0), r.where(valid[..., None], 0)
    target = target.where(valid, sample * classes)

    xy, r, target, valid = xy.reshape(-1, 2), r.reshape(-1, 2), target.reshape(-1), valid.reshape(-1)
    drawn = torch.full((batch * classes, height * width), -torch.inf, dtype=compute, device=device)
    step = max(1, CHUNK_VALUES // (height * width))
    for begin in range(0, batch * count, step):
        part = slice(begin, begin + step)
        gx, in_x = profiles(xy[part, 0], r[part, 0], width, diameter_to_sigma_factor, compute)
        gy, in_y = profiles(xy[part, 1], r[part, 1], height, diameter_to_sigma_factor, compute)
        value = gy[:, :, None] * gx[:, None, :]  # (t, H, W)
        value = torch.where(value >= EPS, value * k_scale, 0)
        inside = in_y[:, :, None] & in_x[:, None, :] & valid[part, None, None]
        value = value.masked_fill(~inside, -torch.inf).flatten(1)
        drawn.index_reduce_(0, target[part], value, "amax")
    drawn = drawn.view(batch, classes, height, width).to(heatmap.dtype)
    torch.maximum(heatmap, drawn, out=heatmap)
