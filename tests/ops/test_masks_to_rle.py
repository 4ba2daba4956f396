"""The op masks_to_rle: byte for byte what pycocotools makes of the pasted masks."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from ahead_of_time import HAS_TRITON, assert_compiles, for_each_target, needs_triton
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_scenes import blobs
from mask_scenes import mask_scene as scene
from pycocotools import mask as coco
from test_paste_masks import CASES, one, scenes, thresholds

from detops.geometry import run_lengths
from detops.portable import masks_to_rle as portable_module
from detops.portable.masks_to_rle import masks_to_rle as portable
from detops.reference.masks_to_rle import masks_to_rle as reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def op(*args):
    return torch.ops.detops.masks_to_rle(*args)


def interpreted(*args):
    from detops.kernels.masks_to_rle import masks_to_rle

    return masks_to_rle(*args)


IMPLEMENTATIONS = {"portable": portable, "op": op}
if HAS_TRITON and not torch.cuda.is_available():
    IMPLEMENTATIONS["triton, interpreted"] = interpreted


def strings(counts, offsets):
    parts = offsets.tolist()
    return [bytes(counts[begin:end].tolist()) for begin, end in pairwise(parts)]


def pasted_and_encoded(*args):
    pasted = torch.ops.detops.paste_masks(*args).to(torch.uint8)
    return [coco.encode(np.asfortranarray(mask))["counts"] for mask in pasted.numpy()]


def assert_equals(result, expected):
    for one_of, other in zip(result, expected, strict=True):
        assert one_of.dtype == other.dtype
        assert torch.equal(one_of.cpu(), other)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")  # the interpreter's numpy
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_matches_reference(name):
    @settings(max_examples=10 if "triton" in name else 150, deadline=None)
    @given(args=scenes, threshold=thresholds, compress=st.booleans())
    def check(args, threshold, compress):
        assert_equals(IMPLEMENTATIONS[name](*args, threshold, compress), reference(*args, threshold, compress))

    check()


@settings(max_examples=1000, deadline=None)
@given(args=scenes, threshold=thresholds)
def test_bytes_of_pycocotools(args, threshold):
    assert strings(*op(*args, threshold, True)) == pasted_and_encoded(*args, threshold)


@pytest.mark.parametrize("mask_size", [1, 7, 28, 64])
@pytest.mark.parametrize("image_size", [(480, 640), (1100, 700)])
def test_bytes_of_pycocotools_in_large_images(image_size, mask_size):
    """Many rows of the image between two of the mask, so that crossings have to be found."""
    for seed in range(3):
        args = scene(seed, 60, (mask_size, mask_size), image_size, ties=seed == 1, odd=seed == 2)
        assert strings(*op(*args, 0.5, True)) == pasted_and_encoded(*args, 0.5)
    args = (*blobs(60, image_size), *image_size, 0.5)
    assert strings(*op(*args, True)) == pasted_and_encoded(*args)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_boxes_by_hand(name, case):
    box, columns, rows = CASES[case]
    expected = np.zeros((6, 8), np.uint8)
    for y in rows:
        expected[y, list(columns)] = 1
    assert strings(*IMPLEMENTATIONS[name](*one(box), True)) == [coco.encode(np.asfortranarray(expected))["counts"]]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_runs_over_the_ends_of_columns(name):
    """A mask as high as the image is one run; the last run ends with the image."""
    counts, offsets = IMPLEMENTATIONS[name](*one([2.0, 0, 6, 6]), False)
    assert counts.tolist() == [12, 24, 12]
    assert offsets.tolist() == [0, 3]
    assert IMPLEMENTATIONS[name](*one([4.0, 0, 8, 6]), False)[0].tolist() == [24, 24]
    assert IMPLEMENTATIONS[name](*one([0.0, 0, 8, 6]), False)[0].tolist() == [0, 48]
    assert IMPLEMENTATIONS[name](*one([6.0, 2, 8, 6]), False)[0].tolist() == [38, 4, 2, 4]
    assert IMPLEMENTATIONS[name](*one([0.0, 0, 0, 0]), False)[0].tolist() == [48]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("compress", [True, False])
def test_no_masks(name, compress):
    counts, offsets = IMPLEMENTATIONS[name](torch.zeros(0, 28, 28), torch.zeros(0, 4), 6, 8, 0.5, compress)
    assert counts.shape == (0,)
    assert counts.dtype == (torch.uint8 if compress else torch.int32)
    assert offsets.tolist() == [0]


def test_long_runs():
    """Differences of up to 31 bits: seven characters."""
    size = (46000, 46000)
    boxes = torch.tensor([[0.0, 0, 1, 1], [45999.0, 45999, 46000, 46000], [45998.0, 0, 46000, 46000]])
    args = (torch.ones(3, 28, 28), boxes, *size, 0.5)
    total = size[0] * size[1]
    counts, offsets = op(*args, False)
    assert counts.tolist() == [0, 1, total - 1, total - 1, 1, total - 92000, 92000]
    encoded = [{"size": list(size), "counts": c} for c in strings(*op(*args, True))]
    assert coco.area(encoded).tolist() == [1, 1, 92000]
    starts, ends = torch.tensor([0, total - 1, total - 92000]), torch.tensor([1, total, total])
    assert_equals((counts, offsets), run_lengths.encode(starts, ends, torch.ones(3, dtype=torch.int64), total, False))
    joined = run_lengths.encode(starts, ends, torch.ones(3, dtype=torch.int64), total, True)
    assert strings(*joined) == strings(*op(*args, True))


def test_portable_in_chunks(monkeypatch):
    args = (*scene(3, count=7), 0.5, True)
    expected = reference(*args)
    for values in (1, 100, 2000):
        monkeypatch.setattr(portable_module, "CHUNK_VALUES", values)
        assert_equals(portable(*args), expected)


def test_threads_change_nothing():
    args = (*blobs(30, (200, 300)), 200, 300, 0.5, True)
    expected = op(*args)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert_equals(op(*args), expected)
    finally:
        torch.set_num_threads(before)


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
def test_memory_is_small(request):
    """A hundred masks of an image of 2304 x 3840 pixels: pasted, 844 MiB; here, of the whole process, below 20."""
    code = MEMORY.format(folder=str(request.path.parents[1] / "helpers"))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 20 * 1024


@pytest.mark.gpu
def test_gpu_matches_reference():
    for seed in range(10):
        args = scene(seed, count=9, mask_size=(28, 28), image_size=(300, 70), ties=seed % 2 == 0, odd=seed % 3 == 0)
        masks, boxes, *rest = args
        for compress in (True, False):
            expected = reference(*args, 0.5, compress)
            assert_equals(op(masks.cuda(), boxes.cuda(), *rest, 0.5, compress), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("compress", [True, False])
def test_opcheck(device, compress):
    masks, boxes, *rest = scene(5)
    args = (masks.to(device), boxes.to(device), *rest, 0.5, compress)
    torch.library.opcheck(torch.ops.detops.masks_to_rle.default, args)


def test_compiles_whole():
    """How long the result is follows from the data, which the graph is told."""
    args = (*scene(6), 0.5, True)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
        assert_equals(compiled(*args), op(*args))


@needs_triton
@for_each_target
def test_compiles_ahead_of_time(target):
    types = dict(masks="*fp32", rows="*i32", along_y="*fp32", columns="*i32", along_x="*fp32", counts="*i64")
    types |= dict(starts="*i64", ends="*i64", H="i32", W="i32", stride="i32", cells="i32", threshold="fp32")
    constants = [dict(WRITE=write, BLOCK=256) for write in (False, True)]
    constants += [c | dict(H=1, W=1) for c in constants]  # which Triton makes constants by itself
    assert_compiles("masks_to_rle", [("runs_kernel", types, c, 2) for c in constants], target)
