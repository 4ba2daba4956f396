"""`GroundTruth`: boxes, labels, ignored regions, sizes and masks of a batch of images, padded, in one type."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.nn import functional as F

from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor
from detops.geometry.boxes import to_cxcywh
from detops.ground_truth.sources import GroundTruthSources
from detops.ragged.padded import exists

ALIGNMENT = 16  # bytes: a tensor of any dtype may begin at a multiple of it


@dataclass(frozen=True, eq=False, repr=False)
class GroundTruth(GroundTruthSources):
    """The ground truth of a batch of images, padded to the image with the most boxes.

    Assigners and criteria take it as `targets`. The constructors are named for their source (`from_boxes`,
    `from_dicts`, `from_rows`, `from_transformers`, `from_coco`), and `detops.collate` makes it in a `DataLoader`; the
    class itself takes tensors that are padded already. Nothing in it is differentiated.

    A box is skipped, that is, takes no part in training, if its label is negative or no class, a coordinate is not
    finite, or x2 < x1 or y2 < y1. Under `detops.checked()` criteria raise an error that names the box instead,
    except for negative labels, which mean "ignore this box".

    Args:
        boxes: (B, N, 4) numbers, xyxy in pixels of the network's input.
        labels: (B, N) integers, 0 .. num_classes - 1.
        sample_sizes: (B,) integers, how many of the N boxes of each image are real; None for all.
        image_sizes: (B, 2) height and width of each image within the batch's padding; None if there is no padding.
        ignored: (B, M, 4) xyxy, regions that are neither object nor background, such as crowds; None for none.
        ignored_sizes: (B,) integers, how many of the M regions of each image are real; None for all.
        masks: (B, N, H, W), masks of the boxes; None for none.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: Shapes or devices do not match.

    Example:
        >>> boxes = [torch.tensor([[10.0, 20, 110, 180], [0, 0, 500, 40]]), torch.zeros(0, 4)]
        >>> targets = GroundTruth.from_boxes(boxes, [torch.tensor([3, 7]), torch.zeros(0, dtype=torch.int64)])
        >>> targets
        GroundTruth(2 images, padded to 2 boxes, on cpu)
        >>> targets.pad_to(64).boxes.shape, targets.exists().sum(1)
        (torch.Size([2, 64, 4]), tensor([2, 0]))
    """

    boxes: Tensor
    labels: Tensor
    sample_sizes: Tensor | None = None
    image_sizes: Tensor | None = None
    ignored: Tensor | None = None
    ignored_sizes: Tensor | None = None
    masks: Tensor | None = None
    # Boxes as they were given, so that no bit is lost on the way through xyxy; `dataclasses.replace` leaves it out.
    _cxcywh: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        boxes = require_tensor("boxes", self.boxes, FLOATS + INTEGERS, "numbers")
        if boxes.dim() != 3 or boxes.shape[2] != 4:
            raise ValueError(f"boxes: expected shape (B, N, 4), got {tuple(boxes.shape)}")
        require_tensor("labels", self.labels, INTEGERS, "integers")
        require_shape("labels", self.labels, tuple(boxes.shape[:2]), "to match boxes")
        batch = len(boxes)
        if self.ignored is not None:
            require_tensor("ignored", self.ignored, FLOATS + INTEGERS, "numbers")
            _require_rows("ignored", self.ignored, (batch, "M", 4))
        if self.masks is not None:
            require_tensor("masks", self.masks, (*FLOATS, *INTEGERS, torch.bool), "numbers or bools")
            _require_rows("masks", self.masks, (*boxes.shape[:2], "H", "W"))
        for name, value, dtypes, shape in (
            ("sample_sizes", self.sample_sizes, INTEGERS, (batch,)),
            ("image_sizes", self.image_sizes, FLOATS + INTEGERS, (batch, 2)),
            ("ignored_sizes", self.ignored_sizes, INTEGERS, (batch,)),
        ):
            if value is not None:
                require_tensor(name, value, dtypes, "integers" if dtypes is INTEGERS else "numbers")
                require_shape(name, value, shape, "to match boxes")
        for name, tensor in self._tensors().items():
            require_device(name, tensor, boxes, "boxes")

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        extras = [name for name in ("image_sizes", "ignored", "masks") if getattr(self, name) is not None]
        also = f", with {', '.join(extras)}" if extras else ""
        return f"GroundTruth({len(self)} images, padded to {self.boxes.shape[1]} boxes, on {self.device}{also})"

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.boxes.device

    def exists(self) -> Tensor:
        """Return (B, N) bool, which boxes are real, not padding."""
        if self.sample_sizes is None:
            return torch.ones_like(self.labels, dtype=torch.bool)
        return exists(self.sample_sizes, self.boxes.shape[1])

    def ignored_exists(self) -> Tensor:
        """Return (B, M) bool, which ignored regions are real; M is 0 without ignored regions."""
        if self.ignored is None:
            return self.labels.new_zeros(len(self), 0, dtype=torch.bool)
        if self.ignored_sizes is None:
            return torch.ones(self.ignored.shape[:2], dtype=torch.bool, device=self.device)
        return exists(self.ignored_sizes, self.ignored.shape[1])

    def cxcywh(self) -> Tensor:
        """Return (B, N, 4) centres and sizes of the boxes, floating point."""
        if self._cxcywh is not None:
            return self._cxcywh
        return to_cxcywh(self.boxes if self.boxes.is_floating_point() else self.boxes.to(torch.float32))

    def _given_boxes(self) -> tuple[Tensor, bool]:
        """Return the boxes as they came, (B, N, 4) float32, without gradient; and whether as centre and size."""
        boxes = self.boxes if self._cxcywh is None else self._cxcywh
        return boxes.detach().to(torch.float32), self._cxcywh is not None

    def pad_to(self, count: int | None, ignored: int | None = None) -> Self:
        """Pad every image to a fixed number of boxes, so that all batches have one shape and compile once.

        Args:
            count: Boxes per image; None leaves them as they are.
            ignored: Ignored regions per image; None leaves them as they are, which is one shape if no batch has any.

        Returns:
            The same ground truth with this padding, which may be less than before.

        Raises:
            ValueError: An image has more boxes or regions, or may have more, because the sizes lie on a device.
        """
        made = self
        if count is not None:
            made = self._padded("sample_sizes", ("boxes", "labels", "masks", "_cxcywh"), count, "pad_to")
        if ignored is None:
            return made
        if made.ignored is None:
            made = made._replaced({"ignored": made.boxes.new_zeros(len(made), 0, 4)})
        return made._padded("ignored_sizes", ("ignored",), ignored, "pad_ignored_to")

    def _padded(self, sizes_name: str, names: tuple[str, ...], count: int, what: str) -> Self:
        held = getattr(self, names[0]).shape[1]
        sizes = getattr(self, sizes_name)
        if count < held:
            largest = held if sizes is None or sizes.device.type != "cpu" else int(sizes.amax()) if len(sizes) else 0
            if largest > count:
                raise ValueError(f"{what}: expected at least {largest}, as an image may have so many, got {count}")
        new: dict[str, Any] = {}
        for name in names:
            value = getattr(self, name)
            if value is not None:
                fill = -1 if name == "labels" else 0
                room = (0, 0) * (value.dim() - 2) + (0, count - held)
                new[name] = F.pad(value, room, value=fill) if count >= held else value[:, :count]
        if sizes is None:
            new[sizes_name] = torch.full((len(self),), min(held, count), device=self.device)
        return self._replaced(new)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Copy to a device, in one piece.

        Args:
            device: The device to copy to.
            non_blocking: Do not wait for the copy; effective after `pin_memory()`.
        """
        target = torch.empty(0, device=device).device  # with the index of the current device if none is given
        if target == self.device:
            return self
        if self.device.type != "cpu":
            return self._map(lambda tensor: tensor.to(target, non_blocking=non_blocking))
        buffer, pieces = self._packed(None)
        return self._unpacked(buffer.to(target, non_blocking=non_blocking), pieces)

    def pin_memory(self) -> Self:
        """Copy to page-locked memory, in one piece, as `DataLoader(pin_memory=True)` does."""
        buffer, pieces = self._packed(Tensor.pin_memory)
        return self._unpacked(buffer, pieces)

    def is_pinned(self) -> bool:
        """Return whether the tensors lie in page-locked memory."""
        return all(tensor.is_pinned() for tensor in self._tensors().values())

    def to_list(self) -> list[dict[str, Tensor]]:
        """Return torchvision's targets: a dict of "boxes" and "labels" (and "masks") per image, without padding.

        Ignored regions are left out. Reads the sample sizes, so it waits for the device.
        """
        sizes = [self.boxes.shape[1]] * len(self) if self.sample_sizes is None else self.sample_sizes.tolist()
        names = ("boxes", "labels") if self.masks is None else ("boxes", "labels", "masks")
        return [{name: getattr(self, name)[b, :size] for name in names} for b, size in enumerate(sizes)]

    def _tensors(self) -> dict[str, Tensor]:
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return self._replaced({name: change(tensor) for name, tensor in self._tensors().items()})

    def _replaced(self, new: dict[str, Tensor]) -> Self:
        """Return the same with other tensors; unlike `dataclasses.replace`, it keeps `_cxcywh`."""
        made = replace(self, **{name: tensor for name, tensor in new.items() if name != "_cxcywh"})
        object.__setattr__(made, "_cxcywh", new.get("_cxcywh", self._cxcywh))
        return made

    def _packed(self, place: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, dict[str, tuple[int, Tensor]]]:
        """Return all tensors in one buffer of bytes, and where each begins; no copy if they lie in one already."""
        pieces, total = {}, 0
        for name, tensor in self._tensors().items():
            pieces[name] = (total, tensor)
            total += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        first = self.boxes.untyped_storage()
        together = all(
            tensor.is_contiguous()
            and tensor.untyped_storage().data_ptr() == first.data_ptr()
            and tensor.storage_offset() * tensor.element_size() == start
            for start, tensor in pieces.values()
        )
        if together and first.nbytes() == total and total:
            buffer = torch.empty(0, dtype=torch.uint8, device=self.device).set_(first)
            return (buffer if place is None or buffer.is_pinned() else place(buffer)), pieces
        buffer = torch.empty(total, dtype=torch.uint8)
        buffer = buffer if place is None else place(buffer)
        for start, tensor in pieces.values():
            _piece(buffer, start, tensor).copy_(tensor)
        return buffer, pieces

    def _unpacked(self, buffer: Tensor, pieces: dict[str, tuple[int, Tensor]]) -> Self:
        return self._replaced({name: _piece(buffer, start, like) for name, (start, like) in pieces.items()})


