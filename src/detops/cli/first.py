"""The commands to begin with: `env` and `demo`."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from detops.apps import note
from detops.apps.outputs import Outputs
from detops.cli.shared import console


def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the versions, the machine, and which backend runs each op."""
    from detops import env as describe

    info = describe()
    if as_json:
        typer.echo(json.dumps(info, indent=1))
        return
    machine = Table("", "", title="Environment", show_header=False)
    for name in ("detops", "python", "torch", "triton", "platform"):
        machine.add_row(name, str(info[name] or "not installed"))
    if info["triton_problem"]:
        machine.add_row("GPUs run portable PyTorch", info["triton_problem"])
    for name, part in (("CPU", info["cpu"]), ("C++ kernels", info["build"])):
        for key, value in part.items():
            machine.add_row(f"{name}: {key}", str(value))
    machine.add_row("GPU", ", ".join(f"{gpu['name']} ({gpu['memory_GiB']} GiB)" for gpu in info["gpu"]) or "none")
    table = Table("op", "CPU", "CUDA and ROCm", "other devices", title="Backend of each op")
    for op, backends in info["ops"].items():
        table.add_row(op, backends["cpu"], backends["cuda"], backends["other"])
    console.print(machine, table)


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("out/demo"),
    images: Annotated[int, typer.Option(help="Number of images to generate.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Random seed of the data and the training.")] = 0,
    epochs: Annotated[int, typer.Option(help="Epochs to train for. 0 skips the training.", min=0)] = 20,
) -> None:
    """Generate a data set, draw its targets, measure the speed, and train a detector for about a minute."""
    from detops.apps import targets as job
    from detops.apps.bench import runner as speed
    from detops.apps.data import shapes

    start, outputs = time.perf_counter(), Outputs(out)
    outputs.claim("contact_sheet.png", "summary.json")
    outputs.claim_pictures("images")
    for name in ("data", "val")[: 1 + bool(epochs)]:
        outputs.claim_folder(name)
    with console.status(f"generating {images} images"):
        path = shapes.generate(out / "data", images, seed)
    job.run(path, out / "data" / "images", out, pictures=48, console=console)
    speed.main("draw_gaussians", quick=True)
    if epochs:
        _train_on_shapes(outputs, path, max(1, images // 5), seed, epochs)
    note(console, f"pictures: {out / 'contact_sheet.png'} and {out / 'images'}")
    console.print(f"took {time.perf_counter() - start:.0f} s")


def _train_on_shapes(outputs: Outputs, annotations: Path, val_images: int, seed: int, epochs: int) -> None:
    """Train the demo's detector; an earlier run of it in the same folder is replaced."""
    from detops.apps.data import shapes
    from detops.apps.train import train as job
    from detops.apps.train.augment import Augmentation
    from detops.apps.train.settings import Data, Network, Settings

    val, run = shapes.generate(outputs.folder / "val", val_images, seed + 1), outputs.folder / "training"
    Outputs(run).remove_own()
    data = Data.from_paths(annotations, annotations.parent / "images", val, val.parent / "images")
    short = Augmentation(multi_scale=0, zoom=0)  # in so few steps, more variety costs more than it brings
    settings = Settings(epochs, batch_size=4, lr=3e-3, ema=0.99, seed=seed, augmentation=short, eval_every=5)
    job.run(run, data=data, network=Network(width=24, size=(240, 320)), settings=settings, console=console)
