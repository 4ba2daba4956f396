"""`detops bench scale_gradient`: backward of the fused losses, by the usual factor of 1 and by another one."""

from collections.abc import Iterator
from functools import partial

import torch

from detops import ops
from detops.apps.bench.runner import Case

TESTS = ("tests/ops/test_scale_gradient.py",)
SHAPE = (8, 80, 128, 128)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield both; the baseline makes a new tensor, as autograd's own formulas do."""
    gradient = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    for name, value in (("by 1", 1.0), ("by -1", -1.0)):
        factor = torch.tensor(value, device=device)
        ours, product = partial(ops.scale_gradient_, [gradient], factor), partial(torch.mul, gradient, factor)
        yield Case(name, ours, gradient.clone, {"product": product}, "copy of gradient")
