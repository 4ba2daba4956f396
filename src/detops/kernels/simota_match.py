"""`simota_match` in Triton: candidates and their class costs by tile of cells, picks by box, contests by cell.

A program that picks for a box asks the tiles of cells that can matter to it, each once: it keeps the highest IoUs, then
the cheapest cells, as lists in its registers. Nothing is stored for pairs of a box and a cell but the few cells that
are among the best of a box. What is picked is entered by an atomic minimum of [not among the best | cost | box] as one
int64, which gives the same result in any order.
"""

import torch
from torch import Tensor

from detops.kernels._launch import cdiv, next_power_of_2
from detops.kernels._simota import BLOCK_TILE, HULL
from detops.kernels._simota_cells import boxes_kernel, cells_kernel
from detops.kernels._simota_pick import pick_kernel, resolve_kernel
from detops.kernels._top_list import slots_for

__all__ = ["boxes_kernel", "cells_kernel", "pick_kernel", "resolve_kernel", "simota_match"]

BLOCK_BOXES = 128  # boxes per program that prepares them
BLOCK_REACH = 64  # boxes or tiles of which a program sees at once whether they can matter to it
BLOCK_CLASSES = 8  # classes of a step of a program that sums over them
MOST_SLOTS = 256  # picks of a step of a program that picks
MOST_LISTED = 512  # cells in the list of a box's best


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
    """Launch the kernels; arguments and meaning as in `detops.reference.simota_match`."""
    (batch, num_boxes), num_cells = gt_boxes.shape[:2], len(cells)
    cell, given = (t.to(torch.float32).contiguous() for t in (cells, gt_boxes))
    shape = (batch, num_cells)
    if batch == 0 or num_cells == 0 or num_boxes == 0:
        nothing = cell.new_full(shape, -1, dtype=torch.int64)
        return nothing, cell.new_zeros(shape), torch.zeros((), dtype=torch.int64, device=cell.device)
    raw = objectness is None or pred_boxes is None
    if objectness is None or pred_boxes is None:
        scores, pred = cell.new_empty(shape), cell.new_empty(*shape, 4)
    else:
        scores, pred = (t.to(torch.float32).contiguous() for t in (objectness, pred_boxes))
    num_classes, counts = outputs[0].shape[2] - (5 if raw else 0), [level.shape[1] for level in outputs]
    tiles, count = [cdiv(size, BLOCK_TILE) for size in counts], len(outputs)
    # A window of this radius has at most so many cells per axis.
    cap = min(MOST_LISTED, num_cells, count * int(min(MOST_LISTED, 2 * radius + 1)) ** 2)
    most = min(max(1, int(topk * k_scale)), num_cells)
    index, taken = (cell.new_empty(shape, dtype=torch.int64) for _ in range(2))
    matched, total = (cell.new_empty(shape) for _ in range(2))
    candidate, times = (cell.new_empty(shape, dtype=dtype) for dtype in (torch.uint8, torch.int32))
    boxes, positives = cell.new_empty(batch, num_boxes, 8), cell.new_empty((), dtype=torch.int64)
    found, listed = (cell.new_empty(batch, num_boxes, size, dtype=torch.int32) for size in (2, cap))
    hulls, edges = cell.new_empty(batch, HULL.value, sum(tiles)), cell.new_empty(sum(tiles) + 1, dtype=torch.int32)
    labels = gt_labels.contiguous()
    boxes_kernel(
        (cdiv(num_boxes, BLOCK_BOXES), batch),
        (given, labels, labels if sample_sizes is None else sample_sizes.contiguous(), boxes, found, positives),
        (num_classes, num_boxes),
        (sample_sizes is not None, cxcywh, BLOCK_BOXES),
    )
    levels = tuple(outputs)
    places = (
        *(tuple(level.stride(d) for level in outputs) for d in range(3)),
        tuple(sum(counts[:i]) for i in range(count)),
        tuple(counts),
    )
    firsts = tuple(sum(tiles[:i]) for i in range(count))
    together = all(level.stride(2) == 1 for level in outputs)
    cells_kernel(
        (max(tiles), batch * count),
        (levels, scores, pred, cell, boxes, found, listed, hulls, edges, candidate, total, times, taken),
        (*places, firsts, num_classes, num_cells, num_boxes, sum(tiles), cap, radius),
        (
            count, center_only, together, raw, BLOCK_TILE, BLOCK_REACH,
            min(BLOCK_CLASSES, next_power_of_2(num_classes)),
        ),
    )  # fmt: skip
    top = min(topk, num_cells)
    pick_kernel(
        (num_boxes, batch),
        (levels, scores, pred, cell, boxes, found, listed, hulls, edges, candidate, total, times, taken),
        (
            *places, num_classes, num_cells, num_boxes, sum(tiles), cap, most, radius, k_scale, iou_weight,
            class_weight,
        ),
        (
            count, center_only, own_candidates, raw, top, slots_for(top), min(MOST_SLOTS, slots_for(most)),
            BLOCK_TILE, BLOCK_REACH,
        ),
    )  # fmt: skip
    resolve_kernel(
        (max(tiles), batch * count),
        (levels, scores, pred, cell, boxes, found, times, taken, index, matched, positives),
        (*places, num_cells, num_boxes, radius, iou_weight, class_weight),
        (count, center_only, own_candidates, raw, BLOCK_TILE, BLOCK_REACH),
    )
    return index, matched, positives
