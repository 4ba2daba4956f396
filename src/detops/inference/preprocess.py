"""Images of any kind and size to the batch that a network reads, in one pass, and boxes back to the images.

numpy arrays, tensors and Pillow images come in. The op `resize_normalize_pad` resizes, normalises and pads them on the
network's device, so that only their bytes are copied there.
"""

import math
import operator
import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, describe, require_device, require_no_capture, require_tensor, sent

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEEP_MODES = ("F", "I", "I;16", "I;16B", "I;16L", "I;16N")  # modes that Pillow would clip to 8 bits
Layout = Literal["HWC", "CHW"]


class PreprocessedImages(NamedTuple):
    """A batch for a network, and the sizes that map its boxes back. All tensors are on one device.

    Attributes:
        images: (B, 3, H, W), normalised, 0 to the right of each image and below it.
        image_sizes: (B, 2) int64, height and width of each resized image, without padding.
        scale_factors: (B, 4) float32, resized size over original size, along x, y, x, y.
        original_sizes: (B, 2) int64, height and width of each image as it was given.
    """

    images: Tensor
    image_sizes: Tensor
    scale_factors: Tensor
    original_sizes: Tensor

    @overload
    def to_original(self, boxes: Tensor, clip: bool = True) -> Tensor: ...
    @overload
    def to_original(self, boxes: Sequence[Tensor], clip: bool = True) -> list[Tensor]: ...
    def to_original(self, boxes: Tensor | Sequence[Tensor], clip: bool = True) -> Tensor | list[Tensor]:
        """Map boxes from the batch's pixels to those of the original images.

        Args:
            boxes: (B, N, 4) xyxy, or a list of B tensors (N, 4); floating point, on the batch's device.
            clip: Clip boxes to their image.

        Returns:
            A tensor or a list, like `boxes`; float32, or float64 for float64.

        Raises:
            TypeError: `boxes` are not floating-point tensors.
            ValueError: The number of images, a shape or a device does not match.

        Example:
            >>> image = torch.zeros(3, 100, 200, dtype=torch.uint8)
            >>> batch = preprocess([image], size=(50, 50), mean=(0, 0, 0), std=(1, 1, 1))
            >>> batch.to_original(torch.tensor([[[10.0, 5, 30, 60]]]))
            tensor([[[ 40.,  20., 120., 100.]]])
        """
        if not isinstance(boxes, Tensor | Sequence):
            raise TypeError(f"boxes: expected a tensor or a list of tensors, got {type(boxes).__name__}")
        if len(boxes) != len(self.images):
            raise ValueError(f"boxes: expected those of {len(self.images)} images, got {len(boxes)}")
        limits = self.original_sizes.flip(1).repeat(1, 2).to(self.scale_factors.dtype)  # (B, 4)
        if isinstance(boxes, Tensor):
            return _to_original(boxes, self.scale_factors[:, None], limits[:, None], clip)
        pairs = zip(self.scale_factors, limits, strict=True)
        return [_to_original(box, factor, limit, clip) for box, (factor, limit) in zip(boxes, pairs, strict=True)]


def _to_original(boxes: Tensor, factor: Tensor, limit: Tensor, clip: bool) -> Tensor:
    require_tensor("boxes", boxes, FLOATS, "floating-point tensors")
    if boxes.dim() != factor.dim() + (factor.dim() == 1) or boxes.shape[-1] != 4:
        raise ValueError(f"boxes: expected shape (B, N, 4), or a list of (N, 4), got {tuple(boxes.shape)}")
    require_device("boxes", boxes, factor, "the batch")
    original = boxes / factor
    return torch.minimum(original.clamp(min=0), limit) if clip else original


