"""RF-DETR's criterion, matcher and post-processing over ours: subclasses of `rfdetr.models`, with the same results.

    detops.integrations.rfdetr.use(module)  # an RFDETRModelModule, its criterion, or a PostProcess

rfdetr is imported when one of them is asked for.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from detops.arguments import require_module
from detops.assign.hungarian import MatchRule, match_sets
from detops.assign.set_targets import SetTargets, require_set_targets
from detops.geometry.boxes import iou_of_pairs, to_xyxy
from detops.losses._set import Outputs as SetOutputs
from detops.losses._set import Pairs, SetClassLoss, SetKind, set_losses
from detops.masks.instance_masks import InstanceMasks

__all__ = ["HungarianMatcher", "PostProcess", "SetCriterion", "use"]  # noqa: F822 - made when they are asked for

Owner = TypeVar("Owner")
Outputs = dict[str, Any]
Targets = list[dict[str, Tensor]]
LOSSES = {"labels", "boxes", "cardinality"}  # what is computed here; with others, rfdetr's own criterion runs


def use(owner: Owner) -> Owner:
    """Make rfdetr's criterion, or its post-processing, compute here: classes change, their state stays.

    Args:
        owner: A `SetCriterion` of rfdetr, or what has one as `criterion`, such as an `RFDETRModelModule`; what it has
            as `postprocess` changes too. Or a `PostProcess`.

    Returns:
        The same object.
    """
    for part in (owner, getattr(owner, "postprocess", None)):
        if type(part).__name__ == "PostProcess":
            part.__class__ = _made("PostProcess")
    criterion: Any = getattr(owner, "criterion", owner)
    if type(criterion).__name__ == "PostProcess":
        return owner
    criterion.__class__ = _made("SetCriterion")
    if type(criterion.matcher) is _theirs("matcher").HungarianMatcher:
        criterion.matcher.__class__ = _made("HungarianMatcher")
    return owner


def _theirs(name: str) -> Any:
    return require_module(f"rfdetr.models.{name}", "rfdetr", "detops.integrations.rfdetr", "rfdetr")


def _make_matcher() -> type:
    base = _theirs("matcher").HungarianMatcher

    class HungarianMatcher(base):  # type: ignore[misc, valid-type]
        """rfdetr's matcher, exact for all groups and images at once; masks and keypoints are matched as before."""

        def forward(
            self, outputs: Outputs, targets: Targets, group_detr: int = 1, target_side_safety: Any = None
        ) -> list[tuple[Tensor, Tensor]]:
            """Return queries and boxes of each image; arguments as of rfdetr's matcher."""
            if "masks" in targets[0] or "pred_keypoints" in outputs:
                found: list[tuple[Tensor, Tensor]] = super().forward(outputs, targets, group_detr)
                return found
            queries = outputs["pred_logits"].shape[1]
            if queries % group_detr:
                raise ValueError(
                    f"group_detr: expected a divisor of {queries}, the number of queries, got {group_detr}"
                )
            index, _ = _match(self, [_outputs(outputs)], _truth(outputs, targets), group_detr)
            rows = [(row, (row >= 0).nonzero()[:, 0]) for row in index.view(-1, queries).cpu()]
            return [(chosen, row[chosen]) for row, chosen in rows]

        def _match_many(
            self, outputs_list: list[Outputs], targets: Targets, group_detr: int = 1, target_side_safety: Any = None
        ) -> list[list[tuple[Tensor, Tensor]]]:
            return [self(outputs, targets, group_detr=group_detr) for outputs in outputs_list]

    return HungarianMatcher


def _make_criterion() -> type:
    base = _theirs("criterion").SetCriterion

    class SetCriterion(base):  # type: ignore[misc, valid-type]
        """rfdetr's criterion without the host; where masks or keypoints are trained, rfdetr's own runs."""

        def forward(
            self, outputs: Outputs, targets: Targets, num_boxes: Tensor | float | None = None
        ) -> dict[str, Tensor]:
            """Return the unweighted losses by name; arguments as of rfdetr's criterion."""
            padded = bool(targets) and "valid" in targets[0]
            if (
                not targets
                or not set(self.losses) <= LOSSES
                or "masks" in targets[0]
                or (padded and not self.ia_bce_loss)
            ):
                found: dict[str, Tensor] = super().forward(outputs, targets, num_boxes)
                return found
            truth = _truth(outputs, targets)
            if num_boxes is None:
                num_boxes = self.num_boxes_for_targets(outputs, targets)
            boxes = torch.as_tensor(num_boxes, dtype=torch.float32, device=outputs["pred_logits"].device)
            layers = {"": outputs} | {f"_{i}": one for i, one in enumerate(outputs.get("aux_outputs", []))}
            if "enc_outputs" in outputs:
                layers["_enc"] = outputs["enc_outputs"]
            return self._losses(layers, truth, boxes)

        def _losses(self, layers: dict[str, Outputs], truth: SetTargets, boxes: Tensor) -> dict[str, Tensor]:
            """The losses of all layers, at once; names end in the layers' own."""
            stacks = [_outputs(one) for one in layers.values()]
            index, valid = _match(self.matcher, stacks, truth, self.group_detr if self.training else 1)
            indices = index.split([logits.shape[1] * logits.shape[2] for logits, _ in stacks])
            shaped = [own.view(logits.shape[:3]) for own, (logits, _) in zip(indices, stacks, strict=True)]
            kind: SetKind = "focal"
            if self.ia_bce_loss:
                kind = "ia_bce"
            elif self.use_position_supervised_loss:
                kind = "position"
            elif self.use_varifocal_loss:
                kind = "varifocal_live"
            quality = None
            if kind == "position":
                parts = zip(stacks, shaped, strict=True)
                quality = torch.cat([_relative_iou(pred, truth, own).flatten() for (_, pred), own in parts])
            pairs = Pairs(truth.boxes, truth.labels, index, quality=quality)
            scale = (1 / boxes).expand(len(stacks), 2)
            rows = set_losses(SetOutputs.whole(stacks), pairs, SetClassLoss(kind, self.focal_alpha), scale)
            found: dict[str, Tensor] = {}
            for suffix, row, (logits, _), own in zip(layers, rows.unbind(), stacks, shaped, strict=True):
                by_class, by_l1, by_giou = row.unbind()
                for loss in self.losses:
                    if loss == "labels":
                        found["loss_ce" + suffix] = by_class
                        if not suffix:
                            found["class_error"] = _class_error(logits, truth, own)
                    elif loss == "boxes":
                        found |= {"loss_bbox" + suffix: by_l1, "loss_giou" + suffix: by_giou}
                    else:
                        predicted = (logits[0].detach().amax(-1).sigmoid() > 0.5).sum(1)
                        error = (predicted - valid.sum(1)).abs().float().mean()
                        found["cardinality_error" + suffix] = error
            return found

    return SetCriterion


