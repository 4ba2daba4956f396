"""`metrics.jsonl`, the record of a training: a line per few steps, and a line per evaluation.

    {"step", "started"}                                     the training began or was resumed: when, how, and on what
    {"step", "losses", "lr", "milliseconds", "elapsed"}     means over the steps since the line before
    {"step", "epoch", "scores", "seconds", "elapsed"}       COCO's scores, and how long the evaluation took;
                                        "scores" also has those of "other", the network decoded in another way
    {"step", "skipped", "stopped"}  a step that was left out, why, and whether the training stopped there

"elapsed" holds the seconds since the training began or was resumed.
"milliseconds" holds the mean time of each stage of a step. "loss" includes the time of its targets, which "targets"
measures separately, in one step per line.
"""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detops.apps.files import append_line, write_atomically

Row = dict[str, Any]


def append(run: Path, row: Row) -> None:
    """Add a line, with null for numbers that are not finite: JSON has none.

    Raises:
        OSError: It cannot be written.
    """
    append_line(_path(run), json.dumps(_finite(row), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(run: Path) -> list[Row]:
    """Read all lines; none if there is no file. A line that was cut off is left out."""
    return [row for _, row in _lines(run)]


def _lines(run: Path) -> Iterator[tuple[str, Row]]:
    path = _path(run)
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield line, row


def best_step(run: Path) -> int | None:
    """Return the step of the evaluation with the highest AP, the first of equal ones; None if there is none."""
    best = best_of(read(run))
    return None if best is None else int(best["step"])


def best_of(rows: Iterable[Row]) -> Row | None:
    """Return the line of the evaluation with the highest AP, the first of equal ones; None if there is none."""
    scored = [row for row in rows if row.get("scores", {}).get("AP") is not None]
    return max(scored, key=lambda row: (row["scores"]["AP"], -row["step"]), default=None)


def since_best(run: Path) -> int:
    """Count the evaluations after that with the highest AP; 0 before the first."""
    best = best_step(run)
    return 0 if best is None else sum("scores" in row and row["step"] > best for row in read(run))


def stopped(run: Path) -> str:
    """Say where and why the training stopped by itself, if it did and was not resumed; else an empty text."""
    last = next(reversed(read(run)), {})
    return f"step {last['step']}: {last.get('skipped')}" if last.get("stopped") else ""


def last_scores(run: Path) -> dict[str, Any]:
    """Return the scores of the last evaluation; empty if there was none."""
    return next((dict(row["scores"]) for row in reversed(read(run)) if "scores" in row), {})


def drop_after(run: Path, step: int) -> None:
    """Drop the lines of later steps, which a resumed training repeats, and a last line that was cut off."""
    if _path(run).exists():
        kept = [line for line, row in _lines(run) if row["step"] <= step]
        write_atomically(_path(run), "".join(line + "\n" for line in kept).encode())


def _path(run: Path) -> Path:
    return run / "metrics.jsonl"
