"""Setuptools' build backend, with one addition: it requires torch only if torch is not installed.

The C++ kernels need only torch's headers (they use its stable ABI). Listing torch as a build requirement would download
a second copy of it for every build.
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
    """Return the requirements for building a wheel (PEP 517)."""
    return _with_torch(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings=None):
    """Return the requirements for building an editable install (PEP 660)."""
    return _with_torch(build_meta.get_requires_for_build_editable(config_settings))
