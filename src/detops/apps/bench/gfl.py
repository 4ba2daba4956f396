"""`detops bench gfl`: GFL's and LD's losses and gradients, against a head that works level by level, image by image."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from detops.apps.bench import _gfl
from detops.apps.bench._gfl import STRIDES, Scene, plain_loss
from detops.apps.bench.runner import Case
from detops.criteria.gfl import GFLLoss
from detops.criteria.ld import LDLoss

TESTS = ("tests/library/test_gfl_loss.py", "tests/library/test_teacher.py")


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield few and many boxes per image, without and with a teacher."""
    gfl, ld = GFLLoss(_gfl.CLASSES, strides=STRIDES), LDLoss(_gfl.CLASSES, strides=STRIDES, normalize_ld=True)
    for count in _gfl.COUNTS[: 1 if quick else None]:
        scene = Scene(count, device)
        maps = (scene.scores, scene.preds)
        leaves = [level.requires_grad_() for levels in maps for level in levels]
        floor = partial(_copy, scene.scores)
        for name, criterion, soft in (
            ("GFL", partial(gfl, *maps, scene.truth), None),
            ("LD", partial(ld, *maps, scene.truth, soft_targets=scene.soft), scene.soft),
        ):
            ours = partial(_gradient, partial(_summed, criterion), leaves)
            plain = partial(plain_loss, *maps, soft, scene.boxes, scene.labels, scene.anchors, scene.sizes)
            baselines = {"loop": partial(_gradient, plain, leaves)}
            yield Case(f"{name}, {count} boxes", ours, floor, baselines, "copy of scores")


def _summed(criterion: Callable[[], dict[str, Tensor]]) -> Tensor:
    return torch.stack(list(criterion().values())).sum()


def _gradient(loss: Callable[[], Tensor], leaves: list[Tensor]) -> object:
    return torch.autograd.grad(loss(), leaves)


def _copy(levels: list[Tensor]) -> object:
    return [level.detach().clone() for level in levels]
