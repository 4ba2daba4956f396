"""The op draw_gaussians_: every implementation equals the reference, and writes nowhere else."""

import importlib.util
import itertools
import os
import subprocess
import sys
import threading

import pytest
import torch
from gaussian_scenes import Scene, random_scene
from hypothesis import given, settings
from hypothesis import strategies as st

import detops
from detops.portable.draw_gaussians import draw_gaussians_ as portable
from detops.reference.draw_gaussians import draw_gaussians_ as reference

HAS_TRITON = importlib.util.find_spec("triton") is not None
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Absolute, against the float64 reference of values up to 1; a unit in the last place for the short types.
TOLERANCE = {torch.float32: 5e-7, torch.float64: 1e-12, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def op(heatmap, *args):
    torch.ops.detops.draw_gaussians_(heatmap, *args)


def interpreted(heatmap, *args):
    from detops.kernels.draw_gaussians import draw_gaussians_

    draw_gaussians_(heatmap, *args)


IMPLEMENTATIONS = {"portable": portable, "op": op}
if HAS_TRITON and not torch.cuda.is_available():
    IMPLEMENTATIONS["triton, interpreted"] = interpreted


def assert_equals_reference(implementation, scene: Scene, factor=6.0, k_scale=1.0, device="cpu"):
    expected = scene.heatmap.double().cpu()
    reference(expected, *scene.args(factor, k_scale))
    moved = scene.to(device)
    implementation(moved.heatmap, *moved.args(factor, k_scale))
    tolerance = TOLERANCE[scene.heatmap.dtype] * max(1.0, k_scale)
    if implementation is interpreted or device == "cuda":
        tolerance = max(tolerance, TOLERANCE[torch.float32])  # its factors are float32
    if implementation is interpreted and scene.heatmap.dtype == torch.bfloat16:
        tolerance *= 2  # the interpreter cuts to bfloat16 where a GPU rounds
    torch.testing.assert_close(moved.heatmap.double().cpu(), expected, rtol=0, atol=tolerance)


def test_the_library_of_kernels_is_built():
    assert detops.env()["ops"]["draw_gaussians_"]["cpu"] == "C++"


scenes = st.builds(
    random_scene,
    seed=st.integers(0, 10**6),
    batch=st.integers(0, 3),
    classes=st.integers(1, 4),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    boxes=st.integers(0, 12),
    radius=st.integers(0, 30),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    index_dtype=st.sampled_from([torch.int32, torch.int64, torch.int16]),
    subpixel=st.booleans(),
    elliptical=st.booleans(),
    labelled=st.booleans(),
    ragged=st.booleans(),
    filled=st.booleans(),
)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_matches_reference(name):
    examples = 60 if "triton" in name else 150

    @settings(max_examples=examples, deadline=None)
    @given(scene=scenes, factor=st.sampled_from([6.0, 1.5, 40.0]), k_scale=st.sampled_from([1.0, 0.8, 0.0, 3.0]))
    def check(scene, factor, k_scale):
        assert_equals_reference(IMPLEMENTATIONS[name], scene, factor, k_scale)

    check()


@pytest.mark.gpu
@settings(max_examples=100, deadline=None)
@given(scene=scenes, factor=st.sampled_from([6.0, 1.5, 40.0]), k_scale=st.sampled_from([1.0, 0.8]))
def test_gpu_matches_reference(scene, factor, k_scale):
    assert_equals_reference(op, scene, factor, k_scale, device="cuda")


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("subpixel", [False, True])
def test_large_scenes(name, subpixel):
    """Hundreds of boxes, windows wider than any vector, maps of several tiles."""
    if "triton" in name and subpixel:
        pytest.skip("one large scene is enough for the interpreter")
    scene = random_scene(3, batch=1, classes=2, height=70, width=130, boxes=200, radius=60, subpixel=subpixel)
    assert_equals_reference(IMPLEMENTATIONS[name], scene)


def one_box(x, y, r, height=8, width=8, label=0, dtype=torch.float32) -> Scene:
    labels = torch.tensor([[label]])
    return Scene(
        torch.zeros(1, 2, height, width, dtype=dtype),
        torch.tensor([[[x, y]]]),
        torch.tensor([[r]]),
        labels,
        None,
    )


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


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", VISIBLE)
def test_the_visible_part_is_drawn(name, case):
    (x, y, r), pixels, peak = VISIBLE[case]
    scene = one_box(x, y, r)
    IMPLEMENTATIONS[name](scene.heatmap, *scene.args())
    assert int((scene.heatmap[0, 0] > 0).sum()) == pixels
    assert not scene.heatmap[0, 1].any()
    if peak is not None:
        assert scene.heatmap.max().item() == pytest.approx(peak, abs=5e-5)


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


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", SKIPPED)
def test_bad_boxes_are_skipped(name, case):
    scene = SKIPPED[case]
    heatmap = scene.heatmap.clone()
    IMPLEMENTATIONS[name](heatmap, *scene.args())
    assert not heatmap.any()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("sizes", [[-3, 99], [2**40, 0]])
def test_sample_sizes_beyond_the_padding_are_cut(name, sizes):
    scene = random_scene(5)
    cut = [min(max(size, 0), scene.centers.shape[1]) for size in sizes]
    expected = scene.heatmap.clone()
    IMPLEMENTATIONS[name](expected, scene.centers, scene.radii, scene.labels, torch.tensor(cut), 6.0, 1.0)
    IMPLEMENTATIONS[name](scene.heatmap, scene.centers, scene.radii, scene.labels, torch.tensor(sizes), 6.0, 1.0)
    assert torch.equal(scene.heatmap, expected)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_padding_is_never_read(name):
    scene = random_scene(7, subpixel=True, elliptical=True)
    scene.sizes = torch.tensor([2, 0])
    expected = scene.heatmap.clone()
    IMPLEMENTATIONS[name](expected, *scene.args())
    padding = torch.arange(scene.centers.shape[1]) >= scene.sizes[:, None]
    scene.centers[padding], scene.radii[padding], scene.labels[padding] = torch.nan, torch.nan, 2**40
    IMPLEMENTATIONS[name](scene.heatmap, *scene.args())
    assert torch.equal(scene.heatmap, expected)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("radius", [1, 3, 6, 20])
@pytest.mark.parametrize("k_scale", [1.0, 5.0])
def test_below_epsilon_is_exactly_zero(name, radius, k_scale):
    """With a large factor most of the window is below the cut, whatever code draws rows of its length."""
    scene = one_box(22, 22, radius, height=45, width=45)
    expected = scene.heatmap.double()
    reference(expected, *scene.args(factor=20.0, k_scale=k_scale))
    IMPLEMENTATIONS[name](scene.heatmap, *scene.args(factor=20.0, k_scale=k_scale))
    assert torch.equal(scene.heatmap > 0, expected > 0)
    assert 1 <= int((expected > 0).sum()) < (2 * radius + 1) ** 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
class TestIdentities:
    """Statements that hold bit for bit."""

    def draw(self, name, scene, device):
        moved = scene.to(device)
        heatmap = moved.heatmap.clone()
        IMPLEMENTATIONS[name](heatmap, *moved.args())
        return heatmap

    def test_drawing_twice_is_drawing_once(self, name, device):
        scene = random_scene(11)
        once = self.draw(name, scene, device)
        assert torch.equal(self.draw(name, Scene(once, *list(vars(scene).values())[1:]), device), once)

    def test_the_order_of_boxes_does_not_matter(self, name, device):
        scene = random_scene(12, ragged=False)
        order = torch.randperm(scene.centers.shape[1], generator=torch.Generator().manual_seed(0))
        shuffled = Scene(scene.heatmap, *(t[:, order] for t in (scene.centers, scene.radii, scene.labels)), None)
        assert torch.equal(self.draw(name, scene, device), self.draw(name, shuffled, device))

    def test_splitting_the_batch_changes_nothing(self, name, device):
        scene = random_scene(13, batch=3)
        parts = [Scene(*(t[b : b + 1] for t in vars(scene).values())) for b in range(3)]
        assert torch.equal(self.draw(name, scene, device), torch.cat([self.draw(name, p, device) for p in parts]))

    def test_equal_radii_give_the_circle(self, name, device):
        scene = random_scene(14, subpixel=True)
        ellipse = Scene(
            scene.heatmap, scene.centers, scene.radii[..., None].expand(-1, -1, 2), scene.labels, scene.sizes
        )
        assert torch.equal(self.draw(name, scene, device), self.draw(name, ellipse, device))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
    def test_integral_floats_give_the_integers(self, name, device, dtype):
        scene = random_scene(15)
        floats = Scene(scene.heatmap, scene.centers.to(dtype), scene.radii.to(dtype), scene.labels, scene.sizes)
        assert torch.equal(self.draw(name, scene, device), self.draw(name, floats, device))

    def test_the_peak_is_exactly_k(self, name, device):
        scene = one_box(3, 4, 2)
        heatmap = scene.to(device).heatmap
        IMPLEMENTATIONS[name](heatmap, *scene.to(device).args(k_scale=0.7))
        assert heatmap[0, 0, 4, 3] == torch.tensor(0.7)

    def test_nan_in_the_map_stays(self, name, device):
        scene = one_box(3, 4, 2)
        scene.heatmap[0, 0, 4, 3] = torch.nan
        drawn = self.draw(name, scene, device)
        assert drawn[0, 0, 4, 3].isnan()
        assert int(drawn.isnan().sum()) == 1

    def test_views_are_drawn_in_place(self, name, device):
        """A slice with strides in every dimension: the slice is as if contiguous, all around it is untouched."""
        scene = random_scene(16).to(device)
        b, c, h, w = scene.heatmap.shape
        guard = torch.full((b + 2, 2 * h + 3, c + 2, 3 * w + 4), -7.0, device=device)
        view = guard[1 : b + 1, 2 : 2 * h + 2 : 2, 1 : c + 1, 2 : 3 * w + 2 : 3].transpose(1, 2)
        assert view.shape == scene.heatmap.shape
        view.copy_(scene.heatmap)
        touched = torch.zeros_like(guard, dtype=torch.bool)
        touched[1 : b + 1, 2 : 2 * h + 2 : 2, 1 : c + 1, 2 : 3 * w + 2 : 3] = True
        IMPLEMENTATIONS[name](view, *scene.args())
        assert torch.equal(view, self.draw(name, scene, device))
        assert (guard[~touched] == -7.0).all()

    def test_boxes_of_any_strides(self, name, device):
        scene = random_scene(17, elliptical=True).to(device)
        expected = self.draw(name, scene, device)
        strided = [
            torch.stack([t, t], -1).flip(1)[..., 0].flip(1).transpose(0, 1).contiguous().transpose(0, 1)
            for t in (scene.centers, scene.radii, scene.labels)
        ]
        assert not any(t.is_contiguous() for t in strided)
        assert torch.equal(self.draw(name, Scene(scene.heatmap, *strided, scene.sizes), device), expected)


def test_the_number_of_threads_does_not_change_a_bit():
    scene = random_scene(18, batch=3, height=50, width=50, boxes=40, radius=20, subpixel=True)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(scene.heatmap.clone())
            op(results[-1], *scene.args())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_calls_from_several_threads_at_once():
    scene = random_scene(19, height=60, width=60, boxes=100, radius=20)
    expected = scene.heatmap.clone()
    op(expected, *scene.args())
    results = [scene.heatmap.clone() for _ in range(8)]

    def work(heatmap):
        for _ in range(20):
            op(heatmap, *scene.args())

    threads = [threading.Thread(target=work, args=(heatmap,)) for heatmap in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, expected) for result in results)


