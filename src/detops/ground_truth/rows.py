"""YOLO's flat rows (image, class, cx, cy, w, h): labels of a column of numbers, and packing rows image by image."""

import torch
from torch import Tensor

from detops.diagnostics.checked import is_checked


def whole_labels(column: Tensor) -> Tensor:
    """Return labels (...) int64 from a column of numbers; -1 where a number is not whole."""
    if not column.is_floating_point():
        return column.to(torch.int64)
    whole = (column == column.floor()) & (column.abs() < 2**31)  # NaN equals nothing, infinity is not below
    return column.detach().where(whole, -1).to(torch.int64)


def packed(
    image: Tensor, cxcywh: Tensor, labels: Tensor, num_images: int, pad_to: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pack rows into boxes (B, pad_to, 4), labels (B, pad_to) and sizes (B,); rows of an image stay in order."""
    known = (image >= 0) & (image < num_images) & (image == image.floor())
    image = image.where(known, num_images).to(torch.int64)
    order = image.argsort(stable=True)
    image = image[order]
    starts = torch.searchsorted(image, torch.arange(num_images + 1, device=image.device))
    if is_checked() and num_images and int(starts.diff().amax()) > pad_to:
        raise ValueError(f"rows: expected at most pad_to = {pad_to} boxes per image, got {int(starts.diff().amax())}")
    rank = torch.arange(len(image), device=image.device) - starts[image]
    last = num_images * pad_to  # one more place, for rows of no image and rows beyond pad_to
    place = (image * pad_to + rank).where((image < num_images) & (rank < pad_to), last)
    boxes = cxcywh.new_zeros(last + 1, 4).scatter(0, place[:, None].expand(-1, 4), cxcywh[order])
    label = labels.new_full((last + 1,), -1).scatter(0, place, labels[order])
    sizes = starts.diff().clamp(max=pad_to)
    return boxes[:-1].view(num_images, pad_to, 4), label[:-1].view(num_images, pad_to), sizes


def check_rows(name: str, rows: Tensor, num_images: int) -> None:
    """Raise an error for the first row (image, class, box) that would be skipped for its values; waits for them.

    Args:
        name: Name of the caller's argument.
        rows: (T, 6).
        num_images: Number of images.

    Raises:
        ValueError: A row has another image, a class that is not a whole number, or an invalid box.
    """
    image, label, box = rows[:, 0], rows[:, 1], rows[:, 2:]
    for what, wrong, value, expected in (
        ("image ", ~((image >= 0) & (image < num_images) & (image == image.floor())), image, f"0 .. {num_images - 1}"),
        ("class ", ~(label.isfinite() & (label == label.floor())), label, "a whole number"),
        ("", ~box.isfinite().all(1), rows, "finite numbers"),
        ("", (box[:, 2:] < 0).any(1), rows, "a width and a height of at least 0"),
    ):
        found = wrong.nonzero()
        if len(found):
            t = int(found[0])
            numbers = [f"{number:g}" for number in value[t].reshape(-1).tolist()]
            shown = numbers[0] if what else f"[{', '.join(numbers)}]"
            raise ValueError(f"{name}: row {t} has {what}{shown}, expected {expected}")
