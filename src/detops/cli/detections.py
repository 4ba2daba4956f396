"""The commands that detect objects and score what was detected: `predict` and `evaluate`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from detops.cli.shared import console, errors, require_finite


def evaluate(
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
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="Write the scores to this file; - prints them alone to the standard output."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Torch device of a run. By default a GPU if there is one.")] = None,
    max_detections: Annotated[
        int | None,
        typer.Option(
            help="Detections per image. By default those of the run, or 100; with more than 100, the AP of so many"
            " stands beside COCO's.",
            min=1,
        ),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="Package that compares: pycocotools, faster-coco-eval or hotcoco. The scores are equal.")
    ] = "pycocotools",
) -> None:
    """Show COCO's twelve scores and the AP of each class."""
    from detops.apps import evaluate as job

    piped = json_path == Path("-")
    path, view = (None, errors) if piped else (json_path, console)
    scores = job.run(run, results, annotations, images, kind, strict, path, device, max_detections, backend, view)
    if piped:
        typer.echo(json.dumps(scores, indent=1, allow_nan=False))


def predict(
    ctx: typer.Context,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders of images, patterns, videos; or one stream: an address such as rtsp://..., the number"
            " of a camera, a device, a pipe, or - for the standard input."
        ),
    ],
    run: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a trained run, or one of its checkpoints. Give this, --mask-rcnn or --query-masks."
        ),
    ] = None,
    mask_rcnn: Annotated[
        str | None,
        typer.Option(
            help="Weights of torchvision's maskrcnn_resnet50_fpn, or module:function that returns a MaskRCNN."
        ),
    ] = None,
    query_masks: Annotated[
        str | None,
        typer.Option(help="module:function that returns a model with query masks, such as Transformers' RF-DETR."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("out/predict"),
    score: Annotated[
        float | None,
        typer.Option(
            help="Lowest score, in results and pictures. By default the results hold all, as evaluate needs them, and"
            " the pictures show those from 0.3."
        ),
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option(help="Keep only these classes: names or ids, with commas, or several times.")
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(help="Detections per image, the best. By default those of the network.", min=1)
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="Write the results as csv or yolo too. May be repeated."),
    ] = None,
    pictures: Annotated[int, typer.Option(help="Draw the first N images; -1 draws all.", min=-1, metavar="N")] = 200,
    annotations: Annotated[
        Path | None, typer.Option(help="COCO annotations that give the images their ids in the results.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Torch device. By default a GPU if there is one.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per batch. By default 8, and 1 of a stream.", min=1)
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Compute in half precision.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read images; with --ray, copies of the network.", min=0)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was interrupted.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Use all GPUs or machines of a Ray cluster.")] = False,
) -> None:
    """Detect objects in images: a JSON line per image, pictures, and results in COCO's and other formats."""
    from detops.apps.predict import predict as job

    require_finite(ctx)
    options = job.Options(
        mask_rcnn=mask_rcnn,
        query_masks=query_masks,
        half=half,
        score=score,
        classes=classes or (),
        max_detections=max_detections,
        formats=formats or (),
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
