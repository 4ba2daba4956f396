"""`detops train`: a folder of images with COCO annotations in, a run out.

A run is a folder: `config.json` (all that rebuilds the network), `checkpoints/last.ckpt`, `metrics.jsonl` (losses,
times and scores), and at the end `report.html`.

The whole training is one sequence of steps, and what a step computes follows from the seed and its number alone. So a
training that was killed resumes from any checkpoint as if nothing had happened.
"""

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from detops import Teacher
from detops.apps import evaluate, note, runs
from detops.apps.data.dataset import CocoImages, Steps, as_is, open_annotations
from detops.apps.files import write_atomically
from detops.apps.train import loggers, metrics, models, report
from detops.apps.train.checkpoint import AtomicIO
from detops.apps.train.families import GFL, Family, family
from detops.apps.train.lightning_module import DetectorModule
from detops.apps.train.settings import Data, Hardware, Network, Settings, from_config, to_config


class ProgressBar(TQDMProgressBar):
    """One bar for all epochs."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Label the bar; to Lightning, all our epochs are one."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("training")


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
    strict: bool = False,
    logger: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train, or resume a training.

    Args:
        out: Folder of the run.
        data: Data to train on and to evaluate on. None only with `resume`.
        network: Network to train.
        settings: How to train.
        hardware: What to train on.
        resume: Continue from the last checkpoint, with the data, network and settings of `config.json`.
        strict: Stop if an annotation or an image is invalid.
        logger: "csv", "tensorboard" or "wandb": Lightning's logger that is written beside `metrics.jsonl`.
        console: Where to print.

    Returns:
        The scores of the last evaluation; empty on ranks other than the first.

    Raises:
        ValueError: The data or an argument is invalid.
        FileNotFoundError: A file is missing.
    """
    console, hardware = console or Console(), hardware or Hardware()
    network, settings = network or Network(), settings or Settings()
    checkpoint = out / "checkpoints" / "last.ckpt"
    if resume:
        data, network, settings = from_config(runs.read_config(out))
    elif checkpoint.exists() and "LOCAL_RANK" not in os.environ:
        raise ValueError(f"{out}: already holds a training; continue it with --resume, or choose another --out")
    if data is None:
        raise ValueError("data: expected a folder, or annotation files, to train on")
    train_set, val_set = _open_data(data, network.size, strict, hardware.memory_limit, console)
    classes, category_ids = train_set.annotations.class_names, train_set.annotations.category_ids

    torch.manual_seed(settings.seed)
    kind = _family(network, settings, len(classes))
    trainer, start = _trainer(hardware, loggers.make(logger, out, resume)), _steps_done(checkpoint) if resume else 0
    untrained = _untrained(network, len(classes), begins=start == 0)
    shares = {"rank": trainer.global_rank, "world": trainer.world_size}
    steps = Steps(len(train_set), settings.batch_size, settings.epochs, settings.seed, start, **shares)
    if start >= steps.total:
        note(console, f"{out}: all {steps.total} steps are done")
        return metrics.last_scores(out)
    if trainer.is_global_zero:
        out.mkdir(parents=True, exist_ok=True)
        metrics.drop_after(out, start)
        config = to_config(data, network, settings, classes, category_ids)
        write_atomically(out / "config.json", (json.dumps(config, indent=1) + "\n").encode())
        if trainer.logger is not None:
            trainer.logger.log_hyperparams(config)
    module = DetectorModule(untrained, kind, settings, steps.per_epoch, out, val_set)
    trainer.fit(module, _loader(train_set, steps, hardware.workers), ckpt_path=str(checkpoint) if start else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return _finish(out, console) if trainer.is_global_zero else {}


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
        return family(network.detector, num_classes)
    return family("ld", num_classes, teacher=_teacher(network.teacher), **vars(settings.distillation))


def _untrained(network: Network, num_classes: int, begins: bool) -> nn.Module:
    """Build the network, with pretrained weights only if the training begins: otherwise it has those of the run."""
    if network.frozen_stages and not network.pretrained:
        raise ValueError("frozen-stages: expected --pretrained, as random weights are not worth keeping")
    return models.build(
        network.model, num_classes, network.width, network.detector,
        backbone=network.backbone, pretrained=network.pretrained and begins, frozen_stages=network.frozen_stages,
    )  # fmt: skip


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
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def _trainer(hardware: Hardware, logger: Any) -> lightning.Trainer:
    """Make Lightning's trainer, with all that detops does by itself switched off."""
    _silence_lightning()
    precision: Any = hardware.precision or choose_precision()
    return lightning.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        strategy=hardware.strategy,
        num_nodes=hardware.nodes,
        precision=precision,
        max_epochs=1,  # one sequence of steps; our epochs are in `Steps`
        plugins=[AtomicIO()],
        callbacks=[ProgressBar(10)],
        logger=logger,
        log_every_n_steps=1,  # the module logs when it is time
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )


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
        workers = min(8, os.cpu_count() or 1)
    workers = workers if train_set.kept is None else 0
    return DataLoader(train_set, batch_sampler=steps, num_workers=workers, collate_fn=as_is, pin_memory=False)


def _finish(out: Path, console: Console) -> dict[str, Any]:
    """Print the last scores, write the report, and return the scores."""
    scores = metrics.last_scores(out)
    console.print(evaluate.table(scores))
    note(console, f"report: {report.write(out)}")
    return scores
