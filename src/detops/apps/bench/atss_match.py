"""`detops bench atss_match`: GFL's assignment, against a loop over images and boxes and against batched PyTorch."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from detops import ops
from detops.apps.bench import _gfl
from detops.apps.bench._gfl import Scene, loop_match
from detops.apps.bench.runner import Case
from detops.assign.atss import AtssRule, atss_assign
from detops.portable.atss_match import atss_match as portable

TESTS = ("tests/ops/test_atss_match.py",)


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Yield few and many boxes per image; with `kernel`, ours is the op alone."""
    for count in _gfl.COUNTS[: 1 if quick else None]:
        scene = Scene(count, device)
        arguments: dict[str, Any] = {
            "anchors": scene.anchors, "level_sizes": scene.sizes, "gt_boxes": scene.boxes, "gt_labels": scene.labels,
            "sample_sizes": None, "valid": None, "num_classes": _gfl.CLASSES, **AtssRule()._asdict(),
        }  # fmt: skip
        ours: Callable[[], object] = partial(atss_assign, scene.anchors, scene.sizes, scene.truth, _gfl.CLASSES)
        if kernel:
            ours = partial(ops.atss_match, **arguments)
        baselines: dict[str, Callable[[], object]] = {
            "batched PyTorch": partial(portable, **arguments),
            "loop": partial(loop_match, scene.anchors, scene.sizes, scene.boxes, scene.labels),
        }
        result = torch.zeros(_gfl.BATCH, len(scene.anchors), 3, dtype=torch.int64, device=device)
        name = f"{_gfl.BATCH}x{len(scene.anchors)} anchors, {count} boxes"
        yield Case(name, ours, result.clone, baselines, "copy of result")
