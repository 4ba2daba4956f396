"""`detops bench select_detections`: candidates to detections, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial

import torch

from detops import ops
from detops.apps.bench.runner import Case
from detops.portable.select_detections import select_detections as portable

TESTS = ("tests/ops/test_select_detections.py",)
CONFIGS = {"8x100": (8, 100), "8x1000": (8, 1000)}


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield batches of candidates of 80 classes, of which at most 100 are kept."""
    for name, (batch, count) in list(CONFIGS.items())[: 1 if quick else None]:
        g = torch.Generator().manual_seed(0)
        low = torch.rand(batch, count, 2, generator=g) * 400
        boxes = torch.cat([low, low + 20 + 80 * torch.rand(batch, count, 2, generator=g)], -1).to(device)
        labels = torch.randint(0, 80, (batch, count), generator=g).to(device)
        scores = torch.rand(batch, count, generator=g).sort(1, descending=True).values.to(device)
        arguments = (boxes, labels, scores, torch.full((batch, 2), 480, device=device), 0.05, 0.5, 100)
        baselines = {"batched PyTorch": partial(portable, *arguments)}
        yield Case(name, partial(ops.select_detections, *arguments), boxes.clone, baselines, "copy of boxes")
