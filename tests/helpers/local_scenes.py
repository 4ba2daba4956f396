"""Random distributions of distances, as D-FINE has them."""

from typing import Any

import torch

from detops.losses._local import bin_values

# Types of the kernels' arguments that both ops share, with two parts.
TWO: dict[str, str | tuple[str, ...]] = dict(
    preds=("*fp16",) * 2, firsts=("i32",) * 2, sizes=("i32",) * 10, pred_strides=("i32",) * 8
)
NUMBERS: dict[str, str | tuple[str, ...]] = dict.fromkeys(("B", "N", "BINS", "corner_layer", "corner_image", "corner_query", "reference_layer", "reference_image", "reference_query", "gradient_layer", "gradient_image", "gradient_query"), "i32")  # fmt: skip


def arguments(
    seed: int,
    layers: int = 2,
    batch: int = 2,
    queries: int = 5,
    boxes: int = 3,
    bins: int = 33,
    split: bool = False,
    odd: bool = False,
    scale: float | None = None,
    with_gradient: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, ...]:
    """The arguments of `local_loss`: all layers and queries, or with `split` two parts, of which the first does not learn.

    With `odd` some boxes have no area or are far away.
    """
    g = torch.Generator().manual_seed(seed)

    def cxcywh(*shape: int) -> torch.Tensor:
        return torch.cat([torch.rand(*shape, 2, generator=g), 0.05 + torch.rand(*shape, 2, generator=g) * 0.5], -1)

    corners = torch.randn(layers, batch, queries, 4 * bins, generator=g) * 2
    references, truth = cxcywh(layers, batch, queries), cxcywh(batch, boxes)
    parts, distils = [0, 0, layers, 0, queries], [1]
    if split:
        first = queries // 2
        parts, distils = [0, layers - 1, 1, first, queries - first, 0, 0, layers, 0, first], [0, 1]
    pred = [cxcywh(sets, batch, count) for _, _, sets, _, count in zip(*[iter(parts)] * 5, strict=True)]
    if odd:
        truth[..., 2:][torch.rand(batch, boxes, generator=g) < 0.3] = 0
        for one in pred:
            one[..., 2:][torch.rand(one.shape[:3], generator=g) < 0.2] = 0
            one[torch.rand(one.shape[:3], generator=g) < 0.2] -= 3
    rows = sum(one.shape[:3].numel() for one in pred)
    index = torch.randint(-2, max(boxes, 1), (rows,), generator=g)
    index = index if boxes else index.clamp(max=-1)
    scales = torch.rand(sum(parts[2::5]), generator=g) + 0.1
    values = bin_values(bins - 1, 0.5, 4.0, torch.device("cpu"))
    return (
        corners.to(dtype), references.to(dtype), torch.randn(batch, queries, 4, generator=g).to(dtype),
        [one.to(dtype) for one in pred], parts, distils, truth, index, values,
        scales if scale is None else torch.full_like(scales, scale), 4.0, [0.15, 1.5], with_gradient,
    )  # fmt: skip
