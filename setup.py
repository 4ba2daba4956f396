"""Builds the C++ kernels; all else about the package stands in pyproject.toml.

DETOPS_ASAN=1 builds them under AddressSanitizer. Without a compiler or torch's headers the package still
installs: the portable PyTorch forms then run on the CPU, and `import detops` says so once.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).parent / "tools"))
from torch_headers import torch_root

FLAGS = [
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
]
ASAN_FLAGS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-g",
    "-O1",
    "-DDETOPS_NO_CLONES",
]


def extensions() -> list[Extension]:
    """The one extension that holds every C++ kernel, or nothing where torch's headers are missing."""
    root = torch_root()
    if root is None:
        print("detops: torch's headers were not found; building without C++ kernels", file=sys.stderr)
        return []
    asan = os.environ.get("DETOPS_ASAN") == "1"
    flags = FLAGS + (ASAN_FLAGS if asan else [])
    include = ["-isystem", str(root / "include")]  # no warnings from headers that are not ours
    if sys.platform == "win32":
        flags, include = ["/std:c++17", "/O2"], ["/I", str(root / "include")]
    link = ["-fsanitize=address,undefined"] if asan else []
    return [
        Extension(
            "detops._C",
            sources=sorted(str(path) for path in Path("csrc").glob("*.cpp")),
            depends=["setup.py", *sorted(str(path) for path in Path("csrc").glob("*.h"))],
            # No search path for it is recorded: `import torch` has loaded it before.
            library_dirs=[str(root / "lib")],
            libraries=["torch_cpu"],
            extra_compile_args=flags + include,
            extra_link_args=link,
            define_macros=[
                ("TORCH_TARGET_VERSION", "0x020a000000000000"),  # the ABI of torch 2.10 and all later ones
                ("Py_LIMITED_API", "0x030b0000"),
                ("DETOPS_FLAGS", '"' + " ".join(flags) + '"'),
            ],
            py_limited_api=True,
            optional=True,
        )
    ]


setup(ext_modules=extensions(), options={"bdist_wheel": {"py_limited_api": "cp311"}})
