"""Backbones, which make features at strides 4, 8, 16 and 32 of an image: a small ResNet, and the models of timm."""

import difflib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detops.apps import require
from detops.apps.data.dataset import MEAN, STD

STRIDES = (4, 8, 16, 32)
# Let models that expect one input size take any: a ViT adapts its position embeddings, a Swin its windows. Models that
# do not know an option refuse it.
ANY_SIZE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
SIZES = ((64, 96), (96, 64))  # height and width of the images that a model is tried with


def conv(channels: int, out: int, kernel: int = 3, stride: int = 1, activation: bool = True) -> nn.Sequential:
    """Make a convolution with batch norm and, unless told otherwise, ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if activation else nn.Sequential(*layers)


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut. The second starts at zero, so the block starts as its shortcut."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        last = nn.BatchNorm2d(out)
        nn.init.zeros_(last.weight)
        self.body = nn.Sequential(conv(channels, out, 3, stride), nn.Conv2d(out, out, 3, padding=1, bias=False), last)
        changes = stride != 1 or channels != out
        pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.shortcut = nn.Sequential(pool, conv(channels, out, 1, activation=False)) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out, H / stride, W / stride)."""
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


class CompactBackbone(nn.Module):
    """A small ResNet, to be trained from random weights.

    Args:
        width: Channels at stride 4; deeper stages have 2, 4 and 8 times as many.
        blocks: Residual blocks per stage.
    """

    def __init__(self, width: int, blocks: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, width // 2, 3, 2), conv(width // 2, width, 3, 2))
        self.channels = [width, 2 * width, 4 * width, 8 * width]
        stages = []
        for index, (out, count) in enumerate(zip(self.channels, blocks, strict=True)):
            before = self.channels[max(index - 1, 0)]
            first = Residual(before, out, 1 if index == 0 else 2)
            stages.append(nn.Sequential(first, *[Residual(out, out) for _ in range(count - 1)]))
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) to four levels, the finest first."""
        x, levels = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels


class TimmBackbone(nn.Module):
    """A model of timm that makes features (`features_only=True`).

    Images come normalised with ImageNet's mean and standard deviation, as every network here gets them; those that the
    model was trained with may differ, and are applied here. Where a model has no features at a stride, such as a ViT,
    which has one stride only, those of the nearest stride are repeated or averaged.

    Args:
        name: timm's name of the model, such as "resnet18.a1_in1k", "hf-hub:timm/..." or "local-dir:FOLDER".
        pretrained: Load the weights that timm has for this name, from its cache or from where timm finds them.
        frozen_stages: How many stages keep their weights and the statistics of their batch norm: 1 is everything that
            the features at stride 4 depend on, 2 at stride 8, 3 at stride 16, and 4 the whole backbone.

    Attributes:
        channels: Channels at the strides 4, 8, 16 and 32.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: timm has no such model or weights, or its features do not serve a pyramid.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, name: str, pretrained: bool = False, frozen_stages: int = 0) -> None:
        super().__init__()
        self.body = body = _timm_model(name, pretrained)
        reductions = list(body.feature_info.reduction())
        if not set(reductions) & set(STRIDES) or any(r & (r - 1) for r in reductions):
            raise ValueError(
                f"backbone: expected features at strides of 4, 8, 16 or 32, got {reductions} from timm's {name}"
            )
        self._sources = [_nearest(stride, reductions) for stride in STRIDES]
        self._reductions = [reductions[source] for source in self._sources]
        self.channels = [body.feature_info.channels()[source] for source in self._sources]
        self._channels_last = str(getattr(body, "output_fmt", "")).endswith("NHWC")
        known = getattr(body, "pretrained_cfg", None) or {}
        mean, std = (torch.tensor(known[key]) * 255 if known.get(key) else None for key in ("mean", "std"))
        ours = torch.tensor(MEAN), torch.tensor(STD)
        mean, std = ours[0] if mean is None else mean, ours[1] if std is None else std
        self.register_buffer("scale", (ours[1] / std)[:, None, None])
        self.register_buffer("shift", ((ours[0] - mean) / std)[:, None, None])
        self._check(name)
        self._freeze(name, frozen_stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) to four levels, the finest first."""
        levels = self._features(images)
        found = []
        for stride, reduction, source in zip(STRIDES, self._reductions, self._sources, strict=True):
            level = levels[source]
            if reduction > stride:
                level = F.interpolate(level, scale_factor=float(reduction // stride))
            elif reduction < stride:
                level = F.avg_pool2d(level, stride // reduction)
            found.append(level)
        return found

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Switch between training and evaluation; frozen layers stay in evaluation."""
        super().train(mode)
        for module in self.body.modules():
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
        return self

    def _features(self, images: Tensor) -> list[Tensor]:
        """Run the model on images in its own normalisation; return all its levels as (B, C, H, W)."""
        levels = self.body(images * self.scale + self.shift)
        return [level.permute(0, 3, 1, 2) for level in levels] if self._channels_last else list(levels)

    @torch.no_grad()
    def _check(self, name: str) -> None:
        """Try two sizes, as a training has several.

        Raises:
            ValueError: The model does not take them, or its levels have other shapes than it says.
        """
        self.body.eval()
        for height, width in SIZES:
            try:
                levels = self._features(torch.zeros(1, 3, height, width))
            except Exception as error:  # whatever the model raises
                raise ValueError(
                    f"backbone: timm's {name} does not take images of {width}x{height}, and a training has several "
                    f"sizes: {error}"
                ) from error
            for source, reduction, channels in zip(self._sources, self._reductions, self.channels, strict=True):
                expected = (1, channels, height // reduction, width // reduction)
                if levels[source].shape != expected:
                    raise ValueError(
                        f"backbone: expected features of shape {expected} from timm's {name}, got "
                        f"{tuple(levels[source].shape)}"
                    )
        self.body.train()

    def _freeze(self, name: str, stages: int) -> None:
        """Freeze the parameters that the features of the first stages depend on: those that get a gradient from them.

        Raises:
            ValueError: There are no such stages.
        """
        if stages == len(STRIDES):
            self.body.requires_grad_(False)
        elif stages:
            if not 0 < stages < len(STRIDES) or self._reductions != list(STRIDES):
                which = "0 .. 4" if self._reductions == list(STRIDES) else f"0 or 4, as timm's {name} has no stages"
                raise ValueError(f"frozen-stages: expected {which}, got {stages}")
            parameters = list(self.body.parameters())
            self.body.eval()
            with torch.enable_grad():
                level = self._features(torch.zeros(1, 3, *SIZES[0]))[self._sources[stages - 1]]
                gradients = torch.autograd.grad(level.sum(), parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.requires_grad_(gradient is None)
        self.train()


def find(name: str, pretrained: bool = False, frozen_stages: int = 0) -> TimmBackbone | None:
    """Make the backbone of this name.

    Args:
        name: "timm:NAME", or "compact".
        pretrained: See `TimmBackbone`; so is `frozen_stages`.
        frozen_stages: Stages that are not trained.

    Returns:
        The backbone; None for the compact one, which a network makes itself.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: There is no such backbone.
    """
    if name == "compact":
        if pretrained or frozen_stages:
            raise ValueError("backbone: pretrained weights and frozen stages belong to timm:NAME, got compact")
        return None
    kind, _, model = name.partition(":")
    if kind != "timm" or not model:
        raise ValueError(f'backbone: expected "compact" or "timm:NAME", got {name!r}')
    return TimmBackbone(model, pretrained, frozen_stages)


def _nearest(stride: int, reductions: list[int]) -> int:
    """Find the last level of the nearest stride: the same, else the next coarser, else the coarsest."""
    coarser = [reduction for reduction in reductions if reduction >= stride]
    wanted = min(coarser) if coarser else max(reductions)
    return max(index for index, reduction in enumerate(reductions) if reduction == wanted)


def _timm_model(name: str, pretrained: bool) -> Any:
    """Make a model of timm that returns features, for any input size where timm has a way.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: There is no such model, or no such weights.
    """
    timm: Any = require("timm", "timm", extra="timm")
    if ":" not in name and not timm.is_model(name):
        similar = difflib.get_close_matches(name, timm.list_models(), 3)
        raise ValueError(
            f"backbone: timm has no model {name!r}" + (f"; it has {', '.join(similar)}" if similar else "")
        )
    for options in ANY_SIZE:
        try:
            return timm.create_model(name, pretrained=pretrained, features_only=True, **options)
        except Exception as error:  # of timm, or of the hub that it loads weights from
            if isinstance(error, TypeError) and options:
                continue  # it does not know the option
            what = "with pretrained weights " if pretrained else ""
            raise ValueError(f"backbone: timm cannot make {name!r} {what}as a backbone: {error}") from error
    raise AssertionError("the last attempt has no options")
