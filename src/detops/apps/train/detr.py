"""The DETR that `detops train` offers: its network chooses queries from a dense head, and refines their boxes.

pyramid at strides 8, 16, 32 -> class logits and a box per cell -> the cells of the highest logits are queries
    -> layers of attention among queries, and of deformable attention to the pyramid -> logits and boxes per layer
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detops import Detections, GroundTruth, SetLoss, Teacher, decode_detr
from detops.apps.data.dataset import Batch
from detops.apps.train.backbones import TimmBackbone
from detops.apps.train.heads import RARE, CompactDense
from detops.geometry.points import grid_points

ANCHOR = 0.05  # width and height of a box at stride 8 before it is learnt, in shares of the image; doubled per level
POINTS = 4  # that a head of a query looks at on each level
Shape = tuple[int, int]


class DeformableAttention(nn.Module):
    """Attention of queries to a few places of each level, at learnt offsets from the middle of the query's box.

    Args:
        channels: Channels of queries and levels.
        heads: Number of heads.
        levels: Number of levels.

    Reference:
        Zhu et al., "Deformable DETR", 2020, section 4.1.
    """

    def __init__(self, channels: int, heads: int, levels: int) -> None:
        super().__init__()
        self.heads, self.levels = heads, levels
        places = heads * levels * POINTS
        self.value, self.out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.offset, self.weight = nn.Linear(channels, 2 * places), nn.Linear(channels, places)
        for layer in (self.offset, self.weight):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.weight.bias)
        # Each head begins with a direction of its own, and its points lie one after the other in it.
        angle = torch.arange(heads) * (2 * math.pi / heads)
        ray = torch.stack([angle.cos(), angle.sin()], -1)
        ray = ray / ray.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, POINTS + 1)[:, None] / POINTS
        with torch.no_grad():
            self.offset.bias.copy_((ray[:, None, None] * steps).expand(-1, levels, -1, -1).flatten())

    def forward(self, query: Tensor, boxes: Tensor, memory: Tensor, shapes: list[Shape]) -> Tensor:
        """Look at the levels.

        Args:
            query: (B, Q, channels).
            boxes: (B, Q, 4) cxcywh in shares of the image.
            memory: (B, A, channels), the cells of all levels.
            shapes: Height and width of each level.

        Returns:
            (B, Q, channels).
        """
        batch, count, channels = query.shape
        value = self.value(memory).view(batch, -1, self.heads, channels // self.heads).permute(0, 2, 3, 1)
        weight = self.weight(query).view(batch, count, self.heads, -1).float().softmax(-1)
        offset = self.offset(query).view(batch, count, self.heads, self.levels, POINTS, 2).float()
        places = boxes[:, :, None, None, None, :2] + offset * boxes[:, :, None, None, None, 2:] / 2
        places = (2 * places - 1).permute(0, 2, 3, 1, 4, 5)  # (B, heads, levels, Q, POINTS, 2)
        seen = []
        cells = value.split([height * width for height, width in shapes], 3)
        for level, ((height, width), part) in enumerate(zip(shapes, cells, strict=True)):
            maps = part.float().reshape(batch * self.heads, -1, height, width)
            seen.append(F.grid_sample(maps, places[:, :, level].flatten(0, 1), align_corners=False))
        found = torch.cat(seen, 3).unflatten(0, (batch, self.heads))  # (B, heads, channels of a head, Q, places)
        mixed: Tensor = self.out((found * weight.transpose(1, 2)[:, :, None]).sum(-1).permute(0, 3, 1, 2).flatten(2))
        return mixed


class DecoderLayer(nn.Module):
    """Attention among queries, attention to the levels, and a network of two layers, each added and normalised.

    Args:
        channels: Channels.
        heads: Number of heads.
        levels: Number of levels.
    """

    def __init__(self, channels: int, heads: int, levels: int) -> None:
        super().__init__()
        self.among = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.to_levels = DeformableAttention(channels, heads, levels)
        self.wide = nn.Sequential(nn.Linear(channels, 4 * channels), nn.ReLU(), nn.Linear(4 * channels, channels))
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(3)])

    def forward(self, query: Tensor, place: Tensor, boxes: Tensor, memory: Tensor, shapes: list[Shape]) -> Tensor:
        """Update queries (B, Q, channels), whose boxes are encoded in `place`; the rest as of `DeformableAttention`."""
        first, second, third = self.norms
        placed = query + place
        query = first(query + self.among(placed, placed, query, need_weights=False)[0])
        query = second(query + self.to_levels(query + place, boxes, memory, shapes))
        updated: Tensor = third(query + self.wide(query))
        return updated


class CompactDetr(CompactDense):
    """A two-stage DETR to be trained from random weights, of 2.4 million parameters at width 32.

    Its arguments are those of `CompactNet`, and `queries`, the number of queries Q (fewer if the image has fewer
    cells), and `layers`, the number of layers L of the decoder.

    Reference:
        The parts of Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection" (RT-DETR), 2023.
    """

    def __init__(
        self, num_classes: int, width: int = 32, blocks: tuple[int, int, int, int] = (1, 2, 2, 1),
        backbone: TimmBackbone | None = None, queries: int = 100, layers: int = 3,
    ) -> None:  # fmt: skip
        super().__init__(width, blocks, backbone, [(num_classes, RARE)], [(4, 0.5)])
        channels, levels = 2 * width, len(self.heads)
        heads = 4 if channels % 4 == 0 else 2
        self.content = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))
        self.place = nn.Sequential(nn.Linear(4, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels))
        self.layers = nn.ModuleList([DecoderLayer(channels, heads, levels) for _ in range(layers)])
        self.classes = nn.ModuleList([nn.Linear(channels, num_classes) for _ in range(layers)])
        self.boxes = nn.ModuleList(
            [nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, 4)) for _ in range(layers)]
        )
        for of_class, of_box in zip(self.classes, self.boxes, strict=True):
            nn.init.constant_(of_class.bias, -math.log((1 - RARE) / RARE))  # type: ignore[arg-type]
            nn.init.zeros_(of_box[-1].weight)  # type: ignore[index]
            nn.init.zeros_(of_box[-1].bias)  # type: ignore[index]
        self.queries = queries

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predict boxes.

        Args:
            images: (B, 3, H, W), normalised; H and W multiples of 32.

        Returns:
            Class logits (B, L, Q, C) and boxes (B, L, Q, 4) of all layers, cxcywh in shares of the image; and those of
            the cells at strides 8, 16 and 32 that queries are chosen from, (B, A, C) and (B, A, 4).
        """
        maps = self.levels(images)
        shapes = [(level.shape[2], level.shape[3]) for level in maps]
        found = [head(level) for head, level in zip(self.heads, maps, strict=True)]
        dense_logits, steps = (_cells([both[part][0] for both in found]).float() for part in range(2))
        dense_boxes = (steps + _anchors(shapes, steps)).sigmoid()
        memory = _cells(maps)
        best = dense_logits.detach().amax(-1).topk(min(self.queries, memory.shape[1]), dim=1).indices[..., None]
        boxes = dense_boxes.detach().gather(1, best.expand(-1, -1, 4))
        query = self.content(memory.gather(1, best.expand(-1, -1, memory.shape[2])))
        logits, refined = [], []
        for layer, of_class, of_box in zip(self.layers, self.classes, self.boxes, strict=True):
            raw = boxes.logit(eps=1e-4)
            query = layer(query, self.place(raw), boxes, memory, shapes)
            logits.append(of_class(query).float())
            refined.append((raw + of_box(query).float()).sigmoid())
            boxes = refined[-1].detach()
        return torch.stack(logits, 1), torch.stack(refined, 1), dense_logits, dense_boxes


