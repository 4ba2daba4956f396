"""`detops bench centernet_cells`: where CenterNet trains boxes on its map, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial

from detops import ops
from detops.apps.bench import _centernet
from detops.apps.bench._centernet import truth_of
from detops.apps.bench.runner import Case
from detops.portable.centernet_cells import centernet_cells as portable

TESTS = ("tests/ops/test_centernet_cells.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield two sizes of batches."""
    for batch in _centernet.BATCHES[: 1 if quick else None]:
        truth = truth_of(batch, device)
        arguments = (
            truth.boxes,
            truth.labels,
            truth.sample_sizes,
            list(_centernet.GRID),
            list(_centernet.IMAGE),
            _centernet.CLASSES,
            0.3,
            0,
            False,
            0.0,
        )
        ours, batched = partial(ops.centernet_cells, *arguments), partial(portable, *arguments)
        yield Case(
            f"{batch} images of {_centernet.BOXES} boxes", ours, truth.boxes.clone, {"batched PyTorch": batched}, "copy"
        )
