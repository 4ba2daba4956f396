"""The op l1_at_cells: every form gives the loss and the gradient of the definition."""

from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import given
from hypothesis import strategies as st
from op import (
    DTYPES,
    TOLERANCES,
    Form,
    Op,
    assert_compiles_whole,
    assert_no_syncs,
    assert_same_bits,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)

op = Op("l1_at_cells")

Arguments = tuple[Any, ...]


def arguments(
    seed: int = 0,
    batch: int = 2,
    boxes: int = 5,
    depth: int = 2,
    size: tuple[int, int] = (6, 7),
    dtype: torch.dtype = torch.float32,
    wide: torch.dtype = torch.float32,
    scaled: bool = True,
    with_gradient: bool = True,
    channels_last: bool = False,
) -> Arguments:
    """A map, and boxes at distinct cells, some of which lie beyond it or are not used."""
    g = torch.Generator().manual_seed(seed)
    preds = torch.randn(batch, depth, *size, generator=g).to(dtype)
    if channels_last:
        preds = preds.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    target = torch.randn(batch, boxes, depth, generator=g).to(wide)
    area = size[0] * size[1]
    index = torch.stack([torch.randperm(max(area, boxes) + 3, generator=g)[:boxes] - 1 for _ in range(batch)] or
                        [torch.zeros(boxes, dtype=torch.int64)])[:batch]  # fmt: skip
    used = torch.rand(batch, boxes, generator=g) < 0.8
    scale = torch.tensor(0.3) if scaled else None
    return preds, target, index, used, scale, with_gradient


def assert_matches(form: Form, args: Arguments, device: str = "cpu") -> None:
    (loss, gradient), (found, slope) = op.reference(*args), moved(form(*moved(args, device)), "cpu")
    rtol, atol = TOLERANCES[form.computes(args[0].dtype)]
    assert (found.dtype, slope.dtype, slope.shape) == (loss.dtype, gradient.dtype, gradient.shape)
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slope, gradient, rtol=rtol, atol=atol)
    assert slope.is_contiguous()


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(40)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 3]),
        boxes=st.sampled_from([0, 1, 5, 400]),
        depth=st.sampled_from([1, 2, 5]),
        size=st.sampled_from([(6, 7), (1, 1), (30, 20)]),
        dtype=st.sampled_from(DTYPES),
        wide=st.sampled_from([torch.float32, torch.float64]),
        scaled=st.booleans(),
        with_gradient=st.booleans(),
        channels_last=st.booleans(),
    )
    def check(**options: Any) -> None:
        assert_matches(form, arguments(**options))

    check()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_matches_reference(dtype: torch.dtype) -> None:
    assert_matches(op, arguments(1, boxes=100, size=(30, 20), dtype=dtype, channels_last=True), device="cuda")


@op.for_each_form
def test_by_hand(form: Form) -> None:
    preds = torch.tensor([[[[1.0, 2], [3, 4]], [[5, 6], [7, 8]]]])
    target = torch.tensor([[[3.0, 6], [0, 0], [4, 1]]])
    index, used = torch.tensor([[1, 0, 3]]), torch.tensor([[True, False, True]])
    loss, gradient = form(preds, target, index, used, torch.tensor(2.0), True)
    assert loss.item() == 2 * (1 + 0 + 0 + 7)
    assert gradient.tolist() == [[[[0, -2], [0, 0]], [[0, 0], [0, 2]]]]


@op.for_each_form
def test_numbers_that_are_not_finite(form: Form) -> None:
    """Where they are used they show; elsewhere they are not read."""
    preds, target, index, used, scale, _ = arguments(4, boxes=12)
    used[0, 3] = True
    index[0, 3] = 41  # of 42
    used[0, (index[0] == 41) & (torch.arange(12) != 3)] = False
    unused = torch.full_like(target, torch.nan).where(~used[..., None], target)
    assert_same_bits(form(preds, unused, index, used, scale, True), form(preds, target, index, used, scale, True))
    target[0, 3, 0] = torch.nan
    loss, gradient = form(preds, target, index, used, scale, True)
    assert loss.isnan()
    assert gradient.isfinite().all()


@op.for_each_form
def test_another_default_dtype_changes_nothing(form: Form) -> None:
    args = arguments(10)
    expected = form(*args)
    torch.set_default_dtype(torch.float64)
    try:
        assert_same_bits(form(*args), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@op.for_each_form
def test_non_contiguous_arguments(form: Form) -> None:
    args = arguments(4, batch=3, boxes=9)
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in args[:4]]
    assert not turned[0].is_contiguous()
    torch.testing.assert_close(form(*turned, *args[4:]), form(*args))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(4, batch=9, boxes=20, size=(200, 100))
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
@pytest.mark.parametrize("options", [{}, {"boxes": 0}, {"batch": 0}, {"with_gradient": False}], ids=str)
def test_opcheck(device: str, options: dict[str, Any]) -> None:
    op.check(*moved(arguments(5, **options), device))


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    args, more = (moved(arguments(8, boxes=boxes), device) for boxes in (5, 7))
    for form in (op, op.portable):
        assert assert_no_syncs(form, *args)[1].shape == (2, 2, 6, 7)
    assert_compiles_whole(op.overload, args, more)


@pytest.mark.parametrize(
    "change",
    [
        dict(preds=torch.zeros(2, 2, 6)),
        dict(preds=torch.zeros(2, 2, 6, 7, dtype=torch.int64)),
        dict(target=torch.zeros(2, 5, 3)),
        dict(index=torch.zeros(3, 5)),
        dict(used=torch.ones(2, 5)),
        dict(scale=torch.ones(2)),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(9), **change)


KERNELS = [
    Kernel("cells_kernel",
           dict(preds="*" + name, target="*" + wide, index="*i64", used="*u8", scale="*fp32", loss="*" + wide,
                gradient="*" + name, stride_b="i32", stride_d="i32", stride_h="i32", stride_w="i32", B="i32", N="i32",
                D="i32", H="i32", W="i32"),
           dict(HAS_SCALE=on, WITH_GRADIENT=on, DOUBLE=wide == "fp64", BLOCK=1024), 8)
    for name, wide, on in (("fp32", "fp32", True), ("fp16", "fp32", True), ("bf16", "fp32", False), ("fp64", "fp64", True))
]  # fmt: skip
