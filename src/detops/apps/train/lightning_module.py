"""The Lightning module of `detops train`: augmentation, network, loss, optimiser and averaged weights, each timed."""

import copy
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from torch import Tensor, nn

from detops import StageTimer
from detops.apps.data.dataset import Batch, CocoImages
from detops.apps.train import metrics, optimizer
from detops.apps.train.augment import augment
from detops.apps.train.checkpoint import LAST, AtomicIO, keep_best
from detops.apps.train.families import Family
from detops.apps.train.finite_steps import FiniteSteps
from detops.apps.train.models import begin_step
from detops.apps.train.recorder import Recorder
from detops.apps.train.settings import Settings
from detops.apps.train.validation import Validation


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
        self.validation, self.recorder = Validation(validation, run, self.print), Recorder(run, self.print)
        self.finite_steps = FiniteSteps(self.network, on_nonfinite == "stop")
        self._open_stage = ExitStack()
        self._losses: list[dict[str, Tensor]] = []

    def configure_optimizers(self) -> Any:
        """Make the optimiser, whose learning rate changes with each step."""
        # A fused step unscales float16's gradients itself, after they were clipped.
        fused = self.trainer.precision != "16-mixed"
        made, schedule = optimizer.make(self.network, self.settings, self.total_steps, fused)
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip by norm, and drop a gradient that is not finite; Lightning's own clipping refuses fused optimisers."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        scaled = self.trainer.precision == "16-mixed"  # a step that overflowed is left out, and then scaled by less
        if not self.finite_steps.judge(self._losses[-1], [] if scaled else [norm], self.trainer.world_size):
            self._losses.pop()

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
        self.recorder.begin()
        self.ema.eval()
        self.finite_steps.begin()
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
        for network in (self.network, self.ema):
            begin_step(network, self.trainer.global_step, self.total_steps)
        self._begin_stage("network")
        self.finite_steps.begin_step()
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
        if self.finite_steps.skipped:
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
        stops = self.finite_steps.too_many
        self._record({"step": step, "skipped": self.finite_steps.skipped, "stopped": stops})
        text = f"step {step} of {self.total_steps}: {self.finite_steps.explain()}"
        if not stops:
            self.print(text)
            return
        self.save(last=False)
        raise ValueError(
            f"{text}, and the training stops. {self.run / LAST} is good: go on with --resume, or leave such "
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
        row = {
            "step": step,
            "losses": losses,
            "lr": rate,
            "milliseconds": milliseconds,
            "elapsed": self.recorder.elapsed,
        }
        self._record(row)

    def _record(self, row: metrics.Row) -> None:
        if self.trainer.is_global_zero:
            self.recorder.add(row, self.logger)

    def evaluate(self, epoch: int) -> None:
        """Score the averaged weights on the validation data; after the last step in every way that they decode."""
        start, step = time.perf_counter(), self.trainer.global_step
        scored = self.validation.score(self.ema, self.family, self.trainer, every_way=step == self.total_steps)
        if scored is not None:
            row = {"step": step, "epoch": epoch, "scores": scored.scores, "seconds": time.perf_counter() - start}
            self._record({**row, "elapsed": self.recorder.elapsed})
            self.validation.keep(scored.found)
            self.print(f"epoch {epoch}: {scored.text}")

    def save(self, last: bool) -> None:
        """Write the checkpoint. If the disk is full, keep the previous one and go on, except after the last step."""
        self.trainer.save_checkpoint(self.run / LAST)
        error = cast(AtomicIO, self.trainer.strategy.checkpoint_io).failed
        if error is not None:
            if last:
                raise error
            self.print(f"checkpoint not written: {error}; the previous one is untouched")
