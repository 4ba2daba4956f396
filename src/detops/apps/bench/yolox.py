"""`detops bench yolox`: YOLOX's loss and gradient, SimOTA included, against a loop over images and batched PyTorch."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detops import ops
from detops.apps.bench._yolox import CLASSES, COUNTS, LOOP_LIMIT, STRIDES, Scene, loop_loss, predictions, scene
from detops.apps.bench.runner import Case
from detops.criteria.yolox import YoloXDetectionLoss, YoloXFastDetectionLoss
from detops.portable.simota_match import simota_match as portable_match
from detops.portable.yolox_loss import yolox_loss as portable_loss

TESTS = ("tests/library/test_yolox_criterion.py",)


def by_ops(data: Scene, own: bool, match: Callable[..., tuple[Tensor, Tensor]], loss: Callable[..., Any]) -> Any:
    """Assignment, losses and gradient by the two ops, or by two functions that compute the same.

    Args:
        data: The scene.
        own: Whether to use the rule of the fast criterion.
        match: `simota_match` in one of its forms.
        loss: `yolox_loss` likewise.
    """
    levels = [output.detach().flatten(1, 3) for output in data.outputs]
    truth = (data.cells, data.boxes, data.labels)
    rule = (2.5, False, own, 10, 1.1 if own else 1.0, 3.0, 1.0)
    index, iou = match(*predictions(data), *truth, data.sizes, *rule)
    scale = 1 / (index >= 0).sum().clamp(min=1).expand(2)
    return loss(levels, *truth, index, iou, scale, None, 0, False, 5.0, 1.0, 1.0, True)


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Yield both rules with few and many boxes; `kernel` measures the two ops, without the module and autograd."""
    criteria = {
        "exact": YoloXDetectionLoss(STRIDES, CLASSES),
        "fast": YoloXFastDetectionLoss(STRIDES, CLASSES),
    }
    for name, least, most in COUNTS[: 1 if quick else None]:
        data = scene(least, most, device)
        leaves = [output.requires_grad_() for output in data.outputs]
        floor = partial(_copy, leaves, [torch.empty_like(leaf) for leaf in leaves])
        for rule, criterion in criteria.items():
            own = rule == "fast"
            ours = partial(by_ops, data, own, ops.simota_match, ops.yolox_loss)
            if not kernel:
                ours = partial(_gradient, partial(criterion, leaves, data.targets), leaves)
            baselines = {"batched PyTorch": partial(by_ops, data, own, portable_match, portable_loss)}
            if not own and most <= LOOP_LIMIT:
                baselines["loop"] = partial(_gradient, partial(_loop, data), leaves)
            yield Case(f"{rule} rule, {name} boxes", ours, floor, baselines, "copy of outputs")


def _gradient(loss: Callable[[], tuple[Tensor, ...]], leaves: list[Tensor]) -> object:
    return torch.autograd.grad(loss()[0], leaves)


def _loop(data: Scene) -> tuple[Tensor]:
    return (loop_loss(data.outputs, data.targets, data.cells),)


def _copy(leaves: list[Tensor], copies: list[Tensor]) -> object:
    return [copy.copy_(leaf.detach()) for leaf, copy in zip(leaves, copies, strict=True)]
