"""Every refusal is one line that says what, where and what to do; only a fault of detops has a traceback."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from predict_runs import OneBox, call, write_run, write_shapes
from typer.testing import CliRunner

from detops import cli
from detops.apps import choose_device, import_function
from detops.apps.errors import explain
from detops.arguments import flat, require_module

image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("lightning")
pytest.importorskip("pycocotools")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data"))


@pytest.fixture
def box_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", OneBox(2, 8), "predict_runs:OneBox")


def refused(*arguments: object) -> str:
    """The line of a command that is refused."""
    code, output = call(*arguments)
    assert code == 2, output
    assert "Traceback" not in output
    lines = [line for line in output.splitlines() if line.strip()]
    assert lines[-1].startswith("error: "), output
    return lines[-1]


SMALL = ("--size", "64x64", "--width", 8, "--batch-size", 2, "--epochs", 1, "--accelerator", "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--accelerator", "banana"), "accelerator, devices, strategy, nodes or precision: "),
        (("--devices", "banana"), "accelerator, devices, strategy, nodes or precision: "),
        (("--devices", "99", "--accelerator", "cpu"), "--devices 99: would be as many processes, on "),
        (("--devices", "0"), "accelerator, devices, strategy, nodes or precision: "),
        (("--strategy", "banana"), "accelerator, devices, strategy, nodes or precision: "),
        (("--precision", "banana"), "accelerator, devices, strategy, nodes or precision: "),
        (("--on-nonfinite", "pray"), "on-nonfinite: expected stop or skip, got 'pray'"),
        (("--lr", "nan"), "--lr: expected a finite number, got nan"),
        (("--lr", "-1"), "--lr: expected more than 0, got -1.0"),
        (("--memory", "inf"), "--memory: expected a finite number, got inf"),
        (("--temperature", "4"), "--temperature: belongs to --detector ld, and this is centernet"),
        (("--teacher", "x", "--ld-region", "main"), "--teacher, --ld-region: belongs to --detector ld"),
        (("--l1-epochs", "4"), "--l1-epochs: belongs to --detector yolox, not centernet"),
        (("--train-images", "x"), "--data: the four paths of annotations and images stand in its place"),
        (("--model", "networks:returns_a_dict"), "expected a tuple or list of outputs, got dict"),
        (("--model", "networks:returns_a_map"), "expected a tuple or list of outputs, got Tensor"),
        (("--model", "networks:returns_two"), "model: 'networks:returns_two' does not work as a centernet"),
        (
            ("--model", "networks:fails"),
            "cannot call 'networks:fails' with num_classes and width: KeyError: 'my own mistake'",
        ),
        (("--model", "networks:fails_later"), "on input of 64x64: KeyError: 'my own mistake'"),
        (("--model", "broken_module:net"), "cannot import 'broken_module:net': invalid syntax"),
        (("--model", "networks:NUMBER"), "expected 'networks:NUMBER' to be a function"),
        (("--size", "32x32", "--batch-size", "1"), "--batch-size 1 with --size 32x32: batch norm needs"),
    ],
    ids=lambda part: " ".join(map(str, part)) if isinstance(part, tuple) else "",
)
def test_training_that_cannot_be(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_module.py").write_text("def net(:")
    (tmp_path / "networks.py").write_text(
        """
import torch
from torch import nn
NUMBER = 3
class Net(nn.Module):
    def __init__(self, make): super().__init__(); self.make = make; self.layer = nn.Conv2d(3, 2, 1)
    def forward(self, images): return self.make(self.layer(images)[:, :, ::4, ::4])
