"""detops: everything around an object detector's network.

    boxes, labels -> targets / assignment -> losses -> criteria           (training)
    image -> preprocess -> [your network] -> decode, NMS -> masks         (inference)

Everything public imports from here; the submodules are for reading.
"""

from detops._load import load
from detops._version import __version__
from detops.assign.assignment import Assignment
from detops.assign.atss import atss_assign
from detops.assign.denoising import DenoisingQueries, denoising_queries
from detops.assign.hungarian import hungarian_match
from detops.assign.linear import linear_assignment
from detops.assign.simota import simota_assign
from detops.assign.tal import TalRule, tal_assign
from detops.criteria.centernet import CenterNetLoss
from detops.criteria.gfl import GFLLoss
from detops.criteria.ld import LDLoss
from detops.criteria.set_masks import MaskRule, SetMasks
from detops.criteria.sets import Denoising, SetLoss
from detops.criteria.task_aligned import TaskAlignedLoss
from detops.criteria.teacher import Teacher
from detops.criteria.yolox import YOLOXLoss
from detops.decode.centernet import decode_centernet
from detops.decode.detections import Detections
from detops.decode.detr import decode_detr
from detops.decode.gfl import decode_gfl
from detops.decode.yolox import decode_yolox
from detops.diagnostics.checked import checked
from detops.diagnostics.environment import env
from detops.diagnostics.stage_timer import StageStats, StageTimer
from detops.diagnostics.syncs import count_syncs
from detops.geometry.distances import boxes_to_distances, distances_to_boxes, distribution_to_distances
from detops.geometry.points import grid_anchors, grid_points
from detops.ground_truth import GroundTruth, collate
from detops.inference.export import decompositions
from detops.inference.nms import batched_nms, nms, nms_mask
from detops.inference.preprocess import PreprocessedImages, preprocess
from detops.integrations.super_gradients import YoloXDetectionLoss, YoloXFastDetectionLoss
from detops.integrations.super_gradients_ppyoloe import PPYoloELoss
from detops.integrations.torchvision import MaskRCNNPipeline
from detops.losses.distribution_focal import DistributionFocalLoss, distribution_focal_loss
from detops.losses.focal import GaussianFocalLoss, gaussian_focal_loss
from detops.losses.focal_from_boxes import gaussian_focal_loss_from_boxes
from detops.losses.iou import BoxIoULoss, box_iou_loss
from detops.losses.localization_distillation import LocalizationDistillationLoss, localization_distillation_loss
from detops.losses.point_mask import point_mask_cost, point_mask_loss, uncertain_points
from detops.losses.prototype_mask import prototype_mask_loss
from detops.losses.quality_focal import QualityFocalLoss, quality_focal_loss
from detops.masks.crops import MaskCrop
from detops.masks.instance_masks import InstanceMasks
from detops.masks.query_decoding import decode_query_masks
from detops.ragged import RaggedBatch
from detops.targets.centernet import CenterNetTargets, centernet_targets
from detops.targets.heatmap import draw_heatmap, draw_heatmap_batched
from detops.targets.radius import gaussian_kernel, gaussian_radius

__all__ = [
    "Assignment",
    "BoxIoULoss",
    "CenterNetLoss",
    "CenterNetTargets",
    "Denoising",
    "DenoisingQueries",
    "Detections",
    "DistributionFocalLoss",
    "GFLLoss",
    "GaussianFocalLoss",
    "GroundTruth",
    "InstanceMasks",
    "LDLoss",
    "LocalizationDistillationLoss",
    "MaskCrop",
    "MaskRCNNPipeline",
    "MaskRule",
    "PPYoloELoss",
    "PreprocessedImages",
    "QualityFocalLoss",
    "RaggedBatch",
    "SetLoss",
    "SetMasks",
    "StageStats",
    "StageTimer",
    "TalRule",
    "TaskAlignedLoss",
    "Teacher",
    "YOLOXLoss",
    "YoloXDetectionLoss",
    "YoloXFastDetectionLoss",
    "__version__",
    "atss_assign",
    "batched_nms",
    "box_iou_loss",
    "boxes_to_distances",
    "centernet_targets",
    "checked",
    "collate",
    "count_syncs",
    "decode_centernet",
    "decode_detr",
    "decode_gfl",
    "decode_query_masks",
    "decode_yolox",
    "decompositions",
    "denoising_queries",
    "distances_to_boxes",
    "distribution_focal_loss",
    "distribution_to_distances",
    "draw_heatmap",
    "draw_heatmap_batched",
    "env",
    "gaussian_focal_loss",
    "gaussian_focal_loss_from_boxes",
    "gaussian_kernel",
    "gaussian_radius",
    "grid_anchors",
    "grid_points",
    "hungarian_match",
    "linear_assignment",
    "load",
    "localization_distillation_loss",
    "nms",
    "nms_mask",
    "point_mask_cost",
    "point_mask_loss",
    "preprocess",
    "prototype_mask_loss",
    "quality_focal_loss",
    "simota_assign",
    "tal_assign",
    "uncertain_points",
]

_MOVED = {"grid_cells": "detops.grid_points"} | {
    name: f"detops.ragged.{name}"
    for name in (
        "apply_mask_to_tensor", "average_over_targets", "batched_bool_indexing", "batched_bool_indexing_write",
        "batched_index_mapping", "batched_indexing_access", "batched_indexing_write", "batched_inverse_indexing_access",
        "combine_data", "get_compact_from_named_tuple", "get_compact_lists", "get_indices_from_mask",
        "get_mask_from_indices", "squeeze_except_batch_and_sample", "sum_over_targets",
    )
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _MOVED:
        raise AttributeError(f"detops.{name} is now {_MOVED[name]}", name=name)
    raise AttributeError(f"module 'detops' has no attribute {name!r}", name=name)
