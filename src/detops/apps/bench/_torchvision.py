"""torchvision without its compiled operators, which a CPU-only PyTorch cannot load: for benchmarks and tests.

There `import torchvision` raises, because the operator `nms` is missing. So that operator is defined here, by that of
detops; and torchvision's own RoIAlign in plain PyTorch, which takes a minute to compile, is replaced by another.
A torchvision whose operators load is left as it is.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.apps import require
from detops.inference.nms import nms

_library: torch.library.Library | None = None  # its operators live as long as it does


def load(command: str = "bench inference") -> ModuleType:
    """Import torchvision, and replace its compiled operators where they are missing.

    Args:
        command: The command that needs it, for the error message.

    Raises:
        ModuleNotFoundError: It is not installed.
        ImportError: It does not fit the PyTorch that is installed.
    """
    try:
        torchvision = require("torchvision", "torchvision", command, extra="torchvision")
    except ModuleNotFoundError:
        raise
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # the import failed halfway
        _define_nms()
        try:
            torchvision = importlib.import_module("torchvision")
        except RuntimeError as error:
            raise ImportError(
                f"torchvision does not fit torch {torch.__version__}: {error}", name="torchvision"
            ) from error
    if not importlib.import_module("torchvision.extension")._has_ops():
        _define_nms()
        boxes: Any = importlib.import_module("torchvision.ops.boxes")
        boxes._assert_has_ops = lambda: None
        module: Any = importlib.import_module("torchvision.ops.roi_align")
        if not hasattr(module._roi_align, "original"):
            module._roi_align = _replaced(module._roi_align)
    return torchvision


def _define_nms() -> None:
    global _library
    if _library is None:
        _library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library.impl("nms", nms, "CPU")


def roi_align(
    features: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Compute RoIAlign as a weighted sum of cells: each bin is a bag of rows of the map, for all boxes at once.

    A bin is the mean of `sampling_ratio` points along each side, a point the bilinear mean of four cells; points
    more than a cell off the map count as zero, as in torchvision's compiled operator.

    Args:
        features: (B, C, H, W).
        rois: (K, 5): image index, then xyxy in pixels of the network's input.
        spatial_scale: Cells of the features per pixel.
        height: Bins along y.
        width: Bins along x.
        sampling_ratio: Points per bin along each side, at least 1.
        aligned: Whether a cell's value is at its centre rather than at its corner.

    Returns:
        (K, C, height, width), of the features' dtype.
    """
    rows, columns = features.shape[2:]
    box = rois[:, 1:].float() * spatial_scale - (0.5 if aligned else 0.0)
    size = box[:, 2:] - box[:, :2]
    size = size if aligned else size.clamp(min=1.0)
    x, x_weight = _cells(box[:, 0], size[:, 0], width, sampling_ratio, columns)
    y, y_weight = _cells(box[:, 1], size[:, 1], height, sampling_ratio, rows)
    row = rois[:, :1, None].long() * rows + y
    index = row[:, :, None, :, None] * columns + x[:, None, :, None, :]  # (K, h, w, 2 ratio, 2 ratio)
    weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    table = features.float().permute(0, 2, 3, 1).reshape(-1, features.shape[1])  # (B H W, C)
    pooled: Tensor = F.embedding_bag(
        index.flatten(0, 2).flatten(1), table, per_sample_weights=weight.flatten(0, 2).flatten(1), mode="sum"
    )
    pooled = pooled.unflatten(0, (len(rois), height, width)).permute(0, 3, 1, 2)
    return pooled.to(features.dtype, memory_format=torch.contiguous_format)


def _cells(start: Tensor, length: Tensor, bins: int, ratio: int, cells: int) -> tuple[Tensor, Tensor]:
    """Along one axis, the cells that each bin's points lie between, and their weights; (K, bins, 2 ratio)."""
    steps = (torch.arange(bins * ratio, device=start.device) + 0.5) / (bins * ratio)
    at = start[:, None] + steps * length[:, None]
    on = (at >= -1) & (at <= cells)
    at = at.clamp(0, cells - 1)
    low = at.long()
    share = at - low
    index = torch.stack([low, (low + 1).clamp(max=cells - 1)], -1)
    weight = torch.stack([1 - share, share], -1) * (on / ratio)[..., None]
    return index.reshape(len(start), bins, 2 * ratio), weight.reshape(len(start), bins, 2 * ratio)


def _replaced(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the RoIAlign above, except if the number of points depends on the box."""

    def chosen(features: Tensor, rois: Tensor, scale: float, height: int, width: int, ratio: int, aligned: bool) -> Any:
        fn = roi_align if ratio > 0 else original
        return fn(features, rois, scale, height, width, ratio, aligned)

    chosen.original = original  # type: ignore[attr-defined]
    return chosen