def mistake(x): raise KeyError("my own mistake")
def returns_a_dict(num_classes, width): return Net(lambda x: {"heatmap_logits": x})
def returns_a_map(num_classes, width): return Net(lambda x: x)
def returns_two(num_classes, width): return Net(lambda x: (x, x))
def fails(num_classes, width): raise KeyError("my own mistake")
def fails_later(num_classes, width): return Net(lambda x: mistake(x))
""".replace("Net(lambda x: mistake(x))", "Net(mistake)")
    )
    for name in ("networks", "broken_module"):
        sys.modules.pop(name, None)
    out = tmp_path / "out"
    assert message in refused("train", "--data", data, "--out", out, "--multi-scale", 0, *SMALL, *arguments)
    assert not (out / "config.json").exists()


def damage(path: Path, how: str) -> None:
    """Spoil a file in a way that disks, copies and hands do."""
    content = path.read_bytes()
    if how == "cut off":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "zeros":
        path.write_bytes(bytes(len(content)))
    elif how == "other":
        torch.save({"a": 1}, path) if path.suffix == ".ckpt" else path.write_text("[1, 2]")
    elif how == "bits":
        spoilt = bytearray(content)
        spoilt[:: max(1, len(content) // 50)] = bytes(len(spoilt[:: max(1, len(content) // 50)]))
        path.write_bytes(bytes(spoilt))
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "not finite":
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["state_dict"]["ema.logit"].fill_(float("nan"))
        torch.save(checkpoint, path)
    else:
        path.write_text(how)


@pytest.mark.parametrize("how", ["cut off", "empty", "zeros", "other", "bits", "folder", "not finite"])
def test_a_damaged_checkpoint_is_named(box_run: Path, data: Path, tmp_path: Path, how: str) -> None:
    (box_run / "checkpoints" / "best.ckpt").write_bytes((box_run / "checkpoints" / "last.ckpt").read_bytes())
    damage(box_run / "checkpoints" / "last.ckpt", how)
    line = refused("predict", data / "val" / "images", "--run", box_run, "--out", tmp_path / "out")
    assert "last.ckpt" in line
    assert "is there too" in line or how == "folder"
    best = box_run / "checkpoints" / "best.ckpt"
    code, output = call("predict", data / "val" / "images", "--run", best, "--out", tmp_path / "out", "--pictures", 0)
    assert code == 0, output


@pytest.mark.parametrize(
    "how",
    ["cut off", "empty", "zeros", "other", "folder", "{}", '{"detector": 3}', "[" * 100_000, "null", "\udce9".encode(errors="replace").decode()],
)  # fmt: skip
def test_a_damaged_configuration_is_named(box_run: Path, data: Path, tmp_path: Path, how: str) -> None:
    damage(box_run / "config.json", how)
    for command in (
        ("predict", data / "val" / "images", "--run", box_run, "--out", tmp_path / "out"),
        ("evaluate", box_run),
        ("report", box_run),
        ("train", "--resume", "--out", box_run),
    ):
        assert "config.json" in refused(*command)


def test_every_key_of_a_configuration_is_missed(box_run: Path, data: Path, tmp_path: Path) -> None:
    config = json.loads((box_run / "config.json").read_text())
    for name in config:
        (box_run / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != name}))
        line = refused("predict", data / "val" / "images", "--run", box_run, "--out", tmp_path / "out")
        assert f"expected {name} as detops train writes it" in line


@pytest.mark.parametrize("device", ["banana", "cuda:99", "meta", "", "cpu:x"])
def test_a_device_that_cannot_compute_is_named(box_run: Path, data: Path, tmp_path: Path, device: str) -> None:
    for command in (
        ("predict", data / "val" / "images", "--run", box_run, "--out", tmp_path / "out"),
        ("evaluate", box_run),
    ):
        assert f"device: cannot compute on '{device}'" in refused(*command, "--device", device)
    assert choose_device("cpu") == torch.device("cpu")


def test_arguments_without_effect_are_refused(box_run: Path, data: Path, tmp_path: Path) -> None:
    results, truth = tmp_path / "r.json", data / "val" / "annotations.json"
    results.write_text("[]")
    scored = ("evaluate", "--results", results, "--annotations", truth)
    for arguments, message in (
        ((*scored, "--images", "/nowhere", "--device", "cpu"), "--images, --device: has no effect with --results"),
        (("evaluate", box_run, "--images", data), "--images: is the folder of --annotations"),
        (("evaluate", box_run, "--kind", "segm"), "--kind segm: a run has no masks"),
        (("evaluate", box_run, "--backend", "none"), "backend: expected pycocotools, faster-coco-eval or hotcoco"),
        (("predict", data, "--run", box_run, "--score", "nan"), "--score: expected a finite number, got nan"),
        (("bench", "nms_mask", "--out", tmp_path), "--out: belongs to the suite inference"),
        (("bench", "nms_mask", "--fail-above", 2), "--fail-above: belongs to --compare"),
        (("bench", "inference", "--quick", "--repeats", 2), "--repeats: has no effect with --quick"),
        (("bench", "inference", "--kernel"), "--kernel: has no effect on the suite inference"),
    ):
        assert message in refused(*arguments)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    code, output = call("train", "--data", data, "--out", out, *SMALL)
    assert code == 0, output
    return out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch-size", 200), "--batch-size (begun with"),
        (("--epochs", 200), "or add epochs by --prolong-to"),
        (("--lr", 0.1, "--seed", 3), "--lr (begun with 0.005), --seed (begun with 0)"),
        (("--size", "96x64"), "--size (begun with 64x64)"),
        (("--no-flip",), "--flip (begun with True)"),
        (("--detector", "yolox"), "--detector (begun with centernet)"),
        (("--temperature", 3), "--temperature (begun with 10.0)"),
    ],
)
def test_a_run_goes_on_as_it_was_begun(trained: Path, arguments: tuple[object, ...], message: str) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    line = refused("train", "--out", trained, "--resume", *arguments)
    assert message in line
    assert ": a run goes on as it was begun" in line
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_the_same_command_resumes(trained: Path, data: Path, tmp_path: Path) -> None:
    code, output = call("train", "--data", data, "--out", trained, "--resume", *SMALL)
    assert code == 0, output
    assert "steps are done" in output
    other = tmp_path / "other"
    shutil.copytree(data, other)
    assert "--data (begun with" in refused("train", "--data", other, "--out", trained, "--resume")
    assert refused("train", "--data", data, "--out", trained).endswith("or choose another --out")


def test_resume_begins_where_there_is_nothing_yet(data: Path, tmp_path: Path) -> None:
    code, output = call("train", "--data", data, "--out", tmp_path / "run", "--resume", *SMALL)
    assert code == 0, output
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_the_report_is_made_again(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns(".detops"))  # as a copy without hidden files
    for _ in range(2):
        code, output = call("report", run)
        assert code == 0, output
    assert "report.html" in output.replace("\n", "")
    (run / "report.html").write_text("<p>mine</p>")
    assert "report.html: was not written by detops" in refused("report", run)
    assert "expected a folder that detops train wrote" in refused("report", tmp_path)


def test_a_fault_of_detops_is_shown_and_to_be_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detops.env", partial({}.__getitem__, "a fault"))
    result = CliRunner().invoke(cli.app, ["env"])
    assert result.exit_code == cli.FAULT
    assert "KeyError: 'a fault'" in result.output
    assert "Traceback" in result.output
    assert "please report it, with the lines above and detops env" in result.output.replace("\n", " ")


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("detops.env", interrupt)
    result = CliRunner().invoke(cli.app, ["env"])
    assert result.exit_code == 130
    assert "go on with --resume" in result.output


def raised(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def test_what_errors_mean(tmp_path: Path) -> None:
    for error, meaning in (
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: the disk is full"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (raised(lambda: (tmp_path / "none").read_text()), "none: no such file or folder"),
        (raised(lambda: tmp_path.read_text()), f"{tmp_path}: is a folder, expected a file"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "/root/x: permission denied"),
        (MemoryError(), "out of memory; use a smaller --batch-size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory; use a smaller"),
        (raised(lambda: torch.zeros(1 << 60)), "out of memory; use a smaller"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "for want of (shared) memory"),
        (RuntimeError("Found no NVIDIA driver on your system."), "the GPU cannot be used"),
        (AssertionError("Torch not compiled with CUDA enabled"), "the GPU cannot be used"),
        (EOFError("Compressed file ended"), "a file is damaged or was cut off"),
        (ValueError("two\n lines"), "two lines"),
        (ValueError("Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                    "  File x\nValueError: a.png: cannot be decoded\n"), "a.png: cannot be decoded"),
    ):  # fmt: skip
        text = explain(error)
        assert text is not None
        assert meaning in text
        assert "\n" not in text
    for error in (KeyError("x"), RuntimeError("shapes differ"), TypeError("x"), ImportError("x", name="detops.apps.x")):
        assert explain(error) is None
    place = explain(raised(lambda: int([])))  # type: ignore[call-overload]
    assert place is not None
    assert place.startswith(f"{__file__}, line ")
    assert "TypeError: int() argument" in place
    assert len(flat(ValueError("x" * 10_000))) == 600


def test_a_package_that_does_not_fit_is_told_from_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "unfit_package.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "needy_package.py").write_text("import package_that_is_missing")
    with pytest.raises(
        ImportError, match=r"needs Unfit, which cannot be imported: operator .*torchvision does not fit"
    ):
        require_module("unfit_package", "Unfit", "detops x", "detops[x]")
    with pytest.raises(ModuleNotFoundError, match=r"Needy, which cannot be imported.*pip install package_that_is_mis"):
        require_module("needy_package", "Needy", "detops x", "detops[x]")
    with pytest.raises(ValueError, match=r"model: cannot import 'unfit_package:f': operator torchvision"):
        import_function("unfit_package:f", 'model: expected "compact" or')


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs pipes as POSIX has them")
def test_printing_ends_no_job(box_run: Path, tmp_path: Path) -> None:
    """Neither does a reader that goes away, nor names that are not UTF-8, hold line breaks or markup."""
    folder = tmp_path / "images"
    folder.mkdir()
    image_module.new("RGB", (20, 20)).save(folder / "z.png")
    for name in (b"bad_\xe9.png", b"bad_\n[red].png", b"bad_\x1b[2J.png"):
        Path(os.fsdecode(bytes(folder) + b"/" + name)).touch()
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-m", "detops", "predict", str(folder), "--run", str(box_run), "--out"]
    done = subprocess.run([*command, str(tmp_path / "1")], capture_output=True, env=environment, check=False)
    assert done.returncode == 1, done.stderr
    text = done.stdout.decode("ascii")
    for name in ("bad_\\udce9.png", "bad_\\n[red].png", "bad_\\x1b[2J.png"):
        assert f"{name}: cannot be decoded" in text
    gone = subprocess.Popen(
        [*command, str(tmp_path / "2")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert gone.stdout is not None
    gone.stdout.close()
    assert gone.wait() == 1
    results = [(tmp_path / out / "results.jsonl").read_bytes() for out in "12"]
    assert results[0] == results[1]
    assert results[0].count(b"\n") == 4
