"""Every op of detops, each declared once: its name, its meaning, its schema and its shapes.

A declaration is a function under `@op`. Its docstring says what the op does (`detops.reference` has it in full), its
signature is the schema, and its body is the fake function: the shapes and dtypes of the results, without values. The
decorator replaces the declaration by the op, which has the same signature and is called by position or keyword.

PyTorch's dispatcher chooses the form that runs: C++ on the CPU if the library was built, Triton on CUDA and ROCm if
Triton works there, and portable PyTorch everywhere else. Triton is imported when the first GPU tensor comes.
"""

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.diagnostics.environment import library_path, triton_problem

P = ParamSpec("P")
R = TypeVar("R")

_library = torch.library.Library("detops", "DEF")


def op(*, mutates: tuple[str, ...] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register the op that a function declares, and put the op in the function's place.

    Args:
        mutates: Names of the arguments that the op writes into.
    """

    def register(declaration: Callable[P, R]) -> Callable[P, R]:
        name = declaration.__name__
        schema = torch.library.infer_schema(declaration, mutates_args=mutates)
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, _lazily("portable", name), "CompositeExplicitAutograd")
        _library.impl(name, _on_gpu(name), "CUDA")
        torch.library.register_fake(f"detops::{name}", declaration, lib=_library)
        # The overload looks up keywords one by one (3 us for 13 of them); in a Python function they cost nothing.
        overload = getattr(torch.ops.detops, name).default
        names = ", ".join(inspect.signature(declaration).parameters)
        call = eval(f"lambda {names}: overload({names})", {"overload": overload})
        call.__defaults__ = declaration.__defaults__
        return functools.update_wrapper(call, declaration)

    return register


def _lazily(package: str, name: str) -> Any:
    """Return the implementation of an op in `detops.<package>`, which is imported at its first call."""
    implementation: Any = None

    def call(*args: Any) -> Any:
        nonlocal implementation
        if implementation is None:
            module = importlib.import_module(f"detops.{package}.{name.rstrip('_')}")
            implementation = getattr(module, name)
        return implementation(*args)

    return call


def _on_gpu(name: str) -> Any:
    """The implementation of an op on CUDA and ROCm: Triton, or the portable form where Triton does not work.

    The first call on a device decides, for the whole process. Nothing is decided while a CUDA graph is captured, as
    nothing can be compiled then, and without a GPU, where only launches are counted.
    """
    chosen: Any = None
    triton = _lazily("kernels", name)

    def call(*args: Any) -> Any:
        nonlocal chosen
        if chosen is None:
            if not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():
                return triton(*args)
            chosen = triton if _triton_works() else _lazily("portable", name)
        return chosen(*args)

    return call


@functools.cache
def _triton_works() -> bool:
    problem = triton_problem()
    if problem is not None:
        warnings.warn(
            f"detops: Triton does not work on this machine ({problem}), so the GPU runs portable PyTorch, which is"
            " slower. Triton needs a C compiler (gcc or clang, or the one that CC names), Python's headers, and a GPU"
            " that it supports.",
            stacklevel=2,
        )
    return problem is None


@op()
def assignment(cost: Tensor, sizes: Tensor | None) -> Tensor:
    """Assign rows to columns at the least total cost, exactly, problem by problem."""
    return cost.new_empty((cost.shape[0], cost.shape[2]), dtype=torch.int64)


@op()
def atss_match(
    anchors: Tensor,
    level_sizes: list[int],
    gt_boxes: Tensor,
    gt_labels: Tensor,
    sample_sizes: Tensor | None,
    valid: Tensor | None,
    num_classes: int,
    topk: int,
    margin: float,
    strict: bool,
    all_boxes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the box that ATSS assigns to each anchor, their IoU, the boxes' thresholds, and the number of positives."""
    shape = (gt_boxes.shape[0], anchors.shape[0])
    threshold = gt_boxes.new_empty(gt_boxes.shape[:2], dtype=torch.float32)
    index, iou = (gt_boxes.new_empty(shape, dtype=dtype) for dtype in (torch.int64, torch.float32))
    return index, iou, threshold, gt_boxes.new_empty(shape[0], dtype=torch.int64)


@op()
def background_losses(
    logits: list[Tensor],
    valid: Tensor | None,
    counts: Tensor,
    least: float,
    eps: float,
    kept: float,
    factor: float,
    gamma: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Sum each level's class loss as if no point had a box, divided by counts, and its gradient, in one pass."""
    losses = logits[0].new_empty(len(logits), dtype=accumulate_dtype(logits[0]))
    scales = logits[0].new_empty((3, counts.shape[0]), dtype=torch.float32)
    return losses, scales, [torch.empty_like(level) for level in logits] if with_gradient else []


@op()
def centernet_cells(
    boxes: Tensor,
    labels: Tensor,
    sample_sizes: Tensor | None,
    map_size: list[int],
    image_size: list[int],
    num_classes: int,
    min_overlap: float,
    min_radius: int,
    legacy: bool,
    elliptical: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Find the cell, the radius and the training targets of each box on CenterNet's map, and count the centres."""
    shape, pair, dtype = labels.shape, (*labels.shape, 2), accumulate_dtype(boxes)
    return (
        labels.new_empty(pair, dtype=torch.int64),
        labels.new_empty(pair if elliptical > 0 else shape, dtype=torch.int64),
        labels.new_empty(shape, dtype=torch.int64),
        labels.new_empty(pair, dtype=dtype),
        labels.new_empty(pair, dtype=dtype),
        labels.new_empty(shape, dtype=torch.int64),
        labels.new_empty(shape, dtype=torch.bool),
        labels.new_empty((), dtype=torch.int64),
    )


@op()
def centernet_losses(
    logits: Tensor,
    wh: Tensor,
    offset: Tensor,
    centers: Tensor,
    radii: Tensor,
    labels: Tensor,
    negative_weight: Tensor | None,
    gt_wh: Tensor,
    gt_offset: Tensor,
    index: Tensor,
    used: Tensor,
    count: Tensor,
    least: float,
    diameter_to_sigma_factor: float,
    alpha: float,
    gamma: float,
    pos_weight: float,
    neg_weight: float,
    wh_weight: float,
    offset_weight: float,
    kept: list[float],
    with_gradient: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Compute CenterNet's losses of heatmap, size and offset, with the targets of boxes, and the maps' gradients."""
    maps = (logits, wh, offset)
    dtype = torch.float64 if torch.float64 in (one.dtype for one in maps) else torch.float32
    gradients = [one.new_empty(one.shape if with_gradient else 0) for one in maps]
    return logits.new_empty(3, dtype=dtype), logits.new_empty(3, dtype=dtype), gradients


@op()
def centernet_maps(
    wh: Tensor, offset: Tensor, index: Tensor, used: Tensor, height: int, width: int, dtype: torch.dtype
) -> Tensor:
    """Write the sizes and offsets of boxes into dense maps, at their cells."""
    return index.new_empty((index.shape[0], 5, height, width), dtype=dtype)


@op()
def decode_distances(bbox_preds: list[Tensor], points: Tensor) -> Tensor:
    """Decode the box that each point predicts, by the distances of its sides or their distributions."""
    return points.new_empty((bbox_preds[0].shape[0], points.shape[0], 4), dtype=torch.float32)


@op()
def decode_peaks(
    logits: Tensor, wh: Tensor, offset: Tensor, kernel: int, scale_x: float, scale_y: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the highest local maxima of CenterNet's heatmap, and decode the box at each."""
    shape = logits.shape[0], min(count, logits.shape[1] * logits.shape[2] * logits.shape[3])
    return (
        logits.new_empty((*shape, 4), dtype=torch.float32),
        logits.new_empty(shape, dtype=torch.int64),
        logits.new_empty(shape, dtype=torch.float32),
    )


@op()
def decode_rows(outputs: list[Tensor], points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decode the box, the best class and the logits that each raw row of a YOLOX network predicts."""
    shape = outputs[0].shape[0], points.shape[0]
    return (
        points.new_empty((*shape, 4), dtype=torch.float32),
        points.new_empty(shape, dtype=torch.int64),
        points.new_empty(shape, dtype=torch.float32),
        points.new_empty(shape, dtype=torch.float32),
    )


@op(mutates=("heatmap",))
def draw_gaussians_(
    heatmap: Tensor,
    centers: Tensor,
    radii: Tensor,
    labels: Tensor | None,
    sample_sizes: Tensor | None,
    diameter_to_sigma_factor: float,
    k_scale: float,
) -> None:
    """Draw the Gaussian of each box into heatmaps, in place, by element-wise maximum."""


@op()
def gaussian_focal_loss(
    logits: Tensor,
    target: Tensor,
    scale: Tensor | None,
    alpha: float,
    gamma: float,
    pos_weight: float,
    neg_weight: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Sum CenterNet's focal loss over a heatmap of targets, and compute its gradient in the same pass."""
    return _sum_and_gradient(logits, with_gradient)


@op()
def gaussian_focal_loss_from_boxes(
    logits: Tensor,
    centers: Tensor,
    radii: Tensor,
    labels: Tensor,
    sample_sizes: Tensor | None,
    negative_weight: Tensor | None,
    scale: Tensor | None,
    diameter_to_sigma_factor: float,
    alpha: float,
    gamma: float,
    pos_weight: float,
    neg_weight: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Sum CenterNet's focal loss and compute its gradient, with targets that are drawn from boxes and never stored."""
    return _sum_and_gradient(logits, with_gradient)


@op()
def local_loss(
    corners: Tensor,
    references: Tensor,
    teacher_logits: Tensor,
    pred_boxes: list[Tensor],
    parts: list[int],
    distils: list[int],
    gt_boxes: Tensor,
    index: Tensor,
    values: Tensor,
    scale: Tensor,
    reach: float,
    weights: list[float],
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Sum D-FINE's losses of box distributions of several layers, and compute their gradient in the same pass."""
    losses = scale.new_empty((scale.shape[0], 2), dtype=accumulate_dtype(corners))
    return losses, torch.empty_like(corners) if with_gradient else corners.new_empty(0)


@op(mutates=("gradient",))
def local_loss_backward_(
    gradient: Tensor,
    corners: Tensor,
    references: Tensor,
    pred_boxes: list[Tensor],
    parts: list[int],
    distils: list[int],
    gt_boxes: Tensor,
    index: Tensor,
    values: Tensor,
    scale: Tensor,
    reach: float,
    weights: list[float],
    upstream: Tensor,
) -> None:
    """Multiply the gradient that `local_loss` made by those of its results."""


@op()
def maps_at_points(maps: Tensor, index: Tensor | None, points: Tensor, nearest: bool, border: bool) -> Tensor:
    """Read maps at points: interpolated, or at the nearest cell."""
    return maps.new_empty(points.shape[:3], dtype=accumulate_dtype(maps))


@op()
def maps_at_points_backward(
    gradient: Tensor, index: Tensor | None, points: Tensor, count: int, height: int, width: int, border: bool
) -> Tensor:
    """Hand the gradient of maps' values at points back to the maps."""
    return gradient.new_empty((gradient.shape[0], count, height, width))


@op()
def maps_to_rle(
    maps: Tensor,
    y: Tensor,
    x: Tensor,
    via_y: Tensor | None,
    via_x: Tensor | None,
    windows: Tensor | None,
    threshold: float,
    compress: bool,
) -> tuple[Tensor, Tensor]:
    """Encode low-resolution maps of an image, enlarged and cut at a threshold, as COCO's run lengths."""
    runs = maps.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8 if compress else torch.int32)
    return runs, maps.new_empty(maps.shape[0] + 1, dtype=torch.int64)


@op()
def masks_to_rle(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, compress: bool
) -> tuple[Tensor, Tensor]:
    """Encode masks that lie in boxes as COCO's run lengths, without making their pixels."""
    runs = masks.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8 if compress else torch.int32)
    return runs, masks.new_empty(masks.shape[0] + 1, dtype=torch.int64)


@op()
def nms_mask(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, valid: Tensor | None, iou_threshold: float
) -> Tensor:
    """Mark the boxes of a batch that greedy non-maximum suppression keeps."""
    return boxes.new_empty(boxes.shape[:2], dtype=torch.bool)


@op()
def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """Enlarge each mask to its box in an empty image, and cut it at a threshold."""
    return masks.new_empty((masks.shape[0], height, width), dtype=torch.bool)


@op()
def point_mask_costs(logits: Tensor, points: Tensor | None, labels: Tensor, border: bool) -> tuple[Tensor, Tensor]:
    """Compute the cross entropy and the dice cost of all pairs of queries and masks of an image, at points."""
    shape, dtype = (*logits.shape[:2], labels.shape[1]), accumulate_dtype(logits)
    return logits.new_empty(shape, dtype=dtype), logits.new_empty(shape, dtype=dtype)


@op()
def point_mask_losses(
    maps: Tensor, index: Tensor, points: Tensor, labels: Tensor, nearest: bool, border: bool, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the cross entropy and the dice loss of matched maps at points, and the gradient of their sum."""
    shape, dtype = (*points.shape[:2], 2), accumulate_dtype(maps)
    gradient = maps.new_empty(maps.shape if with_gradient else 0)
    return maps.new_empty(shape, dtype=dtype), maps.new_empty(shape, dtype=dtype), gradient


@op(mutates=("gradient",))
def point_mask_losses_backward_(
    gradient: Tensor,
    maps: Tensor,
    index: Tensor,
    points: Tensor,
    labels: Tensor,
    sums: Tensor,
    factors: Tensor,
    nearest: bool,
    border: bool,
    known: bool,
) -> None:
    """Write the gradient of `point_mask_losses` with respect to all maps, or scale what is known of it."""


@op(mutates=("class_gradients",))
def positive_losses_(
    class_gradients: list[Tensor],
    cls_scores: list[Tensor],
    bbox_preds: list[Tensor],
    soft_targets: list[Tensor],
    points: Tensor,
    boxes: Tensor,
    labels: Tensor,
    index: Tensor,
    quality: Tensor | None,
    weight: Tensor | None,
    region: Tensor | None,
    background: Tensor,
    scales: Tensor,
    box_scale: Tensor | None,
    least: float,
    eps: float,
    divide_distillation: bool,
    weights: list[float],
    class_kind: int,
    box_kind: int,
    alpha: float,
    gamma: float,
    temperature: float,
    margin: float,
    most: int,
    heads: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum class and box losses over the points that have a box, and set the class gradient at these, in place."""
    losses = cls_scores[0].new_empty((6, heads or len(cls_scores)), dtype=accumulate_dtype(cls_scores[0]))
    factors, weight = (scales.new_empty(shape, dtype=torch.float32) for shape in ((4, scales.shape[1]), index.shape))
    return losses, factors, weight


@op()
def positive_losses_backward(
    bbox_preds: list[Tensor],
    soft_targets: list[Tensor],
    points: Tensor,
    boxes: Tensor,
    index: Tensor,
    weight: Tensor,
    region: Tensor | None,
    slopes: Tensor,
    factors: Tensor,
    weights: list[float],
    box_kind: int,
    temperature: float,
    margin: float,
    most: int,
) -> list[Tensor]:
    """Compute the gradient of the box losses of `positive_losses_` with respect to the box logits."""
    return [preds.new_empty(preds.shape) for preds in bbox_preds]


@op()
def prototype_losses(
    coefficients: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    index: Tensor,
    cells: Tensor,
    scale: Tensor | None,
    kind: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the mask losses of coefficients over prototypes within boxes, and compute both gradients in the same pass."""
    dtype = accumulate_dtype(coefficients)
    gradients = [like.new_empty(like.shape if with_gradient else 0, dtype=dtype) for like in (coefficients, prototypes)]
    return coefficients.new_empty((), dtype=dtype), gradients[0], gradients[1]


@op()
def resize_normalize_pad(
    images: list[Tensor],
    sizes: list[int],
    height: int,
    width: int,
    mean: list[float],
    std: list[float],
    reverse_channels: bool,
    antialias: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Make one resized, normalised, padded batch of uint8 images of any sizes."""
    return images[0].new_empty((len(images), 3, height, width), dtype=dtype)


@op()
def rle_measures(counts: Tensor, offsets: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Count the pixels of masks, and find the boxes around them, from run lengths."""
    number = offsets.shape[0] - 1
    return counts.new_empty(number, dtype=torch.int64), counts.new_empty((number, 4), dtype=torch.int64)


@op()
def rle_overlaps(
    counts: Tensor, offsets: Tensor, other_counts: Tensor, other_offsets: Tensor, height: int, width: int
) -> Tensor:
    """Count the pixels that each mask shares with each of others, from run lengths."""
    return counts.new_empty((offsets.shape[0] - 1, other_offsets.shape[0] - 1), dtype=torch.int64)


@op()
def rle_to_masks(
    counts: Tensor,
    offsets: Tensor,
    height: int,
    width: int,
    x: int,
    y: int,
    rows: int,
    columns: int,
    packed: bool,
) -> Tensor:
    """Make the pixels of a window of the image from run lengths; packed, eight per byte."""
    shape = (offsets.shape[0] - 1, rows, (columns + 7) // 8 if packed else columns)
    return counts.new_empty(shape, dtype=torch.uint8 if packed else torch.bool)


@op(mutates=("gradients",))
def scale_gradient_(gradients: list[Tensor], factor: Tensor, columns: list[int] | None = None) -> None:
    """Multiply gradients in place, by one factor or one per tensor or group of columns; by 1, nothing is written."""


@op()
def select_detections(
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    image_sizes: Tensor | None,
    least: float,
    iou_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Clip sorted candidates, drop those that are none, suppress within labels, and keep the first."""
    shape = (boxes.shape[0], max_detections)
    return (
        boxes.new_empty((*shape, 4), dtype=torch.float32),
        boxes.new_empty(shape, dtype=torch.int64),
        boxes.new_empty(shape, dtype=torch.float32),
    )


@op()
def set_loss(
    class_logits: list[Tensor],
    pred_boxes: list[Tensor],
    parts: list[int],
    gt_boxes: Tensor,
    gt_labels: Tensor,
    index: Tensor,
    box_index: Tensor | None,
    quality: Tensor | None,
    scale: Tensor,
    weights: list[float],
    kind: int,
    alpha: float,
    gamma: float,
    factor: float,
    clamp: bool,
    with_gradient: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Sum DETR's class, L1 and GIoU losses of several sets of outputs, and compute their gradients in the same pass."""
    losses = scale.new_empty((scale.shape[0], 3), dtype=accumulate_dtype(class_logits[0]))
    if not with_gradient:
        return losses, [], pred_boxes[0].new_empty(0)
    return losses, [torch.empty_like(one) for one in class_logits], pred_boxes[0].new_empty((2, *index.shape, 4))


@op(mutates=("gradients",))
def set_loss_backward_(
    gradients: list[Tensor], box_gradients: Tensor, pred_boxes: list[Tensor], parts: list[int], upstream: Tensor
) -> Tensor:
    """Scale the gradients that `set_loss` made, and add up those by the boxes."""
    return pred_boxes[0].new_empty((sum(one.shape[0] * one.shape[1] * one.shape[2] for one in pred_boxes), 4))


@op()
def set_match(
    class_logits: list[Tensor],
    pred_boxes: list[Tensor],
    gt_boxes: Tensor,
    gt_labels: Tensor,
    sample_sizes: Tensor | None,
    num_classes: int,
    groups: int,
    kind: int,
    alpha: float,
    gamma: float,
    eps: float,
    class_cost: float,
    box_cost: float,
    giou_cost: float,
    extra_cost: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Match boxes and queries as DETR does: the query of each box per group, the box of each query, valid boxes."""
    sets = sum(one.shape[0] for one in class_logits)
    rows = sum(one.shape[0] * one.shape[1] * one.shape[2] for one in class_logits)
    query = gt_boxes.new_empty((sets, groups, *gt_labels.shape), dtype=torch.int64)
    index = gt_boxes.new_empty(rows, dtype=torch.int64)
    return query, index, gt_boxes.new_empty(gt_labels.shape, dtype=torch.bool)


@op()
def simota_match(
    outputs: list[Tensor],
    objectness: Tensor | None,
    pred_boxes: Tensor | None,
    cells: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    sample_sizes: Tensor | None,
    radius: float,
    center_only: bool,
    own_candidates: bool,
    topk: int,
    k_scale: float,
    iou_weight: float,
    class_weight: float,
    cxcywh: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the box that SimOTA assigns to each cell of a YOLOX network, their IoU, and how many cells have a box."""
    first, shape = outputs[0], (outputs[0].shape[0], cells.shape[0])
    count = first.new_empty((), dtype=torch.int64)
    return first.new_empty(shape, dtype=torch.int64), first.new_empty(shape, dtype=torch.float32), count


@op()
def tal_match(
    class_logits: list[Tensor],
    pred_boxes: Tensor,
    points: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    sample_sizes: Tensor | None,
    valid: Tensor | None,
    alpha: float,
    beta: float,
    topk: int,
    ciou: bool,
    all_points: bool,
    all_boxes: bool,
    fallback: bool,
    margin: float,
    reach: float,
    min_side: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Find the box that each point is trained on by task alignment, and what its class is trained towards."""
    shape = pred_boxes.shape[:2]
    return pred_boxes.new_empty(shape, dtype=torch.int64), pred_boxes.new_empty(shape, dtype=torch.float32)


@op()
def top_logits(logits: list[Tensor], least: float, count: int) -> tuple[Tensor, Tensor]:
    """Find each level's highest class logits, all levels' together in descending order, and where they lie."""
    sizes = [level.shape[1] * level.shape[2] * level.shape[3] for level in logits]
    width = sum(min(count, size) for size in sizes)
    shape = (logits[0].shape[0], width)
    return logits[0].new_empty(shape, dtype=torch.float32), logits[0].new_empty(shape, dtype=torch.int64)


@op()
def uncertain_places(maps: Tensor, index: Tensor, points: Tensor, count: int, border: bool) -> Tensor:
    """Choose the points of each map at which its logits are nearest to 0: their places, ascending."""
    return maps.new_empty((*points.shape[:2], count), dtype=torch.int64)


@op()
def vlr_weights(anchors: Tensor, gt_boxes: Tensor, threshold: Tensor, valid: Tensor | None) -> Tensor:
    """Weigh each anchor of LD's localization region by its IoU with the box that it is near."""
    return gt_boxes.new_empty((gt_boxes.shape[0], anchors.shape[0]), dtype=torch.float32)


@op()
def yolox_loss(
    outputs: list[Tensor],
    cells: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    index: Tensor,
    iou: Tensor,
    scale: Tensor,
    class_pos_weight: Tensor | None,
    kind: int,
    use_l1: bool,
    iou_weight: float,
    obj_weight: float,
    cls_weight: float,
    with_gradient: bool,
    cxcywh: bool = True,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Sum YOLOX's losses over a network's outputs, weighted and not, and compute their gradient in the same pass."""
    gradients = [output.new_empty(output.shape if with_gradient else 0) for output in outputs]
    dtype = accumulate_dtype(outputs[0])
    return outputs[0].new_empty(3, dtype=dtype), outputs[0].new_empty(4, dtype=dtype), gradients


def _sum_and_gradient(logits: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Return the results of a loss of one map, without values."""
    gradient = torch.empty_like(logits) if with_gradient else logits.new_empty(0)
    return logits.new_empty((), dtype=accumulate_dtype(logits)), gradient


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


_load_cpu_kernels()
