"""Scoring a network while it is trained, on data that the ranks share.

averaged weights -> detections of all ranks -> COCO's scores, detections.json.gz
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from torch import nn

from detops.apps import evaluate, runs
from detops.apps.data.dataset import CocoImages
from detops.apps.train import detections
from detops.apps.train.families import Family, other_way

Found = dict[int, runs.Found]  # by row of the data


class Scored(NamedTuple):
    """What came of scoring a network.

    Attributes:
        scores: COCO's scores, as a line of `metrics.jsonl` holds them.
        text: A sentence about them.
        found: The detections.
    """

    scores: dict[str, Any]
    text: str
    found: Found


class Validation:
    """The data to score on.

    Args:
        images: The data.
        run: Folder of the run.
        tell: Prints a line.
    """

    def __init__(self, images: CocoImages, run: Path, tell: Callable[[str], None]) -> None:
        self._images, self._run, self._tell = images, run, tell

    def score(self, network: nn.Module, kind: Family, trainer: lightning.Trainer, every_way: bool) -> Scored | None:
        """Score a network.

        Args:
            network: The network.
            kind: Its kind of detector.
            trainer: Lightning's trainer.
            every_way: Score it in every way in which its outputs can be decoded.

        Returns:
            What came of it; None on ranks other than the first.
        """
        found, other = self._detect(network, kind, trainer), other_way(kind) if every_way else None
        found_otherwise = self._detect(network, other[1], trainer) if other else None
        if not trainer.is_global_zero:
            return None
        scores = evaluate.score_rows(self._images, found, kind.max_detections)
        text = f"AP {evaluate.number(scores['AP'])}, AP50 {evaluate.number(scores['AP50'])}"
        if other and found_otherwise is not None:
            others = evaluate.score_rows(self._images, found_otherwise, kind.max_detections)
            scores["other"] = {"name": other[0], **others}
            text += f"; {other[0]} AP {evaluate.number(others['AP'])}"
        return Scored(scores, text, found)

    def keep(self, found: Found) -> None:
        """Keep what was detected, for the report."""
        annotations = self._images.annotations
        rows = [
            line
            for row, one in found.items()
            if row not in self._images.broken
            for line in runs.as_results(annotations.images[row].id, one, annotations.category_ids)
        ]
        try:
            detections.write(self._run, rows)
        except OSError as error:
            self._tell(f"{detections.NAME} not written: {error}; the previous one is untouched")

    def _detect(self, network: nn.Module, kind: Family, trainer: lightning.Trainer) -> Found:
        """Detect in the data, which the ranks share; every rank has all."""
        world, rank = trainer.world_size, trainer.global_rank
        rows = list(range(rank, len(self._images), world))
        autocast = str(trainer.precision).startswith("bf16")
        share = runs.detect_all(network, kind, self._images, rows, autocast=autocast, on_broken=self._tell)
        found = dict(zip(rows, share, strict=True))
        if world > 1:
            shares: list[Any] = [None] * world
            torch.distributed.all_gather_object(shares, found)
            found = {row: value for share in shares for row, value in share.items()}
        return found
