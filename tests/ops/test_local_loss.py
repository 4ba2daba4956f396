"""The ops local_loss and local_loss_backward_: every form gives the losses and gradients of the definition."""

from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import given
from hypothesis import strategies as st
from local_scenes import NUMBERS, TWO, arguments
from op import (
    DTYPES,
    TOLERANCES,
    Form,
    Op,
    assert_same_bits,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)

from detops.losses._local import bin_values

op = Op("local_loss")


def assert_close(form: Form, actual: Any, expected: Any, dtype: torch.dtype) -> None:
    for mine, other in zip(actual, expected, strict=True):
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
        rtol, atol = TOLERANCES[form.computes(torch.float32 if mine.dtype == torch.float32 else dtype)]
        torch.testing.assert_close(mine, other, rtol=rtol, atol=max(atol, 3e-5), equal_nan=True)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(60)
    @given(
        seed=st.integers(0, 10**6),
        layers=st.sampled_from([1, 3]),
        batch=st.sampled_from([0, 1, 2]),
        queries=st.sampled_from([1, 5]),
        boxes=st.sampled_from([0, 1, 3]),
        bins=st.sampled_from([5, 33]),
        split=st.booleans(),
        odd=st.booleans(),
        with_gradient=st.booleans(),
        dtype=st.sampled_from(DTYPES),
    )
    def check(dtype: torch.dtype, **options: Any) -> None:
        args = arguments(**options, dtype=dtype)
        assert_close(form, form(*args), op.reference(*args), dtype)

    check()


@op.for_each_form
def test_values_by_hand(form: Form) -> None:
    """Worked out on paper, and what Transformers gives."""
    values = bin_values(32, 0.5, 4.0, torch.device("cpu"))
    assert values[[0, 1, 2, 3, 15, 16, 17]].tolist() == pytest.approx(
        [-4, -1.999999, -1.788130, -1.591224, -0.075990, 0, 0.075990], abs=2e-6
    )
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2]])[None, None]
    ramp = torch.arange(33) / 10
    corners = torch.stack([torch.stack([ramp.repeat(4), -ramp.repeat(4)]), torch.zeros(2, 132)])[:, None]
    corners[1, 0, 0, 16::33] = 2
    logits = torch.tensor([[[1.0, -0.5], [0, 2]]])
    args = (corners, boxes.expand(2, 1, 2, 4), logits, [boxes], [0, 0, 1, 0, 2], [1],
            torch.tensor([[[0.55, 0.5, 0.4, 0.4]]]), torch.tensor([0, -1]), values, torch.ones(1), 4.0,
            [1.0, 1.0], True)  # fmt: skip
    losses, gradient = form(*args)
    assert losses.tolist() == [pytest.approx([12.178718, 0.403981], abs=1e-5)]
    assert not gradient[1].any()


@op.for_each_form
def test_the_last_layer_learns_nothing_from_itself(form: Form) -> None:
    args = list(arguments(4, layers=2))
    args[4], args[5] = [0, 1, 1, 0, 5], [1]
    args[3], args[7], args[9] = [args[3][0][1:]], args[7][:10], args[9][:1] * 0
    losses, gradient = form(*args)
    assert losses[0, 1] == 0
    assert not gradient.any()


@op.for_each_form
def test_logits_far_apart_and_nan(form: Form) -> None:
    """A side whose logits are 1000 below another's is as good; a NaN reaches its layer's losses alone."""
    args = arguments(5, layers=2, boxes=3, scale=1.0)
    corners = args[0].clone()
    expected = form(*args)
    corners[..., :33] -= 1000
    torch.testing.assert_close(form(corners, *args[1:])[0], expected[0], rtol=1e-3, atol=1e-4)
    corners = args[0].clone()
    corners[0, 0, 0, 3] = torch.nan
    losses, gradient = form(corners, *args[1:])
    assert losses[0, 1].isnan()
    assert losses[1].isfinite().all()
    assert gradient[0, 0, 0, :33].isnan().all()
    assert gradient[1].isfinite().all()


def test_views_are_read_where_they_are() -> None:
    corners, *rest = arguments(6, layers=3, split=True)
    by_image = corners.transpose(0, 1).contiguous().transpose(0, 1)
    found, expected = op(by_image, *rest), op(corners, *rest)
    assert_same_bits([one.contiguous() for one in found], list(expected))
    for other in op.kernels[1:]:
        assert_close(other, other(by_image, *rest), expected, torch.float32)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(7, layers=3, batch=3, queries=50, boxes=5, split=True)
    assert_same_bits_for_any_threads(lambda: op(*args))


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    args = arguments(8, layers=3, queries=20, split=True)
    assert_close(op, moved(op(*moved(args, "cuda")), "cpu"), op.reference(*args), torch.float32)


@for_each_device
@pytest.mark.parametrize("options", [{"split": True}, {"with_gradient": False, "boxes": 0}], ids=str)
def test_opcheck(device: str, options: dict[str, Any]) -> None:
    op.check(*moved(arguments(5, **options), device))


@pytest.mark.parametrize(
    "change",
    [
        dict(corners=torch.zeros(2, 2, 5, 128)),
        dict(references=torch.zeros(2, 2, 5, 3)),
        dict(teacher_logits=torch.zeros(2, 4, 3)),
        dict(pred_boxes=[]),
        dict(pred_boxes=[torch.zeros(2, 2, 4, 4)]),
        dict(parts=[0, 0, 2, 1, 5]),
        dict(distils=[]),
        dict(gt_boxes=torch.zeros(2, 3, 3)),
        dict(index=torch.zeros(19).long()),
        dict(values=torch.zeros(1)),
        dict(scale=torch.zeros(3)),
        dict(weights=[1.0]),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(8), **change)


KERNELS = [
    Kernel("confidence_kernel",
           dict(logits="*fp16", confidence="*fp32", Q="i32", C="i32", logit_image="i32", logit_query="i32",
                logit_class="i32"),
           dict(DOUBLE=False, BLOCK=16, BLOCK_C=128), 4),
    Kernel("share_kernel",
           dict(index="*i64", shares="*fp32", firsts=("i32",) * 2, sizes=("i32",) * 10, B="i32", N="i32"),
           dict(PARTS=2, DOUBLE=False, BLOCK=256), 4),
    Kernel("local_kernel",
           dict(preds=TWO["preds"], corners="*fp16", references="*fp16", confidence="*fp32", boxes="*fp32",
                index="*i64", values="*fp32", scale="*fp32", shares="*fp32", gradient="*fp16", sums="*fp32",
                firsts=TWO["firsts"], sizes=TWO["sizes"], pred_strides=TWO["pred_strides"], **NUMBERS, L="i32", Q="i32",
                reach="fp32", fgl_weight="fp32", ddf_weight="fp32"),
           dict(PARTS=2, WITH_GRADIENT=True, DOUBLE=False, BLOCK=16, BLOCK_J=64), 4),
    Kernel("sum_kernel", dict(parts="*fp32", losses="*fp32", count="i32"), dict(DOUBLE=False, BLOCK=256), 4),
]  # fmt: skip
