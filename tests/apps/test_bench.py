"""The benchmarks: suites are found, their sides compute the same, and results are complete strict JSON."""

import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import detops
from detops.apps.bench import __main__ as command
from detops.apps.bench import (
    _gfl,
    _yolox,
    draw_gaussians,
    gfl,
    maps_to_rle,
    masks_to_rle,
    paste_masks,
    positive_losses,
    positive_losses_backward,
    resize_normalize_pad,
    runner,
    yolox_loss,
)
from detops.apps.bench._gpu_worker import device_slug

ROOT = Path(__file__).parents[2]
OPS = sorted(op.rstrip("_") for op in detops.env()["ops"])


def read(path):
    return json.loads(path.read_text(), parse_constant=lambda token: pytest.fail(f"{token} is no JSON"))


def test_each_file_with_cases_is_a_suite():
    with_cases = {path.stem for path in runner.FOLDER.glob("[!_]*.py") if "\ndef cases(" in path.read_text()}
    assert set(runner.suites()) == with_cases
    assert len(with_cases) > len(OPS)


@pytest.mark.parametrize("op", OPS)
def test_each_op_has_a_suite_that_runs_its_tests(op):
    assert f"tests/ops/test_{op}.py" in runner.suite(op).TESTS


@pytest.mark.parametrize("name", runner.suites())
def test_a_suite_runs(name):
    module = runner.suite(name)
    assert module.TESTS
    for path in module.TESTS:
        assert (ROOT / path).is_file(), path
    for kernel in {False, runner.has_forms(module)}:
        arguments = {"device": "cpu", "quick": True} | ({"kernel": kernel} if runner.has_forms(module) else {})
        case = next(iter(module.cases(**arguments)))
        assert case.baselines
        case.floor()
        case.ours()


@pytest.mark.parametrize("kernel", [False, True])
def test_all_sides_draw_the_same(monkeypatch, kernel):
    monkeypatch.setattr(draw_gaussians, "CONFIGS", draw_gaussians.CONFIGS[:3])
    for case in draw_gaussians.cases("cpu", kernel=kernel, quick=True):
        drawn = []
        for side in (case.ours, *case.baselines.values()):
            side().zero_()  # with kernel, all draw into the same maps
            drawn.append(side().clone())
        assert drawn[0].max() == 1
        assert (drawn[0] > 0).sum() > 1000
        torch.testing.assert_close(drawn[0], drawn[1])
        torch.testing.assert_close(drawn[0], drawn[2])


def test_all_sides_preprocess_the_same(monkeypatch):
    monkeypatch.setattr(resize_normalize_pad, "SCALE", (66, 40))
    monkeypatch.setattr(resize_normalize_pad, "CONFIGS", {"480x640": ([(48, 64), (130, 97)], {})})
    (case,) = resize_normalize_pad.cases("cpu", kernel=False, quick=True)
    (op_alone,) = resize_normalize_pad.cases("cpu", kernel=True, quick=True)
    images = case.ours().images
    assert images.std() > 0.5
    assert torch.equal(op_alone.ours(), images)
    torch.testing.assert_close(case.baselines["F.interpolate"](), images, rtol=0, atol=1e-4)
    if "OpenCV" in case.baselines:  # which rounds to whole grey levels
        assert (case.baselines["OpenCV"]() - images).abs().max() < 1 / min(resize_normalize_pad.STD)


def test_all_sides_of_gfl_lose_the_same(monkeypatch):
    monkeypatch.setattr(_gfl, "IMAGE", (130, 200))
    for case in gfl.cases("cpu", quick=True):
        for mine, other in zip(case.ours(), case.baselines["loop"](), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)
    for module in (positive_losses, positive_losses_backward):
        for case in module.cases("cpu", quick=True):
            torch.testing.assert_close(case.ours(), case.baselines["batched PyTorch"](), rtol=1e-3, atol=1e-4)


