"""`report.html`: one self-contained page about a run; `comparison.html`, the same about several.

A section that cannot be made says so, and the others are there.
"""

import html
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from detops.apps import evaluate, pictures, require, runs
from detops.apps.data.coco import ImageRecord
from detops.apps.data.dataset import MEAN, STD, CocoImages, open_annotations
from detops.apps.errors import explain
from detops.apps.outputs import Outputs
from detops.apps.page import is_own_page, page
from detops.apps.report import history, sections
from detops.apps.report.evidence import Evidence, gather
from detops.apps.report.parts import STYLE, beside, section
from detops.apps.report.pictures import inline
from detops.apps.scores import NAMES
from detops.apps.train import metrics
from detops.apps.train.augment import Augmentation, augment
from detops.arguments import flat

SMALL = 420  # pixels of the pictures of which four stand side by side


def claim(outputs: Outputs) -> None:
    """Check that the page may be written.

    Raises:
        ValueError: There is a page of somebody else.
    """
    if is_own_page(outputs.folder / "report.html"):
        outputs.adopt("report.html")
    outputs.claim("report.html")


def write(run: Path, count: int = 8, outputs: Outputs | None = None) -> Path:
    """Write the page of a run.

    Args:
        run: Folder that `detops train` wrote.
        count: Number of images in each gallery.
        outputs: The folder, as far as it is known already.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: The folder is not a run.
        ValueError: Its configuration is damaged, or there is a page of somebody else.
    """
    outputs = outputs or Outputs(run)
    claim(outputs)
    config, rows = runs.read_config(run), metrics.read(run)
    scores, name = metrics.last_scores(run), html.escape(run.resolve().name)
    evidence, problem = _gathered(run, config)

    def of_evidence(make: Any) -> str:
        if evidence is None:
            raise ValueError(problem)
        return str(make(evidence))

    meanings = dict(zip(NAMES, evaluate.MEANINGS, strict=True))
    body = [
        f"<h1>{name}</h1>",
        *section("", lambda: _introduction(config, rows)),
        *section("", lambda: sections.headline(scores, evidence)),
        *section("Precision and recall", lambda: of_evidence(lambda found: sections.curves(found, scores))),
        *section("Classes", lambda: sections.classes(evidence, scores)),
        *beside(
            section("Confusion", lambda: of_evidence(sections.confusion)),
            section("COCO scores", lambda: sections.twelve(scores, meanings)),
        ),
        *section("Worst images", lambda: of_evidence(lambda found: sections.worst(found, count))),
        *section("Learning", lambda: history.learning(rows, config["settings"]["epochs"])),
        *section("Data", lambda: sections.data(config, evidence)),
        *section("What it was trained on", lambda: _targets(run, count)),
        *beside(section("Time", lambda: history.times(rows)), section("Origin", lambda: history.origin(config, rows))),
    ]
    return outputs.write("report.html", page(f"{name}: training report", STYLE, body))


def _gathered(run: Path, config: dict[str, Any]) -> tuple[Evidence | None, str]:
    """Return the detections; or None, and why there are none."""
    try:
        return gather(run, config), ""
    except Exception as error:  # the page is written without them
        return None, explain(error) or flat(error)


def _introduction(config: dict[str, Any], rows: list[metrics.Row]) -> str:
    """Say in a sentence what was trained."""
    settings, (height, width) = config["settings"], config["size"]
    done = max((row["epoch"] for row in rows if "epoch" in row), default=0)
    best = metrics.best_of(rows)
    text = (
        f"{config['detector']}, network {config['model']} of width {config['width']}, images of {width} x {height},"
        f" {settings['epochs']} epochs in batches of {settings['batch_size']}, seed {settings['seed']}."
    )
    if best is not None and best["epoch"] != done:
        text += (
            f" The numbers are those of epoch {done}; AP was highest at epoch {best['epoch']},"
            f" {best['scores']['AP']:.3f} (checkpoints/best.ckpt)."
        )
    return f'<p class="soft">{html.escape(text)}</p>'


def _targets(run: Path, count: int) -> str:
    """Augmented training images with the targets of the network."""
    module, console = require("PIL.Image", "Pillow", "train"), Console(quiet=True)
    network, kind, config = runs.load(run, torch.device("cpu"))
    folder = Path(config["train_images"])
    annotations = open_annotations(Path(config["train_annotations"]), folder, False, console).select(limit=count)
    dataset = CocoImages(annotations, folder, (config["size"][0], config["size"][1]), False, 0, console)
    torch.manual_seed(config["settings"]["seed"])
    batch = augment(dataset.__getitems__(range(len(dataset))), Augmentation(**config["settings"]["augmentation"]))
    height, width = batch.images.shape[2:]
    with torch.no_grad():
        outputs = list(network(batch.images.contiguous(memory_format=torch.channels_last)))
    maps, stride, text = kind.picture(outputs, batch, (height, width))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    figures = []
    for row, image in enumerate(batch.images * std + mean):
        pixels = module.fromarray(image.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
        truth = batch.targets.to_list()[row]
        trained = truth["labels"] >= 0
        boxes, labels = truth["boxes"][trained], truth["labels"][trained]
        record = ImageRecord(row, "", height, width)
        view = pictures.overlay(pixels, maps[row], boxes, labels, config["classes"], record, stride)
        name = html.escape(annotations.images[row].file_name)
        figures.append(
            f'<figure><img src="{inline(view, SMALL)}" alt="targets"><figcaption>{name}</figcaption></figure>'
        )
    return f'<p>{text}</p><div class="pictures">{"".join(figures)}</div>'
