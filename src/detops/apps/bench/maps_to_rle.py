"""`detops bench maps_to_rle`: COCO's RLE of query masks, against F.interpolate in chunks, a threshold and pycocotools.

The baselines are what RF-DETR's post-processing and an evaluation do today: maps are enlarged to the image, some at a
time, cut at 0, and encoded one by one. "transposed" enlarges the transposed maps, which spares the encoder a copy in
column order. They are left out where pycocotools is not installed.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from detops import ops
from detops.apps import require
from detops.apps.bench.masks_to_rle import encode
from detops.apps.bench.runner import Case
from detops.geometry.resizing import bilinear_positions
from detops.masks.instance_masks import InstanceMasks

TESTS = ("tests/ops/test_maps_to_rle.py", "tests/library/test_query_masks.py")
COUNT, CHUNK = 300, 32
CELLS = (108, 160)
IMAGES = ((640, 640), (1080, 1920), (3000, 4000))
LARGE = 10**7  # pixels from which on there are a tenth of the maps: all would take the baselines minutes
SHARE = 0.047  # of the image that an object covers


def maps_of_objects(cells: int) -> Tensor:
    """Logits (COUNT, cells, cells) of objects with wavy edges."""
    g = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*[(torch.arange(cells) + 0.5) / cells] * 2, indexing="ij")
    center, turn = 0.15 + 0.7 * torch.rand(COUNT, 2, 1, 1, generator=g), 6 * torch.rand(COUNT, 1, 1, generator=g)
    dx, dy = x - center[:, 0], y - center[:, 1]
    radius: Tensor = (SHARE / torch.pi) ** 0.5 * (1 + 0.2 * torch.sin(3 * torch.atan2(dy, dx) + turn))
    return 20 * (radius - torch.hypot(dx, dy))


def enlarge_and_encode(maps: Tensor, image_size: tuple[int, int]) -> list[object]:
    """Masks enlarged and cut some at a time, and encoded by pycocotools."""
    strings: list[object] = []
    for part in maps.split(CHUNK):
        strings += encode((F.interpolate(part[:, None], image_size, mode="bilinear") > 0)[:, 0])
    return strings


def enlarge_transposed(maps: Tensor, image_size: tuple[int, int]) -> list[object]:
    """The same with rows and columns exchanged, so that a mask is in the encoder's order already."""
    coco = require("pycocotools.mask", "pycocotools", "bench maps_to_rle")
    strings: list[object] = []
    for part in maps.mT.contiguous().split(CHUNK):
        cut = (F.interpolate(part[:, None], image_size[::-1], mode="bilinear") > 0)[:, 0]
        strings += [coco.encode(mask.T) for mask in cut.cpu().numpy().view("uint8")]
    return strings


def case(cells: int, image_size: tuple[int, int], device: str, kernel: bool) -> Case:
    """RLE of all masks; the floor copies the maps. On a GPU the op alone leaves the strings there."""
    count = COUNT // 10 if image_size[0] * image_size[1] >= LARGE else COUNT
    maps = maps_of_objects(cells)[:count].to(device)
    labels, scores = torch.zeros(count, dtype=torch.int64, device=device), torch.ones(count, device=device)
    found = InstanceMasks.from_query_masks(maps, labels, scores, image_size, torch.zeros(count, 4, device=device))
    y, x = (bilinear_positions(0, cells, length, maps.device) for length in image_size)
    baselines: dict[str, Callable[[], object]] = {}
    if find_spec("numpy") and find_spec("pycocotools"):
        baselines["F.interpolate"] = lambda: enlarge_and_encode(maps, image_size)
        baselines["transposed"] = lambda: enlarge_transposed(maps, image_size)
    ours = (lambda: ops.maps_to_rle(maps, y, x, None, None, None, 0.0, True)) if kernel else found.to_rle
    name = f"{count} maps of {cells}x{cells}, {image_size[0]}x{image_size[1]}"
    return Case(name, ours, maps.clone, baselines, "copy of maps")


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Yield one configuration per size of maps and of image; with `kernel`, ours is the op alone."""
    for cells in CELLS[: 1 if quick else None]:
        for image_size in IMAGES[: 1 if quick else None]:
            yield case(cells, image_size, device, kernel)
