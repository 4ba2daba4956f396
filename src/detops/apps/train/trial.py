"""One step in small, before the training: whether the network's outputs are those of its kind of detector."""

import copy

import torch
from torch import nn

from detops.apps.data.dataset import MULTIPLE, Batch, padded_shape
from detops.apps.train.families import Family
from detops.apps.train.settings import Network, Settings
from detops.arguments import flat
from detops.ground_truth import GroundTruth

IMAGES = 2  # more tell no more


def try_step(network: nn.Module, kind: Family, how: Network, settings: Settings) -> None:
    """Compute the loss of blank images, of the least size that the training has; the network stays as it is.

    Args:
        network: Network that is to be trained, on the CPU.
        kind: Its kind of detector.
        how: Where the network comes from, and the size of its input.
        settings: How it is to be trained.

    Raises:
        ValueError: The network fails, or its outputs are not those of the kind; the message names the arguments.
    """
    count = min(IMAGES, settings.batch_size)
    least = 1 + settings.augmentation.multi_scale
    height, width = (max(1, round(side / least / MULTIPLE)) * MULTIPLE for side in padded_shape(how.size))
    boxes, labels = [torch.tensor([[4.0, 4.0, 20.0, 20.0]])] * count, [torch.zeros(1, dtype=torch.int64)] * count
    images = torch.zeros(count, 3, height, width)
    batch = Batch(images, GroundTruth.from_boxes(boxes, labels), torch.arange(count))
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            outputs = copy.deepcopy(network).train()(images)
            if not isinstance(outputs, tuple | list):
                raise TypeError(f"expected a tuple or list of outputs, got {type(outputs).__name__}")
            outputs = [*outputs, *([] if kind.teacher is None else [kind.teacher(images)])]
            kind.losses(outputs, batch, (height, width))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the network of a user, or a loss that it does not fit, does
        if "allocate memory" in str(error):
            raise
        if "more than 1 value per channel" in str(error):
            raise ValueError(
                f"--batch-size {settings.batch_size} with --size {how.size[1]}x{how.size[0]}: batch norm needs more "
                f"than one value per channel, and input of {width}x{height} leaves one; use a larger --batch-size or "
                "--size"
            ) from error
        raise ValueError(
            f"model: {how.model!r} does not work as a {how.detector}, on input of {width}x{height}: {flat(error)}; it "
            "must return what the compact network of this detector returns"
        ) from error
