"""`detops bench point_mask`: mask costs and losses at points, against PyTorch's on copies of maps and masks."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from detops.apps.bench import _mask_points
from detops.apps.bench._mask_points import Scene, costs_by_image, costs_of_batch, loss_of_copies
from detops.apps.bench._set_peers import module
from detops.apps.bench.runner import Case
from detops.losses.point_mask import point_mask_cost, point_mask_loss, uncertain_points

TESTS = ("tests/library/test_point_mask.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield the costs, and the losses with their gradient, per number of points."""
    for name, peer in list(_mask_points.PEERS.items())[: 1 if quick else None]:
        scene = Scene(peer, device)
        costs = partial(
            point_mask_cost, scene.maps, scene.masks, scene.image_points, labels=peer.labels, padding=peer.padding
        )
        slow: dict[str, Callable[[], object]] = {
            "image by image": partial(costs_by_image, scene),
            "whole batch": partial(costs_of_batch, scene),
        }
        yield Case(f"{name}: costs, {peer.points} points", costs, scene.gradient.clone, slow, "copy of the values")
        scene.maps.requires_grad_()
        baselines: dict[str, Callable[[], object]] = {"copies and grid_sample": partial(_trained_on_copies, scene)}
        zeros = partial(torch.zeros_like, scene.maps.detach())
        yield Case(
            f"{name}: losses, {peer.points} points", partial(_trained, scene), zeros, baselines, "zeros of the maps"
        )
        theirs = module("transformers.models.mask2former.modeling_mask2former") if name == "Mask2Former" else None
        if theirs is not None:
            whole: dict[str, Callable[[], object]] = {"Transformers": partial(_trained_by, theirs, scene)}
            yield Case(f"{name}: losses, points drawn", partial(_drawn, scene), zeros, whole, "zeros of the maps")


def _trained(scene: Scene) -> object:
    peer = scene.peer
    found = point_mask_loss(
        scene.maps, scene.masks, scene.query, scene.points, labels=peer.labels, padding=peer.padding
    )
    return torch.autograd.grad(found["loss_mask_bce"] + found["loss_mask_dice"], scene.maps)


def _trained_on_copies(scene: Scene) -> object:
    return torch.autograd.grad(loss_of_copies(scene, scene.maps), scene.maps)


def _drawn(scene: Scene) -> object:
    """Three times as many candidates as points, and three quarters of the points where masks are least certain."""
    peer = scene.peer
    points = uncertain_points(scene.maps, scene.query, num_points=peer.points, padding=peer.padding)
    found = point_mask_loss(scene.maps, scene.masks, scene.query, points, labels=peer.labels, padding=peer.padding)
    return torch.autograd.grad(found["loss_mask_bce"] + found["loss_mask_dice"], scene.maps)


def _trained_by(transformers: Any, scene: Scene) -> object:
    """The losses of `Mask2FormerLoss`, which draws its points as `_drawn` does."""
    criterion = transformers.Mask2FormerLoss(transformers.Mask2FormerConfig(train_num_points=scene.peer.points), {})
    pairs = [(query, torch.arange(len(query))) for query in scene.query]
    masks = [one.float() for one in scene.masks]
    found = criterion.loss_masks(scene.maps, masks, pairs, scene.query.numel())
    return torch.autograd.grad(found["loss_mask"] + found["loss_dice"], scene.maps)
