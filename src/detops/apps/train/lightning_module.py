"""One training step of `detops train` for Lightning: augment, network, loss, optimiser, average, with their times."""

import copy
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from detops.apps import evaluate, runs
from detops.apps.data.dataset import Batch, CocoImages
from detops.apps.train.augment import Augmentation, augment
from detops.apps.train.families import Family


@dataclass(frozen=True)
class Distillation:
    """How to learn from a teacher's boxes: arguments of `LDLoss`, whose distillation is normalised here."""

    temperature: float = 10.0
    ld_weight: float = 4.0
    ld_region: str = "main"


@dataclass(frozen=True)
class Settings:
    """How to train; all of it stands in `config.json`."""

    epochs: int = 60
    batch_size: int = 8
    lr: float = 5e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    ema: float = 0.998
    clip: float = 10.0
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    l1_epochs: int = 15
    distillation: Distillation = field(default_factory=Distillation)
    log_every: int = 20
    eval_every: int = 10
    save_every: int = 200


class Stages:
    """Milliseconds a step of each stage, on the CPU's clock or the GPU's, without waiting for the GPU."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self._spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
        self._open: dict[str, Any] = {}

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self, name: str) -> None:
        """Begin a stage."""
        self._open[name] = self._now()

    def stop(self, name: str) -> None:
        """End it; nothing where it did not begin."""
        if name in self._open:
            self._spans[name].append((self._open.pop(name), self._now()))

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block."""
        self.start(name)
        yield
        self.stop(name)

    def flush(self, steps: int) -> dict[str, float]:
        """Mean milliseconds of each stage over the last `steps` steps; waits for the GPU once."""
        if self.cuda:
            torch.cuda.synchronize()
        total = {
            name: sum(a.elapsed_time(b) if self.cuda else 1e3 * (b - a) for a, b in spans)
            for name, spans in self._spans.items()
        }
        self._spans.clear()
        return {name: value / max(steps, 1) for name, value in total.items()}


