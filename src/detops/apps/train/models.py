"""The networks that `detops train` offers: a backbone with a feature pyramid and a head per kind of detector.

    images (B, 3, H, W) -> features at strides 4, 8, 16, 32 -> merged from coarse to fine
        at stride 4 -> heatmap logits, wh, offset        (CenterNet)
        at strides 8, 16, 32 -> one raw map per level    (YOLOX)
                             -> class logits, distances  (GFL, LD; twice for the task-aligned ones)
                             -> class logits, boxes -> queries refined layer by layer  (DETR, in `detr`)

The backbone is a small ResNet, or one of timm (`--backbone timm:NAME`). Any module with the same inputs and outputs can
replace the whole: `--model module:function`, where the function is called with `num_classes` and `width`.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from detops.apps import import_function, listed
from detops.apps.train import backbones
from detops.apps.train.backbones import CompactBackbone, TimmBackbone, conv
from detops.apps.train.detr import CompactDetr
from detops.apps.train.heads import RARE, CompactDense, Pyramid
from detops.arguments import flat

PRIOR = 0.05  # probability of an object that an untrained heatmap predicts everywhere
# The size in cells is 16 times the output of the last layer, plus 8, so that steps at the usual learning rates reach
# large boxes in time. On blood cells after 20 epochs this gave AP 0.526; an exponential gave 0.510.
WH_SCALE, WH_START = 16.0, 8.0
# Of the steps, after which the second head of a task-aligned network goes on from the weights of the first: with one
# point per box it learns rare classes late. From there on it has a cycle of the learning rate of its own.
SECOND_HEAD = 0.7


class CompactNet(nn.Module):
    """A CenterNet to be trained from random weights, of 1.8 million parameters at width 32.

    Args:
        num_classes: Number of classes C.
        width: Channels at stride 4; deeper stages have 2, 4 and 8 times as many.
        blocks: Residual blocks at strides 4, 8, 16 and 32.
        backbone: Backbone in place of the compact one; pyramid and heads still have 2 * width channels.
    """

    def __init__(
        self, num_classes: int, width: int = 32, blocks: tuple[int, int, int, int] = (1, 2, 2, 1),
        backbone: TimmBackbone | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone = backbone or CompactBackbone(width, blocks)
        self.pyramid = Pyramid(self.backbone.channels, 2 * width)
        self.heads = nn.ModuleList(
            [
                _head(2 * width, num_classes, -math.log((1 - PRIOR) / PRIOR)),
                _head(2 * width, 4, 0.0),
            ]
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the maps of a batch.

        Args:
            images: (B, 3, H, W), normalised; H and W multiples of 32.

        Returns:
            Heatmap logits (B, C, H / 4, W / 4), wh (B, 2, H / 4, W / 4) and offset (B, 2, H / 4, W / 4) in cells.
        """
        top = self.pyramid(self.backbone(images))[0]
        heatmap, boxes = (head(top).float() for head in self.heads)
        return heatmap, WH_SCALE * boxes[:, :2] + WH_START, boxes[:, 2:]


class CompactYoloX(CompactDense):
    """A YOLOX to be trained from random weights, of 2.1 million parameters at width 32.

    Its arguments are those of `CompactNet`.
    """

    def __init__(
        self, num_classes: int, width: int = 32, blocks: tuple[int, int, int, int] = (1, 2, 2, 1),
        backbone: TimmBackbone | None = None,
    ) -> None:  # fmt: skip
        super().__init__(width, blocks, backbone, [(num_classes, RARE)], [(4, 0.5), (1, RARE)])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Predict the maps of a batch.

        Args:
            images: (B, 3, H, W), normalised; H and W multiples of 32.

        Returns:
            A raw map (B, 1, H / s, W / s, 5 + C) per stride s of 8, 16 and 32: x, y, w, h, objectness, class logits.
        """
        raw = []
        for head, level in zip(self.heads, self.levels(images), strict=True):
            (classes,), (boxes, objectness) = head(level)
            raw.append(torch.cat([boxes, objectness, classes], 1).permute(0, 2, 3, 1).contiguous().unsqueeze(1))
        return raw


class CompactGFL(CompactDense):
    """A GFL to be trained from random weights, of 2.2 million parameters at width 32.

    Its arguments are those of `CompactNet`, and `reg_max`: distances are distributions over 0 .. reg_max, in strides.
    """

    def __init__(
        self, num_classes: int, width: int = 32, blocks: tuple[int, int, int, int] = (1, 2, 2, 1),
        backbone: TimmBackbone | None = None, reg_max: int = 16,
    ) -> None:  # fmt: skip
        super().__init__(width, blocks, backbone, [(num_classes, RARE)], [(4 * (reg_max + 1), 0.5)])

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Predict the maps of a batch.

        Args:
            images: (B, 3, H, W), normalised; H and W multiples of 32.

        Returns:
            For the strides s of 8, 16 and 32: class logits (B, C, H / s, W / s), and logits of the distributions of
            the distances, (B, 4 * (reg_max + 1), H / s, W / s).
        """
        return _maps(self.heads, self.levels(images))


