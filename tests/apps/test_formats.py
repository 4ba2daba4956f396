"""YOLO's and VOC's data: the same records as COCO's, judged in the same place, by the commands that take data."""

import json
import sys
from pathlib import Path

import pytest
from loaded_torchvision import load as load_torchvision
from typer.testing import CliRunner

from detops import cli
from detops.apps.data import coco, formats, shapes
from detops.apps.data.layouts import find_split, find_whole
from detops.apps.data.problems import Level
from detops.apps.data.split import divide
from detops.apps.outputs import Outputs
from detops.apps.train.settings import Data

pytest.importorskip("numpy")
image_module = pytest.importorskip("PIL.Image")


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    for split, count in (("train", 2), ("val", 1)):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "labels" / split).mkdir(parents=True)
        for number in range(count):
            image_module.new("RGB", (200, 100)).save(tmp_path / "images" / split / f"{number}.png")
    (tmp_path / "labels" / "train" / "0.txt").write_text("1 0.5 0.5 0.1 0.2\n\n0 0.1 0.1 0.3 0.1 0.3 0.4\n")
    (tmp_path / "labels" / "val" / "0.txt").write_text("0 0.25 0.5 0.5 1 0.9\n")  # with a score
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n")
    return tmp_path / "data.yaml"


def test_yolo_labels(yolo: Path) -> None:
    pytest.importorskip("loaded_supervision")
    read = coco.read(yolo)
    assert read.class_names == ["cat", "dog"]
    assert [image.file_name for image in read.images] == ["images/train/0.png", "images/train/1.png"]
    assert read.labels.tolist() == [1, 0]
    assert read.boxes.tolist() == [pytest.approx([90, 40, 110, 60]), pytest.approx([20, 10, 60, 40], abs=1e-4)]
    assert not list(read.problems.counts(Level.DOUBTFUL))
    assert coco.read(yolo / "val").boxes.tolist() == [pytest.approx([0, 0, 100, 100])]
    assert (
        Data.from_folder(yolo)
        == Data.from_folder(yolo.parent)
        == Data(yolo / "train", yolo.parent, yolo / "val", yolo.parent)
    )
    assert find_whole(yolo) == (yolo, yolo.parent)
    code, output = call("check", yolo / "val")
    assert code == 0, output
    assert "categories have no object: dog" in output


def test_yolo_labels_are_judged_line_by_line(yolo: Path) -> None:
    pytest.importorskip("loaded_supervision")
    (yolo.parent / "labels" / "train" / "0.txt").write_text(
        "7 0.5 0.5 0.1 0.2\n1 0.5 nan 0.1 0.2\n1 0.5\n0 0.5 0.5 0.1 0.2"
    )
    (yolo.parent / "images" / "train" / "1.png").write_bytes(b"damaged")
    read = coco.read(yolo)
    assert len(read.boxes) == 1
    assert read.reasons() == {"image: no size": 1, "unknown category": 1, "malformed bbox": 2}
    code, output = call("check", yolo)
    assert code == 1
    assert "0.txt: 1 0.5" in output


def test_other_places_of_yolo_data(yolo: Path, tmp_path: Path) -> None:
    pytest.importorskip("loaded_supervision")
    root = yolo.parent
    (root / "some.txt").write_text("./images/train/0.png\n")
    other = tmp_path / "elsewhere" / "set.yaml"
    other.parent.mkdir()
    other.write_text(
        "path: ..\ntrain: [images/val, some.txt]\nval: ../images/val\nkpt_shape: [1, 2]\nnames: [cat, dog]"
    )
    (root / "labels" / "train" / "0.txt").write_text("1 0.5 0.5 0.1 0.2 0.5 0.5\n")  # with a keypoint
    assert [image.file_name for image in coco.read(other).images] == ["images/val/0.png", "images/train/0.png"]
    assert len(coco.read(other).boxes) == 2
    assert find_split(other, "val") == (other / "val", other.parent / "..")
    with pytest.raises(FileNotFoundError, match="names no images for test"):
        coco.read(other / "test")
    other.write_text("train: nowhere\nnames: [cat]")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or list"):
        coco.read(other)
    for text in ("a: [", "names", "{}"):
        other.write_text(text)
        with pytest.raises(ValueError, match=r"set.yaml: expected a data.yaml"):
            coco.read(other)


