"""The commands about a data set: `targets` and `check`."""

from pathlib import Path
from typing import Annotated

import typer

from detops.cli.shared import console

ANNOTATIONS = (
    "COCO annotations, .json or .json.gz; or data.yaml/SPLIT of a YOLO data set; or ImageSets/Main/LIST.txt or"
    " Annotations of Pascal VOC."
)


def targets(
    annotations: Annotated[Path, typer.Argument(help=ANNOTATIONS)],
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
    limit: Annotated[int | None, typer.Option(help="Take only the first N images.", min=1, metavar="N")] = None,
    pictures: Annotated[int, typer.Option(help="Draw at most N pictures; -1 draws all.", min=-1, metavar="N")] = 200,
    strict: Annotated[bool, typer.Option("--strict", help="Stop if an annotation or image is invalid.")] = False,
) -> None:
    """Draw the training targets of a data set: a picture per image, a contact sheet and a summary."""
    from detops.apps import targets as job

    chosen = tuple(image_id or ())
    job.run(
        annotations,
        _images(annotations, images),
        out,
        stride,
        min_overlap,
        chosen,
        limit,
        None if pictures < 0 else pictures,
        strict,
        console,
    )


def check(
    annotations: Annotated[Path, typer.Argument(help=ANNOTATIONS)],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images, to compare each with its record. By default none is.")
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Judge the segmentations too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the report to this HTML page too.")] = None,
) -> None:
    """Judge a data set: what is in it, and what would be left out. Exit code 1 if there is anything."""
    from detops.apps import check as job

    if not job.run(annotations, _images(annotations, images), masks, out, console):
        raise typer.Exit(1)


def _images(annotations: Path, images: Path | None) -> Path | None:
    """Return the folder of the images; formats beside COCO's say themselves where they are."""
    from detops.apps.data import formats

    return formats.images_of(annotations) if images is None and formats.is_other(annotations) else images
