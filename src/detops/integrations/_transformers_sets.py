"""The parts of the losses of Transformers' DETR family, by sets of outputs, images and queries."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detops.assign.hungarian import MatchRule, match_sets
from detops.assign.set_targets import require_set_targets
from detops.criteria.sets import weight_of_queries
from detops.geometry.boxes import iou_of_pairs, to_xyxy
from detops.losses._local import bin_values, distillation_loss, fine_grained_loss
from detops.losses._set import Pairs, SetClassLoss, set_losses
from detops.losses.reduction import average_over_ranks


class Local(NamedTuple):
    """What D-FINE's local losses of some sets of outputs read.

    Attributes:
        corners: (S, B, Q, 4 * bins) logits.
        references: (S, B, Q, 4) cxcywh.
        teacher: (1, B, Q, 4 * bins) logits of the last layer.
        teacher_logits: (1, B, Q, C) of the last layer.
        values: (bins,) what each bin stands for.
        scale: By which distances are divided.
        distils: Whether the sets learn from the last layer.
    """

    corners: Tensor
    references: Tensor
    teacher: Tensor
    teacher_logits: Tensor
    values: Tensor
    scale: float
    distils: bool = True


class Outputs(NamedTuple):
    """Sets of outputs: logits (S, B, Q, C) and boxes (S, B, Q, 4)."""

    logits: Tensor
    boxes: Tensor

    def of(self, sets: slice, queries: slice) -> "Outputs":
        """Some sets and queries."""
        return Outputs(self.logits[sets, :, queries], self.boxes[sets, :, queries])

    def as_dicts(self, local: Local | None = None) -> list[dict[str, Tensor]]:
        """The form in which Transformers returns auxiliary outputs."""
        found = [{"logits": a, "pred_boxes": b} for a, b in zip(self.logits, self.boxes, strict=True)]
        if local is not None:
            for one, corners, references in zip(found, local.corners, local.references, strict=True):
                one |= {"pred_corners": corners, "ref_points": references, "teacher_corners": local.teacher[0],
                        "teacher_logits": local.teacher_logits[0]}  # fmt: skip
        return found


Part = tuple[list[str], Outputs, Local | None]  # suffixes of the names of each set's losses


def as_outputs(logits: Any, boxes: Any, clamp: bool = False) -> Outputs:
    """Outputs of one set or of several, stacked or in a list; boxes clamped to 0 .. 1 if so wanted."""
    logits, boxes = (torch.stack(list(one)) if isinstance(one, list | tuple) else one for one in (logits, boxes))
    if logits.dim() == 3:
        logits, boxes = logits[None], boxes[None]
    return Outputs(logits, boxes.clamp(0, 1) if clamp else boxes)


def loss_names(class_name: str) -> list[str]:
    """Names of the losses of a set, the class loss first."""
    return [f"loss_{name}" for name in (class_name, "bbox", "giou", "fgl", "ddf")]


class LocalSets(NamedTuple):
    """D-FINE's distributions as its model gives them: (B, L, Q, 4 * bins) and (B, L, Q, 4); None for none."""

    corners: Tensor | None
    references: Tensor | None

    def of(self, config: Any, every: Outputs, first: int, aligned: bool) -> "LocalLayers":
        """All layers' parts; `first` is the first query that is not for denoising."""
        if self.corners is None or self.references is None:
            raise ValueError("predicted_corners, initial_reference_points: expected tensors, got None")
        values = bin_values(config.max_num_bins, config.up, config.reg_scale, every.logits.device)
        corners, references = self.corners.transpose(0, 1), self.references.transpose(0, 1).detach()
        # In training the model's classes and boxes begin with those of a first head that has no distributions.
        heads = len(every.logits) - len(corners) if aligned else 0
        return LocalLayers(corners, references, every.logits, values, float(config.reg_scale), max(heads, 0), aligned)


class LocalLayers(NamedTuple):
    """The distributions (L, B, Q, 4 * bins) of all layers; `heads` sets of outputs come before them."""

    corners: Tensor
    references: Tensor
    logits: Tensor
    values: Tensor
    scale: float
    heads: int
    aligned: bool

    def of(self, layers: slice, queries: slice, distils: bool = True) -> Local:
        """Those of some layers and queries."""
        return Local(
            self.corners[layers, :, queries], self.references[layers, :, queries], self.corners[-1:, :, queries],
            self.logits[-1:, :, queries].detach(), self.values, self.scale, distils,
        )  # fmt: skip


