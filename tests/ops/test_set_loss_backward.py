"""The op set_loss_backward_: every form scales the gradients of the logits, and sums those of the boxes."""

from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import given
from hypothesis import strategies as st
from op import DTYPES, TOLERANCES, Form, Op, assert_same_bits_for_any_threads, changed_argument, for_each_device, moved
from torch import Tensor

op = Op("set_loss_backward_")
PARTS = (
    [0, 0, 2, 0, 5],
    [0, 0, 2, 0, 2, 0, 0, 1, 2, 3],
    [1, 1, 1, 2, 3, 0, 0, 2, 1, 4, 1, 0, 1, 0, 1],
    [0, 0, 0, 0, 5, 1, 0, 2, 5, 0, 0, 0, 1, 0, 5],
)


def arguments(
    seed: int, parts: list[int], batch: int = 2, dtype: torch.dtype = torch.float32, ones: bool = False
) -> tuple[Any, ...]:
    """Gradients of two tensors of two sets; `ones` where the class loss is handed on as it is."""
    g = torch.Generator().manual_seed(seed)
    rows = sum(sets * batch * count for _, _, sets, _, count in zip(*[iter(parts)] * 5, strict=True))
    logits, boxes = ([torch.randn(2, batch, 5, n, generator=g).to(dtype) for _ in range(2)] for n in (3, 4))
    upstream = torch.randn(sum(parts[2::5]), 3, generator=g)
    if ones:
        upstream[:, 0] = 1
    return logits, torch.randn(2, rows, 4, generator=g).to(dtype), boxes, parts, upstream


def run(form: Form, args: tuple[Any, ...]) -> list[Tensor]:
    """All that it writes and returns."""
    gradients = [one.clone() for one in args[0]]
    return [*gradients, form(gradients, *args[1:])]


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(40)
    @given(
        seed=st.integers(0, 10**6),
        parts=st.sampled_from(PARTS),
        batch=st.sampled_from([0, 1, 2]),
        dtype=st.sampled_from(DTYPES),
        ones=st.booleans(),
    )
    def check(dtype: torch.dtype, **options: Any) -> None:
        args = arguments(**options, dtype=dtype)
        rtol, atol = TOLERANCES[form.computes(dtype)]
        for mine, other in zip(run(form, args), run(op.reference, args), strict=True):
            assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
            torch.testing.assert_close(mine, other, rtol=rtol, atol=atol)

    check()


@op.for_each_form
def test_strided_gradients_are_scaled_where_they_are(form: Form) -> None:
    logits, *rest = arguments(3, PARTS[2])
    views = [torch.stack([one, one], 1)[:, 0] for one in logits]
    assert not views[0].is_contiguous()
    form(views, *rest)
    for view, one in zip(views, run(op, (logits, *rest))[:2], strict=True):
        torch.testing.assert_close(view, one)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(7, PARTS[2], batch=9)
    assert_same_bits_for_any_threads(lambda: run(op, args))


@for_each_device
def test_opcheck(device: str) -> None:
    op.check(*moved(arguments(5, PARTS[2]), device))


@pytest.mark.parametrize(
    "change",
    [
        dict(gradients=[torch.zeros(2, 2, 5, 3)]),
        dict(gradients=[torch.zeros(2, 2, 3, 5).mT] * 2),
        dict(box_gradients=torch.zeros(2, 19, 4)),
        dict(pred_boxes=[torch.zeros(2, 2, 5, 3)] * 2),
        dict(pred_boxes=[torch.zeros(2, 2, 5, 4).double()] * 2),
        dict(parts=[0, 0, 3, 0, 5]),
        dict(upstream=torch.zeros(2, 2)),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(8, PARTS[0]), **change)


KERNELS = [
    Kernel("scale_kernel",
           dict(gradients=("*fp16",) * 2, upstream="*fp32", firsts=("i32",) * 2, counts=("i32",) * 2,
                strides=("i32",) * 6, B="i32", C="i32"),
           dict(PARTS=2, DOUBLE=False, BLOCK=2048), 8),
    Kernel("box_kernel",
           dict(found=("*fp32",) * 2, box_gradients="*fp32", upstream="*fp32", firsts=("i32",) * 2, sizes=("i32",) * 4,
                strides=("i32",) * 6, B="i32", rows="i32"),
           dict(PARTS=2, DOUBLE=False, BLOCK=256), 2),
]  # fmt: skip
