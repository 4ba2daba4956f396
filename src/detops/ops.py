"""Every op of detops: its schema, its meaning in one line, its fake (shape) function, and who implements it.

PyTorch's dispatcher chooses: C++ on the CPU where the library was built, Triton on CUDA and ROCm where Triton
is installed, and the portable PyTorch form everywhere else. Triton is imported when the first GPU tensor comes.

The ops, and what each does:

    atss_match            which box each anchor of a GFL or ATSS is trained on
    draw_gaussians_       draw Gaussians into maps, in place, by element-wise maximum
    gaussian_focal_loss   sum of CenterNet's focal loss over a heatmap, with the gradient in the same pass
    gaussian_focal_loss_from_boxes
                          the same with the targets drawn on the way, and never stored
    positive_losses_backward      the gradient of its box logits
    positive_losses_        a GFL's losses at the anchors that have a box, and their part of the class gradient
    vlr_weights   which anchors near a box learn from a teacher too, and how much
    masks_to_rle          COCO's run lengths of masks in boxes, without their pixels
    nms_mask              which boxes of a batch are left by greedy non-maximum suppression
    paste_masks           enlarge masks to their boxes, and cut them at a threshold
    resize_normalize_pad  uint8 images of any sizes into one resized, normalised, padded batch
    scale_gradient_       multiply a gradient in place; by 1, nothing is touched
    simota_match          which box each cell of a YOLOX is trained on
    yolox_loss            a YOLOX's losses, with the gradient of its outputs in the same pass
"""

import importlib
import importlib.util
import warnings
from typing import Any

import torch

from detops.diagnostics.environment import library_path

SCHEMAS = {
    "atss_match": "(Tensor anchors, SymInt[] level_sizes, Tensor gt_boxes, Tensor gt_labels, Tensor? sample_sizes,"
    " Tensor? valid, int num_classes, int topk) -> (Tensor, Tensor, Tensor)",
    "draw_gaussians_": "(Tensor(a!) heatmap, Tensor centers, Tensor radii, Tensor? labels, Tensor? sample_sizes,"
    " float diameter_to_sigma_factor, float k_scale) -> ()",
    "gaussian_focal_loss": "(Tensor logits, Tensor target, Tensor? scale, float alpha, float gamma,"
    " float pos_weight, float neg_weight, bool with_gradient) -> (Tensor, Tensor)",
    "gaussian_focal_loss_from_boxes": "(Tensor logits, Tensor centers, Tensor radii, Tensor labels,"
    " Tensor? sample_sizes, Tensor? negative_weight, Tensor? scale, float diameter_to_sigma_factor,"
    " float alpha, float gamma, float pos_weight, float neg_weight, bool with_gradient) -> (Tensor, Tensor)",
    "positive_losses_backward": "(Tensor[] bbox_preds, Tensor[] soft_targets, Tensor cells, Tensor gt_boxes,"
    " Tensor index, Tensor weight, Tensor? region, Tensor factors, float temperature, SymInt most) -> Tensor[]",
    "positive_losses_": "(Tensor(a!)[] class_gradients, Tensor[] cls_scores, Tensor[] bbox_preds,"
    " Tensor[] soft_targets, Tensor cells, Tensor gt_boxes, Tensor gt_labels, Tensor index, Tensor? region,"
    " Tensor scale, float beta, float temperature, SymInt most) -> (Tensor, Tensor)",
    "vlr_weights": "(Tensor anchors, Tensor gt_boxes, Tensor threshold, Tensor? valid) -> Tensor",
    "masks_to_rle": "(Tensor masks, Tensor boxes, SymInt height, SymInt width, float threshold, bool compress)"
    " -> (Tensor, Tensor)",
    "nms_mask": "(Tensor boxes, Tensor scores, Tensor? labels, Tensor? valid, float iou_threshold) -> Tensor",
    "paste_masks": "(Tensor masks, Tensor boxes, SymInt height, SymInt width, float threshold) -> Tensor",
    "resize_normalize_pad": "(Tensor[] images, int[] sizes, int height, int width, float[] mean, float[] std,"
    " bool reverse_channels, bool antialias, ScalarType dtype) -> Tensor",
    "scale_gradient_": "(Tensor(a!) gradient, Tensor factor) -> ()",
    "simota_match": "(Tensor[] class_logits, Tensor objectness, Tensor pred_boxes, Tensor cells, Tensor gt_boxes,"
    " Tensor gt_labels, Tensor? sample_sizes, float radius, bool center_only, bool own_candidates, int topk,"
    " float k_scale, float iou_weight, float class_weight) -> (Tensor, Tensor)",
    "yolox_loss": "(Tensor[] outputs, Tensor cells, Tensor gt_boxes, Tensor gt_labels, Tensor index, Tensor iou,"
    " Tensor scale, Tensor? class_pos_weight, int kind, bool use_l1, float iou_weight, float obj_weight,"
    " float cls_weight, bool with_gradient) -> (Tensor, Tensor[])",
}

