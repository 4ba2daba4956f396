"""`detops bench nms_mask`: suppression for a batch, against batched PyTorch and against a greedy loop."""

import importlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from detops import ops
from detops.apps.bench.runner import Case
from detops.inference.nms import nms_mask
from detops.portable.nms_mask import nms_mask as portable

TESTS = ("tests/ops/test_nms_mask.py",)
CONFIGS = {"8x100": (8, 100), "8x1000": (8, 1000)}
THRESHOLD = 0.5


def loop(boxes: Tensor, scores: Tensor) -> Tensor:
    """Suppress greedily in plain PyTorch: the best of the remaining boxes against all others."""
    keep = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    for b, box in enumerate(boxes):
        area = (box[:, 2:] - box[:, :2]).prod(1)
        left = scores[b].argsort(descending=True)
        while len(left):
            i, left = left[0], left[1:]
            keep[b, i] = True
            sides = torch.minimum(box[i, 2:], box[left, 2:]) - torch.maximum(box[i, :2], box[left, :2])
            inter = sides.clamp(min=0).prod(1)
            left = left[inter / (area[i] + area[left] - inter) <= THRESHOLD]
    return keep


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Yield the configurations; with `kernel`, ours is the op alone."""
    for name, (batch, count) in list(CONFIGS.items())[: 1 if quick else None]:
        g = torch.Generator().manual_seed(0)
        low = torch.rand(batch, count, 2, generator=g) * 400
        boxes = torch.cat([low, low + 20 + 80 * torch.rand(batch, count, 2, generator=g)], -1).to(device)
        scores = torch.rand(batch, count, generator=g).to(device)
        arguments = (boxes, scores, None, None, THRESHOLD)
        ours: Callable[[], object] = partial(nms_mask, boxes, scores, THRESHOLD)
        if kernel:
            ours = partial(ops.nms_mask, *arguments)
        baselines: dict[str, Callable[[], object]] = {
            "batched PyTorch": partial(portable, *arguments),
            "loop": partial(loop, boxes, scores),
        }
        if torch.device(device).type == "cuda" and (theirs := _torchvision(boxes, scores)):
            baselines["torchvision"] = theirs
        yield Case(name, ours, partial(scores.sort, descending=True), baselines, "sort of scores")


def _torchvision(boxes: Tensor, scores: Tensor) -> Callable[[], object] | None:
    """Return torchvision's operator over all images in one call; None where it cannot be imported."""
    try:
        batched_nms = importlib.import_module("torchvision.ops").batched_nms
    except (ImportError, RuntimeError):
        return None
    image = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
    return partial(batched_nms, boxes.flatten(0, 1), scores.flatten(), image, THRESHOLD)
