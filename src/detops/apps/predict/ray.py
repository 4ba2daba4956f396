"""Detecting on batches of images on several GPUs or machines, by Ray Data. Needs the extra `ray`.

sources -> blocks in Ray's store -> read (tasks) -> Predictor (actors) -> lines of results.jsonl, in order

A row of Ray's is a batch of the command's, so what is computed together does not depend on who computes it. Every
machine must see the images and the weights under the same paths as this one.
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
from detops.apps.predict.form import Form
from detops.apps.predict.listing import batched
from detops.apps.predict.predictor import Predictor
from detops.apps.predict.reading import ReadBatch, on_device, read
from detops.apps.predict.results import encode_batch
from detops.apps.predict.sources import Source

BLOCKS = 1000  # number of blocks to aim at
BLOCK = 16  # largest number of batches in a block

RayRow = dict[str, Any]
Load = Callable[[torch.device], Predictor]


def connect() -> bool:
    """Connect to the cluster that `RAY_ADDRESS` names or this machine runs; otherwise start Ray on this machine.

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
    form: Form,
) -> Iterator[list[str]]:
    """Yield the lines of each batch, in order. Call `connect` first.

    Args:
        load: Function that loads the detector in each actor.
        predictor: The same detector on this machine; the actors must load the same weights.
        device: Kind of device to detect on.
        batches: Images to detect on. They go to Ray's store, which spills to the disk what does not fit in memory.
        count: Number of batches.
        workers: Copies of the network; by default one per GPU, or without GPUs one for every two cores.
        form: Form of the detections.
    """
    import ray
    from ray.data import ActorPoolStrategy, from_arrow_refs

    workers, resources = reservation(ray.cluster_resources(), device, workers)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    rows = from_arrow_refs([ray.put(block) for block in blocks(batches, count)])
    rows.context.execution_options.preserve_order = True
    rows.context.enable_progress_bars = False
    rows = rows.map(_read, fn_kwargs={"size": predictor.size, "folder": os.getcwd()}, num_cpus=1)
    rows = rows.map(
        DetectionActor,
        fn_constructor_args=(load, predictor.settings["weights"], device.type, form),
        compute=ActorPoolStrategy(size=workers),
        **resources,
    )
    for row in rows.iter_rows():
        yield row["lines"].splitlines(keepends=True)


def reservation(available: dict[str, float], device: torch.device, workers: int | None) -> tuple[int, dict[str, float]]:
    """Decide how many actors there are and what each reserves, so that cores are left for reading.

    Args:
        available: Resources of the cluster by Ray's names.
        device: Kind of device to detect on.
        workers: Number of actors; None chooses.

    Returns:
        The number of actors, and Ray's arguments for each.
    """
    if device.type == "cuda":
        gpus = max(1, int(available.get("GPU", 1)))
        workers = workers or gpus
        return workers, {"num_cpus": 0, "num_gpus": 1 / math.ceil(workers / gpus)}
    half = int(available.get("CPU", 1)) // 2
    workers = workers or max(1, half)
    return workers, {"num_cpus": 1 if workers <= half else 0}


def blocks(batches: Iterable[list[Source]], count: int) -> Iterator[Any]:
    """Pack batches into tables of one column, about `BLOCKS` of them; a row is a batch.

    Args:
        batches: Batches to pack, each written as JSON, as paths need not be valid Unicode.
        count: Number of batches.
    """
    pyarrow = require("pyarrow", "Ray Data", "predict --ray", "ray")
    for block in batched(batches, max(1, min(BLOCK, count // BLOCKS))):
        yield pyarrow.table({"sources": [json.dumps(batch) for batch in block]})


def _read(row: RayRow, size: tuple[int, int] | None, folder: str) -> RayRow:
    """ReadBatch a batch and pickle it, as its images may differ in size."""
    batch = read([Source(*source) for source in json.loads(row["sources"])], size, folder)
    images = batch.images.numpy() if isinstance(batch.images, torch.Tensor) else [i.numpy() for i in batch.images]
    return {"read": pickle.dumps((batch.sources, images, batch.sides, batch.errors, batch.several), protocol=5)}


class DetectionActor:
    """Detects on the batches that Ray gives to it.

    Args:
        load: Function that loads the detector.
        weights: Fingerprint that its weights must have.
        device: Kind of device to detect on.
        form: Form of the detections.

    Raises:
        ValueError: The weights differ.
    """

    def __init__(self, load: Load, weights: str, device: str, form: Form) -> None:
        self.predictor, self.form = load(torch.device(device)), form
        if self.predictor.settings["weights"] != weights:
            raise ValueError("the weights on this machine differ from those on the machine that runs the command")

    def __call__(self, row: RayRow) -> RayRow:
        """Return the lines of a batch."""
        sources, arrays, *rest = pickle.loads(row["read"])
        images = [torch.from_numpy(a) for a in arrays] if isinstance(arrays, list) else torch.from_numpy(arrays)
        batch = ReadBatch(sources, images, *rest)
        started = self.predictor.start(on_device(images, self.predictor.device))
        if self.predictor.device.type == "cuda":
            torch.cuda.current_stream(self.predictor.device).synchronize()
        return {"lines": "".join(encode_batch(batch, self.predictor.rows(batch, started), self.form))}
