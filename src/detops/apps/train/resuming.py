"""Going on with a training: from which step, with which changes, and by which command."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from detops.apps import listed, runs
from detops.apps.train import metrics
from detops.apps.train.checkpoint import LAST
from detops.apps.train.lightning_module import DetectorModule
from detops.apps.train.settings import Settings

CHANGEABLE = ("epochs", "patience")  # settings that may change when a run is resumed


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
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


def ended(out: Path, settings: Settings, start: int) -> bool:
    """Whether the run ended at its last checkpoint, since it did not get better."""
    evaluated = any("scores" in row and row["step"] == start for row in metrics.read(out))
    return bool(settings.patience) and evaluated and metrics.since_best(out) >= settings.patience


def steps_done(checkpoint: Path) -> int:
    """Read how many steps the checkpoint has seen; 0 if there is none."""
    if not checkpoint.exists():
        return 0
    step = runs.read_checkpoint(checkpoint, mmap=True).get("global_step")
    if not isinstance(step, int):
        raise ValueError(f"{checkpoint}: cannot be resumed, as it does not say how many steps are done")
    return step


def how_to_go_on(module: DetectorModule) -> str:
    """Say where a training was stopped, and by which command it goes on."""
    out, text = module.run, f"stopped at step {module.trainer.global_step} of {module.total_steps}"
    saved = steps_done(out / LAST)
    if not saved:
        return f"{text}, before the first checkpoint"
    return f"{text}; go on from the checkpoint of step {saved}: detops train --out {shlex.quote(str(out))} --resume"
