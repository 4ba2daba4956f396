"""Transformers for the tests, or a skip that says why there is none."""

import importlib
from types import ModuleType

import pytest


def load() -> ModuleType:
    """Import `transformers` and its losses, which need SciPy and no torchvision without its operators."""
    try:
        importlib.import_module("scipy.optimize")
        importlib.import_module("transformers.loss.loss_utils")
        return importlib.import_module("transformers")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs transformers and scipy: {error}", allow_module_level=True)
