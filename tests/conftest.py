"""What all tests share: the Triton interpreter where there is no GPU, and the path to the helpers."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# The same examples in every run, so that a failure is one of the change at hand; DETOPS_EXPLORE=1 draws new ones.
settings.register_profile("fixed", derandomize=True)
if os.environ.get("DETOPS_EXPLORE") != "1":
    settings.load_profile("fixed")

if not torch.cuda.is_available():
    # Read when Triton is imported, which detops does not do by itself.
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

HELPERS = Path(__file__).parent / "helpers"
sys.path.insert(0, str(HELPERS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA or ROCm device"))
