"""`detops bench uncertain_places`: the least certain of a mask's candidates, against grid_sample and topk."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from detops import ops
from detops.apps.bench import _mask_points
from detops.apps.bench._mask_points import Scene, matched_maps, sampled
from detops.apps.bench.runner import Case
from detops.portable.uncertain_places import uncertain_places as portable

TESTS = ("tests/ops/test_uncertain_places.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield one case per model: thrice as many candidates as points, three quarters of the points uncertain ones."""
    for name, peer in list(_mask_points.PEERS.items())[: 1 if quick else None]:
        scene, candidates, count = Scene(peer, device), 3 * peer.points, int(0.75 * peer.points)
        points = torch.rand(*scene.query.shape, candidates, 2, device=device)
        arguments = (scene.maps, scene.query, points, count, peer.border)
        baselines: dict[str, Callable[[], object]] = {
            "grid_sample and topk": partial(_of_copies, scene, points, count),
            "batched PyTorch": partial(portable, *arguments),
        }
        ours, floor = partial(ops.uncertain_places, *arguments), partial(points[..., 0].clone)
        yield Case(f"{name}, {count} of {candidates}", ours, floor, baselines, "copy of the values")


def _of_copies(scene: Scene, points: Tensor, count: int) -> Tensor:
    values = sampled(matched_maps(scene, scene.maps), points.flatten(0, 1), scene.peer)
    return (-values.abs()).topk(count, dim=1).indices
