"""`detops predict` over folders: the same file of results however images are read, and after a kill at any time."""

import errno
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import predict_runs
import pytest
import torch
from predict_runs import OneBox, SlowBox, Together, call, write_run

from detops import StageTimer
from detops.apps.data import coco
from detops.apps.predict import pictures, predict, stream
from detops.apps.predict.form import Form
from detops.apps.predict.listing import batched
from detops.apps.predict.run_predictor import RunPredictor
from detops.apps.predict.sources import Source, Sources

image_module = pytest.importorskip("PIL.Image")
np = pytest.importorskip("numpy")


def save(path: Path, seed: int) -> Path:
    """Save an image of noise, each with a different size."""
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = generator.integers(8, 70, 2)
    image_module.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def noise_run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return write_run(tmp_path / "run", Together(2, 8), "predict_runs:Together")


@pytest.fixture
def box_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", OneBox(2, 8), "predict_runs:OneBox")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eleven images, of which 03.png and 07.png cannot be decoded."""
    folder = tmp_path / "images"
    for index in range(11):
        save(folder / f"{index:02}.png", index)
    (folder / "03.png").write_bytes((folder / "03.png").read_bytes()[:60])
    (folder / "07.png").write_bytes(b"")
    return folder


def read(out: Path) -> list[dict]:
    return list(map(json.loads, (out / "results.jsonl").read_bytes().splitlines()))


