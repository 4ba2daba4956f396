"""The losses of Transformers' DETR family: the names, signatures and results of `transformers.loss`.

    detops.integrations.transformers.use(model)

swaps the criterion of a model that is there already; its weights, its outputs and the rest of the training stay as they
are. Transformers itself is not imported.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from detops.arguments import require_module
from detops.assign.hungarian import CostKind, MatchRule
from detops.integrations._transformers_masks import with_masks
from detops.integrations._transformers_sets import Criterion, LocalSets, Part, as_outputs, loss_names
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


def _detr(given: _Given, loss: SetClassLoss, groups: int = 1, class_weight: float = 1.0) -> Result:
    """The family whose dict is not weighted yet."""
    logits, labels, pred_boxes, config, all_logits, all_boxes, encoder_logits, encoder_boxes, _ = given
    kind: CostKind = "softmax" if loss.kind == "softmax" else "focal"
    rule = MatchRule(kind, config.class_cost, config.bbox_cost, config.giou_cost)
    criterion = Criterion(labels, logits, rule, loss, groups, ranks=True)
    weights = (class_weight, config.bbox_loss_coefficient, config.giou_loss_coefficient)
    names = ("loss_ce", "loss_bbox", "loss_giou")
    parts = [([""], as_outputs(logits, pred_boxes))]
    auxiliary = None
    if config.auxiliary_loss:
        inner = as_outputs(all_logits[:-1], all_boxes[:-1])
        parts.append(([f"_{i}" for i in range(len(inner.logits))], inner))
        auxiliary = inner.as_dicts()
    if encoder_logits is not None and encoder_boxes is not None:
        parts.append((["_enc"], as_outputs(encoder_logits, encoder_boxes)))
    found: dict[str, Tensor] = {}
    total: Any = 0
    for suffixes, outputs in parts:
        rows = criterion.losses(outputs, criterion.match(outputs), criterion.boxes)
        errors = criterion.cardinality(outputs.logits)
        total = total + sum(weight * column for weight, column in zip(weights, rows.sum(0).unbind(), strict=True))
        for suffix, row, error in zip(suffixes, rows.unbind(), errors.unbind(), strict=True):
            found |= {name + suffix: value for name, value in zip(names, row.unbind(), strict=True)}
            found["cardinality_error" + suffix] = error
    return total, found, auxiliary


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
    enc_topk_logits: Tensor | None = None,
    enc_topk_bboxes: Tensor | None = None,
    denoising_meta_values: Mapping[str, Any] | None = None,
    predicted_corners: Tensor | None = None,
    initial_reference_points: Tensor | None = None,
    *,
    fixed: bool = False,
    **kwargs: Any,
) -> Result:
    """Compute D-FINE's loss; arguments and results as of Transformers' function of this name, `fixed` as in `use`."""
    given = _Given(logits, labels, pred_boxes, config, outputs_class, outputs_coord, enc_topk_logits, enc_topk_bboxes,
                   denoising_meta_values)  # fmt: skip
    return _rt_detr(given, _varifocal(config), fixed, LocalSets(predicted_corners, initial_reference_points))


def Deimv2ForObjectDetectionLoss(
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
    predicted_corners: Tensor | None = None,
    initial_reference_points: Tensor | None = None,
    *,
    fixed: bool = False,
    **kwargs: Any,
) -> Result:
    """Compute DEIMv2's loss; arguments and results as of Transformers' function of this name, `fixed` as in `use`.

    Where a query is matched with several boxes equally often in the union of matches, the lower box takes it; there an
    unstable sort decides.
    """
    alpha = 1.0 if config.mal_alpha is None else config.mal_alpha
    loss = SetClassLoss("mal", alpha, config.focal_loss_gamma)
    given = _Given(logits, labels, pred_boxes, config, outputs_class, outputs_coord, enc_topk_logits, enc_topk_bboxes,
                   denoising_meta_values)  # fmt: skip
    local = LocalSets(predicted_corners, initial_reference_points)
    return _rt_detr(given, loss, fixed, local, config.use_dense_one_to_one)


def _varifocal(config: Any) -> SetClassLoss:
    return SetClassLoss("varifocal", config.focal_loss_alpha, config.focal_loss_gamma)


def _rt_detr(
    given: _Given, loss: SetClassLoss, fixed: bool, local: LocalSets | None = None, union: bool = False
) -> Result:
    """The family with denoising queries, whose dict is weighted."""
    logits, labels, pred_boxes, config, all_logits, all_boxes, encoder_logits, encoder_boxes, denoising = given
    rule = MatchRule("focal" if config.use_focal_loss else "softmax", config.matcher_class_cost,
                     config.matcher_bbox_cost, config.matcher_giou_cost, config.matcher_alpha,
                     config.matcher_gamma)  # fmt: skip
    names = loss_names("mal" if loss.kind == "mal" else "vfl")
    weights = {term: getattr(config, f"weight_{term}") for term in names[: 5 if local is not None else 3]}
    criterion = Criterion(labels, logits, rule, loss, ranks=fixed, background=False)
    clamp = local is not None
    first = 0 if denoising is None else denoising["dn_num_split"][0]
    if loss.kind == "mal" and not config.auxiliary_loss and not fixed:
        first = 0  # theirs leaves the denoising queries in
    last = as_outputs(logits[:, first:], pred_boxes[:, first:], clamp)
    parts: list[Part] = [([""], last, None)]
    auxiliary = None
    if config.auxiliary_loss:
        every = as_outputs(all_logits.transpose(0, 1), all_boxes.transpose(0, 1), clamp)
        sets = local.of(config, every, first, fixed) if local is not None else None
        parts = criterion.layers(parts[0], every, first, sets, as_outputs(encoder_logits, encoder_boxes, clamp))
        auxiliary = [one for _, outputs, part in parts[1:] for one in outputs.as_dicts(part)]
    found = criterion.terms(parts, names, weights, union and config.auxiliary_loss)
    if config.auxiliary_loss and denoising is not None:
        found |= criterion.denoising_terms(every, first, denoising["dn_num_group"], sets, names, weights)
    return torch.stack(list(found.values())).sum(), found, auxiliary


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
