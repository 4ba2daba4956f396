"""Pictures of detections beside the truth: what is true, false and missed is told by its style, not by colour alone."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from detops.apps import require
from detops.apps.data.images import decode
from detops.apps.data.matching import Kind
from detops.apps.report.evidence import Evidence
from detops.inference.drawing import INK, Plates, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

BLANK = (52, 56, 64)
SIDE = 720  # pixels of a picture's width, at which it is drawn and shown
TALL = 900  # greatest height
NAMES = 30  # names in a picture; more would hide it
TRUE, FALSE, MISSED = (64, 156, 255), (255, 118, 20), (255, 221, 51)
CASING = (16, 18, 22, 170)  # below each line, so that it is seen on white too
STYLES: dict[str, tuple[tuple[int, int, int], int, int]] = {  # colour, width, length of dashes: 0 is one line
    "true": (TRUE, 2, 0),
    "false": (FALSE, 4, 0),
    "missed": (MISSED, 3, 9),
}
LEGEND = (
    ("true", "true: an object of its class, IoU at least 0.5"),
    ("false", "false: nothing there, a wrong class, badly placed or found twice"),
    ("missed", "missed: an object that no detection found"),
)
ERRORS = {  # behind the name and the score
    Kind.WRONG_CLASS: "wrong class",
    Kind.BADLY_PLACED: "badly placed",
    Kind.TWICE: "twice",
}


class Sketch:
    """Draws boxes of a style, and notes, on a picture of the size at which it is shown.

    Args:
        image: The image.
    """

    def __init__(self, image: "Image") -> None:
        scale = min(SIDE / image.width, TALL / image.height)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        self.view = image.resize(size, require("PIL.Image", "Pillow").Resampling.LANCZOS)
        self._scale = [size[0] / image.width, size[1] / image.height] * 2
        self._draw = require("PIL.ImageDraw", "Pillow").Draw(self.view, "RGBA")
        self._font = require("PIL.ImageFont", "Pillow").load_default(size=15)
        self._plates = Plates(size)

    def box(self, xyxy: Sequence[float], style: str) -> None:
        """Draw a box, in pixels of the image."""
        color, width, dash = STYLES[style]
        left, top, right, bottom = (value * scale for value, scale in zip(xyxy, self._scale, strict=True))
        ends = (left, top, max(left, right - 1), max(top, bottom - 1))
        self._draw.rectangle(ends, outline=CASING, width=width + 2)
        if not dash:
            inner = (ends[0] + 1, ends[1] + 1, max(ends[0] + 1, ends[2] - 1), max(ends[1] + 1, ends[3] - 1))
            self._draw.rectangle(inner, outline=color, width=width)
            return
        for start, end, fixed in ((left, right, top), (left, right, bottom - width)):
            for x in range(int(start), max(int(end), int(start) + 1), 2 * dash):
                self._draw.rectangle((x, fixed, min(x + dash, end), fixed + width - 1), fill=color)
        for start, end, fixed in ((top, bottom, left), (top, bottom, right - width)):
            for y in range(int(start), max(int(end), int(start) + 1), 2 * dash):
                self._draw.rectangle((fixed, y, fixed + width - 1, min(y + dash, end)), fill=color)

    def note(self, text: str, xyxy: Sequence[float], style: str) -> None:
        """Write at a box what it is, where no other note is."""
        text = one_line(text)
        left, top, right, bottom = (value * scale for value, scale in zip(xyxy, self._scale, strict=True))
        width, height = self._draw.textlength(text, self._font) + 8, 19
        corner = self._plates.place((left, top, right, bottom), width, height)
        if corner is None:
            return
        x, y = corner
        self._draw.rectangle((x, y, x + width, y + height), fill=(*STYLES[style][0], 235))
        self._draw.text((x + 4, y + 1), text, INK, self._font)


def pair(evidence: Evidence, row: int) -> tuple["Image", "Image", str]:
    """Draw the detections on an image, and its annotations.

    Args:
        evidence: The detections.
        row: Position of the image.

    Returns:
        Both pictures, and a caption of text.
    """
    record, table, names = (
        evidence.annotations.images[row],
        evidence.annotations.table,
        evidence.annotations.class_names,
    )
    try:
        image, state = decode(evidence.folder / record.file_name, record.size), ""
    except (ValueError, OSError):
        image, state = require("PIL.Image", "Pillow").new("RGB", record.size, BLANK), ", which cannot be decoded"
    left, right = Sketch(image), Sketch(image)
    kind, _ = evidence.kinds
    mine = (evidence.results.image == row) & (kind < Kind.IGNORED)
    found = mine.nonzero()[0]
    found = found[evidence.results.score[found].argsort(kind="stable")].tolist()  # the best on top
    objects = ((table.image == row) & ~table.crowd).nonzero()[0].tolist()
    missed = [one for one in objects if evidence.missed[one]]
    single = len(names) == 1

    def corners(detection: int) -> list[float]:
        x, y, width, height = evidence.results.xywh[detection].tolist()
        return [x, y, x + width, y + height]

    for one in objects:
        style = "missed" if evidence.missed[one] else "true"
        right.box(table.xyxy[one].tolist(), style)
    for one in missed:
        left.box(table.xyxy[one].tolist(), "missed")
    for one in sorted(found, key=lambda one: kind[one] != Kind.TRUE):
        left.box(corners(one), "true" if kind[one] == Kind.TRUE else "false")
    false = [one for one in found if kind[one] != Kind.TRUE]
    for one in false[::-1][:NAMES]:
        parts = [names[evidence.results.label[one]]] * (not single) + [f"{evidence.results.score[one]:.2f}"]
        left.note(" ".join([*parts, *filter(None, [ERRORS.get(Kind(kind[one]))])]), corners(one), "false")
    for one in (objects if len(objects) <= NAMES else missed)[: 0 if single else NAMES]:
        style = "missed" if evidence.missed[one] else "true"
        right.note(names[table.label[one]], table.xyxy[one].tolist(), style)
    return left.view, right.view, f"{record.file_name}{state}: {_counted(kind[found].tolist(), len(missed))}"


def _counted(kinds: list[int], missed: int) -> str:
    """Say how many detections are what, and how many objects are missed."""
    words = {
        Kind.TRUE: "true", Kind.FALSE: "false", Kind.WRONG_CLASS: "of the wrong class",
        Kind.BADLY_PLACED: "badly placed", Kind.TWICE: "found twice",
    }  # fmt: skip
    counts = [(kinds.count(kind), word) for kind, word in words.items()]
    return ", ".join(f"{count} {word}" for count, word in [*counts, (missed, "missed")] if count or word == "true")


def inline(image: "Image", side: int = SIDE) -> str:
    """Encode a picture as a data URL."""
    small = image.copy()
    small.thumbnail((side, TALL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def zoomed(image: "Image", alt: str) -> str:
    """Show a picture that fills the window when it is clicked, without a script."""
    picture = f'<img src="{inline(image)}" alt="{alt}">'
    return f'<label class="zoom"><input type="checkbox" aria-label="enlarge">{picture}</label>'


def swatch(style: str) -> Any:
    """Draw the sample of a style for the legend."""
    color, width, dash = STYLES[style]
    kind = "dashed" if dash else "solid"
    return f'<i class="swatch" style="border:{width}px {kind} rgb{color}"></i>'
