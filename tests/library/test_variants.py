"""How often a training stops for Triton to compile a kernel anew."""

import pytest
from op import HAS_TRITON
from variants import variants

MOST = 8


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
@pytest.mark.parametrize("training", ["yolox", "gfl", "centernet"])
def test_few_variants_are_compiled(training):
    found = variants(training)
    assert len(found) >= 2
    assert sum(found.values()) <= MOST, found
