"""`detops bench set_loss_backward`: the gradients that DETR's losses hand on, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial

import torch

from detops import ops
from detops.apps.bench._sets import Scene
from detops.apps.bench.runner import Case
from detops.portable.set_loss_backward import set_loss_backward_ as portable

TESTS = ("tests/ops/test_set_loss_backward.py",)
SIZES = (7, 8, 300, 20)  # layers and the encoder, images, queries, boxes


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield losses that are summed as they are, and with factors."""
    layers, batch, queries, boxes = SIZES
    scene = Scene(layers, batch, queries, boxes, device)
    of_boxes = torch.zeros(2, layers * batch * queries, 4, device=device)
    for factor in (1.0, 0.5):
        upstream = torch.full((layers, 3), factor, device=device)
        ours, plain = (
            partial(
                form, gradients=[scene.logits], box_gradients=of_boxes, pred_boxes=[scene.pred],
                parts=[0, 0, layers, 0, queries], upstream=upstream,
            )
            for form in (ops.set_loss_backward_, portable)
        )  # fmt: skip
        yield Case(f"factor {factor}", ours, of_boxes.clone, {"batched PyTorch": plain}, "copy of box gradients")
