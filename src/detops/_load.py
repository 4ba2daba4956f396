"""`load`, which needs more than torch only when it is called."""

import os
from typing import TYPE_CHECKING

import torch

from detops.arguments import require_module

if TYPE_CHECKING:
    from detops.apps.detector import Detector


def load(
    run: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    half: bool = False,
    score: float = 0.0,
    max_detections: int | None = None,
    batch_size: int = 8,
) -> "Detector":
    """Load what `detops train` trained, as a function of images. Needs the extra `train`.

    It has the pixels and the numbers of `detops predict`, whose files hold them rounded.

    Args:
        run: Folder of the run, for its last checkpoint; or one of its checkpoints.
        device: Where to detect; by default a GPU if there is one.
        half: Compute in bfloat16.
        score: Lowest score of a detection; 0 keeps all that the network decodes, from 0.001.
        max_detections: Number of detections per image; by default that of the training.
        batch_size: Largest number of images that are computed at once.

    Returns:
        A detector, whose call takes images and returns `Detections`.

    Raises:
        FileNotFoundError: There is no such run, or it has no checkpoint yet.
        ModuleNotFoundError: The extra is missing.
        ValueError: The run is damaged, its weights are not finite, or an argument is out of range.
    """
    for module, package in (("rich", "rich"), ("PIL.Image", "Pillow"), ("numpy", "numpy")):
        require_module(module, package, "detops.load", "detops[train]")
    from detops.apps.detector import Detector

    return Detector(run, device, half, score, max_detections, batch_size)
