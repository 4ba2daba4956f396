"""The package as a whole: its names, a light import, and installing it where nothing can be compiled."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from signatures import public_signatures

import detops

ROOT = Path(__file__).parents[1]


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )


def test_no_public_name_vanishes():
    names = json.loads((Path(__file__).parent / "public_names.json").read_text())
    assert sorted(detops.__all__) == names
    for name in names:
        assert name == "__version__" or getattr(detops, name).__doc__, f"{name} has no docstring"


def test_no_public_signature_changes_unnoticed() -> None:
    """Regenerate the file where a change is meant: python tests/helpers/signatures.py > tests/public_signatures.json"""
    kept = json.loads((Path(__file__).parent / "public_signatures.json").read_text())
    found = public_signatures()
    changed = {name: (kept.get(name), found.get(name)) for name in kept | found if kept.get(name) != found.get(name)}
    assert not changed


def test_the_import_is_light():
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


def test_without_the_library_the_cpu_runs_portable_code(tmp_path):
    """A copy of the package without its C++ library: it warns once, says so in env(), and draws the same."""
    shutil.copytree(
        Path(detops.__file__).parent, tmp_path / "detops", ignore=shutil.ignore_patterns("_C*", "__pycache__")
    )
    code = """
import torch, detops
print(detops.__file__)
print(detops.env()["ops"]["draw_gaussians_"]["cpu"], "|", detops.env()["build"]["library"])
drawn = detops.draw_heatmap(torch.zeros(1, 5, 5), torch.tensor([[2, 2]]), torch.tensor([1]), torch.tensor([0]))
print(abs(float(drawn.sum()) - 1.61465) < 1e-4)
"""
    result = run(code, PYTHONPATH=str(tmp_path))
    lines = result.stdout.splitlines()
    assert lines[0].startswith(str(tmp_path)), result.stderr
    assert lines[1].startswith("portable | not built")
    assert lines[2] == "True"
    assert result.stderr.count("UserWarning: detops: the library of C++ kernels was not built") == 1


def test_a_library_that_does_not_load_is_not_fatal(tmp_path):
    shutil.copytree(
        Path(detops.__file__).parent, tmp_path / "detops", ignore=shutil.ignore_patterns("_C*", "__pycache__")
    )
    (tmp_path / "detops" / "_C.abi3.so").write_bytes(b"no library")
    result = run("import detops", PYTHONPATH=str(tmp_path))
    assert result.returncode == 0
    assert "could not be loaded" in result.stderr


@pytest.mark.parametrize("op", sorted(detops.env()["ops"]))
def test_every_op_has_all_its_places(op: str) -> None:
    name = op.rstrip("_")
    places = {
        "src/detops/reference/{}.py": f"def {op}(",
        "src/detops/portable/{}.py": f"def {op}(",
        "src/detops/kernels/{}.py": f"def {op}(",
        "csrc/{}.cpp": f'm.impl("{op}"',
        "tests/ops/test_{}.py": op,
        "src/detops/apps/bench/{}.py": "def cases(",
    }
    files = {ROOT / place.format(name): content for place, content in places.items()}
    assert [path for path, content in files.items() if not path.exists() or content not in path.read_text()] == []
