"""The losses of DETR and its successors as one module: all layers' outputs and boxes in, numbers out."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from detops.assign.hungarian import CostKind, MatchRule, match_sets, require_outputs
from detops.assign.set_targets import SetTargets, Targets, require_set_targets
from detops.criteria.set_masks import MaskRule, SetMasks, layers_of, mask_costs, mask_losses
from detops.losses._set import Outputs, Pairs, SetClassLoss, set_losses
from detops.losses.reduction import average_over_ranks

Kind = Literal["softmax", "focal", "varifocal", "mal", "ia_bce"]
NAMES = ("cls", "bbox", "giou", "mask_bce", "mask_dice")
ALPHAS: dict[str, float] = {"softmax": 0.25, "focal": 0.25, "varifocal": 0.75, "mal": 1.0, "ia_bce": 0.25}


class Denoising(NamedTuple):
    """Outputs of denoising queries, and what they were made from.

    Attributes:
        class_logits: (L, B, D, C).
        pred_boxes: (L, B, D, 4) cxcywh.
        box_index: (B, D) int64, the box that each query was made from; -1 for a negative, -2 for one without part.
        groups: How often each box is among them.
    """

    class_logits: Tensor
    pred_boxes: Tensor
    box_index: Tensor
    groups: int


class SetLoss(nn.Module):
    """Matching, class loss, L1 loss and GIoU loss of all layers of a DETR-like network, in one static call.

    Each layer's queries are matched with the boxes by `hungarian_match`. A matched query is trained towards its box and
    label, the others towards "no object". Kinds of class loss, with x a logit, p its sigmoid, u the IoU of the matched
    boxes, and D what counts as a constant in the gradient:

        softmax     cross entropy over C + 1, the last being "no object" with weight `no_object` (DETR)
        focal       alpha (1 - p)^gamma BCE(x, 1);  others (1 - alpha) p^gamma BCE(x, 0)  (Deformable DETR)
        varifocal   u BCE(x, u);  others alpha D(p)^gamma BCE(x, 0)  (RT-DETR, D-FINE)
        mal         BCE(x, u^gamma);  others alpha D(p)^gamma BCE(x, 0)  (DEIM)
        ia_bce      BCE(x, max(D(p)^alpha u^(1 - alpha), 0.01));  others p^2 BCE(x, 0)  (LW-DETR, RF-DETR)

    All are sums over queries and classes, divided by the number of boxes (times `groups`), at least 1, averaged over
    ranks under `torch.distributed`; but softmax is the weighted mean over queries. The logits are read once where they
    are and their gradient is written in that pass; boxes are compared pair by pair; nothing waits for the host on a
    device with a kernel.

    Args:
        num_classes: Number of classes C.
        kind: Class loss.
        alpha: See above; None for the kind's usual one (varifocal 0.75, mal 1, else 0.25).
        gamma: See above; None for 2, and for mal 1.5.
        no_object: Weight of "no object" in softmax.
        cls_weight: Factor of the class loss.
        bbox_weight: Factor of the L1 loss.
        giou_weight: Factor of the GIoU loss.
        class_cost: Weight of the class cost in matching; None for 1 with softmax, else 2.
        box_cost: Weight of the L1 distance in matching.
        giou_cost: Weight of the GIoU in matching.
        cost_alpha: Of the focal class cost, which all kinds but softmax are matched by.
        cost_gamma: Of the focal class cost.
        groups: Groups of queries in training mode, each matched on its own (Group DETR); in evaluation mode 1.
        mask_rule: Weights, costs and points of masks; None for RF-DETR-Seg's.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> criterion = SetLoss(num_classes=80)
        >>> logits, boxes = torch.randn(6, 2, 300, 80), torch.rand(6, 2, 300, 4)
        >>> truth = [torch.tensor([[0.5, 0.5, 0.2, 0.3]]), torch.zeros(0, 4)]
        >>> sorted(criterion(logits, boxes, (truth, [torch.tensor([7]), torch.zeros(0).long()])))
        ['loss_bbox', 'loss_cls', 'loss_giou']

    Reference:
        DETR (2005.12872), Deformable DETR (2010.04159), RT-DETR (2304.08069), DEIM (2412.04234), Align-DETR
        (2304.07527), LW-DETR (2406.03459).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        kind: Kind = "varifocal",
        alpha: float | None = None,
        gamma: float | None = None,
        no_object: float = 0.1,
        cls_weight: float = 1.0,
        bbox_weight: float = 5.0,
        giou_weight: float = 2.0,
        class_cost: float | None = None,
        box_cost: float = 5.0,
        giou_cost: float = 2.0,
        cost_alpha: float = 0.25,
        cost_gamma: float = 2.0,
        groups: int = 1,
        mask_rule: MaskRule | None = None,
    ) -> None:
        super().__init__()
        if kind not in ALPHAS:
            raise ValueError(f"kind: expected one of {', '.join(ALPHAS)}, got {kind!r}")
        for name, value in (("num_classes", num_classes), ("groups", groups)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value!r}")
        gamma = (1.5 if kind == "mal" else 2.0) if gamma is None else gamma
        if not gamma >= 0:
            raise ValueError(f"gamma: expected at least 0, got {gamma!r}")
        self.num_classes, self.kind, self.groups = num_classes, kind, groups
        self.class_loss = SetClassLoss(kind, ALPHAS[kind] if alpha is None else alpha, gamma, no_object)
        self.weights = (cls_weight, bbox_weight, giou_weight)
        cost: CostKind = "softmax" if kind == "softmax" else "focal"
        if class_cost is None:
            class_cost = 1.0 if kind == "softmax" else 2.0
        self.rule = MatchRule(cost, class_cost, box_cost, giou_cost, cost_alpha, cost_gamma)
        self.rule.check()
        self.mask_rule = MaskRule() if mask_rule is None else mask_rule

    def forward(
        self,
        class_logits: Tensor,
        pred_boxes: Tensor,
        targets: Targets,
        *,
        encoder: tuple[Tensor, Tensor] | None = None,
        denoising: Denoising | None = None,
        masks: SetMasks | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            class_logits: (L, B, Q, C) of all layers, or (B, Q, C) of one; C + 1 columns with softmax.
            pred_boxes: (L, B, Q, 4) or (B, Q, 4), cxcywh in shares of the image.
            targets: The pair (boxes, labels), or a list of dicts with "boxes" and "class_labels" or "labels"; boxes
                cxcywh in shares of the image. Or a `GroundTruth` in pixels with image sizes. A negative label means
                "ignore this box".
            encoder: Logits and boxes of a two-stage network's encoder, (B, Q, C) and (B, Q, 4), matched as a layer.
            denoising: Outputs of denoising queries, which know their boxes.
            masks: Masks of all layers, and the true ones: they take part in the layers' matching and losses.

        Returns:
            "loss_cls", "loss_bbox" and "loss_giou", 0-d each and summed over layers; the same with "_enc" and "_dn" for
            the encoder and for denoising; with masks also "loss_mask_bce" and "loss_mask_dice". Their sum is what is
            trained.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Shapes or devices do not match; in checked mode also a box that is skipped for its values.
        """
        parts = self.layer_losses(class_logits, pred_boxes, targets, encoder=encoder, denoising=denoising, masks=masks)
        return {
            f"loss_{name}{suffix}": total
            for suffix, losses in parts.items()
            for name, total in zip(NAMES, losses.sum(0).unbind(), strict=False)
        }

    def layer_losses(
        self,
        class_logits: Tensor,
        pred_boxes: Tensor,
        targets: Targets,
        *,
        encoder: tuple[Tensor, Tensor] | None = None,
        denoising: Denoising | None = None,
        masks: SetMasks | None = None,
    ) -> dict[str, Tensor]:
        """Compute each layer's losses; arguments as in `forward`.

        Returns:
            Under "" (L, 3) class, L1 and GIoU losses of each layer, with masks (L, 5); under "_enc" (1, 3) and under
            "_dn" (L, 3) those of the encoder and of denoising. One copy to the host reads them all.
        """
        class_logits, pred_boxes = _stacked(class_logits, pred_boxes)
        truth = self._checked(class_logits, pred_boxes, targets)
        groups = self.groups if self.training else 1
        maps: list[Tensor] = []
        extra = None
        if masks is not None:
            maps = layers_of(masks, class_logits)
            extra = mask_costs(maps, masks.masks, truth.boxes.shape[1], self.mask_rule)
        outputs = [(class_logits, pred_boxes)]
        names = {"": len(class_logits)}
        if encoder is not None:
            logits, pred = (one[None] for one in encoder)
            self._checked(logits, pred, truth)
            outputs.append((logits, pred))
            names["_enc"] = 1
        query, index, valid = self._match(outputs, truth, groups, extra)
        boxes = average_over_ranks(valid.sum())
        divisors = (boxes * groups).expand(sum(names.values()))
        if denoising is not None:
            logits, pred, own, copies = denoising
            self._checked(logits, pred, truth)
            outputs.append((logits, pred))
            index = torch.cat([index, own.expand(logits.shape[:3]).flatten()])
            names["_dn"] = len(logits)
            divisors = torch.cat([divisors, (boxes * copies).expand(len(logits))])
        losses = self._losses(outputs, truth, index, divisors)
        found = dict(zip(names, losses.split(list(names.values())), strict=True))
        if masks is not None:
            of_masks = mask_losses(maps, masks.masks, query[: len(class_logits)], self.mask_rule, boxes * groups)
            found[""] = torch.cat([found[""], of_masks], 1)
        return found

    def match(self, class_logits: Tensor, pred_boxes: Tensor, targets: Targets) -> Tensor:
        """Return (L, B, Q) int64, the box of each query of each layer, or -1; arguments as in `forward`."""
        class_logits, pred_boxes = _stacked(class_logits, pred_boxes)
        truth = self._checked(class_logits, pred_boxes, targets)
        groups = self.groups if self.training else 1
        return self._match([(class_logits, pred_boxes)], truth, groups)[1].view(class_logits.shape[:3])

    def _match(
        self, outputs: list[tuple[Tensor, Tensor]], truth: SetTargets, groups: int, extra: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(R, G, B, N) query of each box, the box of each query, and (B, N) which boxes take part."""
        for queries in (logits.shape[2] for logits, _ in outputs):
            if queries % groups:
                raise ValueError(
                    f"class_logits: expected a multiple of {groups} queries, as there are so many groups, got {queries}"
                )
        logits, boxes = zip(*outputs, strict=True)
        return match_sets(logits, boxes, truth, self.rule, groups, self.num_classes, extra)

    def _losses(
        self, outputs: list[tuple[Tensor, Tensor]], truth: SetTargets, index: Tensor, divisors: Tensor
    ) -> Tensor:
        """(R, 3) losses of given pairs, divided by the numbers of boxes (R,)."""
        scale = divisors.reciprocal()[:, None].expand(-1, 2)
        if self.kind == "softmax":
            shapes = [logits.shape[:3] for logits, _ in outputs]
            by_class = weight_of_queries(index, shapes, self.class_loss.no_object).reciprocal()
            scale = torch.stack([by_class, scale[:, 1]], 1)
        pairs = Pairs(truth.boxes, truth.labels, index)
        return set_losses(Outputs.whole(outputs), pairs, self.class_loss, scale, self.weights)

    def _checked(self, class_logits: Tensor, pred_boxes: Tensor, targets: Targets | SetTargets) -> SetTargets:
        require_outputs(class_logits, pred_boxes)
        columns = self.num_classes + (self.kind == "softmax")
        if class_logits.dim() != 4 or class_logits.shape[3] != columns:
            shape = tuple(class_logits.shape)
            raise ValueError(f"class_logits: expected shape (L, B, Q, {columns}) or (B, Q, {columns}), got {shape}")
        if isinstance(targets, SetTargets):
            return targets
        return require_set_targets(targets, self.num_classes, class_logits.shape[1], class_logits, "class_logits")


def _stacked(class_logits: Tensor, pred_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of one layer as those of a stack of one."""
    if isinstance(class_logits, Tensor) and class_logits.dim() == 3 and isinstance(pred_boxes, Tensor):
        return class_logits[None], pred_boxes[None]
    return class_logits, pred_boxes


def weight_of_queries(index: Tensor, shapes: Sequence[Sequence[int]], no_object: float) -> Tensor:
    """Return (R,) the sum of the weights of each set's queries, averaged over ranks: what softmax divides by.

    Args:
        index: Box of each query of all parts.
        shapes: (sets, B, queries) of each part.
        no_object: Weight of a query without a box.
    """
    sums = []
    if len({tuple(shape[1:]) for shape in shapes}) == 1:  # sets of one size go together
        shapes = [(sum(sets for sets, *_ in shapes), *shapes[0][1:])]
    for part, shape in zip(index.split([math.prod(shape) for shape in shapes]), shapes, strict=True):
        own = part.view(shape[0], math.prod(shape[1:]))
        sums.append((own >= 0).sum(1) + (own == -1).sum(1) * no_object)
    return average_over_ranks(torch.cat(sums), least=torch.finfo(torch.float32).tiny)
