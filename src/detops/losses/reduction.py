"""Reduction of the elements of a loss to one number, by the rules of MMDetection's weighted losses."""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Reduction = Literal["none", "mean", "sum"]
EPS = torch.finfo(torch.float32).eps


def check_reduction(reduction: str, avg_factor: Tensor | float | None) -> None:
    """Check the two arguments against each other.

    Raises:
        ValueError: The reduction is unknown, or a sum is to be averaged.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f'reduction: expected "none", "mean" or "sum", got {reduction!r}')
    if reduction == "sum" and avg_factor is not None:
        raise ValueError('avg_factor: expected None with reduction="sum", got a factor')


def divide(total: Tensor, count: int, reduction: str, avg_factor: Tensor | float | None) -> Tensor:
    """Divide the sum of a loss as `reduction` requires.

    Args:
        total: Sum over all elements.
        count: Number of elements.
        reduction: "mean" or "sum".
        avg_factor: Divisor of a mean in place of `count`, plus float32's epsilon.
    """
    if reduction == "sum":
        return total
    if avg_factor is not None:
        return total / (avg_factor + EPS)
    # The mean of nothing is 0 here, so that a batch without elements trains.
    return total / max(count, 1)


def reduce_loss(loss: Tensor, weight: Tensor | None, reduction: Reduction, avg_factor: Tensor | float | None) -> Tensor:
    """Weight and reduce elements of a loss.

    Args:
        loss: Elements, any shape.
        weight: Factors that broadcast against them, or None.
        reduction: "none" keeps the elements.
        avg_factor: Divisor of a mean in place of the number of elements; a number or a 0-d tensor.
    """
    if weight is not None:
        loss = loss * weight
    return loss if reduction == "none" else divide(loss.sum(), loss.numel(), reduction, avg_factor)


def is_averaged(training: bool | None = None) -> bool:
    """Whether `average_over_ranks` adds up the counts of several processes; arguments as there."""
    training = torch.is_grad_enabled() if training is None else training
    return training and dist.is_available() and dist.is_initialized()


def average_over_ranks(count: Tensor, least: float = 1.0, training: bool | None = None) -> Tensor:
    """Return the normaliser of a loss that N ranks share: the sum of their counts, at least `least`, over N.

    Where each rank divides by it and gradients are averaged over ranks, as DDP does, the gradient is that of one
    rank with the whole batch. Where no gradients are computed, each rank divides by its own count, so that one rank
    may validate alone without waiting for the others.

    Args:
        count: Count of this rank, 0-d; or several, any shape.
        least: Lowest sum to divide by.
        training: Whether gradients are computed; None to ask PyTorch.

    Returns:
        Float of the same shape; `max(count, least)` without a process group, or while no gradients are computed.
    """
    total, ranks = count.detach().to(torch.float32), 1
    if is_averaged(training):
        total, ranks = total.clone(), dist.get_world_size()
        dist.all_reduce(total)
    total = total.clamp(min=least)
    return total if ranks == 1 else total / ranks
