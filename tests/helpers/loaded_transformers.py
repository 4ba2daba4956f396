"""Transformers for the tests, or a skip that says why there is none."""

import importlib
import os
import sys
from types import ModuleType

import pytest


def load() -> ModuleType:
    """Import `transformers` and its losses, which need SciPy and no torchvision without its operators."""
    # A process that a test starts searches what its parent does, but has not replaced torchvision's operators.
    folder = os.environ.get("DETOPS_TORCHVISION")
    if folder in sys.path and "torchvision" not in sys.modules:
        sys.path.remove(folder)
    try:
        importlib.import_module("scipy.optimize")
        importlib.import_module("transformers.loss.loss_utils")
        return importlib.import_module("transformers")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs transformers and scipy: {error}", allow_module_level=True)
