"""Autograd for ops that compute a loss and its gradient in one pass."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.arguments import accumulate_dtype
from detops.losses.reduction import EPS

Op = Callable[..., tuple[Any, ...]]
HALF_RANGE = 2.0**14  # factor that keeps gradients of about 1 in range of float16


def fused_loss(
    op: Op,
    logits: Tensor,
    *,
    scale: Tensor | None,
    steepest: float,
    instead: str,
    **tensors: Tensor | None,
) -> Tensor:
    """Call an op that returns a loss and, `with_gradient`, its gradient with respect to the logits.

    Args:
        op: The op, with its numeric arguments already bound.
        logits: Its first argument, contiguous; the loss is differentiated by it.
        scale: 0-d factor of the loss; None for 1. `split_scale` divides it between the op and what follows.
        steepest: As in `split_scale`.
        instead: A loss to recommend to those who want second derivatives.
        tensors: The op's other arguments.

    Returns:
        0-d loss, once differentiable.
    """
    kept, rest = split_scale(logits, scale, steepest)
    tensors["scale"] = kept
    loss: Tensor = _apply(_Call(op, tuple(tensors), instead, 1), [logits], tensors.values())[0]
    return loss if rest is None else loss * rest


def fused_level_losses(
    op: Op,
    outputs: Sequence[Tensor],
    *,
    columns: list[int],
    scale: Tensor,
    steepest: float,
    instead: str,
    **tensors: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Call an op that returns the losses of several levels' outputs and, `with_gradient`, the outputs' gradients.

    Args:
        op: The op, with its numeric arguments already bound.
        outputs: Its first argument, one per level; the losses are differentiated by them. Their columns (last
            dimension) fall into G groups, and the op returns one loss (G,) per group, each of which depends only on its
            own columns; other numbers; and the gradient of the sum of the losses.
        columns: Number of columns of each group.
        scale: Factors that the op multiplies the losses and the numbers by. `split_scale` divides them between the op
            and what follows.
        steepest: As in `split_scale`.
        instead: A loss to recommend to those who want second derivatives.
        tensors: The op's other arguments.

    Returns:
        (G,) losses, once differentiable; the other numbers, not differentiable.
    """
    kept, rest = split_scale(outputs[0], scale, steepest)
    tensors["scale"] = kept
    call = _Call(op, tuple(tensors), instead, len(outputs), columns, by_list=True)
    losses, numbers, *_ = _apply(call, outputs, tensors.values())
    return (losses, numbers) if rest is None else (losses * rest, numbers * rest)


def fused_map_losses(
    op: Op,
    maps: Sequence[Tensor],
    *,
    steepest: Sequence[float],
    instead: str,
    **tensors: Tensor | None,
) -> Tensor:
    """Call an op that returns a loss for each of several maps and, `with_gradient`, the maps' gradients.

    Args:
        op: The op, with its numeric arguments already bound but for `kept`, which are factors that gradients in float16
            take in place of those of the losses, or 0. It returns the losses, what is left of the latter factors, and
            the gradients.
        maps: Its first argument; each loss is differentiated by its own map.
        steepest: As in `split_scale`, for each map.
        instead: A loss to recommend to those who want second derivatives.
        tensors: The op's other arguments.

    Returns:
        (G,) losses, once differentiable.
    """
    halves = [one.dtype == torch.float16 for one in maps]
    kept = [HALF_RANGE / max(1.0, most) if half else 0.0 for half, most in zip(halves, steepest, strict=True)]
    call = _Call(partial(op, kept=kept), tuple(tensors), instead, len(maps), by_list=True, has_rest=any(halves))
    losses: Tensor = _apply(call, maps, tensors.values())[0]
    return losses


def inverse(reduction: str, avg_factor: Tensor | float | None, like: Tensor) -> Tensor | None:
    """Return the factor of the sum of a loss, as a 0-d tensor; None for a sum.

    Args:
        reduction: "mean" or "sum".
        avg_factor: Divisor of a mean in place of the number of elements of `like`.
        like: The logits.
    """
    if reduction == "sum":
        return None
    dtype = accumulate_dtype(like)
    if isinstance(avg_factor, Tensor):
        return 1 / (avg_factor.detach().to(like.device, dtype) + EPS)
    value = 1 / max(like.numel(), 1) if avg_factor is None else 1 / (avg_factor + EPS)
    return torch.full((), value, dtype=dtype, device=like.device)


