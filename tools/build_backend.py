"""Setuptools' build backend, with one addition: it asks for torch only where torch is not installed.

The C++ kernels need torch's headers, nothing else of it (they stand on its stable ABI). Listing torch as a
build requirement would download a second copy of it for every build.
"""

import sys
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - a build backend is its module's names

sys.path.insert(0, str(Path(__file__).parent))
from torch_headers import torch_root


def _with_torch(requirements):
    return requirements if torch_root() else [*requirements, "torch>=2.10"]


def get_requires_for_build_wheel(config_settings=None):
    """What a wheel needs to be built (PEP 517)."""
    return _with_torch(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings=None):
    """What an editable install needs to be built (PEP 660)."""
    return _with_torch(build_meta.get_requires_for_build_editable(config_settings))
