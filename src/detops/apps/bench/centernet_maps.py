"""`detops bench centernet_maps`: sizes and offsets of boxes in dense maps, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial

import torch

from detops import ops
from detops.apps.bench import _centernet
from detops.apps.bench._centernet import truth_of
from detops.apps.bench.runner import Case
from detops.portable.centernet_maps import centernet_maps as portable
from detops.targets.centernet import centernet_cells

TESTS = ("tests/ops/test_centernet_maps.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield two sizes of batches."""
    for batch in _centernet.BATCHES[: 1 if quick else None]:
        cells = centernet_cells(truth_of(batch, device), _centernet.GRID, _centernet.IMAGE, _centernet.CLASSES)
        arguments = (cells.wh, cells.offset, cells.flat_index, cells.last, *_centernet.GRID, torch.float32)
        ours, batched = partial(ops.centernet_maps, *arguments), partial(portable, *arguments)
        maps = ours()
        name = "x".join(str(side) for side in maps.shape)
        yield Case(name, ours, maps.zero_, {"batched PyTorch": batched}, "fill of the maps")
