"""`detops bench task_aligned`: assignment, losses and gradients, against tensors of boxes x points."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from detops.apps.bench import _task_aligned
from detops.apps.bench._task_aligned import Scene, loop_assign, plain_assign, plain_loss
from detops.apps.bench.runner import Case

TESTS = ("tests/library/test_task_aligned_loss.py",)
LOOP_LIMIT = 100  # boxes per image


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield few and many boxes per image, a head that predicts each box once beside the first, and aerial images."""
    for batch, classes, count in _task_aligned.CONFIGS[: 1 if quick else None]:
        scene = Scene(batch, classes, count, device)
        baselines = {"batched PyTorch": partial(_gradient, partial(plain_loss, scene, plain_assign), _leaves(scene))}
        if count <= LOOP_LIMIT:
            baselines["loop"] = partial(_gradient, partial(plain_loss, scene, loop_assign), _leaves(scene))
        name = f"{batch} images, {classes} classes, {count} boxes"
        yield _case(name, scene, baselines)
        if count == _task_aligned.CONFIGS[0][2] and not quick:
            yield _case(f"{name}, both heads", scene, {}, both=True)
    if not quick:
        # 75,000 boxes, most in a few of 128 images, as in aerial photographs.
        counts = [5000] * 8 + [1000] * 20 + [150] * 100
        yield _case("128 aerial images, 75,000 boxes", Scene(128, 15, counts, device), {})


def _case(name: str, scene: Scene, baselines: Mapping[str, Callable[[], object]], both: bool = False) -> Case:
    maps, leaves = (scene.scores, scene.preds), _leaves(scene)
    criterion = partial(scene.criterion(), *maps, scene.truth)
    if both:
        other = Scene(*_task_aligned.CONFIGS[0], str(scene.points.device))
        criterion, leaves = partial(criterion, one_to_one=(other.scores, other.preds)), leaves + _leaves(other)
    return Case(
        name, partial(_gradient, partial(_summed, criterion), leaves), partial(_copy, scene.scores), baselines,
        "copy of class logits",
    )  # fmt: skip


def _leaves(scene: Scene) -> list[Tensor]:
    return [level.requires_grad_() for level in (*scene.scores, *scene.preds)]


def _summed(criterion: Callable[[], dict[str, Tensor]]) -> Tensor:
    return torch.stack(list(criterion().values())).sum()


def _gradient(loss: Callable[[], Tensor], leaves: list[Tensor]) -> object:
    return torch.autograd.grad(loss(), leaves)


def _copy(levels: list[Tensor]) -> object:
    return [level.detach().clone() for level in levels]
