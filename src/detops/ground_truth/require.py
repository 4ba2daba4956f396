"""Ground truth as an argument of assigners and criteria: any form, checked once, scanned in checked mode."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from detops.arguments import require_device
from detops.diagnostics.checked import is_checked
from detops.ground_truth.ground_truth import GroundTruth
from detops.ragged.padded import Batch

Targets = GroundTruth | tuple[Batch, Batch] | Sequence[Mapping[str, Any]]


def require_ground_truth(
    targets: object,
    num_classes: int,
    *,
    batch: int | None = None,
    like: Tensor | None = None,
    like_name: str = "",
    needs_area: bool = False,
) -> GroundTruth:
    """Return targets as `GroundTruth`.

    Args:
        targets: A `GroundTruth`, the pair (boxes, labels), or a list of dicts with "boxes" and "labels".
        num_classes: C, at least 1; in checked mode labels must be below it.
        batch: Number of images that the network's outputs have; None without outputs.
        like: A tensor that must be on the same device.
        like_name: Name of that argument.
        needs_area: In checked mode, refuse boxes whose area is not finite in float32.

    Raises:
        TypeError: The targets have none of these forms.
        ValueError: Shapes or devices do not match; in checked mode also a box that would be skipped for its values.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes!r}")
    if isinstance(targets, GroundTruth):
        found = targets
    elif isinstance(targets, list | tuple) and all(isinstance(target, Mapping) for target in targets):
        found = GroundTruth.from_dicts(targets)
    elif isinstance(targets, list | tuple) and len(targets) == 2:
        boxes, labels = cast(tuple[Batch, Batch], tuple(targets))
        found = GroundTruth.from_boxes(boxes, labels)
    else:
        raise TypeError(
            "targets: expected a GroundTruth, the pair (boxes, labels) or a list of dicts,"
            f" got {type(targets).__name__}"
        )
    if batch is not None and len(found) != batch:
        raise ValueError(f"targets: expected {batch} images, as {like_name} has, got {len(found)}")
    if like is not None:
        require_device("targets", found.boxes, like, like_name)
    if is_checked():
        check_values(found, num_classes, needs_area)
    return found


def check_values(targets: GroundTruth, num_classes: int, needs_area: bool = False) -> None:
    """Raise an error for the first box that would be skipped for its values; waits for the device.

    Raises:
        ValueError: A box would be skipped; the message names sample, box and value.
    """
    for name, sizes, count in (
        ("boxes", targets.sample_sizes, targets.boxes.shape[1]),
        ("ignored", targets.ignored_sizes, 0 if targets.ignored is None else targets.ignored.shape[1]),
    ):
        outside = [] if sizes is None else ((sizes < 0) | (sizes > count)).nonzero().tolist()
        if sizes is not None and outside:
            b = outside[0][0]
            raise ValueError(f"{name}: sample {b} has {int(sizes[b])} entries, expected 0 .. {count}")
    labels, boxes = targets.labels, targets.boxes.double()
    given = targets.exists() & (labels >= 0)
    size = boxes[..., 2:] - boxes[..., :2]
    for name, value, wrong, expected in (
        ("labels", labels, labels >= num_classes, f"a value below {num_classes}"),
        ("boxes", targets.boxes, ~boxes.isfinite().all(-1), "finite numbers"),
        ("boxes", targets.boxes, (size < 0).any(-1), "x2 >= x1 and y2 >= y1"),
        ("boxes", targets.boxes, ~size.float().prod(-1).isfinite() & needs_area, "an area that float32 holds"),
    ):
        found = (wrong & given).nonzero()
        if len(found):
            b, n = found[0].tolist()
            raise ValueError(f"{name}: sample {b}, box {n} has {value[b, n].tolist()}, expected {expected}")
    real = boxes[given]
    if len(real) and bool((real.abs() <= 1).all()) and bool((size[given] > 0).any()):
        raise ValueError("boxes: all lie within one pixel, expected boxes in pixels: are they normalised?")
