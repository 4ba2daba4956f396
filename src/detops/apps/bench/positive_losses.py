"""`detops bench positive_losses`: the losses at the points that have a box, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from detops import ops
from detops.apps.bench import _gfl
from detops.apps.bench._gfl import Scene
from detops.apps.bench.runner import Case
from detops.losses._class_loss import CLASS_KINDS
from detops.losses._dense import BOX_KINDS
from detops.portable.positive_losses import positive_losses_ as portable

TESTS = ("tests/ops/test_positive_losses.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield few and many boxes per image: GFL's and LD's losses, and those of the task-aligned YOLOs."""
    for count in _gfl.COUNTS[: 1 if quick else None]:
        scene = Scene(count, device)
        gradients = [torch.zeros_like(level) for level in scene.scores]
        index, target, *_ = scene.match()
        for name, soft, given, class_kind, box_kind in (
            ("GFL", [], None, "quality", "giou"),
            ("LD", scene.soft, None, "quality", "giou"),
            ("task-aligned", [], target, "bce", "ciou"),
        ):
            arguments: dict[str, Any] = {
                "class_gradients": gradients, "cls_scores": scene.scores, "bbox_preds": scene.preds,
                "soft_targets": soft, "points": scene.points(), "boxes": scene.boxes, "labels": scene.labels,
                "index": index, "quality": given, "weight": given, "region": None,
                "background": torch.zeros(len(gradients), device=device), "scales": torch.ones(3, 1, device=device),
                "box_scale": None, "least": 1.0, "eps": 0.0, "divide_distillation": True, "weights": [1.0] * 5,
                "alpha": 0.25, "gamma": 2.0, "temperature": 10.0,
                "class_kind": CLASS_KINDS.index(class_kind), "box_kind": BOX_KINDS.index(box_kind), "margin": 0.1,
                "most": 45 * count,
            }  # fmt: skip
            ours, batched = partial(ops.positive_losses_, **arguments), partial(portable, **arguments)
            floor = partial(_copy, scene.scores)
            yield Case(f"{name}, {count} boxes", ours, floor, {"batched PyTorch": batched}, "copy of scores")


def _copy(levels: list[torch.Tensor]) -> object:
    return [level.clone() for level in levels]
