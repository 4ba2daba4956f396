"""Denoising queries of the DETR family: true boxes and labels with noise, which a network learns to undo."""

from typing import NamedTuple

import torch
from torch import Tensor

from detops.assign.set_targets import Targets, require_set_targets
from detops.geometry.boxes import to_cxcywh, to_xyxy


class DenoisingQueries(NamedTuple):
    """Noisy queries of a batch: G groups, each of N positive and then N negative places, D = 2 N G in all.

    Attributes:
        labels: (B, D) int64, C where there is no box.
        boxes: (B, D, 4) cxcywh in 0 .. 1.
        box_index: (B, D) int64, the box that a positive query was made from; -1 for negatives and for padding.
        attention_mask: (D + Q, D + Q) bool, true where a query must not see another: queries that are matched do not
            see these, and groups do not see each other.
        groups: G.
    """

    labels: Tensor
    boxes: Tensor
    box_index: Tensor
    attention_mask: Tensor
    groups: int


def denoising_queries(
    targets: Targets,
    num_classes: int,
    num_queries: int,
    *,
    num_denoising: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
    generator: torch.Generator | None = None,
) -> DenoisingQueries:
    """Make contrastive denoising queries, as DINO and RT-DETR do, for a whole batch at once.

    Every box is repeated in each group, once with little noise (positive) and once with more (negative). Shapes follow
    from the number of boxes that targets are padded to, N: there are max(num_denoising // N, 1) groups. Nothing waits
    for the host; random numbers are drawn in the order of Transformers' RT-DETR, so that a seed gives the same.

    Args:
        targets: As of `SetLoss`.
        num_classes: Number of classes C.
        num_queries: Q, the network's other queries.
        num_denoising: About how many boxes, positive ones of all groups, there are per image.
        label_noise: Twice the share of labels that become random.
        box_noise: How far corners move at most, in half widths and heights; negatives up to twice as far.
        generator: Of the random numbers.

    Raises:
        TypeError: The targets have none of their forms.
        ValueError: A number is out of range.

    Example:
        >>> boxes = [torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.zeros(0, 4)]
        >>> labels = [torch.tensor([3]), torch.zeros(0, dtype=torch.int64)]
        >>> queries = denoising_queries((boxes, labels), num_classes=80, num_queries=300, num_denoising=2)
        >>> queries.box_index
        tensor([[ 0, -1,  0, -1],
                [-1, -1, -1, -1]])

    Reference:
        Zhang et al., "DINO: DETR with Improved DeNoising Anchor Boxes", 2022; the numbers of RT-DETR.
    """
    for name, value, least in (("num_classes", num_classes, 1), ("num_queries", num_queries, 0),
                               ("num_denoising", num_denoising, 1)):  # fmt: skip
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value!r}")
    for name, share in (("label_noise", label_noise), ("box_noise", box_noise)):
        if not share >= 0:
            raise ValueError(f"{name}: expected at least 0, got {share!r}")
    truth = require_set_targets(targets, num_classes, None, None, "")
    batch, most = truth.labels.shape
    device = truth.boxes.device
    groups = max(num_denoising // most, 1) if most else 1
    count = 2 * most * groups
    exists = (truth.labels >= 0) & (truth.labels < num_classes)
    if truth.sample_sizes is not None:
        exists = exists & (torch.arange(most, device=device) < truth.sample_sizes[:, None])
    known = exists.repeat(1, 2 * groups)
    labels = truth.labels.to(torch.int64).where(exists, num_classes).repeat(1, 2 * groups)
    boxes = truth.boxes.to(torch.float32).where(exists[..., None], 0).repeat(1, 2 * groups, 1)
    place = torch.arange(count, device=device)
    negative = place % max(2 * most, 1) >= most
    if label_noise > 0:
        flip = torch.rand(batch, count, device=device, generator=generator) < label_noise * 0.5
        drawn = torch.randint(0, num_classes, (batch, count), dtype=torch.int32, device=device, generator=generator)
        labels = drawn.to(torch.int64).where(flip & known, labels)
    if box_noise > 0:
        shape = (batch, count, 4)
        sign = torch.randint(0, 2, shape, dtype=torch.float32, device=device, generator=generator) * 2 - 1
        part = torch.rand(shape, device=device, generator=generator) + negative[:, None]
        reach = boxes[..., 2:].repeat(1, 1, 2) * 0.5 * box_noise
        boxes = to_cxcywh((to_xyxy(boxes) + part * sign * reach).clamp(0, 1))
    index = (place % max(most, 1)).expand(batch, -1).where(known & ~negative, -1)
    group = torch.div(place, max(2 * most, 1), rounding_mode="floor")
    group = torch.cat([group, group.new_full((num_queries,), -1)])
    mask = (group[:, None] != group) & (group >= 0)
    return DenoisingQueries(labels, boxes, index, mask, groups)
