"""`detops predict` and the evaluation of a run, with a network whose detections are known."""

import json
from pathlib import Path

import pytest
import torch
from predict_runs import OneBox, call, write_run

from detops.apps.train import models

image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("pycocotools")


KINDS = {"centernet": "OneBox", "yolox": "OneYoloXBox", "gfl": "OneGFLBox", "ld": "OneGFLBox"}


@pytest.fixture(params=KINDS)
def run_folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Make a run and its data, whose images are 128x64, twice the size of the input."""
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    records = []
    for index in range(3):
        image_module.new("RGB", (128, 64), (40 * index, 90, 120)).save(data / "images" / f"{index}.png")
        records.append({"id": 10 + index, "file_name": f"{index}.png", "width": 128, "height": 64})
    boxes = [{"id": 1 + i, "image_id": 10 + i, "category_id": 7, "bbox": [16, 16, 64, 32]} for i in range(3)]
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    (data / "annotations.json").write_text(
        json.dumps({"images": records, "annotations": boxes, "categories": categories})
    )
    run = write_run(tmp_path / "run", OneBox(2, 8), f"predict_runs:{KINDS[request.param]}", request.param)
    config = json.loads((run / "config.json").read_text())
    config |= {"val_annotations": str(data / "annotations.json"), "val_images": str(data / "images")}
    (run / "config.json").write_text(json.dumps(config))
    return run


def test_pictures_and_results_in_pixels_of_the_images(run_folder: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "data" / "images", tmp_path / "out"
    image_module.new("L", (64, 64), 100).save(images / "gray.jpg")
    (images / "notes.txt").write_text("no image")
    ids = tmp_path / "data" / "annotations.json"
    code, output = call("predict", images, images / "1.png", "--run", run_folder, "--out", out, "--annotations", ids)
    assert code == 0, output
    names = sorted(path.name for path in (out / "images").iterdir())
    assert names == ["0.jpg", "1.jpg", "2.jpg", "gray.jpg"]  # an image that is named twice is detected on once
    results = json.loads((out / "results.json").read_text())
    assert [row["file_name"] for row in results] == ["0.png", "1.png", "2.png", "gray.jpg"]
    assert [row["image_id"] for row in results] == [10, 11, 12, 16]  # of one that has none: behind the highest
    assert results[0]["bbox"] == [16, 16, 64, 32]
    assert results[0]["category_id"] == 7
    assert results[0]["score"] == pytest.approx(0.8808, abs=1e-4)
    # The square image fills 32 of 64 pixels of the input's width; what lies beyond its edge is cut.
    assert results[3]["bbox"] == [16, 16, 48, 32]
    before, after = image_module.open(images / "0.png"), image_module.open(out / "images" / "0.jpg")
    assert after.size == (960, 480)
    edge = after.getpixel((16 * 480 // 64, 32 * 480 // 64))
    assert max(abs(a - b) for a, b in zip(edge, before.getpixel((0, 0)), strict=True)) > 60  # a line is drawn there


def test_images_that_cannot_be_read(run_folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes((tmp_path / "data" / "images" / "0.png").read_bytes()[:60])
    code, output = call("predict", bad, tmp_path / "data" / "images" / "0.png", "--run", run_folder, "--out", tmp_path)
    assert code == 1
    assert "bad.png: cannot be decoded" in output.replace("\n", "")
    assert len(json.loads((tmp_path / "results.json").read_text())) == 1
    for arguments, message in (((tmp_path / "none.png",), "no such file"), ((run_folder,), "found none")):
        code, output = call("predict", *arguments, "--run", run_folder, "--out", tmp_path)
        assert code == 2
        assert message in output.replace("\n", "")


def test_a_run_is_evaluated_on_its_own_data(run_folder: Path) -> None:
    code, output = call("evaluate", run_folder)
    assert code == 0, output
    scores = json.loads((run_folder / "evaluation.json").read_text())
    assert scores["AP"] == pytest.approx(1)
    assert scores["classes"] == {"cat": None, "dog": pytest.approx(1)}
    (run_folder / "checkpoints" / "last.ckpt").unlink()
    code, output = call("evaluate", run_folder)
    assert code == 2
    assert "last.ckpt" in output


def test_the_network_starts_with_few_objects_and_learns_all_its_weights() -> None:
    network = models.build("compact", num_classes=3, width=8)
    heatmap, wh, offset = network(torch.randn(2, 3, 64, 96))
    assert heatmap.shape == (2, 3, 16, 24)
    assert wh.shape == offset.shape == (2, 2, 16, 24)
    assert heatmap.dtype == wh.dtype == torch.float32
    assert heatmap.sigmoid().mean() < 0.15
    (heatmap.sum() + wh.sum() + offset.sum()).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_yolox_starts_with_few_objects_and_learns_all_its_weights() -> None:
    network = models.build("compact", num_classes=3, width=8, detector="yolox")
    levels = network(torch.randn(2, 3, 64, 96))
    assert [level.shape for level in levels] == [(2, 1, 64 // s, 96 // s, 8) for s in (8, 16, 32)]
    for level in levels:
        assert level.dtype == torch.float32
        assert level.is_contiguous()
        assert level[..., :4].abs().max() < 0.5
        torch.testing.assert_close(level[..., 4:].sigmoid(), torch.full_like(level[..., 4:], 0.01), rtol=0.3, atol=0)
    sum(level.sum() for level in levels).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_gfl_starts_with_few_objects_and_learns_all_its_weights() -> None:
    network = models.build("compact", num_classes=3, width=8, detector="gfl")
    scores, sides = network(torch.randn(2, 3, 64, 96))
    for level, side, s in zip(scores, sides, (8, 16, 32), strict=True):
        assert level.shape == (2, 3, 64 // s, 96 // s)
        assert side.shape == (2, 68, 64 // s, 96 // s)
        assert level.dtype == side.dtype == torch.float32
        torch.testing.assert_close(level.sigmoid(), torch.full_like(level, 0.01), rtol=0.3, atol=0)
        assert side.abs().max() < 0.5
    sum(level.sum() for level in (*scores, *sides)).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_run_of_an_unknown_detector(run_folder: Path) -> None:
    with pytest.raises(
        ValueError, match="detector: expected centernet, yolox, gfl, ld, tal, tal-once or detr, got 'ssd'"
    ):
        models.build("predict_runs:OneBox", 2, 8, "ssd")
    config = json.loads((run_folder / "config.json").read_text())
    (run_folder / "config.json").write_text(json.dumps({**config, "detector": "ssd"}))
    code, output = call("evaluate", run_folder)
    assert code == 2
    assert "detector: expected centernet, yolox, gfl, ld, tal, tal-once or detr" in output.replace("\n", " ")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("other", '"compact" or "module:function"'),
        ("no_such_module:f", "cannot import"),
        ("math:no_such_function", "cannot import"),
        ("math:sin", "cannot call"),
        ("builtins:dict", "to return a torch.nn.Module, got dict"),
    ],
)
def test_a_model_that_gives_no_network_is_refused(model: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(model, 2, 8)
