"""The definition of `centernet_cells`: where CenterNet trains each box on its map, one box at a time."""

import math

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype

Cells = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def centernet_cells(
    boxes: Tensor,
    labels: Tensor,
    sample_sizes: Tensor | None,
    map_size: list[int],
    image_size: list[int],
    num_classes: int,
    min_overlap: float,
    min_radius: int,
    legacy: bool,
    elliptical: float,
) -> Cells:
    """Return the cell, the radius and the training targets of each box, and how many distinct centres there are.

    A box takes part if it is no padding, its label is a class, it touches the image, its sides are not negative and its
    numbers are finite. It is scaled to the map; its cell is its centre, truncated, and moved onto the map. Other boxes
    have label -1, and the numbers of a box of no size at the origin. Boxes and ratios are rounded to float32, or
    computed in float64 for float64, after each operation.

    Args:
        boxes: (B, N, 4) xyxy in pixels.
        labels: (B, N).
        sample_sizes: (B,), how many of the N boxes are real; None for all.
        map_size: Height and width of the map.
        image_size: Height and width of the image in pixels.
        num_classes: Number of classes C.
        min_overlap: IoU that a box keeps when its corners move by the radius, see `corner_radius`.
        min_radius: Smallest radius in cells.
        legacy: Whether radii are those of the first CornerNet.
        elliptical: Above 0, the fraction of half the box's width and height that its two radii are.

    Returns:
        (B, N, 2) int64 x and y of cells; (B, N) int64 radii, or (B, N, 2) along x and y if elliptical: -1 where a side
        is not finite; (B, N) int64 labels; (B, N, 2) widths and heights in cells; (B, N, 2) centres minus cells; (B, N)
        int64 cells as y * W + x, H * W for boxes that take no part; (B, N) bool, boxes that are the last with their
        cell; 0-d int64, number of different pairs of label and cell.

    Reference:
        Zhou et al., "Objects as Points", 2019; values as in MMDetection's `CenterNetHead.get_targets`.
    """
    (batch, count), (height, width) = labels.shape, map_size
    compute = accumulate_dtype(boxes)
    shape, wide = torch.tensor([width, height], dtype=compute), (batch, count, 2)
    image = torch.tensor([image_size[1], image_size[0]], dtype=compute)
    cell, label = torch.zeros(wide, dtype=torch.int64), torch.full((batch, count), -1)
    radius = torch.zeros(wide if elliptical > 0 else (batch, count), dtype=torch.int64)
    size, offset = torch.zeros(wide, dtype=compute), torch.zeros(wide, dtype=compute)
    index, last = torch.full((batch, count), height * width), torch.zeros(batch, count, dtype=torch.bool)
    centers = set()
    for b in range(batch):
        for n in range(count):
            box = boxes[b, n].to(compute)
            low, high = box[:2], box[2:]
            real = n < (count if sample_sizes is None else sample_sizes[b])
            known = 0 <= labels[b, n] < num_classes
            if (
                real
                and known
                and box.isfinite().all()
                and (low <= high).all()
                and (high > 0).all()
                and (low < image).all()
            ):
                label[b, n] = labels[b, n]
            else:
                low = high = torch.zeros(2, dtype=compute)
            center, size[b, n] = (low + high) * (shape / image) / 2, (high - low) * (shape / image)
            moved = center.trunc().clamp(min=0).minimum(shape - 1)
            cell[b, n], offset[b, n] = moved.to(torch.int64), center - moved
            if elliptical > 0:
                radii = (size[b, n] / 2 * elliptical).tolist()
            else:
                w, h = size[b, n].tolist()
                radii = [corner_radius(h, w, min_overlap, legacy)]
            whole = [-1 if math.isnan(r) else int(min(max(r, min_radius), 2**30)) for r in radii]
            radius[b, n] = torch.tensor(whole if elliptical > 0 else whole[0])
            if label[b, n] >= 0:
                x, y = cell[b, n].tolist()
                index[b, n], last[b, n] = y * width + x, True
                last[b, :n] &= index[b, :n] != index[b, n]
                centers.add((b, int(label[b, n]), y * width + x))
    return cell, radius, label, size, offset, index, last, torch.tensor(len(centers))


def corner_radius(h: float, w: float, o: float, legacy: bool) -> float:
    """Return how far corners may move with an IoU of at least o: the least of three roots, see `gaussian_radius`."""
    if not (h >= 0 and w >= 0 and math.isfinite(h) and math.isfinite(w)):
        return math.nan
    cases = [(1.0, h + w, h * w * (1 - o) / (1 + o)), (4.0, 2 * (h + w), (1 - o) * h * w)]
    outward = (4 * o, -2 * o * (h + w), (o - 1) * h * w)
    if legacy:  # divided by 2 where 2 a belongs, and the larger root of the first two
        roots = [(b + math.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in (*cases, outward)]
    else:
        roots = [(b - math.sqrt(b * b - 4 * a * c)) / (2 * a) for a, b, c in cases]
        roots.append((outward[1] + math.sqrt(outward[1] ** 2 - 4 * outward[0] * outward[2])) / (2 * outward[0]))
    return min(roots)
