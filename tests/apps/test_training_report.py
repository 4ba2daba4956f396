"""The page about a training: whole, true to the record, and in need of nothing outside itself."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from detops.apps.data import shapes
from detops.apps.train.augment import Augmentation

image_module = pytest.importorskip("PIL.Image")
np = pytest.importorskip("numpy")
pytest.importorskip("lightning")
pytest.importorskip("matplotlib")
pytest.importorskip("pycocotools")

from detops.apps.train import report, train  # noqa: E402 (needs what is checked above)
from detops.apps.train.lightning_module import Settings  # noqa: E402

HEADINGS = ["Time", "Losses and scores", "AP of each class", "What it was trained on", "Detections beside the truth"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Headings, text, pictures and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings, self.addresses, self.pictures, self.text, self._within = [], [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._within = tag
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])

    def handle_data(self, data):
        if self._within == "h2" and data.strip():
            self.headings.append(data)
        if self._within != "style":
            self.text += data + "\n"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    path = shapes.generate(folder / "data", images=5, seed=3)
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "<b>round & bold</b>"
    path.write_text(json.dumps(content))
    data = train.Data.explicit(path, path.parent / "images", path, path.parent / "images")
    settings = Settings(
        epochs=2, batch_size=4, log_every=1, eval_every=1, augmentation=Augmentation(flip=True, multi_scale=0.0)
    )
    train.run(folder / "run", data, settings, width=8, size=(64, 96))
    return folder / "run"


def test_the_page_shows_the_run(run_folder):
    page = Page((run_folder / "report.html").read_text())
    assert page.headings == HEADINGS
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    scores = [row["scores"] for row in rows if "scores" in row][-1]
    assert f"{scores['AR100']:.3f}" in page.text
    for stage in report.STAGES:
        assert (stage in page.text) == (stage != "teacher")  # this run had none
    assert "<b>round & bold</b>" in page.text  # as text: what a name holds is never markup
    assert len(page.pictures) == 5 + 2 * 5  # images with targets; detections and truth
    for picture in page.pictures:
        image = image_module.open(io.BytesIO(base64.b64decode(picture.split(",", 1)[1])))
        assert min(image.size) > 200


def test_the_page_needs_nothing_outside_itself(run_folder):
    text = (run_folder / "report.html").read_text()
    for address in Page(text).addresses:
        assert address.startswith(("data:", "#")), address
    assert not re.search(r"<script|@import|url\((?!#)", text)


@pytest.mark.parametrize(("targets", "shown"), [(1.0, "1.00"), (4.0, "3.00")])
def test_the_shares_of_the_stages_are_those_recorded(targets, shown):
    """The loss holds its targets, be it that measured on their own they took longer."""
    times = {"data": 10.0, "targets": targets, "network": 30.0, "loss": 3.0, "backward": 50.0, "optimizer": 7.0}
    text = Page(report._times([{"milliseconds": times}] * 3)).text
    assert "A step takes 100 ms" in text
    assert "are 3.0 % of it" in text
    assert re.search(r"backward\n50.00\n50.0 %", text)
    assert re.search(rf"targets\n{shown}\n", text)
    assert re.search(rf"loss\n{3 - float(shown):.2f}\n", text)


def test_a_run_that_recorded_nothing_yet(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    page = Page(report.write(tmp_path / "run", pictures=1).read_text())
    assert page.text.count("Nothing was recorded.") == 3
    assert page.headings == HEADINGS
    with pytest.raises(FileNotFoundError):
        report.write(tmp_path)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
def test_a_browser_shows_it(run_folder, tmp_path):
    shot = tmp_path / "shot.png"
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,2600",
        f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", (run_folder / "report.html").as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(image_module.open(shot).convert("RGB")).reshape(-1, 3)
    seen = {tuple(color) for color in np.unique(pixels, axis=0).tolist()}
    for stage, color in report.COLORS.items():  # the bar of the stages is there
        assert (tuple(bytes.fromhex(color[1:])) in seen) == (stage != "teacher")
    assert len(seen) > 5000  # and so are photographs
