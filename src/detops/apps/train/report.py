"""`report.html`: one self-contained page about a run, with its scores, times, losses, targets and detections.

A section that cannot be made says so, and the others are there.
"""

import base64
import html
import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from detops.apps import pictures, require, runs
from detops.apps.data.coco import ImageRecord
from detops.apps.data.dataset import MEAN, STD, CocoImages, open_annotations
from detops.apps.data.images import decode
from detops.apps.errors import explain
from detops.apps.outputs import Outputs
from detops.apps.page import is_own_page, page
from detops.apps.train import metrics
from detops.apps.train.augment import Augmentation, augment
from detops.arguments import flat

if TYPE_CHECKING:
    from PIL.Image import Image

COLORS = {  # of the stages, in the order in which they are shown
    "data": "#9aa0a6",
    "teacher": "#188038",
    "targets": "#e8710a",
    "network": "#4285b4",
    "loss": "#d93025",
    "targets and loss": "#d93025",
    "backward": "#7fb2d5",
    "optimizer": "#c5c9cf",
}
NOISE = 0.95  # targets that take more than this fraction of the loss cannot be told apart from it
BLANK = (52, 56, 64)
SCORE = 0.3  # lowest score of the detections that are shown
STYLE = """
body{max-width:1180px}
h1{font-size:26px;margin:0}h2{font-size:19px;margin:36px 0 8px}p{margin:6px 0;max-width:80ch}
td,th{padding:3px 14px 3px 0;text-align:right}
td:first-child,th:first-child{text-align:left}th{font-weight:600;border-bottom:1px solid #ccc}
.numbers{display:grid;grid-template-columns:repeat(6,max-content);gap:10px 34px;margin:14px 0}
.numbers b{display:block;font-size:28px;line-height:1.2}
.bar{display:flex;height:26px;border-radius:4px;overflow:hidden;margin:10px 0}.bar i{display:block}
.dot{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:7px}
.meter{display:inline-block;height:11px;background:#4285b4;border-radius:2px}
.pictures{display:grid;grid-template-columns:repeat(4,1fr);gap:10px}.pairs{grid-template-columns:repeat(2,1fr)}
figure{margin:0}figure img{width:100%;border-radius:3px}figcaption{font-size:12px;color:#5c6068}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:3px}svg{max-width:100%;height:auto}
@media(max-width:700px){.pictures{grid-template-columns:1fr 1fr}.pairs{grid-template-columns:1fr}
.numbers{grid-template-columns:repeat(4,max-content)}}
"""


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
    steps, scores = [row for row in rows if "losses" in row], [row for row in rows if "scores" in row]
    last = scores[-1]["scores"] if scores else {}
    name = html.escape(run.resolve().name)
    body = [
        f"<h1>{name}</h1>",
        *_section("", lambda: _introduction(config)),
        *_section("", lambda: _numbers(last)),
        *_section("Time", lambda: _times(steps)),
        *_section("Losses and scores", lambda: _curves(steps, scores, config)),
        *_section("AP of each class", lambda: _classes(last.get("classes", {}))),
        *_section("What it was trained on", lambda: _targets(run, count)),
        *_section("Detections and annotations", lambda: _detections(run, count)),
    ]
    return outputs.write("report.html", page(f"{name}: training report", STYLE, body))


def _introduction(config: dict[str, Any]) -> str:
    """What was trained, and how."""
    settings, (height, width) = config["settings"], config["size"]
    return (
        f"<p>{html.escape(config['detector'])}, network {html.escape(config['model'])} of width {config['width']},"
        f" images resized to fit into {width} x {height}, {settings['epochs']} epochs in batches of"
        f" {settings['batch_size']}, seed {settings['seed']}."
        f" Classes: {html.escape(', '.join(config['classes']))}.</p>"
    )


def _section(title: str, make: Callable[[], str]) -> tuple[str, str]:
    """Make a section, or say why it could not be made."""
    try:
        content = make() or "<p>Nothing was recorded.</p>" * bool(title)
    except Exception as error:  # a picture, a font, or what a hand changed in the record
        content = f"<p>Could not be made: {html.escape(explain(error) or flat(error))}.</p>"
    return f"<h2>{title}</h2>" * bool(title), content


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _numbers(scores: dict[str, Any]) -> str:
    """COCO's twelve scores."""
    shown = [(name, value) for name, value in scores.items() if name != "classes"]
    return '<div class="numbers">' + "".join(f"<div><b>{_number(v)}</b>{n}</div>" for n, v in shown) + "</div>"


