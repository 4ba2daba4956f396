"""Sizes so small that all suites run in seconds, to rehearse."""

from typing import Any

from detops.apps.bench import (
    _centernet,
    _gfl,
    _mask_points,
    _sets,
    _task_aligned,
    _yolox,
    assignment,
    draw_gaussians,
    gaussian_focal_loss,
    local_loss,
    maps_to_rle,
    masks_to_rle,
    nms_mask,
    paste_masks,
    resize_normalize_pad,
    rle_measures,
    rle_overlaps,
    rle_to_masks,
    scale_gradient,
    select_detections,
    set_drop_ins,
    set_loss,
    set_loss_backward,
    set_match,
    sets,
)

IMAGES = {"IMAGES": ((80, 60),)}
PEERS = {"tiny": _mask_points.Peer(5, "nearest", "border")}
# By module, which suites that share its sizes read them from.
TINY: dict[Any, dict[str, Any]] = {
    _centernet: {"BATCHES": (1,), "CELLS": 16, "GRID": (16, 16), "IMAGE": (64, 64), "BOXES": 3, "CLASSES": 3},
    _gfl: {"BATCH": 1, "CLASSES": 3, "IMAGE": (130, 200), "COUNTS": (3,)},
    _mask_points: {"BATCH": 1, "QUERIES": 3, "BOXES": 2, "CELLS": 8, "IMAGE": 20, "PEERS": PEERS},
    _sets: {"CLASSES": 3},
    _task_aligned: {"IMAGE": 64, "CONFIGS": ((1, 3, 3),)},
    _yolox: {"BATCH": 1, "CLASSES": 3, "SIDE": 64, "COUNTS": (("at most 3", 1, 3),)},
    assignment: {"SIZES": ((3, 20, 3),)},
    draw_gaussians: {"CONFIGS": (draw_gaussians.Config("tiny", 2, 3, 8, 8, 4, (0, 2), "classwise"),)},
    gaussian_focal_loss: {"CONFIGS": {"2x3x16x16": (2, 3, 16, 16)}},
    maps_to_rle: {"COUNT": 3, "CELLS": (12,), **IMAGES},
    masks_to_rle: IMAGES,
    nms_mask: {"CONFIGS": {"2x20": (2, 20)}},
    paste_masks: {"COUNT": 3, "IMAGE": (80, 60), "SIDES": (16,)},
    resize_normalize_pad: {"SCALE": (66, 40), "CONFIGS": {"480x640": ([(48, 64), (30, 20)], {})}},
    rle_measures: {"CELLS": 12, **IMAGES},
    rle_overlaps: IMAGES,
    rle_to_masks: IMAGES,
    scale_gradient: {"SHAPE": (2, 3)},
    select_detections: {"CONFIGS": {"2x20": (2, 20)}},
    set_drop_ins: {
        "RT_DETR": {"RT-DETR": (2, 1, 20, 3, 6)},
        "D_FINE": {"D-FINE": (3, 1, 20, 3, 6)},
        "RF_DETR": {"RF-DETR": (2, 1, 20, 3, 2)},
        "RF_DETR_CLASSES": 3,
    },
    set_loss: {"SIZES": (2, 1, 20, 3)},
    set_loss_backward: {"SIZES": (2, 1, 20, 3)},
    local_loss: {"SIZES": (2, 1, 20, 3)},
    set_match: {"SIZES": ((2, 1, 20, 3, 1),)},
    sets: {"SIZES": ((2, 1, 20, 3),)},
}


def shrink() -> None:
    """Give all suites tiny sizes, for the rest of the process."""
    for module, constants in TINY.items():
        for name, value in constants.items():
            if not hasattr(module, name):
                raise AttributeError(f"{module.__name__} has no {name}")
            setattr(module, name, value)
