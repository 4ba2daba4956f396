"""The parts of the losses of Transformers' DETR family, by sets of outputs, images and queries."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detops.assign.hungarian import MatchRule, match_sets
from detops.assign.set_targets import require_set_targets
from detops.criteria.sets import weight_of_queries
from detops.losses._local import Distributions, LocalParts, local_losses
from detops.losses._set import Outputs, Pairs, SetClassLoss, set_losses
from detops.losses.reduction import average_over_ranks


class Stack(NamedTuple):
    """Sets of outputs: logits (S, B, Q, C), boxes (S, B, Q, 4), and these as they are matched and returned."""

    logits: Tensor
    boxes: Tensor
    clamped: Tensor


class Part(NamedTuple):
    """Some sets and queries of a stack.

    Attributes:
        stack: Which.
        sets: Its first set, and how many.
        queries: Its first query, and how many.
        suffixes: Of the names of each set's losses.
        layer: The first layer of the distributions that belong to its sets; None without.
        distils: Whether these learn from the last layer's.
    """

    stack: int
    sets: tuple[int, int]
    queries: tuple[int, int]
    suffixes: list[str]
    layer: int | None = None
    distils: bool = True

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a tensor (S, B, Q, ...)."""
        first, count = self.queries
        return tensor[self.sets[0] : sum(self.sets), :, first : first + count]


def stacked(logits: Any, boxes: Any, clamp: bool = False) -> Stack:
    """Outputs of one set or of several, stacked or in a list; boxes limited to 0 .. 1 if so wanted."""
    logits, boxes = (torch.stack(list(one)) if isinstance(one, list | tuple) else one for one in (logits, boxes))
    if logits.dim() == 3:
        logits, boxes = logits[None], boxes[None]
    return Stack(logits, boxes, boxes.clamp(0, 1) if clamp else boxes)


def is_last(last: Tensor, every: Any, dim: int) -> bool:
    """Whether a tensor is a view of the last of all layers, so that its gradient may as well go to all of them."""
    if not isinstance(every, Tensor) or torch.compiler.is_compiling() or last._base is None:
        return False
    other = every.select(dim, -1)
    same = last.stride() == other.stride() and last.storage_offset() == other.storage_offset()
    return same and last.shape == other.shape and last._base is (every if every._base is None else every._base)


def loss_names(class_name: str) -> list[str]:
    """Names of the losses of a set, the class loss first."""
    return [f"loss_{name}" for name in (class_name, "bbox", "giou", "fgl", "ddf")]