class CompactTaskAligned(nn.Module):
    """Two heads on one backbone: the second, to be decoded without suppression, sees detached features.

    2.6 million parameters at width 32. Its arguments are those of `CompactNet`.
    """

    def __init__(
        self, num_classes: int, width: int = 32, blocks: tuple[int, int, int, int] = (1, 2, 2, 1),
        backbone: TimmBackbone | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.many = CompactGFL(num_classes, width, blocks, backbone)
        self.once = copy.deepcopy(self.many.heads)

    def begins_again(self, total_steps: int) -> tuple[list[nn.Parameter], int]:
        """Return the parameters of the second head, and the step at which it goes on from the weights of the first."""
        return list(self.once.parameters()), round(SECOND_HEAD * total_steps)

    def begin_step(self, step: int, total_steps: int) -> None:
        """Give the second head the weights of the first, at one step of the training."""
        if step == self.begins_again(total_steps)[1]:
            self.once.load_state_dict(self.many.heads.state_dict())

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Predict the maps of a batch; of each head those of `CompactGFL.forward`."""
        levels = self.many.levels(images)
        return *_maps(self.many.heads, levels), *_maps(self.once, [level.detach() for level in levels])


def begin_step(network: nn.Module, step: int, total_steps: int) -> None:
    """Call the method of this name that a network may have, before each step of a training.

    Args:
        network: The network, or the copy that holds the average of its weights.
        step: Number of steps that are done.
        total_steps: Number of steps of the training.
    """
    hook = getattr(network, "begin_step", None)
    if hook is not None:
        hook(step, total_steps)


def _maps(heads: nn.ModuleList, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the one map of the class tower and the one of the box tower, of each level."""
    found = [head(level) for head, level in zip(heads, levels, strict=True)]
    return [classes for (classes,), _ in found], [boxes for _, (boxes,) in found]


def _head(channels: int, out: int, bias: float) -> nn.Sequential:
    last = nn.Conv2d(channels, out, 1)
    last.bias = nn.Parameter(torch.full((out,), bias))
    return nn.Sequential(conv(channels, channels), last)


def build(
    model: str,
    num_classes: int,
    width: int,
    detector: str = "centernet",
    *,
    backbone: str = "compact",
    pretrained: bool = False,
    frozen_stages: int = 0,
) -> nn.Module:
    """Build the network of a detector.

    Args:
        model: "compact", or "module:function" (or a class), which may be in the current folder and is called with
            `num_classes` and `width`. The module that it returns takes and returns the same as `CompactNet.forward`
            (at any stride), for YOLOX as `CompactYoloX.forward`, for GFL and LD as `CompactGFL.forward`, for the
            task-aligned ones as `CompactTaskAligned.forward`, for DETR as `CompactDetr.forward`.
        num_classes: Number of classes.
        width: Width of the network, whatever the function takes it to mean.
        detector: "centernet", "yolox", "gfl", "ld", "tal", "tal-once" or "detr".
        backbone: Backbone of the compact model: "compact", or "timm:NAME".
        pretrained: See `backbones.TimmBackbone`; so is `frozen_stages`.
        frozen_stages: Stages of the backbone that are not trained.

    Raises:
        ModuleNotFoundError: The backbone is of timm, which is not installed.
        ValueError: There is no such detector, backbone or function, or the function does not return a module.
    """
    compact: dict[str, Callable[..., nn.Module]] = {
        "centernet": CompactNet, "yolox": CompactYoloX, "gfl": CompactGFL, "ld": CompactGFL,
        "tal": CompactTaskAligned, "tal-once": CompactTaskAligned, "detr": CompactDetr,
    }  # fmt: skip
    if detector not in compact:
        raise ValueError(f"detector: expected {listed(compact)}, got {detector!r}")
    if model == "compact":
        return compact[detector](num_classes, width, backbone=backbones.find(backbone, pretrained, frozen_stages))
    if backbone != "compact":
        raise ValueError(f"backbone: belongs to the model compact; {model!r} has its own")
    build_model = import_function(model, 'model: expected "compact" or')
    try:
        network = build_model(num_classes=num_classes, width=width)
    except MemoryError:
        raise
    except Exception as error:  # whatever a function of the user does
        raise ValueError(f"model: cannot call {model!r} with num_classes and width: {flat(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"model: expected {model!r} to return a torch.nn.Module, got {type(network).__name__}")
    return network
