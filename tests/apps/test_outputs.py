"""No command writes over a file that it read, or that it did not write; and what it wrote, it may write again."""

import json
import os
import shutil
from pathlib import Path

import pytest
from predict_runs import OneBox, call, write_run

from detops.apps.bench import runner
from detops.apps.data import shapes
from detops.apps.files import append_line
from detops.apps.outputs import Outputs, claim_numbers, write_numbers

image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("pycocotools")


@pytest.fixture
def box_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", OneBox(2, 8), "predict_runs:OneBox")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The layout that the docs ask for: annotations.json beside the folder images."""
    shapes.generate(tmp_path / "data", images=2, seed=0)
    return tmp_path / "data"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(*arguments: object) -> str:
    code, output = call(*arguments)
    assert code == 2, output
    return output.replace("\n", "")


def test_only_own_files_are_replaced(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.write("a/b.json", "mine")
    outputs.write("a/b.json", "mine again")
    (tmp_path / "notes.txt").write_text("somebody's")
    for known in (outputs, Outputs(tmp_path)):  # the record outlives the process
        known.claim("a/b.json", "new.txt")
        with pytest.raises(ValueError, match=r"notes.txt: was not written by detops"):
            known.write("notes.txt", "x")
    (tmp_path / "a" / "b.json").write_text("changed by somebody")
    with pytest.raises(ValueError, match="changed since"):
        Outputs(tmp_path).claim("a/b.json")
    (tmp_path / "a" / "b.json").unlink()
    Outputs(tmp_path).claim("a/b.json")
    (tmp_path / "empty").touch()
    Outputs(tmp_path).claim("empty")  # nothing is lost
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder: was not written"):
        Outputs(tmp_path).claim("folder")


def test_a_record_that_was_cut_off_holds_what_it_holds(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.write("a", "1")
    outputs.growing("log").write_text("lines")
    with (tmp_path / ".detops").open("ab") as file:
        file.write(b'\n["torn", 1')
    again = Outputs(tmp_path)
    again.write("b", "2")
    (tmp_path / "torn").write_text("x")
    known = Outputs(tmp_path)
    known.claim("a", "b", "log")
    with pytest.raises(ValueError, match="torn"):
        known.claim("torn")


def test_what_is_read_is_not_written(tmp_path: Path) -> None:
    Outputs(tmp_path).write("a.json", "{}")
    with pytest.raises(ValueError, match="is read by this command"):
        Outputs(tmp_path, [tmp_path / "x" / ".." / "a.json"]).claim("a.json")


def test_only_own_files_are_removed(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    for name in ("a", "sub/b", "c"):
        outputs.write(name, "mine")
    (tmp_path / "c").write_text("changed")
    (tmp_path / "sub" / "d").write_text("somebody's")
    Outputs(tmp_path).remove_own()
    assert sorted(content(tmp_path)) == [".detops", "c", "sub/d"]


def test_a_line_begins_behind_one_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, "one")
    path.write_bytes(path.read_bytes() + b"to")
    append_line(path, "three")
    assert path.read_text() == "one\nto\nthree\n"


def test_numbers_replace_numbers_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.json"
    write_numbers(path, {"AP": 0.5}, ["AP"])
    write_numbers(path, {"AP": 0.6}, ["AP"])
    assert json.loads(path.read_text()) == {"AP": 0.6}
    for other in ('{"images": []}', "no JSON", "[1]", "[" * 100_000):
        path.write_text(other)
        with pytest.raises(ValueError, match=r"scores.json: is something else"):
            claim_numbers(path, ["AP"])


@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_pictures_do_not_land_among_images(box_run: Path, data: Path, tmp_path: Path, ending: str) -> None:
    for path in (data / "images").iterdir():
        image_module.open(path).save(path.with_suffix(ending))
    before = content(data)
    linked = tmp_path / "linked" / "images"
    linked.mkdir(parents=True)
    for path in (data / "images").iterdir():
        (linked / path.name).symlink_to(path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "images").symlink_to(data / "images")
    annotations = data / "annotations.json"
    for arguments in (
        ("predict", data / "images", "--run", box_run, "--out", data),
        ("predict", *sorted((data / "images").iterdir()), "--run", box_run, "--out", data),
        ("predict", linked, "--run", box_run, "--out", linked.parent),
        ("predict", data / "images", "--run", box_run, "--out", tmp_path / "elsewhere"),
        ("predict", linked, "--run", box_run, "--out", data),  # not those that are read, but somebody's
        ("targets", annotations, "--images", data / "images", "--out", data),
        ("targets", annotations, "--out", data),
    ):
        output = refused(*arguments)
        assert "choose another --out" in output
        assert "images: holds" in output
    assert content(data) == before
    assert not (linked.parent / "results.jsonl").exists()


def test_pictures_of_detops_are_replaced_unless_they_are_read(box_run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("predict", data / "images", "--run", box_run, "--out", out)
    assert call(*arguments)[0] == call(*arguments)[0] == 0
    assert "holds images that are read" in refused("predict", out / "images", "--run", box_run, "--out", out)
    (out / "images" / "mine.jpg").write_bytes(b"somebody's")
    assert "such as mine.jpg" in refused(*arguments)
    assert call(*arguments, "--pictures", 0)[0] == 0


def test_files_of_others_stay_whatever_their_names(box_run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("results.json", "results.jsonl", "predict.json", "summary.json", "contact_sheet.png"):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / name).write_text('{"mine": 1}')
        if name in ("summary.json", "contact_sheet.png"):
            output = refused("targets", data / "annotations.json", "--out", out)
        else:
            output = refused("predict", data / "images", "--run", box_run, "--out", out, "--pictures", 0)
        assert f"{name}: was not written by detops" in output
        assert (out / name).read_text() == '{"mine": 1}'
    (out / "results.jsonl").write_text('{"mine": 1}\n')  # --resume does not take it for lines of its own
    refused("predict", data / "images", "--run", box_run, "--out", out, "--pictures", 0, "--resume")
    assert (out / "results.jsonl").read_text() == '{"mine": 1}\n'


def test_scores_do_not_replace_annotations(data: Path, tmp_path: Path) -> None:
    truth, found = data / "annotations.json", tmp_path / "found.json"
    found.write_text("[]")
    before = content(data)
    for path in (truth, found):
        assert "is not replaced" in refused(
            "evaluate", "--results", found, "--annotations", truth, "--json", path
        )  # fmt: skip
    assert content(data) == before
    for _ in range(2):
        assert call("evaluate", "--results", found, "--annotations", truth, "--json", tmp_path / "s.json")[0] == 0


def test_a_report_replaces_a_report_alone(data: Path, tmp_path: Path) -> None:
    annotations, out = data / "annotations.json", tmp_path / "new" / "report.html"
    before = content(data)
    assert "is not replaced" in refused("check", annotations, "--out", annotations)
    assert content(data) == before
    for _ in range(2):
        assert call("check", annotations, "--out", out)[0] == 0


def test_demo_removes_nothing_that_it_did_not_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "main", lambda *_, **__: None)
    for name in ("data/annotations.json", "images/photo.jpg", "summary.json"):
        out = tmp_path / name.replace("/", "-")
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
        refused("demo", "--out", out, "--images", 1, "--epochs", 0)
        assert content(out) == {name: b"mine"}
    out = tmp_path / "new"
    for _ in range(2):
        code, output = call("demo", "--out", out, "--images", 1, "--epochs", 0)
        assert code == 0, output


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user who may not read all")
def test_a_folder_that_may_not_be_written_is_named(box_run: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "locked" in refused("predict", data / "images", "--run", box_run, "--out", tmp_path / "locked" / "out")


def test_a_folder_that_is_read_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    for folder in (tmp_path / "images", tmp_path / "link", tmp_path / "images" / ".." / "images"):
        with pytest.raises(ValueError, match="is a folder that is read, and would be written to"):
            Outputs(folder, [tmp_path / "images"])
    Outputs(tmp_path / "images", [tmp_path / "images" / "a.png"]).write("a.txt", "beside a file that is read")


def test_what_detops_wrote_in_a_folder_is_removed(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.write("a/1.txt", "1")
    outputs.write("b/2.txt", "2")
    (tmp_path / "a" / "mine.txt").write_text("3")
    outputs.remove_own("a/")
    assert sorted(path.name for path in tmp_path.rglob("*.txt")) == ["2.txt", "mine.txt"]
