"""The op maps_to_rle: byte for byte what pycocotools makes of maps that F.interpolate enlarged."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import map_scenes
import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import given
from hypothesis import strategies as st
from map_scenes import CPU, THRESHOLDS, MapScene, blob_maps, encoded, interpolated, map_scene
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

from detops.geometry.resizing import bilinear_positions
from detops.portable import maps_to_rle as portable_module

op = Op("maps_to_rle")

Size = tuple[int, int]


def strings(counts: Tensor, offsets: Tensor) -> list[bytes]:
    return [bytes(counts[begin:end].tolist()) for begin, end in pairwise(offsets.tolist())]


def whole(maps: Tensor, image_size: Size) -> tuple[Any, ...]:
    """Maps that cover an image, in one resize."""
    y, x = (bilinear_positions(0, maps.shape[1 + axis], image_size[axis], CPU) for axis in (0, 1))
    return maps, y, x, None, None, None


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")  # the interpreter's numpy
@op.for_each_form
def test_matches_reference(form: Form) -> None:
    # The kernel takes 32 columns and 8 rows at a time.
    scenes = map_scenes.map_scenes(40 if form.interpreted else 70)

    @form.examples(200)
    @given(scene=scenes, threshold=st.sampled_from(THRESHOLDS), compress=st.booleans())
    def check(scene: MapScene, threshold: float, compress: bool) -> None:
        assert_same_bits(form(*scene, threshold, compress), op.reference(*scene, threshold, compress))

    check()


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for seed in range(10):
        via = (40, 50) if seed % 2 else None
        scene = map_scene(seed, 9, (27, 30), (300, 70), via, ("noise", "ties")[seed % 2], windows=seed % 3 == 0)
        for compress in (True, False):
            expected = op.reference(*scene, 0.0, compress)
            assert_same_bits(moved(op(*moved(tuple(scene), "cuda"), 0.0, compress), "cpu"), expected)


@pytest.mark.parametrize("kind", ["noise", "blobs", "ties"])
def test_bytes_of_interpolated_and_encoded_masks(kind: str) -> None:
    """With torch's positions no pixel of these differs, though its kernel fuses products and sums."""
    g = torch.Generator().manual_seed(0)
    masks = 0
    for seed in range(12):
        cells = (int(torch.randint(20, 110, (), generator=g)), int(torch.randint(20, 110, (), generator=g)))
        size = (int(torch.randint(100, 500, (), generator=g)), int(torch.randint(100, 700, (), generator=g)))
        if seed % 4 == 0:
            size = (4 * cells[0], 2 * cells[1])
        maps = map_scene(seed, 4, cells, (1, 1), kind=kind).maps
        found = strings(*op(*whole(maps, size), 0.0, True))
        assert found == encoded(interpolated(maps, size) > 0)
        masks += len(found)
    assert masks == 48


def test_bytes_of_two_resizes() -> None:
    for seed in range(4):
        maps = map_scene(seed, 3, (40, 48), (1, 1), kind="blobs").maps
        y, x = bilinear_positions(0, 160, 427, CPU), bilinear_positions(0, 192, 640, CPU)
        via = bilinear_positions(0, 40, 160, CPU), bilinear_positions(0, 48, 192, CPU)
        found = strings(*op(maps, y, x, *via, None, 0.0, True))
        assert found == encoded(interpolated(maps, (160, 192), (427, 640)) > 0)


@pytest.mark.parametrize("image_size", [(480, 640), (1100, 700)])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_large_images(image_size: Size, threshold: float) -> None:
    """Many rows of the image between two of a map, so that crossings have to be found."""
    for kind in ("noise", "blobs", "ties", "flat"):
        scene = map_scene(3, 3, (9, 14), image_size, kind=kind, windows=kind == "ties")
        cut = threshold + (0.1 if kind == "flat" else 0)
        assert_same_bits(op(*scene, cut, True), op.reference(*scene, cut, True))


@op.for_each_form
@pytest.mark.parametrize("size", [(1, 70), (2, 33), (6, 40), (17, 32)])
def test_pixels_that_are_cells(form: Form, size: Size) -> None:
    """Every pixel is drawn anew, so that runs begin and end at, and go on over, the ends of columns anywhere."""
    maps = torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) - 0.4
    assert strings(*form(*whole(maps, size), 0.0, True)) == encoded(maps > 0)


@op.for_each_form
def test_by_hand(form: Form) -> None:
    """Cells -1, 1, 1, -1 in eight columns: from the second half of the first to the first half of the last."""
    row = whole(torch.tensor([[[-1.0, 1, 1, -1]]]), (2, 8))
    assert form(*row, 0.0, False)[0].tolist() == [4, 8, 4]
    column = whole(torch.tensor([[[-1.0], [1], [1], [-1]]]), (8, 2))
    assert form(*column, 0.0, False)[0].tolist() == [2, 4, 4, 4, 2]
    assert form(*whole(torch.ones(1, 3, 3), (6, 8)), 0.0, False)[0].tolist() == [0, 48]
    assert form(*whole(torch.zeros(1, 3, 3), (6, 8)), 0.0, False)[0].tolist() == [48]  # 0 is not above 0
    assert form(*whole(torch.zeros(1, 3, 3), (6, 8)), -1e-9, False)[0].tolist() == [0, 48]