def _make_post_process() -> type:
    base = _theirs("postprocess").PostProcess

    class PostProcess(base):  # type: ignore[misc, valid-type]
        """rfdetr's post-processing, whose masks come from run lengths: nothing but the result has the image's size."""

        @staticmethod
        def _postprocess_masks(
            out_masks: Tensor,
            scores: Tensor,
            labels: Tensor,
            boxes: Tensor,
            topk_boxes: Tensor,
            target_sizes: Tensor,
            upsample_masks_to_image_size: bool = True,
            *,
            score_threshold: float | None = None,
        ) -> list[dict[str, Tensor]]:
            if not upsample_masks_to_image_size:
                found: list[dict[str, Tensor]] = base._postprocess_masks(
                    out_masks, scores, labels, boxes, topk_boxes, target_sizes, False, score_threshold=score_threshold
                )
                return found
            results = []
            for i, (height, width) in enumerate(target_sizes.tolist()):
                row = {"scores": scores[i], "labels": labels[i], "boxes": boxes[i]}
                query = topk_boxes[i]
                if score_threshold is not None:
                    kept = (scores[i] > score_threshold).nonzero()[:, 0]
                    row, query = {name: value[kept] for name, value in row.items()}, query[kept]
                masks = InstanceMasks.from_query_masks(
                    out_masks[i, query], row["labels"], row["scores"], (int(height), int(width)), row["boxes"]
                )
                results.append({**row, "masks": masks.paste()[:, None]})
            return results

    return PostProcess


def _truth(outputs: Outputs, targets: Targets) -> SetTargets:
    """Boxes and labels; rows that are padding are ignored."""
    labels = [one["labels"].where(one["valid"], -1) if "valid" in one else one["labels"] for one in targets]
    logits = outputs["pred_logits"]
    pair = [one["boxes"] for one in targets], labels
    return require_set_targets(pair, logits.shape[2], logits.shape[0], logits, "pred_logits")


def _outputs(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Logits (1, B, Q, C) and boxes (1, B, Q, 4) of a layer."""
    return outputs["pred_logits"][None], outputs["pred_boxes"][None]


def _match(
    matcher: Any, layers: Sequence[tuple[Tensor, Tensor]], truth: SetTargets, groups: int
) -> tuple[Tensor, Tensor]:
    """Box of each query of all layers, or -1; (B, N) which boxes take part."""
    rule = MatchRule("focal", matcher.cost_class, matcher.cost_bbox, matcher.cost_giou, matcher.focal_alpha, eps=0.0)
    logits, boxes = zip(*layers, strict=True)
    return match_sets(logits, boxes, truth, rule, groups, logits[0].shape[3])[1:]


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Values (B, N, ...) of the boxes with these indices (1, B, Q); of the first where there is none."""
    chosen = index[0].clamp(min=0)
    return values.gather(1, chosen if values.dim() == 2 else chosen[..., None].expand(-1, -1, values.shape[2]))


def _relative_iou(pred: Tensor, truth: SetTargets, index: Tensor) -> Tensor:
    """(1, B, Q) IoU of the pairs as a share of the highest of their image."""
    if truth.boxes.shape[1] == 0:
        return torch.zeros_like(index, dtype=torch.float32)
    iou = iou_of_pairs(to_xyxy(pred[0].detach().float()), to_xyxy(_at(truth.boxes, index))).where(index[0] >= 0, 0)
    return (iou / (iou.amax(1, keepdim=True) + 1e-8))[None]


@torch.no_grad()
def _class_error(logits: Tensor, truth: SetTargets, index: Tensor) -> Tensor:
    """Percentage of matched queries whose highest logit is not their label's; 100 without any."""
    matched = index[0] >= 0
    if truth.labels.shape[1] == 0:
        return torch.full((), 100.0, device=logits.device)
    right = (logits[0].argmax(-1) == _at(truth.labels.to(torch.int64), index)) & matched
    return 100 - 100 * right.sum() / matched.sum().clamp(min=1)


_MAKERS: dict[str, Callable[[], type]] = {
    "HungarianMatcher": _make_matcher, "PostProcess": _make_post_process, "SetCriterion": _make_criterion,
}  # fmt: skip


def _made(name: str) -> Any:
    """One of the classes, which pickle finds here by its name."""
    if name not in globals():
        made = _MAKERS[name]()
        made.__qualname__ = name
        globals()[name] = made
    return globals()[name]


def __getattr__(name: str) -> Any:
    if name in _MAKERS:
        return _made(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
