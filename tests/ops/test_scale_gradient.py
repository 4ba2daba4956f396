"""The op scale_gradient_: a product in place, or nothing at all."""

import pytest
import torch
from ahead_of_time import Kernel


op = Op("scale_gradient_")




@op.for_each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("factor", [1.0, 0.0, -0.3, 65536.0, float("nan")])
@pytest.mark.parametrize("count", [0, 1, 4097, 70_000])
def test_matches_reference(form: Form, dtype: torch.dtype, factor: float, count: int) -> None:
    if form.interpreted and count == 70_000:
        pytest.skip("4097 are two blocks")
    gradient = (torch.randn(count, generator=torch.Generator().manual_seed(0)) * 2**-8).to(dtype)
    expected, got, factor = gradient.clone(), gradient.clone(), torch.tensor(factor)
    op.reference(expected, factor)
    form(got, factor)
    torch.testing.assert_close(got, expected, equal_nan=True)


@for_each_device
def test_a_factor_of_one_touches_nothing(device: str) -> None:
    gradient = torch.tensor([float("nan"), -0.0, 1e-45], device=device)
    bits = gradient.view(torch.int32).clone()
    op(gradient, torch.ones((), device=device))
    assert torch.equal(gradient.view(torch.int32), bits)


@for_each_device
def test_opcheck(device: str) -> None:
    args = (torch.randn(5, 3, device=device), torch.tensor(2.0, device=device))
    torch.library.opcheck(torch.ops.detops.scale_gradient_.default, args)


@needs_triton
@for_each_target
def test_compiles_ahead_of_time(target) -> None:
    cases = []
    for name in ("fp32", "fp16", "bf16", "fp64"):
        wide = "fp64" if name == "fp64" else "fp32"
        types = dict(gradient="*" + name, factor="*" + wide, count="i32")
        cases.append(("scale_kernel", types, dict(COMPUTE="float" + wide[2:], BLOCK=4096), 8))
    assert_compiles("scale_gradient", cases, target)
