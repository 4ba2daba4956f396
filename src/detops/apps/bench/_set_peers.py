"""The matchers and criteria of Transformers and rfdetr, which the suites of the DETR family are measured against.

Each function returns None where the library, or what it needs, is not installed, and says so once.
"""

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from detops.apps.bench import _torchvision
from detops.apps.bench._sets import Scene

BINS = 32
WEIGHTS = {"vfl": 1.0, "bbox": 5.0, "giou": 2.0, "fgl": 0.15, "ddf": 1.5, "mal": 1.0}


@cache
def module(name: str) -> Any:
    """Import a module of a peer, or None."""
    try:
        if importlib.util.find_spec("torchvision") is not None:  # both import it where there is one
            _torchvision.load(name)
        importlib.import_module("scipy.optimize")
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # the latter from a torchvision that was built for another torch
        print(f"not measured: {name} ({error})")
        return None


def config(classes: int) -> SimpleNamespace:
    """Return a configuration of RT-DETR and D-FINE, with their usual numbers."""
    return SimpleNamespace(
        num_labels=classes, matcher_class_cost=2, matcher_bbox_cost=5, matcher_giou_cost=2, matcher_alpha=0.25,
        matcher_gamma=2.0, use_focal_loss=True, focal_loss_alpha=0.75, focal_loss_gamma=2.0, eos_coefficient=0.1,
        auxiliary_loss=True, max_num_bins=BINS, reg_scale=4.0, up=0.5, mal_alpha=None, use_dense_one_to_one=True,
        **{f"weight_loss_{name}": weight for name, weight in WEIGHTS.items()},
    )  # fmt: skip


def transformers_match(scene: Scene) -> Callable[[], object] | None:
    """Transformers' matcher of RT-DETR, layer by layer."""
    found = module("transformers.loss.loss_rt_detr")
    if found is None:
        return None
    matcher = found.RTDetrHungarianMatcher(config(scene.logits.shape[3]))
    layers = [{"logits": a, "pred_boxes": b} for a, b in zip(scene.logits, scene.pred, strict=True)]
    return lambda: [matcher(layer, scene.targets) for layer in layers]


def rfdetr_match(scene: Scene, groups: int) -> Callable[[], object] | None:
    """The matcher of rfdetr, of all layers at once, or one by one where it declines that."""
    found = module("rfdetr.models.matcher")
    if found is None:
        return None
    matcher = found.HungarianMatcher(2, 5, 2)
    layers = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(scene.logits, scene.pred, strict=True)]
    targets = [{"labels": one["class_labels"], "boxes": one["boxes"]} for one in scene.targets]

    def match() -> object:
        found = matcher._match_many(layers, targets, group_detr=groups)
        return found or [matcher(layer, targets, group_detr=groups) for layer in layers]

    return match


def batch_assignment(cost: Tensor) -> Callable[[], object] | None:
    """The batched assignment of torch-linear-assignment, which is a loop with SciPy on the CPU."""
    found = module("torch_linear_assignment")
    return None if found is None else lambda: found.batch_linear_assignment(cost)


class RTDetrInputs:
    """What a model of Transformers hands to RT-DETR's or D-FINE's loss, made of a scene.

    Args:
        scene: The last of its sets are the outputs of the encoder.
        denoising: About how many of the queries are for denoising; they come first.
        local: Whether there are D-FINE's distributions.
    """

    def __init__(self, scene: Scene, denoising: int, local: bool) -> None:
        sets, batch, queries, classes = scene.logits.shape
        sizes = [len(one["boxes"]) for one in scene.targets]
        most = max(sizes)
        groups = denoising // (2 * most)
        first = 2 * most * groups
        meta = None
        if groups:
            places = [torch.cat([torch.arange(size) + 2 * most * k for k in range(groups)]) for size in sizes]
            split = [first, queries - first]
            meta = {"dn_positive_idx": places, "dn_num_group": groups, "dn_num_split": split}
        outputs = scene.logits.detach(), scene.pred.detach()
        self.stacks = [part[:-1].transpose(0, 1).contiguous().requires_grad_() for part in outputs]
        self.encoder = [part[-1][:, first:].contiguous().requires_grad_() for part in outputs]
        self.leaves = [*self.stacks, *self.encoder]
        extra: dict[str, Any] = {}
        if local:
            g = torch.Generator().manual_seed(1)
            shape = (batch, sets - 1, queries, 4 * (BINS + 1))
            corners = torch.randn(shape, generator=g).to(scene.pred.device).requires_grad_()
            references = scene.pred[0].detach()[:, None].expand(-1, sets - 1, -1, -1)
            extra = {"predicted_corners": corners, "initial_reference_points": references}
            self.leaves.append(corners)
        self.scene, self.config = scene, config(classes)
        self.extra = {"denoising_meta_values": meta, **extra}

    def loss(self, function: Callable[..., Any]) -> Tensor:
        """Compute the loss by Transformers' function or one of its signature."""
        logits, pred = (stack[:, -1] for stack in self.stacks)
        total: Tensor = function(
            logits, self.scene.targets, logits.device, pred, self.config, *self.stacks, *self.encoder, **self.extra
        )[0]
        return total


def rfdetr_loss(criterion_class: Any, matcher_class: Any, scene: Scene, groups: int) -> Callable[[], Tensor]:
    """The loss of a scene by classes of rfdetr, or by subclasses of them.

    Args:
        criterion_class: A `SetCriterion`.
        matcher_class: A `HungarianMatcher`.
        scene: The last of its sets are the outputs of the encoder.
        groups: Groups of queries.
    """
    classes = scene.logits.shape[3]
    weights = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    criterion = criterion_class(
        classes, matcher_class(2, 5, 2), weights, 0.25, ["labels", "boxes"], group_detr=groups,
        ia_bce_loss=True,
    )  # fmt: skip
    targets = [{"labels": one["class_labels"], "boxes": one["boxes"]} for one in scene.targets]

    def loss() -> Tensor:
        layers = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(scene.logits, scene.pred, strict=True)]
        *inner, last, encoder = layers
        losses = criterion(last | {"aux_outputs": inner, "enc_outputs": encoder}, targets)
        total: Tensor = sum(
            weights[name.rsplit("_", 1)[0] if name not in weights else name] * value
            for name, value in losses.items()
            if name.startswith("loss")
        )  # type: ignore[assignment]
        return total

    return loss