def preprocess(
    images: Sequence[Any],
    size: tuple[int, int] | None = None,
    scale: tuple[int, int] | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    to_rgb: bool = False,
    pad_divisor: int = 32,
    keep_ratio: bool = True,
    dtype: torch.dtype = torch.float32,
    antialias: bool = False,
    layout: Layout | None = None,
    device: torch.device | str | None = None,
) -> PreprocessedImages:
    """Resize images, normalise them, and pad them to one batch: MMDetection's Resize, Normalize and Pad in one pass.

    Bilinear with half-pixel centres, as OpenCV's INTER_LINEAR. Nothing is rounded before the cast to `dtype`, whereas
    OpenCV rounds to whole grey levels. With neither `size` nor `scale`, images keep their sizes.

    Args:
        images: A list of uint8 images of any sizes, colour or grey, each of which is
            a numpy array, (H, W, 3), (H, W, 1) or (H, W);
            a tensor, (3, H, W), (1, H, W) or (H, W), on any device; or
            a Pillow image, which is converted to RGB (transparency is dropped).
        size: Height and width. With `keep_ratio` images are scaled by min(height / h, width / w), so that they fit
            within it; without, each becomes exactly this.
        scale: Longest and shortest side, in any order, as MMDetection's (1333, 800): images are scaled by
            min(long / max(h, w), short / min(h, w)). A side becomes int(side * factor + 0.5), and at least 1.
        mean: Mean per channel, in the channel order of the result, on the scale 0 .. 255.
        std: Standard deviation per channel, in the same order and scale; the result is (value - mean) / std.
        to_rgb: Arrays and tensors are BGR, as OpenCV reads them, and become RGB. Pillow images are RGB either way.
        pad_divisor: The batch has the largest height and width among the images, rounded up to a multiple of this.
        keep_ratio: Keep the ratio of an image's sides when `size` is given.
        dtype: dtype of the result: float32, float16 or bfloat16. Computed in float32.
        antialias: Average over all pixels that a pixel of the result covers, as Pillow and torchvision do. OpenCV
            always reads four pixels, however small the result.
        layout: "HWC" or "CHW", for arrays and tensors alike; None takes arrays as HWC and tensors as CHW.
        device: Device of the result; None takes that of the tensors among the images, or the CPU. Images on the host
            are copied as bytes, in one copy from pinned memory, and the host does not wait.

    Returns:
        The batch, the sizes of the images within it and as given, and the scale factors between them.

    Raises:
        TypeError: `images` is not a list, or an image is of another kind or dtype.
        ValueError: An image has another shape or no pixels, or an option is invalid.
        OSError: A Pillow image's file is damaged.
        RuntimeError: A CUDA graph is captured: addresses and sizes of images come from the host.
        torch.OutOfMemoryError: The batch does not fit into memory; the message names the largest image.

    Example:
        >>> images = [torch.zeros(3, 480, 640, dtype=torch.uint8), torch.zeros(3, 500, 375, dtype=torch.uint8)]
        >>> batch = preprocess(images, scale=(1333, 800), mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
        >>> batch.images.shape, batch.image_sizes.tolist()
        (torch.Size([2, 3, 1088, 1088]), [[800, 1067], [1067, 800]])

    Reference:
        Sizes of MMDetection's Resize and Pad; weights of OpenCV's INTER_LINEAR, with `antialias` of Pillow's BILINEAR.
    """
    size, scale = _pair("size", size), _pair("scale", scale)
    _check_options(size, scale, keep_ratio, pad_divisor, dtype, layout)
    mean, std = _per_channel("mean", mean), _per_channel("std", std)
    if min(std) <= 0:
        raise ValueError(f"std: expected positive numbers, got {std!r}")
    if not isinstance(images, list | tuple):
        raise no_list_of_images(images)
    tensors = [as_tensor(image, b, to_rgb, layout) for b, image in enumerate(images)]
    target = _target(images, device)
    original = [(image.shape[1], image.shape[2]) for image in tensors]
    resized = [_resized(*sides, size, scale, keep_ratio) for sides in original]
    if torch.compiler.is_compiling():
        batch = to_batch(tensors, resized, mean, std, to_rgb, pad_divisor, dtype, antialias, target)
    else:
        try:
            batch = to_batch(tensors, resized, mean, std, to_rgb, pad_divisor, dtype, antialias, target)
        except (RuntimeError, MemoryError) as error:  # torch's of memory among them
            raise _with_largest(error, original, resized) from error
    factors = [(w / x, h / y) * 2 for (h, w), (y, x) in zip(resized, original, strict=True)]
    return PreprocessedImages(
        batch,
        _numbers(resized, 2, torch.int64, target),
        _numbers(factors, 4, torch.float32, target),
        _numbers(original, 2, torch.int64, target),
    )


def _with_largest(
    error: RuntimeError | MemoryError, original: Sequence[tuple[int, int]], resized: Sequence[tuple[int, int]]
) -> Exception:
    """Add to an error of memory which image is the largest; return any other as it is."""
    text = str(error)
    known = "allocate memory" in text or "aten::new_empty" in text  # the second from a C++ kernel, which has no more
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not known:
        return error
    b = max(range(len(resized)), key=lambda index: resized[index][0] * resized[index][1])
    (height, width), (new_height, new_width) = original[b], resized[b]
    largest = f"the largest is image {b}, of {width} x {height} pixels, resized to {new_width} x {new_height}"
    kind = MemoryError if isinstance(error, MemoryError) else torch.OutOfMemoryError
    return kind(f"images: {len(resized)} images do not fit into memory; {largest}: {text}")


