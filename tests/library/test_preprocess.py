"""preprocess: kinds of images, resized sizes, and mapping boxes back."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import detops
from detops.inference.preprocess import _packed
from detops.reference.resize_normalize_pad import resize_normalize_pad as reference

np = pytest.importorskip("numpy")
image_module = pytest.importorskip("PIL.Image")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PLAIN: dict[str, Any] = dict(mean=(0, 0, 0), std=(1, 1, 1))


def array(height: int, width: int, channels: int = 3, seed: int = 0) -> Any:
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def as_planar(image: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous()


def test_equals_the_reference() -> None:
    images = [array(48, 64), array(50, 37, 1, 1), array(20, 90, 0, 2)]
    batch = detops.preprocess(images, scale=(40, 30), mean=MEAN, std=STD, to_rgb=True)
    planar = [as_planar(image if image.ndim == 3 else image[..., None]) for image in images]
    sizes = [30, 40, 40, 30, 9, 40]
    expected = reference(planar, sizes, 64, 64, [*MEAN], [*STD], True, False, torch.float64)
    torch.testing.assert_close(batch.images.double(), expected, rtol=0, atol=3e-6)
    assert batch.image_sizes.tolist() == [[30, 40], [40, 30], [9, 40]]
    assert batch.original_sizes.tolist() == [[48, 64], [50, 37], [20, 90]]
    factors = [(40 / 64, 30 / 48), (30 / 37, 40 / 50), (40 / 90, 9 / 20)]
    torch.testing.assert_close(batch.scale_factors, torch.tensor([factor * 2 for factor in factors]))


def opencv_steps(
    cv2: Any, image: Any, size: Sequence[int], mean: Sequence[float], std: Sequence[float], divisor: int
) -> Tensor:
    """MMDetection's Resize, Normalize to RGB, and Pad."""
    out = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    out = cv2.cvtColor(out.astype(np.float32), cv2.COLOR_BGR2RGB)
    out = (out - np.float32(mean)) / np.float32(std)
    below, right = (-side % divisor for side in size)
    out = cv2.copyMakeBorder(out, 0, below, 0, right, cv2.BORDER_CONSTANT, value=0)
    return torch.from_numpy(out.transpose(2, 0, 1).copy())


