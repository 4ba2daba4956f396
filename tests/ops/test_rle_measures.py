"""The op rle_measures: areas and extents from run lengths."""

from typing import Any

import pytest
import run_length_scenes
import torch
from ahead_of_time import Kernel
from hypothesis import given, settings
from op import Form, Op, assert_compiles_whole, assert_same_bits, changed_argument, for_each_device, moved
from run_length_scenes import REFUSED, Scene, run_length_scene

op = Op("rle_measures")


@op.for_each_form
@settings(max_examples=150, deadline=None)
@given(scene=run_length_scenes.scenes)
def test_matches_reference(form: Form, scene: Scene) -> None:
    assert_same_bits(form(*scene), op.reference(*scene))


@op.for_each_form
def test_by_hand(form: Form) -> None:
    """An empty mask, a full one, one pixel at the end, and a run from one column to the next."""
    counts = torch.tensor([12, 0, 12, 11, 1, 2, 2, 8], dtype=torch.int32)
    areas, extents = form(counts, torch.tensor([0, 1, 3, 5, 8]), 3, 4)
    assert areas.tolist() == [0, 12, 1, 2]
    assert extents.tolist() == [[0, 0, 0, 0], [0, 0, 4, 3], [3, 2, 4, 3], [0, 0, 2, 3]]


def test_more_pixels_than_float32_counts() -> None:
    counts = torch.tensor([1, 2**30], dtype=torch.int32)
    assert op(counts, torch.tensor([0, 2]), 2**15, 2**15 + 1)[0].tolist() == [2**30]


@for_each_device
def test_opcheck(device: str) -> None:
    op.check(*moved(run_length_scene(5), device))


def test_compiles_whole() -> None:
    assert_compiles_whole(op.overload, run_length_scene(1), run_length_scene(2, 5))


@pytest.mark.parametrize("change", REFUSED, ids=changed_argument)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(run_length_scene(7), **change)


KERNELS = [
    Kernel("measure_kernel",
           dict(counts="*i32", offsets="*i64", areas="*i64", extents="*i64", H="i32", W="i32"), dict(BLOCK=256), 2)
]  # fmt: skip