def _require_rows(name: str, value: Tensor, shape: tuple[int | str, ...]) -> None:
    """Check a shape; dimensions that are given by a name may have any size."""
    if value.dim() != len(shape) or any(
        isinstance(side, int) and side != got for side, got in zip(shape, value.shape, strict=True)
    ):
        expected = ", ".join(str(side) for side in shape)
        raise ValueError(f"{name}: expected shape ({expected}) to match boxes, got {tuple(value.shape)}")


def _piece(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """Return part of a buffer of bytes as a tensor of the dtype and shape of `like`."""
    size = like.numel() * like.element_size()
    return buffer[start : start + size].view(like.dtype).view(like.shape)


def _flatten(value: GroundTruth) -> tuple[list[Any], tuple[str, ...]]:
    given = value._tensors()
    return list(given.values()), tuple(given)


def _unflatten(values: Any, names: tuple[str, ...]) -> GroundTruth:
    made = object.__new__(GroundTruth)  # unchecked, as tracers put other things than tensors in
    held = dict(zip(names, values, strict=True))
    for one in fields(GroundTruth):
        object.__setattr__(made, one.name, held.get(one.name))
    return made


pytree.register_pytree_node(GroundTruth, _flatten, _unflatten, serialized_type_name="detops.GroundTruth")
