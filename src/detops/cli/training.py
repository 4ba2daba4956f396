"""The commands about a run: `train` and `report`."""

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from detops.apps import note, require
from detops.cli.shared import console, given, option, refuse, require_finite

SEEDS = 2**32 - 1
LD = ["teacher", "temperature", "ld_weight", "ld_region"]  # parameters of one kind of detector
# The options of `detops train`, in the groups in which its help lists them.
data_option = partial(typer.Option, rich_help_panel="Data")
network_option = partial(typer.Option, rich_help_panel="Network")
training_option = partial(typer.Option, rich_help_panel="Training")
augmentation_option = partial(typer.Option, rich_help_panel="Augmentation", metavar="")
hardware_option = partial(typer.Option, rich_help_panel="Hardware")


def train(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the run: configuration, checkpoints, metrics, report.")],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue from the last checkpoint, as the run was begun: data, network, training and augmentation"
            " that are given must be those of the run; hardware, --strict, --on-nonfinite and --patience may change,"
            " and --prolong-to adds epochs. Begins if there is no run yet.",
        ),
    ] = False,
    data: Annotated[
        Path | None,
        data_option(
            help="Folder with train/ and val/, each with annotations.json and images/; or data.yaml of a YOLO data set;"
            " or a folder of Pascal VOC; or with --split, data in one folder."
        ),
    ] = None,
    split: Annotated[
        float | None,
        data_option(help="Divide the data at random: evaluate on this fraction of the images, and train on the rest."),
    ] = None,
    train_annotations: Annotated[
        Path | None, data_option(help="COCO annotations to train on. The four paths together stand in place of --data.")
    ] = None,
    train_images: Annotated[Path | None, data_option(help="Folder of the images to train on.")] = None,
    val_annotations: Annotated[Path | None, data_option(help="COCO annotations to evaluate on.")] = None,
    val_images: Annotated[Path | None, data_option(help="Folder of the images to evaluate on.")] = None,
    strict: Annotated[bool, data_option("--strict", help="Stop if an annotation or image is invalid.")] = False,
    detector: Annotated[
        str, network_option(help="Kind of detector: centernet, yolox, gfl, ld, tal, tal-once or detr.")
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
    prolong_to: Annotated[
        int | None, training_option(help="With --resume: go on up to this many epochs in all.", min=1, metavar="N")
    ] = None,
    batch_size: Annotated[int, training_option(help="Images per step and device.", min=1)] = 8,
    weights: Annotated[
        Path | None,
        training_option(help="Run, or checkpoint of one, whose weights it begins with, where they fit: to fine-tune."),
    ] = None,
    patience: Annotated[
        int, training_option(help="End after so many evaluations without a higher AP; 0 never does.", min=0)
    ] = 0,
    lr: Annotated[float, training_option(help="Peak learning rate.")] = 5e-3,
    seed: Annotated[
        int, training_option(help="Random seed of weights, image order and augmentation.", min=0, max=SEEDS)
    ] = 0,
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
    max_detections: Annotated[
        int, training_option(help="Largest number of detections per image, in evaluations and in predict.", min=1)
    ] = 100,
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
    """Train a detector on data in the format of COCO, YOLO or Pascal VOC."""
    require("lightning", "Lightning", "train")
    from detops.apps.data.split import divide
    from detops.apps.outputs import Outputs
    from detops.apps.train import train as job
    from detops.apps.train.augment import Augmentation
    from detops.apps.train.checkpoint import LAST
    from detops.apps.train.settings import Data, Distillation, Hardware, Network, Settings

    require_finite(ctx)
    if lr <= 0:
        raise ValueError(f"--lr: expected more than 0, got {lr}")
    paths = (train_annotations, train_images, val_annotations, val_images)
    if data is not None and any(paths):
        raise ValueError("--data: the four paths of annotations and images stand in its place; give one or the other")
    refuse(ctx, LD * (not resume and detector != "ld"), f"belongs to --detector ld, and this is {detector}")
    refuse(ctx, ["l1_epochs"] * (not resume and detector != "yolox"), f"belongs to --detector yolox, not {detector}")
    refuse(ctx, ["split"] * (data is None), "divides --data, which is not given")
    chosen = None
    if data is not None and split is None:
        chosen = Data.from_folder(data)
    elif data is not None and not (
        (resume and (out / "config.json").exists()) or (out / LAST).exists()
    ):  # not divided yet
        chosen = Data.from_paths(*divide(data, split or 0.0, Outputs(out, [data])))
    if any(paths):
        chosen = Data.from_paths(*paths)
    network = Network(
        detector, model, width, _height_and_width(size), teacher, backbone, pretrained, frozen_stages, weights
    )
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
        patience=patience,
        max_detections=max_detections,
    )
    changes: dict[str, int | None] = {}
    going_on = resume and (out / "config.json").exists()
    refuse(ctx, ["prolong_to"] * (not going_on), "adds epochs to a run that is there, with --resume")
    if going_on:
        _check_same(ctx, out, chosen, network, settings)
        changes = {"patience": patience} if "patience" in given(ctx) else {}
        if prolong_to is not None:
            changes["epochs"] = prolong_to
    job.run(
        out,
        data=chosen,
        network=network,
        settings=settings,
        hardware=Hardware(
            precision,
            devices,
            accelerator,
            strategy,
            nodes,
            memory_limit=int(min(memory, 2**20) * 2**30),
            workers=workers,
        ),
        resume=resume,
        changes=changes,
        strict=strict,
        on_nonfinite=on_nonfinite,
        logger=logger,
        command=shlex.join(["detops", *sys.argv[1:]]),
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
        group |= {"size": f"{width}x{height}"}
        group |= {name: group[name] and group[name].resolve() for name in ("teacher", "weights")}
    names = [name for name in given(ctx) if name in then and name != "patience"]
    other = {name: then[name] for name in names if now[name] != then[name]}
    if data is not None and data != before[0] and "data" in given(ctx):
        other["data"] = before[0].train_annotations.parent.parent
    if other:
        text = ", ".join(f"{option(ctx, name)} (begun with {value})" for name, value in other.items())
        longer = ", or add epochs by --prolong-to" if "epochs" in other else ""
        raise ValueError(
            f"{text}: a run goes on as it was begun, so this would have no effect; choose another --out{longer}"
        )


def _height_and_width(size: str) -> tuple[int, int]:
    """Parse "WIDTHxHEIGHT"."""
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"size: expected WIDTHxHEIGHT such as 640x480, got {size!r}")
    return int(parts[1]), int(parts[0])


def report(
    ctx: typer.Context,
    runs: Annotated[list[Path], typer.Argument(help="Folder of a run; of several, to compare them.", metavar="RUN...")],
    out: Annotated[Path, typer.Option(help="Page that compares several runs.")] = Path("out/comparison.html"),
    images: Annotated[int, typer.Option(help="Images per gallery in the page about one run.", min=1)] = 8,
) -> None:
    """Write the page about a run again, report.html in its folder: while it trains, or after a kill. Compare runs."""
    require("matplotlib", "matplotlib", "report")
    from detops.apps.report import comparison
    from detops.apps.report import report as job

    refuse(ctx, ["out"] * (len(runs) == 1), "is of the comparison of several runs; the page of one is in its folder")
    refuse(ctx, ["images"] * (len(runs) > 1), "is of the page about one run")
    note(console, f"report: {job.write(runs[0], images) if len(runs) == 1 else comparison.write(runs, out)}")
