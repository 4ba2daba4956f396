"""The mask loss of YOLO-seg and YOLACT: products of coefficients and prototypes, some positives at a time."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor
from detops.losses._fused import first_order_only
from detops.losses._mask_points import Masks, labels_at
from detops.losses.reduction import average_over_ranks

Kind = Literal["yolo", "yolact"]
CHUNK = 64  # positives whose maps exist at once
FAR = 100.0  # what a true cell costs where YOLACT's crop leaves a probability of 0: PyTorch's limit of its logarithm
INSTEAD = "the same of torch.nn.functional's operations"


def prototype_mask_loss(
    coefficients: Tensor,
    prototypes: Tensor,
    masks: Masks,
    box_index: Tensor,
    boxes: Tensor,
    *,
    image_size: tuple[int, int],
    kind: Kind = "yolo",
    max_positives: int | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Compare masks of coefficients over prototypes with true masks, in boxes.

    With z the product of a positive's coefficients and the prototypes, y the label of a cell, and the box in cells:

        yolo    sum over the box's cells, x1 <= c < x2, of BCE(z, y), over the box's area in cells
        yolact  the same with one more cell on each side, and 100 for each true cell beyond

    summed over positives and divided by their number, at least 1 and averaged over ranks under `torch.distributed`.
    A cell's label is whether the mask, interpolated at its centre, is above 1/2. The maps of few positives exist at a
    time, and gradients are computed with them. Computed in float32.

    Args:
        coefficients: (B, A, K) floating point, of all points, or of those that may be positive.
        prototypes: (B, K, h, w) floating point.
        masks: True masks of the whole input, as `point_mask_loss` takes them.
        box_index: (B, A) integers, the box of each point; negative for none, as `Assignment` has it.
        boxes: (B, N, 4) xyxy in pixels of the input.
        image_size: Height and width of the network's input in pixels.
        kind: "yolo" or "yolact".
        max_positives: How many positives an image has at most, the first ones; None reads their number, for which the
            host waits on a GPU.
        avg_factor: Divisor of the sum; None for the number of positives.

    Returns:
        0-d float32, once differentiable by coefficients and prototypes; 0 without a positive.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or the kind is unknown.

    Example:
        >>> coefficients, prototypes = torch.zeros(1, 3, 4), torch.randn(1, 4, 8, 8)
        >>> masks, boxes = torch.ones(1, 1, 64, 64, dtype=torch.bool), torch.tensor([[[8.0, 8, 40, 40]]])
        >>> index = torch.tensor([[-1, 0, -1]])
        >>> prototype_mask_loss(coefficients, prototypes, masks, index, boxes, image_size=(64, 64))
        tensor(0.6931)

    Reference:
        Bolya et al., "YOLACT: Real-time Instance Segmentation", 2019.
    """
    _check(coefficients, prototypes, box_index, boxes, kind)
    height, width = prototypes.shape[2:]
    scale = torch.tensor([width / image_size[1], height / image_size[0]] * 2, device=boxes.device)
    cells = boxes.detach().to(torch.float32) * scale
    y, x = (torch.arange(count, device=boxes.device) + 0.5 for count in (height, width))
    centers = torch.stack([(x / width).expand(height, -1), (y / height)[:, None].expand(-1, width)], -1).flatten(0, 1)
    points = centers.expand(*boxes.shape[:2], -1, -1)
    label = labels_at(masks, points, nearest=False, border=True) > 0.5  # (B, N, h w)
    positive = (box_index >= 0) & (box_index < boxes.shape[1])
    if max_positives is None:
        max_positives = int(positive.sum(1).amax()) if positive.numel() else 0
    elif max_positives < 0:
        raise ValueError(f"max_positives: expected at least 0, got {max_positives}")
    order = positive.logical_not().byte().argsort(dim=1, stable=True)[:, :max_positives]  # (B, P) positives first
    index = torch.where(positive, box_index, -1).gather(1, order)
    if avg_factor is None:
        avg_factor = average_over_ranks(positive.sum())
    with_gradient = torch.is_grad_enabled() and (coefficients.requires_grad or prototypes.requires_grad)
    total: Tensor = _Loss.apply(kind, with_gradient, coefficients, prototypes, label, order, index, cells)[0]
    return total / avg_factor


