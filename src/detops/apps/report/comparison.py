"""`comparison.html`: several runs side by side, with their scores, curves, settings and times."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detops.apps import runs
from detops.apps.data.matching import total
from detops.apps.errors import explain
from detops.apps.files import write_atomically
from detops.apps.page import claim_page, page
from detops.apps.pictures import unique_stems
from detops.apps.report import charts, history
from detops.apps.report.evidence import Evidence, gather
from detops.apps.report.parts import STYLE, beside, duration, number, section, table
from detops.apps.report.parts import charts as side_by_side
from detops.apps.train import metrics
from detops.arguments import flat

CLASSES = 20  # classes in the chart
SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class Run:
    """What is compared of a run; without evidence, `problem` says why there is none."""

    name: str
    config: dict[str, Any]
    rows: list[metrics.Row]
    scores: dict[str, Any]
    evidence: Evidence | None
    problem: str = ""


def write(folders: Sequence[Path], out: Path) -> Path:
    """Write the page that compares runs.

    Args:
        folders: Folders of the runs, in the order in which they are shown.
        out: Where the page is to be.

    Returns:
        Its path.

    Raises:
        FileNotFoundError: A folder is not a run.
        ValueError: A configuration is damaged, or `out` is something else than an earlier report.
    """
    claim_page(out)
    names = unique_stems([f"{folder.resolve().name}.run" for folder in folders])
    found = [_read(folder, name) for folder, name in zip(folders, names, strict=True)]
    title = f"{len(found)} runs: {', '.join(html.escape(run.name) for run in found)}"
    body = [
        f"<h1>{title}</h1>",
        *section("Scores", lambda: _scores(found)),
        *section("Curves", lambda: _curves(found)),
        *section("AP of each class", lambda: _classes(found)),
        *beside(section("What differs", lambda: _differences(found)), section("Time", lambda: _times(found))),
    ]
    write_atomically(out, page(title, STYLE, body).encode("utf-8", "replace"))
    return out


def _read(folder: Path, name: str) -> Run:
    """Read a run."""
    config, rows = runs.read_config(folder), metrics.read(folder)
    scores = metrics.last_scores(folder)
    try:
        return Run(name, config, rows, scores, gather(folder, config))
    except Exception as error:  # the page is written without its detections
        return Run(name, config, rows, scores, None, explain(error) or flat(error))


def _scores(found: list[Run]) -> str:
    best = {name: max((run.scores.get(name) or 0.0 for run in found), default=0.0) for name in SHOWN}

    def shown(name: str, value: float | None) -> str:
        text = number(value)
        return f"<b>{text}</b>" if value and value == best[name] else text

    lines = []
    for run in found:
        epochs = [row["epoch"] for row in run.rows if "epoch" in row]
        counts = total(run.evidence.rates) if run.evidence else None
        values = [number(getattr(counts, name, None)) for name in ("precision", "recall", "f1")]
        at = number(run.evidence.threshold if run.evidence else None, 2)
        lines.append([
            html.escape(run.name), str(max(epochs, default=0)), *(shown(n, run.scores.get(n)) for n in SHOWN),
            *values, at,
        ])  # fmt: skip
    head = ("run", "epoch", *SHOWN, "precision", "recall", "F1", "at scores from")
    data = {run.config.get("val_annotations") for run in found}
    problems = "".join(f"<p>{html.escape(f'{run.name}: {run.problem}')}.</p>" for run in found if run.problem)
    warning = "<p><b>They were evaluated on different data, so their scores do not compare.</b></p>"
    return warning * (len(data) > 1) + table(head, lines) + problems


def _curves(found: list[Run]) -> str:
    progress = {}
    for run in found:
        scores = [row for row in run.rows if "scores" in row]
        if scores:
            progress[run.name] = history.score_curves(scores, history.steps_per_epoch(run.rows))["AP"]
    lines = {run.name: run.evidence.curve for run in found if run.evidence is not None}
    unit = (0.0, 1.0), (0.0, 1.02)
    recall = {name: charts.of_curve(line.recall, line.precision) for name, line in lines.items()}
    f1 = {name: charts.of_curve(line.score, line.f1) for name, line in lines.items()}
    return side_by_side(
        charts.lines("AP", progress, ("epoch", "AP"), limits=((0.0, None), (0, 1)), whole=True, dots=True),
        charts.lines("Precision over recall, IoU 0.5", recall, ("recall", "precision"), limits=unit),
        charts.lines("F1 over the lowest score", f1, ("score", "F1"), limits=unit),
    )


def _classes(found: list[Run]) -> str:
    names = list(dict.fromkeys(name for run in found for name in run.scores.get("classes", {})))
    values = {run.name: [run.scores.get("classes", {}).get(name) for name in names] for run in found}
    if not names:
        return ""
    spread = [
        max(v or 0.0 for v in column) - min(v or 0.0 for v in column) for column in zip(*values.values(), strict=True)
    ]
    order = sorted(range(len(names)), key=lambda place: -spread[place])
    rows = [(html.escape(names[i]), *(number(values[run.name][i]) for run in found)) for i in order]
    top = order[:CLASSES]
    title = "AP" if len(names) <= CLASSES else f"AP of the {CLASSES} classes that differ most"
    drawn = charts.ranking(
        title, {run: [v[i] or 0.0 for i in top] for run, v in values.items()}, [names[i] for i in top], "AP", 1.0
    )
    return side_by_side(drawn, table(("class", *(html.escape(run.name) for run in found)), rows))


def _differences(found: list[Run]) -> str:
    """Lay out what differs between the configurations."""
    flattened = [_flat(run) for run in found]
    keys = list(dict.fromkeys(key for one in flattened for key in one))
    rows = [
        (key.replace("_", " "), *(html.escape(str(one.get(key, ""))) for one in flattened))
        for key in keys
        if len({str(one.get(key)) for one in flattened}) > 1
    ]
    if not rows:
        return "<p>Nothing in their settings.</p>"
    return table(("", *(html.escape(run.name) for run in found)), rows, text=range(1, len(found) + 1))


def _flat(run: Run) -> dict[str, Any]:
    """List the settings of a run without nesting."""
    values: dict[str, Any] = {}
    for key, value in run.config.items():
        values |= value if isinstance(value, dict) else {key: value}
    for key in ("augmentation", "distillation"):
        values |= values.pop(key, {})
    height, width = run.config["size"]
    started: dict[str, Any] = next((row["started"] for row in reversed(run.rows) if "started" in row), {})
    versions = {f"version of {name}": value for name, value in started.get("versions", {}).items()}
    facts: dict[str, Any] = {name: started[name] for name in ("parameters", "device", "precision") if name in started}
    return {**values, "size": f"{width}x{height}", "classes": len(run.config["classes"]), **facts, **versions}


def _times(found: list[Run]) -> str:
    rows = []
    for run in found:
        steps = [row for row in run.rows if "losses" in row]
        stages = history.stage_times(steps) if steps else {}
        whole = history.elapsed(run.rows)
        each = f"{sum(stages.values()):.0f}" if steps else "n/a"
        rows.append((html.escape(run.name), each, duration(whole) if whole else "n/a"))
    return table(("run", "ms per step", "the whole"), rows)
