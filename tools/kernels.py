"""The extension that holds every C++ kernel. Run as a script, this builds only the extension, into src/detops.

DETOPS_ASAN=1 builds it under AddressSanitizer and UBSan.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent))
from torch_headers import torch_root

FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
FLAGS += ["-Wall", "-Wextra", "-Wno-psabi"]
ASAN_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1", "-DDETOPS_NO_CLONES"]


def extensions() -> list[Extension]:
    """Return the extension in a list, or an empty list if torch's headers are missing."""
    root = torch_root()
    if root is None:
        print("detops: torch's headers were not found; building without C++ kernels", file=sys.stderr)
        return []
    asan = os.environ.get("DETOPS_ASAN") == "1"
    flags = FLAGS + (ASAN_FLAGS if asan else [])
    link = ["-fsanitize=address,undefined"] if asan else []
    if sys.platform == "linux" and not asan:
        link = ["-Wl,-s"]  # without symbols for a debugger: a ninth of the size
    include = ["-isystem", str(root / "include")]  # no warnings from headers that are not ours
    if sys.platform == "win32":
        flags, include = ["/std:c++17", "/O2"], ["/I", str(root / "include")]
    return [
        Extension(
            "detops._C",
            sources=sorted(str(path) for path in Path("csrc").glob("*.cpp")),
            depends=[__file__, *sorted(str(path) for path in Path("csrc").glob("*.h"))],
            # No search path is recorded: `import torch` has loaded this library by then.
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


class BuildInParallel(build_ext):
    """setuptools' own command, which compiles one source after another, with all cores."""

    def build_extension(self, ext: Extension) -> None:
        """Compile the sources, and link them."""
        compile_some = self.compiler.compile

        def compile_all(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [made for some in pool.map(lambda one: compile_some([one], **options), sources) for made in some]

        self.compiler.compile = compile_all
        super().build_extension(ext)


def build(folder: str | None = None) -> None:
    """Build into src/detops, or into `folder`/detops; reads no pyproject.toml, so any setuptools works."""
    modules = extensions()
    for module in modules:
        module.optional = False  # whoever builds only the kernels wants to see why they fail
    distribution = Distribution({"name": "detops", "package_dir": {"": "src"}, "ext_modules": modules})
    distribution.cmdclass["build_ext"] = BuildInParallel
    command = distribution.get_command_obj("build_ext")
    command.inplace = folder is None
    command.build_lib = folder
    command.build_temp = f"{folder or 'build'}/objects"
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    build(*sys.argv[1:2])
