"""`decompositions`: what the ops of inference are in PyTorch's own terms, for programs that run without detops."""

import importlib
from collections.abc import Callable
from typing import Any

import torch

OPS = ("nms_mask", "decode_distances", "select_detections")  # those that decoders call


def decompositions() -> Any:
    """Return the table that takes the ops of inference out of an exported program.

    `torch.export.export(model, inputs).run_decompositions(detops.decompositions())` holds PyTorch's operators alone: it
    is saved and run where detops is not installed, and `torch.onnx.export` translates it. Suppression then is a loop of
    the program, which ends when no box changes any more.

    Returns:
        `torch.export.default_decompositions()`, with those of this package.

    Example:
        >>> import detops
        >>> class Suppressed(torch.nn.Module):
        ...     def forward(self, boxes, scores):
        ...         return detops.nms_mask(boxes, scores, 0.5)
        >>> inputs = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [8, 8, 9, 9]]), torch.tensor([0.9, 0.8, 0.7])
        >>> program = torch.export.export(Suppressed(), inputs).run_decompositions(detops.decompositions())
        >>> program.module()(*inputs)
        tensor([ True, False,  True])
    """
    table = torch.export.default_decompositions()
    for name in OPS:
        module = importlib.import_module(f"detops.portable.{name}")
        form: Callable[..., Any] = getattr(module, f"{name}_exported", getattr(module, name))
        table[getattr(torch.ops.detops, name).default] = form
    return table