class _Drawn(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        scene = random_scene(index, boxes=40)
        op(scene.heatmap, *scene.args())
        return scene.heatmap


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_forked_data_loader_workers():
    op(*[(s := random_scene(0, boxes=40)).heatmap, *s.args()])  # the parent has used its threads before
    loader = torch.utils.data.DataLoader(_Drawn(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for index, drawn in enumerate(loader):
        assert torch.equal(drawn, _Drawn()[index])


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    scene = random_scene(20).to(device)
    torch.library.opcheck(torch.ops.detops.draw_gaussians_.default, (scene.heatmap, *scene.args()))


@pytest.mark.parametrize("change", ["centers", "radii", "labels", "sizes", "rank", "no labels", "integer maps"])
def test_the_op_itself_refuses_wrong_shapes(change):
    """What reaches the C++ kernel without the public functions is checked there too."""
    s = random_scene(21)
    if change == "rank":
        s.heatmap = s.heatmap[0]
    elif change == "no labels":
        s.labels = None
    elif change == "integer maps":
        s.heatmap = s.heatmap.to(torch.int64)
    else:
        setattr(s, change, getattr(s, change)[..., :1, :1] if change == "centers" else getattr(s, change)[:1])
    with pytest.raises(RuntimeError, match="expected"):
        op(s.heatmap, *s.args())


TARGETS = [("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32), ("hip", "gfx942", 64)]

COMPILE = """
import warnings; warnings.simplefilter("ignore")
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from detops.kernels.draw_gaussians import NUM_WARPS, TILE, draw_kernel
for name, boxes in {pairs}:
    types = dict(heatmap="*" + name, centers="*" + boxes, radii="*" + boxes, labels="*i32", sample_sizes="*i64")
    types |= dict.fromkeys(("C", "H", "W", "N", "stride_b", "stride_c", "stride_h", "stride_w"), "i32")
    types |= dict(factor="fp32", k_scale="fp32")
    for flags in {flags}:
        constants = dict(zip(("HAS_LABELS", "HAS_SIZES", "ELLIPTICAL"), flags)) | TILE
        constants["COMPUTE"] = tl.float64 if name == "fp64" else tl.float32
        source = ASTSource(draw_kernel, types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget(*{target}), options=dict(num_warps=NUM_WARPS))
        assert compiled.asm["{binary}"]
print("compiled")
"""


@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_compiles_ahead_of_time(target):
    """In a process of its own: the interpreter, once chosen, compiles nothing."""
    code = COMPILE.format(
        pairs=[("fp32", "i32"), ("fp16", "i64"), ("bf16", "fp32"), ("fp64", "fp64")],
        flags=list(itertools.islice(itertools.product([True, False], repeat=3), 0, 8, 3)),
        target=target,
        binary="cubin" if target[0] == "cuda" else "hsaco",
    )
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "compiled", result.stderr
