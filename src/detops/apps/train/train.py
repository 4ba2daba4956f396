"""`detops train`: a folder of images with COCO annotations in, a run out.

A run is a folder: `config.json` (all that rebuilds the network), `checkpoints/last.ckpt` and `best.ckpt` (that of the
evaluation with the highest AP), `metrics.jsonl` (losses, times and scores), and at the end `report.html`.

The whole training is one sequence of steps, and what a step computes follows from the seed and its number alone. So a
training that was killed resumes from any checkpoint as if nothing had happened.
"""

import json
import logging
import os
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from detops import Teacher
from detops.apps import evaluate, listed, note, runs, usable_cores, warn
from detops.apps.data.dataset import CocoImages, Steps, as_is, open_annotations
from detops.apps.errors import explain
from detops.apps.outputs import Outputs
from detops.apps.report import report
from detops.apps.train import detections, loggers, metrics, models, progress, weights
from detops.apps.train.checkpoint import BEST, LAST, AtomicIO, keep_best
from detops.apps.train.families import GFL, Family, family
from detops.apps.train.lightning_module import DetectorModule
from detops.apps.train.settings import Data, Hardware, Network, Settings, from_config, to_config
from detops.apps.train.trial import try_step
from detops.arguments import flat

HARDWARE = "accelerator, devices, strategy, nodes or precision"
GROWING = (LAST, BEST, "metrics.jsonl", detections.NAME)  # files of a run that are written again and again
CHANGEABLE = ("epochs", "patience")  # settings that may change when a run is resumed


def choose_precision() -> str:
    """Return mixed bfloat16 where the hardware multiplies it, else float32.

    On 2 cores with avx512_bf16 a step of CompactNet took 135 ms with it and 223 ms without (8 images of 320x256).
    """
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "32-true"


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
        settings = _changed(before, changes or {})
    elif checkpoint.exists() and "LOCAL_RANK" not in os.environ:
        raise ValueError(f"{out}: already holds a training; continue it with --resume, or choose another --out")
    if data is None:
        raise ValueError("data: expected a folder, or annotation files, to train on")
    outputs = _outputs(out, data, resume and is_run)
    callbacks, bar = progress.callbacks(console)
    trainer = _trainer(hardware, loggers.make(logger, out, resume), callbacks, bar)
    start = _steps_done(checkpoint) if resume else 0
    train_set, val_set = _open_data(data, network.size, strict, hardware.memory_limit, console)
    evaluate.tell_cap(val_set.annotations, data.val_annotations, settings.max_detections, console)
    classes, category_ids = train_set.annotations.class_names, train_set.annotations.category_ids

    torch.manual_seed(settings.seed)
    kind = _family(network, settings, len(classes))
    untrained = _untrained(network, len(classes), console, begins=start == 0)
    shares = {"rank": trainer.global_rank, "world": trainer.world_size}
    steps = Steps(len(train_set), settings.batch_size, settings.epochs, settings.seed, start, **shares)
    if start >= steps.total or _ended(out, settings, start):
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
    _fit(trainer, module, _loader(train_set, steps, hardware.workers), checkpoint if start else None)
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


