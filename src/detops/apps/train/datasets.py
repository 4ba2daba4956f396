"""The images that a training sees: those to train on, those to evaluate on, and the batches of its steps."""

from typing import Any

from rich.console import Console
from torch.utils.data import DataLoader

from detops.apps import note, usable_cores
from detops.apps.data.dataset import CocoImages, Steps, as_is, open_annotations
from detops.apps.train.settings import Data


def open_both(
    data: Data, size: tuple[int, int], strict: bool, memory_limit: int, console: Console
) -> tuple[CocoImages, CocoImages]:
    """Open the data to train on and the data to evaluate on, which share the memory for decoded images.

    Args:
        data: Where the data is.
        size: Height and width that images are fitted into.
        strict: Stop if an annotation or an image is invalid.
        memory_limit: Bytes of decoded images to keep.
        console: Where to print.

    Raises:
        ValueError: The data is invalid, or the two have other classes.
        FileNotFoundError: A file is missing.
    """
    train = open_annotations(data.train_annotations, data.train_images, strict, console)
    val = open_annotations(data.val_annotations, data.val_images, strict, console, objects=False)
    if val.total:
        val.require(data.val_annotations)
    else:
        note(console, f"{data.val_annotations}: no annotations, so that there is nothing to score")
    if train.class_names != val.class_names or not train.class_names:
        raise ValueError(f"expected the same classes in both sets, got {train.class_names} and {val.class_names}")
    train_set = CocoImages(train, data.train_images, size, strict, memory_limit, console)
    left = 0 if train_set.kept is None else memory_limit - train_set.kept.numel()
    return train_set, CocoImages(val, data.val_images, size, strict, left, console)


def batches(train_set: CocoImages, steps: Steps, workers: int | None) -> DataLoader[Any]:
    """Load the batches of the steps; processes decode them only where images are not kept in memory."""
    if workers is None:
        workers = min(8, usable_cores())
    workers = workers if train_set.kept is None else 0
    return DataLoader(train_set, batch_sampler=steps, num_workers=workers, collate_fn=as_is, pin_memory=False)
