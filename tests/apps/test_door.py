"""Habits and mistakes of other tools' files: each is resolved, told, or refused by name."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutations
import pytest
from rich.console import Console
from typer.testing import CliRunner

from detops import cli
from detops.apps import evaluate, runs
from detops.apps.data import coco
from detops.apps.data.dataset import CocoImages, open_annotations
from detops.apps.data.images import decode, endings, facts
from detops.apps.data.layouts import find_split, images_of
from detops.apps.predict.listing import Listing
from detops.apps.predict.sources import Sources, resized, unknown
from detops.apps.scores import score

np = pytest.importorskip("numpy")
image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("pycocotools")
pytest.importorskip("matplotlib")

Data = dict[str, Any]


def save(path: Path, data: object, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, **options), encoding="utf-8")
    return path


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def opened(path: Path, images: Path, strict: bool = False) -> tuple[coco.Annotations, str]:
    console = Console(file=io.StringIO(), width=1000, record=True)
    annotations = open_annotations(path, images, strict, console)
    return annotations, console.export_text()


def each(key: str, change: Callable[[int], Any]) -> Callable[[Data], None]:
    def apply(data: Data) -> None:
        for number, annotation in enumerate(data["annotations"]):
            annotation[key] = change(number)

    return apply


def without_ids(data: Data) -> None:
    for annotation in data["annotations"]:
        del annotation["id"]


@pytest.mark.parametrize("ids", [None, each("id", lambda n: n % 3), each("id", lambda n: 0), without_ids])
def test_one_broken_box_costs_one_annotation_whatever_the_ids(
    tmp_path: Path, ids: Callable[[Data], None] | None
) -> None:
    data = mutations.skeleton()
    found = mutations.detections(data)
    expected = score(save(tmp_path / "b.json", {**data, "annotations": data["annotations"][1:]}), found)
    data["annotations"][0]["bbox"][2:] = [0, 0]
    if ids is not None:
        ids(data)
    path, results = save(tmp_path / "a.json", data), save(tmp_path / "r.json", found)
    assert score(path, found) == expected
    code, output = call("evaluate", "--results", results, "--annotations", path)
    assert code == 0
    assert "1 annotations left out, zero or negative size: annotations[0]" in output.replace("\n", "")
    assert call("evaluate", "--results", results, "--annotations", path, "--strict")[0] == 2


def test_an_area_that_cannot_be_is_that_of_the_box(tmp_path: Path) -> None:
    data = mutations.skeleton()
    found = mutations.detections(data)
    expected = score(save(tmp_path / "a.json", data), found)
    for area in (2**63, 64 * 48 + 1, -3, "large", float("nan")):
        for annotation in data["annotations"]:
            annotation["area"] = area
        assert score(save(tmp_path / "b.json", data), found) == expected
    assert coco.read(tmp_path / "b.json").problems.counts()["area repaired"] == len(data["annotations"])
    # Neither does a box that reaches far beyond its image drop out of the scores: it is an object to be found.
    data["annotations"][0] |= {"bbox": [0, 0, 1e200, 1e200], "area": None}
    far = score(save(tmp_path / "c.json", data), found)
    assert far["AR100"] < expected["AR100"]


def test_what_is_there_twice_is_told(tmp_path: Path) -> None:
    data = mutations.skeleton()
    found = mutations.detections(data)
    data["annotations"].insert(3, {**data["annotations"][1], "id": 99})
    path, results = save(tmp_path / "a.json", data), save(tmp_path / "r.json", [*found, found[2]])
    code, output = call("evaluate", "--results", results, "--annotations", path)
    text = " ".join(output.split())
    assert code == 0
    assert "1 annotations repeat one before them: the same image, category and box: annotations[3] (id 99" in text
    assert f"1 rows repeat one before them, and count as false: row {len(found)} is the first" in text
    assert call("check", path)[0] == 1


def test_results_that_look_wrong_are_told(tmp_path: Path) -> None:
    data = mutations.skeleton()
    path = save(tmp_path / "a.json", data)
    good = mutations.detections(data)
    normalised = [{**row, "bbox": [value / 64 for value in row["bbox"]]} for row in good]
    corners = [{**row, "bbox": [x, y, x + w, y + h]} for row in good for x, y, w, h in [row["bbox"]]]
    for rows, message in (
        (normalised, "boxes, all, lie within one pixel: are they normalised?"),
        (corners, "fit it as [x1, y1, x2, y2]: which are they?"),
        (good[:1], "2 of 3 images have no detection in it"),
        ([], "there is no detection in it"),
    ):
        results = save(tmp_path / "r.json", rows)
        assert message in " ".join(call("evaluate", "--results", results, "--annotations", path)[1].split())
    quiet = call("evaluate", "--results", save(tmp_path / "r.json", good), "--annotations", path)[1]
    assert "r.json" not in quiet


def test_a_mask_without_a_pixel_is_no_object(tmp_path: Path) -> None:
    data = mutations.skeleton()
    found = [
        {**row, "segmentation": a["segmentation"]}
        for row, a in zip(mutations.detections(data), data["annotations"], strict=True)
    ]
    assert score(save(tmp_path / "a.json", data), found, "segm")["AP"] == pytest.approx(1)
    for nothing in ([[1, 1, 2, 2, 3, 3]], [[100, 100, 110, 100, 110, 110]], {"size": [48, 64], "counts": [48 * 64]}):
        changed = [{**data["annotations"][0], "segmentation": nothing}, *data["annotations"][1:]]
        path = save(tmp_path / "b.json", {**data, "annotations": changed})
        assert "malformed segmentation" in coco.read(path, masks=True).reasons()
        assert score(path, found[1:], "segm")["AP"] == pytest.approx(1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: cannot be decoded: is no regular file"):
        decode(tmp_path / "a.png")
    with pytest.raises(ValueError, match="got a device"):
        coco.read(Path("/dev/zero"))


REFUSED = {  # what is left of a set is nothing, and why
    "text image ids": (
        lambda d: [i.update(id=str(i["id"])) for i in d["images"]],
        'is a number, the file\'s own id "',
    ),
    "text categories": (each("category_id", lambda n: "1"), 'category_id "1" is text, the file\'s own id 1 is a number'),
    "all crowds": (each("iscrowd", lambda n: 1), "8 of them crowds, which are ignored"),
    "crowds as text": (each("iscrowd", lambda n: "0"), 'malformed iscrowd: annotations[0] (id 1'),
    "a dict": (lambda d: d.update(annotations={"1": d["annotations"][0]}), "annotations: expected a list, got dict"),
    "no images": (lambda d: d.update(images=[]), "no image is left"),
    "none": (lambda d: d.update(annotations=[]), "there are no annotations in it"),
    "one id, two images": (lambda d: d["images"][1].update(id=1), "ids stand for several images: images[1]"),
    "one id, two classes": (lambda d: d["categories"][1].update(id=1), "ids stand for several categories"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_set_of_which_nothing_is_left_stops_every_command(tmp_path: Path, what: str) -> None:
    change, message = REFUSED[what]
    data = mutations.skeleton()
    results = save(tmp_path / "r.json", mutations.detections(data))
    change(data)
    path, images = save(tmp_path / "a.json", data), mutations.write_images(tmp_path / "images")
    with pytest.raises(ValueError, match=r"a\.json: ") as refusal:
        opened(path, images)
    assert message in str(refusal.value)
    assert call("targets", path, "--out", tmp_path / "out")[0] == 2
    assert call("targets", path, "--images", images, "--out", tmp_path / "out")[0] == 2
    assert call("evaluate", "--results", results, "--annotations", path)[0] == 2
    assert call("check", path)[0] in (1, 2)
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_filled_in(tmp_path: Path) -> None:
    data = mutations.skeleton()
    expected = score(save(tmp_path / "a.json", data), mutations.detections(data))
    for key in ("area", "iscrowd"):
        for value in (None, "drop"):
            changed = mutations.skeleton()
            for annotation in changed["annotations"]:
                annotation[key] = value
                if value == "drop":
                    del annotation[key]
            assert score(save(tmp_path / "b.json", changed), mutations.detections(data)) == expected


def test_names_and_ids_are_resolved_or_told(tmp_path: Path) -> None:
    data, images = mutations.skeleton(), mutations.write_images(tmp_path / "images" / "sub")
    data["images"][0]["file_name"] = "sub\\0.png"
    data["images"][1]["file_name"] = "C:\\elsewhere\\sub\\1.png"
    data["images"][2] = {"id": 3, "file_name": "sub/2.png"}
    data["categories"][1]["name"] = "cat"
    path = save(tmp_path / "a.json", data)
    (images / "1.png").rename(tmp_path / "images" / "1.png")
    annotations, text = opened(path, tmp_path / "images")
    assert [image.file_name for image in annotations.images] == ["sub/0.png", "1.png", "sub/2.png"]
    assert (annotations.images[2].width, annotations.images[2].height) == (64, 48)
    assert annotations.class_names == ["cat (id 1)", "cat (id 7)"]
    assert '1 names stand for several categories, which are kept apart by their ids: "cat" has ids 1, 7' in text
    data["images"][1]["file_name"] = "sub/0.png"
    text = opened(save(path, data), tmp_path / "images")[1]
    assert "1 images have the file name of an image before" in text
    with pytest.raises(ValueError, match="as --strict asks"):
        opened(path, tmp_path / "images", strict=True)


def test_names_in_other_letters_are_found(tmp_path: Path) -> None:
    data, images = mutations.skeleton(), mutations.write_images(tmp_path / "Images")
    (images / "0.png").rename(images / "a b.PNG")
    data["images"][0]["file_name"] = "a%20b.png"
    (images / "1.png").rename(images / "É.png")
    data["images"][1]["file_name"] = "e\u0301.PNG".upper()
    (images / "2.png").rename(images / "C.png")
    data["images"][2]["file_name"] = "c.png"
    annotations, _ = opened(save(tmp_path / "a.json", data), images)
    assert [image.file_name for image in annotations.images] == ["a b.PNG", "É.png", "C.png"]
    (images / "c.PNG").touch()
    assert len(opened(tmp_path / "a.json", images)[0].images) == 2  # which of both is meant?


def test_predict_tells_where_images_have_another_size(tmp_path: Path) -> None:
    images = mutations.write_images(tmp_path / "images")
    records = [coco.ImageRecord(1, "0.png", 48, 64), coco.ImageRecord(2, "1.png", 64, 48)]
    given = list(Sources([str(images / "0.png"), str(images / "1.png"), str(images / "2.png")], records))
    assert resized(given) == [f"{images / '1.png'} is 64 x 48, recorded as 48 x 64"]


def test_results_that_are_none_are_refused_by_row(tmp_path: Path) -> None:
    data = mutations.skeleton()
    path = save(tmp_path / "a.json", data)
    for key, value, message in (
        ("score", "0.9", 'score: expected a number, got "0.9"'),
        ("score", None, "score: expected a number, got None"),
        ("score", float("nan"), "score: expected a finite number"),
        ("bbox", [], "bbox: expected four numbers"),
        ("bbox", [1, 2, 3, 4, 5], "bbox: expected four numbers"),
        ("bbox", ["1", "2", "3", "4"], "bbox: expected a number"),
        ("bbox", [1, 2, -3, 4], "not negative"),
        ("bbox", [1, 2, 1e308, 1e308], "expected numbers of pixels"),
        ("image_id", [1], "image [1] is not in the annotations"),
        ("image_id", "1", 'image_id "1" is text, the file\'s own id 1 is a number'),
        ("category_id", 0, "category_id 0, known are 1, 7"),
        ("segmentation", None, "expected polygons or run lengths, got nothing"),
        ("segmentation", {"size": [24, 32], "counts": [768]}, "expected a mask of size [48, 64], got [24, 32]"),
    ):
        rows = mutations.detections(data)
        rows[2][key] = value
        kind = "segm" if key == "segmentation" else "bbox"
        code, output = call(
            "evaluate", "--results", save(tmp_path / "r.json", rows), "--annotations", path, "--kind", kind
        )
        assert code == 2, output
        assert f"r.json: row 2: {'segmentation: ' if kind == 'segm' else ''}" in output
        assert message in output


MASKS = [None, [], [[]], [[1, 1, 9, 9]], [1, 1, 9, 1, 9, 9], [[[1, 1], [9, 1], [9, 9]]], "text", {"size": [48, 64]}]
MASKS += [{"size": [48, 64], "counts": [3000]}, {"size": [48, 64], "counts": "1"}, [[0, 0, 1e9, 0, 5, 5]]]


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_segmentations_that_are_no_masks_are_left_out(tmp_path: Path, mask: Any) -> None:
    data = mutations.skeleton()
    found = mutations.detections(data)
    kept = {**data, "annotations": data["annotations"][:3] + data["annotations"][4:]}
    expected = score(save(tmp_path / "b.json", kept), found, "segm")
    data["annotations"][3]["segmentation"] = mask
    path = save(tmp_path / "a.json", data)
    assert score(path, found, "segm") == expected
    annotations = coco.read(path, masks=True)
    assert annotations.reasons() == {"malformed segmentation": 1}
    assert call("check", path)[0] == 0
    assert call("check", path, "--masks")[0] == 1


def test_corners_and_normalised_boxes_are_told(tmp_path: Path) -> None:
    data = mutations.skeleton(boxes=40)
    assert coco.read(save(tmp_path / "a.json", data)).problems.counts() == {}
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]
    assert "looks like xyxy" in coco.read(save(tmp_path / "a.json", data)).problems.counts()
    for annotation in data["annotations"]:
        annotation["bbox"] = [0.25, 0.5, 0.25, 0.125]
    assert "looks normalised" in coco.read(save(tmp_path / "a.json", data)).problems.counts()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_unless_the_file_records_otherwise(tmp_path: Path, orientation: int) -> None:
    ops = pytest.importorskip("PIL.ImageOps")
    pixels = np.arange(48 * 64 * 3, dtype=np.uint32).reshape(48, 64, 3) % 251
    exif = image_module.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    image_module.fromarray(pixels.astype(np.uint8)).save(path, exif=exif)
    expected = ops.exif_transpose(image_module.open(path)).convert("RGB")
    assert np.array_equal(np.asarray(decode(path)), np.asarray(expected))
    assert facts(path).size == expected.size
    assert facts(path).turned == (orientation > 1)
    recorded = decode(path, (64, 48))
    assert recorded.size == facts(path, (64, 48)).size == (64, 48)


def test_deep_images_are_scaled(tmp_path: Path) -> None:
    plain = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    wide = plain.astype(np.uint16)
    images = {
        "16.png": wide * 257, "16.tif": wide * 257, "12.tif": wide * 16, "8.tif": wide, "1.tif": (plain / 255).astype("f4"),
        "255.tif": plain.astype("f4"), "stretched.tif": plain.astype("f4") * 7 - 300, "32.tif": wide.astype(np.int32) * 257,
    }  # fmt: skip
    for name, values in images.items():
        image_module.fromarray(values).save(tmp_path / name)
        found = np.asarray(decode(tmp_path / name)).astype(int)
        assert abs(found - plain[..., None]).max() <= 1, name
    holes = (plain / 255).astype("f4")
    holes[0, :2] = np.nan, np.inf
    image_module.fromarray(holes).save(tmp_path / "holes.tif")
    assert np.asarray(decode(tmp_path / "holes.tif"))[0, :2, 0].tolist() == [0, 255]


def test_images_of_another_size_and_damaged_ones_are_told(tmp_path: Path) -> None:
    path, images = save(tmp_path / "a.json", mutations.skeleton()), mutations.write_images(tmp_path / "images")
    image_module.new("RGB", (48, 64)).save(images / "0.png")
    (images / "1.png").write_bytes(b"no image")
    annotations, text = opened(path, images)
    assert 'image 1, "0.png" is 48 x 64, recorded as 64 x 48' in text
    assert "1 images left out, a damaged file" in text
    assert [image.id for image in annotations.images] == [1, 3]
    with pytest.raises(ValueError, match="as --strict asks"):
        opened(path, images, strict=True)
    assert call("check", path, "--images", images)[0] == 1
    code, output = call("targets", path, "--images", tmp_path, "--out", tmp_path / "out")
    assert code == 2
    assert "found none of the 3 images" in output.replace("\n", "")


def test_encodings(tmp_path: Path) -> None:
    data = mutations.skeleton()
    data["categories"][0]["name"] = "Löwe 猫"
    text = json.dumps(data, ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "a.json").write_bytes(text.encode(encoding))
        assert coco.read(tmp_path / "a.json").class_names[0] == "Löwe 猫"
    for content, message in (
        (text.encode("utf-16"), "UTF-16"), (text.encode("latin-1", "replace"), "byte 0xf6"), (b"PK\x03\x04", "an archive"),
        (b"[" * 200_000, "nested too deep"), (b'{"a": ' + b"1" * 5000 + b"}", "5000 digits"), (b"\x1f\x8b\x08", "gzip"),
        (b'{"a": 1}\n{"a": 2}\n', "JSON lines"),
    ):  # fmt: skip
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.json: expected COCO annotations") as refusal:
            coco.read(tmp_path / "a.json")
        assert message in str(refusal.value)


LAYOUTS = {
    "ours": ("train/annotations.json", "train/images", "val/annotations.json", "val/images"),
    "roboflow": ("train/_annotations.coco.json", "train", "valid/_annotations.coco.json", "valid"),
    "cvat": (
        "annotations/instances_train.json", "images/train", "annotations/instances_val.json", "images/val",
    ),
    "cvat in one folder": (
        "annotations/instances_train.json", "images", "annotations/instances_validation.json", "images",
    ),
    "coco": ("annotations/instances_train2017.json", "train2017", "annotations/instances_val2017.json", "val2017"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_other_tools_are_found(tmp_path: Path, layout: str) -> None:
    paths = [tmp_path / part for part in LAYOUTS[layout]]
    for path in (paths[1], paths[3]):
        path.mkdir(parents=True, exist_ok=True)
    for path in (paths[0], paths[2]):
        save(path, {})
    assert find_split(tmp_path, "train") == (paths[0], paths[1])
    assert find_split(tmp_path, "val") == (paths[2], paths[3])
    assert images_of(paths[2]) == paths[3]


def test_a_folder_without_a_known_layout_is_told_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"_annotations\.coco\.json .*instances_train\.json"):
        find_split(tmp_path, "train")


def test_images_are_listed_once_and_other_files_are_told(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JFIF", "c.jpe", "d.gif", "e.jp2", "notes.txt", "g.jpg_large", ".hidden.png"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    images = tmp_path / "images"
    listing = Listing([images / "c.jpe", images, tmp_path / "images" / "a.jpg", tmp_path / "link", images / "c.jpe"])
    assert [Path(path).name for path in listing] == ["c.jpe", ".hidden.png", "a.jpg", "b.JFIF", "d.gif", "e.jp2"]
    assert len(listing) == 6
    assert listing.left_out[0] == 2
    assert listing.repeated[0] == 4
    assert {".jpg", ".avif", ".webp", ".tif"} - endings() <= {".avif"}  # which Pillow may be built without


def test_two_images_never_have_one_id() -> None:
    records = [coco.ImageRecord(5, "sub\\1.jpg", 48, 64), coco.ImageRecord("x", "2.jpg", 48, 64)]
    assert [s.image_id for s in Sources(["a/sub/1.jpg", "2.jpg", "3.jpg"], records)] == [5, "x", 8]
    assert unknown(Sources(["a/sub/1.jpg", "3.jpg"], records)) == (1, "3.jpg")
    with pytest.raises(ValueError, match=r"a/2\.jpg and b/2\.jpg would both be image \"x\""):
        list(Sources(["a/2.jpg", "b/2.jpg"], records))
    twice = [coco.ImageRecord(1, "1.jpg", 48, 64), coco.ImageRecord(2, "1.jpg", 48, 64)]
    assert unknown(Sources(["1.jpg"], twice)) == (1, "1.jpg")


def test_an_image_that_breaks_off_does_not_count_as_missed(tmp_path: Path) -> None:
    path, images = save(tmp_path / "a.json", mutations.skeleton()), mutations.write_images(tmp_path / "images")
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    image_module.fromarray(noise).save(images / "0.png")
    (images / "0.png").write_bytes((images / "0.png").read_bytes()[:3000])
    annotations, _ = opened(path, images)
    dataset = CocoImages(annotations, images, (48, 64), False, 1 << 20, Console(quiet=True))
    assert dataset.broken == {0}
    found = {}
    for row in range(3):
        boxes, labels = annotations.of_image(row)
        found[row] = (
            runs.Found(boxes.float(), labels, boxes.new_ones(len(boxes)))
            if row
            else runs.Found(boxes[:0], labels[:0], boxes[:0, 0])
        )
    assert evaluate.score_rows(dataset, found)["AP"] == pytest.approx(1)


def test_the_report_of_a_check(tmp_path: Path) -> None:
    data = mutations.skeleton()
    data["categories"][0]["name"] = "<b>猫\ud800"
    path = save(tmp_path / "a.json", data)
    code, output = call("check", path, "--out", tmp_path / "report.html")
    assert code == 0, output
    assert "nothing is wrong with it" in output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;猫" in page
    assert "http" not in page
    data["annotations"][0]["bbox"] = None
    code, output = call("check", save(path, data), "--out", tmp_path / "report.html")
    assert code == 1
    assert "malformed bbox: annotations[0] (id 1" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert call("check", tmp_path / "none.json")[0] == 2


def test_opening_a_set_takes_time_in_proportion(tmp_path: Path) -> None:
    """Eight times the images may take sixteen times as long, not sixty-four."""
    (tmp_path / "images").mkdir()
    seconds = []
    for count in (1000, 8000):
        images = [{"id": i, "file_name": "0.png", "width": 64, "height": 48} for i in range(count)]
        boxes = [{"image_id": k % count, "category_id": 1, "bbox": [5, 5, 20, 20]} for k in range(7 * count)]
        path = save(tmp_path / "a.json", {"images": images, "annotations": boxes, "categories": [{"id": 1}]})
        start = time.process_time()
        annotations = coco.read(path)
        dataset = CocoImages(annotations, tmp_path, (48, 64), False, 0, Console(quiet=True))
        for row in range(count):
            dataset.annotations.of_image(row)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 16 * seconds[0] + 0.5


@pytest.mark.slow
def test_the_locale_does_not_matter(tmp_path: Path) -> None:
    """Also where Python would read and write text by another code page."""
    data = mutations.skeleton()
    data["categories"][0]["name"] = "猫"
    (tmp_path / "a.json").write_bytes(json.dumps(data, ensure_ascii=False).encode())
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "import sys; from pathlib import Path; from detops.apps.data import coco; "
    code += "print(ascii(coco.read(Path(sys.argv[1])).class_names))"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.json"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == r"['\u732b', 'dog']", done.stderr
