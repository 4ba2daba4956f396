"""`detops bench simota_match`: YOLOX's assignment, against a loop over images and against batched PyTorch."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from detops import ops
from detops.apps.bench import _yolox
from detops.apps.bench._yolox import LOOP_LIMIT, Scene, loop_match, match_arguments, predictions, scene
from detops.apps.bench.runner import Case
from detops.assign.simota import simota_assign
from detops.geometry.boxes import to_xyxy
from detops.portable.simota_match import simota_match as portable

TESTS = ("tests/ops/test_simota_match.py",)
INSTANCES = 4  # sets of inputs on a GPU, together larger than its cache


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Yield the exact rule with few and many boxes per image; with `kernel`, ours is the op alone."""
    for name, least, most in _yolox.COUNTS[: 1 if quick else None]:
        data = scene(least, most, device)
        levels, objectness, pred = predictions(data)
        given = {"outputs": levels, "objectness": objectness, "pred_boxes": pred}
        arguments = match_arguments(data) | given
        ours: Callable[[], object] = partial(ops.simota_match, **arguments)
        if not kernel:
            ours = partial(simota_assign, levels, objectness, to_xyxy(pred), data.cells, data.truth)
        baselines: dict[str, Callable[[], object]] = {"batched PyTorch": partial(portable, **arguments)}
        if most <= LOOP_LIMIT:
            baselines["loop"] = partial(_loop, data)
        yield Case(f"{name} boxes", ours, partial(_copy, data), baselines, "copy of outputs")


def _copy(data: Scene) -> object:
    return [output.clone() for output in data.outputs]


def _loop(data: Scene) -> object:
    (levels, objectness, pred), found = predictions(data), []
    scores = torch.cat(levels, 1)
    for b in range(len(scores)):
        own = data.targets[data.targets[:, 0] == b]
        predicted = (scores[b], objectness[b], pred[b])
        found.append(loop_match(*predicted, data.cells, own[:, 2:], own[:, 1].long()))
    return found
