"""Images in order, even if there are more than are sorted at once."""

import os
from itertools import islice
from pathlib import Path

import pytest

from detops.apps.predict import listing
from detops.apps.predict.listing import Listing, batched

NAMES = [
    "b.png",
    "a.JPG",
    "ä.jpeg",
    "日本.webp",
    "new\nline.bmp",
    "10.tif",
    "9.tiff",
    "B.png",
    'quo"te.png',
    "z.png.png",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in [*NAMES, os.fsdecode(b"bad\xff.png")]:
        (folder / name).touch()
    (folder / "no.txt").touch()
    (folder / ".png").touch()
    (folder / "sub.png").mkdir()
    (folder / "sub.png" / "inner.png").touch()
    return folder


@pytest.mark.parametrize("at_once", [1, 3, 200_000])
def test_images_of_a_folder_are_sorted(folder: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(listing, "SORTED_AT_ONCE", at_once)
    monkeypatch.setattr(listing, "KEPT_IN_MEMORY", 16)  # so all goes to the disk
    monkeypatch.setattr(listing, "READ_AT_ONCE", 30)
    expected = [str(folder / name) for name in sorted([*NAMES, os.fsdecode(b"bad\xff.png")])]
    images = Listing([folder])
    assert list(images) == list(images) == expected
    assert len(images) == len(expected)
    assert all(Path(path).exists() for path in images)


def test_readers_do_not_disturb_each_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "READ_AT_ONCE", 1)
    images = Listing([folder])
    first, second = iter(images), iter(images)
    head = list(islice(first, 4))
    assert list(second) == head + list(first)


def test_files_and_folders_stay_in_the_order_of_the_arguments(folder: Path) -> None:
    other = folder.parent / "a_file_of_any_name"
    other.touch()
    images = list(Listing([other, folder / "b.png", folder]))
    assert images[:2] == [str(other), str(folder / "b.png")]
    assert images[2:] == [path for path in Listing([folder]) if path != images[1]]


def test_nothing_to_list(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected at least one, found none"):
        Listing([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file"):
        Listing([tmp_path / "none.png"])


def test_batches() -> None:
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batched([], 2)) == []
