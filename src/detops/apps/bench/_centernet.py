"""Shared by CenterNet's suites: boxes like those of COCO, and the losses as training code computes them today."""

from collections.abc import Callable

import torch
from torch import Tensor

from detops.ground_truth import GroundTruth

BATCHES = (8, 16)
CLASSES, CELLS, STRIDE, BOXES = 80, 128, 4, 20
GRID, IMAGE = (CELLS, CELLS), (CELLS * STRIDE, CELLS * STRIDE)


def truth_of(batch: int, device: str) -> GroundTruth:
    """Make twenty seeded boxes per image, mostly small as in COCO."""
    g = torch.Generator().manual_seed(0)
    sides = 8 + 300 * torch.rand(batch, BOXES, 2, generator=g) ** 2
    low = (IMAGE[0] - sides) * torch.rand(batch, BOXES, 2, generator=g)
    labels = torch.randint(CLASSES, (batch, BOXES), generator=g)
    sizes = torch.full((batch,), BOXES, device=device)
    return GroundTruth(torch.cat([low, low + sides], -1).to(device), labels.to(device), sizes)


def maps_of(batch: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Make an untrained network's predictions: heatmap logits, sizes and offsets, as leaves with a gradient."""
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(batch, CLASSES, *GRID, generator=g) - 4
    wh, offset = (torch.rand(batch, 2, *GRID, generator=g).to(device).requires_grad_() for _ in range(2))
    return logits.to(device).requires_grad_(), wh, offset


def plain_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the focal loss as training code does today: sigmoid, clamp, two logarithms, a dozen passes."""
    p = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    positive = target.eq(1).to(p.dtype)
    negative = (1 - target).pow(4)
    return -(torch.log(p) * (1 - p).pow(2) * positive + torch.log(1 - p) * p.pow(2) * negative * (1 - positive)).sum()


def backward(loss: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], None]:
    """Return a function that computes a loss and its gradients, and discards them."""

    def run() -> None:
        loss().backward()
        for leaf in leaves:
            leaf.grad = None

    return run
