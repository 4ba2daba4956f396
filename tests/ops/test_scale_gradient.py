"""The op scale_gradient_: a product in place, or nothing at all."""

import pytest
import torch
from ahead_of_time import HAS_TRITON, assert_compiles, for_each_target, needs_triton

from detops.portable.scale_gradient import scale_gradient_ as portable
from detops.reference.scale_gradient import scale_gradient_ as reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def op(*args):
    torch.ops.detops.scale_gradient_(*args)


def interpreted(*args):
    from detops.kernels.scale_gradient import scale_gradient_

    scale_gradient_(*args)


IMPLEMENTATIONS = {"portable": portable, "op": op}
if HAS_TRITON and not torch.cuda.is_available():
    IMPLEMENTATIONS["triton, interpreted"] = interpreted


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("factor", [1.0, 0.0, -0.3, 65536.0, float("nan")])
@pytest.mark.parametrize("count", [0, 1, 4097, 70_000])
def test_matches_reference(name, dtype, factor, count):
    if "triton" in name and count == 70_000:
        pytest.skip("4097 are two blocks")
    gradient = (torch.randn(count, generator=torch.Generator().manual_seed(0)) * 2**-8).to(dtype)
    expected, got, factor = gradient.clone(), gradient.clone(), torch.tensor(factor)
    reference(expected, factor)
    IMPLEMENTATIONS[name](got, factor)
    torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
def test_a_factor_of_one_touches_nothing(device):
    gradient = torch.tensor([float("nan"), -0.0, 1e-45], device=device)
    bits = gradient.view(torch.int32).clone()
    op(gradient, torch.ones((), device=device))
    assert torch.equal(gradient.view(torch.int32), bits)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    args = (torch.randn(5, 3, device=device), torch.tensor(2.0, device=device))
    torch.library.opcheck(torch.ops.detops.scale_gradient_.default, args)


@needs_triton
@for_each_target
def test_compiles_ahead_of_time(target):
    cases = []
    for name in ("fp32", "fp16", "bf16", "fp64"):
        wide = "fp64" if name == "fp64" else "fp32"
        types = dict(gradient="*" + name, factor="*" + wide, count="i32")
        cases.append(("scale_kernel", types, dict(COMPUTE="float" + wide[2:], BLOCK=4096), 8))
    assert_compiles("scale_gradient", cases, target)
