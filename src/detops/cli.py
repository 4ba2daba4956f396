"""The commands: parse the arguments, call `detops.apps`, and turn errors into messages and exit codes."""

import json
import math
import time
import traceback
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from detops import __version__
from detops.apps import choose_device, note, require
from detops.apps.errors import explain
from detops.apps.outputs import Outputs

console, errors = Console(), Console(stderr=True)
FAULT = 70  # exit code of a fault of detops


INFERENCE = ["sizes", "image", "weights", "repeats", "out"]  # parameters of one suite
LD = ["teacher", "temperature", "ld_weight", "ld_region"]  # parameters of one kind of detector


class Commands(TyperGroup):
    """The commands; here every error becomes a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. An error that the user can do something about is one line, and exit code 2."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            note(errors, "stopped; train and predict go on with --resume", "red")
            raise typer.Exit(130) from None
        except Exception as error:
            if hasattr(error, "exit_code") and hasattr(error, "show"):  # a misuse that the command line itself found
                raise
            text = explain(error)
            if text is not None:
                note(errors, f"error: {text}", "red")
                raise typer.Exit(2) from error
            errors.print("".join(traceback.format_exception(error)), markup=False, highlight=False, soft_wrap=True)
            note(
                errors, "error: this is a fault of detops; please report it, with the lines above and detops env", "red"
            )
            raise typer.Exit(FAULT) from error


app = typer.Typer(
    cls=Commands,
    help="Everything around an object detector's network.",
    epilog="Exit codes: 0 done; 1 done, and something failed or was left out; 2 refused or stopped, and a line says"
    " why; 70 a fault of detops.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# The options of `detops train`, in the groups in which its help lists them.
data_option = partial(typer.Option, rich_help_panel="Data")
network_option = partial(typer.Option, rich_help_panel="Network")
training_option = partial(typer.Option, rich_help_panel="Training")
augmentation_option = partial(typer.Option, rich_help_panel="Augmentation")
hardware_option = partial(typer.Option, rich_help_panel="Hardware")


def _given(ctx: typer.Context) -> list[str]:
    """List the parameters of a command that were given."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def _refuse(ctx: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse options that would have no effect.

    Raises:
        ValueError: One of them was given.
    """
    useless = [_option(ctx, name) for name in _given(ctx) if name in names]
    if useless:
        raise ValueError(f"{', '.join(useless)}: {why}")


def _require_finite(ctx: typer.Context) -> None:
    """Check that every number is one, which the command line itself does not.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    for name, value in ctx.params.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{_option(ctx, name)}: expected a finite number, got {value}")


