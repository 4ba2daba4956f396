"""`detops bench decode_task_aligned`: a head of one point per box decoded without suppression, against with it."""

from collections.abc import Iterator
from functools import partial

import torch

import detops
from detops.apps.bench import _task_aligned
from detops.apps.bench._task_aligned import STRIDES, Scene
from detops.apps.bench.runner import Case

TESTS = ("tests/library/test_decode_gfl.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield a single image and a batch of maps of 640 x 640 pixels, in which boxes overlap."""
    for batch in (1, 16)[: 1 if quick else None]:
        scene = Scene(batch, *_task_aligned.CONFIGS[0][1:], device)
        # As after a training, when about one score in a hundred is above the threshold.
        scores, preds = [level.detach() - 2 for level in scene.scores], [level.detach() for level in scene.preds]
        ours, suppressed = (
            partial(detops.decode_gfl, scores, preds, STRIDES, iou_threshold=threshold, point_offset=0.5)
            for threshold in (None, 0.7)
        )
        floor = partial(_copy, scores)
        yield Case(f"{batch} images", ours, floor, {"with suppression": suppressed}, "copy of class logits")


def _copy(levels: list[torch.Tensor]) -> object:
    return [level.clone() for level in levels]
