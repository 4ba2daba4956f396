"""What `gaussian_radius` means: the three ways in which a box with shifted corners still overlaps enough."""

import math


def gaussian_radius(height: float, width: float, min_overlap: float, formula: str) -> float:
    """Return how far both corners of a box may move, in the worst of three directions, at IoU >= min_overlap.

    With r the shift of each corner, along x and y alike, and o the overlap:

        both corners inward:    (h - 2 r)(w - 2 r) / (h w) = o             ->  4 r^2 - 2 (h + w) r + (1 - o) h w = 0
        both corners outward:   h w / ((h + 2 r)(w + 2 r)) = o             ->  4 o r^2 + 2 o (h + w) r + (o - 1) h w = 0
        both the same way:      s / (2 h w - s) = o, s = (h - r)(w - r)    ->  r^2 - (h + w) r + h w (1 - o)/(1 + o) = 0

    The textbook root of each, as MMDetection's `gaussian_radius` has it. `formula="legacy"` returns what the
    first CornerNet computed, and every model since that copied it: (b + sqrt(b^2 - 4 a c)) / 2 for each, with
    the division by `a` missing and the larger root of the first two.

    Reference:
        Law and Deng, "CornerNet: Detecting Objects as Paired Keypoints", 2018, section 3.2.
    """
    o, total, area = min_overlap, height + width, height * width
    same_way = (1.0, total, area * (1 - o) / (1 + o))
    inward = (4.0, 2 * total, (1 - o) * area)
    outward = (4 * o, -2 * o * total, (o - 1) * area)
    roots = [math.sqrt(max(b * b - 4 * a * c, 0.0)) for a, b, c in (same_way, inward, outward)]
    if formula == "legacy":
        return min((b + root) / 2 for (_, b, _), root in zip((same_way, inward, outward), roots, strict=True))
    return min(
        (same_way[1] - roots[0]) / (2 * same_way[0]),
        (inward[1] - roots[1]) / (2 * inward[0]),
        (outward[1] + roots[2]) / (2 * outward[0]),
    )
