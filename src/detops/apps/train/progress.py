"""What a training says of itself: a summary at its start, its progress, and the record of where it came from."""

import platform
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from rich.console import Console
from torch import nn

from detops import __version__
from detops.apps import note
from detops.apps.data.dataset import CocoImages
from detops.apps.terminal import EVERY, duration
from detops.apps.train.settings import Network, Settings
from detops.diagnostics.environment import cpu_model

WARM = 3  # steps that are slower than those that follow
SURE = 10  # further steps, after which the rest is estimated
NAMES = 8  # classes that are named


class Bar(TQDMProgressBar):
    """One bar for all epochs, on the error stream."""

    def init_train_tqdm(self) -> Any:
        """Make the bar."""
        return Tqdm(
            desc="training", position=2 * self.process_position, disable=self.is_disabled, leave=True,
            dynamic_ncols=True, file=sys.stderr, smoothing=0, bar_format=self.BAR_FORMAT,
        )  # fmt: skip

    def on_train_epoch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Label the bar; to Lightning, all our epochs are one."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("training")

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        """Say which epoch it is."""
        epoch = min((trainer.global_step - 1) // pl_module.steps_per_epoch + 1, pl_module.settings.epochs)
        self.train_progress_bar.set_description(f"epoch {epoch} of {pl_module.settings.epochs}", refresh=False)
        super().on_train_batch_end(trainer, pl_module, *args)


class Lines(lightning.Callback):
    """Whole lines in the place of a bar, where there is no terminal; and everywhere an estimate after a few steps.

    Args:
        console: Where to print.
        plain: Whether there is no bar.
    """

    def __init__(self, console: Console, plain: bool) -> None:
        self._console, self._plain = console, plain
        self._start = self._told = 0.0
        self._first = 0

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        """Print a line when it is time."""
        if not trainer.is_global_zero:
            return
        step, total, now = trainer.global_step, pl_module.total_steps, time.perf_counter()
        self._first = self._first or step
        if step == self._first + WARM:
            self._start = now
        done = step - self._first - WARM
        if done < SURE or (done > SURE and not self._plain) or step == total:
            return
        left = f"about {duration((total - step) * (now - self._start) / done)} left"
        if done == SURE and not self._plain:
            note(self._console, left)
        elif self._plain and (done == SURE or now - self._told >= EVERY):
            self._told = now
            epoch = (step - 1) // pl_module.steps_per_epoch + 1
            loss = float(trainer.callback_metrics.get("loss", torch.tensor(float("nan"))))
            note(
                self._console,
                f"epoch {epoch} of {pl_module.settings.epochs}, step {step} of {total}, loss {loss:.3f}, {left}",
            )


def callbacks(console: Console) -> tuple[list[Any], bool]:
    """Return the callbacks that show the progress, and whether one is a bar."""
    bar = sys.stderr.isatty()
    return [*([Bar(10)] if bar else []), Lines(console, plain=not bar)], bar


def summarise(
    console: Console,
    out: Path,
    sets: tuple[CocoImages, CocoImages],
    network: nn.Module,
    how: Network,
    settings: Settings,
    trainer: lightning.Trainer,
    per_epoch: int,
) -> None:
    """Print five lines about what is trained on what."""
    train, val = (one.annotations for one in sets)
    names = ", ".join(train.class_names[:NAMES]) + (", ..." if len(train.class_names) > NAMES else "")
    height, width = how.size
    facts = describe(sets, network, trainer)
    model = f"{how.model} of width {how.width}" + (f" on {how.backbone}" if how.backbone != "compact" else "")
    for line in (
        f"data: {len(train.images):,} images with {len(train.boxes):,} boxes to train on, "
        f"{len(val.images):,} with {len(val.boxes):,} to evaluate on",
        f"classes: {len(train.class_names):,} ({names})",
        f"network: {how.detector}, {model}, {facts['parameters'] / 1e6:.2f} million parameters, "
        f"images resized to fit into {width} x {height}",
        f"device: {facts['device']}, precision {facts['precision']}",
        f"training: {settings.epochs} epochs of {per_epoch:,} steps with {settings.batch_size} images, to {out}",
    ):
        note(console, line)


def describe(sets: tuple[CocoImages, CocoImages], network: nn.Module, trainer: lightning.Trainer) -> dict[str, Any]:
    """Return what `metrics.jsonl` records of a sitting's beginning, beside the command."""
    counts = [{"images": len(one), "boxes": len(one.annotations.boxes)} for one in sets]
    kind, ranks = trainer.strategy.root_device.type, trainer.world_size
    device = torch.cuda.get_device_name() if kind == "cuda" else cpu_model() if kind == "cpu" else kind
    return {
        "time": datetime.now().astimezone().isoformat(" ", "seconds"),
        "versions": {
            "detops": __version__,
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "python": platform.python_version(),
        },
        "device": f"{ranks} x {device}" if ranks > 1 else device,
        "precision": str(trainer.precision),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "train": counts[0],
        "val": counts[1],
    }