def test_both_sides_of_yolox_lose_the_same(monkeypatch):
    for name, value in dict(BATCH=2, CLASSES=3, SIDE=64).items():
        monkeypatch.setattr(_yolox, name, value)
    (case,) = yolox_loss.cases("cpu", quick=True)
    found = case.ours()
    assert (found[1] > 0).sum() >= 3
    torch.testing.assert_close(found, case.baselines["batched PyTorch"](), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernel", [False, True])
def test_all_sides_paste_the_same(kernel):
    """Except for one pixel in many thousands, which rounding decides."""
    size = (240, 320)
    case = paste_masks.case("", masks_to_rle.usual_sides(size), size, "cpu", kernel, batched=True)
    pasted = case.ours()
    assert pasted.flatten(1).any(1).sum() > 90
    assert torch.equal(pasted, case.baselines["batched PyTorch"]())
    assert (pasted != case.baselines["grid_sample"]()).sum() <= 5


def test_all_sides_encode_the_same_maps():
    case = maps_to_rle.case(40, (120, 160), "cpu", kernel=False)
    encoded = case.ours()
    assert len(encoded) == 300
    assert len({mask["counts"] for mask in encoded}) == 300
    for baseline in case.baselines.values():
        assert baseline() == encoded


def test_all_sides_encode_the_same():
    case = masks_to_rle.rle_case((240, 320), "cpu", kernel=False)
    encoded = case.ours()
    different = [a != b for a, b in zip(encoded, case.baselines["grid_sample"](), strict=True)]
    assert len(encoded) == 100
    assert sum(different) <= 5
    counts, offsets = case.baselines["batched PyTorch"]()
    assert bytes(counts.tolist()) == b"".join(mask["counts"] for mask in encoded)
    assert offsets[-1] == len(counts)


def test_the_sides_alternate():
    calls = []
    timings = runner.measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0, cuda=False)
    assert set(timings) == {"a", "b"}
    changes = sum(x != y for x, y in itertools.pairwise(calls))
    assert changes >= 5


def test_the_runner_counts():
    x = torch.ones(1000)
    case = runner.Case("case", lambda: x.view(10, 100) * 2, x.clone, {"reads": lambda: (x + 1).sum().item()}, "copy")
    result = runner.run_case(case, 0.0, cuda=False)
    assert result.syncs == {"ours": 0, "reads": 1}
    assert result.launches == {"ours": 1, "reads": 2}
    assert 4000 <= result.peak_extra_bytes["ours"] < 5000
    assert result.floor == "copy"
    for timing in result.timings.values():
        assert 0 < timing.low <= timing.median <= timing.high
        assert timing.samples >= 3
    assert result.ratios["reads / ours"] == result.timings["reads"].median / result.timings["ours"].median


@pytest.mark.parametrize("kernel", [False, True])
def test_results(monkeypatch, tmp_path, capsys, kernel):
    tiny = [draw_gaussians.Config("tiny", 2, 3, 8, 8, 4, (0, 2), "classwise")]
    monkeypatch.setattr(draw_gaussians, "CONFIGS", tiny)
    monkeypatch.setattr(runner, "keep_freed_memory", lambda: None)
    path = tmp_path / "results" / "tiny.json"
    runner.main("draw_gaussians", kernel=kernel, json_path=path, quick=True, device="cpu", tests="passed")
    record = read(path)
    assert record["env"]["torch"] == torch.__version__
    assert record["env"]["cpu"]["threads"] == torch.get_num_threads()
    assert record["device"] == "cpu"
    assert record["kernel_only"] is kernel
    assert record["tests"] == "passed"
    assert record["floor"] == "zero fill"
    assert record["commit"] == runner.commit()
    (result,) = record["results"]
    assert result["syncs"]["ours"] == 0
    assert result["syncs"]["loop"] > 0
    assert result["launches"]["ours"] == 1 + (not kernel)  # the maps are filled with zeros
    assert min(result["launches"]["loop"], result["launches"]["batched PyTorch"]) > 10
    assert set(result["timings"]) == {"floor", "ours", "batched PyTorch", "loop"}
    assert result["timings"]["loop"]["median"] / result["timings"]["ours"]["median"] == pytest.approx(
        result["ratios"]["loop / ours"]
    )
    printed = capsys.readouterr().out
    assert "tiny" in printed
    assert "batched PyTorch" in printed


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_and_its_changes(monkeypatch, tmp_path):
    folder = tmp_path / "src" / "detops" / "apps" / "bench"
    folder.mkdir(parents=True)
    (folder / "code.py").write_text("a = 1\n")
    monkeypatch.setattr(runner, "FOLDER", folder)
    monkeypatch.delenv("DETOPS_COMMIT", raising=False)
    assert runner.commit() is None
    monkeypatch.setenv("DETOPS_COMMIT", "abc")
    assert runner.commit() == {"hash": "abc", "dirty": None}
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "result.json").write_text("{}")  # no change of what is measured
    assert runner.commit() == {"hash": head, "dirty": False}
    (folder / "code.py").write_text("a = 2\n")
    assert runner.commit() == {"hash": head, "dirty": True}
    monkeypatch.setattr(runner, "FOLDER", tmp_path / "venv" / "lib" / "detops" / "apps" / "bench")
    assert runner.working_copy() is None