def _times(steps: list[metrics.Row]) -> str:
    """Where the time of a step goes."""
    if not steps:
        return ""
    times = _stages(steps)
    total = max(sum(times.values()), 1e-9)
    share = sum(times.get(name, 0.0) for name in ("targets", "loss", "targets and loss")) / total
    bar = "".join(f'<i style="width:{100 * t / total:.2f}%;background:{COLORS[s]}"></i>' for s, t in times.items())
    rows = "".join(
        f'<tr><td><span class="dot" style="background:{COLORS[stage]}"></span>{stage}</td>'
        f"<td>{time:.2f}</td><td>{100 * time / total:.1f} %</td></tr>"
        for stage, time in times.items()
    )
    return (
        f"<p>A step takes {total:.0f} ms. Targets and loss, with their gradient, take {100 * share:.1f} % of it; the"
        f' rest of forward and backward is the network.</p><div class="bar">{bar}</div>'
        f"<table><tr><th>stage</th><th>ms per step</th><th>share</th></tr>{rows}</table>"
    )


def _stages(steps: list[metrics.Row]) -> dict[str, float]:
    """Compute the median milliseconds of each stage; they add up to a step."""
    recorded = steps[0]["milliseconds"]
    times = {
        stage: float(torch.tensor([row["milliseconds"].get(stage, 0.0) for row in steps]).median())
        for stage in COLORS
        if stage in recorded
    }
    # The loss includes its targets, which are measured separately: noise may make the part longer than the whole.
    if times["targets"] < NOISE * times["loss"]:
        times["loss"] -= times["targets"]
    else:
        times["targets and loss"] = times.pop("loss")
        del times["targets"]
    return {stage: times[stage] for stage in COLORS if stage in times}


def _curves(steps: list[metrics.Row], scores: list[metrics.Row], config: dict[str, Any]) -> str:
    """The parts of the loss and the AP over the training, as one drawing."""
    if not steps:
        return ""
    figure_module = require("matplotlib.figure", "matplotlib", "train")
    figure = figure_module.Figure(figsize=(11.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in steps[0]["losses"]:
        values = [row["losses"].get(name) for row in steps]
        left.plot([row["step"] for row in steps], [math.nan if v is None else v for v in values], label=name)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    for name in ("AP", "AP50", "AP75"):
        values = [row["scores"][name] for row in scores]
        values = [math.nan if v is None else v for v in values]
        right.plot([row["epoch"] for row in scores], values, "o-", ms=4, label=name)
    right.set(xlabel="epoch", ylabel="score", ylim=(0, 1), xlim=(0, config["settings"]["epochs"] * 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _classes(classes: dict[str, float | None]) -> str:
    if not classes:
        return ""
    rows = "".join(
        f'<tr><td>{html.escape(name)}</td><td>{_number(value)}</td><td style="text-align:left">'
        f'<span class="meter" style="width:{400 * (value or 0):.0f}px"></span></td></tr>'
        for name, value in sorted(classes.items(), key=lambda item: -(item[1] or 0))
    )
    return f"<table><tr><th>class</th><th>AP</th><th></th></tr>{rows}</table>"


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
    shown = []
    for row, image in enumerate(batch.images * std + mean):
        pixels = module.fromarray(image.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
        truth = batch.targets.to_list()[row]
        trained = truth["labels"] >= 0
        boxes, labels = truth["boxes"][trained], truth["labels"][trained]
        record = ImageRecord(row, "", height, width)
        view = pictures.overlay(pixels, maps[row], boxes, labels, config["classes"], record, stride)
        shown.append((view, annotations.images[row].file_name))
    return f'<p>{text}</p><div class="pictures">{_figures(shown)}</div>'


def _detections(run: Path, count: int) -> str:
    """Pairs of pictures: the detections on the left, the annotations on the right."""
    module = require("PIL.Image", "Pillow", "train")
    figures = []
    for sample in runs.samples(run, count, SCORE):
        try:
            image, state = decode(sample["path"], sample["size"]), ""
        except ValueError:
            image, state = module.new("RGB", sample["size"], BLANK), " (the image cannot be decoded)"
        truth = runs.Found(sample["boxes"].float(), sample["labels"], torch.ones(len(sample["boxes"])))
        names = sample["class_names"]
        views = (runs.draw(image, sample["found"], names), runs.draw(image, truth, names, scores=False))
        caption = (
            f"{sample['path'].name}{state}: {len(sample['found'].boxes)} detections, {len(truth.boxes)} annotations"
        )
        pair = "".join(f'<img src="{_inline(view)}" alt="">' for view in views)
        figures.append(
            f'<figure><div class="pair">{pair}</div><figcaption>{html.escape(caption)}</figcaption></figure>'
        )
    text = f"<p>Left: detections with a score of at least {SCORE}. Right: the annotations.</p>"
    return text + f'<div class="pictures pairs">{"".join(figures)}</div>'


def _figures(shown: Iterable[tuple["Image", str]]) -> str:
    return "".join(
        f'<figure><img src="{_inline(image)}" alt=""><figcaption>{html.escape(caption)}</figcaption></figure>'
        for image, caption in shown
    )


def _inline(image: "Image", side: int = 560) -> str:
    """Encode a picture as a data URL."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
