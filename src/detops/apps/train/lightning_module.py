"""The Lightning module of `detops train`: augmentation, network, loss, optimiser and averaged weights, each timed."""

import copy
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from torch import Tensor, nn

from detops import StageTimer
from detops.apps import evaluate, runs
from detops.apps.data.dataset import Batch, CocoImages
from detops.apps.train import detections, loggers, metrics
from detops.apps.train.augment import augment
from detops.apps.train.checkpoint import LAST, AtomicIO, keep_best
from detops.apps.train.families import Family, other_way
from detops.apps.train.models import CompactTaskAligned
from detops.apps.train.settings import Settings

IN_A_ROW = 50  # steps that are left out one after the other, before the training stops in any case
# Of the steps, after which the second head of a task-aligned network goes on from the weights of the first: with one
# point per box it learns rare classes late.
SECOND_HEAD = 0.6
FINAL_LR = 0.001  # learning rate of the last step, as a fraction of the highest


def lr_factor(step: int, total: int, warmup: float) -> float:
    """Return a step's learning rate as a fraction of the highest.

    It rises linearly over the fraction `warmup` of all steps, then falls along a cosine to `FINAL_LR`.
    """
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / (rising + 1)
    done = min(1.0, (step - rising) / max(1, total - rising))
    return FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * done)) / 2


