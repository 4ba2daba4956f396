"""GFL's and LD's losses, a module each: a dense head's outputs and boxes in, numbers out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detops import ops
from detops.assign.assignment import Assignment
from detops.assign.atss import MOST_CANDIDATES, match
from detops.geometry.levels import image_sides, require_maps
from detops.geometry.points import grid_anchors
from detops.losses._dense import gfl_level_losses
from detops.losses.reduction import EPS, average_over_ranks
from detops.ragged.padded import Batch

Losses = dict[str, Tensor] | dict[str, list[Tensor]]
Shapes = Tensor | Sequence[tuple[int, int]] | None
KEPT_GRIDS = 32  # anchors of so many shapes of images


class GFLLoss(nn.Module):
    """ATSS, quality focal loss, distribution focal loss and GIoU loss, for a whole batch.

    The numbers of MMDetection's `GFLHead`: box and distribution losses are weighted by the highest class probability of
    each positive and divided by the sum of these weights; the class loss is divided by the number of positives (each
    image counts as having one). Both divisors are at least 1, and under `torch.distributed` averaged over the ranks, so
    that N ranks give the gradient of one rank on the whole batch. The class logits are read once where they are; box
    logits are read at the positives alone; nothing waits for the host.

    Args:
        num_classes: Number of classes C.
        reg_max: Distances are distributions over 0 .. reg_max strides.
        strides: Pixels a cell of each level.
        anchor_scale: Side of an anchor in cells.
        topk: Candidates a level, 1 .. 1000; see `atss_assign`.
        beta: Exponent of the quality focal loss, above 0.
        cls_weight: Factor of the class loss.
        bbox_weight: Factor of the GIoU loss.
        dfl_weight: Factor of the distribution focal loss.

    Raises:
        ValueError: A number is out of range.

    Reference:
        Li et al., "Generalized Focal Loss", 2020; the numbers of MMDetection's `GFLHead`.
    """

    def __init__(
        self,
        num_classes: int,
        reg_max: int = 16,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        *,
        anchor_scale: float = 8.0,
        topk: int = 9,
        beta: float = 2.0,
        cls_weight: float = 1.0,
        bbox_weight: float = 2.0,
        dfl_weight: float = 0.25,
    ) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("reg_max", reg_max), ("topk", topk)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value!r}")
        for name, number in (("anchor_scale", anchor_scale), ("beta", beta)):
            if not number > 0:
                raise ValueError(f"{name}: expected a number above 0, got {number!r}")
        if topk > MOST_CANDIDATES:
            raise ValueError(f"topk: expected 1 .. {MOST_CANDIDATES}, got {topk!r}")
        if not strides or not all(isinstance(stride, int) and stride >= 1 for stride in strides):
            raise ValueError(f"strides: expected whole numbers of pixels, the same along x and y, got {strides!r}")
        self.num_classes, self.reg_max, self.strides = num_classes, reg_max, tuple(strides)
        self.anchor_scale, self.topk, self.beta = anchor_scale, topk, beta
        self.cls_weight, self.bbox_weight, self.dfl_weight = cls_weight, bbox_weight, dfl_weight
        self._grids: dict[tuple[object, torch.device], tuple[Tensor, Tensor]] = {}

    def forward(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        boxes: Batch,
        labels: Batch,
        image_shapes: Shapes = None,
        *,
        per_level: bool = False,
    ) -> Losses:
        """Compute the losses.

        Args:
            cls_scores: Each level's (B, C, H, W) logits.
            bbox_preds: Each level's (B, 4 * (reg_max + 1), H, W) logits: left, top, right, bottom.
            boxes: `RaggedBatch` (B, N, 4), or a list of B tensors (n, 4): xyxy in pixels. A tensor (B, N, 4) is a
                batch without padding.
            labels: Likewise (B, N) integers; a negative one means "ignore this box".
            image_shapes: Height and width of each image within the batch's padding, (B, 2) or a list; anchors beyond
                them take no part, whatever their logits. None where there is no padding.
            per_level: Return a list with a loss a level, as MMDetection does; their sums are the losses.

        Returns:
            "loss_cls", "loss_bbox" and "loss_dfl", 0-d each or lists of such; their sum is what is trained.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Numbers of levels or channels, shapes or devices do not match; in checked mode also a box that
                is skipped for its values.
        """
        return level_results(self._losses(cls_scores, bbox_preds, [], boxes, labels, image_shapes)[0], per_level)

    def assign(
        self, cls_scores: Sequence[Tensor], boxes: Batch, labels: Batch, image_shapes: Shapes = None
    ) -> Assignment:
        """Return what each anchor is trained on; arguments as in `forward`, anchors level by level, row by row."""
        require_maps("cls_scores", cls_scores, self.num_classes, len(self.strides))
        sizes, anchors, _ = self._grid(cls_scores)
        valid = self._valid(cls_scores, image_shapes)
        batch = len(cls_scores[0])
        return match(anchors, sizes, boxes, labels, self.num_classes, self.topk, valid, batch).assignment()

    def _losses(
        self, cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor], soft_targets: Sequence[Tensor], boxes: Batch,
        labels: Batch, image_shapes: Shapes, temperature: float = 1.0, with_region: bool = False,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:  # fmt: skip
        """GFL's losses (L,) by name; the rest of what the ops return, (6, L); what box losses are divided by."""
        self._check(cls_scores, bbox_preds)
        sizes, anchors, cells = self._grid(cls_scores)
        valid = self._valid(cls_scores, image_shapes)
        found = match(anchors, sizes, boxes, labels, self.num_classes, self.topk, valid, len(cls_scores[0]))
        region = None
        if with_region:
            region = ops.vlr_weights(anchors=anchors, gt_boxes=found.boxes, threshold=found.threshold, valid=valid)
        count = average_over_ranks((found.index >= 0).sum(1).clamp(min=1).sum())
        # No box takes more than its candidates: so memory follows from shapes where anchors are gathered.
        most = found.boxes.shape[1] * sum(min(self.topk, size) for size in sizes)
        parts = gfl_level_losses(
            cls_scores, bbox_preds, soft_targets, cells, found.boxes, found.labels, found.index, region, valid,
            self.cls_weight / (count + EPS), self.beta, temperature, most if region is None else sum(sizes),
        )  # fmt: skip
        divisor = self._box_divisor(parts[1].sum())
        bbox, dfl = self.bbox_weight / (1 + EPS) / divisor, self.dfl_weight / (4 + EPS) / divisor
        return {"loss_cls": parts[0], "loss_bbox": bbox * parts[2], "loss_dfl": dfl * parts[3]}, parts, divisor

    def __getstate__(self) -> dict[str, Any]:
        """Without the kept anchors: they may be megabytes on a device that the reader has not."""
        return self.__dict__ | {"_grids": {}}

    def _box_divisor(self, weights: Tensor) -> Tensor:
        """What box and distribution losses are divided by."""
        return average_over_ranks(weights)

    def _grid(self, cls_scores: Sequence[Tensor]) -> tuple[list[int], Tensor, Tensor]:
        """Sizes of the levels, anchors (A, 4), cells (A, 3) as the ops take them; kept for shapes that come again."""
        shapes, device = [(scores.shape[2], scores.shape[3]) for scores in cls_scores], cls_scores[0].device
        sizes = [height * width for height, width in shapes]
        # A traced or captured tensor must not outlive its graph.
        keep = type(cls_scores[0]) in (Tensor, nn.Parameter) and not torch.compiler.is_compiling()
        keep = keep and not (device.type == "cuda" and torch.cuda.is_current_stream_capturing())
        key = (tuple(shapes), device)
        # Threads may share the module: no step here breaks if another one has changed the dictionary since the last.
        kept = self._grids.get(key) if keep else None
        if kept is not None:
            return sizes, *kept
        anchors = grid_anchors(shapes, self.strides, self.anchor_scale, device)
        side = (anchors[:, 2:3] - anchors[:, :1]) / self.anchor_scale
        cells = torch.cat([(anchors[:, :2] + anchors[:, 2:]) / 2, side], 1)
        if keep:
            for old in list(self._grids)[: max(len(self._grids) - KEPT_GRIDS + 1, 0)]:
                self._grids.pop(old, None)
            self._grids[key] = (anchors, cells)
        return sizes, anchors, cells

    def _valid(self, cls_scores: Sequence[Tensor], image_shapes: Shapes) -> Tensor | None:
        """(B, A) bool: cells whose corner lies in the image."""
        if image_shapes is None:
            return None
        device = cls_scores[0].device
        sides = image_sides(image_shapes, len(cls_scores[0]), device)
        valid = []
        for scores, stride in zip(cls_scores, self.strides, strict=True):
            y = torch.arange(scores.shape[2], device=device) * stride < sides[:, :1]
            x = torch.arange(scores.shape[3], device=device) * stride < sides[:, 1:]
            valid.append((y[:, :, None] & x[:, None]).flatten(1))
        return torch.cat(valid, 1)

    def _check(self, cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor]) -> None:
        for name, levels, channels, like in (
            ("cls_scores", cls_scores, self.num_classes, None),
            ("bbox_preds", bbox_preds, 4 * (self.reg_max + 1), cls_scores),
        ):
            require_maps(name, levels, channels, len(self.strides), like)
            for level in levels:
                if level.dtype != levels[0].dtype:
                    raise TypeError(f"{name}: expected levels of one dtype, got {levels[0].dtype} and {level.dtype}")


def level_results(losses: dict[str, Tensor], per_level: bool) -> Losses:
    """Lists of 0-d losses, or their sums."""
    if per_level:
        return {name: list(parts.unbind()) for name, parts in losses.items()}
    return {name: parts.sum() for name, parts in losses.items()}
