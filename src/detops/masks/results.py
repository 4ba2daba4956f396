"""Results of instance masks for other libraries, from run lengths alone: COCO's rows, supervision's compact masks."""

import ctypes
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from detops.arguments import require_module


def strings(counts: Tensor, offsets: Tensor) -> list[bytes]:
    """Cut the joined strings of all masks apart, on the host."""
    counts, offsets = counts.cpu(), offsets.cpu()
    joined = ctypes.string_at(counts.data_ptr(), len(counts)) if len(counts) else b""
    return [joined[begin:end] for begin, end in pairwise(offsets.tolist())]


def coco_rows(
    image_id: int | str, categories: list[int], boxes: Tensor, scores: Tensor, rles: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Make rows of a COCO results file."""
    rows = zip(categories, boxes.tolist(), scores.tolist(), rles, strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": category,
            "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 5),
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        }
        for category, (x1, y1, x2, y2), score, rle in rows
    ]


def compact_masks(counts: Tensor, offsets: Tensor, extents: Tensor, image_size: tuple[int, int]) -> Any:
    """Make supervision's `CompactMask`: the run lengths of each mask within the box around it.

    Args:
        counts: (T,) int32 run lengths of all masks in the image.
        offsets: (N + 1,) int64, where those of each begin.
        extents: (N, 4) xyxy integers, the boxes around the masks.
        image_size: Height and width.

    Raises:
        ModuleNotFoundError: supervision is not installed, or is older than its `CompactMask`.
    """
    module = require_module("supervision.detection.compact_mask", "supervision", "CompactMask", "supervision>=0.28")
    numpy = require_module("numpy", "numpy", "CompactMask", "numpy")
    counts, offsets, extents = counts.cpu(), offsets.cpu(), extents.cpu()
    crops, shapes = [], []
    for (begin, end), box in zip(pairwise(offsets.tolist()), extents.tolist(), strict=True):
        x1, y1, x2, y2 = box if box[2] > box[0] else (0, 0, 1, 1)
        crops.append(_in_window(counts[begin:end], image_size[0], x1, y1, x2, y2).numpy())
        shapes.append((y2 - y1, x2 - x1))
    shape, corners = numpy.array(shapes, numpy.int32).reshape(-1, 2), extents[:, :2].to(torch.int32).numpy()
    return module.CompactMask(crops, shape, corners, image_size)


def _in_window(counts: Tensor, height: int, x1: int, y1: int, x2: int, y2: int) -> Tensor:
    """Count the runs of a mask (T,) int32 anew, down the columns of a window that holds all of it."""
    rows = y2 - y1
    changes = counts.cumsum(0, dtype=torch.int64)[: len(counts) - len(counts) % 2]  # where ones begin and end
    column, row = changes[0::2] // height, changes[0::2] % height
    starts = (column - x1) * rows + (row - y1)
    column, row = (changes[1::2] - 1) // height, (changes[1::2] - 1) % height
    ends = (column - x1) * rows + (row - y1) + 1
    apart = torch.ones(len(starts) + 1, dtype=torch.bool)
    apart[1:-1] = starts[1:] > ends[:-1]  # runs that the end of a column no longer separates are one
    edges = torch.stack([starts[apart[:-1]], ends[apart[1:]]], 1).flatten()
    total = rows * (x2 - x1)
    if not len(edges) or edges[-1] < total:
        edges = torch.cat([edges, edges.new_tensor([total])])
    return torch.diff(edges, prepend=edges.new_zeros(1)).to(torch.int32)
