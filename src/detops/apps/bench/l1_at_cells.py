"""`detops bench l1_at_cells`: an L1 loss at boxes' cells with its gradient, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial

from detops import ops
from detops.apps.bench import _centernet
from detops.apps.bench._centernet import maps_of, truth_of
from detops.apps.bench.runner import Case
from detops.portable.l1_at_cells import l1_at_cells as portable
from detops.targets.centernet import centernet_cells

TESTS = ("tests/ops/test_l1_at_cells.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield two sizes of batches."""
    for batch in _centernet.BATCHES[: 1 if quick else None]:
        cells = centernet_cells(truth_of(batch, device), _centernet.GRID, _centernet.IMAGE, _centernet.CLASSES)
        wh = maps_of(batch, device)[1].detach()
        arguments = (wh, cells.wh, cells.flat_index, cells.last, None, True)
        ours, batched = partial(ops.l1_at_cells, *arguments), partial(portable, *arguments)
        name = "x".join(str(side) for side in wh.shape)
        yield Case(name, ours, wh.clone, {"batched PyTorch": batched}, "copy of the map")
