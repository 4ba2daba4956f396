"""The optimiser of a training, and the learning rate of each step."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from detops.apps.train.settings import Settings

FINAL_LR = 0.001  # learning rate of the last step, as a fraction of the highest


def lr_factor(step: int, total: int, warmup: float) -> float:
    """Return a step's learning rate as a fraction of the highest.

    It rises linearly over the fraction `warmup` of all steps, then falls along a cosine to `FINAL_LR`.
    """
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / (rising + 1)
    done = min(1.0, (step - rising) / max(1, total - rising))
    return FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * done)) / 2


def make(network: nn.Module, settings: Settings, total_steps: int, fused: bool) -> tuple[torch.optim.AdamW, LambdaLR]:
    """Make AdamW, without decay of biases and norms, and one cycle of the learning rate.

    Args:
        network: Network that is trained. It may have a method `begins_again(total_steps)`, which returns some of its
            parameters and the step at which a second cycle begins for them.
        settings: How to train.
        total_steps: Number of steps of the training.
        fused: Update all weights in one pass.
    """
    begins_again: Any = getattr(network, "begins_again", None)
    again, begin = begins_again(total_steps) if begins_again else ([], 0)
    others = {id(p) for p in again}

    def cycle(step: int) -> float:
        return lr_factor(step, total_steps, settings.warmup)

    def second_cycle(step: int) -> float:
        return cycle(step) if step < begin else lr_factor(step - begin, total_steps - begin, settings.warmup)

    groups: list[dict[str, Any]] = []
    schedules = []
    for parameters, schedule in (
        ([p for p in network.parameters() if id(p) not in others], cycle),
        (again, second_cycle),
    ):
        groups.append({"params": [p for p in parameters if p.dim() > 1]})
        groups.append({"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0})
        schedules += [schedule, schedule]
    used = [i for i, group in enumerate(groups) if group["params"]]
    optimizer = torch.optim.AdamW(
        [groups[i] for i in used], settings.lr, weight_decay=settings.weight_decay, fused=fused
    )
    return optimizer, LambdaLR(optimizer, [schedules[i] for i in used])
