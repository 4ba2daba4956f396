"""The op scale_gradient_: a product in place, or nothing at all."""

from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from op import (
    DTYPES,
    HAS_TRITON,
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
    op.reference([expected], number)
    form([got], number)
    torch.testing.assert_close(got, expected, equal_nan=True)


GROUPS = [[7], [4, 3], [4, 1, 2], [2, 0, 3, 2]]  # columns


@op.for_each_form
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", GROUPS, ids=str)
@pytest.mark.parametrize("rows", [(), (0,), (1,), (3, 5), (1200,)], ids=str)
def test_a_factor_per_group_of_columns(
    form: Form, dtype: torch.dtype, columns: list[int], rows: tuple[int, ...]
) -> None:
    g = torch.Generator().manual_seed(len(columns))
    gradient = (torch.randn(*rows, 7, generator=g) * 2**-8).to(dtype)
    for numbers in ([0.5, -3.0, 65536.0, 0.0], [1.0, 2.0, 1.0, 0.1], [float("nan"), 1.0, float("inf"), 1.0]):
        factor = torch.tensor(numbers[: len(columns)])
        expected, got = gradient.clone(), gradient.clone()
        op.reference([expected], factor, columns)
        form([got], factor, columns)
        torch.testing.assert_close(got, expected, equal_nan=True)


@op.for_each_form
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3,), (3, 0), (3, 5), (3, 2, 40000), (0, 4)], ids=str)
def test_a_factor_per_entry_of_the_first_dimension(form: Form, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    gradient = (torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 2**-8).to(dtype)
    for numbers in ([0.5, -3.0, 1.0], [1.0, 1.0, 1.0], [1.0, float("nan"), 65536.0]):
        factor = torch.tensor(numbers[: shape[0]])
        expected, got = gradient.clone(), gradient.clone()
        op.reference([expected], factor)
        form([got], factor, None)
        torch.testing.assert_close(got, expected, equal_nan=True)


@op.for_each_form
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_factor_per_gradient_or_several(form: Form, dtype: torch.dtype, count: int) -> None:
    g = torch.Generator().manual_seed(3)
    shapes = [(3, 1500), (2, 5), (0, 7), (5000,)]
    gradients = [(torch.randn(*shape, generator=g) * 2**-8).to(dtype) for shape in shapes]
    for numbers in ([0.5, -3.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0], [1.0, 65536.0, float("nan"), 0.0]):
        factor = torch.tensor(numbers[:count])
        expected, got = ([gradient.clone() for gradient in gradients] for _ in range(2))
        op.reference(expected, factor)
        form(got, factor, None)
        torch.testing.assert_close(got, expected, equal_nan=True)
        for i, gradient in enumerate(gradients):  # by hand
            torch.testing.assert_close(
                expected[i], (gradient.double() * numbers[i * count // 4]).to(dtype), equal_nan=True
            )


@op.for_each_form
def test_columns_of_several_gradients(form: Form) -> None:
    g = torch.Generator().manual_seed(4)
    gradients = [torch.randn(n, 7, generator=g) for n in (5, 0, 900)]
    columns, factor = [4, 1, 2], torch.tensor([2.0, 1, -3])
    expected = [gradient * torch.tensor([2.0, 2, 2, 2, 1, -3, -3]) for gradient in gradients]
    form(gradients, factor, columns)
    torch.testing.assert_close(gradients, expected)


@op.for_each_form
def test_columns_against_a_loop(form: Form) -> None:
    gradient, columns = torch.randn(6, 9, generator=torch.Generator().manual_seed(2)), [4, 1, 4]
    factor = torch.tensor([2.0, -0.5, 1.0])
    expected = [
        [value * factor[0 if c < 4 else 1 if c == 4 else 2].item() for c, value in enumerate(row)]
        for row in gradient.tolist()
    ]
    form([gradient], factor, columns)
    torch.testing.assert_close(gradient, torch.tensor(expected))


@op.for_each_form
@pytest.mark.parametrize("columns", [None, *GROUPS], ids=str)
def test_factors_of_one_touch_nothing(form: Form, columns: list[int] | None) -> None:
    gradient = torch.tensor([[float("nan"), -0.0, 1e-45, 2.0, float("inf"), 1.0, 3.0]])
    before = gradient.clone()
    form([gradient], torch.ones(() if columns is None else len(columns)), columns)
    assert_same_bits(gradient, before)


@pytest.mark.gpu
@pytest.mark.parametrize("columns", [None, *GROUPS], ids=str)
def test_on_a_gpu(columns: list[int] | None) -> None:
    gradient = torch.tensor([[float("nan"), -0.0, 1e-45, 2.0, float("inf"), 1.0, 3.0]], device="cuda")
    before, count = gradient.clone(), 1 if columns is None else len(columns)
    op([gradient], torch.ones(() if columns is None else count, device="cuda"), columns)
    assert_same_bits(gradient, before)
    factor = torch.tensor([0.5, -3.0, 2.0, 1.0], device="cuda")[:count]
    factor = factor[0] if columns is None else factor
    gradient = torch.randn(1200, 7, device="cuda")
    expected = gradient.cpu()
    op([gradient], factor, columns)
    op.reference([expected], factor.cpu(), columns)
    torch.testing.assert_close(gradient.cpu(), expected)


def scaled(gradient: Tensor, factor: Tensor, columns: list[int] | None = None) -> Tensor:
    gradient = gradient.clone()
    op.overload([gradient], factor, columns)
    return gradient


def test_any_number_of_threads_gives_the_same_bits() -> None:
    gradient = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    assert_same_bits_for_any_threads(lambda: scaled(gradient, torch.tensor(0.3)))
    rows, factor = gradient.view(-1, 5), torch.tensor([0.3, 1.0, -2.0])
    assert_same_bits_for_any_threads(lambda: scaled(rows, factor, [2, 1, 2]))


@for_each_device
def test_opcheck(device: str) -> None:
    op.check([torch.randn(5, 3, device=device)], torch.tensor(2.0, device=device))
    op.check([torch.randn(5, 3, device=device)], torch.tensor([2.0, 1.0], device=device), [1, 2])


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    factor = torch.tensor(0.3, device=device)
    gradients = [torch.randn(size, 3, device=device) for size in (5, 9)]
    for form in (op, op.portable):
        assert_no_syncs(form, [gradient.clone() for gradient in gradients], factor, None)
    assert_compiles_whole(scaled, *((gradient, factor) for gradient in gradients))
    factors = torch.tensor([0.3, 2.0], device=device)
    for form in (op, op.portable):
        assert_no_syncs(form, [gradient.clone() for gradient in gradients], factors, [1, 2])
        assert_no_syncs(form, [gradient.clone() for gradient in gradients], factors, None)
    assert_compiles_whole(scaled, *((gradient, factors, [1, 2]) for gradient in gradients))


@pytest.mark.parametrize(
    "change",
    [
        dict(gradients=[torch.zeros(4, 4).t()[:2]]),
        dict(gradients=[torch.zeros(4, dtype=torch.int64)]),
        dict(gradients=[torch.zeros(4), torch.zeros(4).half()]),
        dict(gradients=[]),
        dict(factor=torch.zeros(3)),
        dict(factor=torch.zeros((), dtype=torch.complex64)),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(([torch.zeros(2, 4)], torch.tensor(2.0)), **change)


def test_the_op_itself_refuses_factors_that_do_not_fit() -> None:
    op.refuses(([torch.zeros(4), torch.zeros(4)], torch.tensor(2.0)), factor=torch.zeros(4))


@pytest.mark.parametrize(
    "change",
    [dict(factor=torch.zeros(3)), dict(factor=torch.zeros(())), dict(columns=[2, 3]), dict(columns=[5, -1])],
    ids=changed_argument,
)
def test_the_op_itself_refuses_columns_that_do_not_fit(change: dict[str, Any]) -> None:
    op.refuses(([torch.zeros(2, 4)], torch.tensor([2.0, 3.0]), [1, 3]), **change)


@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
def test_the_kernel_has_four_groups_of_columns() -> None:
    from detops.kernels.scale_gradient import scale_gradient_

    with pytest.raises(ValueError, match="columns: expected at most 4 groups, got 5"):
        scale_gradient_([torch.ones(2, 5)], torch.ones(5), [1] * 5)


KERNELS = []
LEVELS = dict(counts=("i32",) * 3, firsts=("i32",) * 3)
for name, wide in (("fp32", "fp32"), ("fp16", "fp32"), ("bf16", "fp32"), ("fp64", "fp64")):
    constants = dict(LEVELS=3, DOUBLE=wide == "fp64", BLOCK=4096)
    types: Any = dict(gradients=("*" + name,) * 3, factor="*" + wide, **LEVELS)
    KERNELS += [Kernel("scale_kernel", types, dict(GROUPS=count, **constants), 8) for count in (0, 1, 3)]
    groups: Any = dict(
        gradients=("*" + name,) * 3, factors="*" + wide, **LEVELS, width="i32", end_0="i32", end_1="i32", end_2="i32"
    )
    KERNELS += [Kernel("scale_columns_kernel", groups, dict(K=K, **constants), 8) for K in (1, 2, 3, 4)]