def as_dicts(stack: Stack, part: Part, local: Distributions | None = None) -> list[dict[str, Tensor]]:
    """The form in which Transformers returns the outputs of a part."""
    rows = zip(part.of(stack.logits), part.of(stack.clamped), strict=True)
    found = [{"logits": logits, "pred_boxes": boxes} for logits, boxes in rows]
    if local is not None and part.layer is not None:
        first, count = part.queries
        queries = slice(first, first + count)
        for i, one in enumerate(found):
            layer = part.layer + i
            one |= {"pred_corners": local.corners[layer, :, queries], "ref_points": local.references[layer, :, queries],
                    "teacher_corners": local.corners[-1, :, queries],
                    "teacher_logits": local.teacher_logits[:, queries]}  # fmt: skip
    return found


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
        clamp: Whether boxes are limited to 0 .. 1.
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
        clamp: bool = False,
    ) -> None:
        self.targets = require_set_targets(labels, 1 << 30, logits.shape[0], logits, "logits")
        self.rule, self.loss, self.groups, self.clamp, self.ranks = rule, loss, groups, clamp, ranks
        self.num_classes = logits.shape[-1] - (rule.kind == "softmax" and background)
        boxes = sum(len(one["class_labels"]) for one in labels) * groups
        self.boxes: Tensor | float = float(max(boxes, 1))
        if ranks:
            self.boxes = average_over_ranks(torch.full((), float(boxes), device=logits.device))

    def match(self, stacks: Sequence[Stack], parts: Sequence[Part]) -> Tensor:
        """Box of each query of all parts, or -1."""
        logits = [part.of(stacks[part.stack].logits) for part in parts]
        boxes = [part.of(stacks[part.stack].clamped) for part in parts]
        return match_sets(logits, boxes, self.targets, self.rule, self.groups, self.num_classes)[1]

    def scale(self, sets: int) -> Tensor:
        """(sets, 2) factors of the losses by class and by boxes: one over the number of boxes."""
        if isinstance(self.boxes, Tensor):
            return self.boxes.reciprocal().expand(sets, 2).clone()
        return torch.full((sets, 2), 1 / self.boxes, device=self.targets.boxes.device)

    def losses(
        self, stacks: Sequence[Stack], parts: Sequence[Part], index: Tensor, scale: Tensor,
        weights: Sequence[float] = (1.0, 1.0, 1.0), box_index: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(R, 3) losses of given pairs."""
        if self.loss.kind == "softmax":
            shapes = [(part.sets[1], stacks[part.stack].logits.shape[1], part.queries[1]) for part in parts]
            scale[:, 0] = weight_of_queries(index, shapes, self.loss.no_object).reciprocal()
        numbers = [n for part in parts for n in (part.stack, *part.sets, *part.queries)]
        outputs = Outputs([one.logits for one in stacks], [one.boxes for one in stacks], numbers)
        pairs = Pairs(self.targets.boxes, self.targets.labels, index, box_index)
        return set_losses(outputs, pairs, self.loss, scale, weights, clamp=self.clamp)

    @torch.no_grad()
    def cardinality(self, stacks: Sequence[Stack], parts: Sequence[Part]) -> Tensor:
        """(R,) mean difference between the number of queries that predict an object and that of boxes."""
        counts = []
        for logits in (part.of(stacks[part.stack].logits) for part in parts):
            if self.rule.kind == "softmax":
                counts.append((logits.argmax(-1) != logits.shape[-1] - 1).sum(-1))
            else:
                counts.append((logits.amax(-1).sigmoid() > 0.5).sum(-1))
        sizes = self.targets.sample_sizes
        wanted = self.targets.labels.shape[1] if sizes is None else sizes
        return (torch.cat(counts) - wanted).abs().float().mean(1)

    def terms(
        self, stacks: Sequence[Stack], parts: Sequence[Part], noisy: Sequence[Part], groups: int,
        local: Distributions | None, names: Sequence[str], weights: Mapping[str, float], union: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """The sum of all losses, and each, weighted, by name.

        Args:
            stacks: Outputs.
            parts: Those that are matched.
            noisy: Those of denoising queries.
            groups: How often each box is among the latter.
            local: Distributions of distances.
            names: Of the losses.
            weights: By name.
            union: Whether box losses are those of the pairs of all parts together.
        """
        index = self.match(stacks, parts)
        every, sets = [*parts, *noisy], sum(part.sets[1] for part in parts)
        scale = self.scale(sum(part.sets[1] for part in every))
        known = [self._denoised(noisy[0].queries[1], groups)] * sum(part.sets[1] for part in noisy) if noisy else []
        for_boxes = None
        if union:
            shared = self._union(index.view(sets, len(self.targets.boxes), -1))
            pairs = (shared >= 0).sum()
            scale[:sets, 1] = (average_over_ranks(pairs) if self.ranks else pairs.clamp(min=1)).reciprocal()
            for_boxes = torch.cat([*[shared.flatten()] * sets, *known])
        if noisy:
            scale[sets:].div_(groups)
            index = torch.cat([index, *known])
        rows = self.losses(stacks, every, index, scale, [weights[name] for name in names[:3]], for_boxes)
        total, lines = rows.sum(), [list(row.unbind()) for row in rows.unbind()]
        if local is not None:
            more = self._local(stacks, every, index if for_boxes is None else for_boxes, scale[:, 1], local,
                               [weights[name] for name in names[3:]])  # fmt: skip
            total = total + more.sum()
            of_layers = iter(more.unbind())
            places = [part for part in every for _ in range(part.sets[1])]
            for line, part in zip(lines, places, strict=True):
                if part.layer is not None:
                    line += next(of_layers).unbind()[: 1 + part.distils]
        suffixes = [suffix for part in every for suffix in part.suffixes]
        named = zip(suffixes, lines, strict=True)
        return total, {name + suffix: value for suffix, line in named for name, value in zip(names, line, strict=False)}

    def _denoised(self, queries: int, groups: int) -> Tensor:
        """Box of each denoising query of a set, flat; each group has a positive and a negative one per box."""
        place = torch.arange(queries, device=self.targets.boxes.device) % max(queries // groups, 1)
        batch, most = self.targets.labels.shape
        sizes = self.targets.sample_sizes
        limits = place.new_full((batch, 1), most) if sizes is None else sizes[:, None]
        return place.expand(batch, -1).where(place < limits, -1).flatten()

    def _local(
        self, stacks: Sequence[Stack], parts: Sequence[Part], index: Tensor, scale: Tensor, local: Distributions,
        weights: list[float],
    ) -> Tensor:  # fmt: skip
        """(R, 2) FGL and DDF of the parts that have distributions, given the pairs and divisors of all parts."""
        batch = len(self.targets.boxes)
        rows = index.split([part.sets[1] * batch * part.queries[1] for part in parts])
        scales = scale.split([part.sets[1] for part in parts])
        chosen = [(i, part, part.layer) for i, part in enumerate(parts) if part.layer is not None]
        wanted = LocalParts(
            [n for _, part, layer in chosen for n in (0, layer, part.sets[1], *part.queries)],
            [int(part.distils) for _, part, _ in chosen],
            [part.of(stacks[part.stack].clamped) for _, part, _ in chosen],
            self.targets.boxes,
            torch.cat([rows[i] for i, *_ in chosen]),
        )
        return local_losses(local, wanted, torch.cat([scales[i] for i, *_ in chosen]), weights)

    def _union(self, index: Tensor) -> Tensor:
        """(B, Q) the box that each query has most often among sets (S, B, Q), ties to the lower; -1 for none."""
        most = self.targets.labels.shape[1]
        if most == 0:
            return torch.full_like(index[0], -1)
        places = (index % (most + 1)).permute(1, 2, 0)  # the last for none
        counts = torch.zeros(*places.shape[:2], most + 1, dtype=torch.int32, device=index.device)
        counts.scatter_add_(2, places, torch.ones_like(places, dtype=torch.int32))
        count, box = counts[..., :most].max(-1)  # of the highest the first
        return box.where(count > 0, -1)
