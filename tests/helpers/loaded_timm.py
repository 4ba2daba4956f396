"""timm for the tests, or a skip that gives the reason. It needs torchvision, and may be in the folder of that."""

from typing import Any

import pytest
from loaded_torchvision import load as load_torchvision


def load() -> Any:
    """Import timm."""
    load_torchvision()
    return pytest.importorskip("timm", reason='timm is not installed: pip install "detops[timm]"')
