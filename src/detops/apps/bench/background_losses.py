"""`detops bench background_losses`: a dense head's class loss if no point has a box, against PyTorch level by level."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from detops import ops
from detops.apps.bench import _gfl
from detops.apps.bench._gfl import Scene
from detops.apps.bench.runner import Case
from detops.losses._class_loss import ClassLoss
from detops.portable.background_losses import background_losses as portable

TESTS = ("tests/ops/test_background_losses.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield the losses of GFL and of YOLOv8; the second with points that take no part too."""
    scene = Scene(_gfl.COUNTS[0], device)
    points = sum(level.shape[2] * level.shape[3] for level in scene.scores)
    valid = torch.arange(points, device=device).remainder(10).lt(9).expand(len(scene.scores[0]), -1).contiguous()
    for name, loss, there in (
        ("quality focal", ClassLoss("quality"), None),
        ("bce", ClassLoss("bce"), None),
        ("bce, padded images", ClassLoss("bce"), valid),
    )[: 1 if quick else None]:
        factor, gamma = loss.background
        arguments: dict[str, Any] = {
            "logits": scene.scores, "valid": there, "counts": torch.ones(1, 1, device=device), "least": 1.0, "eps": 0.0,
            "kept": 0.0, "factor": factor, "gamma": gamma, "with_gradient": True,
        }  # fmt: skip
        ours, batched = partial(ops.background_losses, **arguments), partial(portable, **arguments)
        yield Case(name, ours, partial(_copy, scene.scores), {"PyTorch": batched}, "copy of scores")


def _copy(levels: list[torch.Tensor]) -> object:
    return [level.clone() for level in levels]
