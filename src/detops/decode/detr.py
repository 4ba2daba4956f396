"""Outputs of the DETR family to boxes: no suppression, the highest scores of a fixed number."""

from typing import Literal

import torch
from torch import Tensor

from detops.arguments import FLOATS, require_device, require_shape, require_tensor
from detops.decode.detections import Detections, require_options, select, top_classes
from detops.geometry.boxes import to_xyxy
from detops.geometry.levels import ImageSizes, image_sizes_tensor
from detops.geometry.ordering import top

Kind = Literal["sigmoid", "softmax"]


def decode_detr(
    class_logits: Tensor,
    pred_boxes: Tensor,
    image_sizes: ImageSizes,
    *,
    kind: Kind = "sigmoid",
    max_detections: int = 100,
    score_threshold: float = 0.0,
) -> Detections:
    """Decode the last layer of a DETR-like network: the highest scores, with the box of their query.

    With "sigmoid" every class of every query is a candidate, so that a query may give several detections (Deformable
    DETR, RT-DETR, D-FINE, LW-DETR, RF-DETR). With "softmax" each query gives its most probable class but "no object",
    the last column (DETR). Nothing is suppressed. Ties go to the lower query, then class. A NaN is no candidate.

    Args:
        class_logits: (B, Q, C); with "softmax" C + 1 columns.
        pred_boxes: (B, Q, 4) cxcywh in shares of the image.
        image_sizes: (B, 2) or a list, height and width of each image in pixels, which boxes are scaled and clipped to.
        kind: How logits become scores.
        max_detections: Number of detections per image; if there are fewer, the rest has score 0 and label -1.
        score_threshold: Detections below it are dropped.

    Returns:
        The detections, xyxy in pixels. A box without area, before or after clipping, is dropped.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: Shapes or devices do not match, or a number is out of range.

    Example:
        >>> logits = torch.tensor([[[2.0, -3.0], [-3.0, 1.0]]])
        >>> boxes = torch.tensor([[[0.5, 0.5, 0.5, 1.0], [0.25, 0.25, 0.5, 0.5]]])
        >>> decode_detr(logits, boxes, [(100, 200)], max_detections=2)[:2]
        (tensor([[[ 50.,   0., 150., 100.],
                 [  0.,   0., 100.,  50.]]]), tensor([[0, 1]]))

    Reference:
        Carion et al., "End-to-End Object Detection with Transformers", 2020.
    """
    require_tensor("class_logits", class_logits, FLOATS, "a floating-point tensor")
    if class_logits.dim() != 3 or class_logits.shape[2] < 1 + (kind == "softmax"):
        raise ValueError(f"class_logits: expected shape (B, Q, C), got {tuple(class_logits.shape)}")
    require_tensor("pred_boxes", pred_boxes, FLOATS, "a floating-point tensor")
    require_shape("pred_boxes", pred_boxes, (*class_logits.shape[:2], 4), "to match class_logits")
    require_device("pred_boxes", pred_boxes, class_logits, "class_logits")
    require_options(max_detections, score_threshold)
    logits = class_logits.detach().to(torch.float32)
    if kind == "sigmoid":
        found, index = top_classes([logits.transpose(1, 2)[..., None]], score_threshold, max_detections)
        query, labels = torch.div(index, logits.shape[2], rounding_mode="floor"), index % logits.shape[2]
    elif kind == "softmax":
        best = logits.softmax(-1)[..., :-1].max(-1)
        found, query = top(best.values.nan_to_num(-1), min(max_detections, logits.shape[1]), signed=False)
        labels = best.indices.gather(1, query)
    else:
        raise ValueError(f'kind: expected "sigmoid" or "softmax", got {kind!r}')
    sizes = image_sizes_tensor(image_sizes, logits.shape[0], logits.device)
    boxes = pred_boxes.detach().to(torch.float32).gather(1, query[..., None].expand(-1, -1, 4))
    width_and_height = sizes.to(torch.float32).flip(1)[:, None, None]
    pixels = (to_xyxy(boxes).unflatten(2, (2, 2)) * width_and_height).flatten(2)
    return select(pixels, labels, found, score_threshold, max_detections, None, sizes)
