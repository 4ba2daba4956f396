"""`nms_mask` in whole-batch PyTorch: used on devices without a kernel.

It compares all pairs at once, then takes one short step per box: whether a box is dropped depends on all before it.
"""

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.geometry.boxes import in_order
from detops.portable._boxes import from_xyxy, iou


def nms_mask(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, valid: Tensor | None, iou_threshold: float
) -> Tensor:
    """Return which boxes are kept; arguments and meaning as in `detops.reference.nms_mask`."""
    order, box, label, alive = in_order(boxes, scores, labels, valid)
    drops = _overlaps(box, label, iou_threshold).triu(1)
    for i in range(box.shape[1]):
        alive = alive & ~(drops[:, i] & alive[:, i : i + 1])
    return torch.zeros_like(alive).scatter(1, order, alive)


def nms_mask_exported(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, valid: Tensor | None, iou_threshold: float
) -> Tensor:
    """Return the same by a loop that an exported program holds, and without a sort, which ONNX has not.

    Every round drops the boxes that overlap a better one which the round before kept. Whether a box stays is settled
    one round after all better boxes are, so the rounds end, at the latest after as many as there are boxes, with the
    result of suppression one by one.
    """
    from torch._higher_order_ops.while_loop import while_loop  # loads the compiler

    score = scores.where(~scores.isnan(), -torch.inf)
    index = torch.arange(boxes.shape[1], device=boxes.device)
    better = (score[:, :, None] > score[:, None]) | (
        (score[:, :, None] == score[:, None]) & (index[:, None] < index)
    )  # (B, N, N), whether box i comes before box j
    drops = (_overlaps(boxes.to(accumulate_dtype(boxes)), labels, iou_threshold) & better).to(torch.float32)
    alive = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid

    def changed(dropped: Tensor, changes: Tensor) -> Tensor:
        return changes > 0

    def one_round(dropped: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
        kept = (alive & ~dropped).to(torch.float32)
        now = (kept[:, None] @ drops)[:, 0] > 0
        return now, (now != dropped).sum()

    start = (torch.zeros_like(scores, dtype=torch.bool), torch.ones((), dtype=torch.int64, device=boxes.device))
    dropped: Tensor = while_loop(changed, one_round, start)[0]
    return alive & ~dropped


def _overlaps(boxes: Tensor, labels: Tensor | None, iou_threshold: float) -> Tensor:
    """Return (B, N, N), whether two boxes of one label overlap by more than the threshold."""
    drops = iou(from_xyxy(boxes[:, :, None]), from_xyxy(boxes[:, None])) > iou_threshold
    return drops if labels is None else drops & (labels[:, :, None] == labels[:, None])
