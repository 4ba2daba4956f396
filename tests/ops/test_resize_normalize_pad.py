"""The op resize_normalize_pad: every form within rounding of the reference in float64, and of other libraries."""

import importlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ahead_of_time import Kernel, needs_triton
from hypothesis import given
from hypothesis import strategies as st
from op import (
    Form,
    Op,
    assert_compiles_whole,
    assert_no_syncs,
    assert_same_bits,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)
from torch import Tensor

from detops.reference.resize_normalize_pad import weights

op = Op("resize_normalize_pad")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of Triton

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
# Tolerance of results, which are within +-3: twelve roundings in float32, the last rounding in other dtypes.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1.1e-3, torch.bfloat16: 8.5e-3}


def pixels(g: torch.Generator, channels: int, height: int, width: int, storage: str) -> Tensor:
    """Make a random image (C, H, W), stored in one of the ways in which users' images are."""

    def draw(*shape: int) -> Tensor:
        return torch.randint(256, shape, dtype=torch.uint8, generator=g)

    if storage == "planar":
        return draw(channels, height, width)
    if storage == "interleaved":
        return draw(height, width, channels).permute(2, 0, 1)
    if storage == "of RGBA":
        return draw(height, width, 4)[..., :channels].permute(2, 0, 1)
    if storage == "cut out":
        return draw(height + 2, width + 3, channels)[1:-1, 2:-1].permute(2, 0, 1)
    if storage == "columns first":
        return draw(channels, width, height).transpose(1, 2)
    if storage == "every second":
        return draw(channels, 2 * height, 2 * width)[:, ::2, 1::2]
    return draw(1, 1, 1).expand(channels, height, width)


STORAGES = ["planar", "interleaved", "of RGBA", "cut out", "columns first", "every second", "expanded"]
Image = tuple[int, int, int, str, int, int]  # channels, height, width, storage; height and width in the batch


def scenes(largest: int, most: int) -> st.SearchStrategy[list[Image]]:
    """Up to `most` images with sides up to `largest`."""
    sides = st.integers(1, largest)
    image = st.tuples(st.sampled_from([1, 3]), sides, sides, st.sampled_from(STORAGES), sides, sides)
    return st.lists(image, min_size=1, max_size=most)


def batch_of(
    seed: int, scene: Sequence[Image], padding: tuple[int, int] = (0, 0)
) -> tuple[list[Tensor], list[int], int, int]:
    """Images, sizes, and the height and width of the batch."""
    g = torch.Generator().manual_seed(seed)
    images = [pixels(g, *row[:4]) for row in scene]
    sizes = [int(side) for row in scene for side in row[4:]]
    return images, sizes, max(sizes[::2]) + padding[0], max(sizes[1::2]) + padding[1]


