"""torchvision for the tests, or a skip that says why there is none.

Where it has no build for the PyTorch that is installed, `import torchvision` raises until it is mended, and so does
whatever imports it in passing, as Lightning does. So it may lie in a folder of its own, DETOPS_TORCHVISION, which only
the tests that ask for it look into.
"""

import os
import sys

import pytest

from detops.apps.bench import _torchvision


def load() -> None:
    folder = os.environ.get("DETOPS_TORCHVISION")
    if folder and folder not in sys.path:
        sys.path.append(folder)  # behind one that is installed
    try:
        _torchvision.load("tests")
    except ImportError as error:
        pytest.skip(str(error), allow_module_level=True)
