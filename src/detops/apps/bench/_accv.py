"""ACCV-Lab's operator that draws heatmaps, built from its own two files, as published and with its grid corrected.

Nothing of it is part of detops: `--accv FOLDER` names the folder of its sources.
"""

import importlib.util
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

NAMES = {"published": "ACCV-Lab, as published", "corrected": "ACCV-Lab, grid corrected"}
# `count + 8 - 1 / 8` is meant to be the quotient rounded up, and is count + 8, as the division binds more tightly.
GRID = re.compile(r"(\w+(?:\.\w+\(\w*\))?) \+ (\d+) - 1 / \2\b")


def corrected(text: str) -> tuple[str, int]:
    """A source whose grids are rounded up as meant, and how many there were."""
    return GRID.subn(r"(\1 + \2 - 1) / \2", text)


def build(sources: Path, target: Path) -> dict[str, str]:
    """Compile both forms into `target`.

    Args:
        sources: Folder that holds its .cpp, .cu and .cuh files, at any depth.
        target: Folder for the results: one folder per form.

    Returns:
        For each form "built", or why it is not.
    """
    state = {}
    for form in NAMES:
        folder = target / form
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sources, folder / "source")
        files = sorted(p for p in (folder / "source").rglob("*") if p.suffix in (".cpp", ".cu", ".cuh", ".h"))
        changes = 0
        for path in files if form == "corrected" else []:
            text, count = corrected(path.read_text())
            path.write_text(text)
            changes += count
        if form == "corrected" and not changes:
            state[form] = "no grid was found to correct"
            continue
        try:
            extension: Any = importlib.import_module("torch.utils.cpp_extension")
            extension.load(
                name=f"accv_{form}",
                sources=[str(path) for path in files if path.suffix in (".cpp", ".cu")],
                extra_include_paths=sorted({str(path.parent) for path in files}),
                build_directory=str(folder),
                with_cuda=True,
            )
            state[form] = "built"
        except Exception as error:
            traceback.print_exc()
            state[form] = f"{type(error).__name__}: {str(error).splitlines()[-1] if str(error) else ''}"
    return state


def _loaded(folder: Path, form: str) -> ModuleType:
    path = next((folder / form).glob(f"accv_{form}*.so"))
    spec = importlib.util.spec_from_file_location(f"accv_{form}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sides(folder: Path, case: str, device: str) -> dict[str, list[Callable[[], object]]]:
    """Both forms as further sides of a case of `draw_gaussians`; those that are not built, or do not fit, are missing.

    As ours does, each call clears new maps before it draws.
    """
    from detops.apps.bench.draw_gaussians import CONFIGS, FACTOR, boxes

    config = next((config for config in CONFIGS if config.name == case), None)
    if config is None:
        return {}
    data = boxes(config, device)
    centers, radii, labels, sizes = (
        t.to(torch.int32).contiguous() for t in (data.centers, data.radii, data.labels, data.sizes)
    )
    shape = (config.batch, config.height, config.width)
    valid = torch.arange(config.boxes, device=sizes.device) < sizes[:, None]
    image = torch.arange(config.batch, dtype=torch.int32, device=sizes.device)[:, None].expand_as(valid)[valid]
    flat = (centers[valid].contiguous(), radii[valid].contiguous(), image.contiguous())
    found: dict[str, list[Callable[[], object]]] = {}
    for form, name in NAMES.items():
        try:
            op = _loaded(folder, form)
        except (StopIteration, OSError, ImportError):
            continue
        if config.form == "concatenated":

            def draw(op: Any = op) -> object:
                return op.draw_heatmap(torch.zeros(shape, device=device), *flat, FACTOR, 1.0)
        elif config.form == "batched":

            def draw(op: Any = op) -> object:
                maps = torch.zeros(shape, device=device)
                return op.draw_heatmap_batched_impl(maps, centers, radii, sizes, FACTOR, 1.0)
        else:

            def draw(op: Any = op) -> object:
                maps = torch.zeros(config.batch, config.classes, *shape[1:], device=device)
                return op.draw_heatmap_batched_classwise_impl(maps, centers, radii, sizes, labels, FACTOR, 1.0)

        found[name] = [draw]
    return found


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), Path(sys.argv[2])))
