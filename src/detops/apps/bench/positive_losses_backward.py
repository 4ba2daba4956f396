"""`detops bench positive_losses_backward`: the gradient of box logits, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from detops import ops
from detops.apps.bench import _gfl
from detops.apps.bench._gfl import STRIDES, Scene
from detops.apps.bench.runner import Case
from detops.losses._dense import BOX_KINDS
from detops.portable.positive_losses_backward import positive_losses_backward as portable

TESTS = ("tests/ops/test_positive_losses_backward.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield few and many boxes per image, without and with a teacher; the floor fills the same memory with zeros."""
    for count in _gfl.COUNTS[: 1 if quick else None]:
        scene = Scene(count, device)
        index = scene.match().index
        weight = (index >= 0).to(torch.float32)
        slopes, factors = torch.ones(4, len(STRIDES), device=device), torch.ones(4, 1, device=device)
        for name, soft, kind in (("GFL", [], "giou"), ("LD", scene.soft, "giou"), ("task-aligned", [], "ciou")):
            arguments: dict[str, Any] = {
                "bbox_preds": scene.preds, "soft_targets": soft, "points": scene.points(), "boxes": scene.boxes,
                "index": index, "weight": weight, "region": None, "slopes": slopes, "factors": factors,
                "weights": [1.0] * 4, "box_kind": BOX_KINDS.index(kind), "temperature": 10.0, "margin": 0.1,
                "most": 45 * count,
            }  # fmt: skip
            ours, batched = partial(ops.positive_losses_backward, **arguments), partial(portable, **arguments)
            floor = partial(_zeros, scene.preds)
            yield Case(f"{name}, {count} boxes", ours, floor, {"batched PyTorch": batched}, "zero fill")


def _zeros(levels: list[torch.Tensor]) -> object:
    return [torch.zeros_like(level) for level in levels]
