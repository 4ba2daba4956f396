"""`detops bench gradient`: the backward pass of the fused losses, where upstream is 1 and where it is not."""

from collections.abc import Iterator

import torch

from detops import ops
from detops.apps.bench.runner import Case
from detops.diagnostics.syncs import count_syncs

SHAPE = (8, 80, 128, 128)


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Yield both; the baseline makes a new tensor, as autograd's own formulas do. `kernel` changes nothing."""
    gradient = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    for name, value in (("by 1", 1.0), ("by -1", -1.0)):
        factor = torch.tensor(value, device=device)

        def ours(factor: torch.Tensor = factor) -> object:
            return ops.scale_gradient_(gradient, factor)

        def product(factor: torch.Tensor = factor) -> object:
            return gradient * factor

        syncs = {"ours": count_syncs(ours), "product": count_syncs(product)}
        yield Case(name, ours, gradient.clone, {"product": product}, "copy of gradient", syncs)
