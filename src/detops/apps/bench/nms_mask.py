"""`detops bench nms`: suppression of a batch, against the portable form and a greedy loop in PyTorch."""

from collections.abc import Iterator

import torch
from torch import Tensor

from detops import ops
from detops.apps.bench.runner import Case
from detops.diagnostics.syncs import count_syncs
from detops.inference.nms import nms_mask
from detops.portable.nms_mask import nms_mask as portable

CONFIGS = {"8x100": (8, 100), "8x1000": (8, 1000)}
THRESHOLD = 0.5


def loop(boxes: Tensor, scores: Tensor) -> Tensor:
    """Greedy suppression as one writes it in PyTorch: the best box left, against all others."""
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
    """Yield the configurations; the floor is sorting the scores. With `kernel`, ours is the op alone."""
    for name, (batch, count) in list(CONFIGS.items())[: 1 if quick else None]:
        g = torch.Generator().manual_seed(0)
        low = torch.rand(batch, count, 2, generator=g) * 400
        boxes = torch.cat([low, low + 20 + 80 * torch.rand(batch, count, 2, generator=g)], -1).to(device)
        scores = torch.rand(batch, count, generator=g).to(device)

        def public(boxes: Tensor = boxes, scores: Tensor = scores) -> Tensor:
            return nms_mask(boxes, scores, THRESHOLD)

        def op(boxes: Tensor = boxes, scores: Tensor = scores) -> object:
            return ops.nms_mask(boxes, scores, None, None, THRESHOLD)

        def batched(boxes: Tensor = boxes, scores: Tensor = scores) -> Tensor:
            return portable(boxes, scores, None, None, THRESHOLD)

        def one_by_one(boxes: Tensor = boxes, scores: Tensor = scores) -> Tensor:
            return loop(boxes, scores)

        def sort(scores: Tensor = scores) -> object:
            return scores.sort(descending=True)

        ours = op if kernel else public
        baselines = {"batched PyTorch": batched, "loop": one_by_one}
        syncs = {key: count_syncs(fn) for key, fn in {"ours": ours, **baselines}.items()}
        yield Case(name, ours, sort, baselines, "sort of scores", syncs)
