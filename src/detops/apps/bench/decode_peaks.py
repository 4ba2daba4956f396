"""`detops bench decode_peaks`: the peaks of a heatmap and the box at each, against max pooling and topk of all."""

from collections.abc import Iterator
from functools import partial

from detops import ops
from detops.apps.bench import _centernet
from detops.apps.bench.runner import Case
from detops.portable.decode_peaks import decode_peaks as portable

TESTS = ("tests/ops/test_decode_peaks.py",)
COUNT = 100


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield batches of maps of an untrained network, which has about a peak in nine cells."""
    for batch in (1, 8)[: 1 if quick else None]:
        heatmap, wh, offset = (level.detach() for level in _centernet.maps_of(batch, device))
        ours, batched = (
            partial(form, heatmap, wh, offset, 3, 4.0, 4.0, COUNT) for form in (ops.decode_peaks, portable)
        )
        yield Case(f"{batch} images", ours, heatmap.clone, {"batched PyTorch": batched}, "copy of heatmap")
