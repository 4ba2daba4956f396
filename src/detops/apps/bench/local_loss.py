"""`detops bench local_loss`: D-FINE's losses of box distributions and their gradient, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from detops import ops
from detops.apps.bench._sets import Scene
from detops.apps.bench.runner import Case
from detops.losses._local import bin_values
from detops.portable.local_loss import local_loss as portable

TESTS = ("tests/ops/test_local_loss.py",)
SIZES = (6, 8, 300, 20)  # layers, images, queries, boxes
BINS = 33


def arguments(device: str) -> dict[str, Any]:
    """The arguments of the op but for `with_gradient`."""
    layers, batch, queries, boxes = SIZES
    scene = Scene(layers, batch, queries, boxes, device)
    g = torch.Generator().manual_seed(1)
    index = torch.full((layers, batch, queries), -1, device=device)
    index[..., :boxes] = torch.arange(boxes, device=device)
    return {
        "corners": torch.randn(layers, batch, queries, 4 * BINS, generator=g).to(device), "references": scene.pred,
        "teacher_logits": scene.logits[-1], "pred_boxes": [scene.pred], "parts": [0, 0, layers, 0, queries],
        "distils": [1], "gt_boxes": scene.boxes, "index": index.flatten(),
        "values": bin_values(BINS - 1, 0.5, 4.0, torch.device(device)),
        "scale": torch.full((layers,), 0.01, device=device), "reach": 4.0, "weights": [0.15, 1.5],
    }  # fmt: skip


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield all layers of a D-FINE."""
    given = arguments(device)
    ours, plain = (partial(form, **given, with_gradient=True) for form in (ops.local_loss, portable))
    name = " x ".join(str(side) for side in given["corners"].shape)
    yield Case(name, ours, given["corners"].clone, {"batched PyTorch": plain}, "copy of logits")
