"""`detops train`: what is learnt, resuming after a kill, and invalid data."""

import errno
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from detops import cli
from detops.apps.data import shapes
from detops.apps.data.dataset import Batch, CocoImages, Steps, load_image, open_annotations
from detops.apps.train import families, models, optimizer
from detops.apps.train.augment import Augmentation, augment
from detops.apps.train.settings import Data, Distillation, Hardware, Network, Settings
from detops.ground_truth import GroundTruth

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")
image_module = pytest.importorskip("PIL.Image")
train = pytest.importorskip("detops.apps.train.train")
checkpoint = pytest.importorskip("detops.apps.train.checkpoint")
lightning_module = pytest.importorskip("detops.apps.train.lightning_module")

SIZE = (96, 128)  # height, width
STILL = Augmentation(False, False, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    shapes.generate(root / "train", images=20, seed=0)
    shapes.generate(root / "val", images=4, seed=1)
    return root


def run(
    out: Path,
    folder: Path,
    resume: bool = False,
    strict: bool = False,
    console: Console | None = None,
    memory_limit: int = 1 << 30,
    detector: str = "centernet",
    teacher: Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    return train.run(
        out,
        data=Data.from_folder(folder),
        network=Network(detector, width=8, size=SIZE, teacher=teacher),
        settings=Settings(**{"epochs": 2, "batch_size": 4, "log_every": 1, "eval_every": 1, **settings}),
        hardware=Hardware("32-true", accelerator="cpu", memory_limit=memory_limit, workers=2),
        resume=resume,
        strict=strict,
        console=console or Console(quiet=True),
    )


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_training_learns_and_records(tmp_path: Path, folder: Path) -> None:
    scores = run(tmp_path, folder, epochs=16, eval_every=8, augmentation=Augmentation(multi_scale=0.0), ema=0.9)
    steps = [row for row in rows(tmp_path) if "losses" in row]
    assert [row["step"] for row in steps] == list(range(1, 81))
    totals = [sum(row["losses"].values()) for row in steps]
    assert sum(totals[-5:]) < 0.5 * sum(totals[:5])
    assert set(steps[0]["milliseconds"]) == {"data", "targets", "network", "loss", "backward", "optimizer"}
    assert all(value > 0 for value in steps[0]["milliseconds"].values())
    assert steps[0]["lr"] < steps[8]["lr"] > steps[-1]["lr"]
    evaluations = [row for row in rows(tmp_path) if "scores" in row]
    assert [row["epoch"] for row in evaluations] == [8, 16]
    assert evaluations[-1]["scores"] == scores
    assert set(scores["classes"]) == set(shapes.CLASSES)
    assert json.loads((tmp_path / "config.json").read_text())["classes"] == list(shapes.CLASSES)
    averaged, last = (weights(tmp_path)[f"{part}.backbone.stem.0.0.weight"] for part in ("ema", "network"))
    assert not torch.equal(averaged, last)


@pytest.mark.slow
def test_it_finds_what_it_was_shown(tmp_path: Path) -> None:
    """It memorises four images; with other initial weights AP50 was 0.67 to 0.94."""
    shapes.generate(tmp_path / "train", images=4, seed=0)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    scores = run(tmp_path / "run", tmp_path, epochs=60, eval_every=60, augmentation=STILL, ema=0.9)
    assert scores["AP50"] > 0.4


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_train
calls, fsync, written = 0, os.fsync, Path({out!r}) / "checkpoints" / ".last.ckpt.tmp"
def fatal(descriptor):
    global calls
    calls += written.exists() and os.path.samestat(os.fstat(descriptor), written.stat())
    if calls == 4:  # in the middle of the fourth checkpoint
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = fatal
test_train.run(Path({out!r}), Path({data!r}), save_every=3, log_every=4)
"""


@pytest.mark.slow
def test_a_killed_training_resumes_as_if_nothing_had_happened(tmp_path: Path, folder: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(cut), data=str(folder))
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    # Of checkpoints after steps 3, 5 (an epoch), 6, 9: killed while writing the last, in the middle of an epoch.
    assert (cut / "checkpoints" / ".last.ckpt.tmp").exists()
    assert torch.load(cut / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "los')
    expected = run(whole, folder, save_every=3, log_every=4)  # the line of step 8 is about steps 5 to 8
    assert run(cut, folder, resume=True, epochs=99, lr=9.0) == expected  # what is resumed goes by its own settings
    ours, theirs = weights(cut), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = ([row for row in rows(out) if "started" not in row] for out in (cut, whole))
    for a, b in zip(ours, theirs, strict=True):
        assert (a["step"], a.get("losses"), a.get("scores")) == (b["step"], b.get("losses"), b.get("scores"))
    before = rows(cut)
    assert run(cut, folder, resume=True) == expected  # nothing is left to do
    assert rows(cut) == before


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sub" / "last.ckpt"
    checkpoint.write_atomically(path, b"good")
    assert path.read_bytes() == b"good"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_atomically(path, b"new")
    assert path.read_bytes() == b"good"
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_training_survives_a_disk_that_was_full(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed: list[Path] = []
    write = checkpoint.write_atomically

    def sometimes(path: Path, data: bytes) -> None:
        if path.suffix == ".ckpt" and not failed:
            failed.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_atomically", sometimes)
    run(tmp_path, folder, epochs=1, save_every=2)
    assert failed
    assert "checkpoint not written: [Errno 28] No space left on device" in capsys.readouterr().out
    assert weights(tmp_path)


@pytest.mark.slow
def test_images_that_do_not_fit_are_decoded_by_workers(tmp_path: Path, folder: Path) -> None:
    run(tmp_path / "kept", folder, epochs=1)
    run(tmp_path / "workers", folder, epochs=1, memory_limit=0)
    kept, workers = weights(tmp_path / "kept"), weights(tmp_path / "workers")
    assert all(torch.equal(kept[name], workers[name]) for name in kept)


def broken_copy(folder: Path, to: Path) -> tuple[Path, dict[str, Any]]:
    shutil.copytree(folder, to)
    path = to / "train" / "annotations.json"
    return path, json.loads(path.read_text())


def test_bad_data_gets_a_line_each_and_training_goes_on(tmp_path: Path, folder: Path) -> None:
    path, data = broken_copy(folder, tmp_path / "data")
    (tmp_path / "data" / "train" / "images" / data["images"][0]["file_name"]).unlink()
    truncated = tmp_path / "data" / "train" / "images" / data["images"][1]["file_name"]
    truncated.write_bytes(truncated.read_bytes()[:2000])
    more = {"image_id": 3, "category_id": 1, "iscrowd": 0}
    data["annotations"] += [
        {**more, "id": 9001, "category_id": 77, "bbox": [1, 1, 5, 5]},
        {**more, "id": 9002, "bbox": [math.inf, 0, 5, 5]},
        {**more, "id": 9003, "bbox": [1, 1, 0, 5]},
        {**more, "id": 9004, "bbox": [1, 1, 9, 9], "iscrowd": 1, "segmentation": {"counts": [4, 5], "size": [3, 3]}},
    ]
    path.write_text(json.dumps(data))
    console = Console(record=True, width=300, file=io.StringIO())
    run(tmp_path / "run", tmp_path / "data", console=console, epochs=1)
    text = console.export_text()
    for line in (
        "1 annotations left out, unknown category: annotations[",
        "1 annotations left out, not finite: annotations[",
        "1 annotations left out, zero or negative size: annotations[",
        f"1 images left out, no file in {tmp_path}",
        f"blank instead of {truncated}: cannot be decoded",
        "1 crowd annotations: ignored regions",
        "1 run-length encoded masks: only their boxes are used",
    ):
        assert text.count(line) == 1, line
    with pytest.raises(ValueError, match=r"as --strict asks: 1 annotations left out, unknown category: .*\(id 9001"):
        run(tmp_path / "strict", tmp_path / "data", strict=True)
    assert not (tmp_path / "strict").exists()


def test_strict_stops_at_a_truncated_image(tmp_path: Path, folder: Path) -> None:
    path, data = broken_copy(folder, tmp_path / "data")
    truncated = path.parent / "images" / data["images"][1]["file_name"]
    truncated.write_bytes(truncated.read_bytes()[:2000])
    with pytest.raises(ValueError, match=truncated.name):
        run(tmp_path / "strict", tmp_path / "data", strict=True)


def test_images_and_classes_without_boxes_train(tmp_path: Path, folder: Path) -> None:
    path, data = broken_copy(folder, tmp_path / "data")
    path.write_text(json.dumps({**data, "annotations": data["annotations"][:1]}))
    run(tmp_path / "run", tmp_path / "data", epochs=1)
    assert all(math.isfinite(v) for row in rows(tmp_path / "run") for v in row.get("losses", {}).values())


def one_image(folder: Path, annotations: list[dict[str, Any]]) -> CocoImages:
    """A black image of 200x100 with a white rectangle at (40, 20) .. (80, 60)."""
    image = image_module.new("RGB", (200, 100))
    image.paste((255, 255, 255), (40, 20, 80, 60))
    image.save(folder / "a.png")
    path = folder / "annotations.json"
    record = {"id": 5, "file_name": "a.png", "width": 200, "height": 100}
    numbered = [{"id": i + 1, "image_id": 5, "category_id": 3, **a} for i, a in enumerate(annotations)]
    path.write_text(json.dumps({"images": [record], "annotations": numbered, "categories": [{"id": 3, "name": "box"}]}))
    console = Console(quiet=True)
    return CocoImages(open_annotations(path, folder, False, console), folder, (90, 100), False, 1 << 20, console)


def test_boxes_and_crowds_follow_the_resized_image(tmp_path: Path) -> None:
    dataset = one_image(tmp_path, [{"bbox": [40, 20, 40, 40]}, {"bbox": [100, 0, 100, 100], "iscrowd": 1}])
    batch = dataset[0]
    assert batch.images.shape == (1, 3, 96, 128)  # 100x50 at the top left of a multiple of 32
    assert batch.targets.boxes.tolist() == [[[20, 10, 40, 30]]]
    assert batch.targets.ignored is not None
    assert batch.targets.ignored.tolist() == [[[50, 0, 100, 50]]]
    assert batch.images[0, :, 12:28, 22:38].min() > 250
    assert batch.images[0, :, 60, 120].tolist() == [123, 116, 103]
    assert torch.equal(load_image(tmp_path / "a.png", (90, 100))[0], batch.images[0])


@pytest.mark.parametrize("seed", range(6))
def test_boxes_follow_augmented_pixels(tmp_path: Path, seed: int) -> None:
    batch = one_image(tmp_path, [{"bbox": [40, 20, 40, 40]}]).__getitems__([0] * 6)
    torch.manual_seed(seed)
    result = augment(batch, Augmentation(True, True, 0.3, 0.4, 0.0))
    height, width = result.images.shape[2:]
    assert height % 32 == width % 32 == 0
    for image, box, label in zip(result.images, result.targets.boxes[:, 0], result.targets.labels[:, 0], strict=True):
        y, x = (image.mean(0) > 1.5).nonzero(as_tuple=True)  # white is 2.3 above the mean, half way is 0.2
        if label == 0 and (box[2:] - box[:2] > 8).all():
            seen = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1])
            torch.testing.assert_close(box, seen.float(), atol=2.0, rtol=0)


def test_nothing_happens_without_augmentation(tmp_path: Path) -> None:
    batch = one_image(tmp_path, [{"bbox": [40, 20, 40, 40]}])[0]
    result = augment(batch, STILL)
    torch.testing.assert_close(result.targets.boxes, batch.targets.boxes)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    torch.testing.assert_close(result.images * std + mean, batch.images.float(), atol=0.05, rtol=0)


def test_boxes_that_are_cropped_away_get_label_minus_one() -> None:
    boxes, labels = [torch.tensor([[0.0, 0, 4, 4], [28, 28, 36, 36]])] * 40, [torch.tensor([0, 1])] * 40
    targets = GroundTruth.from_boxes(boxes, labels)
    batch = Batch(torch.zeros(40, 3, 64, 64, dtype=torch.uint8), targets, torch.arange(40))
    torch.manual_seed(0)
    result = augment(batch, Augmentation(zoom=1.0))
    assert {0, -1} == set(result.targets.labels[:, 0].tolist())
    assert result.targets.boxes.min() >= 0
    height, width = result.images.shape[2:]
    assert (result.targets.boxes <= torch.tensor([width, height, width, height])).all()


def test_steps_go_on_where_they_were_and_share_without_overlap() -> None:
    whole = list(Steps(10, 3, epochs=4, seed=1))
    assert len(whole) == 12
    assert whole[:3] != whole[3:6]
    assert len(set(chain(*whole[:3]))) == 9  # none twice in an epoch
    assert list(Steps(10, 3, epochs=4, seed=1, start=7)) == whole[7:]
    assert list(Steps(10, 3, epochs=4, seed=2)) != whole
    shares = [list(Steps(12, 3, 1, 0, rank=rank, world=2)) for rank in range(2)]
    assert sorted(chain(*shares[0], *shares[1])) == list(range(12))
    assert [len(batch) for batch in Steps(2, 5, 1, 0)] == [5]  # fewer images than a batch: some come twice


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["train", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_command_names_what_is_wrong(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    for arguments, message in (
        (("--data", tmp_path, "--out", tmp_path / "o"), "found no annotations to train on; expected train"),
        (("--out", tmp_path / "o"), "data: expected a folder"),
        (("--data", folder, "--out", tmp_path / "o", "--size", "12"), "size: expected WIDTHxHEIGHT"),
        (("--data", folder, "--out", tmp_path / "run"), "continue it with --resume"),
        (("--resume", "--out", tmp_path / "o"), "with config.json"),
        (
            ("--data", folder, "--out", tmp_path / "o", "--detector", "ssd"),
            "detector: expected centernet, yolox, gfl, ld, tal, tal-once or detr, got",
        ),
        (("--data", folder, "--out", tmp_path / "o", "--model", "math:sin"), "model: "),
        (("--train-images", folder, "--out", tmp_path / "o"), "train_annotations: expected a path"),
    ):
        code, output = call(*arguments)
        assert code == 2, output
        assert message in output


def test_without_lightning_the_extra_is_named(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)
    code, output = call("--data", folder, "--out", tmp_path / "o")
    assert code == 2
    assert 'detops train needs Lightning: pip install "detops[train]"' in output


@pytest.mark.slow
def test_a_yolox_trains_and_is_read_again(tmp_path: Path, folder: Path) -> None:
    options: dict[str, Any] = dict(augmentation=STILL, ema=0.9, l1_epochs=0, eval_every=6)
    scores = run(tmp_path, folder, detector="yolox", epochs=12, **options)
    steps = [row for row in rows(tmp_path) if "losses" in row]
    assert set(steps[0]["losses"]) == {"loss_bbox", "loss_obj", "loss_cls"}
    totals = [sum(row["losses"].values()) for row in steps]
    assert sum(totals[-5:]) < 0.8 * sum(totals[:5])
    assert all(value > 0 for value in steps[0]["milliseconds"].values())
    assert scores["AP50"] is not None
    result = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path)])
    assert result.exit_code == 0, result.output
    again = json.loads((tmp_path / "evaluation.json").read_text())
    assert again["AP50"] == pytest.approx(scores["AP50"], abs=1e-6)
    assert json.loads((tmp_path / "config.json").read_text())["detector"] == "yolox"
    assert "cells that are assigned" in (tmp_path / "report.html").read_text()
    # Resuming takes the kind of detector from the run.
    assert train.run(tmp_path, resume=True, console=Console(quiet=True)) == scores


@pytest.mark.slow
def test_a_gfl_trains_and_teaches_another(tmp_path: Path, folder: Path) -> None:
    options: dict[str, Any] = dict(augmentation=STILL, ema=0.9, eval_every=6)
    large, small = tmp_path / "large", tmp_path / "small"
    scores = run(large, folder, detector="gfl", epochs=12, **options)
    assert scores["AP50"] is not None
    steps = [row for row in rows(large) if "losses" in row]
    assert set(steps[0]["losses"]) == {"loss_cls", "loss_bbox", "loss_dfl"}
    totals = [sum(row["losses"].values()) for row in steps]
    assert sum(totals[-5:]) < 0.9 * sum(totals[:5])
    assert "cells that are assigned" in (large / "report.html").read_text()

    taught: dict[str, Any] = dict(
        detector="ld", teacher=large, epochs=6, distillation=Distillation(4.0, 2.0, "main+vlr"), **options
    )
    scores = run(small, folder, **taught)
    steps = [row for row in rows(small) if "losses" in row]
    assert set(steps[0]["losses"]) == {"loss_cls", "loss_bbox", "loss_dfl", "loss_ld", "loss_ld_vlr"}
    first, last = (sum(row["losses"]["loss_ld"] for row in part) for part in (steps[:5], steps[-5:]))
    assert 0 < last < first  # it learns to predict what the teacher predicts
    assert all(row["milliseconds"]["teacher"] > 0 for row in steps)
    config = json.loads((small / "config.json").read_text())
    assert config["teacher"] == str(large)
    # The teacher is in neither the checkpoint nor the network; resuming needs it again, prediction does not.
    assert set(weights(small)) == set(weights(large))
    assert train.run(small, resume=True, console=Console(quiet=True)) == scores
    shutil.rmtree(large)
    result = CliRunner().invoke(cli.app, ["evaluate", str(small)])
    assert result.exit_code == 0, result.output


def test_a_teacher_of_another_kind_is_refused(tmp_path: Path, folder: Path) -> None:
    arguments = ("--data", folder, "--out", tmp_path / "o", "--detector", "ld", "--width", "8")
    for more, message in (((), "teacher: expected the folder of a run"),
                          (("--teacher", folder), "expected a folder that detops train wrote")):  # fmt: skip
        code, output = call(*arguments, *more)
        assert code == 2
        assert message in output
    run(tmp_path / "other", folder, epochs=1)
    code, output = call(*arguments, "--teacher", tmp_path / "other")
    assert code == 2
    assert "teacher: expected a run of gfl or ld, got one of centernet" in output


@pytest.mark.slow
def test_l1_of_the_last_epochs_survives_a_kill(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    save = lightning_module.DetectorModule.save
    detector: dict[str, Any] = dict(detector="yolox", epochs=3, l1_epochs=2, eval_every=3, save_every=7)

    def copied(module: Any, last: bool) -> None:
        save(module, last)
        if module.trainer.global_step == 7:  # in the middle of the second epoch, the first with L1
            shutil.copytree(whole, cut)

    monkeypatch.setattr(lightning_module.DetectorModule, "save", copied)
    expected = run(whole, folder, **detector)
    run(tmp_path / "without", folder, **{**detector, "l1_epochs": 0, "save_every": 200})
    box, without = (
        [row["losses"]["loss_bbox"] for row in rows(out) if "losses" in row] for out in (whole, tmp_path / "without")
    )
    assert box[:5] == without[:5]
    assert all(ours > theirs for ours, theirs in zip(box[5:], without[5:], strict=True))  # the L1 loss is added
    assert run(cut, folder, resume=True, detector="centernet", l1_epochs=0) == expected
    ours, theirs = weights(cut), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = ([row["losses"] for row in rows(out) if "losses" in row] for out in (cut, whole))
    assert ours == theirs


def test_yolox_leaves_out_boxes_that_are_cut_away_and_ignores_crowds() -> None:
    boxes, none = torch.tensor([[0.0, 0, 30, 30], [32, 32, 60, 60]]), torch.zeros(0, 4)
    g, kind = torch.Generator().manual_seed(0), families.family("yolox", 2)
    outputs = [torch.randn(1, 1, 64 // s, 64 // s, 7, generator=g) for s in (8, 16, 32)]

    def parts(boxes: torch.Tensor, labels: list[int], crowd: torch.Tensor) -> list[float]:
        targets = GroundTruth.from_boxes([boxes], [torch.tensor(labels)], ignored=[crowd])
        batch = Batch(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), targets, torch.arange(1))
        return [value.item() for value in kind.losses(outputs, batch, (64, 64))[1].values()]

    alone = parts(boxes[:1], [1], none)
    assert parts(boxes, [1, -1], none) == alone
    (box, objectness, classes), (_, less, _) = alone, parts(boxes[:1], [1], boxes[1:])
    assert less < objectness
    assert parts(boxes[:1], [1], boxes[1:]) == [box, less, classes]
    assert parts(boxes, [1, 0], none) != alone


def test_a_part_of_a_network_may_begin_its_learning_rate_again() -> None:
    network = models.build("compact", 3, 8, "tal")
    settings, total = Settings(epochs=1, lr=2.0, warmup=0.1), 100
    made, schedule = optimizer.make(network, settings, total, fused=False)
    of = {id(p): i for i, group in enumerate(made.param_groups) for p in group["params"]}
    assert len(of) == len(list(network.parameters()))
    late, early = (of[id(next(part.parameters()))] for part in (network.once, network.many))
    rates = []
    for _ in range(total):
        rates.append([group["lr"] for group in made.param_groups])
        made.step()
        schedule.step()
    first, second = ([row[i] for row in rates] for i in (early, late))
    begin = network.begins_again(total)[1]
    assert first[:begin] == second[:begin]
    assert first == [2.0 * optimizer.lr_factor(step, total, 0.1) for step in range(total)]
    assert second[begin:] == [2.0 * optimizer.lr_factor(step, total - begin, 0.1) for step in range(total - begin)]
    assert max(second[begin:]) > 1.9 > 2 * max(first[begin:])
    plain, _ = optimizer.make(models.build("compact", 3, 8, "gfl"), settings, total, fused=False)
    assert len(plain.param_groups) == 2


@pytest.mark.slow
def test_the_second_head_goes_on_from_the_first_once(tmp_path: Path, folder: Path, monkeypatch: Any) -> None:
    """After seven tenths of the steps, in the network and in the average of its weights."""
    equal: list[tuple[int, int]] = []
    begin_step = models.CompactTaskAligned.begin_step

    def spied(network: models.CompactTaskAligned, step: int, total_steps: int) -> None:
        begin_step(network, step, total_steps)
        first, second = network.many.heads.state_dict(), network.once.state_dict()
        if step and all(torch.equal(first[name], second[name]) for name in first):  # at first they are equal
            equal.append((step, total_steps))

    monkeypatch.setattr(models.CompactTaskAligned, "begin_step", spied)
    run(tmp_path / "run", folder, detector="tal", epochs=2)
    assert equal == [(7, 10), (7, 10)]
    state = weights(tmp_path / "run")
    assert any(
        not torch.equal(state[name], state[name.replace("once", "many.heads")]) for name in state if "once" in name
    )


@pytest.mark.slow
def test_task_aligned_heads_train_together_and_decode_apart(tmp_path: Path, folder: Path) -> None:
    """From one seed both kinds have the same weights and losses; they differ in what they decode."""
    scores = {kind: run(tmp_path / kind, folder, detector=kind, epochs=1) for kind in ("tal", "tal-once")}
    for kind, other, name in (("tal", "tal-once", "without suppression"), ("tal-once", "tal", "with suppression")):
        assert scores[kind]["other"]["name"] == name
        assert scores[kind]["other"]["AP50"] == scores[other]["AP50"]
        assert f"AP {name}" in (tmp_path / kind / "report.html").read_text()
    many, once = (weights(tmp_path / kind) for kind in scores)
    assert many.keys() == once.keys()
    assert all(torch.equal(many[name], once[name]) for name in many)
    losses = next(row["losses"] for row in rows(tmp_path / "tal") if "losses" in row)
    assert len(losses) == 6
    assert all(value > 0 for value in losses.values())
    assert {name.removesuffix("_one_to_one") for name in losses} == {"loss_cls", "loss_bbox", "loss_dfl"}


@pytest.mark.slow
def test_task_aligned_detectors_find_what_they_were_shown(tmp_path: Path) -> None:
    """With suppression and, of the same weights, without; of four images AP50 was 0.31 with it and 0.22 without."""
    shapes.generate(tmp_path / "train", images=4, seed=0)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    options: dict[str, Any] = dict(epochs=150, eval_every=150, augmentation=STILL, ema=0.9)
    assert run(tmp_path / "run", tmp_path, detector="tal", **options)["AP50"] > 0.2
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "detector": "tal-once"}))
    result = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["AP50"] > 0.1
