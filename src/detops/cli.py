"""The commands: they parse, call `detops.apps`, and turn errors into messages and exit codes."""

import json
import shutil
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
    except (ValueError, OSError, ModuleNotFoundError) as error:
        errors.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
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
    seed: Annotated[int, typer.Option(help="Seed of the data and the training.")] = 0,
    epochs: Annotated[int, typer.Option(help="How often the training sees each image; 0 for none.", min=0)] = 20,
) -> None:
    """Generate a data set, draw its targets, measure speed, and train a detector on it for about a minute."""
    with _reported():
        from detops.apps import targets as job
        from detops.apps.bench import runner as speed
        from detops.apps.data import shapes

        start = time.perf_counter()
        with console.status(f"generating {images} images"):
            path = shapes.generate(out / "data", images, seed)
        job.run(path, out / "data" / "images", out, pictures=48, console=console)
        speed.main("draw_gaussians", quick=True)
        if epochs:
            _train_on_shapes(out, path, max(1, images // 5), seed, epochs)
    console.print(f"pictures: {out / 'contact_sheet.png'} and {out / 'images'}", soft_wrap=True)
    console.print(f"took {time.perf_counter() - start:.0f} s")


def _train_on_shapes(out: Path, annotations: Path, val_images: int, seed: int, epochs: int) -> None:
    """The demo's training; a former one in the same folder is replaced."""
    from detops.apps.data import shapes
    from detops.apps.train import train as job
    from detops.apps.train.augment import Augmentation
    from detops.apps.train.lightning_module import Settings

    val, run = shapes.generate(out / "val", val_images, seed + 1), out / "training"
    shutil.rmtree(run, ignore_errors=True)
    data = job.Data.explicit(annotations, annotations.parent / "images", val, val.parent / "images")
    short = Augmentation(multi_scale=0, zoom=0)  # in so few steps, more variety costs more than it brings
    settings = Settings(epochs, batch_size=4, lr=3e-3, ema=0.99, seed=seed, augmentation=short, eval_every=5)
    job.run(run, data, settings, width=24, size=(240, 320), console=console)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run: configuration, checkpoints, metrics.")],
    data: Annotated[Path | None, typer.Option(help="Folder with train/ and val/: annotations.json, images/.")] = None,
    detector: Annotated[str, typer.Option(help="What to train: centernet, yolox, gfl or ld.")] = "centernet",
    teacher: Annotated[Path | None, typer.Option(help="LD: folder of the gfl run that is learnt from.")] = None,
    train_annotations: Annotated[Path | None, typer.Option(help="COCO file, in place of --data.")] = None,
    train_images: Annotated[Path | None, typer.Option(help="Folder of its images.")] = None,
    val_annotations: Annotated[Path | None, typer.Option(help="COCO file to evaluate on.")] = None,
    val_images: Annotated[Path | None, typer.Option(help="Folder of its images.")] = None,
    model: Annotated[str, typer.Option(help='"compact", or module:function that returns a network.')] = "compact",
    width: Annotated[int, typer.Option(help="Channels of the network at stride 4.", min=1)] = 32,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT that images are fitted into.")] = "512x512",
    epochs: Annotated[int, typer.Option(help="How often each image is seen.", min=1)] = 60,
    batch_size: Annotated[int, typer.Option(help="Images a step and device.", min=1)] = 8,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 5e-3,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    flip: Annotated[bool, typer.Option(help="Mirror images left-right.")] = True,
    flip_vertical: Annotated[bool, typer.Option(help="Mirror images up-down too.")] = False,
    multi_scale: Annotated[float, typer.Option(help="Share by which sizes of batches vary.", min=0)] = 0.2,
    zoom: Annotated[float, typer.Option(help="Share by which sizes of images in a batch vary.", min=0)] = 0.25,
    color: Annotated[float, typer.Option(help="Share by which colours vary.", min=0, max=1)] = 0.2,
    l1_epochs: Annotated[int, typer.Option(help="YOLOX: last epochs that have the L1 loss.", min=0)] = 15,
    temperature: Annotated[float, typer.Option(help="LD: that distributions are softened by.", min=1)] = 10.0,
    ld_weight: Annotated[float, typer.Option(help="LD: factor of the distillation.")] = 4.0,
    ld_region: Annotated[str, typer.Option(help="LD: where it applies, main or main+vlr.")] = "main",
    eval_every: Annotated[int, typer.Option(help="Epochs between evaluations.", min=1)] = 10,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints, beside each epoch's.", min=1)] = 200,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, as it was begun.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at mistakes in the data.")] = False,
    precision: Annotated[str | None, typer.Option(help="Lightning's: bf16-mixed, 16-mixed, 32-true.")] = None,
    devices: Annotated[str, typer.Option(help="Lightning's: how many, or which, as 0,1.")] = "1",
    accelerator: Annotated[str, typer.Option(help="Lightning's: auto, cpu, gpu.")] = "auto",
    strategy: Annotated[str, typer.Option(help="Lightning's: ddp for several devices or machines.")] = "auto",
    nodes: Annotated[int, typer.Option(help="Machines.", min=1)] = 1,
    memory: Annotated[float, typer.Option(help="GiB of decoded images to keep in memory.", min=0)] = 4.0,
    workers: Annotated[int | None, typer.Option(help="Processes that decode what is not kept.", min=0)] = None,
) -> None:
    """Train a detector on COCO-format data."""
    with _reported():
        from detops.apps import require

        require("lightning", "Lightning", "train")
        from detops.apps.train import train as job
        from detops.apps.train.augment import Augmentation
        from detops.apps.train.lightning_module import Distillation, Settings

        named = (train_annotations, train_images, val_annotations, val_images)
        chosen = None if data is None else job.Data.of(data)
        if any(named):
            chosen = job.Data.explicit(*named)
        settings = Settings(
            epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, eval_every=eval_every, save_every=save_every,
            l1_epochs=l1_epochs, augmentation=Augmentation(flip, flip_vertical, multi_scale, zoom, color),
            distillation=Distillation(temperature, ld_weight, ld_region),
        )  # fmt: skip
        job.run(
            out, chosen, settings, model, width, _sides(size), resume, strict, precision, devices, accelerator,
            strategy, nodes, int(memory * 2**30), workers, console, detector, teacher,
        )  # fmt: skip


def _sides(size: str) -> tuple[int, int]:
    """Height and width of "WIDTHxHEIGHT"."""
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"size: expected WIDTHxHEIGHT such as 640x480, got {size!r}")
    return int(parts[1]), int(parts[0])


