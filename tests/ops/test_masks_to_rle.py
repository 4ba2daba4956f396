"""The op masks_to_rle: byte for byte what pycocotools makes of the pasted masks."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import mask_scenes
import numpy as np
import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_scenes import CASES, REFUSED, THRESHOLDS, blobs, coco, mask_scene, one_mask, scenes, scenes_of
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
from torch import Tensor

from detops.geometry import run_lengths
from detops.portable import masks_to_rle as portable_module

op = Op("masks_to_rle")

Scene = tuple[Tensor, Tensor, int, int]


def strings(counts: Tensor, offsets: Tensor) -> list[bytes]:
    return [bytes(counts[begin:end].tolist()) for begin, end in pairwise(offsets.tolist())]


def pasted_and_encoded(*args: Any) -> list[bytes]:
    pasted = torch.ops.detops.paste_masks(*args).to(torch.uint8)
    return [coco().encode(np.asfortranarray(mask))["counts"] for mask in pasted.numpy()]


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")  # the interpreter's numpy
@op.for_each_form
def test_matches_reference(form: Form) -> None:
    # The kernel takes 32 columns and 8 rows at a time, and looks for a mask's rows in 256.
    sizes = [(1, 1), (1, 40), (40, 1), (8, 33), (23, 31), (30, 64), (260, 2)]
    narrow = scenes_of([0, 1, 4], sizes) if form.interpreted else scenes

    @form.examples(150)
    @given(args=narrow, threshold=st.sampled_from(THRESHOLDS), compress=st.booleans())
    def check(args: Scene, threshold: float, compress: bool) -> None:
        assert_same_bits(form(*args, threshold, compress), op.reference(*args, threshold, compress))

    check()


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for seed in range(10):
        args = mask_scene(seed, 9, (28, 28), (300, 70), ties=seed % 2 == 0, odd=seed % 3 == 0)
        for compress in (True, False):
            expected = op.reference(*args, 0.5, compress)
            assert_same_bits(moved(op(*moved(args, "cuda"), 0.5, compress), "cpu"), expected)


@settings(max_examples=1000, deadline=None)
@given(args=scenes, threshold=st.sampled_from(THRESHOLDS))
def test_bytes_of_pycocotools(args: Scene, threshold: float) -> None:
    assert strings(*op(*args, threshold, True)) == pasted_and_encoded(*args, threshold)


@pytest.mark.parametrize("mask_size", [1, 7, 28, 64])
@pytest.mark.parametrize("image_size", [(480, 640), (1100, 700)])
def test_bytes_of_pycocotools_in_large_images(image_size: tuple[int, int], mask_size: int) -> None:
    """Many rows of the image lie between two of the mask, so that crossings have to be found."""
    for seed in range(3):
        args = mask_scene(seed, 60, (mask_size, mask_size), image_size, ties=seed == 1, odd=seed == 2)
        assert strings(*op(*args, 0.5, True)) == pasted_and_encoded(*args, 0.5)
    masks, boxes = blobs(60, image_size)
    args = (masks, boxes, *image_size)
    assert strings(*op(*args, 0.5, True)) == pasted_and_encoded(*args, 0.5)


@pytest.mark.parametrize("case", CASES)
@op.for_each_form
def test_boxes_by_hand(form: Form, case: str) -> None:
    box, columns, rows = CASES[case]
    expected = np.zeros((6, 8), np.uint8)
    for y in rows:
        expected[y, list(columns)] = 1
    assert strings(*form(*one_mask(box), True)) == [coco().encode(np.asfortranarray(expected))["counts"]]


@op.for_each_form
def test_runs_over_the_ends_of_columns(form: Form) -> None:
    """A mask as high as the image is one run; the last run ends with the image."""
    counts, offsets = form(*one_mask([2.0, 0, 6, 6]), False)
    assert counts.tolist() == [12, 24, 12]
    assert offsets.tolist() == [0, 3]
    assert form(*one_mask([4.0, 0, 8, 6]), False)[0].tolist() == [24, 24]
    assert form(*one_mask([0.0, 0, 8, 6]), False)[0].tolist() == [0, 48]
    assert form(*one_mask([6.0, 2, 8, 6]), False)[0].tolist() == [38, 4, 2, 4]
    assert form(*one_mask([0.0, 0, 0, 0]), False)[0].tolist() == [48]


@op.for_each_form
@pytest.mark.parametrize("size", [(1, 70), (2, 33), (6, 40), (17, 32)])
def test_pixels_that_are_cells(form: Form, size: tuple[int, int]) -> None:
    """Every pixel is drawn anew, so that runs begin and end at, and go on over, the ends of columns anywhere."""
    height, width = size
    masks = (torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) < 0.6).float()
    args = (masks, torch.tensor([[0.0, 0, width, height]]).expand(3, 4), height, width, 0.5)
    expected = [coco().encode(np.asfortranarray(mask))["counts"] for mask in masks.to(torch.uint8).numpy()]
    assert strings(*form(*args, True)) == expected


def test_long_runs() -> None:
    """Differences of up to 31 bits take seven characters."""
    size = (46000, 46000)
    boxes = torch.tensor([[0.0, 0, 1, 1], [45999.0, 45999, 46000, 46000], [45998.0, 0, 46000, 46000]])
    args = (torch.ones(3, 28, 28), boxes, *size, 0.5)
    total = size[0] * size[1]
    counts, offsets = op(*args, False)
    assert counts.tolist() == [0, 1, total - 1, total - 1, 1, total - 92000, 92000]
    encoded = [{"size": list(size), "counts": c} for c in strings(*op(*args, True))]
    assert coco().area(encoded).tolist() == [1, 1, 92000]
    starts, ends = torch.tensor([0, total - 1, total - 92000]), torch.tensor([1, total, total])
    assert_same_bits(
        (counts, offsets), run_lengths.encode(starts, ends, torch.ones(3, dtype=torch.int64), total, False)
    )
    joined = run_lengths.encode(starts, ends, torch.ones(3, dtype=torch.int64), total, True)
    assert strings(*joined) == strings(*op(*args, True))


def test_portable_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    args = (*mask_scene(3, count=7), 0.5, True)
    expected = op.reference(*args)
    for values in (1, 100, 2000):
        monkeypatch.setattr(portable_module, "CHUNK_VALUES", values)
        assert_same_bits(op.portable(*args), expected)


MEMORY = """
import resource, sys, torch, detops
sys.path.insert(0, {folder!r})
from mask_scenes import blobs
args = (*blobs(100, (2304, 3840)), 2304, 3840, 0.5, True)
torch.ops.detops.masks_to_rle(*(t[:2] if isinstance(t, torch.Tensor) else t for t in args))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
torch.ops.detops.masks_to_rle(*args)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts in KiB there")
def test_memory_is_small() -> None:
    """A hundred masks of an image of 2304 x 3840 pixels: 844 MiB if pasted; here the process grows by less than 20."""
    code = MEMORY.format(folder=str(Path(mask_scenes.__file__).parent))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 20 * 1024


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = (*blobs(30, (200, 300)), 200, 300, 0.5, True)
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
@pytest.mark.parametrize("compress", [True, False])
def test_opcheck(device: str, compress: bool) -> None:
    op.check(*moved(mask_scene(5), device), 0.5, compress)


