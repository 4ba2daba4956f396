"""What the compact networks share: levels merged from coarse to fine, and a head of convolutions on each level."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from detops.apps.train.backbones import CompactBackbone, TimmBackbone, conv

RARE = 0.01  # probability of an object, and of each class, that an untrained network predicts


class Pyramid(nn.Module):
    """Levels brought to the same width and merged from coarse to fine.

    Args:
        channels: Channels of each level, the finest first.
        out: Channels of every level of the result.
    """

    def __init__(self, channels: list[int], out: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList([conv(c, out, 1) for c in channels])
        self.merges = nn.ModuleList([conv(out, out) for _ in channels[:-1]])

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Merge the levels; each comes out with `out` channels."""
        merged = [self.laterals[-1](levels[-1])]
        for index in reversed(range(len(levels) - 1)):
            merged.append(
                self.merges[index](self.laterals[index](levels[index]) + F.interpolate(merged[-1], scale_factor=2.0))
            )
        return merged[::-1]


class DenseHead(nn.Module):
    """Two towers of convolutions over one level, one for classes and one for boxes, that end in maps of logits.

    Levels do not share a head: batch norm would normalise each level by its own statistics in training, but by a
    mixture of all levels' afterwards, which cost a tenth of AP on blood cells.

    Args:
        channels: Channels of the level.
        of_class: (channels, initial probability) of each map of the class tower.
        of_box: (channels, initial probability) of each map of the box tower.
    """

    def __init__(
        self, channels: int, of_class: Sequence[tuple[int, float]], of_box: Sequence[tuple[int, float]]
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleList([nn.Sequential(*[conv(channels, channels) for _ in range(2)]) for _ in range(2)])
        maps = [(nn.Conv2d(channels, out, 1), p) for out, p in (*of_class, *of_box)]
        for layer, p in maps:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, -math.log((1 - p) / p))  # type: ignore[arg-type]
        self.maps, self.split = nn.ModuleList([layer for layer, _ in maps]), len(of_class)

    def forward(self, level: Tensor) -> list[list[Tensor]]:
        """Map (B, channels, H, W) to the float32 maps of the class tower and those of the box tower."""
        of_class, of_box = (tower(level) for tower in self.towers)
        first, last = self.maps[: self.split], self.maps[self.split :]
        return [[m(of_class).float() for m in first], [m(of_box).float() for m in last]]


class CompactDense(nn.Module):
    """A `DenseHead` at each of the strides 8, 16 and 32.

    Args:
        width: Channels at stride 4, as in `CompactNet`.
        blocks: Residual blocks per stage.
        backbone: Backbone in place of the compact one.
        of_class: Maps of the class towers, as in `DenseHead`.
        of_box: Maps of the box towers.
    """

    def __init__(
        self, width: int, blocks: tuple[int, int, int, int], backbone: TimmBackbone | None,
        of_class: Sequence[tuple[int, float]], of_box: Sequence[tuple[int, float]],
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone = backbone or CompactBackbone(width, blocks)
        channels = self.backbone.channels[1:]
        self.pyramid = Pyramid(channels, 2 * width)
        self.heads = nn.ModuleList([DenseHead(2 * width, of_class, of_box) for _ in channels])

    def levels(self, images: Tensor) -> list[Tensor]:
        """Return the features (B, 2 * width, H / s, W / s) that the heads see."""
        levels: list[Tensor] = self.pyramid(self.backbone(images)[1:])
        return levels
