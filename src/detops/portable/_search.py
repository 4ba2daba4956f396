"""What the ops that search a grid's points for boxes share: chunks of boxes, ranks in one integer, valid labels."""

from collections.abc import Iterator

import torch
from torch import Tensor

from detops.ragged.padded import exists

CHUNK_VALUES = 2**21  # pairs of a box and a point at once
LOW = 2**32 - 1  # bits of a rank that hold an index


def parts(batch: int, boxes: int, count: int) -> Iterator[slice]:
    """Cut the boxes of a batch of images of `count` points each, so that memory is bounded whatever their number."""
    size = max(1, CHUNK_VALUES // max(1, batch * count))
    return (slice(start, min(start + size, boxes)) for start in range(0, boxes, size))


def bits(value: Tensor) -> Tensor:
    """Return float32 numbers of at least 0 as int64 in their order, below 2**31."""
    return value.contiguous().view(torch.int32).to(torch.int64)


def labelled(labels: Tensor, sample_sizes: Tensor | None, num_classes: int) -> Tensor:
    """Return (B, N) bool, the boxes that are no padding and whose label is a class."""
    valid = (labels >= 0) & (labels < num_classes)
    return valid if sample_sizes is None else valid & exists(sample_sizes, labels.shape[1])


def logits_of(class_logits: list[Tensor], labels: Tensor) -> Tensor:
    """Return (B, A, n), each level's logits (B, A_l, C) of labels (B, n); for one that is no class, the nearest."""
    index = labels.to(torch.int64).clamp(0, class_logits[0].shape[2] - 1)[:, None]
    return torch.cat([level.gather(2, index.expand(-1, level.shape[1], -1)) for level in class_logits], 1)
