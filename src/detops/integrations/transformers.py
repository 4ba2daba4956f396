"""The losses of Transformers' DETR family: the names, signatures and results of `transformers.loss`.

    detops.integrations.transformers.use(model)

swaps the criterion of a model that is there already; its weights, its outputs and the rest of the training stay as they
are. Transformers itself is not imported.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from torch import Tensor

from detops.arguments import require_module
from detops.assign.hungarian import CostKind, MatchRule
from detops.integrations._transformers_masks import with_masks
from detops.integrations._transformers_sets import Criterion, Part, Stack, as_dicts, is_last, loss_names, stacked
from detops.losses._local import Distributions, bin_values
from detops.losses._set import SetClassLoss

__all__ = [
    "DFineForObjectDetectionLoss",
    "DeformableDetrForObjectDetectionLoss",
    "Deimv2ForObjectDetectionLoss",
    "ForObjectDetectionLoss",
    "LwDetrForObjectDetectionLoss",
    "RTDetrForObjectDetectionLoss",
    "RfDetrForSegmentationLoss",
    "use",
]

Result = tuple[Tensor, dict[str, Tensor], list[dict[str, Tensor]] | None]
Labels = Sequence[Mapping[str, Tensor]]
Model = TypeVar("Model")


def use(model: Model, *, fixed: bool = False) -> Model:
    """Give a model of Transformers this module's loss in place of its own, or an image processor its masks.

    Sets `model.loss_function`, a plain function: parameters and state dict stay as they are. An image processor changes
    its class for a subclass of the same name, whose `post_process_instance_segmentation` returns the same, but makes no
    map of the image's size for a query that is not kept; with `return_instances=True` it returns the `InstanceMasks` of
    each image.

    Args:
        model: DETR, Conditional DETR, DAB-DETR, Deformable DETR, YOLOS, Table Transformer, RT-DETR (v1, v2), D-FINE,
            DEIMv2, LW-DETR or RF-DETR, with the head for object detection. Or the image processor of Mask2Former, EoMT
            or RF-DETR.
        fixed: Mend what is wrong there rather than repeat it: D-FINE's and DEIMv2's layers paired off by one in
            training, groups in evaluation mode (LW-DETR, RF-DETR), and divisors that differ between ranks (RT-DETR,
            D-FINE, DEIMv2).

    Returns:
        The same model.

    Raises:
        ValueError: The model has another kind of loss, or the image processor is of another family.
    """
    processor = with_masks(cast(Any, type(model)))
    if processor is not None:
        model.__class__ = processor  # type: ignore[assignment]
        return model
    name = type(model).__name__
    kind = name if name in _FUNCTIONS else str(getattr(model, "loss_type", None))
    if kind not in _FUNCTIONS:
        raise ValueError(f"model: expected one of {', '.join(_FUNCTIONS)}, got {name}")
    function = _FUNCTIONS[kind]
    cast(Any, model).loss_function = functools.partial(function, fixed=True) if fixed else function
    return model


def ForObjectDetectionLoss(
    logits: Tensor,
    labels: Labels,
    device: Any,
    pred_boxes: Tensor,
    config: Any,
    outputs_class: Any = None,
    outputs_coord: Any = None,
    *,
    fixed: bool = False,
    **kwargs: Any,
) -> Result:
    """Compute DETR's loss; arguments and results as of Transformers' function of this name, `fixed` as in `use`."""
    given = _Given(logits, labels, pred_boxes, config, outputs_class, outputs_coord)
    return _detr(given, SetClassLoss("softmax", no_object=config.eos_coefficient))


def DeformableDetrForObjectDetectionLoss(
    logits: Tensor,
    labels: Labels,
    device: Any,
    pred_boxes: Tensor,
    config: Any,
    outputs_class: Any = None,
    outputs_coord: Any = None,
    *,
    fixed: bool = False,
    **kwargs: Any,
) -> Result:
    """Compute Deformable DETR's loss; arguments and results as of Transformers' function of this name."""
    given = _Given(logits, labels, pred_boxes, config, outputs_class, outputs_coord)
    return _detr(given, SetClassLoss("focal", config.focal_alpha))


class _Given(NamedTuple):
    """A model's outputs, labels and configuration, as Transformers hands them over.

    Attributes:
        logits: (B, Q, C) of the last layer.
        labels: A dict per image.
        pred_boxes: (B, Q, 4) of the last layer.
        config: The model's.
        all_logits: Logits of all layers; None unless `config.auxiliary_loss`.
        all_boxes: Boxes of all layers.
        encoder_logits: (B, Q, C) of the encoder; None without.
        encoder_boxes: (B, Q, 4) of the encoder.
        denoising: What denoising queries were made from; None without.
        corners: Distributions of distances, and what these are measured from; None without.
    """

    logits: Tensor
    labels: Labels
    pred_boxes: Tensor
    config: Any
    all_logits: Any
    all_boxes: Any
    encoder_logits: Tensor | None = None
    encoder_boxes: Tensor | None = None
    denoising: Mapping[str, Any] | None = None
    corners: tuple[Tensor | None, Tensor | None] | None = None


def _detr(given: _Given, loss: SetClassLoss, groups: int = 1, class_weight: float = 1.0) -> Result:
    """The family whose dict is not weighted yet."""
    config, logits = given.config, given.logits
    kind: CostKind = "softmax" if loss.kind == "softmax" else "focal"
    rule = MatchRule(kind, config.class_cost, config.bbox_cost, config.giou_cost)
    criterion = Criterion(given.labels, logits, rule, loss, groups, ranks=True)
    weights = (class_weight, config.bbox_loss_coefficient, config.giou_loss_coefficient)
    queries = (0, logits.shape[1])
    stacks: list[Stack] = []
    parts: list[Part] = []
    auxiliary = None
    if config.auxiliary_loss:
        stacks.append(stacked(given.all_logits, given.all_boxes))
        inner = len(stacks[0].logits) - 1
        parts.append(Part(0, (0, inner), queries, [f"_{i}" for i in range(inner)]))
        auxiliary = as_dicts(stacks[0], parts[0])
    parts.insert(0, _last_part(given, stacks, 0, queries))
    if given.encoder_logits is not None and given.encoder_boxes is not None:
        stacks.append(stacked(given.encoder_logits, given.encoder_boxes))
        parts.append(Part(len(stacks) - 1, (0, 1), (0, given.encoder_logits.shape[1]), ["_enc"]))
    scale = criterion.scale(sum(part.sets[1] for part in parts))
    rows = criterion.losses(stacks, parts, criterion.match(stacks, parts), scale)
    errors = criterion.cardinality(stacks, parts)
    total = sum(weight * column for weight, column in zip(weights, rows.sum(0).unbind(), strict=True))
    found: dict[str, Tensor] = {}
    suffixes = [suffix for part in parts for suffix in part.suffixes]
    for suffix, row, error in zip(suffixes, rows.unbind(), errors.unbind(), strict=True):
        values = zip(("loss_ce", "loss_bbox", "loss_giou"), row.unbind(), strict=True)
        found |= {name + suffix: value for name, value in values}
        found["cardinality_error" + suffix] = error
    return cast(Tensor, total), found, auxiliary


def _last_part(
    given: _Given,
    stacks: list[Stack],
    dim: int,
    queries: tuple[int, int],
    clamp: bool = False,
    layer: int | None = None,
) -> Part:
    """The last layer: of the first stack, which is of all layers, or where that does not hold it, of one more."""
    every = given.all_logits, given.all_boxes
    if stacks and all(is_last(*pair, dim) for pair in zip((given.logits, given.pred_boxes), every, strict=True)):
        return Part(0, (len(stacks[0].logits) - 1, 1), queries, [""], layer, distils=False)
    stacks.append(stacked(given.logits, given.pred_boxes, clamp))
    return Part(len(stacks) - 1, (0, 1), queries, [""], layer, distils=False)


def LwDetrForObjectDetectionLoss(
    logits: Tensor,
    labels: Labels,
    device: Any,
    pred_boxes: Tensor,
    config: Any,
    outputs_class: Any = None,
    outputs_coord: Any = None,
    enc_outputs_class: Tensor | None = None,
    enc_outputs_coord: Tensor | None = None,
    *,
    fixed: bool = False,
    **kwargs: Any,
) -> Result:
    """Compute LW-DETR's and RF-DETR's loss; arguments and results as of Transformers' function of this name.

    Theirs is infinite from logits of 17 on (in float16 of 9); this one is computed from logits, and finite.
    """
    given = _Given(logits, labels, pred_boxes, config, outputs_class, outputs_coord, enc_outputs_class,
                   enc_outputs_coord)  # fmt: skip
    groups = max(logits.shape[1] // config.num_queries, 1) if fixed else config.group_detr
    return _detr(given, SetClassLoss("ia_bce", config.focal_alpha), groups, config.class_loss_coefficient)


def RfDetrForSegmentationLoss(*args: Any, **kwargs: Any) -> Any:
    """Call Transformers' own function of this name: losses of masks are not among ours."""
    kwargs.pop("fixed", None)
    module = require_module(
        "transformers.loss.loss_rf_detr", "transformers", "RfDetrForSegmentationLoss", "transformers"
    )
    return module.RfDetrForSegmentationLoss(*args, **kwargs)


