"""`centernet_losses` in whole-batch PyTorch: used on devices without a kernel."""

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.portable.gaussian_focal_loss_from_boxes import gaussian_focal_loss_from_boxes

EPS = torch.finfo(torch.float32).eps


def centernet_losses(
    logits: Tensor,
    wh: Tensor,
    offset: Tensor,
    centers: Tensor,
    radii: Tensor,
    labels: Tensor,
    negative_weight: Tensor | None,
    gt_wh: Tensor,
    gt_offset: Tensor,
    index: Tensor,
    used: Tensor,
    count: Tensor,
    least: float,
    diameter_to_sigma_factor: float,
    alpha: float,
    gamma: float,
    pos_weight: float,
    neg_weight: float,
    wh_weight: float,
    offset_weight: float,
    kept: list[float],
    with_gradient: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return losses, rests and gradients; arguments and meaning as in `detops.reference.centernet_losses`."""
    dtype = torch.promote_types(accumulate_dtype(logits), torch.promote_types(wh.dtype, offset.dtype))
    dtype = torch.promote_types(dtype, torch.float32)
    divisor = count.to(torch.float32).clamp(min=least)
    one = divisor.new_ones(())
    scales = [(divisor.to(accumulate_dtype(logits)) + EPS).reciprocal()]
    scales += [weight / (2 * divisor + EPS) for weight in (wh_weight, offset_weight)]
    factors = [torch.full_like(one, k) if k else s for k, s in zip(kept, scales, strict=True)]
    rests = [s / k if k else one for k, s in zip(kept, scales, strict=True)]
    heatmap, slope = gaussian_focal_loss_from_boxes(
        logits, centers, radii, labels, None, negative_weight, factors[0], diameter_to_sigma_factor, alpha, gamma,
        pos_weight, neg_weight, with_gradient,
    )  # fmt: skip
    size, by_size = _l1(wh, gt_wh, index, used, factors[1], with_gradient)
    shift, by_shift = _l1(offset, gt_offset, index, used, factors[2], with_gradient)
    losses = torch.stack([loss.to(dtype) for loss in (heatmap, size, shift)])
    rest = torch.stack([number.to(dtype) for number in rests])
    return losses * rest, rest, [slope, by_size, by_shift]


def _l1(
    preds: Tensor, target: Tensor, index: Tensor, used: Tensor, factor: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Return the L1 loss of a map at cells and its gradient: one gather, and one scatter."""
    maps, compute = preds.flatten(2), accumulate_dtype(preds)
    batch, depth, size = maps.shape
    # One more cell takes what is not used, so that no cell is written twice.
    cell = index.to(torch.int64).where(used & (index >= 0) & (index < size), size)
    cells = cell[:, None].expand(-1, depth, -1)  # (B, 2, N)
    padded = torch.cat([maps.to(compute), maps.new_zeros((batch, depth, 1), dtype=compute)], 2)
    difference = padded.gather(2, cells) - target.to(compute).transpose(1, 2)
    difference = difference.where(cells < size, 0)
    factor = factor.to(compute)
    loss = difference.abs().sum() * factor
    if not with_gradient:
        return loss, preds.new_empty(0)
    gradient = torch.zeros((batch, depth, size + 1), dtype=preds.dtype, device=preds.device)
    gradient = gradient.scatter(2, cells, (difference.sign() * factor).to(preds.dtype))
    return loss, gradient[..., :size].reshape(preds.shape).contiguous()