def _changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Change the settings of a run that is resumed.

    Raises:
        ValueError: One of them cannot be changed so.
    """
    fixed = [name for name in changes if name not in CHANGEABLE]
    if fixed:
        raise ValueError(f"{', '.join(fixed)}: a run goes on as it was begun; only {listed(CHANGEABLE)} may change")
    if changes.get("epochs", settings.epochs) < settings.epochs:
        raise ValueError(f"epochs: expected at least the {settings.epochs} that the run was begun with")
    return replace(settings, **changes)


def _ended(out: Path, settings: Settings, start: int) -> bool:
    """Whether the run ended at its last checkpoint, since it did not get better."""
    evaluated = any("scores" in row and row["step"] == start for row in metrics.read(out))
    return bool(settings.patience) and evaluated and metrics.since_best(out) >= settings.patience


def _fit(trainer: lightning.Trainer, module: DetectorModule, loader: DataLoader[Any], checkpoint: Path | None) -> None:
    """Train."""
    try:
        trainer.fit(module, loader, ckpt_path=None if checkpoint is None else str(checkpoint))
    except (SystemExit, KeyboardInterrupt):  # the first is Lightning's answer to an interrupt
        raise KeyboardInterrupt(_how_to_go_on(trainer, module)) from None
    except MisconfigurationException as error:
        raise ValueError(f"{HARDWARE}: {flat(error)}") from error
    if trainer.interrupted:
        raise KeyboardInterrupt(_how_to_go_on(trainer, module))


def _how_to_go_on(trainer: lightning.Trainer, module: DetectorModule) -> str:
    """Say where a training was stopped, and by which command it goes on."""
    out, text = module.run, f"stopped at step {trainer.global_step} of {module.total_steps}"
    saved = _steps_done(out / LAST)
    if not saved:
        return f"{text}, before the first checkpoint"
    return f"{text}; go on from the checkpoint of step {saved}: detops train --out {shlex.quote(str(out))} --resume"


def _nothing_left(out: Path, step: int, outputs: Outputs, console: Console) -> dict[str, Any]:
    """Do what a training that was killed at its very end has left to do."""
    note(console, f"{out}: all {step} steps are done; --prolong-to adds epochs")
    keep_best(out, step)
    scores = metrics.last_scores(out)
    if not (out / "report.html").exists():
        _write_report(out, outputs, console)
    return scores


def _open_data(
    data: Data, size: tuple[int, int], strict: bool, memory_limit: int, console: Console
) -> tuple[CocoImages, CocoImages]:
    """Open the data to train on and the data to evaluate on, which share the memory for decoded images."""
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


def _family(network: Network, settings: Settings, num_classes: int) -> Family:
    """Make the kind of detector, with the teacher of "ld"."""
    if network.detector != "ld":
        return family(network.detector, num_classes, settings.max_detections)
    options = {"teacher": _teacher(network.teacher), **vars(settings.distillation)}
    return family("ld", num_classes, settings.max_detections, **options)


def _untrained(network: Network, num_classes: int, console: Console, begins: bool) -> nn.Module:
    """Build the network, with weights to begin with only if the training begins: otherwise it has those of the run."""
    if network.weights is not None and network.pretrained:
        raise ValueError("weights: --pretrained gives weights too; give one or the other")
    if network.frozen_stages and not (network.pretrained or network.weights):
        raise ValueError("frozen-stages: expected --pretrained or --weights, as random weights are not worth keeping")
    untrained = models.build(
        network.model, num_classes, network.width, network.detector,
        backbone=network.backbone, pretrained=network.pretrained and begins, frozen_stages=network.frozen_stages,
    )  # fmt: skip
    if network.weights is not None and begins:
        weights.take(untrained, network.weights, console)
    return untrained


def _teacher(run: Path | None) -> Teacher:
    """Load the network of a run as a teacher."""
    if run is None:
        raise ValueError("teacher: expected the folder of a run with --detector gfl or ld, as ld learns from one")
    network, kind, config = runs.load(run, torch.device("cpu"))
    if not isinstance(kind, GFL):
        raise ValueError(f"teacher: expected a run of gfl or ld, got one of {config['detector']} in {run}")
    return Teacher(network, kind.strides)


def _steps_done(checkpoint: Path) -> int:
    """Read how many steps the checkpoint has seen; 0 if there is none."""
    if not checkpoint.exists():
        return 0
    step = runs.read_checkpoint(checkpoint, mmap=True).get("global_step")
    if not isinstance(step, int):
        raise ValueError(f"{checkpoint}: cannot be resumed, as it does not say how many steps are done")
    return step


def _trainer(hardware: Hardware, logger: Any, callbacks: list[Any], bar: bool) -> lightning.Trainer:
    """Make Lightning's trainer, with all that detops does by itself switched off.

    Raises:
        ValueError: There is no such hardware, or Lightning cannot use it in this way.
    """
    _silence_lightning()
    on_cpu = hardware.accelerator == "cpu" or (hardware.accelerator == "auto" and not torch.cuda.is_available())
    cores = usable_cores()
    if on_cpu and hardware.devices.isdecimal() and int(hardware.devices) > max(2, cores):
        raise ValueError(f"--devices {hardware.devices}: would be as many processes, on {cores} cores")
    precision: Any = hardware.precision or choose_precision()
    try:
        return lightning.Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            strategy=hardware.strategy,
            num_nodes=hardware.nodes,
            precision=precision,
            max_epochs=1,  # one sequence of steps; our epochs are in `Steps`
            plugins=[AtomicIO()],
            callbacks=callbacks,
            enable_progress_bar=bar,
            logger=logger,
            log_every_n_steps=1,  # the module logs when it is time
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
        )
    except Exception as error:  # Lightning and each of its strategies have their own kinds
        raise ValueError(f"{HARDWARE}: {flat(error)}") from error


def _silence_lightning() -> None:
    """Silence advice that does not hold here: images are kept in memory, and the order of batches can be resumed."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*dataloader is not resumable.*",
        ".*in eval mode.*",
        ".*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", text)


def _loader(train_set: CocoImages, steps: Steps, workers: int | None) -> DataLoader[Any]:
    """Load the batches of the steps; processes decode them only where images are not kept in memory."""
    if workers is None:
        workers = min(8, usable_cores())
    workers = workers if train_set.kept is None else 0
    return DataLoader(train_set, batch_sampler=steps, num_workers=workers, collate_fn=as_is, pin_memory=False)


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