def RTDetrForObjectDetectionLoss(
    logits: Tensor,
    labels: Labels,
    device: Any,
    pred_boxes: Tensor,
    config: Any,
    outputs_class: Any = None,
    outputs_coord: Any = None,
    enc_topk_logits: Tensor | None = None,
    enc_topk_bboxes: Tensor | None = None,
    denoising_meta_values: Mapping[str, Any] | None = None,
    *,
    fixed: bool = False,
    **kwargs: Any,
) -> Result:
    """Compute RT-DETR's loss; arguments and results as of Transformers' function of this name, `fixed` as in `use`."""
    given = _Given(logits, labels, pred_boxes, config, outputs_class, outputs_coord, enc_topk_logits, enc_topk_bboxes,
                   denoising_meta_values)  # fmt: skip
    return _rt_detr(given, _varifocal(config), fixed)


def DFineForObjectDetectionLoss(
    logits: Tensor,
    labels: Labels,
    device: Any,
    pred_boxes: Tensor,
    config: Any,
    outputs_class: Any = None,
    outputs_coord: Any = None,
    *args: Any,
    fixed: bool = False,
    **kwargs: Any,
) -> Result:
    """Compute D-FINE's loss; arguments and results as of Transformers' function of this name, `fixed` as in `use`."""
    given = _with_corners(logits, labels, pred_boxes, config, outputs_class, outputs_coord, *args, **kwargs)
    return _rt_detr(given, _varifocal(config), fixed)


