"""The interface of a detector that `detops predict` runs.

ReadBatch.images -> start -> rows -> lines of results.jsonl
"""

from typing import Any, Protocol

import torch

from detops.apps.data.ids import Id
from detops.apps.predict.reading import Images, ReadBatch

Row = dict[str, Any]
BROKEN = "the network's outputs hold numbers that are not finite"


class Predictor(Protocol):
    """A detector that works on batches of images: `RunPredictor`, `MaskRCNNPredictor` or `QueryMaskPredictor`."""

    @property
    def device(self) -> torch.device:
        """Device that it detects on."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images are fitted into when they are read; None keeps them as they are."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that its detections depend on, as JSON. Equal "weights" mean equal weights, bit for bit."""

    @property
    def max_detections(self) -> int:
        """Largest number of detections per image."""

    @property
    def names(self) -> dict[Id, str]:
        """Names of the categories by their ids in the results, in the order of labels, as far as they are known."""

    def start(self, images: Images) -> Any:
        """Begin to detect on images that are on the device; on a GPU this need not wait."""

    def rows(self, batch: ReadBatch, started: Any) -> list[list[Row] | str]:
        """Return COCO's results for each image of a batch that has finished, without its id; or why there are none."""
