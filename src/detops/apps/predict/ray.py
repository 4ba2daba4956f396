"""Batches of images through a detector on several GPUs or machines, by Ray Data. Needs the extra `ray`.

sources -> blocks in Ray's store -> read (tasks) -> Predictor (actors) -> lines of results.jsonl, in order

A row of Ray's is a batch of the command's: what is computed together does not depend on who computes it. Every machine
must see the images and the weights under the paths that this one sees them.
"""

import json
import logging
import math
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from detops.apps import require
from detops.apps.predict.listing import batched
from detops.apps.predict.stream import Predictor, Read, Source, encoded, on_device, read

BLOCKS = 1000  # of batches, as long as no block holds more than:
BLOCK = 16

Row = dict[str, Any]
Load = Callable[[torch.device], Predictor]


def connect() -> bool:
    """Connect to the cluster that `RAY_ADDRESS` names or this machine runs, or else start Ray on this machine alone.

    Returns:
        Whether there are GPUs.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """
    ray = require("ray", "Ray", "predict --ray", "ray")
    require("ray.data", "Ray Data", "predict --ray", "ray")
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    return bool(ray.cluster_resources().get("GPU", 0))


def lines(
    load: Load,
    predictor: Predictor,
    device: torch.device,
    batches: Iterable[list[Source]],
    count: int,
    workers: int | None,
) -> Iterator[list[str]]:
    """The lines of each batch, in order. `connect` comes first.

    Args:
        load: Makes the predictor of each actor.
        predictor: What it makes here, whose weights those of the actors must be.
        device: Of the kind that detects.
        batches: What to detect on. They go to Ray's store, which takes to the disk what is too much for memory.
        count: How many.
        workers: Networks at a time; by default one a GPU, or without GPUs one for every two cores.
    """
    import ray
    from ray.data import ActorPoolStrategy, from_arrow_refs

    workers, needs = _share(ray.cluster_resources(), device, workers)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    rows = from_arrow_refs([ray.put(block) for block in _blocks(batches, count)])
    rows.context.execution_options.preserve_order = True
    rows.context.enable_progress_bars = False
    rows = rows.map(_read, fn_kwargs={"size": predictor.size, "folder": os.getcwd()}, num_cpus=1)
    rows = rows.map(
        Detector, fn_constructor_args=(load, predictor.settings["weights"], device.type),
        compute=ActorPoolStrategy(size=workers), **needs,
    )  # fmt: skip
    for row in rows.iter_rows():
        yield row["lines"].splitlines(keepends=True)


def _share(available: dict[str, float], device: torch.device, workers: int | None) -> tuple[int, dict[str, float]]:
    """How many networks, and what each reserves: never so much that nothing is left to read with."""
    if device.type == "cuda":
        gpus = max(1, int(available.get("GPU", 1)))
        workers = workers or gpus
        return workers, {"num_cpus": 0, "num_gpus": 1 / math.ceil(workers / gpus)}
    half = int(available.get("CPU", 1)) // 2
    workers = workers or max(1, half)
    return workers, {"num_cpus": 1 if workers <= half else 0}


def _blocks(batches: Iterable[list[Source]], count: int) -> Iterator[Any]:
    """Tables of one column; a batch is a row, as JSON, for paths need not be valid Unicode."""
    pyarrow = require("pyarrow", "Ray Data", "predict --ray", "ray")
    for block in batched(batches, max(1, min(BLOCK, count // BLOCKS))):
        yield pyarrow.table({"sources": [json.dumps(batch) for batch in block]})


def _read(row: Row, size: tuple[int, int] | None, folder: str) -> Row:
    """What `predict_stream.read` gives, as bytes: images may be of any sizes."""
    batch = read([Source(*source) for source in json.loads(row["sources"])], size, folder)
    images = batch.images.numpy() if isinstance(batch.images, torch.Tensor) else [i.numpy() for i in batch.images]
    return {"read": pickle.dumps((batch.sources, images, batch.sides, batch.errors), protocol=5)}


class Detector:
    """Holds a predictor and detects on the batches that it is given."""

    def __init__(self, load: Load, weights: str, device: str) -> None:
        self.predictor = load(torch.device(device))
        if self.predictor.settings["weights"] != weights:
            raise ValueError("the detector has other weights here than where the command was given")

    def __call__(self, row: Row) -> Row:
        """The lines of a batch."""
        sources, arrays, sides, errors = pickle.loads(row["read"])
        images = [torch.from_numpy(a) for a in arrays] if isinstance(arrays, list) else torch.from_numpy(arrays)
        batch = Read(sources, images, sides, errors)
        started = self.predictor.start(on_device(images, self.predictor.device))
        if self.predictor.device.type == "cuda":
            torch.cuda.current_stream(self.predictor.device).synchronize()
        return {"lines": "".join(encoded(batch, self.predictor.rows(batch, started)))}