def test_compiles_whole() -> None:
    """The length of the result depends on the data, and is a dynamic size of the graph."""
    args, more = (mask_scene(6, count) for count in (4, 7))
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        assert_compiles_whole(op.overload, (*args, 0.5, True), (*more, 0.5, True))


@op.for_each_form
@pytest.mark.parametrize("compress", [True, False])
def test_no_masks(form: Form, compress: bool) -> None:
    counts, offsets = form(torch.zeros(0, 28, 28), torch.zeros(0, 4), 6, 8, 0.5, compress)
    assert counts.shape == (0,)
    assert counts.dtype == (torch.uint8 if compress else torch.int32)
    assert offsets.tolist() == [0]


@pytest.mark.parametrize("change", REFUSED, ids=changed_argument)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses((*mask_scene(7), 0.5, True), **change)


@pytest.mark.parametrize("compress", [False, True])
@op.for_each_form
def test_masks_of_hundreds_of_runs(form: Form, compress: bool) -> None:
    """More runs and counts than a program takes in one step, beside a mask without any."""
    masks = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    masks[1] = 0
    boxes = torch.tensor([0.0, 0, 40, 40]).expand(3, 4)
    counts, offsets = form(masks, boxes, 40, 40, 0.5, compress)
    expected, places = op.reference(masks, boxes, 40, 40, 0.5, compress)
    assert torch.equal(counts, expected)
    assert torch.equal(offsets, places)
    assert compress or offsets.diff().tolist()[0] > 600


KERNELS = [
    Kernel("runs_kernel",
           dict(masks="*fp32", rows="*i32", along_y="*fp32", columns="*i32", along_x="*fp32", counts="*i64", starts="*i64",
                ends="*i64", H="i32", W="i32", stride="i32", cells="i32", threshold="fp32"), dict(WRITE=write, COLUMNS=32, ROWS=8), 1)
    for write in (False, True)
] + [
    Kernel("sizes_kernel", dict(ends="*i64", runs="*i64", through="*i64", sizes="*i64", N="i32", pixels="i32"),
           dict(BLOCK=256), 4),
    Kernel("counts_kernel",
           dict(starts="*i64", ends="*i64", runs="*i64", through="*i64", offsets="*i64", counts="*i32", pixels="i32"),
           dict(BLOCK=256), 4),
    Kernel("groups_kernel", dict(counts="*i64", offsets="*i64", groups="*i64"), dict(BLOCK=256, GROUPS=7), 4),
    Kernel("characters_kernel",
           dict(counts="*i64", offsets="*i64", places="*i64", characters="*u8", strings="*i64"),
           dict(BLOCK=256, GROUPS=7), 4),
]  # fmt: skip