def Deimv2ForObjectDetectionLoss(
    logits: Tensor,
    labels: Labels,
    device: Any,
    pred_boxes: Tensor,
    config: Any,
    outputs_class: Any = None,
    outputs_coord: Any = None,
    *args: Any,
    fixed: bool = False,
    **kwargs: Any,
) -> Result:
    """Compute DEIMv2's loss; arguments and results as of Transformers' function of this name, `fixed` as in `use`.

    Where a query is matched with several boxes equally often in the union of matches, the lower box takes it; there an
    unstable sort decides.
    """
    given = _with_corners(logits, labels, pred_boxes, config, outputs_class, outputs_coord, *args, **kwargs)
    alpha = 1.0 if config.mal_alpha is None else config.mal_alpha
    loss = SetClassLoss("mal", alpha, config.focal_loss_gamma)
    return _rt_detr(given, loss, fixed, config.use_dense_one_to_one)


def _with_corners(
    logits: Tensor,
    labels: Labels,
    pred_boxes: Tensor,
    config: Any,
    outputs_class: Any,
    outputs_coord: Any,
    enc_topk_logits: Tensor | None = None,
    enc_topk_bboxes: Tensor | None = None,
    denoising_meta_values: Mapping[str, Any] | None = None,
    predicted_corners: Tensor | None = None,
    initial_reference_points: Tensor | None = None,
    **kwargs: Any,
) -> _Given:
    """The arguments that D-FINE's and DEIMv2's functions share."""
    corners = predicted_corners, initial_reference_points
    return _Given(logits, labels, pred_boxes, config, outputs_class, outputs_coord, enc_topk_logits, enc_topk_bboxes,
                  denoising_meta_values, corners)  # fmt: skip


def _varifocal(config: Any) -> SetClassLoss:
    return SetClassLoss("varifocal", config.focal_loss_alpha, config.focal_loss_gamma)


