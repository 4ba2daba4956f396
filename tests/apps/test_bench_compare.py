"""`--compare`: two commits of a small working copy, one in the former layout, measured in turns."""

import subprocess
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from detops import cli
from detops.apps.bench import __main__ as command
from detops.apps.bench import _compare, runner
from detops.apps.bench._compare import Pair

SUITE = """
import time
from types import SimpleNamespace


def cases(device, {arguments}):
    assert device == "cpu"
    for name, milliseconds in {times}.items():
        yield SimpleNamespace(name=name, ours=lambda milliseconds=milliseconds: time.sleep(milliseconds / 1000))
"""
KERNELS = """
from pathlib import Path
with open(Path(__file__).parents[1] / "built", "a") as file:
    file.write("once ")
"""


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, check=True)


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def copy(monkeypatch, tmp_path):
    """A working copy whose first commit has the suite `tiny` in its former place."""
    root = tmp_path / "copy"
    package = root / "src" / "detops"
    for folder in (package, package / "apps"):
        write(folder / "__init__.py")
    write(root / "tools" / "kernels.py", KERNELS)
    write(root / ".gitignore", "/build/\n__pycache__/\nbuilt\n")
    former = {"faster": 40, "slower": 4, "gone": 1}
    write(package / "apps" / "bench_tiny.py", SUITE.format(arguments="kernel, quick", times=former))
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    git(root, "rm", "-q", "src/detops/apps/bench_tiny.py")
    now = {"slower": 40, "new": 1, "faster": 4}
    write(package / "apps" / "bench" / "__init__.py")
    write(package / "apps" / "bench" / "tiny.py", SUITE.format(arguments="quick", times=now))
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "second")
    suites = {"tiny": SimpleNamespace(cases=lambda device, quick: None, TESTS=())}
    monkeypatch.setattr(runner, "suites", lambda: suites)
    monkeypatch.setattr(runner, "working_copy", lambda: root)
    monkeypatch.delenv("DETOPS_LIBRARY", raising=False)
    return root


def test_two_commits(copy, capsys):
    assert _compare.compare([], "HEAD~1", quick=True, device="cpu", fail_above=100)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["faster"].split()[-1] == "faster"
    assert float(lines["faster"].split()[-2]) < 0.5
    assert lines["slower"].split()[-1] == "slower"
    assert float(lines["slower"].split()[-2]) > 2
    assert "no such case" in lines["new"]
    assert "gone" not in lines
    (folder,) = (copy / "build" / "compare").iterdir()
    assert (folder / "built").read_text() == "once "
    assert (copy / "built").read_text() == "once "
    assert _compare.built(copy, folder.name) == folder
    assert (folder / "built").read_text() == "once "


def test_a_case_that_is_slower_than_allowed(copy, monkeypatch):
    arguments = ["--device", "cpu", "--quick", "tiny", "--compare", "HEAD~1", "--fail-above", "2"]
    result = CliRunner().invoke(cli.app, ["bench", *arguments])
    assert result.exit_code == 1
    assert "slower than 2.0 times: tiny, slower:" in result.output
    assert "tiny, faster" not in result.output
    called = []
    monkeypatch.setattr(_compare, "compare", lambda *given: called.append(given))
    assert command.main(arguments) == 1
    assert called == [(["tiny"], "HEAD~1", False, True, "cpu", 2.0)]


def test_a_suite_that_was_not_there(copy, monkeypatch, capsys):
    write(copy / "src" / "detops" / "apps" / "bench" / "other.py", SUITE.format(arguments="quick", times={"one": 1}))
    monkeypatch.setattr(runner, "suites", lambda: {"other": SimpleNamespace(cases=lambda device, quick: None)})
    assert _compare.compare(["other"], "HEAD", quick=True, device="cpu", fail_above=1.0)
    assert "no such suite there" in capsys.readouterr().out


def test_what_is_refused(copy, monkeypatch):
    with pytest.raises(ValueError, match="--compare: no commit 'nothing' in "):
        _compare.compare(["tiny"], "nothing", device="cpu")
    with pytest.raises(ValueError, match="suite: expected one of tiny, got 'large'"):
        _compare.compare(["large"], "HEAD", device="cpu")
    write(copy / "tools" / "kernels.py", "raise SystemExit('no compiler')")
    with pytest.raises(ValueError, match=r"(?s)tools/kernels.py failed in .*no compiler"):
        _compare.compare(["tiny"], "HEAD", device="cpu")
    monkeypatch.setattr(runner, "working_copy", lambda: None)
    with pytest.raises(ValueError, match="--compare: detops is not imported from a git working copy"):
        _compare.compare(["tiny"], "HEAD", device="cpu")


def test_an_error_on_one_side_is_told(copy):
    write(
        copy / "src" / "detops" / "apps" / "bench" / "tiny.py", "def cases(device, quick):\n    raise OSError('ah')\n"
    )
    with pytest.raises(RuntimeError, match="OSError: ah"):
        _compare.compare(["tiny"], "HEAD", quick=True, device="cpu")


@pytest.mark.parametrize(
    ("before", "now", "ratio", "verdict"),
    [
        ([1.0] * 8, [1.1] * 8, 1.1, "slower"),
        ([1.0] * 8, [0.5] * 8, 0.5, "faster"),
        ([1.0] * 8, [1.1] * 7 + [0.9], 1.1, ""),  # a chance of 18 in 256
        ([1.0] * 7, [2.0] * 7, 2.0, ""),  # of 2 in 128: too few turns
        ([1.0] * 20, [1.0] * 20, 1.0, ""),
        ([1.0, 9.0] * 5, [1.2, 10.8] * 5, 1.2, "slower"),  # though the times vary ninefold
    ],
)
def test_the_noise(before, now, ratio, verdict):
    pair = Pair("suite", "case", before, now)
    assert pair.ratio == pytest.approx(ratio)
    assert pair.verdict == verdict


def test_former_names():
    assert _compare.former_modules("draw_gaussians")[-1] == "detops.apps.bench_heatmap"
    assert "detops.apps.bench.yolox_loss" in _compare.former_modules("yolox")
    unknown = (set(_compare.FORMER_NAMES) | set(_compare.FORMER_OPS)) - set(runner.suites())
    assert not unknown
