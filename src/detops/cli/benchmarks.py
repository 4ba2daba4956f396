"""The command `bench`."""

from pathlib import Path
from typing import Annotated

import typer

from detops.cli.shared import console, refuse, require_finite

INFERENCE = ["sizes", "image", "weights", "repeats", "out"]  # parameters of one suite


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

    require_finite(ctx)
    names = suites or []
    is_inference = names[:1] == ["inference"]
    refuse(ctx, INFERENCE * (not is_inference), "belongs to the suite inference")
    refuse(ctx, ["kernel", "compare"] * is_inference, "has no effect on the suite inference")
    refuse(ctx, ["fail_above"] * (compare is None), "belongs to --compare")
    refuse(ctx, ["repeats"] * quick, "has no effect with --quick, which measures once")
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
