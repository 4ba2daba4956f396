"""torchvision for the tests, or a skip that says why there is none.

Where it has no build for the PyTorch that is installed, `import torchvision` raises until it is mended, and so does
whatever imports it in passing, as Lightning does. So it may lie in a folder of its own, DETOPS_TORCHVISION, which only
the tests that ask for it look into.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

from detops.apps.bench import _torchvision


def load() -> None:
    """Import torchvision, mended where its compiled operators are missing."""
    _look_into_its_folder()
    try:
        _torchvision.load("tests")
    except ImportError as error:
        pytest.skip(str(error), allow_module_level=True)


def has_compiled_operators() -> bool:
    """Whether its own operators load, not ours in their place; found out without the seconds that its import takes."""
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
