"""How far the corners of a box may move: the size of the Gaussians that key point detectors draw."""

import torch
from torch import Tensor


def corner_radius(h: Tensor, w: Tensor, o: float, legacy: bool) -> Tensor:
    """Solve the three quadratics of `gaussian_radius`; NaN where a side is negative or not finite.

    In terms of the short side s, the long side l and their ratio q = s / l <= 1. With x = r / l the equations have
    coefficients of order 1 and q, so no product overflows or vanishes; a root that would cancel is written as
    c / (the other root).
    """
    short, long = torch.minimum(h, w), torch.maximum(h, w)
    q = torch.where(long > 0, short / long, 0)  # (...,)
    total, half = 1 + q, (1 - q) ** 2  # (h + w) / l; total^2 - 4 q = (1 - q)^2 keeps the small difference exact
    # sqrt(b^2 - 4 a c) of the three, over l, with the difference of the two sides kept apart from the overlap.
    same = torch.sqrt(half + 4 * q * (2 * o / (1 + o)))
    inward = 2 * torch.sqrt(half + 4 * q * o)
    outward = 2 * o * torch.sqrt(half + 4 * q / o)
    if legacy:
        # The last has b < 0: (b + root) / 2 as (root^2 - b^2) / (2 (root - b)).
        outward_root = 8 * o * (1 - o) * q / (outward + 2 * o * total)
        smallest = torch.minimum(torch.minimum((total + same) / 2, total + inward / 2), outward_root)
    else:
        smallest = torch.minimum(
            2 * q * ((1 - o) / (1 + o)) / (total + same),
            torch.minimum(2 * (1 - o) * q / (2 * total + inward), 2 * (1 - o) * q / (outward + 2 * o * total)),
        )
    return torch.where((short >= 0) & long.isfinite(), long * smallest, torch.nan)
