"""Reading annotations: generated ones with every mistake, and the real data sets if they are present."""

import gzip
import json
import math
import os
from pathlib import Path

import pytest
import torch

from detops.apps.data.coco import read
from detops.apps.data.problems import Level

pytest.importorskip("pycocotools")

DATA = Path(os.environ.get("DETOPS_DATA", Path(__file__).parents[3] / "shared" / "data"))


def data(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the data set {Path(*parts)} in the folder that DETOPS_DATA names")
    return path


def annotation(number: int, bbox: object, image: object = 7, category: object = 4, **more: object) -> dict:
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, **more}


def write(path: Path, annotations: list, **more: object) -> Path:
    images = [
        {"id": 7, "file_name": "a/seven.jpg", "width": 100, "height": 50},
        {"id": 3, "file_name": "three.jpg", "width": 20, "height": 20},
    ]
    categories = [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories, **more}))
    return path


MISTAKES = {
    "not finite": annotation(1, [math.inf, math.inf, -math.inf, -math.inf]),
    "zero or negative size": annotation(1, [5, 5, 0, 10]),
    "outside the image": annotation(1, [100, 0, 10, 10]),
    "unknown image": annotation(1, [0, 0, 5, 5], image=8),
    "unknown category": annotation(1, [0, 0, 5, 5], category=5),
    "malformed bbox": annotation(1, [0, 0, 5]),
}


@pytest.mark.parametrize("reason", MISTAKES)
def test_each_mistake_is_named_and_skipped(tmp_path: Path, reason: str) -> None:
    path = write(tmp_path / "a.json", [MISTAKES[reason], annotation(2, [0, 0, 10, 10])])
    annotations = read(path)
    assert annotations.broken == 1
    assert annotations.boxes.tolist() == [[0, 0, 10, 10]]
    assert annotations.reasons() == {reason: 1}
    place = f"annotations[0] (id 1, image {MISTAKES[reason]['image_id']})"
    assert f"1 annotations left out, {reason}: {place}" in annotations.problems.first(Level.LEFT_OUT)


@pytest.mark.parametrize("bbox", [None, "box", [0, 0, "5", 5], [0, 0, None, 5], {}, [math.nan, 0, 5, 5], [0, 0, -5, 5]])
def test_no_bbox_stops_the_reading(tmp_path: Path, bbox: object) -> None:
    annotations = read(write(tmp_path / "a.json", [annotation(1, bbox), {}, "text"]))
    assert annotations.broken == 3
    assert annotations.boxes.shape == (0, 4)


def test_boxes_are_sorted_clipped_and_labelled(tmp_path: Path) -> None:
    content = [
        annotation(1, [1, 2, 3, 4], image=3, category=9),
        annotation(2, [-10, 40, 30, 30]),
        annotation(3, [0, 0, 5, 5], image=3),
        annotation(4, [0, 0, 9, 9], iscrowd=1),
    ]
    annotations = read(write(tmp_path / "a.json", content))
    assert annotations.class_names == ["cat", "dog"]
    assert annotations.image_index.tolist() == [0, 1, 1]
    assert annotations.labels.tolist() == [0, 1, 0]
    assert annotations.boxes.tolist() == [[0, 40, 20, 50], [1, 2, 4, 6], [0, 0, 5, 5]]
    assert annotations.clipped == 1
    assert annotations.reasons() == {"crowd": 1}
    assert annotations.broken == 0
    boxes, labels = annotations.of_image(1)
    assert boxes.shape == (2, 4)
    assert labels.tolist() == [1, 0]


def test_select(tmp_path: Path) -> None:
    mistakes = [annotation(1, [0, 0, 0, 0], image=3), annotation(2, [0, 0, 1, 1], image=99)]
    path = write(tmp_path / "a.json", [*mistakes, annotation(3, [0, 0, 5, 5], image=3), annotation(4, [0, 0, 6, 6])])
    annotations = read(path)
    three = annotations.select(["3"])
    assert [image.id for image in three.images] == [3]
    assert three.boxes.tolist() == [[0, 0, 5, 5]]
    assert three.image_index.tolist() == [0]
    assert three.broken == 2
    first = annotations.select(limit=1)
    assert first.boxes.tolist() == [[0, 0, 6, 6]]
    assert first.broken == 2  # of the file
    with pytest.raises(ValueError, match="image-id: expected ids of images in the file, got 5, 6"):
        annotations.select(["5", "3", "6"])


def test_compressed_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [annotation(1, [0, 0, 5, 5])])
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read(tmp_path / "a.json.gz").boxes.tolist() == [[0, 0, 5, 5]]


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", "{}", '{"images": 3}', '{"images": [], "annotations": {"1": {}}}', "\x00\x01", "not JSON"],
)
def test_what_is_no_coco_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="expected"):
        read(tmp_path / "a.json")


REAL = {  # images, boxes, classes, crowds; from the README of the data
    ("bccd", "train", "annotations.json"): (205, 2804, 3, 0),
    ("bccd", "val", "annotations.json"): (87, 1137, 3, 0),
    ("coco_small", "train", "annotations.json"): (56, 414, 80, 5),
    ("coco_small", "val", "annotations.json"): (27, 242, 80, 4),
    ("coco_boxes", "instances_boxes_only.json.gz"): (586, 5040, 80, 53),
}


@pytest.mark.parametrize("parts", REAL, ids="/".join)
def test_real_sets(parts: tuple[str, ...]) -> None:
    images, boxes, classes, crowds = REAL[parts]
    annotations = read(data(*parts))
    assert len(annotations.images) == images
    assert len(annotations.class_names) == classes
    assert annotations.reasons() == ({"crowd": crowds} if crowds else {})
    assert len(annotations.boxes) == boxes - crowds
    assert annotations.boxes.isfinite().all()
    assert (annotations.boxes[:, 2:] > annotations.boxes[:, :2]).all()


def test_real_mistakes() -> None:
    path = data("bad_inputs", "taco_unofficial_bad.json")
    annotations = read(path)
    assert annotations.reasons() == {"not finite": 7, "outside the image": 8}
    marked = {a["id"] for a in json.loads(path.read_text())["annotations"] if a.get("why_bad")}
    content = json.loads(path.read_text())["annotations"]
    kept = {content[place]["id"] for place in annotations.table.place.tolist()}
    assert {a["id"] for a in content} - kept <= marked
    assert annotations.clipped == 8
    zero = read(data("bad_inputs", "bccd_zero_area.json"))
    assert zero.reasons() == {"zero or negative size": 2}
    assert torch.equal(zero.image_index, zero.image_index.sort().values)
