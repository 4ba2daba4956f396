"""Segmentations, judged before pycocotools sees them: it trusts lengths and types, and hangs or crashes on others.

polygons, run lengths (a list, or COCO's text) -> run lengths of exactly the image, as pycocotools packs them
"""

from collections.abc import Sequence
from typing import Any

from detops.apps import require
from detops.apps.data.ids import NUMBERS
from detops.apps.data.problems import shown

Rle = dict[str, Any]  # {"size": [height, width], "counts": bytes}

FAR = 10  # polygons may reach this many times the image's longer side beyond it


def judge_mask(segmentation: Any, height: int, width: int) -> Rle:
    """Return a mask as run lengths.

    Args:
        segmentation: What the file holds: a list of polygons, or an object with size and counts.
        height: Height of the image, in pixels.
        width: Width of the image.

    Raises:
        ValueError: It is no mask of such an image; the message says why, without a place.
    """
    tools = require("pycocotools.mask", "pycocotools", "evaluate")
    if isinstance(segmentation, list):
        rle: Rle = tools.merge(tools.frPyObjects(_polygons(segmentation, height, width), height, width))
        return rle
    if not isinstance(segmentation, dict):
        kind = "nothing" if segmentation is None else type(segmentation).__name__
        raise ValueError(f"expected polygons or run lengths, got {kind}")
    if segmentation.get("size") != [height, width]:
        raise ValueError(f"expected a mask of size {[height, width]}, got {shown(segmentation.get('size'), 40)}")
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        total = _total(counts)
    elif isinstance(counts, str):
        total = _text_total(counts)
    else:
        raise ValueError(f"expected run lengths as a list or as text, got {type(counts).__name__}")
    if total != height * width:
        raise ValueError(f"expected run lengths of {height * width} pixels in all, got {total}")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode("ascii")}
    packed: Rle = tools.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return packed


def areas(masks: Sequence[Rle]) -> list[float]:
    """Count the pixels of masks; few at a time, as pycocotools 2.0.11 fails on more than 255 under NumPy 2."""
    tools = require("pycocotools.mask", "pycocotools", "evaluate")
    return [float(area) for begin in range(0, len(masks), 200) for area in tools.area(list(masks[begin : begin + 200]))]


def _polygons(parts: list[Any], height: int, width: int) -> list[list[float]]:
    """Check polygons, and drop parts of fewer than three points, which have no area."""
    if not parts:
        raise ValueError("expected polygons, got an empty list")
    if NUMBERS.issuperset(map(type, parts)):
        raise ValueError("expected a list of polygons, got a flat list of numbers")
    limit = FAR * max(height, width)
    kept = []
    for part in parts:
        if not isinstance(part, list):
            raise ValueError(f"expected polygons as lists, got {type(part).__name__}")
        if not NUMBERS.issuperset(map(type, part)):
            raise ValueError("expected polygons as flat lists of numbers x, y, x, y, ...")
        if len(part) % 2:
            raise ValueError(f"expected pairs of numbers x, y in a polygon, got {len(part)} numbers")
        if not all(-limit <= value <= limit for value in part):  # NaN too
            raise ValueError("a polygon reaches far beyond the image, or is not finite")
        if len(part) >= 6:
            kept.append([float(value) for value in part])
    if not kept:
        raise ValueError("expected polygons of at least three points")
    return kept


def _total(counts: list[Any]) -> int:
    """Return the sum of run lengths in a list."""
    if not all(type(run) is int and run >= 0 for run in counts):
        raise ValueError("expected run lengths that are not negative integers")
    return sum(counts)


def _text_total(text: str) -> int:
    """Return the sum of run lengths in COCO's text.

    Each letter holds five bits, the lowest first, and whether another follows; the last one's highest bit is the sign.
    From the fourth on, a run is stored as its difference from the one before the last.
    """
    np = require("numpy", "numpy")
    bits = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    if not len(bits) or bits.min() < 0 or bits.max() > 63 or bits[-1] & 32:
        raise ValueError("expected run lengths in COCO's text, got other letters or a text that was cut")
    last = np.flatnonzero(~bits & 32)  # the last letter of each number
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > 7:  # of 35 bits; a run has 32
        raise ValueError("run lengths in COCO's text are too large")
    place = np.arange(len(bits)) - np.repeat(first, length)
    runs = np.add.reduceat((bits & 31) << (5 * place), first)
    runs -= np.where(bits[last] & 16, np.int64(1) << (5 * length), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0:
        raise ValueError("run lengths in COCO's text are negative")
    return int(runs.sum())
