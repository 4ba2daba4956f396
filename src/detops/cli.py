"""The commands: they parse, call `detops.apps`, and turn errors into messages and exit codes."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    help="Everything around an object detector's network.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip
console, errors = Console(), Console(stderr=True)


@contextmanager
def _reported() -> Iterator[None]:
    """Errors that a user can mend end the command with one line and exit code 2."""
    try:
        yield
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        errors.print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


@app.command()
def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, the machine, and which backend runs each op."""
    from detops import env as describe

    info = describe()
    if as_json:
        typer.echo(json.dumps(info, indent=1))
        return
    machine = Table("", "", title="Environment", show_header=False)
    for name in ("detops", "python", "torch", "triton", "platform"):
        machine.add_row(name, str(info[name] or "not installed"))
    for name, part in (("CPU", info["cpu"]), ("C++ kernels", info["build"])):
        for key, value in part.items():
            machine.add_row(f"{name}: {key}", str(value))
    machine.add_row("GPU", ", ".join(f"{gpu['name']} ({gpu['memory_GiB']} GiB)" for gpu in info["gpu"]) or "none")
    table = Table("op", "CPU", "CUDA and ROCm", "other devices", title="Who runs each op")
    for op, backends in info["ops"].items():
        table.add_row(op, backends["cpu"], backends["cuda"], backends["other"])
    console.print(machine, table)


@app.command()
def targets(
    annotations: Annotated[Path, typer.Argument(help="COCO annotations, .json or .json.gz.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the images; without it, blank canvases.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("out/targets"),
    stride: Annotated[int, typer.Option(help="Pixels a cell of the maps.", min=1)] = 4,
    min_overlap: Annotated[float, typer.Option(help="IoU that boxes within the radius keep.")] = 0.3,
    image_id: Annotated[list[str] | None, typer.Option(help="Only this image; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many images.", min=1)] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if an annotation is broken.")] = False,
) -> None:
    """Draw the training targets of a COCO data set: pictures, a contact sheet and a summary."""
    with _reported():
        from detops.apps import targets as job

        summary = job.run(annotations, images, out, stride, min_overlap, tuple(image_id or ()), limit, console=console)
    if strict and summary.broken:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("out/demo"),
    images: Annotated[int, typer.Option(help="How many images to generate.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the data.")] = 0,
) -> None:
    """Generate a data set, draw its targets, and measure the speed against the loop in use today."""
    with _reported():
        from detops.apps import bench as speed
        from detops.apps import shapes
        from detops.apps import targets as job

        start = time.perf_counter()
        with console.status(f"generating {images} images"):
            path = shapes.generate(out / "data", images, seed)
        job.run(path, out / "data" / "images", out, pictures=48, console=console)
        speed.main("heatmap", quick=True)
    console.print(f"pictures: {out / 'contact_sheet.png'} and {out / 'images'}", soft_wrap=True)
    console.print(f"took {time.perf_counter() - start:.0f} s")


@app.command()
def bench(
    suite: Annotated[str, typer.Argument(help="What to measure: heatmap.")] = "heatmap",
    kernel: Annotated[bool, typer.Option("--kernel", help="The op alone, without the Python wrapper.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the results to this file.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cases, shorter.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU where there is one.")] = None,
) -> None:
    """Measure the speed of a part against its baselines and the physical floor."""
    with _reported():
        from detops.apps import bench as speed

        speed.main(suite, kernel, json_path, quick, device)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
