"""From the outputs of a set predictor with masks, such as RF-DETR-Seg, to the instances of each image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detops.arguments import FLOATS, require_device, require_shape, require_tensor
from detops.masks.checks import height_and_width
from detops.masks.instance_masks import InstanceMasks


@torch.no_grad()
def decode_query_masks(
    class_logits: Tensor,
    mask_logits: Tensor,
    boxes_cxcywh: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    *,
    max_detections: int = 300,
    score_threshold: float = 0.0,
    mask_threshold: float = 0.0,
) -> list[InstanceMasks]:
    """Keep the best pairs of query and class of each image, and their masks, without enlarging these.

    The scores are sigmoids of the class logits; a query can be kept for several classes. Ties go to the lower query,
    then to the lower class. The network's input was the whole image, stretched. Each image's number of instances is
    read by the host.

    Args:
        class_logits: (B, Q, C) floating point.
        mask_logits: (B, Q, h, w) floating point.
        boxes_cxcywh: (B, Q, 4) center, width and height from 0 to 1, floating point.
        image_sizes: Height and width of each image; masks and boxes are in its pixels.
        max_detections: Most instances of an image.
        score_threshold: Instances with a score that is at most this are dropped.
        mask_threshold: Logit that a pixel is above.

    Returns:
        The instances of each image, the best first; boxes are clipped to the image.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a number is out of range.

    Reference:
        `PostProcess` of rf-detr 1.11.

    Example:
        >>> classes, masks, boxes = torch.zeros(1, 5, 3), torch.randn(1, 5, 8, 8), torch.rand(1, 5, 4)
        >>> (found,) = decode_query_masks(classes, masks, boxes, [(60, 80)], max_detections=4)
        >>> found
        InstanceMasks(4 maps (8, 8) in an image 60 x 80)
    """
    require_tensor("class_logits", class_logits, FLOATS, "a floating-point tensor")
    require_tensor("mask_logits", mask_logits, FLOATS, "a floating-point tensor")
    require_tensor("boxes_cxcywh", boxes_cxcywh, FLOATS, "a floating-point tensor")
    if class_logits.dim() != 3 or not class_logits.shape[2]:
        raise ValueError(f"class_logits: expected shape (B, Q, C), got {tuple(class_logits.shape)}")
    batch, queries, classes = class_logits.shape
    if mask_logits.dim() != 4 or mask_logits.shape[:2] != (batch, queries) or 0 in mask_logits.shape[2:]:
        raise ValueError(f"mask_logits: expected shape ({batch}, {queries}, h, w), got {tuple(mask_logits.shape)}")
    require_shape("boxes_cxcywh", boxes_cxcywh, (batch, queries, 4), "to match class_logits")
    require_device("mask_logits", mask_logits, class_logits, "class_logits")
    require_device("boxes_cxcywh", boxes_cxcywh, class_logits, "class_logits")
    sizes = [height_and_width(size) for size in image_sizes]
    if len(sizes) != batch:
        raise ValueError(f"image_sizes: expected {batch} pairs, one per image, got {len(sizes)}")
    if max_detections < 0:
        raise ValueError(f"max_detections: expected at least 0, got {max_detections}")
    scores, order = class_logits.float().sigmoid().flatten(1).sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :max_detections], order[:, :max_detections]
    counts = (scores > score_threshold).sum(1).tolist()
    center, extent = boxes_cxcywh.float().split(2, 2)
    boxes = torch.cat([center - extent / 2, center + extent / 2], 2)  # (B, Q, 4)
    results = []
    for b, ((height, width), count) in enumerate(zip(sizes, counts, strict=True)):
        kept, score = order[b, :count], scores[b, :count]
        query = kept // classes
        size = torch.tensor([width, height, width, height], dtype=torch.float32, device=boxes.device)
        box = torch.minimum((boxes[b, query] * size).clamp(min=0), size)
        results.append(
            InstanceMasks.from_query_masks(
                mask_logits[b, query], kept % classes, score, (height, width), box, threshold=mask_threshold
            )
        )
    return results
