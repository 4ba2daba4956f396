"""`detops bench yolox_loss`: YOLOX's losses and their gradient for a given assignment, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from detops import ops
from detops.apps.bench._yolox import COUNTS, predictions, scene
from detops.apps.bench.runner import Case
from detops.portable.yolox_loss import yolox_loss as portable

TESTS = ("tests/ops/test_yolox_loss.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield few and many boxes per image."""
    for name, least, most in COUNTS[: 1 if quick else None]:
        data = scene(least, most, device)
        levels = [output.flatten(1, 3) for output in data.outputs]
        truth = (data.cells, data.boxes, data.labels)
        rule = (2.5, False, False, 10, 1.0, 3.0, 1.0)
        index, iou = ops.simota_match(*predictions(data), *truth, data.sizes, *rule)
        scale = 1 / (index >= 0).sum().clamp(min=1).expand(2)
        arguments = (levels, *truth, index, iou, scale, None, 0, False, 5.0, 1.0, 1.0, True)
        ours, batched = partial(ops.yolox_loss, *arguments), partial(portable, *arguments)
        yield Case(f"{name} boxes", ours, partial(_copy, levels), {"batched PyTorch": batched}, "copy of outputs")


def _copy(levels: list[Tensor]) -> object:
    return [level.clone() for level in levels]
