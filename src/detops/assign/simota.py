"""SimOTA, YOLOX's label assignment, for a whole batch."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor
from detops.assign.assignment import Assignment, labels_of
from detops.diagnostics.checked import is_checked
from detops.geometry.boxes import to_cxcywh
from detops.ragged.padded import Batch, boxes_with_labels

Candidates = Literal["all", "own"]
Region = Literal["box_or_center", "center"]


def simota_assign(
    class_logits: Tensor | Sequence[Tensor],
    objectness: Tensor,
    pred_boxes: Tensor,
    cells: Tensor,
    boxes: Batch,
    labels: Batch,
    *,
    center_radius: float = 2.5,
    candidates: Candidates = "all",
    region: Region = "box_or_center",
    topk: int = 10,
    dynamic_ks_bias: float | None = None,
    iou_weight: float = 3.0,
    class_weight: float = 1.0,
) -> Assignment:
    """Give each box the cells whose predictions suit it best, as YOLOX is trained.

    A cell is a box's own candidate if its centre lies in the box or within `center_radius` cells of the box's centre;
    where both hold it is preferred to all other cells (the original adds 1e5 to the cost of these). Each box takes its
    k cheapest cells, k being the truncated sum of its ten highest IoUs, at least 1. The cost is

        class_weight * sum over classes of BCE(sqrt(sigmoid(class) * sigmoid(objectness)), label)
        - iou_weight * log(IoU + 1e-8)

    computed from logits, no logarithm of a probability below -100. Ties go to the lower index. Memory grows with images
    times cells, not with boxes; nothing is differentiated, and the host waits for nothing.

    A box takes nothing if none of its own candidates exists (it lies off the image), it has a negative side or a number
    that is not finite, or a label that is no class; a negative label means "ignore this box".

    Args:
        class_logits: (B, A, C), or a list of each level's (B, A_l, C), of any strides.
        objectness: (B, A) logits.
        pred_boxes: (B, A, 4) xyxy in pixels.
        cells: (A, 3): x and y of each cell's centre, and its side, in pixels; `grid_cells` makes it.
        boxes: `RaggedBatch` (B, N, 4), or a list of B tensors (n, 4): xyxy in pixels. A tensor (B, N, 4) is a batch
            without padding.
        labels: Likewise (B, N) integers, 0 .. C - 1.
        center_radius: In cells; both comparisons are strict.
        candidates: What a box chooses from, for k and for its cells. "all": the candidates of all boxes of its image;
            a cell that several took goes to the cheapest of all boxes (YOLOX). "own": its own candidates; such a cell
            goes to the cheapest that took it (super-gradients' fast variant).
        region: "center": own candidates are those near the centre alone, as YOLOX's current code has it, with a
            `center_radius` of 1.5.
        topk: How many IoUs are summed.
        dynamic_ks_bias: Factor of the sum; the fast variant has 1.1.
        iou_weight: See above.
        class_weight: See above.

    Returns:
        The assignment; a cell has at most one box.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a number is out of range; in checked mode also a box that would
            be skipped for its values.

    Example:
        >>> import detops
        >>> cells = detops.grid_cells([(4, 4)], [8])
        >>> center, side = cells[:, :2], cells[:, 2:]
        >>> found = simota_assign(
        ...     torch.zeros(1, 16, 2), torch.zeros(1, 16), torch.cat([center - side, center + side], 1)[None], cells,
        ...     [torch.tensor([[4.0, 4, 20, 20]])], [torch.tensor([1])],
        ... )
        >>> found.box_index.reshape(4, 4)[1], found.num_positives
        (tensor([-1,  0, -1, -1]), tensor(2))

    Reference:
        Ge et al., "YOLOX: Exceeding YOLO Series in 2021", and Ge et al., "OTA", 2021.
    """
    levels = [class_logits] if isinstance(class_logits, Tensor) else list(class_logits)
    gt, label, sizes = boxes_with_labels(boxes, labels)
    _check(levels, objectness, pred_boxes, cells, gt, label)
    for name, value, allowed in (("candidates", candidates, ("all", "own")),
                                 ("region", region, ("box_or_center", "center"))):  # fmt: skip
        if value not in allowed:
            raise ValueError(f"{name}: expected {allowed[0]!r} or {allowed[1]!r}, got {value!r}")
    if not 1 <= topk <= 1000:
        raise ValueError(f"topk: expected 1 .. 1000, got {topk!r}")
    if dynamic_ks_bias is not None and not 0 <= dynamic_ks_bias <= 1000:
        raise ValueError(f"dynamic_ks_bias: expected 0 .. 1000, got {dynamic_ks_bias!r}")
    if not center_radius >= 0:
        raise ValueError(f"center_radius: expected at least 0, got {center_radius!r}")
    if is_checked():
        check_values("boxes", to_cxcywh(gt.detach().double()), label, sizes, levels[0].shape[2], gt)
    index, iou = ops.simota_match(
        class_logits=[level.detach() for level in levels],
        objectness=objectness.detach(),
        pred_boxes=to_cxcywh(pred_boxes.detach().to(torch.float32)),
        cells=cells,
        gt_boxes=to_cxcywh(gt.detach().to(torch.float32)),
        gt_labels=label,
        sample_sizes=sizes,
        radius=float(center_radius),
        center_only=region == "center",
        own_candidates=candidates == "own",
        topk=topk,
        k_scale=1.0 if dynamic_ks_bias is None else float(dynamic_ks_bias),
        iou_weight=float(iou_weight),
        class_weight=float(class_weight),
    )
    return Assignment(index, labels_of(index, label), iou, (index >= 0).sum())


def _check(
    levels: list[Tensor], objectness: Tensor, pred_boxes: Tensor, cells: Tensor, boxes: Tensor, labels: Tensor
) -> None:
    """Check what can be checked without reading the device's memory."""
    require_tensor("objectness", objectness, FLOATS, "a floating-point tensor")
    if objectness.dim() != 2:
        raise ValueError(f"objectness: expected shape (B, A), got {tuple(objectness.shape)}")
    if not levels:
        raise ValueError("class_logits: expected at least one level, got an empty list")
    batch, count = objectness.shape
    for level in levels:
        require_tensor("class_logits", level, FLOATS, "floating-point tensors")
        if level.dim() != 3 or level.shape[0] != batch or level.shape[2] != levels[0].shape[-1] or level.shape[2] < 1:
            raise ValueError(f"class_logits: expected shape ({batch}, A_l, C), got {tuple(level.shape)}")
        require_device("class_logits", level, objectness, "objectness")
    rows = sum(level.shape[1] for level in levels)
    if rows != count:
        raise ValueError(f"class_logits: expected {count} cells, as objectness has, got {rows}")
    for name, value, shape, dtypes in (
        ("pred_boxes", pred_boxes, (batch, count, 4), FLOATS),
        ("cells", cells, (count, 3), FLOATS + INTEGERS),
        ("boxes", boxes, (batch, *boxes.shape[1:2], 4), FLOATS + INTEGERS),
        ("labels", labels, (batch, *boxes.shape[1:2]), INTEGERS),
    ):
        kind = "integers" if dtypes is INTEGERS else "numbers" if INTEGERS[0] in dtypes else "a floating-point tensor"
        require_tensor(name, value, dtypes, kind)
        require_shape(name, value, shape, "to match boxes" if name == "labels" else "to match objectness")
        require_device(name, value, objectness, "objectness")


def check_values(
    name: str, boxes: Tensor, labels: Tensor, sizes: Tensor | None, num_classes: int, given: Tensor | None = None,
    any_area: bool = True,
) -> None:  # fmt: skip
    """Raise for the first box (B, N, 4), cxcywh, that would take nothing for its values; reads values.

    The message shows the box as it was `given`, if in another format. Without `any_area`, boxes whose area is beyond
    float32 take nothing either.
    """
    shown = boxes if given is None else given
    exists = torch.ones_like(labels, dtype=torch.bool)
    if sizes is not None:
        exists = torch.arange(labels.shape[1], device=labels.device) < sizes[:, None]
    exists = exists & (labels >= 0)
    for what, value, wrong, expected in (
        ("labels", labels, labels >= num_classes, f"a value below {num_classes}"),
        (name, shown, ~boxes.isfinite().all(-1), "finite numbers"),
        (name, shown, (boxes[..., 2:] < 0).any(-1), "a width and a height of at least 0"),
        (name, shown, ~boxes[..., 2:].float().prod(-1).isfinite() & (not any_area), "an area that float32 holds"),
    ):
        found = (wrong & exists).nonzero()
        if len(found):
            b, n = found[0].tolist()
            raise ValueError(f"{what}: sample {b}, box {n} has {value[b, n].tolist()}, expected {expected}")