@pytest.mark.parametrize("shape", [(230, 384), (97, 61), (13, 300), (480, 640)])
def test_opencv_agrees_within_one_grey_level(shape: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    image = array(*shape)
    batch = detops.preprocess([image], scale=(333, 200), mean=MEAN, std=STD, to_rgb=True)
    theirs = opencv_steps(cv2, image, tuple(batch.image_sizes[0].tolist()), MEAN, STD, 32)
    assert batch.images[0].shape == theirs.shape
    assert ((batch.images[0] - theirs) * torch.tensor(STD)[:, None, None]).abs().max() < 1
    h, w = batch.image_sizes[0].tolist()
    assert not batch.images[0, :, h:].any()
    assert not batch.images[0, :, :, w:].any()


EQUAL_FORMS: dict[str, Callable[[Any], Any]] = {
    "array": lambda a: a,
    "read-only array": lambda a: np.frombuffer(a.tobytes(), np.uint8).reshape(a.shape),
    "columns mirrored twice": lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
    "every second column": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "cut out": lambda a: np.pad(a, ((1, 2), (3, 4), (0, 0)))[1:-2, 3:-4],
    "Fortran order": np.asfortranarray,
    "of RGBA": lambda a: np.dstack([a, a[..., :1]])[..., :3],
    "channels reversed twice": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "tensor": as_planar,
    "tensor in channels_last": lambda a: as_planar(a)[None].contiguous(memory_format=torch.channels_last)[0],
    "cut out of a tensor": lambda a: torch.nn.functional.pad(as_planar(a), (2, 3, 1, 1))[:, 1:-1, 2:-3],
    "Pillow": lambda a: image_module.fromarray(a),
    "Pillow RGBA": lambda a: image_module.fromarray(np.dstack([a, a[..., :1]])),
}


@pytest.mark.parametrize("form", EQUAL_FORMS)
def test_every_form_of_an_image_gives_the_same(form: str) -> None:
    image = array(23, 31)
    expected = detops.preprocess([image], size=(40, 20), mean=MEAN, std=STD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = detops.preprocess([EQUAL_FORMS[form](image)], size=(40, 20), mean=MEAN, std=STD)
    torch.testing.assert_close(batch.images, expected.images, rtol=1e-6, atol=1e-6)
    assert torch.equal(batch.scale_factors, expected.scale_factors)


GREY_FORMS: dict[str, Callable[[Any], Any]] = {
    "array (H, W)": lambda a: a,
    "array (H, W, 1)": lambda a: a[..., None],
    "tensor (H, W)": torch.from_numpy,
    "tensor (1, H, W)": lambda a: torch.from_numpy(a)[None],
    "Pillow L": lambda a: image_module.fromarray(a),
}


@pytest.mark.parametrize("form", GREY_FORMS)
def test_every_form_of_a_grey_image_gives_the_same(form: str) -> None:
    image = array(23, 31, 0)
    expected = detops.preprocess([np.dstack([image] * 3)], size=(40, 20), mean=MEAN, std=STD)
    batch = detops.preprocess([GREY_FORMS[form](image)], size=(40, 20), mean=MEAN, std=STD)
    torch.testing.assert_close(batch.images, expected.images, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK", "YCbCr"])
def test_pillow_modes_are_converted(mode: str) -> None:
    picture = image_module.fromarray(array(9, 12)).convert(mode)
    expected = detops.preprocess([np.array(picture.convert("RGB"))], **PLAIN)
    assert torch.equal(detops.preprocess([picture], **PLAIN).images, expected.images)


def test_to_rgb_reverses_arrays_and_tensors_but_not_pillow_images() -> None:
    rgb = array(9, 12)
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    batch = detops.preprocess(
        [bgr, as_planar(bgr), image_module.fromarray(rgb)], mean=MEAN, std=STD, to_rgb=True, pad_divisor=1
    )
    expected = detops.preprocess([rgb, image_module.fromarray(rgb)], mean=MEAN, std=STD, pad_divisor=1)
    for image in batch.images:
        torch.testing.assert_close(image, expected.images[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(expected.images[1], expected.images[0])


def test_layout_overrides_the_rule() -> None:
    interleaved, planar = array(3, 3, seed=1), array(3, 3, seed=1).transpose(2, 0, 1)
    expected = detops.preprocess([interleaved], **PLAIN).images
    assert torch.equal(detops.preprocess([planar], **PLAIN, layout="CHW").images, expected)
    assert torch.equal(detops.preprocess([torch.from_numpy(interleaved)], **PLAIN, layout="HWC").images, expected)
    assert not torch.equal(detops.preprocess([torch.from_numpy(interleaved)], **PLAIN).images, expected)


SIZES: dict[
    str, tuple[int, int, dict[str, Any], tuple[int, int]]
] = {  # height, width, options -> resized height, width
    "as MMDetection, wide": (480, 640, dict(scale=(1333, 800)), (800, 1067)),
    "as MMDetection, the long side decides": (400, 1000, dict(scale=(1333, 800)), (533, 1333)),
    "as MMDetection, high": (640, 480, dict(scale=(800, 1333)), (1067, 800)),
    "down": (2304, 3840, dict(scale=(1333, 800)), (800, 1333)),
    "half a pixel is rounded up": (5, 10, dict(scale=(5, 5)), (3, 5)),
    "never below a pixel": (1, 5000, dict(scale=(100, 100)), (1, 100)),
    "into a size": (100, 200, dict(size=(640, 640)), (320, 640)),
    "into a size, the height decides": (200, 100, dict(size=(64, 640)), (64, 32)),
    "by numbers of numpy": (100, 200, dict(size=np.array([640, 640])), (320, 640)),
    "exactly": (100, 200, dict(size=(64, 96), keep_ratio=False), (64, 96)),
    "as it is": (33, 65, {}, (33, 65)),
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes(case: str) -> None:
    height, width, options, expected = SIZES[case]
    batch = detops.preprocess([torch.zeros(3, height, width, dtype=torch.uint8)], **options, **PLAIN)
    assert tuple(batch.image_sizes[0].tolist()) == expected
    assert tuple(batch.images.shape[2:]) == tuple(-(-side // 32) * 32 for side in expected)


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 60), width=st.integers(1, 60), long=st.integers(1, 80), short=st.integers(1, 80)
)  # fmt: skip
def test_images_fit_and_keep_their_ratio(height: int, width: int, long: int, short: int) -> None:
    batch = detops.preprocess([torch.zeros(3, height, width, dtype=torch.uint8)], scale=(long, short), **PLAIN)
    h, w = batch.image_sizes[0].tolist()
    long, short = max(long, short), min(long, short)
    assert max(h, w) <= long
    assert min(h, w) <= short
    assert max(h, w) == long or min(h, w) == short
    factor = min(long / max(height, width), short / min(height, width))
    assert abs(h - height * factor) <= 0.5 + 1e-9 or h == 1
    assert abs(w - width * factor) <= 0.5 + 1e-9 or w == 1


@pytest.mark.parametrize("divisor", [1, 7, 32])
def test_the_batch_is_padded_to_its_largest(divisor: int) -> None:
    batch = detops.preprocess([array(10, 40), array(33, 5)], pad_divisor=divisor, **PLAIN)
    assert batch.images.shape == (2, 3, -(-33 // divisor) * divisor, -(-40 // divisor) * divisor)
    assert not batch.images[0, :, 10:].any()
    assert not batch.images[1, :, :, 5:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_cast_of_float32(dtype: torch.dtype) -> None:
    images = [array(30, 41), array(12, 17, seed=1)]
    options: dict[str, Any] = dict(size=(20, 20), mean=MEAN, std=STD, antialias=True)
    full = detops.preprocess(images, **options).images
    assert torch.equal(detops.preprocess(images, **options, dtype=dtype).images, full.to(dtype))


def test_no_images() -> None:
    batch = detops.preprocess([], size=(64, 64), dtype=torch.float16, **PLAIN)
    assert batch.images.shape == (0, 3, 0, 0)
    assert batch.images.dtype == torch.float16
    assert [tuple(t.shape) for t in batch[1:]] == [(0, 2), (0, 4), (0, 2)]
    assert batch.to_original(torch.zeros(0, 5, 4)).shape == (0, 5, 4)
    assert batch.to_original([]) == []


def test_antialias_sees_what_lies_between() -> None:
    """With one white column in eight, bilinear reads two columns in eight, and misses the column or overweights it."""
    image = np.zeros((8, 64, 3), np.uint8)
    image[:, 1::8] = 255
    options: dict[str, Any] = dict(size=(1, 8), keep_ratio=False, pad_divisor=1, **PLAIN)
    assert not detops.preprocess([image], **options).images.any()
    averaged = detops.preprocess([image], **options, antialias=True).images
    assert averaged.min() > 20
    assert averaged.max() < 60


class TestBoxes:
    batch = detops.preprocess([array(100, 200), array(300, 150)], size=(50, 50), **PLAIN)  # 25 x 50 and 50 x 25

    def test_they_map_back(self) -> None:
        boxes = torch.tensor([[[0.0, 0, 50, 25], [10, 5, 30, 20]], [[0, 0, 25, 50], [5, 10, 20, 30]]])
        expected = [[[0, 0, 200, 100], [40, 20, 120, 80]], [[0, 0, 150, 300], [30, 60, 120, 180]]]
        assert self.batch.to_original(boxes).tolist() == expected
        listed = self.batch.to_original([boxes[0, :1], boxes[1]])
        assert [box.tolist() for box in listed] == [expected[0][:1], expected[1]]

    def test_they_are_cut_to_their_image(self) -> None:
        boxes = torch.tensor([-5.0, -5, 60, 60]).expand(2, 1, 4)
        assert self.batch.to_original(boxes).tolist() == [[[0, 0, 200, 100]], [[0, 0, 150, 300]]]
        assert self.batch.to_original(boxes, clip=False)[0].tolist() == [[-20, -20, 240, 240]]
        assert self.batch.to_original(boxes * torch.nan).isnan().all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_dtypes(self, dtype: torch.dtype) -> None:
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert self.batch.to_original(torch.ones(2, 3, 4, dtype=dtype)).dtype == expected

    @pytest.mark.parametrize(
        ("boxes", "error", "message"),
        [
            (4, TypeError, "boxes: expected a tensor or a list of tensors, got int"),
            (np.zeros((2, 3, 4)), TypeError, "boxes: expected a tensor or a list of tensors, got ndarray"),
            ([[[0.0] * 4]] * 2, TypeError, "boxes: expected floating-point tensors, got list"),
            (torch.zeros(1, 3, 4), ValueError, "boxes: expected those of 2 images, got 1"),
            ([torch.zeros(3, 4)], ValueError, "boxes: expected those of 2 images, got 1"),
            (torch.zeros(2, 4), ValueError, r"boxes: expected shape \(B, N, 4\), or a list of \(N, 4\), got \(2, 4\)"),
            (torch.zeros(2, 3, 5), ValueError, r"got \(2, 3, 5\)"),
            ([torch.zeros(4), torch.zeros(4)], ValueError, r"got \(4,\)"),
            (torch.zeros(2, 3, 4, device="meta"), ValueError, "boxes: expected a tensor on cpu, as the batch is"),
            (torch.zeros(2, 3, 4, dtype=torch.int64), TypeError, "boxes: expected floating-point tensors, got int64"),
        ],
    )
    def test_errors_name_the_argument(self, boxes: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            self.batch.to_original(boxes)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (array(4, 5), TypeError, r"expected a list of images, got ndarray \(4, 5, 3\); for one image pass \[image\]"),
        (image_module.new("RGB", (4, 4)), TypeError, r"list of images, got Image; for one image pass \[image\]"),
        (torch.zeros(2, 3, 4, 4), TypeError, r"expected a list of images, got Tensor \(2, 3, 4, 4\)$"),
        (4, TypeError, "images: expected a list of images, got int$"),
        ([array(4, 4), "cat.jpg"], TypeError, "images: expected a numpy array, .*, image 1 is str"),
        ([array(4, 4).astype(np.float32)], TypeError, r"uint8, image 0 is float32 \(4, 4, 3\)"),
        ([array(4, 4).astype(bool)], TypeError, "uint8, image 0 is bool"),
        ([torch.zeros(3, 4, 4)], TypeError, r"uint8, image 0 is float32 \(3, 4, 4\)"),
        ([array(4, 4, 4)], ValueError, r"HWC with 1 or 3 channels, .*, image 0 has shape \(4, 4, 4\)"),
        ([array(4, 4, 2)], ValueError, "with 1 or 3 channels"),
        ([torch.zeros(8, 9, 3, dtype=torch.uint8)], ValueError, r"expected CHW .* \(8, 9, 3\); for HWC pass layout='HWC'"),
        ([torch.zeros(1, 3, 4, 4, dtype=torch.uint8)], ValueError, r"image 0 has shape \(1, 3, 4, 4\)"),
        ([array(0, 4)], ValueError, r"at least one pixel, image 0 has shape \(0, 4, 3\)"),
        ([torch.zeros(3, 4, 0, dtype=torch.uint8)], ValueError, "at least one pixel"),
        ([image_module.new("RGB", (0, 4))], ValueError, "at least one pixel"),
        ([image_module.new("I;16", (4, 4))], TypeError, "expected 8 bits per channel, image 0 is .* mode I;16"),
    ],
)  # fmt: skip
def test_errors_name_the_image(images: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        detops.preprocess(images, **PLAIN)


def test_what_does_not_fit_into_memory_names_the_largest_image() -> None:
    images = [array(4, 5), array(2, 3)]
    with pytest.raises(
        torch.OutOfMemoryError, match=r"the largest is image 0, of 5 x 4 pixels, resized to 500000 x 40"
    ):
        detops.preprocess(images, scale=(500_000, 500_000), keep_ratio=True, **PLAIN)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    image_module.fromarray(array(64, 64)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    images = [image_module.open(tmp_path / name) for name in ("whole.jpg", "cut.jpg")]
    with pytest.raises(OSError, match="images: image 1 cannot be read: "):
        detops.preprocess(images, **PLAIN)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"size": (4, 4), "scale": (4, 4)}, ValueError, "size, scale: expected at most one of them, got both"),
        ({"size": (4,)}, ValueError, r"size: expected two integers of at least 1, got \(4,\)"),
        ({"size": (0, 4)}, ValueError, "size: expected two integers"),
        ({"size": 640}, ValueError, "size: expected two integers of at least 1, got 640"),
        ({"scale": "ab"}, ValueError, "scale: expected two integers of at least 1, got 'ab'"),
        ({"scale": (4.0, 4)}, ValueError, "scale: expected two integers"),
        ({"scale": (4, 4), "keep_ratio": False}, ValueError, "scale: expected keep_ratio=True"),
        ({"mean": (0, 0)}, ValueError, r"mean: expected three finite numbers, got \(0, 0\)"),
        ({"mean": (0, 0, float("nan"))}, ValueError, "mean: expected three finite numbers"),
        ({"mean": 0.5}, ValueError, "mean: expected three finite numbers, got 0.5"),
        ({"std": ("a", 1, 1)}, ValueError, "std: expected three finite numbers"),
        ({"std": (1, 0, 1)}, ValueError, "std: expected positive numbers"),
        ({"pad_divisor": 0}, ValueError, "pad_divisor: expected an integer of at least 1, got 0"),
        ({"dtype": torch.uint8}, ValueError, "dtype: expected float32, float16 or bfloat16, got torch.uint8"),
        ({"layout": "BCHW"}, ValueError, "layout: expected 'HWC', 'CHW' or None, got 'BCHW'"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        detops.preprocess([array(4, 4)], **(PLAIN | change))


def test_images_are_packed_as_they_are_stored() -> None:
    """Each image's bytes are copied to a GPU once, interleaved ones without a transposition."""
    planar, interleaved = as_planar(array(5, 7)), torch.from_numpy(array(4, 6, seed=1)).permute(2, 0, 1)
    grey = torch.from_numpy(array(3, 8, 0, seed=2))[None, :, ::2]
    buffer, views = _packed([planar, interleaved, grey], pin=False)
    assert len(buffer) == 3 * 5 * 7 + 3 * 4 * 6 + 3 * 4
    for view, image in zip(views, [planar, interleaved, grey], strict=True):
        assert torch.equal(view, image)
    assert views[0].is_contiguous()
    assert views[1].permute(1, 2, 0).is_contiguous()
    assert torch.equal(buffer[:105], planar.flatten())


def test_tensors_on_two_devices() -> None:
    images = [torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 4, dtype=torch.uint8, device="meta")]
    with pytest.raises(ValueError, match=r"images: expected tensors on one device, or device=\.\.\., got cpu and meta"):
        detops.preprocess(images, **PLAIN)


@pytest.mark.parametrize("device", DEVICES)
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    images = [as_planar(array(20, 30)).to(device), as_planar(array(15, 10)).to(device)]

    def call(*images: Tensor) -> tuple[Tensor, Tensor]:
        batch = detops.preprocess(list(images), scale=(24, 16), mean=MEAN, std=STD, to_rgb=True)
        return batch.images, batch.to_original(batch.image_sizes.repeat(1, 2)[:, None].float())

    assert detops.count_syncs(call, *images) == 0
    for compiled, eager in zip(
        torch.compile(call, fullgraph=True, backend="aot_eager")(*images), call(*images), strict=True
    ):
        assert torch.equal(compiled, eager)


@pytest.mark.gpu
def test_images_of_the_host_on_a_gpu() -> None:
    images = [array(40, 60), as_planar(array(33, 20)), image_module.fromarray(array(9, 9)), array(8, 8, 0)]
    options: dict[str, Any] = dict(size=(50, 50), mean=MEAN, std=STD, to_rgb=True)
    expected = detops.preprocess(images, **options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = detops.preprocess(images, **options, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(batch, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=3e-6)
    mixed = detops.preprocess([images[0], images[1].cuda()], **options)
    torch.testing.assert_close(mixed.images.cpu(), expected.images[:2], rtol=1e-6, atol=3e-6)


def test_neither_numpy_nor_pillow_is_imported() -> None:
    code = (
        "import sys, torch, detops; before = set(sys.modules);"
        " detops.preprocess([torch.zeros(3, 4, 4, dtype=torch.uint8)], mean=(0, 0, 0), std=(1, 1, 1));"
        " print([n for n in ('numpy', 'PIL', 'cv2') if n in set(sys.modules) - before])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[]", result.stderr
