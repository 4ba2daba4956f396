"""Add the C++ kernels to the build; pyproject.toml has everything else about the package.

Without a compiler or torch's headers the package still installs: the portable PyTorch forms then run on the CPU,
and `import detops` says so once.
"""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "tools"))
from kernels import BuildChanged, extensions

setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildChanged},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
