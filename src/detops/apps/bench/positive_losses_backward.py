"""`detops bench gfl_boxes`: the gradient of a GFL's box logits alone."""

from detops.apps.bench.positive_losses import box_cases as cases

__all__ = ["cases"]
