"""The masks of set predictors in matching and training: costs of all layers, and losses of matched queries."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, require_device, require_tensor
from detops.losses._mask_points import Masks, labels_at
from detops.losses.point_mask import Labels, Padding, point_mask_loss


class SetMasks(NamedTuple):
    """Masks that a network predicts, and the true ones.

    Attributes:
        mask_logits: (L, B, Q, h, w) of all layers, or a list of L tensors (B, Q, h, w), which spares a copy of their
            gradients; (B, Q, h, w) of one layer.
        masks: True masks of the same boxes as the targets, as `point_mask_loss` takes them.
    """

    mask_logits: Tensor | Sequence[Tensor]
    masks: Masks


class MaskRule(NamedTuple):
    """How masks take part in matching and training, with RF-DETR-Seg's values.

    Mask2Former has `labels="bilinear", padding="zeros", num_points=12544`, and `image_points=True`.

    Attributes:
        bce_cost: Weight of the cross entropy in matching.
        dice_cost: Weight of the dice cost.
        bce_weight: Factor of the cross entropy.
        dice_weight: Factor of the dice loss.
        num_points: Points of a mask; None for h w // 16 in matching, and for the larger of that and h in the loss.
        labels: How true masks are read, "nearest" or "bilinear".
        padding: What lies beyond the outermost cells, "border" or "zeros".
        image_points: Draw points for each image in matching, not once for the batch.
        generator: Draws the points.
    """

    bce_cost: float = 5.0
    dice_cost: float = 5.0
    bce_weight: float = 5.0
    dice_weight: float = 5.0
    num_points: int | None = None
    labels: Labels = "nearest"
    padding: Padding = "border"
    image_points: bool = False
    generator: torch.Generator | None = None


def layers_of(masks: SetMasks, class_logits: Tensor) -> list[Tensor]:
    """Return L tensors (B, Q, h, w), for class logits (L, B, Q, C).

    Raises:
        TypeError: One has the wrong type or dtype.
        ValueError: Shapes or devices do not match.
    """
    given = masks.mask_logits
    found: list[Tensor] = [given] if isinstance(given, Tensor) and given.dim() == 4 else [*given]
    if len(found) != len(class_logits):
        raise ValueError(f"mask_logits: expected {len(class_logits)} layers, as class_logits has, got {len(found)}")
    for layer in found:
        require_tensor("mask_logits", layer, FLOATS, "a floating-point tensor")
        if layer.dim() != 4 or layer.shape[:2] != class_logits.shape[1:3]:
            expected = ", ".join(str(side) for side in class_logits.shape[1:3])
            raise ValueError(f"mask_logits: expected shape ({expected}, h, w) per layer, got {tuple(layer.shape)}")
        require_device("mask_logits", layer, class_logits, "class_logits")
    return found


def mask_costs(layers: list[Tensor], masks: Masks, num_masks: int, rule: MaskRule) -> Tensor:
    """Return (L, B, Q, N) weighted costs; all layers are compared at the same points."""
    batch, _, height, width = layers[0].shape
    count = max(height * width // 16, 1) if rule.num_points is None else rule.num_points
    shape = (batch, 1, count, 2) if rule.image_points else (1, 1, count, 2)
    points = torch.rand(shape, generator=rule.generator, device=layers[0].device).expand(batch, -1, -1, -1)
    border = rule.padding == "border"
    labels = labels_at(masks, points.expand(-1, num_masks, -1, -1), rule.labels == "nearest", border)
    found = []
    for layer in layers:
        bce, dice = ops.point_mask_costs(logits=layer.detach(), points=points, labels=labels, border=border)
        found.append(rule.bce_cost * bce + rule.dice_cost * dice)
    return torch.stack(found)


def mask_losses(layers: list[Tensor], masks: Masks, query: Tensor, rule: MaskRule, pairs: Tensor) -> Tensor:
    """Return (L, 2) weighted losses of the queries (L, G, B, N) that boxes have, divided by the number of pairs."""
    groups = query.shape[1]
    rows = query.transpose(1, 2).flatten(2)  # (L, B, G N)
    found = []
    for layer, index in zip(layers, rows, strict=True):
        losses = point_mask_loss(
            layer, masks, index, num_points=rule.num_points, generator=rule.generator, labels=rule.labels,
            padding=rule.padding, groups=groups, avg_factor=pairs,
        )  # fmt: skip
        found.append(
            torch.stack([rule.bce_weight * losses["loss_mask_bce"], rule.dice_weight * losses["loss_mask_dice"]])
        )
    return torch.stack(found)
