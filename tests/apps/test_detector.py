"""`detops.load`: a run as a function of images, with the numbers of `detops predict`."""

import json
import re
from pathlib import Path

import pytest
import torch
from predict_runs import OneBox, Together, call, write_run

import detops
from detops.apps.train import models
from detops.apps.train.families import FAMILIES, family

image_module = pytest.importorskip("PIL.Image")
np = pytest.importorskip("numpy")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return write_run(tmp_path / "run", Together(2, 8), "predict_runs:Together")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images: one that EXIF turns, one of 16 bits, and a plain one."""
    folder, generator = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    turned = image_module.fromarray(generator.integers(0, 255, (30, 50, 3), dtype=np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "0.png", exif=exif)
    image_module.fromarray(generator.integers(0, 65535, (40, 40), dtype=np.uint16)).save(folder / "1.png")
    image_module.fromarray(generator.integers(0, 255, (20, 64, 3), dtype=np.uint8)).save(folder / "2.png")
    return folder


def test_it_finds_what_predict_writes(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("predict", images, "--run", run, "--out", out, "--pictures", 0, "--device", "cpu")[0] == 0
    detector = detops.load(run, device="cpu")
    found = detector(sorted(images.iterdir())).to_list()
    lines = list(map(json.loads, (out / "results.jsonl").read_text().splitlines()))
    assert [one["image_id"] for one in lines] == [1, 2, 3]
    for one, line in zip(found, lines, strict=True):
        rows = line["detections"]
        assert len(rows) == len(one["scores"]) > 3
        assert [detector.category_ids[label] for label in one["labels"]] == [row["category_id"] for row in rows]
        assert [detector.class_names[label] for label in one["labels"]] == [row["category"] for row in rows]
        assert [round(score, 5) for score in one["scores"].tolist()] == [row["score"] for row in rows]
        sizes = [[round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)] for x1, y1, x2, y2 in one["boxes"].tolist()]
        assert sizes == [row["bbox"] for row in rows]


def test_paths_images_arrays_and_tensors_are_one(run: Path, images: Path) -> None:
    detector, path = detops.load(run, device="cpu", max_detections=7), images / "2.png"
    image = image_module.open(path)
    array = np.array(image)
    expected = detector(path)
    assert expected.scores.shape == (1, 7)
    assert expected.boxes[0].max() > 32  # in pixels of the image
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for same in (str(path), image, [image], array, array[:, ::-1][:, ::-1], tensor):
        assert all(map(torch.equal, detector(same), expected))
    deep = images / "1.png"
    assert all(map(torch.equal, detector(np.array(image_module.open(deep))), detector(deep)))


def test_thresholds_and_padding(tmp_path: Path) -> None:
    detector = detops.load(write_run(tmp_path / "run", OneBox(2, 8), "predict_runs:OneBox"), device="cpu")
    grey = np.full((32, 64), 128, np.uint8)
    found = detector([grey, grey])
    assert found.labels.shape == (2, 100)
    (first, _) = found.to_list()
    assert first["boxes"].tolist() == [[8.0, 8.0, 40.0, 24.0]]
    assert first["labels"].tolist() == [1]
    strict = detops.load(tmp_path / "run", device="cpu", score=0.9)
    assert (strict(grey).labels == -1).all()
    assert detector([]).labels.shape == (0, 100)
    drawn = detector.draw(grey, found)
    assert drawn.mode == "RGB"
    assert len(set(drawn.getdata())) > 1
    assert len(set(detector.draw(grey, found, score=0.95).getdata())) == 1


def test_what_is_no_image_or_run(run: Path, tmp_path: Path) -> None:
    detector = detops.load(run, device="cpu")
    for wrong, message in (
        (3, "images: expected paths, Pillow's images, arrays or tensors, got int"),
        (torch.zeros(3, 4, 4), r"expected a tensor \(3, height, width\) of uint8, got torch.float32 \(3, 4, 4\)"),
        (np.zeros((4, 4, 3)), r"expected an array \(height, width, 3\) of uint8, or \(height, width\), got float64"),
    ):
        with pytest.raises(TypeError, match=message):
            detector(wrong)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png: cannot be decoded"):
        detector(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        detops.load(tmp_path)
    with pytest.raises(ValueError, match=r"score: expected 0 \.\. 1"):
        detops.load(run, score=2)
    with pytest.raises(ValueError, match="max_detections: expected at least 1"):
        detops.load(run, max_detections=-1)


def test_a_broken_network_is_told(tmp_path: Path) -> None:
    network = OneBox(2, 8)
    run = write_run(tmp_path / "run", network, "predict_runs:NanBox")
    with pytest.raises(ValueError, match="outputs for image 1 hold NaN"):
        detops.load(run, device="cpu", batch_size=1)([np.zeros((32, 64), np.uint8), np.full((32, 64), 255, np.uint8)])


def test_the_example_of_the_docs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "predict.md").read_text()
    (block,) = re.findall(r"```py\n(.*?)```", text, re.DOTALL)
    for name in ("a", "b"):
        image_module.fromarray(np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8)).save(
            tmp_path / f"{name}.jpg"
        )
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block.replace("score=0.3", "score=0.1"), "block", "exec"), names)
    assert len(names["found"].to_list()) == 2
    assert names["picture"].size[0] >= 64


def test_the_number_of_detections_is_that_of_the_training(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    for settings, expected in (({"max_detections": 7}, 7), ({}, 100), ({"max_detections": "many"}, 100)):
        (run / "config.json").write_text(json.dumps({**config, "settings": settings}))
        assert detops.load(run, device="cpu").max_detections == expected
        assert detops.load(run, device="cpu", max_detections=9).max_detections == 9


@pytest.mark.parametrize("detector", FAMILIES)
def test_every_kind_of_detector_gives_as_many_as_are_asked_for(detector: str) -> None:
    kind = family(detector, 2, max_detections=1500)
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = models.build("compact", 2, 8, detector).eval()(torch.rand(1, 3, 256, 256))
    found = kind.decode(list(outputs), (256, 256))
    assert found.labels.shape == (1, 1500)
    if detector == "tal-once":  # nothing is suppressed
        assert (found.labels >= 0).sum() > 1000
