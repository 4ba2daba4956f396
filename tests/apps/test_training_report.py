"""The page about a training: complete, true to the record, and self-contained."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from detops.apps.data import shapes
from detops.apps.train.augment import Augmentation

image_module = pytest.importorskip("PIL.Image")
np = pytest.importorskip("numpy")
pytest.importorskip("lightning")
pytest.importorskip("matplotlib")
pytest.importorskip("pycocotools")

from detops.apps.report import charts, comparison, evidence, history, pictures, report, sections  # noqa: E402
from detops.apps.train import train  # noqa: E402 (both need what is checked above)
from detops.apps.train.settings import Data, Network, Settings  # noqa: E402

HEADINGS = [
    "Precision and recall", "Classes", "Confusion", "COCO scores", "Worst images", "Learning", "Data",
    "What it was trained on", "Time", "Origin",
]  # fmt: skip
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Headings, text, pictures and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.addresses: list[str] = []
        self.pictures: list[str] = []
        self.text = self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within = tag
        names = ("src", "href", "xlink:href", "srcset", "data")
        self.addresses += [value or "" for name, value in attrs if name in names]
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")

    def handle_data(self, data: str) -> None:
        if self._within == "h2" and data.strip():
            self.headings.append(data)
        if self._within != "style":
            self.text += data + "\n"

    def stages(self) -> dict[str, tuple[float, float]]:
        """Milliseconds and percentage of each stage, from the table of times."""
        rows = re.findall(r"^([a-z ]+)\n([\d.]+)\n([\d.]+) %$", self.text, re.MULTILINE)
        return {name: (float(time), float(share)) for name, time, share in rows}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    path = shapes.generate(folder / "data", images=5, seed=3)
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "<b>round & bold</b>"
    path.write_text(json.dumps(content))
    data = Data.from_paths(path, path.parent / "images", path, path.parent / "images")
    settings = Settings(
        epochs=2, batch_size=4, log_every=1, eval_every=1, augmentation=Augmentation(flip=True, multi_scale=0.0)
    )
    train.run(
        folder / "run",
        data=data,
        network=Network(width=8, size=(64, 96)),
        settings=settings,
        command="detops train <1>",
    )
    return folder / "run"


def test_the_page_shows_the_run(run_folder: Path) -> None:
    page = Page((run_folder / "report.html").read_text())
    assert page.headings == HEADINGS
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    scores = [row["scores"] for row in rows if "scores" in row][-1]
    assert f"{scores['AR100']:.3f}" in page.text
    shown = page.stages().keys() - {"data", "network", "backward", "optimizer"}  # no teacher: this run had none
    assert shown in ({"targets", "loss"}, {"targets and loss"})
    assert "<b>round & bold</b>" in page.text  # as text: what a name holds is never markup
    assert "detops train <1>" in page.text
    assert "Could not be made" not in page.text
    for fact in ("million parameters", "5 images", f"torch {torch.__version__}", "epochs 2", "The whole took"):
        assert fact in page.text
    assert len(page.pictures) == 5 + 2 * 5  # images with targets; detections and truth
    for picture in page.pictures:
        image = image_module.open(io.BytesIO(base64.b64decode(picture.split(",", 1)[1])))
        assert min(image.size) > 200


def test_the_page_needs_nothing_outside_itself(run_folder: Path) -> None:
    text = (run_folder / "report.html").read_text()
    for address in Page(text).addresses:
        assert address.startswith(("data:", "#")), address
    assert not re.search(r"<script|@import|url\((?!#)", text)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (1.0, {"targets": (1.0, 1.0), "loss": (2.0, 2.0)}),
        (2.99, {"targets and loss": (3.0, 3.0)}),
        (4.0, {"targets and loss": (3.0, 3.0)}),
    ],
)
def test_the_shares_of_the_stages_are_those_recorded(
    run_folder: Path, tmp_path: Path, targets: float, expected: dict[str, tuple[float, float]]
) -> None:
    """The loss includes its targets; one row shows both if their separately measured times cannot be told apart."""
    shutil.copytree(run_folder, tmp_path / "run")
    times = {"data": 10.0, "targets": targets, "network": 30.0, "loss": 3.0, "backward": 50.0, "optimizer": 7.0}
    rows = [{"step": step, "losses": {"loss": 1.0}, "lr": 0.1, "milliseconds": times} for step in (1, 2, 3)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(report.write(tmp_path / "run", count=1).read_text())
    assert "A step takes 100 ms" in page.text
    assert "take 3.0 % of it" in page.text
    rest = {"data": (10.0, 10.0), "network": (30.0, 30.0), "backward": (50.0, 50.0), "optimizer": (7.0, 7.0)}
    assert page.stages() == {**rest, **expected}


def test_a_run_that_recorded_nothing_yet(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    page = Page(report.write(tmp_path / "run", count=1).read_text())
    assert page.text.count("Nothing was recorded.") == 3  # scores, learning, time
    assert page.headings == HEADINGS
    (tmp_path / "run" / "detections.json.gz").write_bytes(b"damaged")
    page = Page(report.write(tmp_path / "run", count=1).read_text())
    assert page.text.count("Could not be made: ") == 3
    assert page.headings == HEADINGS
    with pytest.raises(FileNotFoundError):
        report.write(tmp_path)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
def test_a_browser_shows_it(run_folder: Path, tmp_path: Path) -> None:
    assert BROWSER is not None
    shot = tmp_path / "shot.png"
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,9000",
        f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", (run_folder / "report.html").as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(image_module.open(shot).convert("RGB")).reshape(-1, 3)
    seen = set(np.unique(pixels @ np.array([1 << 16, 1 << 8, 1])).tolist())
    shown = {history.STAGES[stage] for stage in Page((run_folder / "report.html").read_text()).stages()}
    for color in shown:  # the bar of the stages is there
        assert int(color[1:], 16) in seen
    assert len(seen) > 5000  # and so are photographs


def found_by(run_folder: Path, rows: list[dict]) -> evidence.Evidence:
    """Put detections in the place of those of a run."""
    (run_folder / "detections.json.gz").write_text(json.dumps(rows))
    return evidence.gather(run_folder, json.loads((run_folder / "config.json").read_text()))


def test_the_worst_images_come_first_and_errors_are_told_apart(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    data = json.loads((run_folder.parent / "data" / "annotations.json").read_text())
    truth = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in data["annotations"]
    ]
    whole = found_by(tmp_path / "run", truth)
    assert whole.threshold == 0.9
    assert not whole.missed.any()
    assert (whole.confusion == np.diag(whole.confusion.diagonal())).all()
    lost = next(i for i, a in enumerate(truth) if a["image_id"] == 3)
    x, y, width, height = truth[lost]["bbox"]
    wrong = {**truth[lost], "bbox": [x + 0.6 * width, y, width, height]}
    other = {**truth[0], "bbox": [0, 0, 3, 3]}
    found = found_by(tmp_path / "run", [other, wrong, *truth[:lost], *truth[lost + 1 :]])
    assert found.worst(2) == [0, 2] or found.worst(2) == [2, 0]  # one error each
    assert found.worst(99)[2:] == [1, 3, 4]
    _, _, caption = pictures.pair(found, 2)
    assert caption.endswith(" true, 1 badly placed, 1 missed")
    left, right, caption = pictures.pair(found, 0)
    assert caption.endswith(" true, 1 false")
    assert left.size == right.size
    colors = [{tuple(c) for c in np.asarray(view).reshape(-1, 3).tolist()} for view in (left, right)]
    assert [pictures.FALSE in seen for seen in colors] == [True, False]
    assert all(pictures.TRUE in seen for seen in colors)
    assert "missed" in sections.confusion(found)


def test_axes_are_readable() -> None:
    drawn = charts.lines("Loss", {"a": ([0, 1, 2, 3], [90.0, 40, 3, 1])}, ("epoch", "loss"), log=True, whole=True)
    labels = re.findall(r"<text[^>]*>([^<]+)</text>", drawn)
    assert {"1", "2", "5", "10", "50"} <= set(labels)
    assert {"0", "1", "2", "3"} <= set(labels)
    assert not [label for label in labels if "." in label or "\u00d7" in label]
    assert "var(--ink)" in drawn
    assert charts.INK not in drawn


def test_several_runs_are_compared(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["settings"]["lr"] = 0.25
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    out = comparison.write([run_folder, tmp_path / "other"], tmp_path / "comparison.html")
    page = Page(out.read_text())
    assert page.headings == ["Scores", "Curves", "AP of each class", "What differs", "Time"]
    assert "Could not be made" not in page.text
    assert "0.25" in page.text
    assert "weight decay" not in page.text  # which is the same
    comparison.write([run_folder, tmp_path / "other"], out)
    out.write_text("mine")
    with pytest.raises(ValueError, match="not replaced"):
        comparison.write([run_folder, tmp_path / "other"], out)
