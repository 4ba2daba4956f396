"""What a run detected on its validation data, matched with the truth: the ground of most of the page."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from detops.apps import require, runs
from detops.apps.data.coco import Annotations
from detops.apps.data.dataset import CocoImages, open_annotations
from detops.apps.data.json_file import load
from detops.apps.data.matching import (
    Curve,
    Kind,
    Matches,
    Rates,
    confusion,
    curve,
    kinds,
    match,
    rates,
)
from detops.apps.data.results import Results, judge_results
from detops.apps.data.table import Array
from detops.apps.train.detections import NAME

SCORE = 0.3  # the threshold where none is best, as nothing was found


@dataclass(frozen=True)
class Evidence:
    """The detections of a run and what they found.

    Attributes:
        annotations: The validation data.
        folder: Folder of its images.
        results: The detections.
        matches: What they found, at an IoU of 0.5.
    """

    annotations: Annotations
    folder: Path
    results: Results
    matches: Matches

    @cached_property
    def curve(self) -> Curve:
        """Precision and recall of all classes together."""
        return curve(self.annotations, self.results, self.matches)

    @cached_property
    def threshold(self) -> float:
        """The score from which F1 is highest."""
        best = self.curve.best
        return SCORE if best is None else best

    @cached_property
    def rates(self) -> list[Rates]:
        """Counts of each class, at the threshold."""
        return rates(self.annotations, self.results, self.matches, self.threshold)

    @cached_property
    def kinds(self) -> tuple[Array, Array]:
        """What each detection is, at the threshold, and its object."""
        return kinds(self.annotations, self.results, self.matches, self.threshold)

    @cached_property
    def missed(self) -> Array:
        """(T,) bool, objects that no detection found."""
        kind, place = self.kinds
        missed = ~self.annotations.table.crowd
        missed[place[kind == Kind.TRUE]] = False
        return missed

    @cached_property
    def confusion(self) -> Array:
        """Objects by class and class of their detection; see `matching.confusion`."""
        return confusion(self.annotations, self.results, *self.kinds)

    def worst(self, count: int) -> list[int]:
        """Return the images with the most errors, the worst first; images without an error come last."""
        np = require("numpy", "numpy")
        kind, place = self.kinds
        number = len(self.annotations.images)
        wrong = (kind != Kind.TRUE) & (kind < Kind.IGNORED)
        errors = np.bincount(self.results.image[wrong], minlength=number)
        alone = self.missed.copy()
        alone[place[wrong & (place >= 0)]] = False  # counted with its detection
        errors += np.bincount(self.annotations.table.image[alone], minlength=number)
        order: list[int] = np.argsort(-errors, kind="stable")[:count].tolist()
        return order


def gather(run: Path, config: dict[str, Any]) -> Evidence:
    """Read the detections of a run's last evaluation; where an older run kept none, detect again.

    Raises:
        ValueError: The validation data or the detections are invalid.
        OSError: They cannot be read.
    """
    console, folder = Console(quiet=True), Path(config["val_images"])
    annotations = open_annotations(Path(config["val_annotations"]), folder, False, console, objects=False)
    if (run / NAME).is_file():
        rows = load(run / NAME, "a list of detections")
    else:
        network, kind, _ = runs.load(run, torch.device("cpu"))
        dataset = CocoImages(annotations, folder, (config["size"][0], config["size"][1]), False, 0, console)
        found = runs.detect_all(network, kind, dataset, range(len(dataset)), on_broken=lambda _: None)
        rows = [
            row
            for image, one in zip(annotations.images, found, strict=True)
            for row in runs.as_results(image.id, one, annotations.category_ids)
        ]
    results = judge_results(rows, annotations, "bbox", run / NAME)
    return Evidence(annotations, folder, results, match(annotations, results))
