"""Mask logits, true masks, pairs and points of the sizes of RF-DETR-Seg and Mask2Former, and how others use them."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH, QUERIES, BOXES, CELLS, IMAGE = 8, 300, 30, 108, 640


class Peer(NamedTuple):
    """How a model reads its maps and masks: at how many points, and what `point_mask_loss` calls labels and padding."""

    points: int
    labels: Literal["nearest", "bilinear"]
    padding: Literal["border", "zeros"]

    @property
    def nearest(self) -> bool:
        """What the ops call `labels`."""
        return self.labels == "nearest"

    @property
    def border(self) -> bool:
        """What the ops call `padding`."""
        return self.padding == "border"


PEERS = {"RF-DETR-Seg": Peer(729, "nearest", "border"), "Mask2Former": Peer(12544, "bilinear", "zeros")}


class Scene:
    """A batch: maps (B, Q, h, w), masks (B, N, H, W) uint8, the query of each mask, points of pairs and of images."""

    def __init__(self, peer: Peer, device: str) -> None:
        self.peer, points = peer, peer.points
        g = torch.Generator().manual_seed(0)
        y, x = torch.meshgrid(*[(torch.arange(IMAGE) + 0.5) / IMAGE] * 2, indexing="ij")
        center, radius = (
            torch.rand(BATCH, BOXES, 2, 1, 1, generator=g),
            0.05 + 0.1 * torch.rand(BATCH, BOXES, 1, 1, generator=g),
        )
        apart = torch.hypot(x - center[:, :, 0], y - center[:, :, 1])
        self.masks = (apart < radius).to(torch.uint8).to(device)
        self.maps = torch.randn(BATCH, QUERIES, CELLS, CELLS, generator=g).to(device)
        rows = [torch.randperm(QUERIES, generator=g)[:BOXES] for _ in range(BATCH)]
        self.query = torch.stack(rows).to(device)
        self.points = torch.rand(BATCH, BOXES, points, 2, generator=g).to(device)
        self.image_points = torch.rand(BATCH, points, 2, generator=g).to(device)
        self.gradient = torch.randn(BATCH, BOXES, points, generator=g).to(device)


def matched_maps(scene: Scene, maps: Tensor) -> Tensor:
    """The maps of matched queries, copied: (B N, 1, h, w)."""
    image = torch.arange(BATCH, device=maps.device)[:, None]
    return maps[image, scene.query].flatten(0, 1)[:, None]


def sampled(maps: Tensor, points: Tensor, peer: Peer, mode: str = "bilinear") -> Tensor:
    """Maps (R, 1, h, w) at points (R, P, 2), by PyTorch."""
    grid = 2 * points[:, None] - 1
    return F.grid_sample(maps, grid, mode=mode, padding_mode=peer.padding, align_corners=False)[:, 0, 0]


def loss_of_copies(scene: Scene, maps: Tensor) -> Tensor:
    """What training code does today: copies of matched maps and of all masks in float, and grid_sample."""
    points, peer = scene.points.flatten(0, 1), scene.peer
    x = sampled(matched_maps(scene, maps), points, peer)
    with torch.no_grad():
        y = sampled(scene.masks.flatten(0, 1)[:, None].float(), points, peer, peer.labels)
    p = x.sigmoid()
    bce = F.binary_cross_entropy_with_logits(x, y, reduction="none").mean(1).sum()
    dice = (1 - (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)).sum()
    return (bce + dice) / len(x)


def costs_by_image(scene: Scene) -> list[tuple[Tensor, Tensor]]:
    """Mask2Former's way: image by image, with both softplus and two products for the cross entropy."""
    found = []
    for maps, masks, points in zip(scene.maps, scene.masks, scene.image_points, strict=True):
        x = sampled(maps[:, None], points.expand(QUERIES, -1, -1), scene.peer)
        y = sampled(masks[:, None].float(), points.expand(BOXES, -1, -1), scene.peer, scene.peer.labels)
        found.append(costs(x, y))
    return found


def costs_of_batch(scene: Scene) -> tuple[Tensor, Tensor]:
    """rf-detr's way: all queries of the batch against all masks of the batch, at the points of one image."""
    points, peer = scene.image_points[0], scene.peer
    x = sampled(scene.maps.flatten(0, 1)[:, None], points.expand(BATCH * QUERIES, -1, -1), peer)
    y = sampled(scene.masks.flatten(0, 1)[:, None].float(), points.expand(BATCH * BOXES, -1, -1), peer, peer.labels)
    return costs(x, y)


def costs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy and dice of logits (Q, P) and labels (N, P), with two products each of maps and of labels."""
    positive, negative = F.softplus(-x), F.softplus(x)
    bce = (positive @ y.mT + negative @ (1 - y).mT) / x.shape[1]
    p = x.sigmoid()
    return bce, 1 - (2 * p @ y.mT + 1) / (p.sum(1)[:, None] + y.sum(1) + 1)
