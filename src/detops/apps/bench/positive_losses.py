"""`detops bench positive_losses`: GFL's and LD's losses at the anchors that have a box, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from detops import ops
from detops.apps.bench._gfl import COUNTS, Scene
from detops.apps.bench.runner import Case
from detops.portable.positive_losses import positive_losses_ as portable

TESTS = ("tests/ops/test_positive_losses.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield few and many boxes per image, without and with a teacher."""
    for count in COUNTS[: 1 if quick else None]:
        scene = Scene(count, device)
        gradients = [torch.zeros_like(level) for level in scene.scores]
        for name, soft in (("GFL", []), ("LD", scene.soft)):
            arguments: dict[str, Any] = {
                "class_gradients": gradients, "cls_scores": scene.scores, "bbox_preds": scene.preds,
                "soft_targets": soft, "cells": scene.cells(), "gt_boxes": scene.boxes, "gt_labels": scene.labels,
                "index": scene.match().index, "region": None, "scale": torch.ones(1, device=device),
                "beta": 2.0, "temperature": 10.0, "most": 45 * count,
            }  # fmt: skip
            ours, batched = partial(ops.positive_losses_, **arguments), partial(portable, **arguments)
            floor = partial(_copy, scene.scores)
            yield Case(f"{name}, {count} boxes", ours, floor, {"batched PyTorch": batched}, "copy of scores")


def _copy(levels: list[torch.Tensor]) -> object:
    return [level.clone() for level in levels]