def to_batch(
    images: list[Tensor],
    sizes: Sequence[tuple[int, int]],
    mean: list[float],
    std: list[float],
    to_rgb: bool,
    pad_divisor: int,
    dtype: torch.dtype,
    antialias: bool,
    device: torch.device,
) -> Tensor:
    """Make the batch of `preprocess` from images (C, H, W) and the height and width that each is resized to."""
    height, width = (-(-max([0, *(size[d] for size in sizes)]) // pad_divisor) * pad_divisor for d in (0, 1))
    if not images:
        return torch.empty((0, 3, height, width), dtype=dtype, device=device)
    flat = [side for size in sizes for side in size]
    return ops.resize_normalize_pad(
        images=_on_device(images, device),
        sizes=flat,
        height=height,
        width=width,
        mean=mean,
        std=std,
        reverse_channels=to_rgb,
        antialias=antialias,
        dtype=dtype,
    )


def _check_options(
    size: tuple[int, int] | None,
    scale: tuple[int, int] | None,
    keep_ratio: bool,
    pad_divisor: int,
    dtype: torch.dtype,
    layout: str | None,
) -> None:
    if size is not None and scale is not None:
        raise ValueError("size, scale: expected at most one of them, got both")
    if scale is not None and not keep_ratio:
        raise ValueError("scale: expected keep_ratio=True; for keep_ratio=False pass size=(height, width)")
    if not isinstance(pad_divisor, int) or pad_divisor < 1:
        raise ValueError(f"pad_divisor: expected an integer of at least 1, got {pad_divisor!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected float32, float16 or bfloat16, got {dtype}")
    if layout not in (None, "HWC", "CHW"):
        raise ValueError(f"layout: expected 'HWC', 'CHW' or None, got {layout!r}")


def _pair(name: str, sides: Any) -> tuple[int, int] | None:
    if sides is None:
        return None
    try:
        first, second = map(operator.index, sides)
    except (TypeError, ValueError):
        first = second = 0
    if min(first, second) < 1:
        raise ValueError(f"{name}: expected two integers of at least 1, got {sides!r}")
    return first, second


def _per_channel(name: str, values: Any) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name}: expected three finite numbers, got {values!r}")
    return numbers


def _resized(
    height: int, width: int, size: tuple[int, int] | None, scale: tuple[int, int] | None, keep_ratio: bool
) -> tuple[int, int]:
    """Return the height and width that an image is resized to."""
    if size is not None and not keep_ratio:
        return size[0], size[1]
    factor = 1.0
    if scale is not None:
        factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    elif size is not None:
        factor = min(size[0] / height, size[1] / width)
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def _is(image: object, module: str, name: str) -> bool:
    """Tell whether an image is of a package's class, without importing the package."""
    return module in sys.modules and isinstance(image, getattr(sys.modules[module], name))


def is_single_image(images: object) -> bool:
    """Tell whether something is one image rather than a sequence of images or a batch."""
    if isinstance(images, Tensor) or _is(images, "numpy", "ndarray"):
        return len(images.shape) <= 3  # type: ignore[attr-defined]
    return _is(images, "PIL.Image", "Image")


def no_list_of_images(images: object) -> TypeError:
    """Return the error to raise for anything but a list of images."""
    shape = f" {tuple(images.shape)}" if hasattr(images, "shape") else ""
    hint = "; for one image pass [image]" if is_single_image(images) else ""
    return TypeError(f"images: expected a list of images, got {type(images).__name__}{shape}{hint}")


def as_tensor(image: Any, b: int, to_rgb: bool, layout: Layout | None) -> Tensor:
    """Return an image as a uint8 tensor (C, H, W), without a copy where its memory can be shared.

    Args:
        image: A tensor, a numpy array or a Pillow image.
        b: Its position among the images, for error messages.
        to_rgb: Arrays and tensors are BGR; Pillow images are returned in the same order.
        layout: "HWC" or "CHW" for arrays and tensors alike; None takes arrays as HWC and tensors as CHW.

    Raises:
        TypeError: The image is of another kind or dtype.
        ValueError: It has another shape or no pixels.
        OSError: A Pillow image's file is damaged.
    """
    if isinstance(image, Tensor):
        tensor, layout = image.detach(), layout or "CHW"
    elif _is(image, "numpy", "ndarray"):
        if image.dtype.name != "uint8":
            raise TypeError(f"images: expected uint8, image {b} is {image.dtype.name} {image.shape}")
        if not image.flags.writeable or min(image.strides, default=0) < 0:  # no tensor can view such memory
            image = image.copy()
        tensor, layout = torch.from_numpy(image), layout or "HWC"
    elif _is(image, "PIL.Image", "Image"):
        tensor, layout = _from_pillow(image, b, to_rgb), "HWC"
    else:
        kinds = "a numpy array, a tensor or a Pillow image"
        raise TypeError(f"images: expected {kinds}, image {b} is {type(image).__name__}")
    if tensor.dtype != torch.uint8:
        raise TypeError(f"images: expected uint8, image {b} is {describe(tensor)}")
    shape = tuple(tensor.shape)
    if tensor.dim() == 2:
        tensor = tensor[None]
    elif tensor.dim() == 3 and layout == "HWC":
        tensor = tensor.permute(2, 0, 1)
    if tensor.dim() != 3 or tensor.shape[0] not in (1, 3):
        other = "CHW" if layout == "HWC" else "HWC"
        expected = f"{layout} with 1 or 3 channels, or (H, W)"
        raise ValueError(f"images: expected {expected}, image {b} has shape {shape}; for {other} pass layout='{other}'")
    if tensor.numel() == 0:
        raise ValueError(f"images: expected at least one pixel, image {b} has shape {shape}")
    return tensor


def _from_pillow(image: Any, b: int, to_rgb: bool) -> Tensor:
    """Return a Pillow image as a tensor (H, W, C): RGB, or BGR where `to_rgb` reverses all channels later."""
    if image.mode in DEEP_MODES:
        raise TypeError(f"images: expected 8 bits per channel, image {b} is a Pillow image of mode {image.mode}")
    try:
        image.load()  # opening a file reads only its head
    except OSError as error:
        raise OSError(f"images: image {b} cannot be read: {error}") from error
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    channels = len(image.getbands())
    if 0 in image.size:
        raise ValueError(f"images: expected at least one pixel, image {b} has shape {image.size[::-1]}")
    order = "L" if channels == 1 else "BGR" if to_rgb else "RGB"
    data = bytearray(image.tobytes("raw", order))  # a tensor over bytes would be a writable view of them
    return torch.frombuffer(data, dtype=torch.uint8).view(image.height, image.width, channels)


def _target(images: Sequence[Any], device: torch.device | str | None) -> torch.device:
    """Return the device of the result."""
    if device is not None:
        return torch.device(device)
    found = {image.device for image in images if isinstance(image, Tensor)}
    if len(found) > 1:
        names = " and ".join(sorted(map(str, found)))
        raise ValueError(f"images: expected tensors on one device, or device=..., got {names}")
    return next(iter(found), torch.device("cpu"))


def _on_device(images: list[Tensor], device: torch.device) -> list[Tensor]:
    """Move the images to a device; those on the host in one copy, their bytes in the order in which they are stored."""
    moved = [image if image.device.type == "cpu" else image.to(device) for image in images]
    rows = [b for b, image in enumerate(moved) if image.device.type == "cpu"]
    if device.type == "cpu" or not rows:
        return moved
    require_no_capture("images", device)
    packed, views = _packed([moved[b] for b in rows], pin=device.type == "cuda")
    arrived = packed.to(device, non_blocking=True)
    for b, view in zip(rows, views, strict=True):
        moved[b] = arrived.as_strided(view.shape, view.stride(), view.storage_offset())
    return moved


def _packed(images: list[Tensor], pin: bool) -> tuple[Tensor, list[Tensor]]:
    """Pack all images into one buffer, and return it with a view per image; interleaved channels stay interleaved."""
    buffer = torch.empty(sum(image.numel() for image in images), dtype=torch.uint8, pin_memory=pin)
    views, begin = [], 0
    for image in images:
        interleaved = image.stride(0) == 1
        order = (1, 2, 0) if interleaved else (0, 1, 2)
        part = buffer[begin : begin + image.numel()].view([image.shape[d] for d in order])
        view = part.permute(2, 0, 1) if interleaved else part
        view.copy_(image)
        views.append(view)
        begin += image.numel()
    return buffer, views


def _numbers(rows: Sequence[Sequence[float]], columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make a small table on a device, for which the host does not wait."""
    return sent("images", torch.tensor(rows, dtype=dtype).view(-1, columns), device)
