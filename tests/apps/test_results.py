"""results.jsonl: whatever a kill leaves, resuming gives the file of an uninterrupted run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detops.apps.predict.results import ResultsFile, Summary, encode, error_of

PATHS = ["a/0.png", "b/0.png", "ä\n.png", "bad\udcff.png"]
LINES: list[dict[str, Any]] = [
    {"path": PATHS[0], "image_id": 1, "width": 4, "height": 2, "detections": [
        {"category_id": 3, "bbox": [0.5, 0.0, 1.25, 2.0], "score": 0.9},
        {"category_id": 7, "bbox": [0.0, 0.0, 4.0, 2.0], "score": 0.1},
    ]},
    {"path": PATHS[1], "image_id": 2, "error": "b/0.png: cannot be decoded"},
    {"path": PATHS[2], "image_id": "x", "width": 4, "height": 2, "detections": []},
    {"path": PATHS[3], "image_id": 4, "width": 4, "height": 2, "detections": [
        {"category_id": 3, "bbox": [1.0, 1.0, 1.0, 1.0], "score": 0.5}
    ]},
]  # fmt: skip
SETTINGS: dict[str, Any] = {"weights": "abc", "size": (32, 64), "annotations": None}


def write(
    out: Path,
    lines: list[dict[str, Any]],
    settings: dict[str, Any] = SETTINGS,
    paths: list[str] = PATHS,
    resume: bool = False,
) -> tuple[int, Summary | None]:
    """Add the missing lines, and finish once all are there."""
    with ResultsFile(out, settings, paths, resume) as results:
        count = results.count
        for line in lines[count:]:
            results.append([encode(line)])
        return count, results.finish() if results.count == len(LINES) else None


def test_lines_and_cocos_form(tmp_path: Path) -> None:
    assert write(tmp_path, LINES) == (0, Summary(images=4, failed=1, detections=3))
    assert list(map(json.loads, (tmp_path / "results.jsonl").read_bytes().splitlines())) == LINES
    rows = [
        {"image_id": line["image_id"], **row, "file_name": name}
        for line, name in ((LINES[0], "0.png"), (LINES[3], "bad\udcff.png"))
        for row in line["detections"]
    ]
    assert (tmp_path / "results.json").read_text() == json.dumps(rows) + "\n"


def test_a_file_that_is_cut_anywhere_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detops.apps.predict.results.os.fsync", lambda _: None)  # takes most of the time
    write(tmp_path / "whole", LINES)
    whole = (tmp_path / "whole" / "results.jsonl").read_bytes()
    coco = (tmp_path / "whole" / "results.json").read_bytes()
    write(tmp_path / "cut", LINES[:2])
    for length in range(len(whole) + 1):
        (tmp_path / "cut" / "results.jsonl").write_bytes(whole[:length])
        (tmp_path / "cut" / "results.json").unlink(missing_ok=True)
        count, summary = write(tmp_path / "cut", LINES, resume=True)
        assert count == whole[:length].count(b"\n")
        assert summary == Summary(4, 1, 3)
        assert (tmp_path / "cut" / "results.jsonl").read_bytes() == whole
        assert (tmp_path / "cut" / "results.json").read_bytes() == coco


def test_a_tail_that_was_never_written_is_cut(tmp_path: Path) -> None:
    """Some file systems leave zeros at the end after a power failure."""
    write(tmp_path, LINES[:2])
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(bytes(5000))
    assert write(tmp_path, LINES, resume=True)[0] == 2
    assert list(map(json.loads, (tmp_path / "results.jsonl").read_bytes().splitlines())) == LINES


def test_resuming_where_nothing_is_starts(tmp_path: Path) -> None:
    assert write(tmp_path / "new", LINES, resume=True)[0] == 0
    assert json.loads((tmp_path / "new" / "predict.json").read_text()) == {**SETTINGS, "size": [32, 64]}


def test_a_finished_run_is_replaced_and_an_unfinished_one_is_not(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    assert write(tmp_path, LINES[:2], {"weights": "other"})[0] == 0
    assert not (tmp_path / "results.json").exists()
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(
        ValueError, match=r"holds an unfinished run; continue it with --resume.*remove its results\.jsonl"
    ):
        write(tmp_path, LINES)
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_resuming_removes_a_stale_results_json(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    paths = [*PATHS, "later.png"]
    with ResultsFile(tmp_path, SETTINGS, paths, True) as results:
        assert results.count == 4
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("settings", "paths", "message"),
    [
        ({**SETTINGS, "weights": "abd"}, PATHS, "started with different weights;"),
        ({**SETTINGS, "weights": "abd", "size": (32, 32)}, PATHS, "started with different size, weights;"),
        ({"weights": "abc", "size": (32, 64)}, PATHS[::-1], "line 1 is about a/0.png, expected bad"),
        (
            SETTINGS,
            [PATHS[0], "a/1.png", PATHS[1]],
            "line 2 is about b/0.png, expected a/1.png: the images have changed",
        ),
        (SETTINGS, PATHS[:1], "line 2 is about b/0.png, expected no more lines"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, settings: dict[str, Any], paths: list[str], message: str) -> None:
    write(tmp_path, LINES[:2])
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(ValueError, match=message):
        write(tmp_path, LINES, settings, paths, resume=True)
    assert (tmp_path / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize("damage", [b"{}\n", b"[1]\n", b'"path"\n', b"\n", b'{"path": \n', b"\xff\n"])
def test_a_damaged_line_is_refused(tmp_path: Path, damage: bytes) -> None:
    write(tmp_path, LINES[:2])
    path = tmp_path / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + damage + lines[1])
    with pytest.raises(ValueError, match="line 2 is damaged"):
        write(tmp_path, LINES, resume=True)


def test_lines_without_their_settings_are_refused(tmp_path: Path) -> None:
    write(tmp_path, LINES[:2])
    (tmp_path / "predict.json").unlink()
    with pytest.raises(ValueError, match=r"predict\.json: is missing"):
        write(tmp_path, LINES, resume=True)


@pytest.mark.slow
def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    code = (
        "import sys; from pathlib import Path; from detops.apps.predict.results import ResultsFile\n"
        "try: ResultsFile(Path(sys.argv[1]), {}, [], True)\n"
        "except ValueError as error: print(error)"
    )
    with ResultsFile(tmp_path, {}, [], False):
        other = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
        assert other.stdout == f"{tmp_path / 'results.jsonl'}: another process is writing to it\n"
    assert not subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, check=True).stdout


def test_a_disk_that_fills_while_results_json_is_written_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with ResultsFile(tmp_path, SETTINGS, PATHS, False) as results:
        results.append(list(map(encode, LINES)))
        monkeypatch.setattr("detops.apps.predict.results.json.dumps", full)
        with pytest.raises(OSError, match="No space"):
            results.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".detops", "predict.json", "results.jsonl"]


def test_errors_are_found_without_parsing_the_others() -> None:
    assert error_of(encode(LINES[1])) == "b/0.png: cannot be decoded"
    assert error_of(encode({**LINES[2], "path": '"error": .png'})) is None
    assert error_of(encode({**LINES[1], "path": '"error": .png'})) == "b/0.png: cannot be decoded"


def test_numbers_that_json_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode({"path": "a", "score": float("nan")})
