"""`metrics.jsonl`, the record of a training: a line per few steps, and a line per evaluation.

    {"step", "losses", "lr", "milliseconds"}     means over the steps since the line before
    {"step", "epoch", "scores", "seconds"}       COCO's scores, and how long the evaluation took

"milliseconds" holds the mean time of each stage of a step. "loss" includes the time of its targets, which "targets"
measures separately, in one step per line.
"""

import json
from pathlib import Path
from typing import Any

from detops.apps.files import write_atomically

Row = dict[str, Any]


def append(run: Path, row: Row) -> None:
    """Add a line."""
    with _path(run).open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(run: Path) -> list[Row]:
    """Read all lines."""
    return [json.loads(line) for line in _path(run).read_text().splitlines()]


def last_scores(run: Path) -> dict[str, Any]:
    """Return the scores of the last evaluation; empty if there was none."""
    return next((dict(row["scores"]) for row in reversed(read(run)) if "scores" in row), {})


def drop_after(run: Path, step: int) -> None:
    """Drop the lines of later steps, which a resumed training repeats, and a last line that was cut off."""
    path = _path(run)
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


def _path(run: Path) -> Path:
    return run / "metrics.jsonl"
