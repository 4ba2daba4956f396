"""The pictures of `detops predict`, drawn from lines of its results while detection goes on with the next images.

They are extras: one that cannot be drawn or written is named, and costs nothing but itself.
"""

import io
import json
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from detops.apps import pictures, require, runs
from detops.apps.data.images import decode
from detops.apps.errors import explain
from detops.apps.outputs import Outputs
from detops.apps.predict.formats import Line
from detops.apps.predict.results import PICTURES, error_of
from detops.arguments import flat
from detops.masks.crops import MaskCrop
from detops.masks.drawing import draw_masks

OPACITY = 0.5  # of masks
LARGE = 1 << 24  # pixels


class Pictures:
    """Draw the pictures of the first images, several at a time.

    Args:
        outputs: Where they are written, in the folder `images`.
        paths: Paths of all images.
        names: Names of categories by id, in the order of labels; a category without a name is called by its id.
        count: Number of images that get a picture; all if negative.
        score: Least score of the detections that are drawn.
        frames: The images themselves, in order, where they are no files; each is removed when it is drawn or is not to
            be. Their pictures are named as their lines name them.

    Attributes:
        count: Number of pictures begun; who learns that one failed subtracts it.
    """

    def __init__(
        self,
        outputs: Outputs,
        paths: Iterable[str],
        names: Mapping[Any, str],
        count: int,
        score: float,
        frames: deque[Any] | None = None,
    ) -> None:
        wanted = islice(paths, count if count >= 0 else None)
        self._names = [] if frames is not None else pictures.unique_stems([Path(path).name for path in wanted])
        self._frames, self._most = frames, count
        self._outputs, self._score = outputs, score
        self._labels = {category: label for label, category in enumerate(names)}
        self._categories = names
        self._threads = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes and encodes without holding the interpreter
        self._large, self._recording = Lock(), Lock()
        self.count = 0

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def draw(self, row: int, lines: Sequence[str]) -> list[Future[str]]:
        """Begin the pictures of consecutive images.

        Args:
            row: Position of the first among all images.
            lines: Their lines of the results.

        Returns:
            One future per picture, of why it could not be made, or else of an empty text; images that failed have none.
        """
        names: Sequence[str] = self._names[row : row + len(lines)]
        images: list[Any] = [None] * len(lines)
        if self._frames is not None:
            images = [self._frames.popleft() for _ in lines]
            names = [Path(json.loads(line)["path"]).stem for line in lines]
            names = names if self._most < 0 else names[: max(0, self._most - row)]
        begun = [
            self._threads.submit(self._try, f"{PICTURES}/{name}.jpg", line, image)
            for name, line, image in zip(names, lines, images, strict=False)
            if error_of(line) is None
        ]
        self.count += len(begun)
        return begun

    def _try(self, target: str, text: str, image: Any) -> str:
        """Draw a picture; return why if that fails."""
        line: Line = json.loads(text)
        # Those of large images one at a time, so that memory does not grow with the number of cores.
        turn = self._large if line["width"] * line["height"] > LARGE else nullcontext()
        try:
            with turn:
                view = self._drawn(line, image)
                data = io.BytesIO()
                view.save(data, "JPEG", quality=90)
            with self._recording, self._outputs.open(target, durable=False) as file:
                file.write(data.getbuffer())
        except Exception as error:  # whatever Pillow, a font or the disk does
            return f"{line['path']}: no picture: {explain(error) or flat(error, 200)}"
        return ""

    def _drawn(self, line: Line, image: Any) -> Any:
        rows = [row for row in line["detections"] if row["score"] >= self._score]
        boxes = torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        categories = [row["category_id"] for row in rows]
        labels = torch.tensor([self._labels.get(one, one) for one in categories], dtype=torch.int64)
        names = {self._labels.get(one, one): self._categories.get(one, str(one)) for one in categories}
        scores = torch.tensor([row["score"] for row in rows])
        image = image or decode(line["path"], (line["width"], line["height"]))
        if rows and "segmentation" in rows[0]:
            crops = [_crop(row["segmentation"], box) for row, box in zip(rows, boxes.tolist(), strict=True)]
            size = (image.height, image.width)
            return pictures.enlarged(draw_masks(image, size, crops, boxes, labels, scores, names, OPACITY), least=1)
        return runs.draw(image, runs.Found(boxes, labels, scores), names)


def _crop(rle: dict[str, Any], box: Sequence[float]) -> MaskCrop:
    """Decode a mask from its run lengths, where its box is."""
    mask = require("pycocotools.mask", "pycocotools", "predict").decode(rle)
    left, top, right, bottom = (max(0, int(value) + grown) for value, grown in zip(box, (-1, -1, 2, 2), strict=True))
    return MaskCrop(torch.from_numpy(mask[top:bottom, left:right]).bool(), left, top)
