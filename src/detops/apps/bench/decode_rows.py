"""`detops bench decode_rows`: what each row of a YOLOX network predicts, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from detops import ops
from detops.apps.bench import _yolox
from detops.apps.bench._yolox import scene
from detops.apps.bench.runner import Case
from detops.portable.decode_rows import decode_rows as portable

TESTS = ("tests/ops/test_decode_rows.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield a batch of outputs of 640 x 640 pixels."""
    _, least, most = _yolox.COUNTS[0]
    data = scene(least, most, device)
    levels = [output.detach().flatten(1, 3) for output in data.outputs]
    ours, batched = (partial(form, levels, data.cells) for form in (ops.decode_rows, portable))
    yield Case(f"{_yolox.BATCH} images", ours, partial(_copy, levels), {"batched PyTorch": batched}, "copy of outputs")


def _copy(levels: list[Tensor]) -> object:
    return [level.clone() for level in levels]