def _cells(maps: list[Tensor]) -> Tensor:
    """(B, channels, H, W) of each level as (B, A, channels) of all."""
    return torch.cat([level.flatten(2) for level in maps], 2).transpose(1, 2)


def _anchors(shapes: list[Shape], like: Tensor) -> Tensor:
    """(A, 4), the boxes of the cells before anything is learnt, as the logits of cxcywh."""
    levels = []
    for index, (height, width) in enumerate(shapes):
        points = grid_points([(height, width)], [1], device=like.device)[:, :2]
        center = points / torch.tensor([width, height], dtype=like.dtype, device=like.device)
        levels.append(torch.cat([center, torch.full_like(center, ANCHOR * 2**index)], 1))
    return torch.cat(levels).logit()


class Detr:
    """The kind of detector, a `families.Family`: queries of all layers, and the cells that they were chosen from."""

    teacher: Teacher | None = None
    max_detections = 100

    def __init__(self, num_classes: int) -> None:
        self.criterion = SetLoss(num_classes)

    def last_epochs(self, reached: bool) -> None:
        """Do nothing: all epochs are alike."""

    def losses(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute RT-DETR's losses of layers and cells; boxes in crowd regions have no part in it."""
        logits, boxes = (output.transpose(0, 1) for output in outputs[:2])
        parts = self.criterion(logits, boxes, self.shares(batch, shape), encoder=(outputs[2], outputs[3]))
        return torch.stack(list(parts.values())).sum(), parts

    def targets(self, outputs: list[Any], batch: Batch, shape: Shape) -> Tensor:
        """Match the boxes with the queries of each layer."""
        logits, boxes = (output.transpose(0, 1) for output in outputs[:2])
        found: Tensor = self.criterion.match(logits, boxes, self.shares(batch, shape))
        return found

    def decode(self, outputs: list[Any], shape: Shape) -> Detections:
        """Decode the best scores of the last layer, without suppression."""
        sizes = torch.tensor(shape, device=outputs[0].device).expand(len(outputs[0]), 2)
        return decode_detr(
            outputs[0][:, -1], outputs[1][:, -1], sizes, score_threshold=0.001, max_detections=self.max_detections
        )

    def picture(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, int, str]:
        """Draw the middles of the boxes of the queries that are matched now, as bright as their class is probable."""
        index = self.targets(outputs, batch, shape)[-1]
        height, width = shape[0] // 8, shape[1] // 8
        maps = torch.zeros(len(index), self.criterion.num_classes, height, width)
        image, query = (index >= 0).nonzero(as_tuple=True)
        label = batch.targets.labels[image, index[image, query]].long()
        x, y = outputs[1][image, -1, query, :2].T.cpu()
        row, column = (y * height).long().clamp(max=height - 1), (x * width).long().clamp(max=width - 1)
        maps[image.cpu(), label.cpu(), row, column] = outputs[0][image, -1, query, label].sigmoid().cpu()
        text = "Augmented images with the middles of the queries matched now, as bright as their class is probable."
        return maps, 8, text

    def shares(self, batch: Batch, shape: Shape) -> GroundTruth:
        """Return the ground truth with what its boxes are divided by, the shape of the padded images."""
        sizes = torch.tensor(shape, device=batch.targets.boxes.device).expand(len(batch.targets.boxes), 2)
        return replace(batch.targets, image_sizes=sizes)
