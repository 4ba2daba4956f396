"""How the ops that compute a loss and its gradient in one pass meet autograd."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from detops import ops
from detops.losses.reduction import EPS

Arguments = tuple[Tensor | float | None, ...]
HALF_RANGE = 2.0**14  # what gradients of float16 may be multiplied by and stay in range, if they are little above 1


class _FusedLoss(torch.autograd.Function):
    """Forward makes the gradient; backward hands it on, scaled in place where that changes anything."""

    @staticmethod
    def forward(ctx: Any, op: Callable[..., tuple[Tensor, Tensor]], logits: Tensor, *arguments: Any) -> Tensor:
        total, ctx.gradient = op(logits, *arguments, ctx.needs_input_grad[1])
        ctx.op = op
        ctx.is_tensor = [isinstance(argument, Tensor) for argument in arguments]
        ctx.numbers = [argument for argument in arguments if not isinstance(argument, Tensor)]
        ctx.save_for_backward(logits, *(argument for argument in arguments if isinstance(argument, Tensor)))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # The gradient leaves with the first pass, so that only one of its size ever exists; a second pass over a
        # retained graph makes it again.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            logits, *tensors = ctx.saved_tensors
            left = {True: iter(tensors), False: iter(ctx.numbers)}
            gradient = ctx.op(logits, *(next(left[kind]) for kind in ctx.is_tensor), True)[1]
        ops.scale_gradient_(gradient, upstream)
        return (None, gradient, *[None] * len(ctx.is_tensor))


def fused_loss(
    op: Callable[..., tuple[Tensor, Tensor]], logits: Tensor, *arguments: Tensor | float | None, rest: Tensor | None
) -> Tensor:
    """Call an op that returns a loss and, if its last argument is true, the gradient of the logits.

    Args:
        op: What to call.
        logits: Contiguous; what the loss is differentiated by.
        arguments: The rest of the op's arguments but the last.
        rest: What `kept_scale` left of the loss's scale.

    Returns:
        0-d loss, once differentiable.
    """
    loss: Tensor = _FusedLoss.apply(op, logits, *arguments)
    return loss if rest is None else loss * rest


class _FusedLevels(torch.autograd.Function):
    """The same for an op that takes the outputs of several levels, and returns several losses."""

    @staticmethod
    def forward(
        ctx: Any,
        op: Callable[..., Any],
        combine: Callable[[Tensor], Tensor],
        columns: list[int],
        count: int,
        *arguments: Any,
    ) -> tuple[Tensor, Tensor]:
        wanted = any(ctx.needs_input_grad[4 : 4 + count])
        losses, ctx.gradients = op(list(arguments[:count]), *arguments[count:], wanted)
        ctx.op, ctx.columns, ctx.count = op, columns, count
        ctx.is_tensor = [isinstance(argument, Tensor) for argument in arguments]
        ctx.numbers = [argument for argument in arguments if not isinstance(argument, Tensor)]
        ctx.save_for_backward(*(argument for argument in arguments if isinstance(argument, Tensor)))
        ctx.mark_non_differentiable(losses)
        return combine(losses), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            left = {True: iter(ctx.saved_tensors), False: iter(ctx.numbers)}
            arguments = [next(left[kind]) for kind in ctx.is_tensor]
            gradients = ctx.op(arguments[: ctx.count], *arguments[ctx.count :], True)[1]
        for gradient in gradients:
            ops.scale_gradient_(gradient, upstream, ctx.columns)
        return (None, None, None, None, *gradients, *[None] * (len(ctx.is_tensor) - ctx.count))


def fused_level_losses(
    op: Callable[..., tuple[Tensor, list[Tensor]]],
    outputs: list[Tensor],
    combine: Callable[[Tensor], Tensor],
    columns: list[int],
    *arguments: Tensor | float | None,
    rest: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Call an op that returns the losses of several levels' outputs and, if its last argument is true, the gradients.

    Args:
        op: What to call.
        outputs: What the losses are differentiated by; their columns (last dimension) fall into groups.
        combine: Makes of the op's losses one loss (G,) per group of columns, which alone depends on them; the op's
            gradient is that of the sum of these.
        columns: Number of columns of each group.
        arguments: The rest of the op's arguments but the last.
        rest: What `kept_scale` left of the losses' scale.

    Returns:
        (G,) losses, once differentiable; the op's losses, not differentiable.
    """
    combined, losses = _FusedLevels.apply(op, combine, columns, len(outputs), *outputs, *arguments)
    return (combined, losses) if rest is None else (combined * rest, losses * rest)


def inverse(reduction: str, avg_factor: Tensor | float | None, like: Tensor) -> Tensor | None:
    """What the sum of a loss is multiplied by, as a 0-d tensor; None for a sum.

    Args:
        reduction: "mean" or "sum".
        avg_factor: What a mean divides by in place of the number of elements of `like`.
        like: The logits.
    """
    if reduction == "sum":
        return None
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if isinstance(avg_factor, Tensor):
        return 1 / (avg_factor.detach().to(like.device, dtype) + EPS)
    value = 1 / max(like.numel(), 1) if avg_factor is None else 1 / (avg_factor + EPS)
    return torch.full((), value, dtype=dtype, device=like.device)


def kept_scale(logits: Tensor, scale: Tensor | None, largest: float = 1.0) -> tuple[Tensor | None, Tensor | None]:
    """What an op multiplies a loss and its gradient by, in two factors: the second is left for what comes behind.

    A gradient over the number of positives is below what float16 holds, and a loss scale, which PyTorch's AMP brings
    with backward, would come too late for what was rounded to 0. So the op multiplies by a large number instead.

    Args:
        logits: What the gradient is of.
        scale: Of the loss, or of several; None is 1.
        largest: About what the gradient is at most before it is scaled.

    Returns:
        The op's factor, and that by which its losses have yet to be multiplied, 0-d; None where it is 1.
    """
    if logits.dtype != torch.float16:
        return scale, None
    whole = torch.ones((), device=logits.device) if scale is None else scale
    rest = whole.max() * (max(1.0, largest) / HALF_RANGE)
    return whole / rest, rest
