"""Boxes and their names on a picture: the primitives of every picture of detections or annotations. Needs Pillow."""

import colorsys
from collections.abc import Sequence
from typing import Any

from detops.arguments import require_module

INK = (28, 30, 34)
FAINT = 130  # opacity of outlines that are not to hide what lies below


def class_color(label: int) -> tuple[int, int, int]:
    """Return a bright colour for a class; those of neighbouring labels lie far apart on the colour circle."""
    hue = (0.36 + label * 0.61803398875) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, 0.66, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def one_line(text: str) -> str:
    """Return a text as Pillow can measure and write it: without line breaks and bytes that are not UTF-8."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


class Pen:
    """Draws boxes and their names on an RGB image of Pillow, in place; lines and letters grow with the image.

    Boxes are (x1, y1, x2, y2) in pixels, and may lie partly outside the image.

    Args:
        picture: The image to draw on.

    Raises:
        ModuleNotFoundError: Pillow is not installed.
    """

    def __init__(self, picture: Any) -> None:
        draw_module = require_module("PIL.ImageDraw", "Pillow", "drawing boxes", "detops[train]")
        font_module = require_module("PIL.ImageFont", "Pillow", "drawing boxes", "detops[train]")
        self._draw = draw_module.Draw(picture, "RGBA")
        self._width, self._height = picture.size
        side = min(picture.size)
        self._line = max(1, round(side / 300))
        self._font = font_module.load_default(size=max(11, round(side / 38)))
        self._small = font_module.load_default(size=max(10, round(side / 45)))

    def outline(self, box: Sequence[float], label: int, *, faint: bool = False) -> None:
        """Draw a box's outline, in the colour of its class.

        Args:
            box: The box.
            label: Its class.
            faint: Draw it one pixel wide and half transparent.
        """
        left, top, right, bottom = self._cut(box)
        color = (*class_color(label), FAINT if faint else 235)
        ends = (left, top, max(left, right - 1), max(top, bottom - 1))
        self._draw.rectangle(ends, outline=color, width=1 if faint else self._line)

    def name(self, text: str, box: Sequence[float], label: int, *, inside: bool = False) -> None:
        """Write a name on a small plate at a box's upper left corner.

        Args:
            text: The name.
            box: The box.
            label: Its class, whose colour the plate has.
            inside: Put the plate into the box, in smaller letters, and leave it out where the box has no room for it.
                Otherwise it is above the box, or in it where there is no room above, and moved to the left where the
                image ends.
        """
        font, text = self._small if inside else self._font, one_line(text)
        left, top, right, bottom = self._cut(box)
        left, top = max(0.0, left), max(0.0, top)
        width, height = self._draw.textlength(text, font) + 6, font.size + 4
        if inside:
            if left + width > min(right, self._width) or top + height > min(bottom, self._height):
                return
        else:
            left = min(left, max(0.0, self._width - width))
            top = top - height if top >= height else top
        self._draw.rectangle((left, top, left + width, top + height), fill=(*class_color(label), 215))
        self._draw.text((left + 3, top + 1), text, INK, font)

    def _cut(self, box: Sequence[float]) -> list[float]:
        """Cut a box to the image and a margin that hides the cut; Pillow takes no coordinates beyond 32 bits."""
        margin = self._line + 1.0
        end = max(self._width, self._height) + margin
        return [min(max(value, -margin), end) for value in box]
