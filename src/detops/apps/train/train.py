"""`detops train`: a folder of images with COCO annotations in, a run out.

A run is a folder: `config.json` (all that rebuilds the network), `checkpoints/last.ckpt`, and `metrics.jsonl`: a line
each so many steps (losses, learning rate, milliseconds of each stage; those of the loss hold those of its targets) and
a line each evaluation (COCO's numbers); at the end `report.html`.

The whole training is one sequence of steps, and what a step sees follows from seed and number alone. So it goes on
after a kill from any checkpoint as if nothing had happened.
"""

import json
import logging
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from rich.console import Console
from torch.utils.data import DataLoader

from detops import Teacher
from detops.apps import evaluate, runs
from detops.apps.data.dataset import CocoImages, Steps, find_split, open_annotations
from detops.apps.train import models, report
from detops.apps.train.augment import Augmentation
from detops.apps.train.checkpoint import AtomicIO, write_atomically
from detops.apps.train.families import GFL, family
from detops.apps.train.lightning_module import Detector, Distillation, Settings


@dataclass(frozen=True)
class Data:
    """Which data a run trains on and is evaluated on: annotation files and image folders."""

    train_annotations: Path
    train_images: Path
    val_annotations: Path
    val_images: Path

    @classmethod
    def of(cls, data: Path) -> "Data":
        """A folder with `train/` and `val/`, each with annotations.json and images/.

        Raises:
            FileNotFoundError: One of them is missing.
        """
        train, val = find_split(data, "train"), find_split(data, "val")
        return cls.explicit(*train, *val)

    @classmethod
    def explicit(cls, *paths: Path | None) -> "Data":
        """The four paths by themselves.

        Raises:
            ValueError: Not all are given.
            FileNotFoundError: One of them is missing.
        """
        names = tuple(cls.__dataclass_fields__)
        for name, path in zip(names, paths, strict=True):
            if path is None:
                raise ValueError(f"{name}: expected a path, as others of {', '.join(names)} are given")
            if not path.exists():
                raise FileNotFoundError(f"{name}: {path} does not exist")
        return cls(*(path.resolve() for path in paths if path is not None))