def _option(ctx: typer.Context, name: str) -> str:
    """Return the name by which an option is given."""
    return next(parameter.opts[0] for parameter in ctx.command.params if parameter.name == name)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold the options that come before a command."""


@app.command()
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


@app.command()
def targets(
    annotations: Annotated[Path, typer.Argument(help="COCO annotations, .json or .json.gz.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images. Without it, the canvases are blank.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("out/targets"),
    stride: Annotated[int, typer.Option(help="Image pixels per cell of the heatmaps.", min=1)] = 4,
    min_overlap: Annotated[
        float, typer.Option(help="Lowest IoU that a box shifted by the Gaussian radius may have with its original.")
    ] = 0.3,
    image_id: Annotated[
        list[str] | None, typer.Option(help="Draw only the image with this id. May be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Draw only the first N images.", min=1, metavar="N")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop if an annotation or image is invalid.")] = False,
) -> None:
    """Draw the training targets of a COCO data set: a picture per image, a contact sheet and a summary."""
    from detops.apps import targets as job

    chosen = tuple(image_id or ())
    job.run(annotations, images, out, stride, min_overlap, chosen, limit, strict=strict, console=console)


@app.command()
def check(
    annotations: Annotated[Path, typer.Argument(help="COCO annotations, .json or .json.gz.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images, to compare each with its record. By default none is.")
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Judge the segmentations too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the report to this HTML page too.")] = None,
) -> None:
    """Judge a COCO data set: what is in it, and what would be left out. Exit code 1 if there is anything."""
    from detops.apps import check as job

    if not job.run(annotations, images, masks, out, console):
        raise typer.Exit(1)


@app.command()
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


@app.command()
def train(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the run: configuration, checkpoints, metrics, report.")],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue from the last checkpoint, as the run was begun: data, network, training and augmentation"
            " that are given must be those of the run; hardware, --strict and --on-nonfinite may change. Begins if"
            " there is no run yet.",
        ),
    ] = False,
    data: Annotated[
        Path | None, data_option(help="Folder with train/ and val/, each with annotations.json and images/.")
    ] = None,
    train_annotations: Annotated[
        Path | None, data_option(help="COCO annotations to train on. The four paths together stand in place of --data.")
    ] = None,
    train_images: Annotated[Path | None, data_option(help="Folder of the images to train on.")] = None,
    val_annotations: Annotated[Path | None, data_option(help="COCO annotations to evaluate on.")] = None,
    val_images: Annotated[Path | None, data_option(help="Folder of the images to evaluate on.")] = None,
    strict: Annotated[bool, data_option("--strict", help="Stop if an annotation or image is invalid.")] = False,
    detector: Annotated[
        str, network_option(help="Kind of detector: centernet, yolox, gfl, ld, tal or tal-once.")
    ] = "centernet",
    model: Annotated[
        str, network_option(help='"compact", or module:function that returns a torch.nn.Module.')
    ] = "compact",
    backbone: Annotated[
        str, network_option(help="Backbone of the compact model: compact, or timm:NAME for any of timm's.")
    ] = "compact",
    pretrained: Annotated[
        bool, network_option("--pretrained", help="Start from timm's weights of the backbone, cached or fetched.")
    ] = False,
    frozen_stages: Annotated[
        int, network_option(help="Pretrained stages that stay as they are: 1 is up to stride 4, 4 all.", min=0, max=4)
    ] = 0,
    width: Annotated[int, network_option(help="Channels of the network at stride 4.", min=1)] = 32,
    size: Annotated[str, network_option(help="WIDTHxHEIGHT that images are resized to fit into.")] = "512x512",
    teacher: Annotated[
        Path | None, network_option(help="With --detector ld: folder of the gfl or ld run to learn from.")
    ] = None,
    epochs: Annotated[int, training_option(help="Number of epochs.", min=1)] = 60,
    batch_size: Annotated[int, training_option(help="Images per step and device.", min=1)] = 8,
    lr: Annotated[float, training_option(help="Peak learning rate.")] = 5e-3,
    seed: Annotated[int, training_option(help="Random seed of weights, image order and augmentation.")] = 0,
    l1_epochs: Annotated[
        int, training_option(help="With --detector yolox: epochs at the end that add the L1 loss.", min=0)
    ] = 15,
    temperature: Annotated[
        float, training_option(help="With --detector ld: softmax temperature of both distributions.", min=1)
    ] = 10.0,
    ld_weight: Annotated[float, training_option(help="With --detector ld: weight of the distillation losses.")] = 4.0,
    ld_region: Annotated[
        str, training_option(help="With --detector ld: anchors that are distilled: main (the positives) or main+vlr.")
    ] = "main",
    logger: Annotated[
        str | None, training_option(help="Log to csv, tensorboard or wandb too, by Lightning's logger.")
    ] = None,
    eval_every: Annotated[int, training_option(help="Epochs between evaluations.", min=1)] = 10,
    save_every: Annotated[
        int, training_option(help="Steps between checkpoints; each epoch ends with one too.", min=1)
    ] = 200,
    on_nonfinite: Annotated[
        str,
        training_option(
            help="What follows a step whose loss or gradient is not finite, and which never changes a weight: stop"
            " (saves, and --resume goes on behind it) or skip."
        ),
    ] = "stop",
    flip: Annotated[bool, augmentation_option(help="Mirror half of the images left to right.")] = True,
    flip_vertical: Annotated[bool, augmentation_option(help="Mirror half of the images top to bottom.")] = False,
    multi_scale: Annotated[
        float, augmentation_option(help="Fraction by which the input size varies between batches.", min=0)
    ] = 0.2,
    zoom: Annotated[
        float, augmentation_option(help="Fraction by which the scale varies between images of a batch.", min=0)
    ] = 0.25,
    color: Annotated[
        float, augmentation_option(help="Fraction by which brightness, contrast and saturation vary.", min=0, max=1)
    ] = 0.2,
    precision: Annotated[
        str | None, hardware_option(help="Lightning's precision: bf16-mixed, 16-mixed or 32-true.")
    ] = None,
    devices: Annotated[str, hardware_option(help="Lightning's devices: how many, or which, such as 0,1.")] = "1",
    accelerator: Annotated[str, hardware_option(help="Lightning's accelerator: auto, cpu or gpu.")] = "auto",
    strategy: Annotated[
        str, hardware_option(help="Lightning's strategy, such as ddp for several devices or machines.")
    ] = "auto",
    nodes: Annotated[int, hardware_option(help="Number of machines.", min=1)] = 1,
    memory: Annotated[float, hardware_option(help="GiB of decoded images to keep in memory.", min=0)] = 4.0,
    workers: Annotated[
        int | None, hardware_option(help="Processes that decode images which are not kept in memory.", min=0)
    ] = None,
) -> None:
    """Train a detector on COCO-format data."""
    require("lightning", "Lightning", "train")
    from detops.apps.train import train as job
    from detops.apps.train.augment import Augmentation
    from detops.apps.train.settings import Data, Distillation, Hardware, Network, Settings

    _require_finite(ctx)
    if lr <= 0:
        raise ValueError(f"--lr: expected more than 0, got {lr}")
    paths = (train_annotations, train_images, val_annotations, val_images)
    if data is not None and any(paths):
        raise ValueError("--data: the four paths of annotations and images stand in its place; give one or the other")
    _refuse(ctx, LD * (not resume and detector != "ld"), f"belongs to --detector ld, and this is {detector}")
    _refuse(ctx, ["l1_epochs"] * (not resume and detector != "yolox"), f"belongs to --detector yolox, not {detector}")
    chosen = None if data is None else Data.from_folder(data)
    if any(paths):
        chosen = Data.from_paths(*paths)
    network = Network(detector, model, width, _height_and_width(size), teacher, backbone, pretrained, frozen_stages)
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        augmentation=Augmentation(flip, flip_vertical, multi_scale, zoom, color),
        l1_epochs=l1_epochs,
        distillation=Distillation(temperature, ld_weight, ld_region),
        eval_every=eval_every,
        save_every=save_every,
    )
    if resume and (out / "config.json").exists():
        _check_same(ctx, out, chosen, network, settings)
    job.run(
        out,
        data=chosen,
        network=network,
        settings=settings,
        hardware=Hardware(
            precision, devices, accelerator, strategy, nodes, memory_limit=int(memory * 2**30), workers=workers
        ),
        resume=resume,
        strict=strict,
        on_nonfinite=on_nonfinite,
        logger=logger,
        console=console,
    )


def _check_same(ctx: typer.Context, run: Path, data: Any, network: Any, settings: Any) -> None:
    """Check that what was given beside --resume is what the run was begun with.

    Raises:
        ValueError: Something differs.
    """
    from detops.apps import runs
    from detops.apps.train.settings import from_config

    before = from_config(runs.read_config(run))
    now, then = (
        {**vars(group[0] or before[0]), **vars(group[1]), **vars(group[2])}
        for group in ((data, network, settings), before)
    )
    for group in (now, then):
        group |= {**vars(group["augmentation"]), **vars(group["distillation"])}
        height, width = group["size"]
        group |= {"size": f"{width}x{height}", "teacher": group["teacher"] and group["teacher"].resolve()}
    other = {name: then[name] for name in _given(ctx) if name in then and now[name] != then[name]}
    if data is not None and data != before[0] and "data" in _given(ctx):
        other["data"] = before[0].train_annotations.parent.parent
    if other:
        text = ", ".join(f"{_option(ctx, name)} (begun with {value})" for name, value in other.items())
        raise ValueError(f"{text}: a run goes on as it was begun, so this would have no effect; choose another --out")


def _height_and_width(size: str) -> tuple[int, int]:
    """Parse "WIDTHxHEIGHT"."""
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"size: expected WIDTHxHEIGHT such as 640x480, got {size!r}")
    return int(parts[1]), int(parts[0])


@app.command()
def evaluate(
    ctx: typer.Context,
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a run, or one of its checkpoints. Give this or --results.")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="COCO results file to evaluate instead of a run.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="COCO annotations. By default those that the run was evaluated on.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images of --annotations; not with --results.")
    ] = None,
    kind: Annotated[str, typer.Option(help="What the IoU is computed of: bbox, or with --results segm.")] = "bbox",
    strict: Annotated[bool, typer.Option("--strict", help="Stop if an annotation or image is invalid.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the scores to this file.")] = None,
    device: Annotated[str | None, typer.Option(help="Torch device of a run. By default a GPU if there is one.")] = None,
) -> None:
    """Show COCO's twelve scores and the AP of each class."""
    from detops.apps import evaluate as job

    _refuse(
        ctx, ["images", "device"] * (results is not None), "has no effect with --results, which are detections already"
    )
    _refuse(ctx, ["images"] * (annotations is None), "is the folder of --annotations, which are not given")
    if run is not None and kind == "segm":
        raise ValueError("--kind segm: a run has no masks; masks are evaluated from a results file, by --results")
    if device is not None:
        choose_device(device)
    job.run(run, results, annotations, images, kind, strict, json_path, device, console)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a run.")]) -> None:
    """Write the page about a run again, report.html in its folder: while it trains, or after a kill."""
    require("matplotlib", "matplotlib", "report")
    from detops.apps.train import report as job

    note(console, f"report: {job.write(run)}")


