"""The op scale_gradient_: a product in place, or nothing at all."""

import pytest
import torch
from ahead_of_time import Kernel
from op import (
    DTYPES,
    Form,
    Op,
    assert_compiles_whole,
    assert_no_syncs,
    assert_same_bits,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
)
from torch import Tensor

op = Op("scale_gradient_")


@op.for_each_form
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1.0, 0.0, -0.3, 65536.0, float("nan")])
@pytest.mark.parametrize("count", [0, 1, 4097, 70_000])
def test_matches_reference(form: Form, dtype: torch.dtype, factor: float, count: int) -> None:
    if form.interpreted and count == 70_000:
        pytest.skip("4097 are two blocks")
    gradient = (torch.randn(count, generator=torch.Generator().manual_seed(0)) * 2**-8).to(dtype)
    expected, got, number = gradient.clone(), gradient.clone(), torch.tensor(factor)
    op.reference(expected, number)
    form(got, number)
    torch.testing.assert_close(got, expected, equal_nan=True)


@op.for_each_form
def test_a_factor_of_one_touches_nothing(form: Form) -> None:
    gradient = torch.tensor([float("nan"), -0.0, 1e-45])
    before = gradient.clone()
    form(gradient, torch.ones(()))
    assert_same_bits(gradient, before)


@pytest.mark.gpu
def test_on_a_gpu_a_factor_of_one_touches_nothing() -> None:
    gradient = torch.tensor([float("nan"), -0.0, 1e-45], device="cuda")
    before = gradient.clone()
    op(gradient, torch.ones((), device="cuda"))
    assert_same_bits(gradient, before)


def scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    gradient = gradient.clone()
    op.overload(gradient, factor)
    return gradient


def test_any_number_of_threads_gives_the_same_bits() -> None:
    gradient = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    assert_same_bits_for_any_threads(lambda: scaled(gradient, torch.tensor(0.3)))


@for_each_device
def test_opcheck(device: str) -> None:
    op.check(torch.randn(5, 3, device=device), torch.tensor(2.0, device=device))


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    factor = torch.tensor(0.3, device=device)
    gradients = [torch.randn(size, 3, device=device) for size in (5, 9)]
    for form in (scaled, op.portable):
        assert_no_syncs(form, gradients[0].clone(), factor)
    assert_compiles_whole(scaled, *((gradient, factor) for gradient in gradients))


@pytest.mark.parametrize(
    "change",
    [
        dict(gradient=torch.zeros(4, 4).t()[:2]),
        dict(gradient=torch.zeros(4, dtype=torch.int64)),
        dict(factor=torch.zeros(2)),
        dict(factor=torch.zeros((), dtype=torch.complex64)),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, object]) -> None:
    op.refuses((torch.zeros(2, 4), torch.tensor(2.0)), **change)


KERNELS = [
    Kernel("scale_kernel", dict(gradient="*" + name, factor="*" + wide, count="i32"),
           dict(COMPUTE="float" + wide[2:], BLOCK=4096), 8)
    for name, wide in (("fp32", "fp32"), ("fp16", "fp32"), ("bf16", "fp32"), ("fp64", "fp64"))
]  # fmt: skip
