"""`detops bench focal`: CenterNet's focal loss over a given heatmap, forward and backward, against PyTorch."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from detops import ops
from detops.apps.bench.runner import Case
from detops.diagnostics.syncs import count_syncs
from detops.losses.focal import gaussian_focal_loss

CONFIGS = {"8x80x128x128": (8, 80, 128, 128), "16x80x128x128": (16, 80, 128, 128)}


def plain_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The loss as training code has it today: sigmoid, clamp, two logarithms, a dozen passes."""
    p = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    positive = target.eq(1).to(p.dtype)
    negative = (1 - target).pow(4)
    return -(torch.log(p) * (1 - p).pow(2) * positive + torch.log(1 - p) * p.pow(2) * negative * (1 - positive)).sum()


def backward(loss: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], None]:
    """A function that computes a loss and its gradients, and leaves nothing behind."""

    def run() -> None:
        loss().backward()
        for leaf in leaves:
            leaf.grad = None

    return run


def case(name: str, shape: tuple[int, ...], device: str, kernel: bool) -> Case:
    """One configuration: logits as an untrained network gives them, one cell in fifty under a Gaussian."""
    g = torch.Generator().manual_seed(0)
    logits = (torch.randn(shape, generator=g) - 4).to(device).requires_grad_()
    target = (torch.rand(shape, generator=g) * (torch.rand(shape, generator=g) < 0.02)).to(device)
    data = logits.detach()

    def op() -> object:
        return ops.gaussian_focal_loss(data, target, None, 2.0, 4.0, 1.0, 1.0, True)

    ours = (
        op
        if kernel
        else backward(lambda: gaussian_focal_loss(logits, target, avg_factor=100, from_logits=True), logits)
    )
    baselines = {"plain PyTorch": backward(lambda: plain_loss(logits, target) / 100, logits)}
    syncs = {key: count_syncs(fn) for key, fn in {"ours": ours, **baselines}.items()}
    return Case(name, ours, data.clone, baselines, "copy of logits", syncs)


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Yield the configurations; with `kernel`, ours is the op alone."""
    for name, shape in list(CONFIGS.items())[: 1 if quick else None]:
        yield case(name, shape, device, kernel)