def test_the_files_of_results():
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert len(files) > len(OPS)
    for path in files:
        record = read(path)
        kernel = path.stem.endswith("_kernel")
        if record["device"] == "cuda":  # of `make gpu`
            assert path.stem == f"{record['suite']}_cuda_{device_slug(record['gpu']['name'])}"
            assert not record.get("rehearsal")
            continue
        assert path.stem == f"{record['suite']}_{record['device']}" + "_kernel" * kernel
        assert {"date", "unit", "env"} <= set(record)
        if record["suite"] == "inference":
            continue
        assert record["kernel_only"] is runner.is_op_alone(record["suite"], kernel)
        for result in record["results"]:
            for timing in result["timings"].values():
                assert timing["low"] <= timing["median"] <= timing["high"]
            sides = set(result["timings"]) - {"floor"}
            assert set(result["syncs"]) == set(result["peak_extra_bytes"]) == sides


def test_what_is_no_suite():
    with pytest.raises(ValueError, match=r"suite: expected one of assignment, atss_match, .*yolox_loss, got 'heat'"):
        runner.main("heat")
    with pytest.raises(ValueError, match="kernel: the suite gfl has one form only"):
        runner.main("gfl", kernel=True)


@pytest.fixture
def fakes(monkeypatch):
    """Three suites: one with two forms, one with one, one that raises."""

    def both(device, kernel, quick):
        yield runner.Case("op" if kernel else "public", lambda: None, lambda: None, {}, "nothing")

    def one(device, quick):
        yield runner.Case("one", lambda: None, lambda: None, {}, "nothing")

    def broken(device, quick):
        raise RuntimeError("out of luck")

    modules = {"both": both, "broken": broken, "one": one}
    suites = {name: SimpleNamespace(cases=cases, TESTS=(f"test_{name}.py",)) for name, cases in modules.items()}
    monkeypatch.setattr(runner, "suites", lambda: suites)
    monkeypatch.setattr(runner, "keep_freed_memory", lambda: None)


def test_all_forms_of_all_suites(fakes, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "tested", lambda files: "failed" if files == ("test_one.py",) else "passed")
    arguments = ["--device", "cpu", "--quick", "--out", str(tmp_path)]
    assert command.main(arguments) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both_cpu.json", "both_cpu_kernel.json"]
    assert read(tmp_path / "both_cpu_kernel.json")["results"][0]["case"] == "op"
    printed = capsys.readouterr()
    assert "one: not measured, as its tests fail" in printed.out
    assert "out of luck" in printed.err
    assert command.main([*arguments, "both"]) == 0
    assert command.main([*arguments, "--skip-tests", "one", "both"]) == 0
    assert read(tmp_path / "one_cpu.json")["tests"] == "not run"


def test_the_list_and_what_is_refused(fakes, capsys):
    assert command.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == ["both", "broken", "one"]
    with pytest.raises(SystemExit):
        command.main(["another"])
    assert "suite: expected one of both, broken, one, got 'another'" in capsys.readouterr().err


def test_the_tests_of_a_suite_run_in_the_working_copy(monkeypatch, tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_good.py").write_text("def test(): pass\n")
    (tmp_path / "tests" / "test_bad.py").write_text("def test(): assert False\n")
    monkeypatch.setattr(runner, "working_copy", lambda: tmp_path)
    assert command.tested(["tests/test_good.py"]) == "passed"
    assert command.tested(["tests/test_good.py", "tests/test_bad.py"]) == "failed"
    monkeypatch.setattr(runner, "working_copy", lambda: tmp_path / "installed")
    assert command.tested(["tests/test_good.py"]) == "not run"


def test_it_runs_with_torch_alone():
    """On a machine without the extras it names what is missing, measures, and reports errors by its exit code."""
    missing = ["rich", "typer", "numpy", "PIL", "pycocotools", "torchvision", "lightning", "pytest", "hypothesis"]
    code = f"""
import importlib.util, sys
find = importlib.util.find_spec
class Nothing:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Nothing)
importlib.util.find_spec = lambda name, package=None: None if name in {missing} else find(name, package)
from detops.apps.bench import scale_gradient
from detops.apps.bench.__main__ import main
scale_gradient.SHAPE = (2, 3)
print("exit code", main(["scale_gradient", "--quick", "--device", "cpu"]))
"""
    compiled = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # that needs numpy
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=compiled)
    assert "tests not run: no pytest" in done.stdout, done.stderr
    assert "copy of gradient" in done.stdout, done.stderr
    assert "exit code 1" in done.stdout


def test_inference_is_no_suite_of_cases():
    assert "inference" not in runner.suites()
    assert hasattr(importlib.import_module("detops.apps.bench.inference"), "run")
