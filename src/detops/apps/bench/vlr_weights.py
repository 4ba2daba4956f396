"""`detops bench vlr_weights`: the anchors of LD's localization region, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial

from detops import ops
from detops.apps.bench import _gfl
from detops.apps.bench._gfl import Scene
from detops.apps.bench.runner import Case
from detops.portable.vlr_weights import vlr_weights as portable

TESTS = ("tests/ops/test_vlr_weights.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield few and many boxes per image."""
    for count in _gfl.COUNTS[: 1 if quick else None]:
        scene = Scene(count, device)
        arguments = (scene.anchors, scene.boxes, scene.match().threshold, None)
        ours, batched = partial(ops.vlr_weights, *arguments), partial(portable, *arguments)
        name = f"{_gfl.BATCH}x{len(scene.anchors)} anchors, {count} boxes"
        yield Case(name, ours, ours().clone, {"batched PyTorch": batched}, "copy of result")
