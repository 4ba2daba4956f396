"""torchvision for the tests, or a skip that gives the reason.

If it was not built for the installed PyTorch, `import torchvision` raises an error until its operators are replaced, and
so does every package that imports it, such as Lightning. So it may lie in a folder of its own, DETOPS_TORCHVISION, which
only the tests that need it search.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

from detops.apps.bench import _torchvision


def load() -> None:
    """Import torchvision, with replacements for compiled operators that are missing."""
    _look_into_its_folder()
    try:
        _torchvision.load("tests")
    except ImportError as error:
        pytest.skip(str(error), allow_module_level=True)


def has_compiled_operators() -> bool:
    """Return whether its own operators load; found out without its import, which takes seconds."""
    _look_into_its_folder()
    if "torchvision.extension" in sys.modules:
        return bool(sys.modules["torchvision.extension"]._has_ops())
    spec = importlib.util.find_spec("torchvision")
    libraries = list(Path(spec.origin).parent.glob("_C.*")) if spec and spec.origin else []
    try:
        for library in libraries:
            torch.ops.load_library(library)
    except OSError:
        return False
    return bool(libraries)


def _look_into_its_folder() -> None:
    folder = os.environ.get("DETOPS_TORCHVISION")
    if folder and folder not in sys.path:
        sys.path.append(folder)  # behind one that is installed
