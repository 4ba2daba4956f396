"""`detops train --logger`: Lightning's own loggers, beside `metrics.jsonl`.

losses/NAME, lr, milliseconds/STAGE      every few steps
AP, AP50, ..., AP of CLASS, epoch        at each evaluation
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

from detops.apps import listed
from detops.apps.train.metrics import Row
from detops.arguments import require_module

NAMES = ("csv", "tensorboard", "wandb")


def make(name: str | None, run: Path, resume: bool) -> Any:
    """Make a logger of Lightning that writes into the folder of a run.

    Args:
        name: "csv" (`csv/version_N/metrics.csv`), "tensorboard" (`tensorboard/`) or "wandb" (`wandb/`, and the project
            "detops" or that of WANDB_PROJECT); None for none.
        run: Folder of the run.
        resume: Go on with the run of Weights & Biases that the folder holds.

    Returns:
        The logger; False for none, as Lightning wants it.

    Raises:
        ModuleNotFoundError: A package is not installed; the message says how to install it.
        ValueError: There is no such logger.
    """
    if name is None:
        return False
    if name not in NAMES:
        raise ValueError(f"logger: expected {listed(NAMES)}, got {name!r}")
    from lightning.pytorch import loggers

    if name == "csv":
        return loggers.CSVLogger(run, "csv", flush_logs_every_n_steps=1)
    if name == "tensorboard":
        if importlib.util.find_spec("tensorboardX") is None:  # which serves Lightning as well
            require_module("tensorboard", "TensorBoard", "detops train --logger tensorboard", "tensorboard")
        return loggers.TensorBoardLogger(run, "tensorboard", "", default_hp_metric=False)
    require_module("wandb", "Weights & Biases", "detops train --logger wandb", "wandb")
    run.mkdir(parents=True, exist_ok=True)
    # W&B names its folders run-DATE-ID, or offline-run-DATE-ID.
    ids = sorted((path.stat().st_mtime, path.name.rpartition("-")[2]) for path in (run / "wandb").glob("*run-*-*"))
    again: dict[str, Any] = {"id": ids[-1][1], "resume": "allow"} if resume and ids else {}
    project: dict[str, Any] = {} if "WANDB_PROJECT" in os.environ else {"project": "detops"}
    return loggers.WandbLogger(run.resolve().name, run, **project, **again)


def flat(row: Row) -> dict[str, float]:
    """Flatten a line of `metrics.jsonl` to names and numbers; scores that do not exist are left out."""
    numbers: dict[str, Any] = {}
    for name, value in row.items():
        if name == "scores":
            classes = value.get("classes", {})
            numbers |= {score: number for score, number in value.items() if score != "classes"}
            numbers |= {f"AP of {label}": number for label, number in classes.items()}
        elif isinstance(value, dict):
            numbers |= {f"{name}/{key}": number for key, number in value.items()}
        elif name != "step":
            numbers[name] = value
    return {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}
