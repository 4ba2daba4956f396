"""How low-resolution maps of a whole image become its pixels: the choices that mask heads of this kind differ in."""

import math
import operator
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from detops import ops
from detops.geometry.resizing import bilinear_positions, nearest_positions

Interpolation = Literal["bilinear", "nearest"]
Content = tuple[float, float, float, float]
Size = tuple[int, int]


class Placed(NamedTuple):
    """Maps, and where the pixels of an image fall on them: the arguments of the op `maps_to_rle`."""

    maps: Tensor
    y: Tensor
    x: Tensor
    via_y: Tensor | None
    via_x: Tensor | None


@dataclass(frozen=True, eq=False)
class Resize:
    """The resize of maps (N, h, w) to an image, whose pixels are true above a threshold.

    Args:
        threshold: Value that a pixel is above; of any sign.
        content: (x1, y1, x2, y2): the part of the map, in its cells, that the image covers; None for all of it. With
            `via`, in pixels of that size.
        via: Height and width of a first resize, whose result the second takes; None for a single resize.
        interpolation: That of the last resize: "bilinear"; or "nearest", after the cut.
        windows: (N, 4) xyxy integers: pixels of the image beyond are false; None for no such windows.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of range, or the interpolation is unknown.
    """

    threshold: float = 0.0
    _: KW_ONLY
    content: Content | None = None
    via: Size | None = None
    interpolation: Interpolation = "bilinear"
    windows: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", finite("threshold", self.threshold))
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(f'interpolation: expected "bilinear" or "nearest", got {self.interpolation!r}')
        if self.via is not None:
            object.__setattr__(self, "via", _size("via", self.via))
        if self.content is not None:
            object.__setattr__(self, "content", self._numbers(self.content))

    def _numbers(self, content: Any) -> Content:
        message = f"content: expected (x1, y1, x2, y2) with 0 <= x1 < x2 and 0 <= y1 < y2, got {content!r}"
        try:
            x1, y1, x2, y2 = (float(value) for value in content)
        except (TypeError, ValueError) as error:
            raise type(error)(message) from None
        if not (0 <= x1 < x2 < math.inf and 0 <= y1 < y2 < math.inf):
            raise ValueError(message)
        if self.interpolation == "nearest" and any(value != round(value) for value in (x1, y1, x2, y2)):
            raise ValueError(f"content: expected whole numbers for interpolation nearest, got {content!r}")
        return x1, y1, x2, y2

    def select(self, index: slice | Tensor) -> "Resize":
        """Keep the windows of some instances."""
        return self if self.windows is None else replace(self, windows=self.windows[index])

    def to(self, device: torch.device | str) -> "Resize":
        """Copy the windows to another device."""
        return self if self.windows is None else replace(self, windows=self.windows.to(device))

    def check(self, mask_size: Size) -> None:
        """Check that the content lies within the map, or within the size of the first resize.

        Raises:
            ValueError: It does not.
        """
        height, width = self.via or mask_size
        if self.content is not None and (self.content[2] > width or self.content[3] > height):
            raise ValueError(f"content: expected a part of {width} x {height} (width x height), got {self.content}")

    def place(self, maps: Tensor, image_size: Size) -> Placed:
        """Find where the pixels of an image fall on maps (N, h, w)."""
        device, cells = maps.device, (maps.shape[1], maps.shape[2])
        x1, y1, x2, y2 = self.content or (0, 0, *(self.via or cells)[::-1])
        rows, columns = slice(math.floor(y1), math.ceil(y2)), slice(math.floor(x1), math.ceil(x2))
        if self.interpolation == "nearest":
            y = nearest_positions(int(y1), int(y2), image_size[0], device)
            x = nearest_positions(int(x1), int(x2), image_size[1], device)
        else:
            y = bilinear_positions(y1, y2, image_size[0], device)
            x = bilinear_positions(x1, x2, image_size[1], device)
        if self.via is None:
            return Placed(maps[:, rows, columns], y, x, None, None)
        via_y = bilinear_positions(0, cells[0], self.via[0], device)[rows]
        via_x = bilinear_positions(0, cells[1], self.via[1], device)[columns]
        return Placed(maps, y, x, via_y, via_x)

    def run_lengths(self, maps: Tensor, image_size: Size, threshold: float, compress: bool) -> tuple[Tensor, Tensor]:
        """Encode maps (N, h, w) as run lengths; returns these, and where those of each mask begin."""
        placed = self.place(maps, image_size)
        return ops.maps_to_rle(
            maps=placed.maps, y=placed.y, x=placed.x, via_y=placed.via_y, via_x=placed.via_x, windows=self.windows,
            threshold=threshold, compress=compress,
        )  # fmt: skip


def finite(name: str, value: Any) -> float:
    """Return an argument as a number that is finite in float32.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not finite.
    """
    message = f"{name}: expected a finite number, got {value!r}"
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise type(error)(message) from None
    if not abs(number) <= torch.finfo(torch.float32).max:
        raise ValueError(message)
    return number


def _size(name: str, value: Any) -> Size:
    message = f"{name}: expected a height and a width of at least 1, got {value!r}"
    try:
        height, width = map(operator.index, value)
    except (TypeError, ValueError) as error:
        raise type(error)(message) from None
    if min(height, width) < 1 or max(height, width) >= 2**24:
        raise ValueError(message)
    return height, width