@app.command()
def evaluate(
    run: Annotated[Path | None, typer.Argument(help="Folder of a run; or name --results.")] = None,
    results: Annotated[Path | None, typer.Option(help="COCO results file, in place of a run.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO file; by default the run's own.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of its images.")] = None,
    kind: Annotated[str, typer.Option(help="What overlaps: bbox or segm.")] = "bbox",
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file.")] = None,
    device: Annotated[str | None, typer.Option(help="Torch device; by default a GPU where there is one.")] = None,
) -> None:
    """Show COCO's twelve numbers and each class's AP."""
    with _reported():
        from detops.apps import evaluate as job

        job.run(run, results, annotations, images, kind, json_path, device, console)


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Images, and folders of images.")],
    run: Annotated[Path | None, typer.Option(help="Folder of a trained run; or name --mask-rcnn.")] = None,
    mask_rcnn: Annotated[
        str | None,
        typer.Option(
            help="Weights of torchvision's maskrcnn_resnet50_fpn, or module:function that returns a MaskRCNN."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("out/predict"),
    score: Annotated[float, typer.Option(help="Lowest score that pictures show; the results have all.")] = 0.3,
    pictures: Annotated[int, typer.Option(help="Draw the first so many images; -1 for all.", min=-1)] = 200,
    annotations: Annotated[Path | None, typer.Option(help="COCO file whose image ids the results use.")] = None,
    device: Annotated[str | None, typer.Option(help="Torch device; by default a GPU where there is one.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 8,
    half: Annotated[bool, typer.Option("--half", help="Compute in half precision.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read; with --ray, networks at a time.", min=0)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the lines of a run that was stopped.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Use all GPUs or machines of a Ray cluster.")] = False,
) -> None:
    """Detect on images: a JSON line each, pictures, and a COCO results file; with masks, if by a Mask R-CNN."""
    with _reported():
        from detops.apps.predict import predict as job

        options = job.Options(
            mask_rcnn, half, score, pictures, annotations, device, batch_size, workers, resume, ray
        )  # fmt: skip
        failed = job.run(run, images, out, options, console)
    if failed:
        raise typer.Exit(1)


@app.command()
def bench(
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to measure: the name of an op or a criterion, or inference. By default draw_gaussians, and with"
            " --compare everything; --list names all.",
            metavar="[SUITE]...",
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the names of all suites.")] = False,
    kernel: Annotated[bool, typer.Option("--kernel", help="The op alone, without its public function.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the results to this file.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cases, and a shorter time for each.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU where there is one.")] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="REV", help="Measure the git working copy against this commit of it, in turns."),
    ] = None,
    fail_above: Annotated[
        float | None, typer.Option(help="--compare: exit with 1 if a case takes more than so many times as long.")
    ] = None,
    sizes: Annotated[list[str] | None, typer.Option(help="inference: WIDTHxHEIGHT ... of the network's input.")] = None,
    image: Annotated[Path | None, typer.Option(help="inference: picture to detect on; else one is made.")] = None,
    weights: Annotated[Path | None, typer.Option(help="inference: weights of maskrcnn_resnet50_fpn.")] = None,
    repeats: Annotated[int, typer.Option(help="inference: images per row.", min=1)] = 3,
    out: Annotated[Path, typer.Option(help="inference: folder of the pictures.")] = Path("out/bench_inference"),
) -> None:
    """Measure the speed of a part against its baselines and the physical floor; or of a Mask R-CNN, by its stages."""
    with _reported():
        from detops.apps.bench import _compare, runner

        names = suites or []
        if list_:
            typer.echo("\n".join([*runner.suites(), "inference"]))
        elif names[:1] == ["inference"]:
            from detops.apps.bench import inference

            if names[1:] and not sizes:  # further sizes come as arguments
                raise ValueError(f"expected one suite, got also {' '.join(names[1:])}")
            chosen = [*(sizes or ["1333x800"]), *names[1:]]
            inference.run(chosen, image, weights, out, 1 if quick else repeats, json_path, device, console)
        elif sizes or image or weights:
            raise ValueError(f"--sizes, --image and --weights belong to the suite inference, got {' '.join(names)}")
        elif compare is not None:
            if json_path is not None:
                raise ValueError("--json: a comparison is printed only")
            if not _compare.compare(names, compare, kernel, quick, device, fail_above):
                raise typer.Exit(1)
        else:
            if names[1:]:
                raise ValueError(f"expected one suite, got also {' '.join(names[1:])}")
            runner.main(names[0] if names else "draw_gaussians", kernel, json_path, quick, device)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