def _check(coefficients: Tensor, prototypes: Tensor, box_index: Tensor, boxes: Tensor, kind: str) -> None:
    if kind not in ("yolo", "yolact"):
        raise ValueError(f'kind: expected "yolo" or "yolact", got {kind!r}')
    require_tensor("coefficients", coefficients, FLOATS, "a floating-point tensor")
    require_tensor("prototypes", prototypes, FLOATS, "a floating-point tensor")
    require_tensor("box_index", box_index, INTEGERS, "integers")
    require_tensor("boxes", boxes, FLOATS, "a floating-point tensor")
    if coefficients.dim() != 3:
        raise ValueError(f"coefficients: expected shape (B, A, K), got {tuple(coefficients.shape)}")
    batch, count, depth = coefficients.shape
    if prototypes.dim() != 4 or prototypes.shape[:2] != (batch, depth):
        raise ValueError(f"prototypes: expected shape ({batch}, {depth}, h, w), got {tuple(prototypes.shape)}")
    require_shape("box_index", box_index, (batch, count), "to match coefficients")
    if boxes.dim() != 3 or boxes.shape[0] != batch or boxes.shape[2] != 4:
        raise ValueError(f"boxes: expected shape ({batch}, N, 4), got {tuple(boxes.shape)}")
    for name, value in (("prototypes", prototypes), ("box_index", box_index), ("boxes", boxes)):
        require_device(name, value, coefficients, "coefficients")


class _Loss(torch.autograd.Function):
    """Forward computes the gradients; backward scales them."""

    @staticmethod
    def forward(
        kind: Kind, with_gradient: bool, coefficients: Tensor, prototypes: Tensor, *constants: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _sum(kind, with_gradient, coefficients, prototypes, *constants)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, _, coefficients, prototypes, *_ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:], coefficients, prototypes)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 8
        *gradients, coefficients, prototypes = ctx.saved_tensors
        sources = coefficients, prototypes
        with torch.no_grad():
            made = [(one * upstream).to(source.dtype) for one, source in zip(gradients, sources, strict=True)]
        return (None, None, *first_order_only(made, (upstream, *sources), INSTEAD), *[None] * 4)


def _sum(
    kind: Kind,
    with_gradient: bool,
    coefficients: Tensor,
    prototypes: Tensor,
    label: Tensor,
    order: Tensor,
    index: Tensor,
    cells: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of the losses of all positives, and its gradients in float32.

    Args:
        kind: As of the public function.
        with_gradient: Whether the gradients are wanted.
        coefficients: (B, A, K).
        prototypes: (B, K, h, w).
        label: (B, N, h w) bool.
        order: (B, P) point of each positive.
        index: (B, P) its box; -1 for none.
        cells: (B, N, 4) xyxy in cells.
    """
    height, width = prototypes.shape[2:]
    y, x = (torch.arange(count, device=cells.device, dtype=torch.float32) for count in (height, width))
    total = torch.zeros((), device=cells.device)
    of_coefficients = torch.zeros(coefficients.shape if with_gradient else 0, device=cells.device)
    of_prototypes = torch.zeros(prototypes.shape if with_gradient else 0, device=cells.device)
    if not index.numel() or not cells.numel():
        return total, of_coefficients, of_prototypes
    with torch.autocast(cells.device.type, enabled=False):
        for b in range(len(index)):
            basis = prototypes[b].detach().float().flatten(1)  # (K, h w)
            for some, boxes in zip(order[b].split(CHUNK), index[b].split(CHUNK), strict=True):
                row, which = coefficients[b, some].detach().float(), boxes.clamp(min=0)
                box, own = cells[b, which], label[b, which]
                area = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])).abs()
                weight = area.reciprocal().where((area > 0) & (boxes >= 0), 0)[:, None]
                inside = _inside(box, y, x, kind)
                z = row @ basis  # (M, h w)
                loss = (F.softplus(z) - z * own).where(inside, own * FAR if kind == "yolact" else 0)
                total += (loss * weight).sum()
                if with_gradient:
                    slope = (z.sigmoid_() - own.float()).where(inside, 0) * weight
                    of_coefficients[b, some] = slope @ basis.T
                    of_prototypes[b] += (row.T @ slope).view_as(prototypes[b])
    return total, of_coefficients, of_prototypes


def _inside(box: Tensor, y: Tensor, x: Tensor, kind: Kind) -> Tensor:
    """Find the cells of boxes (M, 4), (M, h w) bool; YOLACT puts the sides in order, and takes a cell more."""
    low, high = box[:, :2], box[:, 2:]
    if kind == "yolact":
        size = box.new_tensor([len(x), len(y)])
        low, high = torch.minimum(low, high) - 1, torch.minimum(torch.maximum(low, high) + 1, size)
        low = low.clamp(min=0)
    across = (x >= low[:, :1]) & (x < high[:, :1])
    down = (y >= low[:, 1:]) & (y < high[:, 1:])
    return (down[:, :, None] & across[:, None]).flatten(1)
