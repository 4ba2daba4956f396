"""Boxes and their names on a picture: the primitives of every picture of detections or annotations. Needs Pillow."""

import colorsys
from collections.abc import Callable, Sequence
from typing import Any

from detops.arguments import require_module

INK = (28, 30, 34)
PAPER = (255, 255, 255)
FAINT = 130  # opacity of outlines that are not to hide what lies below
CASING = 110  # opacity of the dark line on either side of an outline, by which it is seen on white
LIGHTNESS, SATURATION = (
    (0.62, 0.5, 0.76),
    (0.9, 0.55),
)  # of the best of some thousand, by distances of 80 colours in Lab


def class_color(label: int) -> tuple[int, int, int]:
    """Return a bright colour for a class; those of neighbouring labels lie far apart, and 80 of them all differ."""
    hue = (0.36 + label * 0.61803398875) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, LIGHTNESS[label % 3], SATURATION[label % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def one_line(text: str) -> str:
    """Return a text as Pillow can measure and write it: without line breaks and bytes that are not UTF-8."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def ink_on(color: Sequence[int]) -> tuple[int, int, int]:
    """Return the colour of letters on a plate: dark, or white on a dark colour."""
    red, green, blue = color
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else PAPER


class Plates:
    """Places for names on a picture, none over another.

    Args:
        size: Width and height of the picture.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._width, self._height = size
        self._taken: list[tuple[float, float, float, float]] = []

    def place(
        self, box: Sequence[float], width: float, height: float, *, inside: bool = False
    ) -> tuple[float, float] | None:
        """Find the corner of a plate of some size at a box: above it, below it or in it; None if there is no room.

        A plate is moved to the left where the image ends.

        Args:
            box: The box.
            width: Width of the plate.
            height: Height of the plate.
            inside: Look for a place at the corners within the box alone.
        """
        left, top, right, bottom = box
        left, right, top = max(0.0, left), min(right, self._width), max(0.0, top)
        places = [(left, top - height), (left, top), (left, bottom), (right - width, top - height)]
        if inside:
            bottom = min(bottom, self._height)
            if right - left < width or bottom - top < height:
                return None
            places = [(x, y) for y in (top, bottom - height) for x in (left, right - width)]
        for x, y in places:
            x = max(0.0, min(x, self._width - width))
            plate = (x, y, x + width, y + height)
            if 0 <= y <= self._height - height and not any(map(plate_over(plate), self._taken)):
                self._taken.append(plate)
                return x, y
        return None


def plate_over(plate: Sequence[float]) -> Callable[[Sequence[float]], bool]:
    """Return the test whether another plate overlaps this one."""
    return lambda other: plate[0] < other[2] and other[0] < plate[2] and plate[1] < other[3] and other[1] < plate[3]


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
        self._plates = Plates(picture.size)
        self._line = max(1, round(side / 300))
        self._font = font_module.load_default(size=max(11, round(side / 38)))
        self._small = font_module.load_default(size=max(10, round(side / 45)))

    def outline(self, box: Sequence[float], number: int, *, faint: bool = False, inside: bool = False) -> None:
        """Draw a box's outline.

        Args:
            box: The box.
            number: Its class, or another number that gives the colour.
            faint: Draw it one pixel wide and half transparent.
            inside: Draw nothing outside of the box: the dark casing has a line within it alone.
        """
        left, top, right, bottom = self._cut(box)
        color = (*class_color(number), FAINT if faint else 235)
        ends = (left, top, max(left, right - 1), max(top, bottom - 1))
        width = 1 if faint else self._line
        if not inside:
            around = (ends[0] - 1, ends[1] - 1, ends[2] + 1, ends[3] + 1)
            self._draw.rectangle(around, outline=(0, 0, 0, CASING), width=1)
        within = (ends[0] + width, ends[1] + width, ends[2] - width, ends[3] - width)
        if within[2] > within[0] and within[3] > within[1]:
            self._draw.rectangle(within, outline=(0, 0, 0, CASING), width=1)
        self._draw.rectangle(ends, outline=color, width=width)

    def name(self, text: str, box: Sequence[float], number: int, *, inside: bool = False) -> None:
        """Write a name on a small plate at a box's upper left corner.

        Args:
            text: The name; an empty one is not written.
            box: The box.
            number: Its class, or another number that gives the colour of the plate.
            inside: Put the plate into the box, in smaller letters. Otherwise it is above the box, in it or below it,
                and moved to the left where the image ends. It is where no name is yet, and left out where
                there is no room.
        """
        font, text = self._small if inside else self._font, one_line(text)
        if not text:
            return
        left, top, right, bottom = self._cut(box)
        left, top = max(0.0, left), max(0.0, top)
        width, height = self._draw.textlength(text, font) + 6, font.size + 4
        corner = self._plates.place((left, top, right, bottom), width, height, inside=inside)
        if corner is None:
            return
        left, top = corner
        color = class_color(number)
        self._draw.rectangle((left, top, left + width, top + height), fill=(*color, 215))
        self._draw.text((left + 3, top + 1), text, ink_on(color), font)

    def _cut(self, box: Sequence[float]) -> list[float]:
        """Cut a box to the image and a margin that hides the cut; Pillow takes no coordinates beyond 32 bits."""
        margin = self._line + 1.0
        end = max(self._width, self._height) + margin
        return [min(max(value, -margin), end) for value in box]