_library = torch.library.Library("detops", "DEF")


def _returns_nothing(*args: Any) -> None:
    """Fake function of an op that only writes into its first argument."""


def _returns_sum_and_gradient(logits: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Fake function of a loss whose last argument says whether the gradient is wanted."""
    total = torch.float64 if logits.dtype == torch.float64 else torch.float32
    gradient = torch.empty_like(logits) if args[-1] else logits.new_empty(0)
    return logits.new_empty((), dtype=total), gradient


def _returns_mask(boxes: torch.Tensor, *args: Any) -> torch.Tensor:
    """Fake function of an op that says yes or no for each box (B, N, 4)."""
    return boxes.new_empty(boxes.shape[:2], dtype=torch.bool)


def _returns_match(class_logits: list[torch.Tensor], objectness: torch.Tensor, *args: Any) -> Any:
    """Fake function of an assignment: for each cell (B, A) the index of its box, and their IoU."""
    return objectness.new_empty(objectness.shape, dtype=torch.int64), objectness.new_empty(
        objectness.shape, dtype=torch.float32
    )


def _returns_losses_and_gradients(outputs: list[torch.Tensor], *args: Any) -> Any:
    """Fake function of a loss of several levels whose last argument says whether gradients are wanted."""
    total = torch.float64 if outputs[0].dtype == torch.float64 else torch.float32
    gradients = [output.new_empty(output.shape if args[-1] else 0) for output in outputs]
    return outputs[0].new_empty(4, dtype=total), gradients


def _returns_anchor_match(anchors: torch.Tensor, level_sizes: list[int], gt_boxes: torch.Tensor, *args: Any) -> Any:
    """Fake function of an assignment: for each image and anchor the index of its box, their IoU, and thresholds."""
    shape = (gt_boxes.shape[0], anchors.shape[0])
    return (
        gt_boxes.new_empty(shape, dtype=torch.int64),
        gt_boxes.new_empty(shape, dtype=torch.float32),
        gt_boxes.new_empty(gt_boxes.shape[:2], dtype=torch.float32),
    )


def _returns_worth(anchors: torch.Tensor, gt_boxes: torch.Tensor, *args: Any) -> torch.Tensor:
    """Fake function of an op that returns a number for each image and anchor."""
    return gt_boxes.new_empty((gt_boxes.shape[0], anchors.shape[0]), dtype=torch.float32)


def _returns_gfl_losses(gradients: Any, cls_scores: list[torch.Tensor], *args: Any) -> Any:
    """Fake function of losses (6, L), and of a weight for each image and anchor."""
    total = torch.float64 if cls_scores[0].dtype == torch.float64 else torch.float32
    losses = cls_scores[0].new_empty(6, len(cls_scores), dtype=total)
    return losses, cls_scores[0].new_empty(args[5].shape, dtype=torch.float32)


def _returns_gradients(outputs: list[torch.Tensor], *args: Any) -> list[torch.Tensor]:
    """Fake function of an op that returns a contiguous gradient of each level."""
    return [output.new_empty(output.shape) for output in outputs]


def _returns_batch(images: list[torch.Tensor], sizes: list[int], height: int, width: int, *args: Any) -> torch.Tensor:
    """Fake function of an op that makes one batch of images, of the dtype that its last argument names."""
    return images[0].new_empty((len(images), 3, height, width), dtype=args[-1])


def _returns_images(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, *args: Any) -> torch.Tensor:
    """Fake function of an op that makes a picture of each mask."""
    return masks.new_empty((masks.shape[0], height, width), dtype=torch.bool)


def _returns_joined(masks: torch.Tensor, *args: Any) -> Any:
    """Fake function of an op whose first result is as long as the data make it, the second where each mask's begins."""
    dtype = torch.uint8 if args[-1] else torch.int32
    offsets = masks.new_empty(masks.shape[0] + 1, dtype=torch.int64)
    return masks.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=dtype), offsets


