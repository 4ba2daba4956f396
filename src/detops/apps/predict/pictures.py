"""The pictures of `detops predict`, drawn from lines of its results while detection goes on with the next images."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from detops.apps import pictures, require, runs
from detops.apps.data.images import decode
from detops.apps.predict.results import Line, error_of
from detops.masks.drawing import draw_masks
from detops.masks.instance_masks import MaskCrop

OPACITY = 0.5  # of masks


class Pictures:
    """Draw the pictures of the first images, several at a time.

    Args:
        folder: Folder to write into.
        paths: Paths of all images.
        names: Names of categories by id, in the order of labels; a category without a name is called by its id.
        count: Number of images that get a picture; all if negative.
        score: Least score of the detections that are drawn.

    Attributes:
        count: Number of pictures begun.
    """

    def __init__(self, folder: Path, paths: Iterable[str], names: Mapping[int, str], count: int, score: float) -> None:
        wanted = islice(paths, count if count >= 0 else None)
        self._names = pictures.unique_stems([Path(path).name for path in wanted])
        self._folder, self._score = folder, score
        self._labels = {category: label for label, category in enumerate(names)}
        self._categories = names
        self._threads = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes and encodes without holding the interpreter
        self.count = 0
        if self._names:
            folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def draw(self, row: int, lines: Sequence[str]) -> list[Future[None]]:
        """Begin the pictures of consecutive images.

        Args:
            row: Position of the first among all images.
            lines: Their lines of the results.

        Returns:
            One future per picture; images that failed have none.
        """
        wanted = zip(self._names[row : row + len(lines)], lines, strict=False)
        begun = [
            self._threads.submit(self._draw, self._folder / f"{name}.jpg", line)
            for name, line in wanted
            if error_of(line) is None
        ]
        self.count += len(begun)
        return begun

    def _draw(self, target: Path, text: str) -> None:
        line: Line = json.loads(text)
        rows = [row for row in line["detections"] if row["score"] >= self._score]
        boxes = torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        categories = [row["category_id"] for row in rows]
        labels = torch.tensor([self._labels.get(one, one) for one in categories], dtype=torch.int64)
        names = {self._labels.get(one, one): self._categories.get(one, str(one)) for one in categories}
        scores = torch.tensor([row["score"] for row in rows])
        image = decode(line["path"], (line["width"], line["height"]))
        if rows and "segmentation" in rows[0]:
            crops = [_crop(row["segmentation"], box) for row, box in zip(rows, boxes.tolist(), strict=True)]
            size = (image.height, image.width)
            view = draw_masks(image, size, crops, boxes, labels, scores, names, OPACITY)
        else:
            view = runs.draw(image, runs.Found(boxes, labels, scores), names)
        view.save(target, quality=90)


def _crop(rle: dict[str, Any], box: Sequence[float]) -> MaskCrop:
    """Decode a mask from its run lengths, where its box is."""
    mask = require("pycocotools.mask", "pycocotools", "predict").decode(rle)
    left, top, right, bottom = (max(0, int(value) + grown) for value, grown in zip(box, (-1, -1, 2, 2), strict=True))
    return MaskCrop(torch.from_numpy(mask[top:bottom, left:right]).bool(), left, top)