def _rt_detr(given: _Given, loss: SetClassLoss, fixed: bool, union: bool = False) -> Result:
    """The family with denoising queries, whose dict is weighted."""
    config, denoising, local = given.config, given.denoising, given.corners is not None
    rule = MatchRule("focal" if config.use_focal_loss else "softmax", config.matcher_class_cost,
                     config.matcher_bbox_cost, config.matcher_giou_cost, config.matcher_alpha,
                     config.matcher_gamma)  # fmt: skip
    names = loss_names("mal" if loss.kind == "mal" else "vfl")[: 5 if local else 3]
    weights = {name: getattr(config, f"weight_{name}") for name in names}
    criterion = Criterion(given.labels, given.logits, rule, loss, ranks=fixed, background=False, clamp=local)
    first = 0 if denoising is None else denoising["dn_num_split"][0]
    if loss.kind == "mal" and not config.auxiliary_loss and not fixed:
        first = 0  # theirs leaves the denoising queries in
    queries = (first, given.logits.shape[1] - first)
    stacks: list[Stack] = []
    if not config.auxiliary_loss:
        parts = [_last_part(given, stacks, 1, queries, local)]
        total, found = criterion.terms(stacks, parts, [], 1, None, names, weights, False)
        return total, found, None
    every = stacked(given.all_logits.transpose(0, 1), given.all_boxes.transpose(0, 1), local)
    stacks.append(every)
    distributions = None if given.corners is None else _distributions(given, every, *given.corners)
    layers = len(every.logits) if distributions is None else len(distributions.corners)
    # In training classes and boxes begin with those of a first head that has no distributions, and theirs pairs off
    # sets from there on; what is left over has no loss.
    heads = max(len(every.logits) - layers, 0) if fixed else 0
    own = min(len(every.logits) - heads, layers)
    layer = None if distributions is None else 0
    parts = [_last_part(given, stacks, 1, queries, local, layers - 1 if local and fixed else None)]
    pre = [Part(0, (0, heads), queries, ["_pre"] * heads)] if heads else []
    inner = Part(0, (heads, own - 1), queries, [f"_aux_{i}" for i in range(own - 1)], layer)
    stacks.append(stacked(given.encoder_logits, given.encoder_boxes, local))
    encoder = Part(len(stacks) - 1, (0, 1), (0, stacks[-1].logits.shape[2]), [f"_aux_{own - 1}"])
    parts += [*pre, inner, encoder]
    noisy = []
    if denoising is not None:
        queries = (0, first)
        noisy = [part._replace(queries=queries, suffixes=["_dn_pre"] * heads) for part in pre]
        noisy.append(Part(0, (heads, own), queries, [f"_dn_{i}" for i in range(own)], layer))
    groups = 1 if denoising is None else denoising["dn_num_group"]
    auxiliary = [one for part in parts[1:] for one in as_dicts(stacks[part.stack], part, distributions)]
    total, found = criterion.terms(stacks, parts, noisy, groups, distributions, names, weights, union)
    return total, found, auxiliary


def _distributions(given: _Given, every: Stack, corners: Tensor | None, references: Tensor | None) -> Distributions:
    """D-FINE's distributions and what they refer to; with all layers first."""
    if corners is None or references is None:
        raise ValueError("predicted_corners, initial_reference_points: expected tensors, got None")
    config = given.config
    values = bin_values(config.max_num_bins, config.up, config.reg_scale, every.logits.device)
    return Distributions(
        corners.transpose(0, 1), references.transpose(0, 1).detach(), every.logits[-1].detach(), values,
        float(config.reg_scale),
    )  # fmt: skip


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "ForObjectDetection": ForObjectDetectionLoss,
    "DeformableDetrForObjectDetection": DeformableDetrForObjectDetectionLoss,
    "ConditionalDetrForObjectDetection": DeformableDetrForObjectDetectionLoss,
    "DabDetrForObjectDetection": DeformableDetrForObjectDetectionLoss,
    "RTDetrForObjectDetection": RTDetrForObjectDetectionLoss,
    "RTDetrV2ForObjectDetection": RTDetrForObjectDetectionLoss,
    "DFineForObjectDetection": DFineForObjectDetectionLoss,
    "Deimv2ForObjectDetection": Deimv2ForObjectDetectionLoss,
    "LwDetrForObjectDetection": LwDetrForObjectDetectionLoss,
    "RfDetrForObjectDetection": LwDetrForObjectDetectionLoss,
    "RfDetrForInstanceSegmentation": RfDetrForSegmentationLoss,
}
