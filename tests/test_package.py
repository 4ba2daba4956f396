"""The package as a whole: its public face, what it imports, all places of an op, and installing it without a compiler."""

import ast
import difflib
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import signatures

import detops

ROOT = Path(__file__).parents[1]
PACKAGE = Path(detops.__file__).parent
SIGNATURES = Path(__file__).parent / "public_signatures.json"
OPS = sorted(detops.env()["ops"])


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )


def test_public_signatures() -> None:
    """Names, parameters, defaults and public methods are as the file has them."""
    expected, found = SIGNATURES.read_text(), signatures.as_text(signatures.public_signatures())
    lines = difflib.unified_diff(expected.splitlines(), found.splitlines(), SIGNATURES.name, "detops", lineterm="", n=1)
    diff = "\n".join(lines)
    assert not diff, (
        f"the public interface has changed:\n{diff}\n\nIf that is meant, say so in CHANGELOG.md, and:\n"
        "    python tests/helpers/signatures.py > tests/public_signatures.json"
    )


@pytest.mark.parametrize("module", signatures.MODULES)
def test_every_public_name_has_a_docstring(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in found.__all__ if name != "__version__" and not getattr(found, name).__doc__] == []


def test_the_import_is_light() -> None:
    extras = [
        "triton",
        "PIL",
        "matplotlib",
        "numpy.testing",
        "pycocotools",
        "rich",
        "typer",
        "lightning",
        "torchvision",
    ]
    result = run(f"import sys, detops; print([n for n in {extras} if n in sys.modules])")
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
    assert not result.stderr


def imports(path: Path) -> Iterator[str]:
    """The top-level packages that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield (node.module or "").split(".")[0]


USUAL = {"torch", "detops", *sys.stdlib_module_names}
MORE = {"kernels": {"triton"}, "integrations": {"torchvision"}}
BELOW_THE_APPS = sorted({path.name for path in PACKAGE.iterdir() if path.suffix in ("", ".py")} - {"apps", "cli"})


@pytest.mark.parametrize("room", [room for room in BELOW_THE_APPS if room != "__pycache__"])
def test_below_the_apps_nothing_needs_an_extra(room: str) -> None:
    """Imports inside functions count too."""
    files = [PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).rglob("*.py"))
    assert files
    found = {(str(path.relative_to(PACKAGE)), name) for path in files for name in imports(path)}
    assert sorted(pair for pair in found if pair[1] not in USUAL | MORE.get(room, set())) == []


WRONG = {  # file -> an import that the layout forbids
    "geometry/boxes.py": "import numpy",
    "portable/nms_mask.py": "from detops.reference import nms_mask",
    "decode/centernet.py": "from detops.criteria import gfl",
    "another_room.py": "import torch",
}


def test_the_layout_is_enforced(tmp_path: Path) -> None:
    """import-linter finds imports that go up, imports of an extra or of the reference, and modules without a floor."""
    pytest.importorskip("importlinter")
    shutil.copytree(PACKAGE, tmp_path / "detops", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]

    def lint() -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    assert lint().returncode == 0
    for name, line in WRONG.items():
        with (tmp_path / "detops" / name).open("a") as file:
            file.write(f"\n{line}\n")
    result = lint()
    assert result.returncode != 0
    for name in WRONG:
        module = name.removesuffix(".py").replace("/", ".")
        assert re.search(rf"\b{module}\b", result.stdout), f"{name} is not found:\n{result.stdout}"


@pytest.fixture
def copy_without_library(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "detops", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    return tmp_path


def test_without_the_library_the_cpu_runs_portable_code(copy_without_library: Path) -> None:
    """A copy of the package without its C++ library warns once, reports it in env(), and draws the same."""
    code = """
import torch, detops
print(detops.__file__)
print(detops.env()["ops"]["draw_gaussians_"]["cpu"], "|", detops.env()["build"]["library"])
drawn = detops.draw_heatmap(torch.zeros(1, 5, 5), torch.tensor([[2, 2]]), torch.tensor([1]), torch.tensor([0]))
print(abs(float(drawn.sum()) - 1.61465) < 1e-4)
"""
    result = run(code, PYTHONPATH=str(copy_without_library), DETOPS_LIBRARY="")
    lines = result.stdout.splitlines()
    assert lines[0].startswith(str(copy_without_library)), result.stderr
    assert lines[1].startswith("portable | not built")
    assert lines[2] == "True"
    assert result.stderr.count("UserWarning: detops: the library of C++ kernels was not built") == 1


def test_a_library_that_does_not_load_is_not_fatal(copy_without_library: Path) -> None:
    (copy_without_library / "detops" / "_C.abi3.so").write_bytes(b"no library")
    result = run("import detops", PYTHONPATH=str(copy_without_library), DETOPS_LIBRARY="")
    assert result.returncode == 0
    assert "could not be loaded" in result.stderr


PLACES = {  # where an op stands, and what the file there says of it
    "src/detops/ops.py": r"^def {op}\(",
    "src/detops/reference/{name}.py": r"^def {op}\(",
    "src/detops/portable/{name}.py": r"^def {op}\(",
    "src/detops/kernels/{name}.py": r"^def {op}\(",
    "csrc/{name}.cpp": r'm\.impl\("{op}"',
    "tests/ops/test_{name}.py": r'^op = Op\("{op}"\)$',
    "src/detops/apps/bench/{name}.py": r"^def cases\(",
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("place", PLACES)
def test_every_op_has_all_its_places(op: str, place: str) -> None:
    path = ROOT / place.format(name=op.rstrip("_"))
    assert path.is_file()
    assert re.search(PLACES[place].format(op=op), path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("op", OPS)
def test_the_cpu_runs_cpp(op: str) -> None:
    """Without the library the tests of the C++ form would compare the portable form with the reference."""
    assert detops.env()["ops"][op]["cpu"] == "C++"


def test_a_build_compiles_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that is newer than its object, or all, if a header or the options changed; nothing if nothing did."""
    pytest.importorskip("setuptools")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    kernels = importlib.import_module("kernels")
    compiled: list[str] = []

    class Compiler:
        def object_filenames(self, sources: list[str], output_dir: str) -> list[str]:
            return [f"{output_dir}/{Path(source).stem}.o" for source in sources]

        def compile(self, sources: list[str], output_dir: str, flags: str) -> list[str]:
            compiled.extend(Path(source).name for source in sources)
            objects = self.object_filenames(sources, output_dir)
            for path in objects:
                touch(Path(path), 10)
            return objects

    def touch(path: Path, time: int) -> None:
        path.write_text("")
        os.utime(path, (time, time))

    def build(flags: str = "-O3") -> list[str]:
        compiled.clear()
        options = {"output_dir": str(tmp_path), "flags": flags}
        made = kernels.compile_changed(Compiler(), [str(path) for path in sources], options, [header])
        assert made == [str(tmp_path / f"{name}.o") for name in "ab"]
        return sorted(compiled)

    sources, header = [tmp_path / "a.cpp", tmp_path / "b.cpp"], tmp_path / "shared.h"
    for path in (*sources, header):
        touch(path, 1)
    assert build() == ["a.cpp", "b.cpp"]
    assert build() == []
    touch(sources[1], 11)
    assert build() == ["b.cpp"]
    touch(sources[1], 2)
    touch(header, 11)
    assert build() == ["a.cpp", "b.cpp"]
    touch(header, 2)
    assert build("-O2") == ["a.cpp", "b.cpp"]
    assert build("-O2") == []
    (tmp_path / "a.o").unlink()
    assert build("-O2") == ["a.cpp"]