@app.command()
def predict(
    ctx: typer.Context,
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of images.")],
    run: Annotated[
        Path | None,
        typer.Option(help="Folder of a trained run, or one of its checkpoints. Give this or --mask-rcnn."),
    ] = None,
    mask_rcnn: Annotated[
        str | None,
        typer.Option(
            help="Weights of torchvision's maskrcnn_resnet50_fpn, or module:function that returns a MaskRCNN."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("out/predict"),
    score: Annotated[
        float, typer.Option(help="Lowest score to draw, if there are pictures. The results hold all.")
    ] = 0.3,
    pictures: Annotated[int, typer.Option(help="Draw the first N images; -1 draws all.", min=-1, metavar="N")] = 200,
    annotations: Annotated[
        Path | None, typer.Option(help="COCO annotations that give the images their ids in the results.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Torch device. By default a GPU if there is one.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per batch.", min=1)] = 8,
    half: Annotated[bool, typer.Option("--half", help="Compute in half precision.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read images; with --ray, copies of the network.", min=0)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was interrupted.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Use all GPUs or machines of a Ray cluster.")] = False,
) -> None:
    """Detect objects in images: a JSON line per image, pictures and a COCO results file."""
    from detops.apps.predict import predict as job

    _require_finite(ctx)
    _refuse(ctx, ["score"] * (pictures == 0), "decides what is drawn, and with --pictures 0 nothing is")
    options = job.Options(
        mask_rcnn=mask_rcnn,
        half=half,
        score=score,
        pictures=pictures,
        annotations=annotations,
        device=device,
        batch_size=batch_size,
        workers=workers,
        resume=resume,
        ray=ray,
    )
    failed = job.run(run, images, out, options, console)
    if failed:
        raise typer.Exit(1)


@app.command()
def bench(
    ctx: typer.Context,
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to measure: the name of an op or a criterion, or inference. By default draw_gaussians, and with"
            " --compare everything; --list names all.",
            metavar="[SUITE]...",
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the names of all suites.")] = False,
    kernel: Annotated[
        bool, typer.Option("--kernel", help="Measure the op alone, without its public function.")
    ] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the results to this file.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure fewer cases, and each for a shorter time.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. By default a GPU if there is one.")] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="REV", help="Measure the git working copy against this commit of it, in turns."),
    ] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(help="--compare: exit with code 1 if a case takes more than this many times as long."),
    ] = None,
    sizes: Annotated[list[str] | None, typer.Option(help="inference: input sizes, each WIDTHxHEIGHT.")] = None,
    image: Annotated[
        Path | None, typer.Option(help="inference: picture to detect on. By default one is generated.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="inference: weights of maskrcnn_resnet50_fpn.")] = None,
    repeats: Annotated[int, typer.Option(help="inference: images per row.", min=1)] = 3,
    out: Annotated[Path, typer.Option(help="inference: folder for the pictures.")] = Path("out/bench_inference"),
) -> None:
    """Measure an op against its baselines and the physical floor, or a Mask R-CNN stage by stage."""
    from detops.apps.bench import _compare, runner

    _require_finite(ctx)
    names = suites or []
    is_inference = names[:1] == ["inference"]
    _refuse(ctx, INFERENCE * (not is_inference), "belongs to the suite inference")
    _refuse(ctx, ["kernel", "compare"] * is_inference, "has no effect on the suite inference")
    _refuse(ctx, ["fail_above"] * (compare is None), "belongs to --compare")
    _refuse(ctx, ["repeats"] * quick, "has no effect with --quick, which measures once")
    if list_:
        typer.echo("\n".join([*runner.suites(), "inference"]))
    elif is_inference:
        from detops.apps.bench import inference

        if names[1:] and not sizes:  # further sizes come as arguments
            raise ValueError(f"expected one suite, got also {' '.join(names[1:])}")
        chosen = [*(sizes or ["1333x800"]), *names[1:]]
        inference.run(chosen, image, weights, out, 1 if quick else repeats, json_path, device, console)
    elif compare is not None:
        if json_path is not None:
            raise ValueError("--json: a comparison is printed only")
        if not _compare.compare(names, compare, kernel, quick, device, fail_above):
            raise typer.Exit(1)
    else:
        if names[1:]:
            raise ValueError(f"expected one suite, got also {' '.join(names[1:])}")
        runner.main(names[0] if names else "draw_gaussians", kernel, json_path, quick, device)
