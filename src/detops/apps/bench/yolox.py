"""`detops bench yolox`: YOLOX's loss and gradient, SimOTA included, against a loop over images and batched PyTorch."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detops import ops
from detops.apps.bench import _yolox
from detops.apps.bench._yolox import LOOP_LIMIT, STRIDES, Scene, loop_loss, loss_arguments, match_arguments, scene
from detops.apps.bench.runner import Case
from detops.criteria.yolox import YOLOXLoss
from detops.portable.simota_match import simota_match as portable_match
from detops.portable.yolox_loss import yolox_loss as portable_loss

TESTS = ("tests/library/test_yolox_criterion.py",)
INSTANCES = 4  # sets of inputs on a GPU, together larger than its cache


def by_ops(data: Scene, own: bool, match: Callable[..., tuple[Tensor, ...]], loss: Callable[..., Any]) -> Any:
    """Assignment, losses and gradient by the two ops, or by two functions that compute the same.

    Args:
        data: The scene.
        own: Use the rule of super-gradients' fast loss.
        match: `simota_match` in one of its forms.
        loss: `yolox_loss` in one of its forms.
    """
    return loss(**loss_arguments(data, *match(**match_arguments(data, own))[:2]))


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Yield both rules with few and many boxes; `kernel` measures the two ops, without the module and autograd."""
    criteria = {
        "exact": YOLOXLoss(_yolox.CLASSES, STRIDES),
        "fast": YOLOXLoss(_yolox.CLASSES, STRIDES, candidates="own", dynamic_ks_bias=1.1),
    }
    for name, least, most in _yolox.COUNTS[: 1 if quick else None]:
        data = scene(least, most, device)
        leaves = [output.requires_grad_() for output in data.outputs]
        floor = partial(_copy, leaves, [torch.empty_like(leaf) for leaf in leaves])
        for rule, criterion in criteria.items():
            own = rule == "fast"
            ours = partial(by_ops, data, own, ops.simota_match, ops.yolox_loss)
            if not kernel:
                ours = partial(_gradient, partial(_summed, partial(criterion, leaves, data.truth)), leaves)
            baselines = {"batched PyTorch": partial(by_ops, data, own, portable_match, portable_loss)}
            if not own and most <= LOOP_LIMIT:
                loop = partial(loop_loss, data.outputs, data.targets, data.cells)
                baselines["loop"] = partial(_gradient, loop, leaves)
            yield Case(f"{rule} rule, {name} boxes", ours, floor, baselines, "copy of outputs")


def _summed(criterion: Callable[[], dict[str, Tensor]]) -> Tensor:
    return torch.stack(list(criterion().values())).sum()


def _gradient(loss: Callable[[], Tensor], leaves: list[Tensor]) -> object:
    return torch.autograd.grad(loss(), leaves)


def _copy(leaves: list[Tensor], copies: list[Tensor]) -> object:
    return [copy.copy_(leaf.detach()) for leaf, copy in zip(leaves, copies, strict=True)]
