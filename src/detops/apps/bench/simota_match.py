"""`detops bench simota`: the assignment alone, against the loop over images and batched PyTorch."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from detops import ops
from detops.apps.bench.runner import Case
from detops.apps.bench.yolox_loss import COUNTS, LOOP_LIMIT, Scene, loop_match, predictions, scene
from detops.assign.simota import simota_assign
from detops.diagnostics.syncs import count_syncs
from detops.geometry.boxes import to_xyxy
from detops.portable.simota_match import simota_match as portable
from detops.ragged import RaggedBatch


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """The exact rule with few and many boxes; `kernel` measures the op without its wrapper."""
    for name, least, most in COUNTS[: 1 if quick else None]:
        data = scene(least, most, device)
        levels, objectness, pred = predictions(data)
        rule = (2.5, False, False, 10, 1.0, 3.0, 1.0)
        arguments = (levels, objectness, pred, data.cells, data.boxes, data.labels, data.sizes, *rule)
        ragged = (RaggedBatch(t, sample_sizes=data.sizes) for t in (to_xyxy(data.boxes), data.labels))
        ours: Callable[[], object] = partial(ops.simota_match, *arguments)
        if not kernel:
            ours = partial(simota_assign, levels, objectness, to_xyxy(pred), data.cells, *ragged)
        baselines: dict[str, Callable[[], object]] = {"batched PyTorch": partial(portable, *arguments)}
        if most <= LOOP_LIMIT:
            baselines["loop"] = partial(_loop, data)
        syncs = {"ours": count_syncs(ours), **{key: count_syncs(fn) for key, fn in baselines.items()}}
        yield Case(f"{name} boxes", ours, partial(_copy, data), baselines, "copy of outputs", syncs)


def _copy(data: Scene) -> object:
    return [output.clone() for output in data.outputs]


def _loop(data: Scene) -> object:
    levels, objectness, pred = predictions(data)
    scores, found = torch.cat(levels, 1), []
    for b in range(len(scores)):
        own = data.targets[data.targets[:, 0] == b]
        found.append(loop_match(scores[b], objectness[b], pred[b], data.cells, own[:, 2:], own[:, 1].long()))
    return found