def assert_matches(form: Form, args: Any, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
    expected = op.reference(*args, torch.float64)
    batch = form(*moved(args, device), dtype)
    assert batch.dtype == dtype
    assert batch.device.type == device
    tolerance = TOLERANCE[dtype]
    if form.interpreted and dtype == torch.bfloat16:
        tolerance *= 2  # the interpreter cuts to bfloat16 where a GPU rounds
    torch.testing.assert_close(batch.double().cpu(), expected, rtol=0, atol=tolerance)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(150)
    @given(
        seed=st.integers(0, 10**6),
        scene=scenes(8, 2) if form.interpreted else scenes(40, 4),
        padding=st.tuples(st.integers(0, 3 if form.interpreted else 9), st.integers(0, 9)),
        reverse_channels=st.booleans(),
        antialias=st.booleans(),
        dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    )
    def check(
        seed: int,
        scene: list[Image],
        padding: tuple[int, int],
        reverse_channels: bool,
        antialias: bool,
        dtype: torch.dtype,
    ) -> None:
        args = (*batch_of(seed, scene, padding), MEAN, STD, reverse_channels, antialias)
        assert_matches(form, args, dtype)

    check()


LARGE: dict[str, Sequence[Image]] = {
    "down": ((3, 300, 500, "interleaved", 97, 161), (3, 200, 90, "planar", 150, 67)),
    "up": ((3, 60, 45, "interleaved", 200, 151), (1, 30, 100, "planar", 61, 203)),
    "far down": ((3, 700, 900, "interleaved", 3, 2), (3, 1, 900, "planar", 1, 7)),
    "one pixel": ((3, 1, 1, "interleaved", 40, 30), (1, 1, 1, "planar", 1, 1)),
    "a row and a column": ((3, 1, 300, "interleaved", 7, 40), (3, 300, 1, "cut out", 40, 9)),
}
LOW: dict[str, Sequence[Image]] = {  # the same with few rows, for the interpreter, which takes two at a time
    "down": ((3, 12, 300, "interleaved", 5, 161), (3, 9, 90, "planar", 7, 67)),
    "up": ((3, 4, 45, "interleaved", 9, 151), (1, 3, 100, "planar", 5, 203)),
    "far down": ((3, 9, 30, "interleaved", 1, 2), (3, 1, 70, "planar", 1, 7)),
    "one pixel": ((3, 1, 1, "interleaved", 4, 150), (1, 1, 1, "planar", 1, 1)),
    "a row and a column": ((3, 1, 300, "interleaved", 7, 140), (3, 50, 1, "cut out", 9, 9)),
}


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("case", LARGE)
@op.for_each_form
def test_large_images(form: Form, case: str, antialias: bool) -> None:
    scene, padding = (LOW[case], (1, 5)) if form.interpreted else (LARGE[case], (3, 5))
    assert_matches(form, (*batch_of(1, scene, padding), MEAN, STD, True, antialias))


@pytest.mark.slow
@needs_triton
class TestNumbersBeyond32Bits:
    """Triton computes with 64 bits only where an image needs them, which changes no bit of the result."""

    @pytest.mark.parametrize("antialias", [False, True])
    def test_both_widths_give_the_same_bits(self, antialias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        module = importlib.import_module("detops.kernels.resize_normalize_pad")
        args = (*batch_of(3, LOW["down"], (1, 5)), MEAN, STD, True, antialias, torch.float32)
        args = moved(args, DEVICE)
        narrow = module.resize_normalize_pad(*args)
        monkeypatch.setattr(module, "_is_wide", lambda *_: True)
        assert_same_bits(module.resize_normalize_pad(*args), narrow)

    def test_a_distance(self) -> None:
        """In units of 1 / (2 * 8) pixels the last centre of a row of 2^28 pixels lies beyond 2^31."""
        module = importlib.import_module("detops.kernels.resize_normalize_pad")
        image = torch.full((1, 1, 1), 200, dtype=torch.uint8, device=DEVICE).expand(3, 2, 2**28)
        batch = module.resize_normalize_pad([image], [1, 8], 1, 8, [0.0] * 3, [1.0] * 3, False, False, torch.float32)
        torch.testing.assert_close(batch.cpu(), torch.full((1, 3, 1, 8), 200.0), rtol=1e-6, atol=0)

    def test_a_stride(self) -> None:
        module = importlib.import_module("detops.kernels.resize_normalize_pad")
        image = pixels(torch.Generator().manual_seed(1), 3, 1, 9, "planar").to(DEVICE)
        apart = image.as_strided((3, 1, 9), (9, 2**32 + 1, 1))
        options = ([2, 5], 2, 5, MEAN, STD, False, True, torch.float32)
        rows = [module._row(view, 2, 5, False) for view in (image, apart)]
        assert [module._is_wide([row], 2, 5) for row in rows] == [False, True]
        assert_same_bits(*(module.resize_normalize_pad([view], *options) for view in (apart, image)))


@pytest.mark.gpu
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_matches_reference(dtype: torch.dtype, antialias: bool) -> None:
    for seed, case in enumerate(LARGE.values()):
        for reverse in (False, True):
            args = (*batch_of(seed, case, (3, 5)), MEAN, STD, reverse, antialias)
            assert_matches(op, args, dtype, device="cuda")


def test_weights_by_hand() -> None:
    """Four pixels to two: centres at 1 and 3. Two to four: centres at 1/4, 3/4, 5/4, 7/4."""
    half, quarter = [0.5, 0.5], [0.75, 0.25]
    assert weights(4, 2, False).tolist() == [[*half, 0, 0], [0, 0, *half]]
    assert weights(2, 4, False).tolist() == [[1, 0], quarter, quarter[::-1], [0, 1]]
    assert weights(2, 4, True).tolist() == weights(2, 4, False).tolist()
    expected = torch.tensor([[3 / 7, 3 / 7, 1 / 7, 0], [0, 1 / 7, 3 / 7, 3 / 7]], dtype=torch.float64)
    torch.testing.assert_close(weights(4, 2, True), expected)


@op.for_each_form
def test_by_hand(form: Form) -> None:
    image = torch.tensor([[[0, 100], [200, 100]], [[10, 10], [10, 10]], [[0, 0], [0, 4]]], dtype=torch.uint8)
    batch = form([image], [1, 1], 2, 3, [0.0, 1.0, 2.0], [1.0, 2.0, 4.0], False, False, torch.float32)
    assert batch.tolist() == [[[[100, 0, 0], [0, 0, 0]], [[4.5, 0, 0], [0, 0, 0]], [[-0.25, 0, 0], [0, 0, 0]]]]
    batch = form([image], [1, 1], 1, 1, [0.0] * 3, [1.0] * 3, True, False, torch.float32)
    assert batch.flatten().tolist() == [1, 10, 100]
    batch = form([image[1:2]], [1, 1], 1, 1, [0.0, 1.0, 2.0], [1.0] * 3, True, False, torch.float32)
    assert batch.flatten().tolist() == [10, 9, 8]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(20, 31), (70, 90), (37, 90), (5, 3)])
