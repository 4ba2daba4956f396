"""The class losses of dense heads by name, and their value at background, which is nearly every point."""

from typing import Literal, NamedTuple

from torch import Tensor

from detops import ops
from detops.arguments import accumulate_dtype

ClassKind = Literal["quality", "bce", "varifocal", "focal"]
CLASS_KINDS: tuple[ClassKind, ...] = ("quality", "bce", "varifocal", "focal")  # their places are the op's numbers


class ClassLoss(NamedTuple):
    """A class loss, and its parameters.

    With the target q in 0 .. 1, a logit x and p = sigmoid(x); background is q = 0:

        quality     |q - p|^gamma * BCE(p, q)
        bce         BCE(p, q)
        varifocal   q * BCE(p, q); for background alpha * p^gamma * BCE(p, 0)
        focal       (alpha * q + (1 - alpha) * (1 - q)) * |q - p|^gamma * BCE(p, q)

    Attributes:
        kind: Name of the loss.
        gamma: Exponent; GFL's beta.
        alpha: Factor of background (varifocal), or of the positives (focal).
    """

    kind: ClassKind
    gamma: float = 2.0
    alpha: float = 0.25

    @property
    def background(self) -> tuple[float, float]:
        """Return factor and exponent of the loss of background, factor * p^exponent * softplus(x)."""
        factors = {"quality": 1.0, "bce": 1.0, "varifocal": self.alpha, "focal": 1 - self.alpha}
        return factors[self.kind], 0.0 if self.kind == "bce" else self.gamma


def in_memory_order(maps: Tensor) -> Tensor:
    """Return maps (B, C, H, W) as they are if contiguous, else (B, H, W, C), as they may lie in memory."""
    return maps if maps.is_contiguous() else maps.permute(0, 2, 3, 1)


def background_loss(
    logits: Tensor, loss: ClassLoss, *, valid: Tensor | None, scale: Tensor | None, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Return a level's class loss as if no point had a box, and its gradient, in one pass over the logits.

        scale * sum over valid points and classes of factor * p^exponent * softplus(x)

    with `loss.background` for factor and exponent. `positive_losses_` corrects both at points that have a box. The loss
    of background is CenterNet's focal loss of a heatmap without a centre, so the op of that loss is called without
    boxes.

    Args:
        logits: (B, C, H, W).
        loss: Which class loss.
        valid: (B, H, W) bool; the logits of other points are not read, and their gradient is 0. None for all.
        scale: One number; None for 1.
        with_gradient: Whether to compute the gradient; if not, an empty tensor is returned for it.

    Returns:
        0-d sum, float64 for float64 logits, else float32; gradient in the shape and dtype of the logits, contiguous or
        channels last.
    """
    if valid is None and not logits.is_contiguous() and in_memory_order(logits).is_contiguous():
        # A sum over all elements, in whatever order; so none is copied.
        total, gradient = background_loss(
            in_memory_order(logits), loss, valid=None, scale=scale, with_gradient=with_gradient
        )
        return total, gradient.permute(0, 3, 1, 2) if with_gradient else gradient
    centers, radii = logits.new_empty(len(logits), 0, 2), logits.new_empty(len(logits), 0)
    factor, exponent = loss.background
    return ops.gaussian_focal_loss_from_boxes(
        logits=logits.contiguous(),
        centers=centers,
        radii=radii,
        labels=radii,
        sample_sizes=None,
        negative_weight=None if valid is None else valid.to(accumulate_dtype(logits)),
        scale=scale,
        diameter_to_sigma_factor=6.0,
        alpha=exponent,
        gamma=4.0,  # exponent of 1 - target; all targets are 0
        pos_weight=1.0,
        neg_weight=factor,
        with_gradient=with_gradient,
    )
