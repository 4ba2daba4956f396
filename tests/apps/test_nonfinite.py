"""A loss that is not finite changes no weight, is told with its step, and costs no checkpoint."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import unlucky
from predict_runs import call, write_run
from rich.console import Console

from detops.apps import runs
from detops.apps.train import metrics
from detops.apps.train.augment import Augmentation
from detops.apps.train.settings import Data, Hardware, Network, Settings

image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("lightning")
pytest.importorskip("pycocotools")
train = pytest.importorskip("detops.apps.train.train")


@pytest.fixture(autouse=True)
def lucky() -> Iterator[None]:
    yield
    for kept in (unlucky.BROKEN, unlucky.GRADIENTS, unlucky.COUNTED):
        kept.clear()


def run(out: Path, folder: Path, on_nonfinite: str = "stop", precision: str = "32-true", **options: Any) -> None:
    """Six steps."""
    unlucky.COUNTED.clear()
    train.run(
        out,
        data=Data.from_folder(folder),
        network=Network(model="unlucky:Unlucky", width=8, size=(32, 64)),
        settings=Settings(
            epochs=3, batch_size=2, log_every=1, eval_every=1, ema=0.5, augmentation=Augmentation(multi_scale=0.0)
        ),
        hardware=Hardware(precision, accelerator="cpu"),
        on_nonfinite=on_nonfinite,
        console=Console(quiet=True),
        **options,
    )


def rows(out: Path) -> list[dict[str, Any]]:
    """The lines, as strict JSON."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in lines]


