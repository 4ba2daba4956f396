"""`detops bench atss`: the assignment of GFL, against the loop over images and boxes and batched PyTorch."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from detops import ops
from detops.apps.bench.runner import Case
from detops.assign.atss import atss_assign
from detops.diagnostics.syncs import count_syncs
from detops.geometry.points import grid_anchors
from detops.portable.atss_match import atss_match as portable

BATCH, CLASSES, IMAGE, STRIDES = 4, 80, (800, 1344), (8, 16, 32, 64, 128)
COUNTS = (20, 100)


def loop(anchors: Tensor, sizes: list[int], boxes: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Image by image, with all pairs of a box and an anchor, and box by box where a threshold needs it."""
    center, found = (anchors[:, :2] + anchors[:, 2:]) / 2, []
    for image, label in zip(boxes, labels, strict=True):
        sides = torch.minimum(anchors[:, None, 2:], image[:, 2:]) - torch.maximum(anchors[:, None, :2], image[:, :2])
        inter = sides.clamp(min=0).prod(2)
        areas = (anchors[:, 2:] - anchors[:, :2]).prod(1)[:, None] + (image[:, 2:] - image[:, :2]).prod(1)
        iou = inter / (areas - inter)  # (A, n)
        distance = (center[:, None] - (image[:, :2] + image[:, 2:]) / 2).square().sum(2).sqrt()
        chosen, start = [], 0
        for size in sizes:
            level = distance[start : start + size]
            chosen.append(level.topk(min(9, size), dim=0, largest=False).indices + start)
            start += size
        candidates = torch.cat(chosen)  # (K, n)
        overlap = iou.gather(0, candidates)
        taken = overlap >= overlap.mean(0) + overlap.std(0)
        best = torch.full_like(iou, -torch.inf)
        for n in range(len(image)):
            middle = center[candidates[:, n]]
            inside = torch.cat([middle - image[n, :2], image[n, 2:] - middle], 1).amin(1) > 0.01
            kept = candidates[taken[:, n] & inside, n]
            best[kept, n] = iou[kept, n]
        value, owner = best.max(1)
        positive = value > -torch.inf
        assigned = torch.full_like(owner, -1)
        assigned[positive] = label[owner[positive]]
        found.append((owner.where(positive, -1), assigned))
    return found


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """An image of 800 x 1344 pixels, with few and many boxes; `kernel` measures the op without its wrapper."""
    shapes = [(-(-IMAGE[0] // s), -(-IMAGE[1] // s)) for s in STRIDES]
    anchors, sizes = grid_anchors(shapes, STRIDES, device=device), [h * w for h, w in shapes]
    for count in COUNTS[: 1 if quick else None]:
        g = torch.Generator().manual_seed(count)
        wh = 16 + 500 * torch.rand(BATCH, count, 2, generator=g) ** 2
        low = torch.rand(BATCH, count, 2, generator=g) * (torch.tensor([IMAGE[1], IMAGE[0]]) - wh)
        boxes = torch.cat([low, low + wh], -1).to(device)
        labels = torch.randint(CLASSES, (BATCH, count), generator=g).to(device)
        arguments = (anchors, sizes, boxes, labels, None, None, CLASSES, 9)
        ours: Callable[[], object] = partial(atss_assign, anchors, sizes, boxes, labels, CLASSES)
        if kernel:
            ours = partial(ops.atss_match, *arguments)
        baselines: dict[str, Callable[[], object]] = {
            "batched PyTorch": partial(portable, *arguments),
            "loop": partial(loop, anchors, sizes, boxes, labels),
        }
        result = torch.zeros(BATCH, len(anchors), 3, dtype=torch.int64, device=device)
        syncs = {"ours": count_syncs(ours), **{key: count_syncs(fn) for key, fn in baselines.items()}}
        yield Case(
            f"{BATCH}x{len(anchors)} anchors, {count} boxes", ours, result.clone, baselines, "copy of result", syncs
        )
