"""`detops bench centernet_losses`: CenterNet's losses and the maps' gradients, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from detops import ops
from detops.apps.bench import _centernet
from detops.apps.bench._centernet import maps_of, truth_of
from detops.apps.bench.runner import Case
from detops.portable.centernet_losses import centernet_losses as portable
from detops.targets.centernet import centernet_cells

TESTS = ("tests/ops/test_centernet_losses.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield two sizes of batches."""
    for batch in _centernet.BATCHES[: 1 if quick else None]:
        cells = centernet_cells(truth_of(batch, device), _centernet.GRID, _centernet.IMAGE, _centernet.CLASSES)
        maps = [one.detach() for one in maps_of(batch, device)]
        of_boxes = (
            cells.center,
            cells.radius,
            cells.labels,
            None,
            cells.wh,
            cells.offset,
            cells.flat_index,
            cells.last,
        )
        numbers = (1.0, 6.0, 2.0, 4.0, 1.0, 1.0, 0.1, 1.0, [0.0] * 3, True)
        arguments: tuple[Any, ...] = (*maps, *of_boxes, cells.num_centers, *numbers)
        ours, batched = partial(ops.centernet_losses, *arguments), partial(portable, *arguments)
        name = "x".join(str(side) for side in maps[0].shape)
        yield Case(name, ours, maps[0].clone, {"batched PyTorch": batched}, "copy of heatmap")
