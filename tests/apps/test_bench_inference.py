"""`detops bench inference`: its table, its pictures, and replacing torchvision's missing operators."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import tiny_mask_rcnn
import torch
import torchvision
from typer.testing import CliRunner

from detops import MaskRCNNPipeline, cli, nms
from detops.apps.bench import _inference_scene as scene
from detops.apps.bench import _torchvision, inference

image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("pycocotools")


def tiny(size: tuple[int, int], weights: object) -> torch.nn.Module:
    model = tiny_mask_rcnn.build(seed=1, min_size=min(size), max_size=max(size), box_detections_per_img=100)
    if weights is not None:
        model.load_state_dict(torch.load(weights))
    return model


@pytest.fixture
def call(monkeypatch, tmp_path):
    monkeypatch.setattr(inference, "resnet50", tiny)
    monkeypatch.setattr(inference, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(cli.console, "width", 200)

    def run(*arguments: object) -> tuple[int, str]:
        out = ["--out", tmp_path / "out", "--device", "cpu", "--repeats", 2]
        result = CliRunner().invoke(cli.app, ["bench", "inference", *map(str, [*arguments, *out])])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return run


ROWS = [
    "plain", "+ half precision (bfloat16)", "+ preprocessing on the device", "+ raw masks", "+ RLE of raw masks",
    "instead: paste and encode",
]  # fmt: skip


def test_table_pictures_and_json(call, tmp_path):
    code, output = call("--sizes", "160x128", "128x160", "--json", tmp_path / "results" / "r.json")
    assert code == 0, output
    assert "generated objects" in output
    record = json.loads((tmp_path / "results" / "r.json").read_text(), parse_constant=pytest.fail)
    assert [entry["size"] for entry in record["sizes"]] == ["160x128", "128x160"]
    for entry in record["sizes"]:
        assert [row["name"].partition(":")[0] for row in entry["rows"][:2]] == [ROWS[0], ROWS[1]]
        assert [row["name"] for row in entry["rows"][2:]] == ROWS[2:]
        for row in entry["rows"]:
            columns = row["columns"]
            assert list(columns) == list(inference.COLUMNS)
            assert all(value > 0 for value in columns.values())
            assert row["detections"] == inference.COUNT
            assert columns["mask forward"] + columns["mask post-processing"] < columns["RoI head"] * 1.5
            assert row["low"] <= columns["total"] <= row["high"]
        slower = entry["rows"][1]["columns"]["total"] >= entry["rows"][0]["columns"]["total"]
        assert ("slower here" in entry["rows"][1]["name"]) == slower
        picture = image_module.open(tmp_path / "out" / f"{entry['size']}.jpg")
        assert picture.width == 2008
    assert record["trained weights"] is False
    stages = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "tables.py"))["stages"]
    text = stages(tmp_path / "results" / "r.json")
    assert text.count("\n| ") == 1 + 2 * len(ROWS)
    assert "| 128x160 instead: paste and encode |" in text


def test_trained_weights_detect_for_themselves(call, tmp_path):
    torch.save(tiny((160, 128), None).state_dict(), tmp_path / "weights.pt")
    (image,) = tiny_mask_rcnn.pictures((100, 150))
    image_module.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    options = ["--sizes", "160x128", "--weights", tmp_path / "weights.pt", "--image", tmp_path / "image.png"]
    code, output = call(*options, "--json", tmp_path / "r.json")
    assert code == 0, output
    assert "generated objects" not in output
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["sizes"][0]["image"] == [150, 100]
    with torch.no_grad():
        expected = tiny((160, 128), tmp_path / "weights.pt")([image / 255])[0]
    assert record["sizes"][0]["rows"][0]["detections"] == len(expected["boxes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "1333"], "sizes: expected WIDTHxHEIGHT of at least 64, such as 1333x800, got '1333'"),
        (["--image", __file__], "cannot be decoded"),
        (["128x128"], "expected one suite, got also 128x128"),
    ],
)
def test_what_is_refused(call, arguments, message):
    code, output = call(*arguments)
    assert code == 2
    assert message in output


def test_options_of_another_suite():
    result = CliRunner().invoke(cli.app, ["bench", "nms", "--sizes", "64x64"])
    assert result.exit_code == 2
    assert "--sizes: belongs to the suite inference" in result.output


def test_weights_of_another_model(tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt: expected weights of torchvision's maskrcnn_resnet50_fpn"):
        inference.resnet50((128, 128), tmp_path / "other.pt")


def test_generated_objects_are_found_where_they_are():
    model = tiny_mask_rcnn.build()
    objects = scene.generate(100, tiny_mask_rcnn.CLASSES, aspect=1.5)
    assert ((objects.boxes >= 0) & (objects.boxes <= 1)).all()
    assert ((objects.labels > 0) & (objects.labels < tiny_mask_rcnn.CLASSES)).all()
    scene.find(model, objects)
    (found,) = MaskRCNNPipeline(model, masks="raw")([scene.picture(objects, 300, 200)])
    torch.testing.assert_close(found["boxes"], objects.boxes * torch.tensor([300.0, 200, 300, 200]))
    assert torch.equal(found["labels"], objects.labels)
    shares = (found["masks"].areas() / (found["boxes"][:, 2:] - found["boxes"][:, :2]).prod(1))[:50]
    assert ((shares > 0.3) & (shares < 1.05)).all()


@pytest.mark.skipif(torchvision.extension._has_ops(), reason="torchvision's compiled operators load")
def test_the_operators_that_are_put_in_place():
    _torchvision.load()
    g = torch.Generator().manual_seed(0)
    low = torch.rand(60, 2, generator=g) * 40
    boxes, scores = torch.cat([low, low + 12], 1), torch.rand(60, generator=g)
    assert torch.equal(torchvision.ops.nms(boxes, scores, 0.3), nms(boxes, scores, 0.3))
    theirs = sys.modules["torchvision.ops.roi_align"]._roi_align.original.__wrapped__
    features = torch.rand(3, 5, 13, 21, generator=g)
    image = torch.randint(0, 3, (60, 1), generator=g).float()
    rois = torch.cat([image, low, low + torch.rand(60, 2, generator=g) * 12], 1)
    for aligned in (False, True):
        for ratio in (1, 2, 3):
            options = (0.25, 7, 5, ratio, aligned)
            expected = theirs(features, rois, *options)
            torch.testing.assert_close(
                torchvision.ops.roi_align(features, rois, (7, 5), 0.25, ratio, aligned), expected
            )
            torch.testing.assert_close(_torchvision.roi_align(features, rois, *options), expected)
    off = torch.tensor([[0.0, -90, -90, -50, -50]])
    assert not _torchvision.roi_align(features, off, 0.25, 7, 5, 2, False).any()