class DetectorModule(lightning.LightningModule):
    """A network with its loss, and the moving average of its weights, which is what is evaluated and kept.

    Args:
        network: Network that `models.build` made.
        family: Its kind of detector.
        settings: How to train.
        steps_per_epoch: Number of steps in which every image is seen once.
        run: Folder of the run.
        validation: Data to evaluate on.
        on_nonfinite: What follows a step whose loss or gradient is not finite, and which changes no weight: "stop"
            saves and stops the training, "skip" goes on, if not for ever.
    """

    timer: StageTimer  # made when training starts: only then is the device known

    def __init__(
        self,
        network: nn.Module,
        family: Family,
        settings: Settings,
        steps_per_epoch: int,
        run: Path,
        validation: CocoImages,
        on_nonfinite: str = "stop",
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.family, self.criterion = family, family.criterion
        self.settings, self.run, self.steps_per_epoch = settings, run, steps_per_epoch
        self.total_steps = steps_per_epoch * settings.epochs
        self.validation = validation
        self._open_stage = ExitStack()
        self._losses: list[dict[str, Tensor]] = []
        self._unwritten: list[metrics.Row] = []  # lines for which there was no room
        self._stops, self._skipped, self._in_a_row = on_nonfinite == "stop", "", 0
        self._before: list[Tensor] = []  # of the last step, once the device is known
        self._began = time.perf_counter()

    def _statistics(self) -> list[Tensor]:
        """Return the buffers that a forward pass changes, such as the means of batch norm."""
        return [buffer for buffer in self.network.buffers() if buffer.is_floating_point()]

    def configure_optimizers(self) -> Any:
        """Use AdamW, without decay of biases and norms, and one cycle of the learning rate."""
        decayed = [p for p in self.network.parameters() if p.dim() > 1]
        free = [p for p in self.network.parameters() if p.dim() <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
        settings = self.settings
        # A fused step unscales float16's gradients itself, after they were clipped.
        fused = self.trainer.precision != "16-mixed"
        optimizer = torch.optim.AdamW(groups, settings.lr, weight_decay=settings.weight_decay, fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(step, self.total_steps, settings.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip by norm, and drop a gradient that is not finite; Lightning's own clipping refuses fused optimisers."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        losses = self._losses[-1]
        values = [*losses.values()]
        if self.trainer.precision != "16-mixed":  # whose scaler leaves out a step that overflowed, and scales by less
            values.append(norm)
        finite = torch.stack([value.float().isfinite() for value in values]).all()
        if self.trainer.world_size > 1:  # all ranks drop it, or none
            shared = finite.to(torch.int32)
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MIN)
            finite = shared > 0
        if finite:
            self._in_a_row = 0
            return
        broken = [f"{name} is {float(value)}" for name, value in losses.items() if not value.isfinite()]
        self._skipped = f"the loss is not finite ({', '.join(broken)})" if broken else "the gradient is not finite"
        self._in_a_row += 1
        self._losses.pop()
        for parameter in self.network.parameters():
            parameter.grad = None  # so that the optimiser changes nothing
        if self._before:
            torch._foreach_copy_(self._statistics(), self._before)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the losses since the last line of `metrics.jsonl`: a resumed training writes the same line."""
        checkpoint["losses"] = self._losses

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with these losses; checkpoints of earlier versions have none. The last step may be the last no more."""
        self._losses = checkpoint.get("losses", [])
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
        if checkpoint["global_step"] < self.total_steps and "is_last_batch" in progress:
            progress["is_last_batch"] = False

    def on_train_start(self) -> None:
        """Bring what was loaded to the device, and begin to time the stages."""
        self._losses = [{name: value.to(self.device) for name, value in row.items()} for row in self._losses]
        self._began = time.perf_counter()
        self.ema.eval()
        self._before = [buffer.clone() for buffer in self._statistics()]
        limit = 10 * self.settings.log_every  # more than the stages of the steps between two lines
        self.timer = StageTimer(self.device if self.device.type == "cuda" else "cpu", limit)
        self._begin_stage("data")

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move the images as bytes, a quarter of what they are as floats."""
        return batch.to(device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of a batch.

        Everything random follows from seed, step and rank, so that a resumed training takes the same steps.
        """
        torch.manual_seed(self.settings.seed * 1_000_003 + self.trainer.global_step * 1009 + self.trainer.global_rank)
        with torch.autocast(self.device.type, enabled=False):
            batch = augment(batch, self.settings.augmentation)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        if self.trainer.global_step == round(SECOND_HEAD * self.total_steps):
            for network in (self.network, self.ema):
                if isinstance(network, CompactTaskAligned):
                    network.restart_second_head()
        self._begin_stage("network")
        if self._before:
            torch._foreach_copy_(self._before, self._statistics())
        outputs = list(self.network(images))
        if self.family.teacher is not None:
            self._begin_stage("teacher")
            outputs.append(self.family.teacher(images))
        self._end_stage()
        total, losses = self._compute_loss(outputs, batch, (images.shape[2], images.shape[3]))
        self._losses.append({name: value.detach() for name, value in losses.items()})
        self.log("loss", total.detach(), prog_bar=True, logger=False)
        return total

    def _compute_loss(
        self, outputs: list[Any], batch: Batch, shape: tuple[int, int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute what is trained, and its parts by name."""
        settings, step = self.settings, self.trainer.global_step + 1
        self.family.last_epochs(step > (settings.epochs - settings.l1_epochs) * self.steps_per_epoch)
        self._begin_stage("loss")
        with torch.autocast(self.device.type, enabled=False):
            result = self.family.losses(outputs, batch, shape)
        if self._is_logged(step):
            # The loss computes its targets internally, so their share of its time is measured separately.
            self._begin_stage("targets")
            self.family.targets(outputs, batch, shape)
        self._end_stage()
        return result

    def on_before_backward(self, loss: Tensor) -> None:
        """Time the backward pass."""
        self._begin_stage("backward")

    def on_after_backward(self) -> None:
        """Time the rest of the step: clipping, optimiser and averaging."""
        self._begin_stage("optimizer")

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Average the weights; log, evaluate and save when it is time."""
        settings, step = self.settings, self.trainer.global_step
        self._average(min(settings.ema, (1 + step) / (10 + step)))
        self._end_stage()
        if self._skipped:
            self._tell_skipped(step)
        if self._is_logged(step):
            self._log_step(step)
        epoch, place = divmod(step, self.steps_per_epoch)
        last = step == self.total_steps
        evaluates = place == 0 and (epoch % settings.eval_every == 0 or last)
        if evaluates:
            self.evaluate(epoch)
        if place == 0 or step % settings.save_every == 0:
            self.save(last)
            if place == 0 and self.trainer.is_global_zero:
                self._keep_best(step)
        if evaluates and settings.patience and not last:
            self._end_if_it_gets_no_better(epoch)
        self._begin_stage("data")

    def _end_if_it_gets_no_better(self, epoch: int) -> None:
        """End the training on all ranks, if the patience of the first is at its end."""
        ends = metrics.since_best(self.run) >= self.settings.patience if self.trainer.is_global_zero else False
        if self.trainer.strategy.broadcast(ends):
            self.print(f"epoch {epoch}: {self.settings.patience} evaluations without a higher AP, so the training ends")
            self.trainer.should_stop = True

    def _tell_skipped(self, step: int) -> None:
        """Say that a step was left out; stop, if that is wished or happens in every step.

        Raises:
            ValueError: The training stops.
        """
        stops = self._stops or self._in_a_row >= IN_A_ROW
        self._record({"step": step, "skipped": self._skipped, "stopped": stops})
        text, self._skipped = f"step {step} of {self.total_steps}: {self._skipped}; it changes no weight", ""
        if not stops:
            self.print(text)
            return
        self.save(last=False)
        often = "" if self._stops else f", as {self._in_a_row} times in a row"
        raise ValueError(
            f"{text}{often}, and the training stops. {self.run / LAST} is good: go on with --resume, or leave such "
            "steps out with --resume --on-nonfinite skip; or begin again with a lower --lr"
        )

    def _keep_best(self, step: int) -> None:
        try:
            keep_best(self.run, step)
        except OSError as error:
            self.print(f"best.ckpt not written: {error}; the previous one is untouched")

    def _begin_stage(self, name: str) -> None:
        """End the stage that is being timed and begin the next: stages end in other hooks than they begin in."""
        self._end_stage()
        self._open_stage.enter_context(self.timer.stage(name))

    def _end_stage(self) -> None:
        self._open_stage.close()

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        mine, theirs = self.ema.state_dict().values(), self.network.state_dict().values()
        pairs = list(zip(mine, theirs, strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)
        for a, b in pairs:
            if not a.is_floating_point():
                a.copy_(b)

    def _is_logged(self, step: int) -> bool:
        return step % self.settings.log_every == 0 or step == self.total_steps

    def _log_step(self, step: int) -> None:
        """Write the means since the last line; the one place that waits for a GPU."""
        if not self._losses:  # none since the line before was finite
            self.timer.reset()
            return
        milliseconds = {stats.path[0]: stats.mean_ms for stats in self.timer.stats()}
        self.timer.reset()
        losses = {key: float(torch.stack([row[key] for row in self._losses]).mean()) for key in self._losses[0]}
        self._losses.clear()
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        row = {"step": step, "losses": losses, "lr": rate, "milliseconds": milliseconds, "elapsed": self._elapsed()}
        self._record(row)

    def _elapsed(self) -> float:
        """Return the seconds since this sitting began."""
        return round(time.perf_counter() - self._began, 2)

    def _record(self, row: metrics.Row) -> None:
        """Write a line; where there is no room for it, keep it until there is."""
        if not self.trainer.is_global_zero:
            return
        self._unwritten.append(row)
        try:
            while self._unwritten:
                metrics.append(self.run, self._unwritten[0])
                del self._unwritten[0]
        except OSError as error:
            self.print(f"metrics.jsonl not written: {error}; {len(self._unwritten)} lines wait")
        if self.logger is not None:
            try:
                self.logger.log_metrics(loggers.flat(row), row["step"])
            except Exception as error:  # each logger has its own
                self.print(f"not logged: {error}")

    def evaluate(self, epoch: int) -> None:
        """Score the averaged weights on the validation data; after the last step in every way that they decode."""
        start = time.perf_counter()
        found, other = self._detect(self.family), other_way(self.family)
        found_otherwise = self._detect(other[1]) if other and self.trainer.global_step == self.total_steps else None
        if self.trainer.is_global_zero:
            cap = self.family.max_detections
            scores = evaluate.score_rows(self.validation, found, cap)
            text = f"AP {evaluate.number(scores['AP'])}, AP50 {evaluate.number(scores['AP50'])}"
            if other and found_otherwise is not None:
                scores["other"] = {"name": other[0], **evaluate.score_rows(self.validation, found_otherwise, cap)}
                text += f"; {other[0]} AP {evaluate.number(scores['other']['AP'])}"
            seconds = time.perf_counter() - start
            row = {"step": self.trainer.global_step, "epoch": epoch, "scores": scores, "seconds": seconds}
            self._record({**row, "elapsed": self._elapsed()})
            self._keep_detections(found)
            self.print(f"epoch {epoch}: {text}")

    def _detect(self, kind: Family) -> dict[int, runs.Found]:
        """Detect in the validation data, which the ranks share; every rank has all."""
        world, rank = self.trainer.world_size, self.trainer.global_rank
        rows = list(range(rank, len(self.validation), world))
        autocast = str(self.trainer.precision).startswith("bf16")
        detections = runs.detect_all(self.ema, kind, self.validation, rows, autocast=autocast, on_broken=self.print)
        found = dict(zip(rows, detections, strict=True))
        if world > 1:
            shares: list[Any] = [None] * world
            torch.distributed.all_gather_object(shares, found)
            found = {row: value for share in shares for row, value in share.items()}
        return found

    def _keep_detections(self, found: dict[int, runs.Found]) -> None:
        """Keep what was detected, for the report."""
        annotations = self.validation.annotations
        rows = [
            line
            for row, one in found.items()
            if row not in self.validation.broken
            for line in runs.as_results(annotations.images[row].id, one, annotations.category_ids)
        ]
        try:
            detections.write(self.run, rows)
        except OSError as error:
            self.print(f"{detections.NAME} not written: {error}; the previous one is untouched")

    def save(self, last: bool) -> None:
        """Write the checkpoint. If the disk is full, keep the previous one and go on, except after the last step."""
        self.trainer.save_checkpoint(self.run / LAST)
        error = cast(AtomicIO, self.trainer.strategy.checkpoint_io).failed
        if error is not None:
            if last:
                raise error
            self.print(f"checkpoint not written: {error}; the previous one is untouched")
