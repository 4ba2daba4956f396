"""`detops bench set_loss`: DETR's losses and gradients at given pairs, against plain PyTorch."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from detops import ops
from detops.apps.bench import _sets
from detops.apps.bench._sets import Scene
from detops.apps.bench.runner import Case
from detops.portable.set_loss import set_loss as portable

TESTS = ("tests/ops/test_set_loss.py",)
SIZES = (7, 8, 300, 20)  # layers and the encoder, images, queries, boxes
KINDS = {"varifocal": 2, "IA-BCE": 4, "softmax": 0}


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield RT-DETR's size with three kinds of class loss."""
    for name, kind in list(KINDS.items())[: 1 if quick else None]:
        layers, batch, queries, boxes = SIZES
        scene = Scene(layers, batch, queries, boxes, device)
        index = torch.full((layers, batch, queries), -1, device=device)
        index[..., :boxes] = torch.arange(boxes, device=device)
        part = [0, 0, layers, 0, queries]
        arguments: dict[str, Any] = {
            "class_logits": [scene.logits], "pred_boxes": [scene.pred], "parts": part, "gt_boxes": scene.boxes,
            "gt_labels": scene.labels, "index": index.flatten(), "box_index": None, "quality": None,
            "scale": torch.full((layers, 2), 0.01, device=device), "weights": [1.0, 5.0, 2.0],
            "kind": kind, "alpha": 0.75, "gamma": 2.0, "factor": 0.1,
            "clamp": False, "with_gradient": True,
        }  # fmt: skip
        ours, plain = partial(ops.set_loss, **arguments), partial(portable, **arguments)
        name += f", {layers} x {batch} x {queries} x {_sets.CLASSES}"
        yield Case(name, ours, scene.logits.clone, {"batched PyTorch": plain}, "copy of logits")
