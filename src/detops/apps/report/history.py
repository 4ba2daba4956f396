"""What `metrics.jsonl` tells of a training: where its time went, its curves, and where it came from."""

import html
import math
from typing import Any

import torch

from detops.apps.report import charts
from detops.apps.report.parts import charts as side_by_side
from detops.apps.report.parts import duration, table
from detops.apps.train.metrics import Row

STAGES = {  # their colours, in the order in which they are shown
    "data": "#9aa0a6",
    "teacher": "#188038",
    "targets": "#e8710a",
    "network": "#4285b4",
    "loss": "#d93025",
    "targets and loss": "#d93025",
    "backward": "#7fb2d5",
    "optimizer": "#c5c9cf",
}
NOISE = 0.95  # targets that take more than this fraction of the loss cannot be told apart from it


def times(rows: list[Row]) -> str:
    """Show where the time of a step goes."""
    steps = [row for row in rows if "losses" in row]
    if not steps:
        return ""
    stages = stage_times(steps)
    whole = max(sum(stages.values()), 1e-9)
    share = sum(stages.get(name, 0.0) for name in ("targets", "loss", "targets and loss")) / whole
    bar = "".join(f'<i style="width:{100 * t / whole:.2f}%;background:{STAGES[s]}"></i>' for s, t in stages.items())
    lines = [
        (
            f'<span class="dot" style="background:{STAGES[stage]}"></span>{stage}',
            f"{time:.2f}",
            f"{100 * time / whole:.1f} %",
        )
        for stage, time in stages.items()
    ]
    return (
        f"<p>A step takes {whole:.0f} ms. Targets and loss, with their gradient, take {100 * share:.1f} % of it; the"
        f' rest of forward and backward is the network.{_total(rows)}</p><div class="bar">{bar}</div>'
        + table(("stage", "ms per step", "share"), lines)
    )


def _total(rows: list[Row]) -> str:
    """Say how long the whole took."""
    seconds = elapsed(rows)
    if not seconds:
        return ""
    evaluations = sum(row["seconds"] for row in rows if "scores" in row)
    return f" The whole took {duration(seconds)}, of which evaluation {duration(evaluations)}."


def elapsed(rows: list[Row]) -> float:
    """Add up the seconds of all sittings of a training; 0 where an older version did not record them."""
    total = latest = 0.0
    for row in rows:
        if "started" in row:
            total, latest = total + latest, 0.0
        latest = row.get("elapsed", latest)
    return total + latest


def stage_times(steps: list[Row]) -> dict[str, float]:
    """Compute the median milliseconds of each stage; they add up to a step."""
    recorded = steps[0]["milliseconds"]
    found = {
        stage: float(torch.tensor([row["milliseconds"].get(stage, 0.0) for row in steps]).median())
        for stage in STAGES
        if stage in recorded
    }
    # The loss includes its targets, which are measured separately: noise may make the part longer than the whole.
    if found["targets"] < NOISE * found["loss"]:
        found["loss"] -= found["targets"]
    else:
        found["targets and loss"] = found.pop("loss")
        del found["targets"]
    return {stage: found[stage] for stage in STAGES if stage in found}


def learning(rows: list[Row], epochs: int) -> str:
    """Draw losses, scores and learning rate over the epochs."""
    steps, scores = [row for row in rows if "losses" in row], [row for row in rows if "scores" in row]
    if not steps:
        return ""
    per_epoch = steps_per_epoch(rows)
    name = "epoch" if per_epoch else "step"
    x = [row["step"] / (per_epoch or 1) for row in steps]
    end = max(x[-1], epochs if per_epoch else 0)
    parts = {part: [_value(row["losses"].get(part)) for row in steps] for part in steps[0]["losses"]}
    sums: list[float] = [sum(values) for values in zip(*parts.values(), strict=True)]
    losses: dict[str, charts.Curve] = {part.removeprefix("loss_"): (x, values) for part, values in parts.items()}
    if len(losses) > 1:
        losses["total"] = x, sums
    limits = (0.0, end), None
    drawn = [
        charts.lines("Loss of the training", losses, (name, "loss"), bold="total", limits=limits, log=True, whole=True)
    ]
    if scores:
        drawn.append(charts.lines("Scores on the validation data", score_curves(scores, per_epoch), (name, "score"),
                                  bold="AP", limits=((0.0, end), (0, 1)), whole=True, dots=True))  # fmt: skip
    rate = {"": (x, [row["lr"] for row in steps])}
    drawn.append(charts.lines("Learning rate", rate, (name, "learning rate"), limits=limits, whole=True))
    return side_by_side(*drawn)


def score_curves(scores: list[Row], per_epoch: float) -> dict[str, charts.Curve]:
    """Return COCO's main scores over the epochs."""
    x = [row["step"] / (per_epoch or 1) for row in scores]
    return {name: (x, [_value(row["scores"][name]) for row in scores]) for name in ("AP", "AP50", "AP75")}


def steps_per_epoch(rows: list[Row]) -> float:
    """Return the number of steps in an epoch, as evaluations tell it; 0 before the first."""
    return next((row["step"] / row["epoch"] for row in rows if row.get("epoch")), 0.0)


def _value(value: float | None) -> float:
    return math.nan if value is None else value


def origin(config: dict[str, Any], rows: list[Row]) -> str:
    """Tell when, where, with what and on what a run was trained."""
    settings, (height, width) = config["settings"], config["size"]
    sittings = [row["started"] for row in rows if "started" in row]
    last = sittings[-1] if sittings else {}
    facts = [("begun", sittings[0]["time"])] if sittings else []
    seconds = elapsed(rows)
    if seconds:
        facts.append(("duration", duration(seconds) + (f", in {len(sittings)} sittings" if len(sittings) > 1 else "")))
    facts += [("command", command) for command in dict.fromkeys(s.get("command") for s in sittings) if command]
    versions = ", ".join(f"{name} {value}" for name, value in last.get("versions", {}).items())
    facts += [("versions", versions)] if versions else []
    facts += [(name, last[name]) for name in ("device", "precision") if name in last]
    for name, part in (("training data", "train"), ("validation data", "val")):
        path, counts = config.get(f"{part}_annotations"), last.get(part)
        facts.append(
            (name, f"{path}" + (f": {counts['images']:,} images, {counts['boxes']:,} boxes" if counts else ""))
        )
    network = f"{config['model']} of width {config['width']}"
    if config.get("backbone", "compact") != "compact":
        network += f" on {config['backbone']}" + ", pretrained" * bool(config.get("pretrained"))
    if "parameters" in last:
        network += f", {last['parameters'] / 1e6:.2f} million parameters"
    facts.append(("network", f"{config['detector']}, {network}"))
    if config.get("weights"):
        facts.append(("began with the weights of", str(config["weights"])))
    facts.append(("images", f"resized to fit into {width} x {height}"))
    facts.append(("classes", ", ".join(config["classes"])))
    facts.append(("settings", ", ".join(f"{name} {_shown(value)}" for name, value in _settings(config, settings))))
    return table((), [(name, html.escape(str(value))) for name, value in facts], text=(1,))


def _settings(config: dict[str, Any], settings: dict[str, Any]) -> list[tuple[str, Any]]:
    flat = {**{k: v for k, v in settings.items() if not isinstance(v, dict)}, **settings.get("augmentation", {})}
    if config["detector"] != "yolox":
        flat.pop("l1_epochs", None)
    if config["detector"] == "ld":
        flat |= settings.get("distillation", {})
    return list(flat.items())


def _shown(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else f"{value}"
