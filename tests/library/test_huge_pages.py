"""Large results of C++ kernels lie in huge pages where Linux has them."""

import re
from pathlib import Path

import pytest
import torch

from detops import ops
from detops.diagnostics.environment import library_path

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags_at(address: int) -> list[str]:
    """Return the kernel's flags of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


@pytest.mark.skipif(not SETTING.exists(), reason="this system has no huge pages on request")
@pytest.mark.skipif(library_path() is None, reason="the C++ kernels were not built")
def test_large_results_are_advised():
    maps, index = torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, dtype=torch.int64)
    points = torch.rand(1, 4, 1 << 20, 2)
    values = ops.maps_at_points(maps=maps, index=index, points=points, nearest=False, border=True)
    assert "hg" in flags_at(values.data_ptr() + values.nbytes // 2)
