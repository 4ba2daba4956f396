"""`detops train --logger`: the numbers of metrics.jsonl in Lightning's loggers, and packages that are missing."""

import csv
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from predict_runs import call
from rich.console import Console

from detops.apps.train.settings import Data, Hardware, Network, Settings

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")
pytest.importorskip("PIL.Image")
train = pytest.importorskip("detops.apps.train.train")
loggers = pytest.importorskip("detops.apps.train.loggers")

pytestmark = pytest.mark.usefixtures("without_reports")


def run(out: Path, folder: Path, logger: str, **options: Any) -> list[dict[str, Any]]:
    train.run(
        out,
        data=Data.from_folder(folder),
        network=Network(width=8, size=(64, 64)),
        settings=Settings(2, 2, log_every=2, eval_every=1),
        hardware=Hardware("32-true", accelerator="cpu"),
        logger=logger,
        console=Console(quiet=True),
        **options,
    )
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "started" not in row]


def test_csv_has_the_numbers_of_the_metrics(tmp_path: Path, folder: Path) -> None:
    lines = run(tmp_path / "run", folder, "csv")
    (path,) = (tmp_path / "run" / "csv").rglob("metrics.csv")
    with path.open() as file:
        found = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert found == [pytest.approx({"step": line["step"], **loggers.flat(line)}) for line in lines]
    assert {"losses/loss_center_heatmap", "lr", "milliseconds/network"} <= set(found[0])
    assert {"AP", "epoch"} <= set(found[-1])


def test_a_line_is_flattened() -> None:
    scores = {"AP": 0.5, "APs": None, "classes": {"cat": 0.25, "dog": None}}
    row = {"step": 7, "epoch": 2, "scores": scores, "seconds": 1.5}
    assert loggers.flat(row) == {"epoch": 2, "AP": 0.5, "AP of cat": 0.25, "seconds": 1.5}


def test_tensorboard_has_them_too(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install tensorboard")
    reading = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    lines = run(tmp_path / "run", folder, "tensorboard")
    events = reading.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    rates = [(event.step, event.value) for event in events.Scalars("lr")]
    assert rates == [(line["step"], pytest.approx(line["lr"])) for line in lines if "lr" in line]
    names = {name for line in lines for name in loggers.flat(line)}
    assert set(events.Tags()["scalars"]) == names


def test_wandb_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="Weights & Biases is not installed: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert loggers.make("wandb", tmp_path, resume=True)._wandb_init["id"] is None
    (tmp_path / "wandb" / "offline-run-20260101_120000-abc123").mkdir(parents=True)
    assert loggers.make("wandb", tmp_path, resume=True)._wandb_init["id"] == "abc123"
    assert loggers.make("wandb", tmp_path, resume=False)._wandb_init["id"] is None


def test_what_is_missing_is_named(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "tensorboardX" else found(name, *a)
    )
    for name, message in (
        ("tensorboard", 'detops train --logger tensorboard needs TensorBoard: pip install "tensorboard"'),
        ("wandb", 'detops train --logger wandb needs Weights & Biases: pip install "wandb"'),
        ("mlflow", "logger: expected csv, tensorboard or wandb, got 'mlflow'"),
    ):
        code, output = call("train", "--data", folder, "--out", tmp_path / "o", "--size", "64x64", "--logger", name)
        assert code == 2, output
        assert message in output
