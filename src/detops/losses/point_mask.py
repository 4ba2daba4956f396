"""The mask losses and costs of Mask2Former and RF-DETR-Seg: at points, so that no mask is made at image size."""

from typing import Literal

import torch
from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor
from detops.losses._mask_points import Masks, labels_at, labels_for, pair_losses
from detops.losses.reduction import average_over_ranks

Labels = Literal["nearest", "bilinear"]
Padding = Literal["border", "zeros"]


def point_mask_loss(
    mask_logits: Tensor,
    masks: Masks,
    query_index: Tensor,
    points: Tensor | None = None,
    *,
    num_points: int | None = None,
    generator: torch.Generator | None = None,
    labels: Labels = "nearest",
    padding: Padding = "border",
    groups: int = 1,
    avg_factor: Tensor | float | None = None,
) -> dict[str, Tensor]:
    """Compare the masks of matched queries with true masks, at points.

    With x a logit, p its sigmoid and y the label at a point, both losses are sums over pairs, divided by the number of
    pairs, at least 1 and averaged over ranks under `torch.distributed`:

        loss_mask_bce   mean over points of BCE(x, y)
        loss_mask_dice  1 - (2 sum(p y) + 1) / (sum p + sum y + 1)

    Maps are read at the points of matched queries alone, and their gradient is written once. True masks are read where
    they are: no copy of their size is made, and of a tensor (B, N, H, W) not even the labels are kept. Points and
    labels are constants. A logit that is not finite makes the losses NaN.

    Args:
        mask_logits: (B, Q, h, w) floating point, maps of the whole image.
        masks: (B, N, H, W) bool, uint8 of 0 and 1, or floating point; or per image (n, H, W) of these, of its own size,
            or a list of COCO's run lengths {"size", "counts"}; n is at most N.
        query_index: (B, N) int64 query of each mask, as `hungarian_match` returns it; negative for none. With groups
            (B, G N), the queries of all masks in the first group, then in the next.
        points: (B, G N, P, 2) x and y, 0 .. 1 within the image; None to draw `num_points` by `uncertain_points`.
        num_points: Number of points to draw per pair; None for the larger of h and h w // 16, as RF-DETR has it.
        generator: Draws the points.
        labels: How true masks are read: "nearest" (RF-DETR-Seg) or "bilinear" (Mask2Former).
        padding: What lies beyond the outermost cells: "border" repeats them (RF-DETR-Seg), "zeros" (Mask2Former).
        groups: Number of groups of queries, G, in each of which every mask is matched.
        avg_factor: Divisor of the sums; None for the number of pairs.

    Returns:
        "loss_mask_bce" and "loss_mask_dice", 0-d float32, float64 for logits of that; 0 without a pair.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a choice is unknown.

    Example:
        >>> logits, masks = torch.zeros(1, 5, 8, 8, requires_grad=True), torch.ones(1, 2, 60, 80, dtype=torch.bool)
        >>> point_mask_loss(logits, masks, torch.tensor([[3, 0]]), torch.rand(1, 2, 100, 2))["loss_mask_bce"].item()
        0.6931...

    Reference:
        Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", 2022; Kirillov et al.,
        "PointRend", 2020.
    """
    border = _border(mask_logits, padding)
    _require_index(mask_logits, query_index)
    if points is None:
        height, width = mask_logits.shape[2:]
        count = max(height, height * width // 16) if num_points is None else num_points
        points = uncertain_points(mask_logits, query_index, num_points=count, padding=padding, generator=generator)
    _require_points(points, (*query_index.shape, None, 2), mask_logits)
    if groups < 1 or query_index.shape[1] % groups:
        raise ValueError(f"groups: expected a divisor of {query_index.shape[1]}, got {groups!r}")
    label = labels_for(masks, points, _nearest(labels), border, groups)
    losses = pair_losses(mask_logits, query_index, points, label, _nearest(labels), border)
    if avg_factor is None:
        avg_factor = average_over_ranks(((query_index >= 0) & (query_index < mask_logits.shape[1])).sum())
    bce, dice = (losses.sum((0, 1)) / avg_factor).unbind()
    return {"loss_mask_bce": bce, "loss_mask_dice": dice}


@torch.no_grad()
def point_mask_cost(
    mask_logits: Tensor,
    masks: Masks,
    points: Tensor,
    *,
    num_masks: int | None = None,
    labels: Labels = "nearest",
    padding: Padding = "border",
) -> tuple[Tensor, Tensor]:
    """Compute what it would cost to match each query with each true mask, at points that all of an image share.

        bce   (sum softplus(x) - x y) / P
        dice  1 - (2 sum p y + 1) / (sum p + sum y + 1)

    Their weighted sum is an `extra_cost` of `hungarian_match`. Queries are compared with the masks of their own image
    alone. Nothing is differentiated; computed in float32.

    Args:
        mask_logits: (B, Q, h, w) floating point; or (B, Q, P), logits at the points already, of networks that make maps
            of matched queries alone.
        masks: True masks, as `point_mask_loss` takes them.
        points: (P, 2), the same in all images, or (B, P, 2).
        num_masks: N, to which lists of masks are padded; None for the most of an image.
        labels: How true masks are read, "nearest" or "bilinear".
        padding: What lies beyond the outermost cells, "border" or "zeros".

    Returns:
        (B, Q, N) float32 each, cross entropy and dice; of masks that an image does not have, as of empty ones.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a choice is unknown.

    Example:
        >>> masks, points = torch.zeros(1, 2, 60, 80, dtype=torch.bool), torch.rand(100, 2)
        >>> bce, dice = point_mask_cost(torch.zeros(1, 5, 8, 8), masks, points)
        >>> bce.shape
        torch.Size([1, 5, 2])
    """
    require_tensor("mask_logits", mask_logits, FLOATS, "a floating-point tensor")
    if mask_logits.dim() not in (3, 4):
        raise ValueError(f"mask_logits: expected shape (B, Q, h, w) or (B, Q, P), got {tuple(mask_logits.shape)}")
    batch, queries = mask_logits.shape[:2]
    if isinstance(points, Tensor) and points.dim() == 2:
        points = points.expand(batch, -1, -1)
    _require_points(points, (batch, None, 2), mask_logits)
    count = points.shape[1]
    border = _border(mask_logits, padding)
    if num_masks is None:
        num_masks = (
            masks.shape[1] if isinstance(masks, Tensor) and masks.dim() == 4 else max(map(len, masks), default=0)
        )
    if mask_logits.dim() == 3:
        require_shape("mask_logits", mask_logits, (batch, queries, count), "to match points")
    where = points[:, None] if mask_logits.dim() == 4 else None
    y = labels_at(masks, points[:, None].expand(-1, num_masks, -1, -1), _nearest(labels), border)
    return ops.point_mask_costs(logits=mask_logits, points=where, labels=y, border=border)


@torch.no_grad()
def uncertain_points(
    mask_logits: Tensor,
    query_index: Tensor,
    candidates: Tensor | None = None,
    extra: Tensor | None = None,
    *,
    num_points: int,
    padding: Padding = "border",
    importance: float = 0.75,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose the points at which a mask is least certain, and some anywhere, as PointRend trains.

    Of each pair's candidates, the int(importance * num_points) whose logits are nearest to 0 are kept, in the order of
    candidates; ties by the lower index. The rest are the points of `extra`.

    Args:
        mask_logits: (B, Q, h, w) floating point.
        query_index: (B, N) int64 query of each pair; negative for none, whose points are anywhere.
        candidates: (B, N, K, 2); None to draw 3 `num_points` of them.
        extra: (B, N, R, 2), as many as are missing; None to draw them.
        num_points: Number of points per pair, P.
        padding: What lies beyond the outermost cells, "border" or "zeros".
        importance: Share of uncertain points, 0 .. 1.
        generator: Draws candidates, then the others, uniformly.

    Returns:
        (B, N, P, 2) float32 x and y, 0 .. 1 within the map.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a number is out of range.

    Example:
        >>> logits = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)
        >>> points = uncertain_points(logits, torch.tensor([[0]]), num_points=100, importance=1.0)
        >>> points.shape, bool(((points[..., 0] - 0.5).abs() < 0.25).all())
        (torch.Size([1, 1, 100, 2]), True)

    Reference:
        Kirillov et al., "PointRend: Image Segmentation as Rendering", 2020, 3.1.
    """
    border = _border(mask_logits, padding)
    _require_index(mask_logits, query_index)
    if num_points < 0:
        raise ValueError(f"num_points: expected at least 0, got {num_points}")
    if not 0 <= importance <= 1:
        raise ValueError(f"importance: expected 0 .. 1, got {importance!r}")
    kept, device = int(importance * num_points), mask_logits.device
    rest = num_points - kept
    if candidates is None:
        candidates = torch.rand((*query_index.shape, 3 * num_points, 2), generator=generator, device=device)
    if extra is None:
        extra = torch.rand((*query_index.shape, rest, 2), generator=generator, device=device)
    _require_points(candidates, (*query_index.shape, None, 2), mask_logits, "candidates")
    _require_points(extra, (*query_index.shape, rest, 2), mask_logits, "extra")
    if candidates.shape[2] < kept:
        raise ValueError(f"candidates: expected at least {kept} per pair, got {candidates.shape[2]}")
    place = ops.uncertain_places(maps=mask_logits, index=query_index, points=candidates, count=kept, border=border)
    return torch.cat([candidates.gather(2, place[..., None].expand(-1, -1, -1, 2)), extra], 2)


def _border(mask_logits: Tensor, padding: str) -> bool:
    require_tensor("mask_logits", mask_logits, FLOATS, "a floating-point tensor")
    if padding not in ("border", "zeros"):
        raise ValueError(f'padding: expected "border" or "zeros", got {padding!r}')
    return padding == "border"


def _nearest(labels: str) -> bool:
    if labels not in ("nearest", "bilinear"):
        raise ValueError(f'labels: expected "nearest" or "bilinear", got {labels!r}')
    return labels == "nearest"


def _require_index(mask_logits: Tensor, query_index: Tensor) -> None:
    if mask_logits.dim() != 4:
        raise ValueError(f"mask_logits: expected shape (B, Q, h, w), got {tuple(mask_logits.shape)}")
    require_tensor("query_index", query_index, INTEGERS, "integers")
    if query_index.dim() != 2 or len(query_index) != len(mask_logits):
        raise ValueError(f"query_index: expected shape ({len(mask_logits)}, N), got {tuple(query_index.shape)}")
    require_device("query_index", query_index, mask_logits, "mask_logits")


def _require_points(points: Tensor, shape: tuple[int | None, ...], mask_logits: Tensor, name: str = "points") -> None:
    """Check points of a shape, of which None is any number."""
    require_tensor(name, points, FLOATS, "a floating-point tensor")
    if points.dim() != len(shape) or any(n is not None and n != m for n, m in zip(shape, points.shape, strict=True)):
        wanted = ", ".join("P" if n is None else str(n) for n in shape)
        raise ValueError(f"{name}: expected shape ({wanted}), got {tuple(points.shape)}")
    require_device(name, points, mask_logits, "mask_logits")
