"""`detops bench point_mask_losses`: losses of matched maps at points, against PyTorch on copies of maps and masks."""

from collections.abc import Callable, Iterator
from functools import partial

from detops import ops
from detops.apps.bench import _mask_points
from detops.apps.bench._mask_points import Scene, loss_of_copies
from detops.apps.bench.runner import Case
from detops.portable.point_mask_losses import point_mask_losses as portable

TESTS = ("tests/ops/test_point_mask_losses.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield one case per number of points."""
    for name, peer in list(_mask_points.PEERS.items())[: 1 if quick else None]:
        scene = Scene(peer, device)
        arguments = (scene.maps, scene.query, scene.points, scene.masks, peer.nearest, peer.border, False)
        baselines: dict[str, Callable[[], object]] = {
            "copies and grid_sample": partial(loss_of_copies, scene, scene.maps),
            "batched PyTorch": partial(portable, *arguments),
        }
        ours = partial(ops.point_mask_losses, *arguments)
        yield Case(f"{name}, {peer.points} points", ours, scene.gradient.clone, baselines, "copy of the values")
