"""A trained run as what `detops predict` detects with."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detops import Detections
from detops.apps import runs
from detops.apps.data.dataset import fitted
from detops.apps.predict.stream import Read, Row

NAMES = ("detector", "model", "width", "size", "classes", "category_ids")  # of the configuration, what decides


class RunPredictor:
    """A network that `detops train` trained; see `Predictor`.

    Args:
        run: Its folder.
        half: Compute in bfloat16.
        device: Where.

    Raises:
        FileNotFoundError: There is no such run, or no checkpoint in it yet.
    """

    def __init__(self, run: Path, half: bool, device: torch.device) -> None:
        self._network, self._kind, config = runs.load(run, device)
        self._half, self.device = half, device
        self.size: tuple[int, int] = (config["size"][0], config["size"][1])
        self.names = dict(zip(config["category_ids"], config["classes"], strict=True))
        self._category_ids = config["category_ids"]
        self.settings = {
            "weights": runs.fingerprint(self._network), **{name: config[name] for name in NAMES}, "half": half
        }  # fmt: skip

    def start(self, images: Tensor | list[Tensor]) -> Detections:
        """Detect on a batch; the copies back are on their way."""
        assert isinstance(images, Tensor)
        found = runs.forward(self._network, self._kind, images, self._half)
        return Detections(*(t.to("cpu", non_blocking=True) for t in found))

    def rows(self, batch: Read, started: Detections) -> list[list[Row]]:
        """Detections in pixels of the images, cut to them."""
        scales = []
        for side in batch.sides:
            width, height = fitted(side, self.size)
            scales.append((width / side[0], height / side[1]))
        found = runs.in_images(started, scales, batch.sides)
        rows: list[list[dict[str, Any]]] = [runs.as_rows(one, self._category_ids) for one in found]
        return rows
