"""`detops bench region`: which anchors near a box learn from a teacher too, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial

from detops import ops
from detops.apps.bench.atss_match import BATCH, CLASSES, COUNTS
from detops.apps.bench.positive_losses import Scene
from detops.apps.bench.runner import Case
from detops.assign.atss import match
from detops.diagnostics.syncs import count_syncs
from detops.portable.vlr_weights import vlr_weights as portable


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """An image of 800 x 1344 pixels, with few and many boxes; `kernel` changes nothing."""
    for count in COUNTS[: 1 if quick else None]:
        scene = Scene(count, device)
        threshold = match(scene.anchors, scene.sizes, scene.boxes, scene.labels, CLASSES, 9, None).threshold
        arguments = (scene.anchors, scene.boxes, threshold, None)
        ours, side = partial(ops.vlr_weights, *arguments), partial(portable, *arguments)
        syncs = {"ours": count_syncs(ours), "batched PyTorch": count_syncs(side)}
        name = f"{BATCH}x{len(scene.anchors)} anchors, {count} boxes"
        yield Case(name, ours, ours().clone, {"batched PyTorch": side}, "copy of result", syncs)
