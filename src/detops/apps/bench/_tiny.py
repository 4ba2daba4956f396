"""Sizes so small that all suites run in seconds, to rehearse."""

import sys
from typing import Any

from detops.apps.bench import _sets, _task_aligned, _yolox, runner

# Of the module that defines them; suites that import them by name have copies.
TINY: dict[str, dict[str, Any]] = {
    "_centernet": {"BATCHES": (1,), "CELLS": 16, "GRID": (16, 16), "IMAGE": (64, 64), "BOXES": 3, "CLASSES": 3},
    "_gfl": {"BATCH": 1, "CLASSES": 3, "IMAGE": (130, 200), "COUNTS": (3,)},
    "_task_aligned": {"IMAGE": 64, "CONFIGS": ((1, 3, 3),)},
    "_sets": {"CLASSES": 3},
    "_yolox": {"BATCH": 1, "CLASSES": 3, "SIDE": 64, "COUNTS": (("at most 3", 1, 3),)},
    "assignment": {"SIZES": ((3, 20, 3),)},
    "gaussian_focal_loss": {"CONFIGS": {"2x3x16x16": (2, 3, 16, 16)}},
    "maps_to_rle": {"COUNT": 3, "CELLS": (12,), "IMAGES": ((80, 60),)},
    "masks_to_rle": {"IMAGES": ((80, 60),)},
    "nms_mask": {"CONFIGS": {"2x20": (2, 20)}},
    "paste_masks": {"COUNT": 3, "IMAGE": (80, 60), "SIDES": (16,)},
    "resize_normalize_pad": {"SCALE": (66, 40), "CONFIGS": {"480x640": ([(48, 64), (30, 20)], {})}},
    "rle_measures": {"IMAGES": ((80, 60),)},
    "scale_gradient": {"SHAPE": (2, 3)},
    "set_match": {"SIZES": ((2, 1, 20, 3, 1),)},
    "sets": {"SIZES": ((2, 1, 20, 3),)},
}


def shrink() -> None:
    """Give all suites tiny sizes, for the rest of the process."""
    runner.suites()  # imports them
    folder = "detops.apps.bench."
    modules = [module for name, module in sys.modules.items() if name.startswith(folder)]
    for source, constants in TINY.items():
        for name, value in constants.items():
            former = getattr(sys.modules[folder + source], name)
            for module in modules:
                if getattr(module, name, None) == former:
                    setattr(module, name, value)
    _yolox.scene.__defaults__ = (1, 3, 64)
    _task_aligned.Scene.__init__.__defaults__ = (64,)
    _sets.Scene.__init__.__defaults__ = (3,)
    draw: Any = sys.modules[folder + "draw_gaussians"]
    draw.CONFIGS = [draw.Config("tiny", 2, 3, 8, 8, 4, (0, 2), "classwise")]
