"""The extension that holds every C++ kernel. Run as a script, this builds only the extension, into src/detops.

A second build compiles only what changed. DETOPS_ASAN=1 builds it under AddressSanitizer and UBSan.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
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


def compile_changed(compiler: Any, sources: list[str], options: dict[str, Any], inputs: list[Path]) -> list[str]:
    """Compile sources with all cores, but for those whose objects are newer than all that they are made of.

    Beside each object lies a note of what made it: the compiler, its options, and torch.

    Args:
        compiler: As setuptools has it: what compiles sources and knows their objects.
        sources: Paths of the sources.
        options: What the compiler takes beside the sources; "output_dir" is where objects go.
        inputs: Files that all sources depend on.

    Returns:
        Paths of the objects.
    """
    root = torch_root()
    torch_version = (root / "version.py").read_text() if root else ""
    made_by = repr((getattr(compiler, "compiler_so", None), sorted(options.items(), key=str), str(root), torch_version))

    def compile_one(source: str) -> list[str]:
        (made,) = compiler.object_filenames([source], output_dir=options["output_dir"])
        note, newest = Path(f"{made}.made-by"), max(path.stat().st_mtime for path in (Path(source), *inputs))
        known = note.exists() and note.read_text() == made_by
        if known and Path(made).exists() and Path(made).stat().st_mtime > newest:
            return [made]
        note.unlink(missing_ok=True)
        objects: list[str] = compiler.compile([source], **options)
        note.write_text(made_by)
        return objects

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [made for some in pool.map(compile_one, sources) for made in some]


class BuildChanged(build_ext):
    """setuptools' own command, which compiles all sources one after another, with what changed and all cores."""

    def build_extension(self, ext: Extension) -> None:
        """Compile the sources, and link them."""
        inputs = [*Path("csrc").glob("*.h"), *Path(__file__).parent.glob("*.py")]
        plain = SimpleNamespace(
            compile=self.compiler.compile,
            object_filenames=self.compiler.object_filenames,
            compiler_so=getattr(self.compiler, "compiler_so", None),
        )
        self.compiler.compile = lambda sources, **options: compile_changed(plain, sources, options, inputs)
        super().build_extension(ext)


def build(folder: str | None = None) -> None:
    """Build into src/detops, or into `folder`/detops; reads no pyproject.toml, so any setuptools works."""
    modules = extensions()
    for module in modules:
        module.optional = False  # whoever builds only the kernels wants to see why they fail
    distribution = Distribution({"name": "detops", "package_dir": {"": "src"}, "ext_modules": modules})
    distribution.cmdclass["build_ext"] = BuildChanged
    command = distribution.get_command_obj("build_ext")
    command.inplace = folder is None
    command.build_lib = folder
    command.build_temp = f"{folder or 'build'}/objects"
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    build(*sys.argv[1:2])
