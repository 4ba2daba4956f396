"""The op local_loss_backward_: every form makes the gradient of a sum that of a weighted one."""

from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import given
from hypothesis import strategies as st
from local_scenes import NUMBERS, TWO
from local_scenes import arguments as forward_arguments
from op import DTYPES, TOLERANCES, Form, Op, assert_same_bits_for_any_threads, changed_argument, for_each_device, moved
from torch import Tensor

from detops.losses._local import Distributions, LocalParts, local_losses

op = Op("local_loss_backward_")
UPSTREAMS = ("random", "ones", "the same", "without distillation")


def arguments(seed: int, upstream: str = "random", **options: Any) -> tuple[Any, ...]:
    *args, _ = forward_arguments(seed, **options)
    gradient = torch.ops.detops.local_loss(*args, True)[1]
    factors = torch.randn(len(args[9]), 2, generator=torch.Generator().manual_seed(seed))
    if upstream == "ones":
        factors.fill_(1)
    elif upstream == "the same":
        factors[:, 1] = factors[:, 0]
    elif upstream == "without distillation":
        factors[:, 1] = 0
    return (gradient, *args[:2], *args[3:], factors)


def run(form: Form, args: tuple[Any, ...]) -> Tensor:
    gradient: Tensor = args[0].clone()
    assert form(gradient, *args[1:]) is None
    return gradient


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(40)
    @given(
        seed=st.integers(0, 10**6),
        upstream=st.sampled_from(UPSTREAMS),
        batch=st.sampled_from([0, 1, 2]),
        boxes=st.sampled_from([0, 3]),
        bins=st.sampled_from([5, 33]),
        split=st.booleans(),
        odd=st.booleans(),
        dtype=st.sampled_from(DTYPES),
    )
    def check(dtype: torch.dtype, **options: Any) -> None:
        args = arguments(**options, dtype=dtype)
        rtol, atol = TOLERANCES[form.computes(dtype)]
        torch.testing.assert_close(run(form, args), run(op.reference, args), rtol=rtol, atol=atol)

    check()


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(7, layers=3, batch=3, queries=50, boxes=5, split=True)
    assert_same_bits_for_any_threads(lambda: run(op, args))


@for_each_device
def test_opcheck(device: str) -> None:
    op.check(*moved(arguments(5, split=True), device))


def test_gradcheck() -> None:
    """The losses are differentiated by the distributions, whatever factors they are summed with."""
    args = forward_arguments(3, layers=3, batch=1, queries=3, bins=5, split=True, dtype=torch.float64)
    corners, references, teacher_logits, pred, parts, distils, truth, index, values, scale, reach, weights, _ = args
    factors = torch.randn(len(scale), 2, dtype=torch.float64)
    last = corners[-1:]  # the teacher is a constant

    def loss(others: Tensor) -> Tensor:
        local = Distributions(torch.cat([others, last]), references, teacher_logits, values.double(), reach)
        found = local_losses(local, LocalParts(parts, distils, pred, truth, index), scale, weights)
        return (found * factors).sum()

    assert torch.autograd.gradcheck(loss, corners[:-1].clone().requires_grad_())


def test_small_gradients_of_half_precision_are_kept() -> None:
    """Divided by many boxes, they are below the range of float16 until a loss scale comes."""
    found = []
    for dtype in (torch.float16, torch.float32):
        corners, references, teacher_logits, pred, *rest, _ = forward_arguments(4, scale=1e-5, dtype=torch.float16)
        parts, distils, truth, index, values, scale, reach, _ = rest
        corners = corners.to(dtype).requires_grad_()
        local = Distributions(corners, references, teacher_logits, values, reach)
        losses = local_losses(local, LocalParts(parts, distils, pred, truth, index), scale, [0.15, 0.0])
        gradient = torch.autograd.grad(losses.sum() * 2.0**16, corners)[0]
        found.append((losses, gradient.float()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=2e-2, atol=1e-2 * found[1][1].abs().max().item())


def test_a_graph_is_used_twice() -> None:
    args = forward_arguments(9, dtype=torch.float16)
    corners = args[0].requires_grad_()
    local = Distributions(corners, args[1], args[2], args[8], args[10])
    losses = local_losses(local, LocalParts(args[4], args[5], args[3], args[6], args[7]), args[9], args[11])
    first = torch.autograd.grad(losses.sum() * 1024, corners, retain_graph=True)[0]
    again = torch.autograd.grad(losses.sum() * 1024, corners, create_graph=True)[0]
    assert torch.equal(first, again)
    assert first.any()
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        again.sum().backward()


@pytest.mark.parametrize(
    "change",
    [
        dict(gradient=torch.zeros(2, 2, 5, 128)),
        dict(upstream=torch.zeros(2, 3)),
        dict(corners=torch.zeros(2, 2, 5, 128)),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(8), **change)


KERNELS = [
    Kernel("local_backward_kernel",
           dict(preds=TWO["preds"], gradient="*fp16", corners="*fp16", references="*fp16", boxes="*fp32", index="*i64",
                values="*fp32", scale="*fp32", upstream="*fp32", firsts=TWO["firsts"], sizes=TWO["sizes"],
                pred_strides=TWO["pred_strides"], **NUMBERS, reach="fp32", fgl_weight="fp32"),
           dict(PARTS=2, DOUBLE=False, BLOCK=16, BLOCK_J=64), 4),
]  # fmt: skip
