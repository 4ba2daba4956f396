"""Random outputs and boxes of the DETR family."""

from typing import Any

import torch
from torch import Tensor

Scene = dict[str, Any]


def set_scene(
    seed: int,
    sets: int = 2,
    batch: int = 2,
    queries: int = 6,
    boxes: int = 3,
    classes: int = 4,
    dtype: torch.dtype = torch.float32,
    odd: bool = False,
    ragged: bool = False,
    label_dtype: torch.dtype = torch.int64,
) -> Scene:
    """Logits, predicted boxes and true boxes, cxcywh; with `odd` also boxes and numbers that are none."""
    g = torch.Generator().manual_seed(seed)

    def cxcywh(*shape: int) -> Tensor:
        return torch.cat([torch.rand(*shape, 2, generator=g), 0.02 + torch.rand(*shape, 2, generator=g) * 0.5], -1)

    logits = torch.randn(sets, batch, queries, classes, generator=g) * 2
    pred, truth = cxcywh(sets, batch, queries), cxcywh(batch, boxes)
    labels = torch.randint(0, classes - 1, (batch, boxes), generator=g)
    if odd:
        kind = torch.randint(6, (batch, boxes), generator=g)
        truth[..., 0][kind == 0] = torch.nan
        truth[..., 2][kind == 1] = -0.1
        truth[..., 2:][kind == 2] = 0
        labels[kind == 3] = -1
        labels[kind == 4] = classes + 3
        kind = torch.randint(8, (sets, batch, queries), generator=g)
        pred[..., 3][kind == 0] = torch.nan
        pred[..., 2:][kind == 1] = 0
        pred[kind == 2] = pred[kind == 2] * 3 - 1
        logits[kind == 3] = torch.nan
        logits[kind == 4] = logits[kind == 4] * 30
    sizes = torch.randint(0, boxes + 1, (batch,), generator=g) if ragged else None
    return dict(
        class_logits=logits.to(dtype),
        pred_boxes=pred.to(dtype),
        gt_boxes=truth,
        gt_labels=labels.to(label_dtype),
        sample_sizes=sizes,
    )
