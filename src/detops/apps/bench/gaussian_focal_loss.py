"""`detops bench gaussian_focal_loss`: CenterNet's focal loss over a given heatmap, forward and backward."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from detops import ops
from detops.apps.bench._centernet import backward, plain_loss
from detops.apps.bench.runner import Case
from detops.losses.focal import gaussian_focal_loss

TESTS = ("tests/ops/test_gaussian_focal_loss.py",)
CONFIGS = {"8x80x128x128": (8, 80, 128, 128), "16x80x128x128": (16, 80, 128, 128)}


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Yield logits of an untrained network, one cell in fifty under a Gaussian; with `kernel`, ours is the op alone."""
    for name, shape in list(CONFIGS.items())[: 1 if quick else None]:
        g = torch.Generator().manual_seed(0)
        logits = (torch.randn(shape, generator=g) - 4).to(device).requires_grad_()
        target = (torch.rand(shape, generator=g) * (torch.rand(shape, generator=g) < 0.02)).to(device)
        data = logits.detach()
        public = partial(gaussian_focal_loss, logits, target, avg_factor=100, from_logits=True)
        ours: Callable[[], object] = backward(public, logits)
        if kernel:
            ours = partial(ops.gaussian_focal_loss, data, target, None, 2.0, 4.0, 1.0, 1.0, True)
        baselines = {"plain PyTorch": backward(partial(_plain, logits, target), logits)}
        yield Case(name, ours, data.clone, baselines, "copy of logits")


def _plain(logits: Tensor, target: Tensor) -> Tensor:
    return plain_loss(logits, target) / 100
