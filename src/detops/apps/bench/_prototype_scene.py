"""Coefficients, prototypes and masks of the size of a YOLO-seg at 640 x 640, and its loss as others compute it."""

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH, POINTS, DEPTH, GRID, IMAGE, BOXES = 8, 8400, 32, 160, 640, 20


class Scene:
    """A batch: coefficients (B, A, K), prototypes (B, K, h, w), boxes (B, N, 4) with masks, each point's box."""

    def __init__(self, positives: int, device: str) -> None:
        g = torch.Generator().manual_seed(0)
        center = torch.rand(BATCH, BOXES, 2, generator=g) * IMAGE
        half = (0.05 + 0.12 * torch.rand(BATCH, BOXES, 2, generator=g)) * IMAGE
        self.boxes = torch.cat([center - half, center + half], 2).clamp(0, IMAGE).to(device)
        y, x = torch.meshgrid(*[torch.arange(IMAGE) + 0.5] * 2, indexing="ij")
        across = (x - center[..., :1, None]) / half[..., :1, None]
        down = (y - center[..., 1:, None]) / half[..., 1:, None]
        self.masks = (across.square() + down.square() < 1).to(torch.uint8).to(device)
        self.coefficients = (0.3 * torch.randn(BATCH, POINTS, DEPTH, generator=g)).to(device).requires_grad_()
        self.prototypes = torch.randn(BATCH, DEPTH, GRID, GRID, generator=g).to(device).requires_grad_()
        index = torch.full((BATCH, POINTS), -1)
        for own in index:
            own[torch.randperm(POINTS, generator=g)[:positives]] = torch.randint(BOXES, (positives,), generator=g)
        self.index = index.to(device)
        centers = (torch.arange(GRID) + 0.5) / GRID
        grid = torch.stack(torch.meshgrid(centers, centers, indexing="xy"), -1).flatten(0, 1).to(device)
        self.centers = grid.expand(BATCH, BOXES, -1, -1)


def loss_of_maps(scene: Scene) -> Tensor:
    """The masks of all positives of an image on the whole grid, their cross entropy, and a crop of it."""
    total, count = scene.coefficients.new_zeros(()), 0
    cell = torch.arange(GRID, device=scene.boxes.device)
    for b in range(BATCH):
        labels = (F.interpolate(scene.masks[b][None].float(), (GRID, GRID), mode="bilinear") > 0.5)[0].float()
        points = (scene.index[b] >= 0).nonzero()[:, 0]
        which = scene.index[b, points]
        z = torch.einsum("pk,khw->phw", scene.coefficients[b, points], scene.prototypes[b])
        loss = F.binary_cross_entropy_with_logits(z, labels[which], reduction="none")
        box = scene.boxes[b, which] * (GRID / IMAGE)
        x1, y1, x2, y2 = box[:, :, None, None].unbind(1)
        inside = (cell >= x1) & (cell < x2) & (cell[:, None] >= y1) & (cell[:, None] < y2)
        share = (x2 - x1) * (y2 - y1) / GRID**2
        total = total + ((loss * inside).mean((1, 2)) / share[:, 0, 0]).sum()
        count += len(points)
    return total / count
