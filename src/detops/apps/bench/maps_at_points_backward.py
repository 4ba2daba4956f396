"""`detops bench maps_at_points_backward`: the gradient of maps read at points, against PyTorch's of grid_sample."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from detops import ops
from detops.apps.bench import _mask_points
from detops.apps.bench._mask_points import Scene, matched_maps, sampled
from detops.apps.bench.runner import Case
from detops.portable.maps_at_points_backward import maps_at_points_backward as portable

TESTS = ("tests/ops/test_maps_at_points_backward.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield one case per number of points."""
    for name, peer in list(_mask_points.PEERS.items())[: 1 if quick else None]:
        scene = Scene(peer, device)
        arguments = (scene.gradient, scene.query, scene.points, *scene.maps.shape[1:], peer.border)
        scene.maps.requires_grad_()
        values = sampled(matched_maps(scene, scene.maps), scene.points.flatten(0, 1), peer)
        upstream = scene.gradient.flatten(0, 1)
        baselines: dict[str, Callable[[], object]] = {
            "grid_sample": partial(torch.autograd.grad, values, scene.maps, upstream, retain_graph=True),
            "batched PyTorch": partial(portable, *arguments),
        }
        ours, floor = partial(ops.maps_at_points_backward, *arguments), partial(torch.zeros_like, scene.maps.detach())
        yield Case(f"{name}, {peer.points} points", ours, floor, baselines, "zeros of the maps' size")
