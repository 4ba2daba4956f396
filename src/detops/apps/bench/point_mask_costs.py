"""`detops bench point_mask_costs`: costs of queries and masks at points, against PyTorch's; labels are read already.

The floor is the two products of matrices alone, whose factors are there already.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from detops import ops
from detops.apps.bench import _mask_points
from detops.apps.bench._mask_points import Scene, costs, sampled
from detops.apps.bench.runner import Case
from detops.losses._mask_points import labels_at

TESTS = ("tests/ops/test_point_mask_costs.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield one case per number of points."""
    for name, peer in list(_mask_points.PEERS.items())[: 1 if quick else None]:
        scene = Scene(peer, device)
        shared = scene.image_points[:, None]
        labels = labels_at(scene.masks, shared.expand(-1, scene.masks.shape[1], -1, -1), peer.nearest, peer.border)
        x = torch.randn(2, len(scene.maps), scene.maps.shape[1], peer.points, device=device)
        baselines: dict[str, Callable[[], object]] = {"image by image": partial(_by_image, scene, labels)}
        ours = partial(ops.point_mask_costs, scene.maps, shared, labels, peer.border)
        yield Case(f"{name}, {peer.points} points", ours, partial(_products, x, labels), baselines, "the two products")


def _by_image(scene: Scene, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    where = scene.image_points
    maps = [sampled(own[:, None], where[b].expand(len(own), -1, -1), scene.peer) for b, own in enumerate(scene.maps)]
    return [costs(x, y) for x, y in zip(maps, labels, strict=True)]


def _products(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return x[0] @ labels.mT, x[1] @ labels.mT