def split_scale(logits: Tensor, scale: Tensor | None, steepest: float = 1.0) -> tuple[Tensor | None, Tensor | None]:
    """Split the factor of a loss in two, so that its gradient does not underflow in float16.

    An op writes the gradient in the dtype of the logits. Divided by the number of positives, most of it would be below
    the range of float16, and become 0 before the loss scale of PyTorch's AMP arrives with backward. So the op applies a
    large factor, like a loss scale, that stays within float16's range. The rest of the factor multiplies the op's
    losses, and reaches the gradient in backward, together with AMP's scale.

    Args:
        logits: The tensor whose gradient the op writes.
        scale: The factor, of one loss or of several; None for 1.
        steepest: Approximate largest gradient of the unscaled loss.

    Returns:
        The op's factor, and the 0-d factor that its losses are multiplied by afterwards; None for 1.
    """
    if logits.dtype != torch.float16:
        return scale, None
    whole = torch.ones((), device=logits.device) if scale is None else scale
    rest = whole.max() * (max(1.0, steepest) / HALF_RANGE)
    return whole / rest, rest


def first_order_only(
    gradients: Sequence[Tensor | None], sources: Sequence[Tensor | None], instead: str
) -> Sequence[Tensor | None]:
    """Return gradients that raise a `RuntimeError` where they are differentiated; for the end of a backward pass.

    Otherwise, with `create_graph=True`, a gradient from an op would count as a constant, and a penalty on it would have
    no effect.
    (PyTorch's `once_differentiable` raises only where the incoming gradient is differentiated.)

    Args:
        gradients: The gradients that backward returns.
        sources: The tensors that they depend on: the incoming gradient, and the saved tensors.
        instead: A loss to recommend.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return gradients
    differentiable = [source for source in sources if source is not None and source.requires_grad]
    return _FirstOrderOnly.apply(instead, len(gradients), *gradients, *differentiable)  # type: ignore[no-any-return]


class _Call(NamedTuple):
    """An op, and how it is called.

    Attributes:
        op: The op, with all arguments bound except its maps and other tensors.
        names: Names of the arguments that are tensors.
        instead: A loss to recommend.
        num_maps: Number of maps.
        columns: As in `fused_level_losses`; None without groups of columns.
        by_list: Whether the op takes a list of maps, and returns a list of gradients; else it has one of each.
        has_rest: Whether the op's second result is to be multiplied with the gradients.
    """

    op: Op
    names: tuple[str, ...]
    instead: str
    num_maps: int
    columns: list[int] | None = None
    by_list: bool = False
    has_rest: bool = False

    def run(self, tensors: Sequence[Tensor], with_gradient: bool) -> tuple[Any, ...]:
        """Return what the op returns, gradients last, given the maps and then the other arguments that are tensors."""
        maps = tensors[: self.num_maps]
        arguments = dict(zip(self.names, tensors[self.num_maps :], strict=True))
        if self.by_list:
            return self.op(list(maps), **arguments, with_gradient=with_gradient)
        loss, gradient = self.op(*maps, **arguments, with_gradient=with_gradient)
        return loss, [gradient]


class _Fused(torch.autograd.Function):
    """Forward computes the gradients; backward hands them on, scaled in place unless the factor is 1."""

    @staticmethod
    def forward(call: _Call, with_gradient: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        *numbers, gradients = call.run(tensors, with_gradient)
        return *numbers, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, _, *tensors = inputs
        ctx.gradients = output[-ctx.call.num_maps :]
        ctx.rest = output[1] if ctx.call.has_rest else None
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * len(ctx.needs_input_grad)
        # The first pass hands out the gradients, so that only one copy of them ever exists; a second pass over a
        # retained graph computes them again.
        gradients, ctx.gradients = ctx.gradients, None
        # Where they are not needed, they may have changed: a caller may have loaded the next batch into them.
        tensors = ctx.saved_tensors if gradients is None or torch.is_grad_enabled() else ()
        with torch.no_grad():
            if gradients is None:
                gradients = ctx.call.run(tensors, True)[-1]
            factor = upstream if ctx.rest is None else upstream * ctx.rest
            ops.scale_gradient_(gradients=list(gradients), factor=factor, columns=ctx.call.columns)
        gradients = first_order_only(gradients, (upstream, *tensors), ctx.call.instead)
        return (None, None, *gradients, *[None] * len(ctx.call.names))

    # PyTorch asks for the signature at each call: found here, it takes 1 us instead of 7.
    forward.__func__.__signature__ = inspect.signature(forward.__func__)  # type: ignore[attr-defined]


def _apply(call: _Call, maps: Sequence[Tensor], arguments: Iterable[Tensor | None]) -> Any:
    with_gradient = torch.is_grad_enabled() and any(level.requires_grad for level in maps)
    return _Fused.apply(call, with_gradient, *maps, *arguments)


class _FirstOrderOnly(torch.autograd.Function):
    @staticmethod
    def forward(instead: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tensors[:count]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.instead = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "detops: the gradient of this loss cannot be differentiated, as the op that makes it has no second"
            f" derivative; for a penalty on the gradient take a loss of PyTorch operations: {ctx.instead}"
        )
