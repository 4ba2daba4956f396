"""`detops bench maps_at_points`: matched maps read at points, against a copy of them and PyTorch's grid_sample."""

from collections.abc import Callable, Iterator
from functools import partial

from detops import ops
from detops.apps.bench import _mask_points
from detops.apps.bench._mask_points import Scene, matched_maps, sampled
from detops.apps.bench.runner import Case
from detops.portable.maps_at_points import maps_at_points as portable

TESTS = ("tests/ops/test_maps_at_points.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield one case per number of points."""
    for name, peer in list(_mask_points.PEERS.items())[: 1 if quick else None]:
        scene = Scene(peer, device)
        arguments = (scene.maps, scene.query, scene.points, False, peer.border)
        baselines: dict[str, Callable[[], object]] = {
            "grid_sample": partial(_copied, scene),
            "batched PyTorch": partial(portable, *arguments),
        }
        ours = partial(ops.maps_at_points, *arguments)
        yield Case(f"{name}, {peer.points} points", ours, scene.gradient.clone, baselines, "copy of the values")


def _copied(scene: Scene) -> object:
    return sampled(matched_maps(scene, scene.maps), scene.points.flatten(0, 1), scene.peer)
