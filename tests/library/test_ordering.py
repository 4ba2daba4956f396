"""What takes part comes first, as a stable sort would bring it."""

import pytest
import torch

from detops.geometry.ordering import true_first


@pytest.mark.parametrize("shape", [(3, 50), (1, 1), (4, 0), (0, 5)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_it_is_a_stable_sort(shape: tuple[int, int], share: float) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share
    assert torch.equal(true_first(mask), (~mask).to(torch.uint8).argsort(dim=1, stable=True))
