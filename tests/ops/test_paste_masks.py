"""The op paste_masks: every implementation makes the same pixels, bit for bit, and they are those of grid_sample."""

import pytest
import torch
import torch.nn.functional as F
from ahead_of_time import HAS_TRITON, assert_compiles, for_each_target, needs_triton
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_scenes import blobs
from mask_scenes import mask_scene as scene
from torch._subclasses import FakeTensorMode

import detops
from detops.portable import paste_masks as portable_module
from detops.portable.paste_masks import paste_masks as portable
from detops.reference.paste_masks import paste_masks as reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def op(*args):
    return torch.ops.detops.paste_masks(*args)


def interpreted(*args):
    from detops.kernels.paste_masks import paste_masks

    return paste_masks(*args)


IMPLEMENTATIONS = {"portable": portable, "op": op}
if HAS_TRITON and not torch.cuda.is_available():
    IMPLEMENTATIONS["triton, interpreted"] = interpreted

scenes = st.builds(
    scene,
    seed=st.integers(0, 10**6),
    count=st.sampled_from([0, 1, 4, 9]),
    mask_size=st.sampled_from([(1, 1), (1, 6), (5, 7), (28, 28)]),
    image_size=st.sampled_from([(1, 1), (1, 40), (40, 1), (23, 31), (70, 150)]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    box_dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    ties=st.booleans(),
    odd=st.booleans(),
    spread=st.sampled_from([0.3, 1.6, 5.0]),
)
thresholds = st.sampled_from([0.5, 0.1, 0.9, 1.0, 1e-6])


def grid_sample(masks, boxes, height, width):
    """Detectron2's and MMDetection's `_do_paste_mask` over the whole image, before its threshold: (N, H, W)."""
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)  # (N, 1) each
    x = (torch.arange(width).to(boxes) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(height).to(boxes) + 0.5 - y1) / (y2 - y1) * 2 - 1
    shape = (len(boxes), height, width)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], 3)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")  # the interpreter's numpy
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_matches_reference(name):
    @settings(max_examples=25 if "triton" in name else 200, deadline=None)
    @given(args=scenes, threshold=thresholds)
    def check(args, threshold):
        assert torch.equal(IMPLEMENTATIONS[name](*args, threshold), reference(*args, threshold))

    check()


@settings(max_examples=200, deadline=None)
@given(args=scenes.filter(lambda args: bool(((s := args[1][:, 2:] - args[1][:, :2]) > 0.01).all() & (s < 1e6).all())))
def test_matches_grid_sample(args):
    """In float64; where a value is within 1e-6 of the threshold, rounding may decide."""
    masks, boxes, height, width = args
    masks = masks.float().nan_to_num(0, 1, 0).clamp(0, 1)
    value = grid_sample(masks.double(), boxes.double(), height, width)
    pasted = reference(masks, boxes, height, width, 0.5)
    certain = (value - 0.5).abs() > 1e-6
    assert torch.equal(pasted[certain], (value >= 0.5)[certain])


def test_matches_grid_sample_in_float32():
    """With the numbers of a network in an image of usual size, hardly a pixel is near enough to differ."""
    masks, boxes = blobs(10, (480, 640))
    value = grid_sample(masks, boxes, 480, 640)
    different = op(masks, boxes, 480, 640, 0.5) != (value >= 0.5)
    assert different.sum() <= 5
    assert ((value[different] - 0.5).abs() < 1e-4).all()


@pytest.mark.gpu
def test_gpu_matches_reference():
    for seed in range(20):
        args = scene(seed, count=9, mask_size=(28, 28), image_size=(70, 300), ties=seed % 2 == 0, odd=seed % 3 == 0)
        masks, boxes, *rest = args
        assert torch.equal(op(masks.cuda(), boxes.cuda(), *rest, 0.5).cpu(), reference(*args, 0.5))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_hundreds_of_masks(name):
    count = 40 if "triton" in name else 300
    args = (*blobs(count, (90, 160)), 90, 160, 0.5)
    pasted = IMPLEMENTATIONS[name](*args)
    assert pasted.flatten(1).any(1).all()
    assert torch.equal(pasted, reference(*args))


def one(box, value=1.0, size=(6, 8), threshold=0.5):
    return torch.full((1, 4, 4), value), torch.tensor([box]), *size, threshold


