"""`detops bench resize_normalize_pad`: uint8 images to a padded batch, against PyTorch and OpenCV."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detops import ops
from detops.apps.bench.runner import Case
from detops.inference.preprocess import preprocess

TESTS = ("tests/ops/test_resize_normalize_pad.py", "tests/library/test_preprocess.py")
SCALE, DIVISOR = (1333, 800), 32  # DIVISOR is the default of preprocess
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
CONFIGS: dict[str, tuple[list[tuple[int, int]], dict[str, Any]]] = {  # sizes of images, options
    "2304x3840": ([(2304, 3840)], {}),
    "480x640": ([(480, 640)], {}),
    "8 images of COCO's sizes": ([(480, 640), (640, 480), (427, 640), (640, 427)] * 2, {}),
    "2304x3840, antialias": ([(2304, 3840)], {"antialias": True}),
    "2304x3840, float16": ([(2304, 3840)], {"dtype": torch.float16}),
}


def images_of(sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Smooth BGR images with some noise, (H, W, 3), as OpenCV reads them."""
    g = torch.Generator().manual_seed(0)
    images = []
    for h, w in sizes:
        coarse = torch.rand(1, 3, h // 32 + 2, w // 32 + 2, generator=g) * 255
        smooth = F.interpolate(coarse, (h, w), mode="bilinear")[0].permute(1, 2, 0)
        images.append((smooth + torch.randn(h, w, 3, generator=g) * 4).clamp(0, 255).byte().contiguous())
    return images


def plain(images: list[Tensor], shapes: list[list[int]], device: str, antialias: bool, dtype: torch.dtype) -> Tensor:
    """As one writes it in PyTorch: F.interpolate in float32, image by image."""
    mean, std = (torch.tensor(t, device=device)[:, None, None] for t in (MEAN, STD))
    padded = []
    height, width = (-(-max(shape[d] for shape in shapes) // DIVISOR) * DIVISOR for d in range(2))
    for image, (h, w) in zip(images, shapes, strict=True):
        rgb = image.to(device).flip(2).permute(2, 0, 1)[None].float()
        resized = F.interpolate(rgb, (h, w), mode="bilinear", antialias=antialias)[0]
        padded.append(F.pad((resized - mean) / std, (0, width - w, 0, height - h)))
    return torch.stack(padded).to(dtype)


def opencv(images: list[Tensor], shapes: list[list[int]], device: str, dtype: torch.dtype) -> Tensor:
    """MMDetection's steps on the host, image by image: resize, normalise to RGB, pad; then transpose and stack."""
    import cv2
    import numpy as np

    mean, inverse = np.array([MEAN], np.float64), 1 / np.array([STD], np.float64)
    height, width = (-(-max(shape[d] for shape in shapes) // DIVISOR) * DIVISOR for d in range(2))
    batch = torch.empty((len(images), 3, height, width), pin_memory=torch.device(device).type == "cuda")
    for b, (image, (h, w)) in enumerate(zip(images, shapes, strict=True)):
        out: Any = cv2.resize(image.numpy(), (w, h), interpolation=cv2.INTER_LINEAR).astype(np.float32)
        cv2.cvtColor(out, cv2.COLOR_BGR2RGB, out)
        cv2.subtract(out, mean, out)
        cv2.multiply(out, inverse, out)
        out = cv2.copyMakeBorder(out, 0, height - h, 0, width - w, cv2.BORDER_CONSTANT, value=0)
        batch[b] = torch.from_numpy(out).permute(2, 0, 1)
    return batch.to(device, dtype, non_blocking=True)


def floor(images: list[Tensor], batch: Tensor, shapes: list[list[int]], antialias: bool) -> object:
    """Read the rows that are used and write the batch; on a GPU, copy the images there and write the batch."""
    if batch.device.type != "cpu":
        return [image.to(batch.device, non_blocking=True) for image in images], torch.zeros_like(batch)
    for image, (h, _) in zip(images, shapes, strict=True):
        used = image if antialias else image[: 2 * h]
        used.flatten()[: used.numel() // 8 * 8].view(torch.int64).sum()
    return torch.zeros_like(batch)


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Yield the configurations, from images on the host to a batch on the device; with `kernel`, ours is the op alone.

    The op alone finds its images on the device. OpenCV is left out where it is not installed, and where it has no such
    form (antialias).
    """
    for name in ["480x640"] if quick else list(CONFIGS):
        sizes, options = CONFIGS[name]
        images = images_of(sizes)
        dtype, antialias = options.get("dtype", torch.float32), options.get("antialias", False)
        ours: Callable[..., Any] = partial(
            preprocess, images, scale=SCALE, mean=MEAN, std=STD, to_rgb=True, layout="HWC", device=device, **options
        )
        made = ours()
        shapes = made.image_sizes.tolist()
        if kernel:
            flat = [side for shape in shapes for side in shape]
            there = [image.to(device).permute(2, 0, 1) for image in images]
            height, width = made.images.shape[2:]
            ours = partial(ops.resize_normalize_pad, there, flat, height, width, MEAN, STD, True, antialias, dtype)
        baselines: dict[str, Callable[..., object]] = {
            "F.interpolate": partial(plain, images, shapes, device, antialias, dtype)
        }
        if find_spec("cv2") and not antialias:
            baselines["OpenCV"] = partial(opencv, images, shapes, device, dtype)
        sources = [image.pin_memory() for image in images] if made.images.device.type == "cuda" else images
        bound = partial(floor, sources, made.images, shapes, antialias)
        yield Case(name, ours, bound, baselines, "read and write")
