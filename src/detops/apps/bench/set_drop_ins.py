"""`detops bench set_drop_ins`: the losses that take the place of Transformers' and rfdetr's, against these."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from detops.apps.bench._set_peers import RTDetrInputs, module, rfdetr_loss
from detops.apps.bench._sets import Scene
from detops.apps.bench.runner import Case
from detops.integrations import rfdetr, transformers

TESTS = ("tests/library/test_transformers_losses.py", "tests/library/test_rfdetr_criterion.py")
# Sets (layers, then the encoder), images, queries, boxes, of the queries those for denoising.
RT_DETR = {"RT-DETR": (7, 8, 300, 20, 0), "RT-DETR with denoising": (7, 8, 480, 20, 180),
           "RT-DETR, crowded": (7, 2, 900, 500, 0)}  # fmt: skip
D_FINE = {"D-FINE with denoising": (7, 8, 480, 20, 180)}
RF_DETR = {"RF-DETR": (5, 8, 3900, 22, 13)}  # the last are groups
RF_DETR_CLASSES = 91


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield RT-DETR's, D-FINE's and RF-DETR's losses and gradients."""
    rows = [(name, size, False) for name, size in RT_DETR.items()]
    rows += [(name, size, True) for name, size in D_FINE.items()]
    for name, (sets, batch, queries, boxes, denoising), local in rows[: 1 if quick else None]:
        scene = Scene(sets, batch, queries, boxes, device)
        inputs = RTDetrInputs(scene, denoising, local)
        function = "DFineForObjectDetectionLoss" if local else "RTDetrForObjectDetectionLoss"
        theirs = module("transformers.loss.loss_d_fine" if local else "transformers.loss.loss_rt_detr")
        loss: Callable[[], Tensor] = partial(inputs.loss, getattr(transformers, function))
        peer: Callable[[], Tensor] | None = None if theirs is None else partial(inputs.loss, getattr(theirs, function))
        yield _case(name, scene, loss, "Transformers", peer, inputs.leaves)
    criterion, matcher = (module(f"rfdetr.models.{name}") for name in ("criterion", "matcher"))
    if criterion is None or matcher is None:
        return
    for name, (sets, batch, queries, boxes, groups) in RF_DETR.items() if not quick else ():
        scene = Scene(sets, batch, queries, boxes, device, RF_DETR_CLASSES)
        leaves = [scene.logits.requires_grad_(), scene.pred.requires_grad_()]
        loss = rfdetr_loss(rfdetr.SetCriterion, rfdetr.HungarianMatcher, scene, groups)
        peer = rfdetr_loss(criterion.SetCriterion, matcher.HungarianMatcher, scene, groups)
        yield _case(f"{name}, {groups} groups", scene, loss, "rfdetr", peer, leaves)


def _case(
    name: str, scene: Scene, loss: Callable[[], Tensor], peer_name: str, peer: Callable[[], Tensor] | None,
    leaves: list[Tensor],
) -> Case:  # fmt: skip
    baselines: dict[str, Callable[[], object]] = {"forward alone": loss}
    if peer is not None:
        baselines = {peer_name: partial(_gradient, peer, leaves)}
    title = f"{name}: {' x '.join(str(side) for side in scene.logits.shape)}, {scene.boxes.shape[1]} boxes"
    return Case(title, partial(_gradient, loss, leaves), scene.logits.detach().clone, baselines, "copy of logits")


def _gradient(loss: Callable[[], Tensor], leaves: list[Tensor]) -> object:
    return torch.autograd.grad(loss(), leaves)
