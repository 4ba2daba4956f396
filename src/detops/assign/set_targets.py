"""Ground truth of the DETR family: boxes as centre and size in shares of the image, in any form that users have."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from detops.arguments import require_device
from detops.diagnostics.checked import is_checked
from detops.ground_truth import GroundTruth
from detops.ragged.padded import Batch

Targets = GroundTruth | tuple[Batch, Batch] | Sequence[Mapping[str, Any]]


class SetTargets(NamedTuple):
    """Boxes of a batch, padded to the image with the most.

    Attributes:
        boxes: (B, N, 4) cxcywh in shares of the image's width and height, floating point.
        labels: (B, N) integers.
        sample_sizes: (B,) how many of the N are real; None for all.
    """

    boxes: Tensor
    labels: Tensor
    sample_sizes: Tensor | None


def require_set_targets(
    targets: object, num_classes: int, batch: int | None, like: Tensor | None, like_name: str
) -> SetTargets:
    """Return targets in the family's form.

    Args:
        targets: The pair (boxes, labels), or a list of dicts with "boxes" and "class_labels" or "labels", boxes cxcywh
            in shares of the image; or a `GroundTruth`, in pixels and with image sizes.
        num_classes: In checked mode labels must be below it.
        batch: Number of images that the network's outputs have; None where there are none.
        like: What must lie on the same device.
        like_name: What the caller calls that.

    Raises:
        TypeError: The targets have none of these forms.
        ValueError: Shapes or devices do not match, or a `GroundTruth` has no image sizes; in checked mode also a box
            that is skipped for its values.
    """
    if isinstance(targets, GroundTruth):
        found = _from_pixels(targets)
    elif isinstance(targets, list | tuple) and all(isinstance(target, Mapping) for target in targets):
        found = _from_dicts(cast(Sequence[Mapping[str, Any]], targets))
    elif isinstance(targets, list | tuple) and len(targets) == 2:
        found = _padded(*cast(tuple[Batch, Batch], tuple(targets)))
    else:
        raise TypeError(
            "targets: expected a GroundTruth, the pair (boxes, labels) or a list of dicts,"
            f" got {type(targets).__name__}"
        )
    if batch is not None and len(found.boxes) != batch:
        raise ValueError(f"targets: expected {batch} images, as {like_name} has, got {len(found.boxes)}")
    if like is not None:
        require_device("targets", found.boxes, like, like_name)
    if is_checked():
        _check_values(found, num_classes)
    return found


def _from_pixels(targets: GroundTruth) -> SetTargets:
    if targets.image_sizes is None:
        raise ValueError(
            "targets: expected a GroundTruth with image_sizes, by which its boxes in pixels are divided; or the pair"
            " (boxes, labels) with boxes cxcywh in 0 .. 1"
        )
    width_height = targets.image_sizes.flip(1).to(torch.float32)[:, None].repeat(1, 1, 2)
    return SetTargets(targets.cxcywh().detach() / width_height, targets.labels, targets.sample_sizes)


def _from_dicts(targets: Sequence[Mapping[str, Any]]) -> SetTargets:
    if not targets:
        return SetTargets(torch.zeros(0, 0, 4), torch.zeros(0, 0, dtype=torch.int64), None)
    name = "class_labels" if "class_labels" in targets[0] else "labels"
    for number, target in enumerate(targets):
        for key in ("boxes", name):
            if key not in target:
                raise ValueError(f'targets: expected "boxes" and "{name}" in each dict, dict {number} has no "{key}"')
    return _padded([target["boxes"] for target in targets], [target[name] for target in targets])


def _padded(boxes: Batch, labels: Batch) -> SetTargets:
    found = GroundTruth.from_boxes(boxes, labels)  # its tensors, whose numbers it does not look at
    held = found.boxes if found.boxes.is_floating_point() else found.boxes.to(torch.float32)
    return SetTargets(held.detach(), found.labels, found.sample_sizes)


def _check_values(targets: SetTargets, num_classes: int) -> None:
    boxes, labels = targets.boxes.tolist(), targets.labels.tolist()
    sizes = [len(row) for row in labels] if targets.sample_sizes is None else targets.sample_sizes.tolist()
    for b, size in enumerate(sizes):
        for n in range(size):
            if labels[b][n] >= num_classes:
                raise ValueError(
                    f"labels: box {n} of sample {b} has {labels[b][n]}, expected a value in 0 .. {num_classes - 1}"
                )
            box = torch.tensor(boxes[b][n])
            if labels[b][n] >= 0 and not (bool(box.isfinite().all()) and bool((box[2:] >= 0).all())):
                raise ValueError(
                    f"boxes: box {n} of sample {b} is {boxes[b][n]}, expected finite cxcywh of no size < 0"
                )
