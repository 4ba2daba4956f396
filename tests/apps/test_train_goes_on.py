"""`detops train`: what it says at its start, prolonging, ending early, fine-tuning, and what an interrupt leaves."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from predict_runs import call
from rich.console import Console

from detops.apps.data import shapes
from detops.apps.train.settings import Data, Hardware, Network, Settings

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")
pytest.importorskip("PIL.Image")
train = pytest.importorskip("detops.apps.train.train")
progress = pytest.importorskip("detops.apps.train.progress")

pytestmark = pytest.mark.usefixtures("without_reports")


def run(out: Path, folder: Path, resume: bool = False, **options: Any) -> str:
    """Train for two epochs of a few steps, and return what is printed."""
    console = Console(file=io.StringIO(), width=200)
    network = Network(width=8, size=(64, 64), weights=options.pop("weights", None))
    passed = {name: options.pop(name) for name in ("changes", "command") if name in options}
    train.run(
        out,
        data=Data.from_folder(folder),
        network=network,
        settings=Settings(**{"epochs": 2, "batch_size": 2, "log_every": 1, "eval_every": 1, **options}),
        hardware=Hardware("32-true", accelerator="cpu"),
        resume=resume,
        console=console,
        **passed,
    )
    return console.file.getvalue()  # type: ignore[attr-defined]


def rows(out: Path, key: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line]


def weights(out: Path, part: str = "ema.") -> dict[str, torch.Tensor]:
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith(part)}


def test_a_run_says_what_it_trains_and_is_prolonged(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "run"
    printed = run(out, folder, command="detops train")
    names = ["data", "classes", "network", "device", "training"]
    first = [line for line in printed.splitlines() if line.partition(":")[0] in names]
    assert [line.partition(":")[0] for line in first] == names
    assert "images with" in first[0]
    assert f"{len(shapes.CLASSES)} (circle" in first[1]
    assert "0.1" in first[2]
    assert "million parameters, images resized to fit into 64 x 64" in first[2]
    assert "precision 32-true" in first[3]
    (started,) = (row["started"] for row in rows(out, "started"))
    assert started["command"] == "detops train"
    assert started["versions"]["torch"] == torch.__version__
    assert started["parameters"] == sum(v.numel() for n, v in weights(out).items() if _is_parameter(n))
    steps = rows(out, "losses")
    assert [row["elapsed"] for row in steps] == sorted(row["elapsed"] for row in steps)
    assert (out / "detections.json.gz").is_file()

    done = steps[-1]["step"]
    assert f"all {done} steps are done; --prolong-to adds epochs" in run(out, folder, resume=True)
    with pytest.raises(ValueError, match="epochs: expected at least the 2"):
        run(out, folder, resume=True, changes={"epochs": 1})
    with pytest.raises(ValueError, match="lr: a run goes on as it was begun; only epochs or patience may change"):
        run(out, folder, resume=True, changes={"lr": 1.0})
    code, output = call("train", "--out", tmp_path / "new", "--prolong-to", 3)
    assert code == 2
    assert "--prolong-to: adds epochs to a run that is there" in output
    code, output = call(
        "train", "--out", out, "--resume", "--prolong-to", 3, "--accelerator", "cpu", "--precision", "32-true"
    )
    assert code == 0, output
    later = rows(out, "losses")
    assert later[:done] == steps
    assert [row["step"] for row in later] == list(range(1, done * 3 // 2 + 1))
    assert later[done]["lr"] > later[done - 1]["lr"]  # as in a training of three epochs
    assert json.loads((out / "config.json").read_text())["settings"]["epochs"] == 3
    assert [row["epoch"] for row in rows(out, "scores")] == [1, 2, 3]
    assert len(rows(out, "started")) == 2


def _is_parameter(name: str) -> bool:
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_it_ends_when_it_gets_no_better(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    aps = iter([0.3, 0.2, 0.1, 0.4, 0.5])
    scored = train.evaluate.score_rows
    monkeypatch.setattr(train.evaluate, "score_rows", lambda *a: {**scored(*a), "AP": next(aps)})
    run(tmp_path, folder, epochs=5, patience=2)
    assert "epoch 3: 2 evaluations without a higher AP" in capsys.readouterr().out
    assert [row["epoch"] for row in rows(tmp_path, "scores")] == [1, 2, 3]
    assert "steps are done" in run(tmp_path, folder, resume=True)
    run(tmp_path, folder, resume=True, changes={"patience": 0})
    assert [row["epoch"] for row in rows(tmp_path, "scores")] == [1, 2, 3, 4, 5]


def test_it_begins_with_the_weights_of_another_run(tmp_path: Path, folder: Path) -> None:
    run(tmp_path / "first", folder, epochs=1)
    before = weights(tmp_path / "first")
    printed = run(tmp_path / "second", folder, epochs=1, weights=tmp_path / "first", lr=1e-12, ema=0.0)
    assert "weights: " in printed
    assert "begin at random" not in printed
    after = weights(tmp_path / "second")
    for name in filter(_is_parameter, before):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    other = tmp_path / "data"
    for split in ("train", "val"):
        path = shapes.generate(other / split, images=2, seed=5)
        content = json.loads(path.read_text())
        content["categories"].append({"id": 77, "name": "another"})
        path.write_text(json.dumps(content))
    printed = run(tmp_path / "third", other, epochs=1, weights=tmp_path / "first" / "checkpoints" / "last.ckpt")
    assert "begin at random, such as" in printed
    with pytest.raises(FileNotFoundError, match=r"weights: .*expected a run of detops train"):
        run(tmp_path / "fourth", folder, weights=tmp_path / "data")


def test_an_interrupt_says_by_which_command_it_goes_on(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = train.DetectorModule.on_train_batch_end

    def interrupt(module: Any, *arguments: Any) -> None:
        kept(module, *arguments)
        if module.trainer.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(train.DetectorModule, "on_train_batch_end", interrupt)
    out = tmp_path / "a run"
    code, output = call(
        "train", "--data", folder, "--out", out, "--size", "64x64", "--width", 8, "--batch-size", 2, "--epochs", 4,
        "--save-every", 2, "--precision", "32-true", "--accelerator", "cpu",
    )  # fmt: skip
    assert code == 130
    text = " ".join(output.split())
    assert "stopped at step 3 of " in text
    assert f"go on from the checkpoint of step 2: detops train --out '{out}' --resume" in text


def test_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert [type(one) for one in progress.callbacks(Console())[0]] == [progress.Bar, progress.Lines]
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    console = Console(file=io.StringIO(), width=200)
    (lines,), bar = progress.callbacks(console)
    assert not bar

    class Module:
        total_steps, steps_per_epoch, settings = 100, 10, Settings(epochs=10)

    class Trainer:
        is_global_zero, callback_metrics, global_step = True, {"loss": torch.tensor(1.5)}, 0

    now = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    for step in range(1, 101):
        Trainer.global_step, now = step, now + 6.0
        lines.on_train_batch_end(Trainer(), Module(), None)
    printed = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert printed[0] == "epoch 2 of 10, step 14 of 100, loss 1.500, about 9 min left"
    assert len(printed) == 18  # every 30 seconds
    assert printed[-1] == "epoch 10 of 10, step 99 of 100, loss 1.500, about 6 s left"


@pytest.mark.parametrize("command", ["train", "targets", "report", "check"])
def test_the_help_fits_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, output = call(command, "--help")
    assert code == 0
    assert "\u2026" not in output  # no name is cut
    assert max(map(len, output.splitlines())) <= 80
