"""`detops bench yolox_loss`: YOLOX's losses and their gradient for a given assignment, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from detops import ops
from detops.apps.bench import _yolox
from detops.apps.bench._yolox import loss_arguments, match_arguments, scene
from detops.apps.bench.runner import Case
from detops.portable.yolox_loss import yolox_loss as portable

TESTS = ("tests/ops/test_yolox_loss.py",)
INSTANCES = 4  # sets of inputs on a GPU, together larger than its cache


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield few and many boxes per image."""
    for name, least, most in _yolox.COUNTS[: 1 if quick else None]:
        data = scene(least, most, device)
        index, iou, _ = ops.simota_match(**match_arguments(data))
        arguments = loss_arguments(data, index, iou)
        ours, batched = partial(ops.yolox_loss, **arguments), partial(portable, **arguments)
        floor = partial(_copy, arguments["outputs"])
        yield Case(f"{name} boxes", ours, floor, {"batched PyTorch": batched}, "copy of outputs")


def _copy(levels: list[Tensor]) -> object:
    return [level.clone() for level in levels]
