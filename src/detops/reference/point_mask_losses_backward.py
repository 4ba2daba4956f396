"""What `point_mask_losses_backward_` means: the slopes of both losses at points go to the cells that were read."""

from torch import Tensor

from detops.reference.point_mask_losses import gradient_of


def point_mask_losses_backward_(
    gradient: Tensor,
    maps: Tensor,
    index: Tensor,
    points: Tensor,
    labels: Tensor,
    sums: Tensor,
    factors: Tensor,
    nearest: bool,
    border: bool,
    known: bool,
) -> None:
    """Write the gradient by maps of the losses of `point_mask_losses`, times factors.

    With f and g the factors of a pair's two losses, the slope of their sum by a logit is

        f (p - y) / P + g (s / t^2 - 2 y / t) p (1 - p)

    Args:
        gradient: (B, Q, h, w) of the maps' dtype, contiguous; written. Sums are float32, for float64 maps float64.
        maps: (B, Q, h, w) logits.
        index: (B, M) integers; several pairs may have one map.
        points: (B, M, P, 2).
        labels: (B, N, H, W) or (B, M, P), as for the losses.
        sums: (B, M, 2) s and t, as the losses return them.
        factors: (B, M, 2) f and g.
        nearest: As for the losses.
        border: As for the losses.
        known: Whether `gradient` is that for factors of 1, as the losses return it, and may be scaled; if not, its
            values are not read.
    """
    gradient.copy_(gradient_of(maps, index, points, labels, sums, factors, nearest, border))