class Progress(TQDMProgressBar):
    """One bar for all epochs."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Call it by its name; for Lightning all our epochs are its first."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("training")


def choose_precision() -> str:
    """Mixed bfloat16 where the hardware multiplies it, else float32.

    On 2 cores with avx512_bf16 a step of CompactNet took 135 ms with it and 223 ms without (8 images of 320x256).
    """
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "32-true"


def run(
    out: Path,
    data: Data | None,
    settings: Settings,
    model: str = "compact",
    width: int = 32,
    size: tuple[int, int] = (512, 512),
    resume: bool = False,
    strict: bool = False,
    precision: str | None = None,
    devices: str = "1",
    accelerator: str = "auto",
    strategy: str = "auto",
    nodes: int = 1,
    memory_limit: int = 4 << 30,
    workers: int | None = None,
    console: Console | None = None,
    detector: str = "centernet",
    teacher: Path | None = None,
) -> dict[str, Any]:
    """Train, or go on training.

    Args:
        out: Folder of the run.
        data: What to train on; None only with `resume`.
        settings: How to train.
        model: "compact", or "module:function".
        width: Of the network.
        size: Height and width that images are fitted into.
        resume: Go on from the last checkpoint, with the data, network and settings of `config.json`.
        strict: Stop at mistakes in the data.
        precision: Lightning's name of it; by default `choose_precision`.
        devices: Lightning's: how many, or which.
        accelerator: Lightning's: "cpu", "gpu", "auto".
        strategy: Lightning's: "ddp" for several devices or machines.
        nodes: Machines.
        memory_limit: Bytes of decoded images to keep; a larger set is decoded each time by workers.
        workers: How many processes decode where images are not kept; by default one a core, at most 8.
        console: Where to print.
        detector: "centernet", "yolox", "gfl" or "ld".
        teacher: Folder of a run with "gfl" or "ld" that "ld" learns from.

    Returns:
        The scores of the last evaluation; empty for ranks other than the first.

    Raises:
        ValueError: The data or an argument is of no use.
        FileNotFoundError: A file is missing.
    """
    console = console or Console()
    checkpoint, start = out / "checkpoints" / "last.ckpt", 0
    if resume:
        data, settings, model, width, size, detector, teacher = _recall(runs.read_config(out))
        if checkpoint.exists():
            start = int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    elif checkpoint.exists() and "LOCAL_RANK" not in os.environ:
        raise ValueError(f"{out}: holds a training already; go on with --resume, or choose another --out")
    if data is None:
        raise ValueError("data: expected a folder, or annotation files, to train on")
    train = open_annotations(data.train_annotations, data.train_images, strict, console)
    val = open_annotations(data.val_annotations, data.val_images, strict, console)
    if train.class_names != val.class_names or not train.class_names:
        raise ValueError(f"expected the same classes in both sets, got {train.class_names} and {val.class_names}")
    train_set = CocoImages(train, data.train_images, size, strict, memory_limit, console)
    left = 0 if train_set.kept is None else memory_limit - train_set.kept.numel()
    val_set = CocoImages(val, data.val_images, size, strict, left, console)

    torch.manual_seed(settings.seed)
    options = {} if detector != "ld" else {"teacher": _teacher(teacher), **vars(settings.distillation)}
    kind = family(detector, len(train.class_names), **options)
    network = models.build(model, len(train.class_names), width, detector)
    _quiet()
    chosen: Any = precision or choose_precision()
    trainer = lightning.Trainer(
        accelerator=accelerator, devices=devices, strategy=strategy, num_nodes=nodes,
        precision=chosen, max_epochs=1,  # one sequence of steps; our epochs are in `Steps`
        plugins=[AtomicIO()], callbacks=[Progress(10)], logger=False, enable_checkpointing=False,
        enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    world = trainer.world_size
    steps = Steps(
        len(train_set), settings.batch_size, settings.epochs, settings.seed, start, trainer.global_rank, world
    )
    if start >= steps.total:
        console.print(f"{out}: all {steps.total} steps are done", markup=False, soft_wrap=True)
        return _last_scores(out)
    if trainer.is_global_zero:
        out.mkdir(parents=True, exist_ok=True)
        _forget_after(out / "metrics.jsonl", start)
        config = {
            "detector": detector, "model": model, "width": width, "size": size, "classes": train.class_names,
            "category_ids": train.category_ids, **{name: str(path) for name, path in vars(data).items()},
            "teacher": None if teacher is None else str(teacher.resolve()), "settings": asdict(settings),
        }  # fmt: skip
        write_atomically(out / "config.json", (json.dumps(config, indent=1) + "\n").encode())
    module = Detector(network, kind, settings, steps.per_epoch, out, val_set, data.val_annotations)
    if workers is None:
        workers = min(8, os.cpu_count() or 1)
    workers = workers if train_set.kept is None else 0
    loader: DataLoader[Any] = DataLoader(
        train_set, batch_sampler=steps, num_workers=workers, collate_fn=_same, pin_memory=False
    )
    trainer.fit(module, loader, ckpt_path=str(checkpoint) if start else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if not trainer.is_global_zero:
        return {}
    scores = _last_scores(out)
    console.print(evaluate.table(scores))
    console.print(f"report: {report.write(out)}", soft_wrap=True)
    return scores


def _same(batch: Any) -> Any:
    """The data set makes whole batches."""
    return batch


def _teacher(run: Path | None) -> Teacher:
    """The network of a run, to learn from."""
    if run is None:
        raise ValueError("teacher: expected the folder of a run with --detector gfl or ld, as ld learns from one")
    network, kind, config = runs.load(run, torch.device("cpu"))
    if not isinstance(kind, GFL):
        raise ValueError(f"teacher: expected a run of gfl or ld, got one of {config['detector']} in {run}")
    return Teacher(network, kind.strides)


def _recall(config: dict[str, Any]) -> tuple[Data, Settings, str, int, tuple[int, int], str, Path | None]:
    """Arguments of `run` from what it wrote."""
    data = Data(**{name: Path(config[name]) for name in Data.__dataclass_fields__})
    chosen = dict(config["settings"])
    parts = {"augmentation": Augmentation, "distillation": Distillation}
    settings = Settings(**{**chosen, **{name: part(**chosen[name]) for name, part in parts.items()}})
    size, teacher = (config["size"][0], config["size"][1]), config["teacher"]
    return data, settings, config["model"], config["width"], size, config["detector"], teacher and Path(teacher)


def _forget_after(path: Path, step: int) -> None:
    """Drop lines of steps that are to come again, and a last line that was cut."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    write_atomically(path, "".join(line + "\n" for line in kept).encode())


def _last_scores(out: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return next((dict(row["scores"]) for row in reversed(rows) if "scores" in row), {})


def _quiet() -> None:
    """Silence advice of Lightning that does not hold here: data comes from memory, and the order is resumable."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*dataloader is not resumable.*",
        ".*in eval mode.*",
        ".*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", text)
