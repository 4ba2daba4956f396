"""The detector of `detops predict --run`: a network that `detops train` trained."""

from pathlib import Path

import torch
from torch import Tensor

from detops import Detections
from detops.apps import runs
from detops.apps.data.dataset import fitted
from detops.apps.predict.predictor import BROKEN, Row
from detops.apps.predict.reading import Images, ReadBatch

NAMES = ("detector", "model", "width", "size", "classes", "category_ids")  # configuration that detections depend on


class RunPredictor:
    """A `Predictor` that uses the network of a run.

    Args:
        run: Folder of the run.
        half: Compute in bfloat16.
        device: Device to detect on.
        max_detections: Largest number of detections per image; by default that of the run.

    Raises:
        FileNotFoundError: There is no such run, or it has no checkpoint yet.
        ValueError: It is damaged, or its weights are not finite.
    """

    def __init__(self, run: Path, half: bool, device: torch.device, max_detections: int | None = None) -> None:
        self._network, self._kind, config = runs.load(run, device, max_detections)
        self.max_detections = self._kind.max_detections
        self._half, self.device = half, device
        self.size: tuple[int, int] = (config["size"][0], config["size"][1])
        self.names = dict(zip(config["category_ids"], config["classes"], strict=True))
        self._category_ids = config["category_ids"]
        chosen = {name: config[name] for name in NAMES}
        self.settings = {"weights": runs.fingerprint(self._network), **chosen, "half": half}
        self.settings["max_detections"] = self.max_detections

    def start(self, images: Images) -> Detections:
        """Begin to detect on a batch and to copy the detections back."""
        assert isinstance(images, Tensor)
        found = runs.forward(self._network, self._kind, images, self._half)
        return Detections(*(t.to("cpu", non_blocking=True) for t in found))

    def rows(self, batch: ReadBatch, started: Detections) -> list[list[Row] | str]:
        """Return the detections in pixels of the images, clipped to them; or that the network's outputs are broken."""
        scales = []
        for side in batch.sides:
            width, height = fitted(side, self.size)
            scales.append((width / side[0], height / side[1]))
        found = runs.in_images(started, scales, batch.sides)
        return [BROKEN if one.broken else runs.as_rows(one, self._category_ids) for one in found]
