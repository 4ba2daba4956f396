"""The compact network, whose outputs are NaN in some training steps, as half precision or a broken sample makes them."""

import torch
from torch import nn

from detops.apps.train import models

BROKEN: set[int] = set()  # forward passes of the network in training, counted from 1
GRADIENTS: set[int] = set()  # those whose loss is finite and whose gradient is not
COUNTED: list[int] = []


class _BrokenGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf")


class Unlucky(nn.Module):
    """Counts its own forward passes in training."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.inner = models.build("compact", num_classes, width)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        count = 0
        if self.training and torch.is_grad_enabled():
            COUNTED.append(len(COUNTED) + 1)
            count = COUNTED[-1]
        if count in BROKEN:
            images = images * float("nan")  # the statistics of batch norm are NaN then too
        outputs = list(self.inner(images))
        if count in GRADIENTS:
            outputs[1] = _BrokenGradient.apply(outputs[1])
        return outputs


class Blind(nn.Module):
    """Finite weights, and outputs that are NaN for images with a bright corner."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.logit, self.num_classes = nn.Parameter(torch.zeros(())), num_classes

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = images[:, :1, ::4, ::4] * 0
        maps = torch.where(images[:, :1, :1, :1] > 2, float("nan"), maps)
        return [maps.expand(-1, self.num_classes, -1, -1) + self.logit, maps.expand(-1, 2, -1, -1) + 4,
                maps.expand(-1, 2, -1, -1)]  # fmt: skip
