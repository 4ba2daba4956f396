"""`detops bench decode_distances`: the boxes of all points, against PyTorch's softmax."""

from collections.abc import Iterator
from functools import partial

import torch

from detops import ops
from detops.apps.bench import _task_aligned
from detops.apps.bench._task_aligned import Scene, plain_boxes
from detops.apps.bench.runner import Case

TESTS = ("tests/ops/test_decode_distances.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield distributions of 17 bins at 8,400 points."""
    batch, classes, count = _task_aligned.CONFIGS[0]
    scene = Scene(batch, classes, count, device)
    ours = partial(ops.decode_distances, scene.preds, scene.points)
    baselines = {"batched PyTorch": partial(plain_boxes, scene.preds, scene.points)}
    yield Case(f"{batch} images", ours, partial(_copy, scene.preds), baselines, "copy of box logits")


def _copy(levels: list[torch.Tensor]) -> object:
    return [level.clone() for level in levels]