def state(out: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(out / "checkpoints" / name, weights_only=True)["state_dict"]


def assert_finite(out: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        if (out / "checkpoints" / name).exists():
            assert all(value.isfinite().all() for value in state(out, name).values())


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_training_stops_with_what_was_learnt_and_goes_on(tmp_path: Path, folder: Path, kind: str) -> None:
    (unlucky.BROKEN if kind == "loss" else unlucky.GRADIENTS).add(4)
    with pytest.raises(ValueError, match=rf"step 4 of 6: the {kind} is not finite.*go on with --resume"):
        run(tmp_path, folder)
    assert_finite(tmp_path)
    stopped = rows(tmp_path)[-1]
    assert (stopped["step"], stopped["stopped"]) == (4, True)
    assert f"step 4: the {kind} is not finite" in metrics.stopped(tmp_path)
    code, output = call(
        "predict", folder / "val" / "images", "--run", tmp_path, "--out", tmp_path / "p", "--pictures", 0
    )
    assert code == 1
    assert "training stopped (step 4" in output.replace("\n", " ")
    best = tmp_path / "checkpoints" / "best.ckpt"  # that of an epoch before
    code, output = call("predict", folder / "val" / "images", "--run", best, "--out", tmp_path / "b", "--pictures", 0)
    assert code == 0, output
    unlucky.BROKEN.clear()
    unlucky.GRADIENTS.clear()
    run(tmp_path, folder, resume=True)
    assert_finite(tmp_path)
    assert [row["step"] for row in rows(tmp_path) if "losses" in row] == [1, 2, 3, 5, 6]
    assert not metrics.stopped(tmp_path)
    code, output = call(
        "predict", folder / "val" / "images", "--run", tmp_path, "--out", tmp_path / "q", "--pictures", 0
    )
    assert code == 0, output


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_can_be_left_out(tmp_path: Path, folder: Path, precision: str) -> None:
    unlucky.BROKEN.add(3)
    run(tmp_path, folder, "skip", precision)
    assert_finite(tmp_path)
    assert [row["step"] for row in rows(tmp_path) if "skipped" in row] == [3]
    assert [row["step"] for row in rows(tmp_path) if "losses" in row] == [1, 2, 4, 5, 6]
    assert "report.html" in {path.name for path in tmp_path.iterdir()}


def test_a_step_that_is_left_out_changes_nothing(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither weights, nor the averages of the optimiser, nor the statistics of batch norm."""
    module, seen = train.DetectorModule, []
    after = module.on_train_batch_end

    def kept(self: Any, *args: Any) -> None:
        moments = [value.clone() for entry in self.trainer.optimizers[0].state.values() for value in entry.values()]
        seen.append(
            [value.clone() for value in self.network.state_dict().values() if value.is_floating_point()] + moments
        )
        after(self, *args)

    monkeypatch.setattr(module, "on_train_batch_end", kept)
    unlucky.BROKEN.add(3)
    unlucky.GRADIENTS.add(5)
    run(tmp_path, folder, "skip")
    same = [all(map(torch.equal, before, now)) for before, now in pairwise(seen[1:])]
    assert same == [True, False, True, False]


def test_losses_that_are_never_finite_stop_in_any_case(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detops.apps.train.finite_steps.IN_A_ROW", 3)
    unlucky.BROKEN.update(range(2, 100))
    with pytest.raises(ValueError, match=r"step 4 of 6: .* as 3 times in a row, and the training stops"):
        run(tmp_path, folder, "skip")
    assert_finite(tmp_path)


def test_the_best_checkpoint_is_kept(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.2, 0.6, 0.4])
    other = dict.fromkeys(train.evaluate.NAMES) | {"classes": {}}
    monkeypatch.setattr(train.evaluate, "score_rows", lambda *_: {**other, "AP": next(scores)})
    kept = {}
    save = train.DetectorModule.save

    def copied(self: Any, last: bool) -> None:
        save(self, last)
        kept[self.trainer.global_step] = state(tmp_path)

    monkeypatch.setattr(train.DetectorModule, "save", copied)
    run(tmp_path, folder)
    best = state(tmp_path, "best.ckpt")
    assert all(torch.equal(best[name], value) for name, value in kept[4].items())
    network, _, _ = runs.load(tmp_path / "checkpoints" / "best.ckpt", torch.device("cpu"))
    assert torch.equal(next(network.parameters()), best["ema.inner.backbone.stem.0.0.weight"])
    # Killed between the checkpoint and its copy, it is made when the training goes on.
    (tmp_path / "checkpoints" / "best.ckpt").unlink()
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 6, "epoch": 3, "scores": {"AP": 0.7}}) + "\n")
    run(tmp_path, folder, resume=True)
    again = state(tmp_path, "best.ckpt")
    assert all(torch.equal(again[name], value) for name, value in kept[6].items())


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    metrics.append(tmp_path, {"step": 1, "losses": {"a": float("nan"), "b": [float("inf"), 2.0]}})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "los')
    metrics.append(tmp_path, {"step": 3})
    assert metrics.read(tmp_path) == [{"step": 1, "losses": {"a": None, "b": [None, 2.0]}}, {"step": 3}]
    metrics.drop_after(tmp_path, 2)
    assert [row["step"] for row in rows(tmp_path) if "losses" in row] == [1]
    assert metrics.best_step(tmp_path) is None


def test_a_network_whose_outputs_are_broken_says_so(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    records = []
    for index, value in enumerate((0, 255, 0)):
        image_module.new("RGB", (64, 32), (value,) * 3).save(data / "images" / f"{index}.png")
        records.append({"id": index + 1, "file_name": f"{index}.png", "width": 64, "height": 32})
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 9, 9]}
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    (data / "annotations.json").write_text(
        json.dumps({"images": records, "annotations": [box], "categories": categories})
    )
    run = write_run(tmp_path / "run", unlucky.Blind(2, 8), "unlucky:Blind")
    code, output = call("predict", data / "images", "--run", run, "--out", tmp_path / "out")
    assert code == 1
    assert "1.png: the network's outputs hold numbers that are not finite" in output.replace("\n", "")
    lines = list(map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines()))
    assert ["error" in line for line in lines] == [False, True, False]
    code, output = call("evaluate", run, "--annotations", data / "annotations.json")
    assert code == 2
    assert "outputs hold NaN for 1 of 3 images, such as 1.png" in output.replace("\n", " ")
