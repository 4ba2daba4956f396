"""The op rle_overlaps: pixels that masks share, from run lengths."""

from typing import Any

import numpy as np
import pytest
import run_length_scenes
import torch
from ahead_of_time import Kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from op import (
    Form,
    Op,
    assert_compiles_whole,
    assert_same_bits,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)
from run_length_scenes import REFUSED, Scene, run_length_scene
from torch import Tensor

from detops.portable.rle_overlaps import intersections
from detops.reference.masks_to_rle import run_lengths

op = Op("rle_overlaps")

Pair = tuple[Tensor, Tensor, Tensor, Tensor, int, int]


def pair(scene: Scene, seed: int = 1, count: int = 3, kind: str = "noise") -> Pair:
    """A scene, and other masks of the same image."""
    counts, offsets, height, width = scene
    return counts, offsets, *run_length_scene(seed, count, height, width, kind)


@op.for_each_form
@settings(max_examples=150, deadline=None)
@given(
    scene=run_length_scenes.scenes,
    seed=st.integers(0, 10**6),
    count=st.sampled_from([0, 1, 5]),
    kind=st.sampled_from(["noise", "boxes", "rare"]),
)
def test_matches_reference(form: Form, scene: Scene, seed: int, count: int, kind: str) -> None:
    args = pair(scene, seed, count, kind)
    assert_same_bits(form(*args), op.reference(*args))


@pytest.mark.parametrize("kinds", [("noise", "noise"), ("noise", "boxes"), ("boxes", "boxes"), ("rare", "noise")])
def test_images_of_many_strips(kinds: tuple[str, str]) -> None:
    """Bits are compared a strip of 2^15 pixels at a time."""
    args = pair(run_length_scene(3, 2, 331, 257, kinds[0]), 4, 2, kinds[1])
    assert_same_bits(op(*args), op.reference(*args))


def test_columns_of_few_and_of_many_runs() -> None:
    """Combs of up to nine runs in a column, wide ones with gaps, and noise: each pair in the way that suits it."""
    masks = torch.zeros(22, 90, 50, dtype=torch.bool)
    for n in range(9):
        for run in range(n + 1):
            masks[n, 9 * run + n : 9 * run + n + 5, 20 + n // 4 : 22 + n] = True
        masks[9 + n] = masks[n]
        masks[9 + n, 3 * n : 40, 4 + n :: 7] = True
        masks[9 + n, :, 30:33] = True  # a run that goes on in the next columns
    masks[18:20] = torch.rand(2, 90, 50, generator=torch.Generator().manual_seed(1)) > 0.5
    masks[20] = True
    counts, offsets = run_lengths(list(masks), False)
    expected = torch.einsum("iyx,jyx->ij", masks.double(), masks.double()).long()
    others = counts.clone(), offsets.clone()
    assert torch.equal(op(counts, offsets, *others, 90, 50), expected)
    assert torch.equal(op(counts, offsets, counts, offsets, 90, 50), expected)  # half of the pairs, mirrored


def test_is_that_of_pycocotools() -> None:
    from pycocotools import mask as coco

    counts, offsets, other, other_offsets, height, width = pair(
        run_length_scene(1, 20, 60, 80, "boxes"), 2, 15, "boxes"
    )
    masks, others = (
        torch.ops.detops.rle_to_masks(*runs, height, width, 0, 0, height, width, False).numpy().astype(np.uint8)
        for runs in ((counts, offsets), (other, other_offsets))
    )
    encoded = [[coco.encode(np.asfortranarray(mask)) for mask in side] for side in (masks, others)]
    shared = op(counts, offsets, other, other_offsets, height, width).double()
    union = (
        torch.from_numpy(masks.sum((1, 2), np.int64))[:, None] + torch.from_numpy(others.sum((1, 2), np.int64)) - shared
    )
    expected = torch.from_numpy(coco.iou(*encoded, [False] * 15))
    assert (expected > 0).any()
    assert torch.equal((shared / union).nan_to_num(0), expected)


def test_portable_in_chunks() -> None:
    counts, offsets, *other, height, width = pair(run_length_scene(3, 4, 20, 30))
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(3))
    found = intersections((counts, offsets), (other[0], other[1]), height * width, pairs, chunk=7)
    assert torch.equal(found.view(4, 3), op.reference(counts, offsets, *other, height, width))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = pair(run_length_scene(3, 20, 150, 150), count=20)
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
def test_opcheck(device: str) -> None:
    op.check(*moved(pair(run_length_scene(5)), device))


def test_compiles_whole() -> None:
    assert_compiles_whole(op.overload, pair(run_length_scene(1)), pair(run_length_scene(2, 5)))


@pytest.mark.parametrize("change", REFUSED, ids=changed_argument)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(pair(run_length_scene(7)), **change)
    ((name, value),) = change.items()
    if name in ("counts", "offsets"):
        op.refuses(pair(run_length_scene(7)), **{f"other_{name}": value})


KERNELS = [
    Kernel("overlap_kernel",
           dict(ends="*i64", sums="*i64", offsets="*i64", extents="*i64", other_counts="*i32", other_ends="*i64",
                other_offsets="*i64", other_extents="*i64", shared="*i64", M="i32", steps="i32"), dict(BLOCK=128), 2)
]  # fmt: skip
