"""The op draw_gaussians_: every form equals the reference, and writes nowhere else.

The model for the tests of an op, in this order: equality with the reference, values by hand, identities that hold bit
for bit, threads, PyTorch's own checks, no host synchronisation and one graph, empty batches and padding, errors, and the
kernels that test_ahead_of_time.py compiles.
"""

import itertools
import os
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from gaussian_scenes import GaussianScene, gaussian_scene
from hypothesis import given, settings
from hypothesis import strategies as st
from op import (
    DTYPES,
    Form,
    Op,
    assert_compiles_whole,
    assert_no_syncs,
    assert_same_bits,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
)
from torch import Tensor

op = Op("draw_gaussians_")

# Absolute, against the float64 reference of values up to 1; a unit in the last place for the short types.
TOLERANCE = {torch.float32: 5e-7, torch.float64: 1e-12, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def draw(form: Form, scene: GaussianScene, factor: float = 6.0, k_scale: float = 1.0, device: str = "cpu") -> Tensor:
    """Draw a scene into a copy of its maps."""
    scene = scene.to(device)
    heatmap = scene.heatmap.clone()
    form(heatmap, *scene.args(factor, k_scale))
    return heatmap


def assert_equals_reference(
    form: Form, scene: GaussianScene, factor: float = 6.0, k_scale: float = 1.0, device: str = "cpu"
) -> None:
    dtype = scene.heatmap.dtype
    expected = draw(op.reference, replace(scene, heatmap=scene.heatmap.double()), factor, k_scale)
    tolerance = TOLERANCE[dtype] * max(1.0, k_scale)
    if form.interpreted or device == "cuda":
        tolerance = max(tolerance, TOLERANCE[torch.float32])  # its factors are float32
    if form.interpreted and dtype == torch.bfloat16:
        tolerance *= 2  # the interpreter cuts to bfloat16 where a GPU rounds
    drawn = draw(form, scene, factor, k_scale, device)
    assert drawn.dtype == dtype
    torch.testing.assert_close(drawn.double().cpu(), expected, rtol=0, atol=tolerance)


scenes = st.builds(
    gaussian_scene,
    seed=st.integers(0, 10**6),
    batch=st.integers(0, 3),
    classes=st.integers(1, 4),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    boxes=st.integers(0, 12),
    radius=st.integers(0, 30),
    dtype=st.sampled_from(DTYPES),
    index_dtype=st.sampled_from([torch.int32, torch.int64, torch.int16]),
    subpixel=st.booleans(),
    elliptical=st.booleans(),
    labelled=st.booleans(),
    ragged=st.booleans(),
    filled=st.booleans(),
)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(150)
    @given(scene=scenes, factor=st.sampled_from([6.0, 1.5, 40.0]), k_scale=st.sampled_from([1.0, 0.8, 0.0, 3.0]))
    def check(scene: GaussianScene, factor: float, k_scale: float) -> None:
        assert_equals_reference(form, scene, factor, k_scale)

    check()


@pytest.mark.gpu
@settings(max_examples=100, deadline=None)
@given(scene=scenes, factor=st.sampled_from([6.0, 1.5, 40.0]), k_scale=st.sampled_from([1.0, 0.8]))
def test_gpu_matches_reference(scene: GaussianScene, factor: float, k_scale: float) -> None:
    assert_equals_reference(op, scene, factor, k_scale, device="cuda")


@op.for_each_form
@pytest.mark.parametrize("subpixel", [False, True])
def test_large_scenes(form: Form, subpixel: bool) -> None:
    """Hundreds of boxes, windows wider than any vector, maps of several tiles."""
    if form.interpreted and subpixel:
        pytest.skip("one large scene is enough for the interpreter")
    scene = gaussian_scene(3, batch=1, classes=2, height=70, width=130, boxes=200, radius=60, subpixel=subpixel)
    assert_equals_reference(form, scene)


def one_box(
    x: float, y: float, r: float, height: int = 8, width: int = 8, label: int = 0, dtype: torch.dtype = torch.float32
) -> GaussianScene:
    heatmap = torch.zeros(1, 2, height, width, dtype=dtype)
    return GaussianScene(heatmap, torch.tensor([[[x, y]]]), torch.tensor([[r]]), torch.tensor([[label]]), None)


VISIBLE = {  # centre x, y, radius on an 8 x 8 map -> pixels drawn, peak
    "at the left": ((-1, 3, 3), 21, 0.6926),
    "at the right": ((8, 3, 3), 21, 0.6926),
    "outside to the right": ((12, 3, 3), 0, 0.0),
    "outside to the left": ((-5, 3, 3), 0, 0.0),
    "in a corner": ((0, 0, 3), 16, 1.0),
    "radius zero": ((3, 3, 0), 1, 1.0),
    "larger than the map": ((3, 3, 1000), 64, 1.0),
    "huge": ((2**30, 3, 2**31 - 1), 64, None),
}


@op.for_each_form
@pytest.mark.parametrize("case", VISIBLE)
def test_the_visible_part_is_drawn(form: Form, case: str) -> None:
    (x, y, r), pixels, peak = VISIBLE[case]
    drawn = draw(form, one_box(x, y, r))
    assert int((drawn[0, 0] > 0).sum()) == pixels
    assert not drawn[0, 1].any()
    if peak is not None:
        assert drawn.max().item() == pytest.approx(peak, abs=5e-5)


@op.for_each_form
@pytest.mark.parametrize("radius", [1, 3, 6, 20])
@pytest.mark.parametrize("k_scale", [1.0, 5.0])
def test_below_epsilon_is_exactly_zero(form: Form, radius: int, k_scale: float) -> None:
    """With a large factor most values of the window are below epsilon, in all code for rows of any length."""
    scene = one_box(22, 22, radius, height=45, width=45)
    expected = draw(op.reference, replace(scene, heatmap=scene.heatmap.double()), 20.0, k_scale)
    assert torch.equal(draw(form, scene, 20.0, k_scale) > 0, expected > 0)
    assert 1 <= int((expected > 0).sum()) < (2 * radius + 1) ** 2


def around(*values: float) -> Tensor:
    """The numbers, and the next of float32 below and above each."""
    middle = torch.tensor(values)
    return torch.cat([middle, *(middle.nextafter(torch.tensor(end)) for end in (-torch.inf, torch.inf))])


EDGES = {  # centres and radii along x, every one with every other
    "quarters": (torch.arange(13, 18) / 4, torch.arange(0, 11) / 4),
    "next to halves": (around(3.0, 3.5), around(0.5, 1.0, 1.5, 2.5).clamp(min=0)),
    "small": (torch.tensor([0.0, 1e-9, -1e-9, 1e-30]), around(0.5, 1.5)),
    "integers": (torch.arange(-3, 12), torch.arange(0, 5)),
    "far": (-(2**22) + torch.arange(-2, 3), 2**22 + torch.arange(-2, 6)),
    "farther": (-(2**24) - torch.arange(0, 4), 2**24 + torch.arange(0, 8)),
    "far halves": (-(2**21) + torch.arange(-3, 3) / 2, 2**21 + torch.arange(-2, 8) / 2),
    "beyond the right": (2**24 + torch.arange(0, 3), 2**24 - torch.arange(4, 12)),
}


@op.for_each_form
@pytest.mark.parametrize("case", EDGES)
def test_which_pixels_a_diameter_covers(form: Form, case: str) -> None:
    """Whatever is rounded, no pixel more and none less is drawn than by the reference, in a map per box."""
    x, r = (t.flatten() for t in torch.meshgrid(*EDGES[case], indexing="ij"))
    radii = torch.stack([r, torch.ones_like(r)], -1)[None]
    centers, count = torch.stack([x, torch.ones_like(x)], -1)[None], len(x)
    heatmap = torch.zeros(1, count, 2, 11)
    scene = GaussianScene(heatmap, centers, radii, torch.arange(count)[None], None)
    drawn, expected = draw(form, scene, 1.5), draw(op.reference, replace(scene, heatmap=heatmap.double()), 1.5)
    assert torch.equal(drawn > 0, expected > 0)
    assert not (drawn > 0).all()
    torch.testing.assert_close(drawn.double(), expected, rtol=0, atol=TOLERANCE[torch.float32])


@for_each_device
@op.for_each_form
class TestIdentities:
    """Statements that hold bit for bit."""

    def test_drawing_twice_is_drawing_once(self, form: Form, device: str) -> None:
        scene = gaussian_scene(11)
        once = draw(form, scene, device=device)
        assert_same_bits(draw(form, replace(scene, heatmap=once), device=device), once)

    def test_the_order_of_boxes_does_not_matter(self, form: Form, device: str) -> None:
        scene = gaussian_scene(12, ragged=False)
        order = torch.randperm(scene.centers.shape[1], generator=torch.Generator().manual_seed(0))
        assert scene.labels is not None
        shuffled = replace(
            scene, centers=scene.centers[:, order], radii=scene.radii[:, order], labels=scene.labels[:, order]
        )
        assert_same_bits(draw(form, shuffled, device=device), draw(form, scene, device=device))

    def test_splitting_the_batch_changes_nothing(self, form: Form, device: str) -> None:
        scene = gaussian_scene(13, batch=3)
        parts = [GaussianScene(*(t[b : b + 1] for t in vars(scene).values())) for b in range(3)]
        joined = torch.cat([draw(form, part, device=device) for part in parts])
        assert_same_bits(draw(form, scene, device=device), joined)

    def test_equal_radii_give_the_circle(self, form: Form, device: str) -> None:
        scene = gaussian_scene(14, subpixel=True)
        ellipse = replace(scene, radii=scene.radii[..., None].expand(-1, -1, 2))
        assert_same_bits(draw(form, ellipse, device=device), draw(form, scene, device=device))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
    def test_integral_floats_give_the_integers(self, form: Form, device: str, dtype: torch.dtype) -> None:
        scene = gaussian_scene(15)
        floats = replace(scene, centers=scene.centers.to(dtype), radii=scene.radii.to(dtype))
        assert_same_bits(draw(form, floats, device=device), draw(form, scene, device=device))

    def test_the_peak_is_exactly_k(self, form: Form, device: str) -> None:
        drawn = draw(form, one_box(3, 4, 2), k_scale=0.7, device=device)
        assert drawn[0, 0, 4, 3] == torch.tensor(0.7)

    def test_nan_in_the_map_stays(self, form: Form, device: str) -> None:
        scene = one_box(3, 4, 2)
        scene.heatmap[0, 0, 4, 3] = torch.nan
        drawn = draw(form, scene, device=device)
        assert drawn[0, 0, 4, 3].isnan()
        assert int(drawn.isnan().sum()) == 1

    def test_views_are_drawn_in_place(self, form: Form, device: str) -> None:
        """A slice with strides in every dimension is drawn as if contiguous, and nothing around it changes."""
        scene = gaussian_scene(16).to(device)
        b, c, h, w = scene.heatmap.shape
        guard = torch.full((b + 2, 2 * h + 3, c + 2, 3 * w + 4), -7.0, device=device)
        view = guard[1 : b + 1, 2 : 2 * h + 2 : 2, 1 : c + 1, 2 : 3 * w + 2 : 3].transpose(1, 2)
        assert view.shape == scene.heatmap.shape
        view.copy_(scene.heatmap)
        touched = torch.zeros_like(guard, dtype=torch.bool)
        touched[1 : b + 1, 2 : 2 * h + 2 : 2, 1 : c + 1, 2 : 3 * w + 2 : 3] = True
        form(view, *scene.args())
        assert_same_bits(view, draw(form, scene, device=device))
        assert (guard[~touched] == -7.0).all()

    def test_boxes_of_any_strides(self, form: Form, device: str) -> None:
        scene = gaussian_scene(17, elliptical=True).to(device)
        assert scene.labels is not None
        centers, radii, labels = (
            torch.stack([t, t], -1).flip(1)[..., 0].flip(1).transpose(0, 1).contiguous().transpose(0, 1)
            for t in (scene.centers, scene.radii, scene.labels)
        )
        assert not any(t.is_contiguous() for t in (centers, radii, labels))
        strided = replace(scene, centers=centers, radii=radii, labels=labels)
        assert_same_bits(draw(form, strided, device=device), draw(form, scene, device=device))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    scene = gaussian_scene(18, batch=3, height=50, width=50, boxes=40, radius=20, subpixel=True)
    assert_same_bits_for_any_threads(lambda: draw(op, scene))


def test_calls_from_several_threads_at_once() -> None:
    scene = gaussian_scene(19, height=60, width=60, boxes=100, radius=20)
    expected = draw(op, scene)
    results = [scene.heatmap.clone() for _ in range(8)]

    def work(heatmap: Tensor) -> None:
        for _ in range(20):
            op(heatmap, *scene.args())

    threads = [threading.Thread(target=work, args=(heatmap,)) for heatmap in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same_bits(results, [expected] * 8)


class _Drawn(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return draw(op, gaussian_scene(index, boxes=40))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_forked_data_loader_workers() -> None:
    draw(op, gaussian_scene(0, boxes=40))  # the parent has used its threads before
    loader = torch.utils.data.DataLoader(_Drawn(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert_same_bits(list(loader), [_Drawn()[index] for index in range(4)])


@for_each_device
def test_opcheck(device: str) -> None:
    scene = gaussian_scene(20).to(device)
    op.check(scene.heatmap, *scene.args())


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    def drawn(heatmap: Tensor, *args: object) -> Tensor:
        heatmap = heatmap.clone()
        op.overload(heatmap, *args)
        return heatmap

    scenes = [gaussian_scene(21, boxes=boxes, height=10 + boxes).to(device) for boxes in (6, 9)]
    for form in (drawn, op.portable):
        assert_no_syncs(form, scenes[0].heatmap.clone(), *scenes[0].args())
    assert_compiles_whole(drawn, *((scene.heatmap, *scene.args()) for scene in scenes))


SKIPPED = {
    "negative radius": one_box(3, 3, -1),
    "NaN centre": one_box(float("nan"), 3.0, 1.0),
    "infinite centre": one_box(3.0, float("inf"), 1.0),
    "NaN radius": one_box(3.0, 3.0, float("nan")),
    "infinite radius": one_box(3.0, 3.0, float("inf")),
    "label below 0": one_box(3, 3, 1, label=-1),
    "label too large": one_box(3, 3, 1, label=2),
    "label far too large": one_box(3, 3, 1, label=2**40),
    "overflowing centre": one_box(1e300, 3.0, 1.0),
}


@op.for_each_form
@pytest.mark.parametrize("case", SKIPPED)
def test_bad_boxes_are_skipped(form: Form, case: str) -> None:
    assert not draw(form, SKIPPED[case]).any()


@op.for_each_form
@pytest.mark.parametrize("sizes", [[-3, 99], [2**40, 0]])
def test_sample_sizes_beyond_the_padding_are_cut(form: Form, sizes: list[int]) -> None:
    scene = gaussian_scene(5)
    cut = [min(max(size, 0), scene.centers.shape[1]) for size in sizes]
    expected = draw(form, replace(scene, sizes=torch.tensor(cut)))
    assert_same_bits(draw(form, replace(scene, sizes=torch.tensor(sizes))), expected)


@op.for_each_form
def test_padding_is_never_read(form: Form) -> None:
    scene = replace(gaussian_scene(7, subpixel=True, elliptical=True), sizes=(sizes := torch.tensor([2, 0])))
    expected = draw(form, scene)
    padding = torch.arange(scene.centers.shape[1]) >= sizes[:, None]
    assert scene.labels is not None
    scene.centers[padding], scene.radii[padding], scene.labels[padding] = torch.nan, torch.nan, 2**40
    assert_same_bits(draw(form, scene), expected)
    assert not torch.equal(expected, scene.heatmap)


@pytest.mark.parametrize(
    "change",
    [
        dict(heatmap=torch.zeros(2, 11, 17)),
        dict(heatmap=torch.zeros(2, 3, 11, 17, dtype=torch.int64)),
        dict(centers=torch.zeros(2, 6, 1)),
        dict(radii=torch.zeros(1, 6)),
        dict(labels=torch.zeros(1, 6).long()),
        dict(labels=None),
        dict(sample_sizes=torch.zeros(1).long()),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    """The C++ kernel checks its arguments too, since the op can be called without the public functions."""
    scene = gaussian_scene(22)
    op.refuses((scene.heatmap, *scene.args()), **change)


KERNELS = [
    Kernel(
        "draw_kernel",
        dict(heatmap="*" + name, centers="*" + boxes, radii="*" + boxes, labels="*i32", sample_sizes="*i64", C="i32",
             H="i32", W="i32", N="i32", stride_b="i32", stride_c="i32", stride_h="i32", factor="fp32",
             k_scale="fp32"),
        dict(HAS_LABELS=labels, HAS_SIZES=sizes, ELLIPTICAL=elliptical, DOUBLE=name == "fp64",
             BLOCK_H=16, BLOCK_W=32, BLOCK_N=64, stride_w=1),
        1,
    )
    for name, boxes in (("fp32", "i32"), ("fp16", "i64"), ("bf16", "fp32"), ("fp64", "fp64"))
    for labels, sizes, elliptical in itertools.islice(itertools.product([True, False], repeat=3), 0, 8, 3)
]  # fmt: skip