@op.for_each_form
def test_windows_by_hand(form: Form) -> None:
    ones = whole(torch.ones(5, 3, 3), (6, 8))[:5]
    windows = torch.tensor([[2, 0, 4, 6], [2, 1, 4, 6], [6, 2, 99, 99], [4, 4, 2, 6], [-9, -9, -1, 99]])
    counts, offsets = form(*ones, windows, 0.0, False)
    assert counts.tolist() == [12, 12, 24, 13, 5, 1, 5, 24, 38, 4, 2, 4, 48, 48]
    assert offsets.tolist() == [0, 3, 8, 12, 13, 14]


def test_not_contiguous_and_half_precision() -> None:
    maps = torch.randn(3, 9, 11, generator=torch.Generator().manual_seed(0))
    expected = op(*whole(maps, (30, 40)), 0.0, True)
    assert_same_bits(op(*whole(maps.mT.contiguous().mT, (30, 40)), 0.0, True), expected)
    wide = torch.zeros(3, 20, 30)
    wide[:, 4:13, 5:16] = maps
    assert_same_bits(op(*whole(wide[:, 4:13, 5:16], (30, 40)), 0.0, True), expected)
    half = maps.half()
    assert_same_bits(op(*whole(half, (30, 40)), 0.0, True), op(*whole(half.float(), (30, 40)), 0.0, True))


def test_a_bad_map_touches_no_other() -> None:
    maps = torch.randn(3, 9, 11, generator=torch.Generator().manual_seed(0))
    expected = strings(*op(*whole(maps, (30, 40)), 0.0, True))
    for value in (float("nan"), float("inf"), -float("inf")):
        maps[1, 3, 4] = value
        found = strings(*op(*whole(maps, (30, 40)), 0.0, True))
        assert found[0] == expected[0]
        assert found[2] == expected[2]


def test_portable_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = map_scene(3, 5, via=(9, 8), windows=True)
    expected = op.reference(*scene, 0.0, True)
    for values in (1, 100, 2000):
        monkeypatch.setattr(portable_module, "CHUNK_VALUES", values)
        assert_same_bits(op.portable(*scene, 0.0, True), expected)


MEMORY = """
import resource, sys, torch, detops
sys.path.insert(0, {folder!r})
from map_scenes import CPU, blob_maps
from detops.geometry.resizing import bilinear_positions
maps = blob_maps(300, 108)
y, x = bilinear_positions(0, 108, 3000, CPU), bilinear_positions(0, 108, 4000, CPU)
torch.ops.detops.maps_to_rle(maps[:2], y, x, None, None, None, 0.0, True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
torch.ops.detops.maps_to_rle(maps, y, x, None, None, None, 0.0, True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts in KiB there")
def test_memory_is_small() -> None:
    """300 masks of an image of 3000 x 4000 pixels: enlarged, 13 GiB; here, of the whole process, below 20 MiB."""
    code = MEMORY.format(folder=str(Path(map_scenes.__file__).parent))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 20 * 1024


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = (*whole(blob_maps(30, 40), (200, 300)), 0.0, True)
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
@pytest.mark.parametrize("via", [None, (9, 8)])
def test_opcheck(device: str, via: Size | None) -> None:
    op.check(*moved(tuple(map_scene(5, via=via, windows=via is not None)), device), 0.0, via is None)


def test_compiles_whole() -> None:
    """How long the result is follows from the data, which the graph is told."""
    calls = [(*map_scene(6, count), 0.0, True) for count in (4, 7)]
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        assert_compiles_whole(op.overload, *calls)


@op.for_each_form
@pytest.mark.parametrize("compress", [True, False])
def test_no_maps(form: Form, compress: bool) -> None:
    counts, offsets = form(*whole(torch.zeros(0, 28, 28), (6, 8)), 0.0, compress)
    assert counts.shape == (0,)
    assert counts.dtype == (torch.uint8 if compress else torch.int32)
    assert offsets.tolist() == [0]


REFUSED: list[dict[str, Any]] = [
    dict(maps=torch.zeros(4, 3)),
    dict(maps=torch.zeros(4, 0, 3)),
    dict(y=torch.zeros(0)),
    dict(y=torch.tensor([1.0, 0.0])),
    dict(x=torch.zeros(3, 1)),
    dict(x=torch.zeros(1).expand(2**30)),
    dict(via_y=torch.zeros(3)),
    dict(windows=torch.zeros(2, 4)),
    dict(threshold=float("nan")),
]


@pytest.mark.parametrize("change", REFUSED, ids=changed_argument)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses((*map_scene(7), 0.0, True), **change)


KERNELS = [
    Kernel("map_runs_kernel",
           dict(maps="*fp32", rows="*i32", along_y="*fp32", columns="*i32", along_x="*fp32", reached="*u8", windows="*i32",
                counts="*i64", starts="*i64", ends="*i64", H="i32", W="i32", stride="i32", cells="i32", threshold="fp32"),
           dict(WRITE=write, COLUMNS=32, ROWS=8), 1)
    for write in (False, True)
]  # fmt: skip
