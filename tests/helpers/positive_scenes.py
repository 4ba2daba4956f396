"""Random inputs of `positive_losses_` and its backward."""

from typing import Any, Literal

import torch
from torch import Tensor

from detops.reference.positive_losses import CLASS_KINDS
from detops.reference.yolox_loss import KINDS as BOX_KINDS

SHAPES, STRIDES = [(4, 6), (2, 3), (1, 1), (0, 2)], (8, 16, 32, 64)
SIZES = [h * w for h, w in SHAPES]

Scene = dict[str, Any]


def positive_scene(
    seed: int,
    batch: int = 2,
    boxes: int = 3,
    classes: int = 3,
    bins: int = 5,
    teacher: bool = True,
    region: bool = False,
    quality: bool = False,
    weight: bool = False,
    dtype: torch.dtype = torch.float32,
    share: float = 0.3,
    channels_last: bool = False,
    label_dtype: torch.dtype = torch.int64,
) -> Scene:
    """Make maps, boxes, and a random box at some of the points, by the names of the ops' arguments."""
    g = torch.Generator().manual_seed(seed)

    def maps(channels: int) -> list[Tensor]:
        found = [torch.randn(batch, channels, *shape, generator=g).mul(2).to(dtype) for shape in SHAPES]
        if bins == 1 and channels == 4:  # distances as they are
            found = [m.abs() for m in found]
        return [m.contiguous(memory_format=torch.channels_last) for m in found] if channels_last else found

    points = torch.cat([
        torch.tensor([[x * s, y * s, s] for y in range(h) for x in range(w)], dtype=torch.float32)
        for (h, w), s in zip(SHAPES, STRIDES, strict=True)
    ])  # fmt: skip
    low = torch.rand(batch, boxes, 2, generator=g) * 40 - 10
    truth = torch.cat([low, low + torch.rand(batch, boxes, 2, generator=g) * 60], -1)
    index = torch.full((batch, len(points)), -1)
    if boxes:
        taken = torch.rand(batch, len(points), generator=g) < share
        index = torch.randint(0, boxes, index.shape, generator=g).where(taken, -1)
    in_region = (torch.rand(batch, len(points), generator=g) - 0.5).clamp(min=0)
    # Values at points without a box are not read; some boxes have no weight.
    given, weights = torch.rand(2, batch, len(points), generator=g).where(index >= 0, torch.nan)
    weights = weights.where((weights > 0.2) | (index < 0), 0)
    return dict(
        cls_scores=maps(classes), bbox_preds=maps(4 * bins), soft_targets=maps(4 * bins) if teacher and bins > 1 else [],
        points=points, boxes=truth, labels=torch.randint(0, classes, (batch, boxes), generator=g).to(label_dtype),
        index=index, quality=given if quality else None, weight=weights if weight else None,
        region=in_region if region else None, most=len(points),
    )  # fmt: skip


def with_one_box(logits: list[float], quality: list[float] | None = None, **options: Any) -> Scene:
    """Make a scene of one box, of class 1 of 2, at the first points of the first level: one positive per logit."""
    count = len(logits)
    data = positive_scene(0, batch=1, boxes=1, classes=2, teacher=False, **options)
    data["index"] = torch.full_like(data["index"], -1)
    data["index"][0, :count] = 0
    data["labels"][:] = 1
    data["cls_scores"][0].flatten(2)[0, 1, :count] = torch.tensor(logits)
    if quality is not None:
        data["quality"] = torch.zeros(data["index"].shape)
        data["quality"][0, :count] = torch.tensor(quality)
    return data


def loss_arguments(
    scene: Scene,
    class_kind: str = "quality",
    box_kind: str = "giou",
    gamma: float = 2.0,
    alpha: float = 0.25,
    temperature: float = 3.0,
    margin: float = 0.1,
    scale: float = 0.25,
    gradient: bool = True,
    varied: bool = False,
    by_head: bool = False,
    divisor: Literal["given", "weights", "few weights"] = "given",
) -> tuple[Any, ...]:
    """Return arguments of `positive_losses_`; the gradients that it changes are new each time.

    With `varied`, each level has a background loss, each half of the levels its own factors, and each loss a weight;
    the distillation losses are not divided. With `by_head` the levels of one scale are added up. The factor of the box
    losses is given, 1 unless varied, or one over the sum of the weights, or one over a number above that.
    """
    g = torch.Generator().manual_seed(0)
    gradients = []
    for t in scene["cls_scores"] if gradient else ():
        layout = torch.contiguous_format if t.is_contiguous() else torch.channels_last
        gradients.append(torch.randn(t.shape, generator=g).to(t.dtype).contiguous(memory_format=layout))
    names = ("cls_scores", "bbox_preds", "soft_targets", "points", "boxes", "labels", "index", "quality", "weight",
             "region")  # fmt: skip
    background, levels = torch.zeros(len(SHAPES)), len(scene["cls_scores"])
    if varied:
        background, factors = torch.rand(levels, generator=g), torch.rand(4, 2, generator=g)
        scales, box_scale, weights = scale * factors[:3], factors[3], torch.rand(5, generator=g).tolist()
    else:
        scales, box_scale, weights = torch.tensor([[scale], [scale], [1.0]]), torch.ones(1), [1.0] * 5
    scales[0] = torch.nan  # which the op does not read
    least, eps = (100.0, 0.25) if divisor == "few weights" else (0.5, 1e-6)
    given = background, scales, box_scale if divisor == "given" else None, least, eps, not varied, weights
    return (gradients, *(scene[name] for name in names), *given, CLASS_KINDS.index(class_kind),
            BOX_KINDS.index(box_kind), alpha, gamma, temperature, margin, scene["most"],
            scales.shape[1] if by_head else 0)  # fmt: skip


def backward_arguments(
    scene: Scene,
    box_kind: str = "giou",
    temperature: float = 3.0,
    margin: float = 0.1,
    columns: int = len(SHAPES),
    groups: int = 1,
) -> tuple[Any, ...]:
    """Return arguments of `positive_losses_backward`, with a slope for each loss that there is."""
    g = torch.Generator().manual_seed(1)
    weight = torch.rand(scene["index"].shape, generator=g).where(scene["index"] >= 0, 0)
    rows = 1 + (scene["bbox_preds"][0].shape[1] > 4) + bool(scene["soft_targets"])
    rows = 4 if scene["region"] is not None else rows
    slopes, weights = torch.rand(rows, columns, generator=g) + 0.5, (torch.rand(4, generator=g) + 0.5).tolist()
    factors = torch.rand(4, groups, generator=g) + 0.5
    names = ("bbox_preds", "soft_targets", "points", "boxes", "index")
    return (*(scene[name] for name in names), weight, scene["region"], slopes, factors, weights,
            BOX_KINDS.index(box_kind), temperature, margin, scene["most"])  # fmt: skip