FAKES: dict[str, Any] = {
    "atss_match": _returns_anchor_match,
    "draw_gaussians_": _returns_nothing,
    "gaussian_focal_loss": _returns_sum_and_gradient,
    "gaussian_focal_loss_from_boxes": _returns_sum_and_gradient,
    "positive_losses_backward": _returns_gradients,
    "positive_losses_": _returns_gfl_losses,
    "vlr_weights": _returns_worth,
    "masks_to_rle": _returns_joined,
    "nms_mask": _returns_mask,
    "paste_masks": _returns_images,
    "resize_normalize_pad": _returns_batch,
    "scale_gradient_": _returns_nothing,
    "simota_match": _returns_match,
    "yolox_loss": _returns_losses_and_gradients,
}


def _lazily(package: str, op: str) -> Any:
    """The implementation of `op` in `detops.<package>`, imported at its first call."""
    implementation: Any = None

    def call(*args: Any) -> Any:
        nonlocal implementation
        if implementation is None:
            module = importlib.import_module(f"detops.{package}.{op.rstrip('_')}")
            implementation = getattr(module, op)
        return implementation(*args)

    return call


def _register() -> None:
    triton = importlib.util.find_spec("triton") is not None
    for op, schema in SCHEMAS.items():
        _library.define(op + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(op, _lazily("portable", op), "CompositeExplicitAutograd")
        if triton:
            _library.impl(op, _lazily("kernels", op), "CUDA")
        torch.library.register_fake(f"detops::{op}", FAKES[op], lib=_library)


def _load_cpu_kernels() -> None:
    path = library_path()
    reason = "was not built"
    if path is not None:
        try:
            torch.ops.load_library(str(path))
            return
        except OSError as error:
            reason = f"could not be loaded ({error.__cause__ or error})"
    warnings.warn(
        f"detops: the library of C++ kernels {reason}, so the CPU runs portable PyTorch, which is slower. To build"
        " it, install a C++17 compiler (g++ or clang) and reinstall: pip install --force-reinstall --no-deps detops",
        stacklevel=2,
    )


_register()
_load_cpu_kernels()

# Called as overloads, which spares each call the search for one.
atss_match = torch.ops.detops.atss_match.default
draw_gaussians_ = torch.ops.detops.draw_gaussians_.default
gaussian_focal_loss = torch.ops.detops.gaussian_focal_loss.default
gaussian_focal_loss_from_boxes = torch.ops.detops.gaussian_focal_loss_from_boxes.default
positive_losses_backward = torch.ops.detops.positive_losses_backward.default
positive_losses_ = torch.ops.detops.positive_losses_.default
vlr_weights = torch.ops.detops.vlr_weights.default
masks_to_rle = torch.ops.detops.masks_to_rle.default
nms_mask = torch.ops.detops.nms_mask.default
paste_masks = torch.ops.detops.paste_masks.default
resize_normalize_pad = torch.ops.detops.resize_normalize_pad.default
scale_gradient_ = torch.ops.detops.scale_gradient_.default
simota_match = torch.ops.detops.simota_match.default
yolox_loss = torch.ops.detops.yolox_loss.default
