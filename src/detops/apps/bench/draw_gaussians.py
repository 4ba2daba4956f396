"""`detops bench draw_gaussians`: Gaussian heatmaps, against a loop over boxes and against batched PyTorch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from detops import ops
from detops.apps.bench.runner import Case
from detops.portable.draw_gaussians import draw_gaussians_ as portable
from detops.ragged import RaggedBatch
from detops.targets.heatmap import draw_heatmap, draw_heatmap_batched

TESTS = ("tests/ops/test_draw_gaussians.py", "tests/library/test_heatmap.py")
FACTOR = 6.0
Draw = Callable[[Tensor], object]  # draws into maps (B, C, H, W)


@dataclass(frozen=True)
class Config:
    """Maps and boxes of one case; `radius` holds the smallest and the largest."""

    name: str
    batch: int
    classes: int
    height: int
    width: int
    boxes: int
    radius: tuple[int, int]
    form: str  # "concatenated", "batched", "classwise" or "coco"
    quick: bool = True


CONFIGS = (
    Config("48x20x50 concatenated", 48, 1, 20, 50, 50, (1, 4), "concatenated"),
    Config("48x20x50 batched", 48, 1, 20, 50, 50, (1, 4), "batched"),
    Config("48x20x20x50 class-wise", 48, 20, 20, 50, 50, (1, 4), "classwise"),
    Config("32x80x128x128, as COCO", 32, 80, 128, 128, 51, (0, 20), "coco", quick=False),
    Config("8x10x256x256, radii to 60", 8, 10, 256, 256, 50, (1, 60), "classwise", quick=False),
)


@dataclass(frozen=True)
class Boxes:
    """A seeded batch: `centers` (B, N, 2), `radii` (B, N), `labels` (B, N) int32, `sizes` (B,) int64."""

    centers: Tensor
    radii: Tensor
    labels: Tensor
    sizes: Tensor


def boxes(config: Config, device: str) -> Boxes:
    """Draw a configuration's boxes: up to `boxes` per image, centres anywhere on the map."""
    g = torch.Generator().manual_seed(0)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=g, dtype=torch.int32)

    b, n = config.batch, config.boxes
    x, y = integers(0, config.width - 1, b, n), integers(0, config.height - 1, b, n)
    radii = integers(*config.radius, b, n)
    sizes = integers(0, n, b)
    if config.form == "coco":
        # As in COCO: a median of 6 boxes per image with a long tail, and mostly small boxes.
        sizes = (-8.7 * torch.log1p(-torch.rand(b, generator=g))).clamp(max=n).to(torch.int32)
        radii = (config.radius[1] * torch.rand(b, n, generator=g) ** 2).to(torch.int32)
    labels = integers(0, config.classes - 1, b, n)
    centers = torch.stack([x, y], -1)
    return Boxes(*(t.to(device) for t in (centers, radii, labels, sizes.to(torch.int64))))


def loop(maps: Tensor, data: Boxes) -> None:
    """Draw one box at a time, with a handful of calls for each Gaussian, as training code does today.

    Args:
        maps: (B, C, H, W).
        data: The boxes, on the device of the maps; reading their values synchronises.
    """
    height, width = maps.shape[-2:]
    for b in range(len(maps)):
        for n in range(int(data.sizes[b])):
            x, y, r = int(data.centers[b, n, 0]), int(data.centers[b, n, 1]), int(data.radii[b, n])
            sigma = (2 * r + 1) / FACTOR
            t = torch.arange(-r, r + 1, dtype=torch.float32, device=maps.device)
            gaussian = torch.exp(-(t[None, :] ** 2 + t[:, None] ** 2) / (2 * sigma * sigma))
            gaussian[gaussian < torch.finfo(torch.float32).eps * gaussian.max()] = 0
            left, right, top, bottom = min(x, r), min(width - x, r + 1), min(y, r), min(height - y, r + 1)
            if left + right <= 0 or top + bottom <= 0:
                continue
            window = maps[b, int(data.labels[b, n]), y - top : y + bottom, x - left : x + right]
            torch.maximum(window, gaussian[r - top : r + bottom, r - left : r + right], out=window)


def _op(maps: Tensor, data: Boxes, labels: Tensor | None) -> None:
    ops.draw_gaussians_(maps, data.centers, data.radii, labels, data.sizes, FACTOR, 1.0)


def _ours(config: Config, data: Boxes, kernel: bool) -> Draw:
    """Draw into given maps (B, C, H, W), by the public function or by the op alone."""
    if config.form == "concatenated":
        valid = torch.arange(config.boxes, device=data.sizes.device) < data.sizes[:, None]
        image = torch.arange(config.batch, device=valid.device, dtype=torch.int32)[:, None].expand_as(valid)
        flat = Boxes(data.centers[valid][None], data.radii[valid][None], image[valid][None], data.sizes.sum()[None])
        if kernel:
            return lambda maps: _op(maps.view(1, config.batch, *maps.shape[2:]), flat, flat.labels)
        return lambda maps: draw_heatmap(maps[:, 0], flat.centers[0], flat.radii[0], flat.labels[0])
    if kernel:
        return lambda maps: _op(maps, data, None if config.form == "batched" else data.labels)
    xy, r, labels = (RaggedBatch(t, sample_sizes=data.sizes) for t in (data.centers, data.radii, data.labels))
    if config.form == "batched":
        return lambda maps: draw_heatmap_batched(maps[:, 0], xy, r)
    return lambda maps: draw_heatmap_batched(maps, xy, r, labels=labels)


def _batched(data: Boxes, classes: int) -> Draw:
    labels = None if classes == 1 else data.labels
    return lambda maps: portable(maps, data.centers, data.radii, labels, data.sizes, FACTOR, 1.0)


def _loop(data: Boxes) -> Draw:
    return lambda maps: loop(maps, data)


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Yield the configurations; each side allocates and clears its maps, draws, and returns them.

    With `kernel`, the maps exist already and only the drawing is timed.
    """
    for config in CONFIGS:
        if quick and not config.quick:
            continue
        data = boxes(config, device)
        kept = torch.zeros(config.batch, config.classes, config.height, config.width, device=device)

        def place(draw: Draw, kept: Tensor = kept) -> Callable[[], object]:
            def drawn() -> Tensor:
                maps = kept if kernel else torch.zeros_like(kept)
                draw(maps)
                return maps

            return drawn

        ours = place(_ours(config, data, kernel))
        baselines = {
            "batched PyTorch": place(_batched(data, config.classes)),
            "loop": place(_loop(data)),
        }
        floor = place(Tensor.zero_ if kernel else lambda maps: None)
        yield Case(config.name, ours, floor, baselines, "zero fill")