def test_pytorch_agrees(size: tuple[int, int], antialias: bool) -> None:
    image = pixels(torch.Generator().manual_seed(2), 3, 37, 53, "interleaved")
    batch = op([image], size, *size, [0.0] * 3, [1.0] * 3, False, antialias, torch.float32)
    expected = F.interpolate(image[None].double(), size, mode="bilinear", antialias=antialias)
    torch.testing.assert_close(batch.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(20, 31), (70, 90), (37, 90), (5, 3), (37, 53)])
def test_opencv_agrees_within_one_grey_level(size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    image = pixels(torch.Generator().manual_seed(3), 3, 37, 53, "interleaved")
    batch = op([image], size, *size, [0.0] * 3, [1.0] * 3, False, False, torch.float32)
    theirs = torch.from_numpy(cv2.resize(image.permute(1, 2, 0).numpy(), size[::-1])).permute(2, 0, 1)
    assert (batch[0] - theirs).abs().max() < 1


@pytest.mark.parametrize("size", [(20, 31), (70, 90), (37, 90), (5, 3), (37, 53)])
def test_pillow_agrees_within_one_grey_level(size: tuple[int, int]) -> None:
    """Pillow, compared with antialias, rounds to whole grey levels after each of two passes."""
    image_module = pytest.importorskip("PIL.Image")
    np = pytest.importorskip("numpy")
    image = pixels(torch.Generator().manual_seed(4), 3, 37, 53, "interleaved")
    batch = op([image], size, *size, [0.0] * 3, [1.0] * 3, False, True, torch.float32)
    picture = image_module.fromarray(image.permute(1, 2, 0).numpy())
    theirs = np.array(picture.resize(size[::-1], image_module.Resampling.BILINEAR))
    assert (batch[0] - torch.from_numpy(theirs).permute(2, 0, 1)).abs().max() <= 1


@pytest.mark.parametrize("antialias", [False, True])
@op.for_each_form
class TestIdentities:
    def test_the_same_size_is_the_image(self, form: Form, antialias: bool) -> None:
        image = pixels(torch.Generator().manual_seed(5), 3, 9, 14, "interleaved")
        batch = form([image], [9, 14], 9, 14, [0.0] * 3, [1.0] * 3, False, antialias, torch.float32)
        torch.testing.assert_close(batch[0], image.float(), rtol=1e-6, atol=0)

    def test_storage_does_not_matter(self, form: Form, antialias: bool) -> None:
        planar = pixels(torch.Generator().manual_seed(6), 3, 17, 23, "planar")
        interleaved = planar.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        columns_first = planar.transpose(1, 2).contiguous().transpose(1, 2)
        options = ([11, 29], 12, 32, MEAN, STD, True, antialias, torch.float32)
        first, *others = (form([i], *options) for i in (planar, interleaved, columns_first))
        for other in others:
            torch.testing.assert_close(other, first, rtol=1e-6, atol=1e-6)

    def test_splitting_the_batch_changes_nothing(self, form: Form, antialias: bool) -> None:
        images, sizes, height, width = batch_of(7, [(3, 20, 30, "planar", 7, 9), (1, 8, 4, "planar", 12, 5)])
        options = (height, width, MEAN, STD, False, antialias, torch.float32)
        whole = form(images, sizes, *options)
        parts = [form([images[b]], sizes[2 * b : 2 * b + 2], *options) for b in range(2)]
        assert torch.equal(whole, torch.cat(parts))

    def test_grey_is_three_equal_channels(self, form: Form, antialias: bool) -> None:
        grey = pixels(torch.Generator().manual_seed(8), 1, 17, 23, "planar")
        options = ([11, 29], 11, 29, MEAN, STD, True, antialias, torch.float32)
        of_three = form([grey.expand(3, -1, -1).contiguous()], *options)
        assert torch.equal(form([grey], *options), of_three)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = (*batch_of(10, LARGE["down"]), MEAN, STD, False, True, torch.float32)
    assert_same_bits_for_any_threads(lambda: op(*args))


TWO: list[Image] = [(3, 9, 8, "interleaved", 5, 7), (1, 5, 5, "planar", 6, 6)]


@for_each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(device: str, dtype: torch.dtype) -> None:
    op.check(*moved(batch_of(11, TWO), device), MEAN, STD, True, False, dtype)


@for_each_device
@pytest.mark.parametrize("antialias", [False, True])
def test_no_host_sync_and_compiles_whole(device: str, antialias: bool) -> None:
    calls = [
        (*moved(batch_of(12, scene), device), MEAN, STD, True, antialias, torch.float16) for scene in (TWO, TWO[:1])
    ]
    for form in (op, op.portable):
        assert assert_no_syncs(form, *calls[0]).shape == (2, 3, 6, 7)
    assert_compiles_whole(op.overload, *calls)


def test_what_lies_around_an_image_is_never_read() -> None:
    """The fourth channel and the rows and columns around the image differ by 0 and 255, since uint8 has no NaN."""
    results = []
    for fill in (0, 255):
        guard = torch.full((30, 40, 4), fill, dtype=torch.uint8)
        guard[5:25, 6:33, :3] = pixels(torch.Generator().manual_seed(9), 3, 20, 27, "planar").permute(1, 2, 0)
        view = guard[5:25, 6:33, :3].permute(2, 0, 1)
        options = ([13, 51], 13, 51, MEAN, STD, False)
        results.append([op([view], *options, antialias, torch.float32) for antialias in (False, True)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(
    "change",
    [
        dict(images=[torch.zeros(3, 4, 4)]),
        dict(images=[torch.zeros(4, 4, dtype=torch.uint8)]),
        dict(images=[torch.zeros(2, 4, 4, dtype=torch.uint8)]),
        dict(images=[torch.zeros(3, 0, 4, dtype=torch.uint8)]),
        dict(sizes=[4]),
        dict(sizes=[5, 4]),
        dict(sizes=[4, 0]),
        dict(mean=[0.0]),
        dict(std=[1.0]),
        dict(dtype=torch.int64),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    """The C++ kernel checks its arguments too, since the op can be called without the public function."""
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    op.refuses(([image], [4, 4], 4, 4, MEAN, STD, False, False, torch.float32), **change)


_TYPES = dict(table="*i64", height="i32", width="i32") | {
    f"{name}_{channel}": "fp32" for name in ("scale", "shift") for channel in range(3)
}
KERNELS = [
    Kernel("resize_kernel", dict(batch="*" + dtype) | _TYPES, constants | dict(BLOCK_H=2, BLOCK_W=128), 4)
    for dtype, constants in (
        ("fp32", dict(ANTIALIAS=False, WIDE=False)),
        ("fp16", dict(ANTIALIAS=True, WIDE=False)),
        ("bf16", dict(ANTIALIAS=False, WIDE=True)),
        ("bf16", dict(ANTIALIAS=True, WIDE=False, width=1)),  # Triton makes a constant of a width of 1
    )
]
