"""Masks as run lengths, for the tests of the ops that read them."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from detops.reference.masks_to_rle import run_lengths

Scene = tuple[Tensor, Tensor, int, int]


def run_length_scene(seed: int, count: int = 3, height: int = 9, width: int = 13, kind: str = "noise") -> Scene:
    """Run lengths of random masks, their offsets, and the image's height and width.

    Args:
        seed: The same seed gives the same scene.
        count: Number of masks.
        height: Rows of the image.
        width: Its columns.
        kind: "noise"; "boxes", some of which fill whole columns or the image; or "rare", with few pixels or none.
    """
    g = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, height, width, generator=g) < (0.02 if kind == "rare" else 0.5)
    if kind == "boxes":
        y, x = torch.arange(height)[:, None], torch.arange(width)
        ends = (torch.rand(count, 4, generator=g) * 1.6 - 0.3)[:, :, None, None]
        low_x, low_y = ends[:, 0] * width, ends[:, 1] * height
        masks = (x >= low_x) & (x < low_x + ends[:, 2] * width) & (y >= low_y) & (y < low_y + 1 + ends[:, 3] * height)
    return *run_lengths(list(masks), False), height, width


scenes = st.builds(
    run_length_scene,
    seed=st.integers(0, 10**6),
    count=st.sampled_from([0, 1, 4]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    kind=st.sampled_from(["noise", "boxes", "rare"]),
)

REFUSED = [
    dict(counts=torch.zeros(4)),
    dict(counts=torch.zeros(4, 1, dtype=torch.int32)),
    dict(offsets=torch.zeros(4, dtype=torch.int32)),
    dict(offsets=torch.zeros(0, dtype=torch.int64)),
    dict(offsets=torch.tensor([0, 10**6])),
    dict(offsets=torch.tensor([0, 3, 2])),
    dict(offsets=torch.tensor([-1, 2])),
    dict(height=0),
    dict(width=2**30),
]
