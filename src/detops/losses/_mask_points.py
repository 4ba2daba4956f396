"""Reading maps and ground-truth masks at points: maps with gradients, masks where they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detops import ops
from detops.arguments import require_device
from detops.geometry.map_points import axis
from detops.geometry.run_lengths import decode
from detops.losses._fused import first_order_only

INSTEAD = "torch.nn.functional.grid_sample"
KINDS = (torch.bool, torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64)

Rle = Mapping[str, Any]  # {"size": [height, width], "counts": bytes or text, or a list of numbers}
Masks = Tensor | Sequence[Tensor] | Sequence[Sequence[Rle]]


def pair_losses(maps: Tensor, index: Tensor, points: Tensor, labels: Tensor, nearest: bool, border: bool) -> Tensor:
    """Return the losses (B, M, 2) of `ops.point_mask_losses`, once differentiable by the maps."""
    keeps = maps.device.type == "cpu" and maps.dtype != torch.float16 and maps.requires_grad and torch.is_grad_enabled()
    losses: Tensor = _Losses.apply(nearest, border, keeps, maps, index, points, labels)[0]
    return losses


class _Losses(torch.autograd.Function):
    """On the CPU the gradient is written in the forward pass, and scaled in the backward pass.

    On a GPU, and for float16, where it needs the scale of the loss, backward writes it from all that is read again.
    """

    @staticmethod
    def forward(
        nearest: bool, border: bool, keeps: bool, maps: Tensor, index: Tensor, points: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return ops.point_mask_losses(
            maps=maps, index=index, points=points, labels=labels, nearest=nearest, border=border, with_gradient=keeps
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.nearest, ctx.border, ctx.keeps, *tensors = inputs
        ctx.gradient = output[2] if ctx.keeps else None
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 7
        # The first pass hands out the gradient; a second pass over a retained graph makes it again.
        gradient, ctx.gradient = ctx.gradient, None
        maps, index, points, labels, sums = ctx.saved_tensors
        with torch.no_grad():
            if gradient is None and ctx.keeps:
                gradient = _Losses.forward(ctx.nearest, ctx.border, True, maps, index, points, labels)[2]
            if gradient is None:
                gradient = maps.new_empty(maps.shape)
            ops.point_mask_losses_backward_(
                gradient=gradient, maps=maps, index=index, points=points, labels=labels, sums=sums, factors=upstream,
                nearest=ctx.nearest, border=ctx.border, known=ctx.keeps,
            )  # fmt: skip
        return (None, None, None, *first_order_only((gradient,), (upstream, maps), INSTEAD), None, None, None)


def labels_for(masks: Masks, points: Tensor, nearest: bool, border: bool, groups: int = 1) -> Tensor:
    """Return what `ops.point_mask_losses` takes: the masks where they are, or else `labels_at` them."""
    if not isinstance(masks, Tensor):
        return labels_at(masks, points, nearest, border, groups)
    _require_batch(masks, points, groups)
    return masks


def labels_at(masks: Masks, points: Tensor, nearest: bool, border: bool, groups: int = 1) -> Tensor:
    """Read ground-truth masks at points, where they are: nothing of their size is made.

    Args:
        masks: (B, N, H, W); or per image (n, H, W), or a list of COCO's run lengths, of n up to N.
        points: (B, G N, P, 2) x and y, 0 .. 1 within the image; mask n is read at rows n, n + N and so on.
        nearest: Whether not to interpolate.
        border: Whether borders go on.
        groups: G.

    Returns:
        (B, G N, P) float32; 0 where an image has no such mask.

    Raises:
        TypeError: The masks have another type or dtype.
        ValueError: Shapes or devices do not match.
    """
    batch, rows = len(points), points.shape[1] // groups
    order = torch.arange(rows, device=points.device).repeat(groups).expand(batch, -1)
    if isinstance(masks, Tensor):
        _require_batch(masks, points, groups)
        read = ops.maps_at_points(maps=masks, index=order, points=points, nearest=nearest, border=border)
        return read.float()
    if not isinstance(masks, Sequence) or len(masks) != batch:
        got = f"{len(masks)}" if isinstance(masks, Sequence) else type(masks).__name__
        raise ValueError(f"masks: expected a tensor (B, N, H, W) or a list of {batch} images' masks, got {got}")
    found = []
    for b, own in enumerate(masks):
        if len(own) > rows:
            raise ValueError(f"masks: expected at most {rows} masks, as there are boxes, got {len(own)} of image {b}")
        where = points[b : b + 1]
        if isinstance(own, Tensor):
            _require_masks(f"masks[{b}]", own, 3, points)
            read = ops.maps_at_points(maps=own[None], index=order[:1], points=where, nearest=nearest, border=border)
            found.append(read.float())
        else:
            found.append(
                _of_runs(list(own), where[0].unflatten(0, (groups, rows)), nearest, border).flatten(0, 1)[None]
            )
    return torch.cat(found) if found else points.new_zeros(points.shape[:3], dtype=torch.float32)


def _require_batch(masks: Tensor, points: Tensor, groups: int) -> None:
    """Check masks (B, N, H, W) for points (B, G N, P, 2)."""
    batch, rows = len(points), points.shape[1] // groups
    _require_masks("masks", masks, 4, points)
    if masks.shape[0] != batch or masks.shape[1] != rows:
        raise ValueError(f"masks: expected shape ({batch}, {rows}, H, W), got {tuple(masks.shape)}")


def _require_masks(name: str, masks: Tensor, dimensions: int, points: Tensor) -> None:
    if masks.dtype not in KINDS:
        raise TypeError(f"{name}: expected bool, uint8 or floating point, got {masks.dtype}")
    if masks.dim() != dimensions:
        shape = "(B, N, H, W)" if dimensions == 4 else "(n, H, W)"
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(masks.shape)}")
    require_device(name, masks, points, "points")


def _of_runs(masks: Sequence[Rle], points: Tensor, nearest: bool, border: bool) -> Tensor:
    """Read one image's run lengths at points (G, N, P, 2): a search per cell. (G, N, P) float32."""
    found = torch.zeros(points.shape[:3], dtype=torch.float32, device=points.device)
    if not len(masks):
        return found
    counts, offsets, (height, width) = _joined(masks)
    # One upload of both, which the host need not wait for.
    counts, offsets = counts.to(points.device, non_blocking=True), offsets.to(points.device, non_blocking=True)
    ends = counts.cumsum(0, dtype=torch.int64)
    first = offsets[:-1, None]  # (n, 1) each mask's first run
    base = torch.cat([ends.new_zeros(1), ends])[first]
    own = points[:, : len(masks)].to(torch.float32)
    x, y = axis(own[..., 0], width, nearest, border), axis(own[..., 1], height, nearest, border)
    value = found[:, : len(masks)]
    for column, by_x in ((x.first, x.before), (x.second, x.after)):
        for line, by_y in ((y.first, y.before), (y.second, y.after)):
            run = torch.searchsorted(ends, base + column * height + line, right=True)
            value += by_x * by_y * ((run - first) % 2)
    return found


def _joined(masks: Sequence[Rle]) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Return the run lengths of one image's masks, where those of each begin, and the image's size."""
    sizes = {tuple(int(side) for side in mask["size"]) for mask in masks}
    if len(sizes) != 1:
        raise ValueError(f"masks: expected one size per image, got {sorted(sizes)}")
    height, width = sizes.pop()
    strings = [mask["counts"] for mask in masks]
    if all(isinstance(text, str | bytes) for text in strings):
        counts, offsets = decode([text.encode() if isinstance(text, str) else text for text in strings])
    else:
        offsets = torch.tensor([0, *map(len, strings)]).cumsum(0)
        counts = torch.tensor([count for text in strings for count in text], dtype=torch.int32)
    total = torch.cat([counts.new_zeros(1, dtype=torch.int64), counts.cumsum(0)])[offsets].diff()
    if not bool((total == height * width).all()):
        raise ValueError(f"masks: expected run lengths of {height * width} pixels, got {total.tolist()}")
    return counts, offsets, (height, width)
