"""`detops bench prototype_losses`: the mask loss of a YOLO-seg and its gradients, against masks on the whole grid.

"whole" reads the labels from masks of the image as well, as the public function does; "op" has them already.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from detops import ops
from detops.apps.bench._prototype_scene import GRID, IMAGE, Scene, loss_of_maps
from detops.apps.bench.runner import Case
from detops.losses._mask_points import labels_at
from detops.losses.prototype_mask import prototype_mask_loss

TESTS = ("tests/ops/test_prototype_losses.py", "tests/library/test_prototype_mask.py")
POSITIVES = (50, 200)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield the loss and the op, per number of positives per image."""
    for positives in POSITIVES[: 1 if quick else None]:
        scene = Scene(positives, device)
        zeros = partial(torch.zeros_like, scene.prototypes.detach())
        baselines: dict[str, Callable[[], object]] = {"whole maps": partial(_trained_on_maps, scene)}
        name = f"8 images, {positives} positives each"
        yield Case(f"{name}: whole", partial(_trained, scene), zeros, baselines, "zeros of the prototypes")
        labels = labels_at(scene.masks, scene.centers, False, True).unflatten(2, (GRID, GRID)) > 0.5
        cells = scene.boxes * (GRID / IMAGE)
        tensors = (scene.coefficients.detach(), scene.prototypes.detach(), labels, scene.index, cells)
        op = partial(ops.prototype_losses, *tensors, None, 0, True)
        yield Case(f"{name}: op", op, zeros, {}, "zeros of the prototypes")


def _trained(scene: Scene) -> object:
    loss = prototype_mask_loss(
        scene.coefficients, scene.prototypes, scene.masks, scene.index, scene.boxes, image_size=(IMAGE, IMAGE)
    )
    return torch.autograd.grad(loss, (scene.coefficients, scene.prototypes))


def _trained_on_maps(scene: Scene) -> object:
    return torch.autograd.grad(loss_of_maps(scene), (scene.coefficients, scene.prototypes))
