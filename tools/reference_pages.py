"""The reference pages of the documentation, written from what is public: one page per room, and one of the commands.

No list to keep: a new public name appears on the page of the room that defines it.
"""

import importlib
import inspect
import shutil
from pathlib import Path
from typing import Any

import reference_pictures

# Where a name is defined, and the title of its page, in reading order.
ROOMS = {
    "_load": "A trained detector",
    "ground_truth": "Ground truth",
    "targets": "Dense targets and heatmaps",
    "assign": "Label assignment",
    "losses": "Losses",
    "criteria": "Criteria: a family's whole loss",
    "decode": "Network outputs to boxes",
    "inference": "Preprocessing, NMS",
    "masks": "Instance masks",
    "geometry": "Points, anchors, distances",
    "diagnostics": "Checks, counts, timing",
    "integrations": "Other libraries' conventions",
    "ragged": "Ragged batches",
}


def public_names() -> dict[str, list[str]]:
    """The importable names of everything public, by room."""
    import detops
    import detops.ragged

    names: dict[str, list[str]] = {room: [] for room in ROOMS}
    for name in detops.__all__:
        if name != "__version__":
            names[getattr(detops, name).__module__.split(".")[1]].append(f"detops.{name}")
    names["_load"].append("detops.apps.detector.Detector")
    names["ragged"] += [
        f"detops.ragged.{name}" for name in detops.ragged.__all__ if name not in {"RaggedBatch", "__version__"}
    ]
    taken = {getattr(detops, name) for name in detops.__all__ if name != "__version__"}
    for path in sorted(Path(detops.__file__).parent.glob("integrations/*.py")):
        try:
            module = importlib.import_module(f"detops.integrations.{path.stem}")
            values = {name: getattr(module, name) for name in getattr(module, "__all__", [])}
        except ModuleNotFoundError:
            continue  # the library that it adapts to is not installed
        names["integrations"] += [f"{module.__name__}.{name}" for name, value in values.items() if value not in taken]
    return names


def room_page(title: str, names: list[str], folder: Path) -> str:
    """One page: a directive for each name, and the picture of what makes one."""
    parts = [f"# {title}\n"]
    for name in names:
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
        kind = "class" if inspect.isclass(value) else "function"
        hidden = ", ".join(["training", *getattr(value, "_fields", [])])  # fields are described by their class
        options = f"\n   :members:\n   :exclude-members: {hidden}\n" if kind == "class" else ""
        parts.append(f"```{{eval-rst}}\n.. auto{kind}:: {name}{options}\n```\n")
        parts.append(reference_pictures.write(name, folder / "pictures"))
    return "\n".join(parts)


def commands_page() -> str:
    """Every command with its arguments, options and defaults, as `--help` has them."""
    import typer

    from detops import cli

    group: Any = typer.main.get_command(cli.app)
    parts = ["# Commands\n", "As `detops COMMAND --help` prints them.\n"]
    for name, command in sorted(group.commands.items()):
        context = command.context_class(command, info_name=f"detops {name}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        parts += [f"## detops {name}\n", f"{inspect.cleandoc(command.help or '')}\n", f"```text\n{usage}\n```\n"]
        rows = [record for parameter in command.params if (record := parameter.get_help_record(context))]
        if rows:
            cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
            parts += ["| option | meaning |\n|---|---|\n" + "\n".join(f"| `{a}` | {b} |" for a, b in cells) + "\n"]
    return "\n".join(parts)


def write(folder: Path) -> None:
    """Write all pages and their index into `folder`, which holds nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = public_names()
    for room, title in ROOMS.items():
        (folder / f"{room}.md").write_text(room_page(title, names[room], folder))
    (folder / "commands.md").write_text(commands_page())
    text = "Everything public, from its docstrings. Names import from `detops` unless another module is named."
    pages = "\n".join([*ROOMS, "commands"])
    (folder / "index.md").write_text(f"# Reference\n\n{text}\n\n```{{toctree}}\n:maxdepth: 2\n\n{pages}\n```\n")
