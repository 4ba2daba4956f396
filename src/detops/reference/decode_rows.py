"""The definition of `decode_rows`: what each point of a YOLOX network predicts, one point at a time."""

import math

import torch
from torch import Tensor


def decode_rows(outputs: list[Tensor], points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the box, the class and the logits that each raw row predicts.

    A row is t = (x, y, w, h, objectness, classes). At a point p of stride s it predicts the box with the centre
    ((t_x - 0.5) s + p_x, (t_y - 0.5) s + p_y) and the sides (e^t_w s, e^t_h s), in float32, and the class with the
    highest logit; of equal ones the lower.

    Args:
        outputs: Each level's (B, A_l, 5 + C), of one dtype; A is the sum of the A_l.
        points: (A, 3): x, y and stride, in pixels.

    Returns:
        (B, A, 4) float32 boxes, xyxy in pixels; (B, A) int64 classes; (B, A) float32 logits of these, NaN where a class
        logit is NaN or a coordinate is not finite; (B, A) float32 objectness logits.

    Reference:
        Ge et al., "YOLOX: Exceeding YOLO Series in 2021".
    """
    rows = torch.cat([output.to(torch.float32) for output in outputs], 1)
    batch, count = rows.shape[:2]
    boxes, labels = torch.zeros(batch, count, 4), torch.zeros(batch, count, dtype=torch.int64)
    logits, objectness = torch.zeros(batch, count), torch.zeros(batch, count)
    for b in range(batch):
        for a, (x, y, stride) in enumerate(points.to(torch.float32)):
            t = rows[b, a]
            center = t[:2] * stride + (torch.stack([x, y]) - stride / 2)
            half = t[2:4].exp() * (stride / 2)
            boxes[b, a] = torch.cat([center - half, center + half])
            classes = t[5:].tolist()
            known = not any(math.isnan(value) for value in classes) and bool(boxes[b, a].isfinite().all())
            labels[b, a] = max(range(len(classes)), key=lambda c: (classes[c], -c)) if known else 0
            logits[b, a] = classes[int(labels[b, a])] if known else math.nan
            objectness[b, a] = t[4]
    return boxes, labels, logits, objectness
