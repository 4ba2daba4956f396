"""`detops bench point_mask_losses_backward`: the gradient of mask losses at points, against batched PyTorch."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from detops import ops
from detops.apps.bench import _mask_points
from detops.apps.bench._mask_points import Scene
from detops.apps.bench.runner import Case
from detops.portable.point_mask_losses_backward import point_mask_losses_backward_ as portable

TESTS = ("tests/ops/test_point_mask_losses_backward.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield one case per number of points."""
    for name, peer in list(_mask_points.PEERS.items())[: 1 if quick else None]:
        scene = Scene(peer, device)
        given = (scene.maps, scene.query, scene.points, scene.masks)
        sums = ops.point_mask_losses(*given, peer.nearest, peer.border, False)[1]
        gradient = torch.empty_like(scene.maps)
        arguments = (gradient, *given, sums, torch.ones_like(sums), peer.nearest, peer.border, False)
        baselines: dict[str, Callable[[], object]] = {"batched PyTorch": partial(portable, *arguments)}
        ours = partial(ops.point_mask_losses_backward_, *arguments)
        zeros = partial(torch.zeros_like, scene.maps)
        yield Case(f"{name}, {peer.points} points", ours, zeros, baselines, "zeros of the maps")
