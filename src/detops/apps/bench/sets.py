"""`detops bench sets`: matching, losses and gradients of an RT-DETR, against the loop over layers and images."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from detops.apps.bench import _sets
from detops.apps.bench._set_peers import RTDetrInputs, module
from detops.apps.bench._sets import HAS_SCIPY, Scene, loop_loss
from detops.apps.bench.runner import Case
from detops.criteria.sets import SetLoss

TESTS = ("tests/library/test_set_criterion.py",)
SIZES = ((7, 8, 300, 20), (7, 2, 900, 500))  # layers and the encoder, images, queries, boxes


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield the usual size, and two crowded images."""
    for layers, batch, queries, boxes in SIZES[: 1 if quick else None]:
        scene = Scene(layers, batch, queries, boxes, device)
        criterion = SetLoss(_sets.CLASSES)
        leaves = [scene.logits.requires_grad_(), scene.pred.requires_grad_()]
        ours = partial(_gradient, partial(_summed, criterion, scene), leaves)
        baselines: dict[str, Callable[[], object]] = {"forward alone": partial(_summed, criterion, scene)}
        if HAS_SCIPY:
            baselines = {"loop with SciPy": partial(_gradient, partial(loop_loss, scene), leaves)}
        theirs = module("transformers.loss.loss_rt_detr")
        if theirs is not None:
            inputs = RTDetrInputs(scene, 0, local=False)
            loss = partial(inputs.loss, theirs.RTDetrForObjectDetectionLoss)
            baselines["Transformers"] = partial(_gradient, loss, inputs.leaves)
        name = f"{layers} x {batch} x {queries} x {_sets.CLASSES}, {boxes} boxes"
        yield Case(name, ours, partial(_copy, scene), baselines, "copy of logits")


def _summed(criterion: SetLoss, scene: Scene) -> Tensor:
    return torch.stack(list(criterion(scene.logits, scene.pred, scene.targets).values())).sum()


def _gradient(loss: Callable[[], Tensor], leaves: list[Tensor]) -> object:
    return torch.autograd.grad(loss(), leaves)


def _copy(scene: Scene) -> object:
    return scene.logits.detach().clone()
