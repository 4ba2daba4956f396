"""`detops bench region`: which anchors near a box learn from a teacher too, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial

from detops import ops
from detops.apps.bench import Case
from detops.apps.bench_atss import BATCH, CLASSES, COUNTS
from detops.apps.bench_gfl import Scene
from detops.checks import count_syncs
from detops.portable.localization_region import localization_region as portable
from detops.targets.atss import match


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """An image of 800 x 1344 pixels, with few and many boxes; `kernel` changes nothing."""
    for count in COUNTS[: 1 if quick else None]:
        scene = Scene(count, device)
        threshold = match(scene.anchors, scene.sizes, scene.boxes, scene.labels, CLASSES, 9, None).threshold
        arguments = (scene.anchors, scene.boxes, threshold, None)
        ours, side = partial(ops.localization_region, *arguments), partial(portable, *arguments)
        syncs = {"ours": count_syncs(ours), "batched PyTorch": count_syncs(side)}
        name = f"{BATCH}x{len(scene.anchors)} anchors, {count} boxes"
        yield Case(name, ours, ours().clone, {"batched PyTorch": side}, "copy of result", syncs)