class Detector(lightning.LightningModule):
    """A network with its loss, and the moving average of its weights that is evaluated and kept.

    Args:
        network: What `models.build` makes.
        family: Its kind of detector.
        settings: How to train.
        steps_per_epoch: Steps after which every image was seen.
        run: Folder of the run.
        validation: Data to evaluate on.
        val_annotations: Its annotation file.
    """

    def __init__(
        self, network: nn.Module, family: Family, settings: Settings, steps_per_epoch: int, run: Path,
        validation: CocoImages, val_annotations: Path,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.family, self.criterion = family, family.criterion
        self.settings, self.run, self.steps_per_epoch = settings, run, steps_per_epoch
        self.validation, self.val_annotations = validation, val_annotations
        self.stages = Stages(False)
        self._losses: list[dict[str, Tensor]] = []

    def configure_optimizers(self) -> Any:
        """AdamW, without decay of biases and norms, and one cycle of the learning rate."""
        decayed = [p for p in self.network.parameters() if p.dim() > 1]
        free = [p for p in self.network.parameters() if p.dim() <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
        settings = self.settings
        # A fused step unscales float16's gradients itself, after they were clipped.
        fused = self.trainer.precision != "16-mixed"
        optimizer = torch.optim.AdamW(groups, settings.lr, weight_decay=settings.weight_decay, fused=fused)
        total = self.steps_per_epoch * settings.epochs
        rising = max(1, round(settings.warmup * total))

        def factor(step: int) -> float:
            """Up in a straight line, down along a cosine to a thousandth."""
            if step < rising:
                return (step + 1) / (rising + 1)
            done = min(1.0, (step - rising) / max(1, total - rising))
            return 0.001 + 0.999 * (1 + math.cos(math.pi * done)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip by norm; Lightning's own refuses every fused optimiser."""
        nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)

    def on_train_start(self) -> None:
        """Choose the clock."""
        self.ema.eval()
        self.stages = Stages(self.device.type == "cuda")
        self.stages.start("data")

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Bytes go to the device, not floats."""
        return batch.to(device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch. All that is random follows from seed, step and rank, so that resuming changes nothing."""
        torch.manual_seed(self.settings.seed * 1_000_003 + self.trainer.global_step * 1009 + self.trainer.global_rank)
        with torch.autocast(self.device.type, enabled=False):
            batch = augment(batch, self.settings.augmentation)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        self.stages.stop("data")
        with self.stages("network"):
            outputs = list(self.network(images))
        if self.family.teacher is not None:
            with self.stages("teacher"):
                outputs.append(self.family.teacher(images))
        shape, step = (images.shape[2], images.shape[3]), self.trainer.global_step + 1
        self.family.last_epochs(step > (self.settings.epochs - self.settings.l1_epochs) * self.steps_per_epoch)
        with self.stages("loss"), torch.autocast(self.device.type, enabled=False):
            total, losses = self.family.losses(outputs, batch, shape)
        if step % self.settings.log_every == 0 or step == self.steps_per_epoch * self.settings.epochs:
            # The loss makes its targets on the way; what they take of its time is measured on its own, now and then.
            with self.stages("targets"):
                self.family.targets(outputs, batch, shape)
        self._losses.append({name: value.detach() for name, value in losses.items()})
        self.log("loss", total.detach(), prog_bar=True)
        self.log("epoch", step / self.steps_per_epoch, prog_bar=True)
        return total

    def on_before_backward(self, loss: Tensor) -> None:
        """The clock of backward."""
        self.stages.start("backward")

    def on_after_backward(self) -> None:
        """The clocks of backward and of clipping, step and average."""
        self.stages.stop("backward")
        self.stages.start("optimizer")

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Average the weights; log, evaluate and save when it is time."""
        settings, step = self.settings, self.trainer.global_step
        self._average(min(settings.ema, (1 + step) / (10 + step)))
        self.stages.stop("optimizer")
        last = step == self.steps_per_epoch * settings.epochs
        if step % settings.log_every == 0 or last:
            self._log_step(step)
        epoch, place = divmod(step, self.steps_per_epoch)
        if place == 0 and (epoch % settings.eval_every == 0 or last):
            self.evaluate(epoch)
        if place == 0 or step % settings.save_every == 0:
            self.save(last)
        self.stages.start("data")

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        mine, theirs = self.ema.state_dict().values(), self.network.state_dict().values()
        pairs = list(zip(mine, theirs, strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)
        for a, b in pairs:
            if not a.is_floating_point():
                a.copy_(b)

    def _log_step(self, step: int) -> None:
        milliseconds = self.stages.flush(len(self._losses))
        if "targets" in milliseconds:
            milliseconds["targets"] *= len(self._losses)  # measured in one step of these; "loss" holds them too
        losses = {key: float(torch.stack([row[key] for row in self._losses]).mean()) for key in self._losses[0]}
        self._losses.clear()
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._write({"step": step, "losses": losses, "lr": rate, "milliseconds": milliseconds})

    def _write(self, row: dict[str, Any]) -> None:
        if self.trainer.is_global_zero:
            with (self.run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def evaluate(self, epoch: int) -> None:
        """Score the averaged weights on the validation data, each rank its share."""
        start = time.perf_counter()
        world, rank = self.trainer.world_size, self.trainer.global_rank
        rows = list(range(rank, len(self.validation), world))
        autocast = str(self.trainer.precision).startswith("bf16")
        found = dict(
            zip(rows, runs.detect_all(self.ema, self.family, self.validation, rows, autocast=autocast), strict=True)
        )
        if world > 1:
            shares: list[Any] = [None] * world
            torch.distributed.all_gather_object(shares, found)
            found = {row: value for share in shares for row, value in share.items()}
        if self.trainer.is_global_zero:
            scores = evaluate.score_rows(self.validation, self.val_annotations, found)
            seconds = time.perf_counter() - start
            self._write({"step": self.trainer.global_step, "epoch": epoch, "scores": scores, "seconds": seconds})
            self.print(f"epoch {epoch}: AP {scores['AP'] or 0:.3f}, AP50 {scores['AP50'] or 0:.3f}")

    def save(self, last: bool) -> None:
        """Write the checkpoint; a full disk stops the training only at its end, the older checkpoint stays."""
        try:
            self.trainer.save_checkpoint(self.run / "checkpoints" / "last.ckpt")
        except OSError as error:
            if last:
                raise
            self.print(f"checkpoint not written: {error}; the one before is untouched")