def test_who_reads_does_not_change_the_results(noise_run: Path, images: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        code, output = call(
            "predict", images, "--run", noise_run, "--out", tmp_path / f"{workers}", "--workers", workers,
            "--batch-size", 4,
        )  # fmt: skip
        assert code == 1, output
        assert "11 images, 2 of them failed" in output
    lines = read(tmp_path / "0")
    assert [line["path"] for line in lines] == [str(path) for path in sorted(images.iterdir())]
    assert [line["image_id"] for line in lines] == list(range(1, 12))
    assert [row for row, line in enumerate(lines) if "error" in line] == [3, 7]
    good = [line for line in lines if "error" not in line]
    assert all((line["width"], line["height"]) == image_module.open(line["path"]).size for line in good)
    assert len({json.dumps(line["detections"]) for line in good}) == 9
    for name in ("results.jsonl", "results.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    rows = json.loads((tmp_path / "0" / "results.json").read_text())
    assert len(rows) == sum(len(line["detections"]) for line in good) > 50
    assert sorted(path.stem for path in (tmp_path / "0" / "images").iterdir()) == [Path(p["path"]).stem for p in good]


def test_half_precision_rounds_otherwise(noise_run: Path, images: Path, tmp_path: Path) -> None:
    scores = []
    for more in ([], ["--half"]):
        out = tmp_path / f"out{len(more)}"
        call("predict", images, "--run", noise_run, "--out", out, "--workers", 0, "--pictures", 0, *more)
        rows = [line["detections"] for line in read(out) if "error" not in line]
        scores.append(torch.tensor([row[0]["score"] for row in rows]))
    assert not torch.equal(*scores)
    torch.testing.assert_close(*scores, rtol=0.05, atol=0.01)


def test_a_last_line_that_is_cut_anywhere(
    box_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the whole command for a cut at each byte of the last line."""
    monkeypatch.setattr("detops.apps.predict.results.os.fsync", lambda _: None)
    arguments = ("predict", images, "--run", box_run, "--workers", 0, "--batch-size", 3, "--pictures", 0)
    assert call(*arguments, "--out", tmp_path / "whole")[0] == 1
    whole = (tmp_path / "whole" / "results.jsonl").read_bytes()
    out = tmp_path / "cut"
    call(*arguments, "--out", out)
    for length in range(whole.rindex(b"\n", 0, -1) + 1, len(whole) + 1):
        (out / "results.jsonl").write_bytes(whole[:length])
        (out / "results.json").unlink()
        code, output = call(*arguments, "--out", out, "--resume")
        assert code == 1, output
        assert "11 images, 2 of them failed" in output
        for name in ("results.jsonl", "results.json"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("left", range(12))
def test_a_resumed_run_computes_the_same_as_a_whole_one(
    noise_run: Path, images: Path, tmp_path: Path, left: int
) -> None:
    """Batches are the same wherever the run stopped, so the values are equal bit for bit."""
    arguments = ("predict", images, "--run", noise_run, "--workers", 0, "--batch-size", 4, "--out", tmp_path / "out")
    call(*arguments)
    whole = (tmp_path / "out" / "results.jsonl").read_bytes()
    (tmp_path / "out" / "results.json").unlink()
    (tmp_path / "out" / "results.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:left]))
    for picture in (tmp_path / "out" / "images").iterdir():
        picture.unlink()
    assert call(*arguments, "--resume")[0] == 1
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == whole
    good = [row for row in range(left, 11) if row not in (3, 7)]
    assert sorted(int(path.stem) for path in (tmp_path / "out" / "images").iterdir()) == good


KILLED = f"""
import sys
sys.path.insert(0, {str(Path(predict_runs.__file__).parent)!r})  # the run's network is found there
from detops.__main__ import main
main()
"""


@pytest.mark.slow
def test_a_killed_process_is_resumed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = write_run(tmp_path / "run", SlowBox(2, 8), "predict_runs:SlowBox")
    for index in range(60):
        save(tmp_path / "images" / f"{index:02}.png", index)
    arguments = ["predict", tmp_path / "images", "--run", run, "--workers", 2, "--batch-size", 2]
    assert call(*arguments, "--out", tmp_path / "whole")[0] == 0
    command = [sys.executable, "-c", KILLED, *map(str, arguments), "--out", str(out)]
    for enough in (5, 23):  # lines that are there when it is killed; the second time while it resumes
        process = subprocess.Popen([*command, "--resume"], cwd=Path(__file__).parent, stdout=subprocess.DEVNULL)
        try:
            while not (out / "results.jsonl").exists() or len(read_torn(out)) < enough:
                assert process.poll() is None
                time.sleep(0.002)
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
        lines = read_torn(out)
        assert enough <= len(lines) < 60
        for line in lines:  # no line without its picture
            image_module.open(out / "images" / f"{Path(line['path']).stem}.jpg").load()
        assert not (out / "results.json").exists()
    assert call(*arguments, "--out", out)[0] == 2  # not without --resume
    assert call(*arguments, "--out", out, "--resume")[0] == 0
    for name in ("results.jsonl", "results.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(list((out / "images").iterdir())) == 60


def read_torn(out: Path) -> list[dict]:
    """Return the complete lines."""
    return list(map(json.loads, (out / "results.jsonl").read_bytes().split(b"\n")[:-1]))


def test_no_line_comes_before_its_picture(
    box_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("predict", images, "--run", box_run, "--out", tmp_path / "out", "--workers", 0, "--batch-size", 4)
    draw, seen = pictures.Pictures._drawn, []

    def slow(self: pictures.Pictures, line: dict, image: object) -> object:
        time.sleep(0.2 * line["path"].endswith("06.png"))
        seen.append(len(read(tmp_path / "out")))
        return draw(self, line, image)

    monkeypatch.setattr(pictures.Pictures, "_drawn", slow)
    assert call(*arguments)[0] == 1
    assert max(seen[:7]) < 8  # the lines of the second batch wait for its slow picture
    assert len(read(tmp_path / "out")) == 11


def test_a_picture_that_fails_costs_itself(
    box_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("03.png", "07.png"):
        (images / name).unlink()
    arguments = ("predict", images, "--run", box_run, "--out", tmp_path / "out", "--workers", 0, "--batch-size", 4)
    draw = pictures.Pictures._drawn

    def fail(self: pictures.Pictures, line: dict, image: object) -> object:
        if line["path"].endswith("06.png"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return draw(self, line, image)

    monkeypatch.setattr(pictures.Pictures, "_drawn", fail)
    code, output = call(*arguments)
    assert code == 0
    assert "06.png: no picture: the disk is full" in output.replace("\n", "")
    assert "and 8 pictures in" in output.replace("\n", " ")
    assert len(read(tmp_path / "out")) == 9
    assert len(list((tmp_path / "out" / "images").iterdir())) == 8


def test_images_of_any_shape_have_pictures_of_bounded_size(box_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in (("one", (1, 1)), ("line", (10_000, 1)), ("strip", (20, 2800)), ("large", (5000, 40))):
        image_module.new("RGB", size, (90, 90, 90)).save(folder / f"{name}.png")
    code, output = call("predict", folder, "--run", box_run, "--out", tmp_path / "out", "--workers", 0, "--score", 0)
    assert code == 0, output
    drawn = {path.stem: image_module.open(path).size for path in (tmp_path / "out" / "images").iterdir()}
    assert drawn == {"one": (480, 480), "line": (4096, 1), "strip": (29, 4096), "large": (4096, 33)}


def test_resuming_with_something_else_is_refused(box_run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["predict", images, "--run", box_run, "--out", out, "--workers", 0]
    call(*arguments)
    (out / "results.json").unlink()
    before = (out / "results.jsonl").read_bytes()
    ids = tmp_path / "ids.json"
    record = {"id": 1, "file_name": "00.png", "width": 8, "height": 8}
    ids.write_text(json.dumps({"images": [record], "annotations": [], "categories": []}))

    def refused(*more: object) -> str:
        code, output = call(*arguments, *more)
        assert code == 2
        assert (out / "results.jsonl").read_bytes() == before
        return output

    assert "holds an unfinished run; continue it with --resume" in refused()
    assert "started with different batch_size;" in refused("--resume", "--batch-size", 3)
    assert "started with different annotations;" in refused("--resume", "--annotations", ids)
    assert "started with different half;" in refused("--resume", "--half")
    save(images / "00b.png", 0)
    assert "line 2 is about" in refused("--resume")
    (images / "00b.png").unlink()
    network = OneBox(2, 8)
    network.logit.data += 1
    write_run(box_run, network, "predict_runs:OneBox")
    assert "started with different weights;" in refused("--resume")


def test_images_that_came_later_are_added_at_the_end(box_run: Path, images: Path, tmp_path: Path) -> None:
    arguments = ["predict", images, "--run", box_run, "--out", tmp_path / "out", "--workers", 0]
    call(*arguments)
    save(images / "11.png", 0)
    assert "12 images, 2 of them failed" in call(*arguments, "--resume")[1]
    assert [line["image_id"] for line in read(tmp_path / "out")] == list(range(1, 13))


def test_names_of_all_kinds(box_run: Path, tmp_path: Path) -> None:
    """The same name in two folders, Unicode, brackets that rich would read as markup."""
    names = ["a/1.png", "a/[red]ä 日本.png", "b/1.png", "b/1_1.png"]
    for index, name in enumerate(names):
        save(tmp_path / name, index)
    broken = tmp_path / "b" / "[bold]é.png"
    broken.touch()
    out = tmp_path / "out"
    code, output = call("predict", tmp_path / "a", tmp_path / "b", "--run", box_run, "--out", out)
    assert code == 1
    assert f"skipped {broken}: cannot be decoded" in output
    assert [line["path"] for line in read(out)] == [str(tmp_path / name) for name in names] + [str(broken)]
    pictures = sorted(path.name for path in (out / "images").iterdir())
    assert pictures == ["1_1.jpg", "1_2.jpg", "1_3.jpg", "[red]ä 日本.jpg"]
    assert call("predict", tmp_path / "a", tmp_path / "b", "--run", box_run, "--out", out, "--resume")[0] == 1


def test_ids_of_images_in_folders(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    names = ["train/1.png", "val/1.png", "val/2.png", "3.png", "val/3.png"]
    records = [{"id": 7 * n, "file_name": name, "width": 4, "height": 4} for n, name in enumerate(names, 1)]
    path.write_text(json.dumps({"images": records, "annotations": [], "categories": []}))
    paths = ["x/train/1.png", "x/val/1.png", "2.png", "x/1.png", "/3.png", "x/val/3.png", "train/9.png"]
    known = list(Sources(paths, coco.read(path).images))
    # x/1.png may be either, and train/9.png is none: they are numbered behind the highest.
    assert [source.image_id for source in known] == [7, 14, 21, 35 + 4, 28, 35, 35 + 7]
    assert [source.path for source in known] == paths
    assert [source.image_id for source in Sources(paths)] == list(range(1, 8))


@pytest.mark.parametrize(("pictures", "expected"), [(0, []), (2, ["00", "01"]), (5, ["00", "01", "02", "04"]), (-1, 9)])
def test_how_many_pictures(
    box_run: Path, images: Path, tmp_path: Path, pictures: int, expected: int | list[str]
) -> None:
    out = tmp_path / "out"
    code, output = call("predict", images, "--run", box_run, "--out", out, "--pictures", pictures)
    assert code == 1
    drawn = sorted(path.stem for path in out.glob("images/*.jpg"))
    assert (len(drawn) if isinstance(expected, int) else drawn) == expected
    assert f"{len(drawn)} pictures" in output
    assert len(read(out)) == 11


def test_a_mistake_does_not_cost_the_results_that_are_there(box_run: Path, images: Path, tmp_path: Path) -> None:
    arguments = ["predict", images, "--run", box_run, "--out", tmp_path / "out", "--workers", 0]
    call(*arguments)
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json*")}
    (tmp_path / "bad.json").write_text("no JSON")
    for name in ("bad.json", "none.json"):
        assert call(*arguments, "--annotations", tmp_path / name)[0] == 2
        assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json*")} == before


def test_a_folder_without_images(box_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, output = call("predict", tmp_path / "empty", "--run", box_run, "--out", tmp_path / "out")
    assert code == 2
    assert "found none" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_only_a_few_batches_are_asked_for_ahead(box_run: Path, tmp_path: Path, workers: int) -> None:
    """Few images are in memory, whatever their number."""
    path = str(save(tmp_path / "0.png", 0))
    asked = 0

    def endless() -> Iterator[Source]:
        nonlocal asked
        while True:
            asked += 1
            yield Source(path, asked)

    predictor = RunPredictor(box_run, False, torch.device("cpu"))
    lines = stream.lines(predictor, batched(endless(), 4), workers, Form({}), StageTimer("cpu"))
    for number in range(1, 30):
        assert [json.loads(line)["image_id"] for line in next(lines)] == list(range(4 * number - 3, 4 * number + 1))
        assert asked <= 4 * (number + workers * stream.PREFETCH + stream.AHEAD)
    lines.close()


def test_errors_beyond_the_first_are_only_counted(
    box_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "LINES", 3)
    folder = tmp_path / "images"
    save(folder / "good.png", 0)
    for index in range(20):
        (folder / f"{index}.png").touch()
    code, output = call("predict", folder, "--run", box_run, "--out", tmp_path / "out", "--workers", 0)
    assert code == 1
    assert output.count("skipped") == 3
    assert "and 17 more, named in results.jsonl" in output
    assert sum("error" in line for line in read(tmp_path / "out")) == 20


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_gives_the_same_lines(box_run: Path, tmp_path: Path, workers: int) -> None:
    """The network's arithmetic is exact: results copied while another batch is computed are complete and in order."""
    for index in range(60):
        save(tmp_path / "images" / f"{index:02}.png", index)
    arguments = ("predict", tmp_path / "images", "--run", box_run, "--workers", workers, "--batch-size", 4)
    for device in ("cpu", "cuda"):
        assert call(*arguments, "--out", tmp_path / device, "--device", device)[0] == 0
    assert (tmp_path / "cpu" / "results.jsonl").read_bytes() == (tmp_path / "cuda" / "results.jsonl").read_bytes()
