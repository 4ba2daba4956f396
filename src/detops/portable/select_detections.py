"""`select_detections` in whole-batch PyTorch: what runs where there is no kernel."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.geometry.ordering import true_first
from detops.portable.nms_mask import nms_mask, nms_mask_exported


def select_detections(
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    image_sizes: Tensor | None,
    least: float,
    iou_threshold: float,
    max_detections: int,
    suppress: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor] = nms_mask,
) -> tuple[Tensor, Tensor, Tensor]:
    """The detections; `suppress` is the form of `nms_mask`, the rest as in `detops.reference.select_detections`."""
    if image_sizes is not None:
        boxes = torch.minimum(boxes.clamp(min=0), image_sizes.to(boxes.dtype).flip(1).repeat(1, 2)[:, None])
    # False for a NaN too.
    kept = (scores >= least) & (boxes[..., 2:] > boxes[..., :2]).all(-1) & (boxes - boxes == 0).all(-1)
    boxes = boxes.where(kept[..., None], 0)
    if iou_threshold < math.inf:
        kept = suppress(boxes, scores, labels, kept, iou_threshold)
    count = min(max_detections, scores.shape[1])
    order = true_first(kept)[:, :count]
    exists, missing = kept.gather(1, order), max_detections - count
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4)).where(exists[..., None], 0)
    labels, scores = labels.gather(1, order).where(exists, -1), scores.gather(1, order).where(exists, 0)
    return (
        F.pad(boxes, (0, 0, 0, missing)),
        F.pad(labels.to(torch.int64), (0, missing), value=-1),
        F.pad(scores, (0, missing)),
    )


select_detections_exported = partial(select_detections, suppress=nms_mask_exported)
