"""Image files as all commands read them: any format that Pillow opens, upright, 8 bits per channel, RGB.

Two rules, which docs/what_can_go_wrong.md states for users:

- **Upright.** EXIF's orientation is applied, as browsers, OpenCV and annotation tools do; except where an annotation
  file records the size that the image has without it, and not the size that it has with it.
- **Depth.** 16 and 32 bit integers are scaled by the smallest of 8, 12 and 16 bits that holds the image's largest
  value (65535, 4095 or 255 becomes 255); floats by 255 if all lie in 0 .. 1, and not at all if all lie in 0 .. 255. Any
  other image is stretched from its lowest to its highest value. NaN is black.
"""

import os
import stat
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detops.apps import require
from detops.apps.data.video import read_frame, video_of

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]  # (width, height)

ORIENTATION = 0x0112  # EXIF's tag
SEVERAL = "several images"
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of more than 8 bits per channel
# Formats that Pillow names but cannot decode by itself: stubs, and those that need another program.
NOT_DECODED = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"))


class Facts(NamedTuple):
    """What an image file says of itself: size as it is read (upright), whether it was turned, its mode in Pillow."""

    size: Size
    turned: bool
    mode: str


@cache
def endings() -> frozenset[str]:
    """Return the endings of image files, in lower case: those of the formats that Pillow opens."""
    module = require("PIL.Image", "Pillow")
    known: dict[str, str] = module.registered_extensions()  # this loads Pillow's plugins
    return frozenset(e for e, name in known.items() if name in module.OPEN and name not in NOT_DECODED)


def is_image(name: str, hidden: bool = False) -> bool:
    """Tell whether a file is an image by the ending of its name; hidden files are none, unless they are to be."""
    return os.path.splitext(name)[1].lower() in endings() and (hidden or not name.startswith("."))


def facts(path: Path | str, recorded: Size | None = None) -> Facts:
    """Read the head of an image file.

    Args:
        path: The file.
        recorded: Size that an annotation file records.

    Raises:
        ValueError: It is no image; the message names the file.
    """
    with _Opened(path) as image:
        turn = _orientation(image, recorded)
        width, height = image.size
        return Facts((height, width) if turn in SIDEWAYS else (width, height), turn > 1, image.mode)


def decode(path: Path | str, recorded: Size | None = None) -> "Image":
    """Read an image as RGB, upright, 8 bits per channel.

    Args:
        path: The file.
        recorded: Size that an annotation file records.

    Returns:
        The image, the first one of the file; its `info` says under `SEVERAL` whether there are others.

    Raises:
        ValueError: It cannot be decoded; the message names the file.
    """
    with _Opened(path) as image:
        several = _has_several(image)
        found = plain(image, recorded)
        found.info[SEVERAL] = several
        return found


def plain(image: "Image", recorded: Size | None = None) -> "Image":
    """Make an open image RGB, upright, 8 bits per channel.

    Args:
        image: The image.
        recorded: Size that an annotation file records.
    """
    turn = _orientation(image, recorded)
    found = _eight_bits(image) if image.mode in DEEP else image.convert("RGB")
    if turn == 1:
        return found
    transpose = require("PIL.Image", "Pillow").Transpose
    turns = (
        transpose.FLIP_LEFT_RIGHT, transpose.ROTATE_180, transpose.FLIP_TOP_BOTTOM, transpose.TRANSPOSE,
        transpose.ROTATE_270, transpose.TRANSVERSE, transpose.ROTATE_90,
    )  # fmt: skip
    return found.transpose(turns[turn - 2])


class _Opened:
    """An open image; whatever Pillow and its plugins raise for a broken file becomes a ValueError that names it."""

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._module = require("PIL.Image", "Pillow")
        self._image: Any = None

    def __enter__(self) -> "Image":
        video = video_of(os.fspath(self._path))
        if video is not None:
            self._image = read_frame(*video)
            return self._image  # type: ignore[no-any-return]
        try:
            if not stat.S_ISREG(os.stat(self._path).st_mode):  # a pipe would be waited for, for ever
                raise OSError("is no regular file")
            self._image = self._module.open(self._path)
        except Exception as error:
            raise self._named(error) from error
        image: Image = self._image
        return image

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._image.close()
        if isinstance(error, Exception):
            raise self._named(error) from error

    def _named(self, error: Exception) -> ValueError:
        reason = str(error) or type(error).__name__
        if isinstance(error, MemoryError):
            reason = "it does not fit into memory"
        elif isinstance(error, self._module.UnidentifiedImageError):
            reason = "no image format that Pillow knows"
        return ValueError(f"{self._path}: cannot be decoded: {reason}")


def _has_several(image: "Image") -> bool:
    """Tell whether a file holds further pages or frames; the further pictures of phones are previews."""
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # damage behind an image that is fine
        return False


def _orientation(image: "Image", recorded: Size | None) -> int:
    """Return the EXIF orientation to apply: 1 .. 8; 1 changes nothing."""
    if image.format == "PNG" and not {"exif", "Raw profile type exif", "xmp"} & image.info.keys():
        return 1  # Pillow would decode all of the image to look for EXIF behind the pixels
    try:
        turn = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF of an image that is fine
        return 1
    if not isinstance(turn, int) or not 1 <= turn <= 8:
        return 1
    if turn in SIDEWAYS and recorded is not None and image.size == recorded != image.size[::-1]:
        return 1  # it was annotated as the file has it
    return turn


def _eight_bits(image: "Image") -> "Image":
    """Scale an image of one deep channel to 8 bits, by the rule above, and make it RGB."""
    numpy, module = require("numpy", "numpy"), require("PIL.Image", "Pillow")
    values = numpy.asarray(image).astype(numpy.float64)
    finite = numpy.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    tops = (1.0, 255.0) if image.mode == "F" else (255.0, 4095.0, 65535.0)
    top = next((top for top in tops if high <= top), None) if low >= 0 else None
    if top is None:
        values, top = values - low, (high - low) or 1.0
    values = numpy.where(finite, values, numpy.where(values == numpy.inf, top, 0.0))
    scaled = numpy.rint(values * (255.0 / top)).clip(0, 255).astype(numpy.uint8)
    found: Image = module.fromarray(scaled).convert("RGB")
    return found
