"""`detops bench tal_match`: task-aligned assignment, against tensors of boxes x points for the batch or per image."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from detops.apps.bench import _task_aligned
from detops.apps.bench._task_aligned import RULE, Scene, loop_assign, plain_assign
from detops.apps.bench.runner import Case
from detops.assign.tal import match_aligned

TESTS = ("tests/ops/test_tal_match.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield PP-YOLOE's rule with few and many boxes per image."""
    for batch, classes, count in _task_aligned.CONFIGS[: 1 if quick else 3]:
        scene = Scene(batch, classes, count, device)
        logits, boxes = scene.logits(), scene.boxes()
        ours = partial(match_aligned, logits, boxes, scene.points, scene.truth, RULE)
        arguments = (torch.cat(logits, 1), boxes, scene.points, scene.truth.boxes, scene.truth.labels)
        baselines: dict[str, Callable[[], object]] = {
            "batched PyTorch": partial(plain_assign, *arguments), "loop": partial(loop_assign, *arguments)
        }  # fmt: skip
        yield Case(f"{batch} images, {count} boxes", ours, partial(torch.clone, boxes), baselines, "copy of boxes")