CASES = {  # box -> columns and rows that a mask of ones fills in an image of 6 x 8
    "whole pixels": ([2.0, 1, 6, 4], range(2, 6), range(1, 4)),
    "centres decide": ([1.5, 0.6, 5.4, 3.4], range(1, 5), range(1, 3)),
    "partly outside": ([-4.0, -9, 3, 2], range(3), range(2)),
    "larger than the image": ([-50.0, -50, 60, 60], range(8), range(6)),
    "huge": ([-1e9, -1e9, 1e9, 1e9], range(8), range(6)),
    "beyond int64": ([-1e30, -1e30, 1e30, 1e30], range(8), range(6)),
    "outside at the left": ([-9.0, 1, -2, 4], (), ()),
    "outside below": ([2.0, 20, 6, 30], (), ()),
    "far outside": ([1e12, 1, 2e12, 4], (), ()),
    "no width": ([2.0, 1, 2, 4], (), ()),
    "no width on a centre": ([2.5, 1, 2.5, 4], (), ()),
    "thinner than a pixel": ([2.4, 1, 2.6, 4], range(2, 3), range(1, 4)),
    "between centres": ([2.6, 1, 3.4, 4], (), ()),
    "inverted": ([6.0, 4, 2, 1], (), ()),
    "NaN": ([2.0, float("nan"), 6, 4], (), ()),
    "infinite": ([2.0, 1, float("inf"), 4], (), ()),
    "all infinite": ([-float("inf")] * 2 + [float("inf")] * 2, (), ()),
}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
def test_boxes_by_hand(name, case):
    box, columns, rows = CASES[case]
    expected = torch.zeros(1, 6, 8, dtype=torch.bool)
    for y in rows:
        expected[0, y, list(columns)] = True
    assert torch.equal(IMPLEMENTATIONS[name](*one(box)), expected)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_value_at_the_threshold_belongs_to_the_mask(name):
    box = [-40.0, -40, 48, 46]
    assert IMPLEMENTATIONS[name](*one(box, 0.5)).all()
    assert not IMPLEMENTATIONS[name](*one(box, 0.4999)).any()
    assert not IMPLEMENTATIONS[name](*one(box, float("nan"))).any()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_low_threshold_reaches_half_a_cell_beyond_the_box(name):
    """Cells of 2 pixels; half a pixel outside, the value has fallen to 1/4."""
    pasted = IMPLEMENTATIONS[name](*one([4.0, 4, 12, 12], size=(16, 16), threshold=0.2))
    assert pasted[0, 8].nonzero().flatten().tolist() == list(range(3, 13))


def test_number_of_masks_and_threads_change_nothing():
    args = (*blobs(30, (200, 300)), 200, 300, 0.5)
    pasted = op(*args)
    assert torch.equal(torch.cat([op(args[0][n : n + 1], args[1][n : n + 1], *args[2:]) for n in range(30)]), pasted)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(op(*args), pasted)
    finally:
        torch.set_num_threads(before)


def test_portable_in_chunks(monkeypatch):
    args = (*scene(3, count=7), 0.5)
    expected = reference(*args)
    for values in (1, 100, 2000):
        monkeypatch.setattr(portable_module, "CHUNK_VALUES", values)
        assert torch.equal(portable(*args), expected)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_views(name):
    masks, boxes, *rest = scene(4)
    strided = torch.stack([masks.transpose(1, 2), masks.transpose(1, 2)], -1)[..., 1].transpose(1, 2)
    boxes_strided = torch.stack([boxes, boxes], -1)[..., 0]
    assert not strided.is_contiguous()
    assert not boxes_strided.is_contiguous()
    expected = IMPLEMENTATIONS[name](masks, boxes, *rest, 0.5)
    assert torch.equal(IMPLEMENTATIONS[name](strided, boxes_strided, *rest, 0.5), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    masks, boxes, *rest = scene(5)
    torch.library.opcheck(torch.ops.detops.paste_masks.default, (masks.to(device), boxes.to(device), *rest, 0.5))


@pytest.mark.parametrize("device", DEVICES)
def test_no_host_sync_and_compiles_whole(device):
    masks, boxes, *rest = scene(6)
    masks, boxes = masks.to(device), boxes.to(device)
    assert detops.count_syncs(op, masks, boxes, *rest, 0.5) == 0
    assert detops.count_syncs(portable, masks, boxes, *rest, 0.5) == 0
    with FakeTensorMode() as mode:
        assert op(mode.from_tensor(masks), mode.from_tensor(boxes), *rest, 0.5).shape == (4, 23, 31)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for size in (rest, (40, 50)):
        assert torch.equal(compiled(masks, boxes, *size, 0.5), op(masks, boxes, *size, 0.5))


@pytest.mark.parametrize(
    "change",
    [
        {"masks": torch.zeros(2, 3)},
        {"masks": torch.zeros(2, 0, 3)},
        {"boxes": torch.zeros(2, 3)},
        {"boxes": torch.zeros(3, 4)},
        {"height": 0},
        {"width": -1},
        {"threshold": 0.0},
        {"threshold": float("nan")},
        {"threshold": 1e-46},  # 0 in float32
        {"height": 2**16, "width": 2**16},
    ],
)
@pytest.mark.parametrize("name", ["paste_masks", "masks_to_rle"])
def test_the_ops_themselves_refuse_what_does_not_fit(name, change):
    """What reaches the C++ kernels without the public class is checked there too."""
    args = dict(masks=torch.zeros(2, 3, 3), boxes=torch.zeros(2, 4), height=4, width=4, threshold=0.5) | change
    more = (True,) if name == "masks_to_rle" else ()
    with pytest.raises(RuntimeError, match="expected"):
        getattr(torch.ops.detops, name)(*args.values(), *more)


@needs_triton
@for_each_target
def test_compiles_ahead_of_time(target):
    types = dict(masks="*fp32", rows="*i32", along_y="*fp32", columns="*i32", along_x="*fp32", pasted="*u8")
    types |= dict(H="i32", W="i32", stride="i32", cells="i32", threshold="fp32")
    constants = dict(BLOCK_H=16, BLOCK_W=128)
    sizes_of_one = constants | dict(H=1, W=1)  # which Triton makes constants by itself
    assert_compiles("paste_masks", [("paste_kernel", types, c, 4) for c in (constants, sizes_of_one)], target)
