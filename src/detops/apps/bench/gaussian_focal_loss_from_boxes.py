"""`detops bench gaussian_focal_loss_from_boxes`: the focal loss straight from boxes, and its gradient.

The baseline is the loss of a heatmap that exists already, so only our times include the drawing.
"""

from collections.abc import Callable, Iterator
from functools import partial

from detops import ops
from detops.apps.bench import _centernet
from detops.apps.bench._centernet import backward, maps_of, plain_loss, truth_of
from detops.apps.bench.runner import Case
from detops.losses.focal_from_boxes import gaussian_focal_loss_from_boxes
from detops.ragged import RaggedBatch
from detops.targets.centernet import centernet_cells, centernet_targets

TESTS = ("tests/ops/test_gaussian_focal_loss_from_boxes.py",)


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Yield two sizes of batches; with `kernel`, ours is the op alone."""
    for batch in _centernet.BATCHES[: 1 if quick else None]:
        truth = truth_of(batch, device)
        logits = maps_of(batch, device)[0]
        targets = centernet_targets(truth, _centernet.GRID, _centernet.IMAGE, _centernet.CLASSES)
        cells = centernet_cells(truth, _centernet.GRID, _centernet.IMAGE, _centernet.CLASSES)
        center, radius, label = (RaggedBatch(t, sample_sizes=truth.sample_sizes) for t in cells[:3])
        count = targets.num_objects
        public = partial(gaussian_focal_loss_from_boxes, logits, center, radius, label, avg_factor=count)
        ours: Callable[[], object] = backward(public, logits)
        data = logits.detach()
        if kernel:
            ours = partial(
                ops.gaussian_focal_loss_from_boxes,
                logits=data,
                centers=cells.center,
                radii=cells.radius,
                labels=cells.labels,
                sample_sizes=truth.sample_sizes,
                negative_weight=None,
                scale=None,
                diameter_to_sigma_factor=6.0,
                alpha=2.0,
                gamma=4.0,
                pos_weight=1.0,
                neg_weight=1.0,
                with_gradient=True,
            )
        plain = backward(partial(plain_loss, logits, targets.heatmap), logits)
        name = f"focal loss from boxes {batch}x{_centernet.CLASSES}x{_centernet.GRID[0]}x{_centernet.GRID[1]}"
        yield Case(name, ours, data.clone, {"plain PyTorch": plain}, "copy of logits")
