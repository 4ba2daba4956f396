"""`detops train`: a folder of images with COCO annotations in, a run out.

A run is a folder: `config.json` (all that rebuilds the network), `checkpoints/last.ckpt` and `best.ckpt` (that of the
evaluation with the highest AP), `metrics.jsonl` (losses, times and scores), and at the end `report.html`.

The whole training is one sequence of steps, and what a step computes follows from the seed and its number alone. So a
training that was killed resumes from any checkpoint as if nothing had happened.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from torch.utils.data import DataLoader

from detops.apps import evaluate, note, runs, warn
from detops.apps.data.dataset import Steps
from detops.apps.errors import explain
from detops.apps.outputs import Outputs
from detops.apps.report import report
from detops.apps.train import datasets, detections, loggers, metrics, networks, progress, resuming
from detops.apps.train import trainer as lightning_trainer
from detops.apps.train.checkpoint import BEST, LAST, keep_best
from detops.apps.train.lightning_module import DetectorModule
from detops.apps.train.settings import Data, Hardware, Network, Settings, from_config, to_config
from detops.apps.train.trial import try_step
from detops.arguments import flat

GROWING = (LAST, BEST, "metrics.jsonl", detections.NAME)  # files of a run that are written again and again


def run(
    out: Path,
    *,
    data: Data | None = None,
    network: Network | None = None,
    settings: Settings | None = None,
    hardware: Hardware | None = None,
    resume: bool = False,
    changes: Mapping[str, Any] | None = None,
    strict: bool = False,
    logger: str | None = None,
    on_nonfinite: str = "stop",
    command: str = "",
    console: Console | None = None,
) -> dict[str, Any]:
    """Train, or resume a training.

    Args:
        out: Folder of the run.
        data: Data to train on and to evaluate on. None only with `resume`.
        network: Network to train.
        settings: How to train.
        hardware: What to train on.
        resume: Continue from the last checkpoint, with the data, network and settings of `config.json`; begin if there
            is no run yet.
        changes: Settings that a resumed run changes: "patience", and more "epochs", with which the learning rate goes
            on as in a training of that length.
        strict: Stop if an annotation or an image is invalid.
        logger: "csv", "tensorboard" or "wandb": Lightning's logger that is written beside `metrics.jsonl`.
        on_nonfinite: What follows a step whose loss or gradient is not finite: "stop" or "skip". In neither case are
            weights changed by it.
        command: The command line, for the record.
        console: Where to print.

    Returns:
        The scores of the last evaluation; empty on ranks other than the first.

    Raises:
        ValueError: The data or an argument is invalid, `out` holds files of somebody else, or the loss is not finite.
        FileNotFoundError: A file is missing.
    """
    console, hardware = console or Console(), hardware or Hardware()
    network, settings = network or Network(), settings or Settings()
    if on_nonfinite not in ("stop", "skip"):
        raise ValueError(f"on-nonfinite: expected stop or skip, got {on_nonfinite!r}")
    checkpoint, is_run = out / LAST, (out / "config.json").is_file()
    if resume and (is_run or data is None):
        data, network, before = from_config(runs.read_config(out))
        settings = resuming.changed(before, changes or {})
    elif checkpoint.exists() and "LOCAL_RANK" not in os.environ:
        raise ValueError(f"{out}: already holds a training; continue it with --resume, or choose another --out")
    if data is None:
        raise ValueError("data: expected a folder, or annotation files, to train on")
    outputs = _outputs(out, data, resume and is_run)
    callbacks, bar = progress.callbacks(console)
    trainer = lightning_trainer.make(hardware, loggers.make(logger, out, resume), callbacks, bar)
    start = resuming.steps_done(checkpoint) if resume else 0
    train_set, val_set = datasets.open_both(data, network.size, strict, hardware.memory_limit, console)
    evaluate.tell_cap(val_set.annotations, data.val_annotations, settings.max_detections, console)
    classes, category_ids = train_set.annotations.class_names, train_set.annotations.category_ids

    torch.manual_seed(settings.seed)
    kind = networks.kind_of(network, settings, len(classes))
    untrained = networks.untrained(network, len(classes), console, begins=start == 0)
    shares = {"rank": trainer.global_rank, "world": trainer.world_size}
    steps = Steps(len(train_set), settings.batch_size, settings.epochs, settings.seed, start, **shares)
    if start >= steps.total or resuming.ended(out, settings, start):
        return _nothing_left(out, start, outputs, console)
    try_step(untrained, kind, network, settings)
    if trainer.is_global_zero:
        for name in GROWING:
            outputs.record(name)
        metrics.drop_after(out, start)
        if not (resume and is_run and settings == before):
            config = to_config(data, network, settings, classes, category_ids)
            outputs.write("config.json", json.dumps(config, indent=1) + "\n")
        sets = train_set, val_set
        progress.summarise(console, out, sets, untrained, network, settings, trainer, steps.per_epoch)
        started = {**progress.describe(sets, untrained, trainer), "command": command}
        metrics.append(out, {"step": start, "started": started})
        if trainer.logger is not None:
            trainer.logger.log_hyperparams(to_config(data, network, settings, classes, category_ids))
    module = DetectorModule(untrained, kind, settings, steps.per_epoch, out, val_set, on_nonfinite)
    _fit(trainer, module, datasets.batches(train_set, steps, hardware.workers), checkpoint if start else None)
    return _finish(out, outputs, console) if trainer.is_global_zero else {}


def _outputs(out: Path, data: Data, is_run: bool) -> Outputs:
    """Check that the files of the run may be written."""
    outputs = Outputs(out, vars(data).values())
    if is_run:  # as its configuration shows
        outputs.adopt("config.json", *GROWING)
    if "LOCAL_RANK" not in os.environ:  # further ranks start when the first has begun to write
        outputs.claim("config.json", *GROWING)
        report.claim(outputs)
    return outputs


def _fit(trainer: lightning.Trainer, module: DetectorModule, loader: DataLoader[Any], checkpoint: Path | None) -> None:
    """Train."""
    try:
        trainer.fit(module, loader, ckpt_path=None if checkpoint is None else str(checkpoint))
    except (SystemExit, KeyboardInterrupt):  # the first is Lightning's answer to an interrupt
        raise KeyboardInterrupt(resuming.how_to_go_on(module)) from None
    except MisconfigurationException as error:
        raise ValueError(f"{lightning_trainer.HARDWARE}: {flat(error)}") from error
    if trainer.interrupted:
        raise KeyboardInterrupt(resuming.how_to_go_on(module))


def _nothing_left(out: Path, step: int, outputs: Outputs, console: Console) -> dict[str, Any]:
    """Do what a training that was killed at its very end has left to do."""
    note(console, f"{out}: all {step} steps are done; --prolong-to adds epochs")
    keep_best(out, step)
    scores = metrics.last_scores(out)
    if not (out / "report.html").exists():
        _write_report(out, outputs, console)
    return scores


def _finish(out: Path, outputs: Outputs, console: Console) -> dict[str, Any]:
    """Print the last scores, write the report, and return the scores."""
    scores = metrics.last_scores(out)
    if scores:
        console.print(evaluate.table(scores))
    _write_report(out, outputs, console)
    return scores


def _write_report(out: Path, outputs: Outputs, console: Console) -> None:
    """Write the report; if that fails, the run is no less complete."""
    try:
        note(console, f"report: {report.write(out, outputs=outputs)}")
    except Exception as error:  # whatever a picture, a font or the disk does
        warn(console, f"{out}: no report: {explain(error) or flat(error)}; to try again: detops report {out}")