def test_a_run_on_yolo_data(yolo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("loaded_supervision")
    train = pytest.importorskip("detops.apps.train.train")
    pytest.importorskip("pycocotools")
    monkeypatch.setattr(train.report, "write", lambda *_, **__: None)
    (yolo.parent / "labels" / "train" / "1.txt").write_text("1 0.5 0.5 0.5 0.5")
    small = ("--size", "64x32", "--width", 8, "--epochs", 1, "--batch-size", 2, "--accelerator", "cpu")
    out = tmp_path / "half"
    code, output = call("train", "--data", yolo, "--split", 0.5, "--out", out, *small)
    assert code == 0, output
    assert "data: 1 images with" in output
    code, output = call("evaluate", out, "--annotations", yolo / "val")
    assert code == 0, output
    before = (out / "data" / "val.json").read_bytes()
    code, output = call("train", "--data", yolo, "--split", 0.1, "--out", out, *small)
    assert code == 2
    assert "already holds a training" in output
    assert (out / "data" / "val.json").read_bytes() == before


def voc_xml(boxes: list[tuple[str, str, int]]) -> str:
    objects = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox>{box}</bndbox></object>"
        for name, box, hard in boxes
    )
    size = "<size><width>200</width><height>100</height><depth>3</depth></size>"
    return f"<annotation><filename>a.jpg</filename>{size}{objects}</annotation>"


def corners(*values: float) -> str:
    return "".join(f"<{n}>{v}</{n}>" for n, v in zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True))


def test_voc(tmp_path: Path) -> None:
    load_torchvision()
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    image_module.new("RGB", (200, 100)).save(tmp_path / "JPEGImages" / "a.jpg")
    boxes = [
        ("dog", corners(11, 21, 30, 40), 0),
        ("cat", corners(1, 1, 200, 100), 1),
        ("dog", corners(1, 1, 5, 5).replace("xmin", "left"), 0),
    ]
    (tmp_path / "Annotations" / "a.xml").write_text(voc_xml(boxes))
    (tmp_path / "Annotations" / "b.xml").write_text(voc_xml([("bird", corners(1, 1, 9, 9), 0)]))
    for split, text in (("train", "a\n"), ("val", "b 1\na -1\n")):
        (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text(text)
    path, images = find_split(tmp_path, "train")
    read = coco.read(path)
    assert images == tmp_path / "JPEGImages"
    assert read.class_names == ["bird", "cat", "dog"]
    assert read.boxes.tolist() == [[10, 20, 30, 40]]
    assert read.crowds.tolist() == [[0, 0, 200, 100]]  # what is difficult is ignored
    assert read.reasons() == {"malformed bbox": 1, "crowd": 1}
    assert [image.id for image in coco.read(find_split(tmp_path, "val")[0]).images] == ["b"]
    assert len(coco.read(find_whole(tmp_path)[0]).images) == 2
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("c\n")
    with pytest.raises(FileNotFoundError, match=r"c.xml: no such file"):
        coco.read(find_split(tmp_path, "val")[0])
    (tmp_path / "Annotations" / "c.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"c.xml: expected an annotation of Pascal VOC"):
        coco.read(tmp_path / "Annotations")


def test_a_missing_library_is_named(yolo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("yaml")
    for name in ("supervision", "supervision.dataset.formats.yolo"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    code, output = call("check", yolo)
    assert code == 2
    assert "needs supervision" in output
    assert "detops[formats]" in output


def test_data_in_one_folder_are_divided(tmp_path: Path) -> None:
    path = shapes.generate(tmp_path / "data", images=10, seed=0)
    train, images, val, same = divide(tmp_path / "data", 0.3, Outputs(tmp_path / "run"))
    assert images == same == tmp_path / "data" / "images"
    whole, parts = json.loads(path.read_text()), [json.loads(one.read_text()) for one in (train, val)]
    names = [{image["file_name"] for image in part["images"]} for part in parts]
    assert [len(part) for part in names] == [7, 3]
    assert names[0] | names[1] == {image["file_name"] for image in whole["images"]}
    assert sum(len(part["annotations"]) for part in parts) == len(whole["annotations"])
    for part in parts:
        assert part["categories"] == whole["categories"]
        assert {a["image_id"] for a in part["annotations"]} <= {image["id"] for image in part["images"]}
    whole["images"].reverse()  # the order does not matter
    path.write_text(json.dumps(whole))
    divide(path, 0.3, Outputs(tmp_path / "run"))
    assert {image["file_name"] for image in json.loads(val.read_text())["images"]} == names[1]
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="split: expected a fraction"):
            divide(path, fraction, Outputs(tmp_path / "run"))
    with pytest.raises(FileNotFoundError, match="found no annotations"):
        divide(tmp_path / "run", 0.5, Outputs(tmp_path / "other"))
    code, output = call("train", "--out", tmp_path / "x", "--split", 0.5)
    assert code == 2
    assert "--split: divides --data" in output
    assert not formats.is_other(path)
