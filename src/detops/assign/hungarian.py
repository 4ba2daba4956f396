"""The matching of the DETR family, for all layers, images and groups of queries at once."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, of_one_dtype, require_device, require_shape, require_tensor
from detops.assign.set_targets import SetTargets, Targets, require_set_targets

CostKind = Literal["softmax", "focal"]
COST_KINDS: tuple[CostKind, ...] = ("softmax", "focal")  # their places are the op's numbers


class MatchRule(NamedTuple):
    """The options of `hungarian_match`, with RT-DETR's values.

    Attributes:
        kind: Class cost, "softmax" or "focal".
        class_cost: Weight of the class cost.
        box_cost: Weight of the L1 distance.
        giou_cost: Weight of the GIoU.
        alpha: Of the focal cost.
        gamma: Of the focal cost.
        eps: Added to probabilities before their logarithm.
    """

    kind: CostKind = "focal"
    class_cost: float = 2.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    eps: float = 1e-8

    def check(self) -> None:
        """Check what is out of range.

        Raises:
            ValueError: An option is.
        """
        if self.kind not in COST_KINDS:
            raise ValueError(f'kind: expected "softmax" or "focal", got {self.kind!r}')
        for name in ("gamma", "eps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)!r}")


def hungarian_match(
    class_logits: Tensor,
    pred_boxes: Tensor,
    targets: Targets,
    *,
    class_cost: float = 2.0,
    box_cost: float = 5.0,
    giou_cost: float = 2.0,
    kind: CostKind = "focal",
    groups: int = 1,
    alpha: float = 0.25,
    gamma: float = 2.0,
    eps: float = 1e-8,
    extra_cost: Tensor | None = None,
) -> Tensor:
    """Match each box with one query so that the sum of costs is the least, as DETR and its successors are trained.

        cost = box_cost * L1 + class_cost * class - giou_cost * GIoU + extra_cost

    L1 is the sum of the four differences of cxcywh. The class cost of a label is minus its softmax probability, or with
    p its sigmoid

        alpha (1 - p)^gamma (-log(p + eps)) - (1 - alpha) p^gamma (-log(1 - p + eps))

    Computed in float32 whatever the input. All leading dimensions (layers), images and groups are solved in parallel in
    one call, whose shapes do not depend on the boxes; on a device with a kernel the host waits for nothing. Nothing is
    differentiated. A cost that is not finite, as of a network that diverged, is the last resort of its box.

    Args:
        class_logits: (..., B, Q, C); of "softmax" the last of the C is "no object".
        pred_boxes: (..., B, Q, 4) cxcywh, in shares of the image's width and height.
        targets: The pair (boxes, labels), or a list of dicts with "boxes" and "class_labels" or "labels"; boxes cxcywh
            in shares of the image. Or a `GroundTruth` in pixels with image sizes.
        class_cost: Weight of the class cost.
        box_cost: Weight of the L1 distance.
        giou_cost: Weight of the GIoU.
        kind: Class cost, "softmax" or "focal".
        groups: Number of groups G, of Q / G queries in a row each; each box is matched once in each (Group DETR).
        alpha: Of the focal cost.
        gamma: Of the focal cost.
        eps: Of the focal cost; at 0 the logarithms are exact for logits of any size.
        extra_cost: (..., B, Q, N) of each query and box, such as that of masks (`point_mask_cost`), already weighted.

    Returns:
        (..., G, B, N) int64 query of each box, counted through all groups; -1 for padding, for boxes that take no part,
        and where there are more boxes than queries.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a number is out of range; in checked mode also a box that would
            be skipped for its values.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[1.0, -0.5], [0, 2]]])
        >>> pred_boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2]]])
        >>> boxes, labels = torch.tensor([[0.55, 0.5, 0.4, 0.4]]), torch.tensor([0])
        >>> hungarian_match(logits, pred_boxes, ([boxes], [labels]))
        tensor([[[0]]])

    Reference:
        Carion et al., "End-to-End Object Detection with Transformers", 2020; Zhu et al., "Deformable DETR", 2020; Chen
        et al., "Group DETR", 2022.
    """
    rule = MatchRule(kind, class_cost, box_cost, giou_cost, alpha, gamma, eps)
    rule.check()
    require_outputs(class_logits, pred_boxes)
    queries = class_logits.shape[-2]
    if groups < 1 or queries % groups:
        raise ValueError(f"groups: expected a divisor of {queries}, the number of queries, got {groups!r}")
    num_classes = class_logits.shape[-1] - (kind == "softmax")
    truth = require_set_targets(targets, num_classes, class_logits.shape[-3], class_logits, "class_logits")
    lead = class_logits.shape[:-3]
    if extra_cost is not None:
        require_tensor("extra_cost", extra_cost, FLOATS, "a floating-point tensor")
        require_shape("extra_cost", extra_cost, (*class_logits.shape[:-1], truth.boxes.shape[1]), "to match the boxes")
        require_device("extra_cost", extra_cost, class_logits, "class_logits")
        extra_cost = extra_cost.reshape(lead.numel(), *extra_cost.shape[-3:])
    query, _, _ = match_sets(
        [class_logits.reshape(lead.numel(), *class_logits.shape[-3:])],
        [pred_boxes.reshape(lead.numel(), *pred_boxes.shape[-3:])],
        truth,
        rule,
        groups,
        num_classes,
        extra_cost,
    )
    return query.reshape(*lead, *query.shape[1:])


def match_sets(
    class_logits: Sequence[Tensor],
    pred_boxes: Sequence[Tensor],
    targets: SetTargets,
    rule: MatchRule,
    groups: int,
    num_classes: int,
    extra_cost: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Call the op; arguments are parts (S, B, Q, C), (S, B, Q, 4), and (S, B, Q, N) of the first, checked already.

    Returns:
        (R, G, B, N) int64 query of each box in the sets of all parts, or -1; int64 box of each query, or -1, of the
        parts (S, B, Q) one after the other; (B, N) bool, which boxes take part.
    """
    return ops.set_match(
        class_logits=[one.detach() for one in of_one_dtype(class_logits)],
        pred_boxes=[one.detach() for one in of_one_dtype(pred_boxes)],
        gt_boxes=targets.boxes,
        gt_labels=targets.labels,
        sample_sizes=targets.sample_sizes,
        num_classes=num_classes,
        groups=groups,
        kind=COST_KINDS.index(rule.kind),
        alpha=float(rule.alpha),
        gamma=float(rule.gamma),
        eps=float(rule.eps),
        class_cost=float(rule.class_cost),
        box_cost=float(rule.box_cost),
        giou_cost=float(rule.giou_cost),
        extra_cost=None if extra_cost is None else extra_cost.detach(),
    )


def require_outputs(class_logits: Tensor, pred_boxes: Tensor) -> None:
    """Check the outputs of a set prediction network, (..., B, Q, C) and (..., B, Q, 4).

    Raises:
        TypeError: One has the wrong type or dtype.
        ValueError: Shapes or devices do not match.
    """
    require_tensor("class_logits", class_logits, FLOATS, "a floating-point tensor")
    if class_logits.dim() < 3 or class_logits.shape[-1] < 1:
        raise ValueError(f"class_logits: expected shape (..., B, Q, C), got {tuple(class_logits.shape)}")
    require_tensor("pred_boxes", pred_boxes, FLOATS, "a floating-point tensor")
    require_shape("pred_boxes", pred_boxes, (*class_logits.shape[:-1], 4), "to match class_logits")
    require_device("pred_boxes", pred_boxes, class_logits, "class_logits")