class Criterion:
    """Matching and losses of one call.

    Args:
        labels: A dict of "class_labels" and "boxes" per image.
        logits: What tells device, images and classes.
        rule: Matching.
        loss: Class loss.
        groups: Of queries.
        ranks: Whether divisors are averaged over ranks.
        background: Whether softmax logits have a column for "no object".
    """

    def __init__(
        self,
        labels: Sequence[Mapping[str, Tensor]],
        logits: Tensor,
        rule: MatchRule,
        loss: SetClassLoss,
        groups: int = 1,
        *,
        ranks: bool = False,
        background: bool = True,
    ) -> None:
        self.targets = require_set_targets(labels, 1 << 30, logits.shape[0], logits, "logits")
        self.lengths = [len(one["class_labels"]) for one in labels]
        self.rule, self.loss, self.groups = rule, loss, groups
        self.num_classes = logits.shape[-1] - (rule.kind == "softmax" and background)
        count = torch.full((), float(sum(self.lengths) * groups), device=logits.device)
        self.boxes = average_over_ranks(count) if ranks else count.clamp(min=1)

    def match(self, outputs: Outputs) -> Tensor:
        """(S, B, Q) box of each query, or -1."""
        return match_sets(*outputs, self.targets, self.rule, self.groups, self.num_classes)[1]

    def losses(
        self, outputs: Outputs, index: Tensor, boxes: Tensor, union: Tensor | None = None,
        weights: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> Tensor:  # fmt: skip
        """(S, 3) losses of given pairs; `union` (B, Q) gives the pairs of the box losses, and their divisor."""
        by_class = (1 / boxes).expand(len(index))
        by_boxes, box_index = by_class, None
        if self.loss.kind == "softmax":
            by_class = weight_of_queries(index, self.loss.no_object).reciprocal()
        if union is not None:
            by_boxes = (1 / (union >= 0).sum().clamp(min=1)).expand(len(index))
            box_index = union.expand_as(index).contiguous()
        pairs = Pairs(self.targets.boxes, self.targets.labels, index, box_index)
        return set_losses(*outputs, pairs, self.loss, torch.stack([by_class, by_boxes], 1), weights)

    @torch.no_grad()
    def cardinality(self, logits: Tensor) -> Tensor:
        """(S,) mean difference between the number of queries that predict an object and that of boxes."""
        if self.rule.kind == "softmax":
            predicted = (logits.argmax(-1) != logits.shape[-1] - 1).sum(-1)
        else:
            predicted = (logits.amax(-1).sigmoid() > 0.5).sum(-1)
        sizes = self.targets.sample_sizes
        wanted = self.targets.labels.shape[1] if sizes is None else sizes
        return (predicted - wanted).abs().float().mean(1)

    def layers(self, last: Part, every: Outputs, first: int, local: LocalLayers | None, encoder: Outputs) -> list[Part]:
        """The last layer, the others, and the encoder, which is named as one more of these."""
        queries = slice(first, None)
        parts = [last]
        inner, part = slice(0, len(every.logits) - 1), None
        if local is not None:
            if local.aligned:
                parts = [(last[0], last[1], local.of(slice(-1, None), queries, distils=False))]
            if local.heads:
                parts.append((["_pre"], every.of(slice(0, local.heads), queries), None))
            count = min(len(every.logits) - local.heads, len(local.corners)) - 1
            inner, part = slice(local.heads, local.heads + count), local.of(slice(0, count), queries)
        outputs = every.of(inner, queries)
        count = len(outputs.logits)
        if count:
            parts.append(([f"_aux_{i}" for i in range(count)], outputs, part))
        return [*parts, ([f"_aux_{count}"], encoder, None)]

    def terms(
        self, parts: Sequence[Part], names: Sequence[str], weights: Mapping[str, float], union: bool
    ) -> dict[str, Tensor]:
        """Weighted losses by name; with `union` box losses are those of the pairs of all parts together."""
        indices = [self.match(outputs) for _, outputs, _ in parts]
        shared = self._union(torch.cat(indices)) if union else None
        found: dict[str, Tensor] = {}
        for (suffixes, outputs, local), index in zip(parts, indices, strict=True):
            found |= self._named(suffixes, outputs, index, self.boxes, local, names, weights, shared)
        return found

    def denoising_terms(
        self, every: Outputs, first: int, groups: int, local: LocalLayers | None, names: Sequence[str],
        weights: Mapping[str, float],
    ) -> dict[str, Tensor]:  # fmt: skip
        """The losses of the first queries, of which each group has a positive and a negative one per box."""
        queries = slice(0, first)
        place = torch.arange(first, device=self.targets.boxes.device) % max(first // groups, 1)
        sizes = self.targets.sample_sizes
        most = self.targets.labels.shape[1]
        limits = place.new_full((len(self.lengths), 1), most) if sizes is None else sizes[:, None]
        index = place.expand(len(limits), -1).where(place < limits, -1)
        outputs, part = every.of(slice(None), queries), None
        found: dict[str, Tensor] = {}
        boxes = self.boxes * groups
        if local is not None:
            if local.heads:
                head = every.of(slice(0, local.heads), queries)
                found = self._named(["_dn_pre"], head, self._expanded(index, head), boxes, None, names, weights)
            count = min(len(every.logits) - local.heads, len(local.corners))
            outputs = every.of(slice(local.heads, local.heads + count), queries)
            part = local.of(slice(0, count), queries)
        suffixes = [f"_dn_{i}" for i in range(len(outputs.logits))]
        return found | self._named(suffixes, outputs, self._expanded(index, outputs), boxes, part, names, weights)

    def _expanded(self, index: Tensor, outputs: Outputs) -> Tensor:
        return index.expand(len(outputs.logits), -1, -1).contiguous()

    def _named(
        self, suffixes: Sequence[str], outputs: Outputs, index: Tensor, boxes: Tensor, local: Local | None,
        names: Sequence[str], weights: Mapping[str, float], union: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        rows = self.losses(outputs, index, boxes, union, [weights[name] for name in names[:3]])
        columns = list(rows.unbind(1))
        if local is not None:
            pairs = index if union is None else union.expand_as(index)
            divisor = boxes if union is None else (union >= 0).sum().clamp(min=1)
            extra = self._local(outputs, pairs, local, divisor)
            columns += [weights[name] * loss
                        for name, loss in zip(names[3:], extra, strict=False)]  # fmt: skip
        return {
            name + suffix: value
            for suffix, values in zip(suffixes, zip(*(column.unbind() for column in columns), strict=True), strict=True)
            for name, value in zip(names, values, strict=False)
        }

    def _local(self, outputs: Outputs, pairs: Tensor, local: Local, divisor: Tensor) -> list[Tensor]:
        """FGL and, where the sets learn from the last layer, DDF: (S,) each."""
        has_box = pairs >= 0
        if self.targets.boxes.shape[1]:
            each = pairs.clamp(min=0)[..., None].expand(-1, -1, -1, 4)
            targets = self.targets.boxes.expand(len(pairs), -1, -1, -1).gather(2, each)
        else:
            targets = torch.zeros_like(outputs.boxes)
        iou = iou_of_pairs(to_xyxy(outputs.boxes.detach()), to_xyxy(targets)).where(has_box, 0)
        loss = fine_grained_loss(local.corners, local.references, targets, iou, local.values, local.scale)
        found = [loss / divisor]
        if local.distils:
            weight = iou.where(has_box, local.teacher_logits.amax(-1).sigmoid())
            found.append(distillation_loss(local.corners, local.teacher, weight, has_box, len(local.values)))
        return found

    def _union(self, index: Tensor) -> Tensor:
        """(B, Q) the box that each query has most often among sets (S, B, Q), ties to the lower; -1 for none."""
        most = self.targets.labels.shape[1]
        if most == 0:
            return torch.full_like(index[0], -1)
        places = index.where(index >= 0, most)[..., None]
        counts = torch.zeros(*index.shape[1:], most + 1, dtype=torch.int32, device=index.device)
        for one in places:
            counts.scatter_add_(2, one, torch.ones_like(one, dtype=torch.int32))
        # Among equal counts the lowest index: the largest of count * (most + 1) - index.
        rank = counts[..., :most] * (most + 1) - torch.arange(most, device=index.device)
        best = rank.amax(-1)
        return ((-best) % (most + 1)).where(best > 0, -1)
