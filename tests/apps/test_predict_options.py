"""`detops predict`: what is kept, how many, in which formats, of which patterns and videos; and how fast."""

import csv
import json
from pathlib import Path

import pytest
import torch
from predict_runs import OneBox, Together, call, write_run, write_video

from detops.apps.data import video
from detops.apps.predict.form import Form, chosen

image_module = pytest.importorskip("PIL.Image")
np = pytest.importorskip("numpy")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return write_run(tmp_path / "run", Together(2, 8), "predict_runs:Together")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.png", "sub/a.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image_module.fromarray(generator.integers(0, 255, (32, 64, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def read(out: Path) -> list[dict]:
    return list(map(json.loads, (out / "results.jsonl").read_bytes().splitlines()))


def predict(run: Path, out: Path, *arguments: object) -> list[dict]:
    code, output = call("predict", *arguments, "--run", run, "--out", out, "--pictures", 0, "--workers", 0)
    assert code == 0, output
    return read(out)


def test_score_classes_and_number(run: Path, images: Path, tmp_path: Path) -> None:
    whole = predict(run, tmp_path / "whole", images)
    rows = [row for line in whole for row in line["detections"]]
    assert {(row["category_id"], row["category"]) for row in rows} == {(3, "cat"), (7, "dog")}
    score = sorted(row["score"] for row in rows)[len(rows) // 2]
    for options, kept in (
        (("--score", score), lambda row: row["score"] >= score),
        (("--classes", "dog"), lambda row: row["category_id"] == 7),
        (("--classes", "3"), lambda row: row["category_id"] == 3),
        (("--classes", "dog,cat"), lambda row: True),
        (("--classes", "dog", "--score", score), lambda row: row["category_id"] == 7 and row["score"] >= score),
    ):
        out = tmp_path / "-".join(map(str, options))
        expected = [{**line, "detections": [row for row in line["detections"] if kept(row)]} for line in whole]
        assert predict(run, out, images, *options) == expected
        assert len(json.loads((out / "results.json").read_text())) == sum(len(line["detections"]) for line in expected)
    few = predict(run, tmp_path / "few", images, "--max-detections", 3)
    assert [line["detections"] for line in few] == [line["detections"][:3] for line in whole]


def test_what_was_begun_otherwise_is_not_resumed(run: Path, images: Path, tmp_path: Path) -> None:
    predict(run, tmp_path / "out", images, "--score", 0.1)
    (tmp_path / "out" / "results.json").unlink()
    arguments = ("predict", images, "--run", run, "--out", tmp_path / "out", "--resume")
    for options, names in (((), "score"), (("--score", 0.1, "--classes", "dog"), "classes")):
        code, output = call(*arguments, *options)
        assert code == 2
        assert f"started with different {names}" in output.replace("\n", " ")
    assert call(*arguments, "--score", 0.1)[0] == 0


def test_formats_of_other_tools(run: Path, images: Path, tmp_path: Path) -> None:
    (images / "broken.png").write_bytes(b"")
    image_module.new("RGB", (8, 8)).save(images / "c.png")
    out = tmp_path / "out"
    arguments = ("--run", run, "--out", out, "--format", "csv", "--format", "yolo", "--max-detections", 4)
    code, output = call("predict", images, images / "sub" / "a.png", *arguments)
    assert code == 1
    assert "results.csv, labels/*.txt and 4 pictures" in output.replace("\n", " ")
    lines = [line for line in read(out) if "error" not in line]
    rows = [(line, row) for line in lines for row in line["detections"]]
    with (out / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(r["path"], int(r["category_id"]), r["category"], float(r["score"]), float(r["x"])) for r in table] == [
        (line["path"], row["category_id"], row["category"], row["score"], row["bbox"][0]) for line, row in rows
    ]
    assert (out / "classes.txt").read_text() == "cat\ndog\n"
    # Of the two called a, each has a name of its own, as pictures have.
    assert sorted(path.name for path in (out / "labels").iterdir()) == ["a_1.txt", "a_2.txt", "b.txt", "c.txt"]
    for line, name in zip(lines, ("a_1", "b", "c", "a_2"), strict=True):
        values = [list(map(float, text.split())) for text in (out / "labels" / f"{name}.txt").read_text().splitlines()]
        assert len(values) == len(line["detections"])
        for (label, x, y, w, h, score), row in zip(values, line["detections"], strict=True):
            assert (3, 7)[int(label)] == row["category_id"]
            assert score == row["score"]
            box = [(x - w / 2) * line["width"], (y - h / 2) * line["height"], w * line["width"], h * line["height"]]
            assert box == pytest.approx(row["bbox"], abs=1e-4 * 64)
    # A finished run is replaced with all its files; what somebody else put there stays.
    (out / "labels" / "mine.txt").write_text("0 0 0 1 1\n")
    assert call("predict", images / "b.png", *arguments)[0] == 0
    assert sorted(path.name for path in (out / "labels").iterdir()) == ["b.txt", "mine.txt"]
    assert sorted(path.name for path in (out / "images").iterdir()) == ["b.jpg"]
    assert call("predict", images / "b.png", "--run", run, "--out", out, "--format", "voc")[0] == 2


def test_formats_do_not_write_over_files_of_others(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "labels").mkdir(parents=True)
    (out / "labels" / "a.txt").write_text("0 0.5 0.5 1 1\n")
    (out / "results.csv").write_text("mine\n")
    for name in ("csv", "yolo"):
        code, output = call("predict", images, "--run", run, "--out", out, "--format", name)
        assert code == 2
        assert "detops" in output
    assert (out / "labels" / "a.txt").read_text() == "0 0.5 0.5 1 1\n"
    assert (out / "results.csv").read_text() == "mine\n"
    assert not (out / "results.jsonl").exists()


def test_names_of_classes() -> None:
    names = {1: "cat", 2: "dog, big", "x": "2", 3: "cat"}
    assert chosen([], names) is None
    assert chosen(["cat"], names) == {1, 3}
    assert chosen(["dog, big"], names) == {2}
    assert chosen(["x , cat"], names) == {"x", 1, 3}
    assert chosen(["2"], names) == {"x", 2}  # a name, and an id
    assert chosen(["17,4"], {}) == {4, 17}
    for text in ("elk", "cat,", "-1"):
        with pytest.raises(ValueError, match=r'classes: expected "cat", "dog, big", "2", "cat", got '):
            chosen([text], names)
    rows = [{"category_id": 5, "score": 0.5}]
    assert Form({}).rows(rows) == rows


def test_patterns_stand_for_files(run: Path, images: Path, tmp_path: Path) -> None:
    lines = predict(run, tmp_path / "a", images / "*.png", images / "sub" / "[ab].png")
    assert [Path(line["path"]).relative_to(images).as_posix() for line in lines] == ["a.png", "b.png", "sub/a.png"]
    lines = predict(run, tmp_path / "b", images / "**" / "a.png")
    assert [Path(line["path"]).relative_to(images).as_posix() for line in lines] == ["a.png", "sub/a.png"]
    (images / "[x].png").write_bytes((images / "a.png").read_bytes())
    assert [line["path"] for line in predict(run, tmp_path / "c", images / "[x].png")] == [str(images / "[x].png")]
    code, output = call("predict", images / "*.bmp", "--run", run, "--out", tmp_path / "d")
    assert code == 2
    assert "no file fits this pattern" in output.replace("\n", " ")


def test_full_images_and_the_speed_are_told(images: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", OneBox(2, 8), "predict_runs:OneBox")
    arguments = ("predict", images, "--run", run, "--pictures", 0, "--out", tmp_path / "out")
    code, output = call(*arguments, "--max-detections", 1)
    assert code == 0
    text = " ".join(output.split())
    assert "2 images have 1 detections, the most that are kept" in text
    assert "images per second" in text
    assert "network" in text
    assert "the most that are kept" not in call(*arguments)[1]
    assert "the most that are kept" not in call(*arguments, "--max-detections", 1, "--score", 0.9)[1]


def test_of_several_pages_the_first_is_taken_and_they_are_told(run: Path, images: Path, tmp_path: Path) -> None:
    pages = [image_module.new("RGB", (64, 32), color) for color in ("red", "blue")]
    for name in ("c.tif", "d.gif", "e.webp"):
        pages[0].save(images / name, save_all=True, append_images=pages[1:])
    pages[0].save(images / "f.tif")
    code, output = call("predict", images, "--run", run, "--out", tmp_path / "out", "--workers", 0, "--pictures", 0)
    assert code == 0
    assert "3 files with several pages or frames: the first of each was taken" in " ".join(output.split())
    lines = read(tmp_path / "out")
    assert [Path(line["path"]).name for line in lines if line.get("page") == 1] == ["c.tif", "d.gif", "e.webp"]
    whole = [line["detections"] for line in lines if Path(line["path"]).suffix == ".tif"]
    assert whole[0] == whole[1]


def test_a_video_is_its_frames(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = write_video(tmp_path / "clip.mp4")
    lines = predict(run, tmp_path / "out", path, "--batch-size", 5)
    assert [line["path"] for line in lines] == [str(path / f"clip_{number:06}.png") for number in range(1, 13)]
    assert all((line["width"], line["height"]) == (64, 32) for line in lines)
    grey = [np.asarray(video.read_frame(str(path), number)).mean() for number in (1, 7, 12, 3)]
    assert grey == pytest.approx([0, 120, 220, 40], abs=6)
    with pytest.raises(ValueError, match="frame 13 cannot be decoded: the video ends before"):
        video.read_frame(str(path), 13)
    # A part of it, as resuming begins anywhere.
    whole = (tmp_path / "out" / "results.jsonl").read_bytes()
    (tmp_path / "out" / "results.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:7]))
    (tmp_path / "out" / "results.json").unlink()
    predict(run, tmp_path / "out", path, "--batch-size", 5, "--resume")
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == whole
    (tmp_path / "no.mp4").write_bytes(b"no video")
    code, output = call("predict", tmp_path / "no.mp4", "--run", run, "--out", tmp_path / "no")
    assert code == 2
    assert "no.mp4: cannot be read as a video" in output.replace("\n", "")
