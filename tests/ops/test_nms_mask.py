"""The op nms_mask: every implementation keeps the same boxes, bit for bit."""

import pytest
import torch
from ahead_of_time import HAS_TRITON, assert_compiles, for_each_target, needs_triton
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

import detops
from detops.portable.nms_mask import nms_mask as portable
from detops.reference.nms_mask import nms_mask as reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def op(*args):
    return torch.ops.detops.nms_mask(*args)


def interpreted(*args):
    from detops.kernels.nms_mask import nms_mask

    return nms_mask(*args)


IMPLEMENTATIONS = {"portable": portable, "op": op}
if HAS_TRITON and not torch.cuda.is_available():
    IMPLEMENTATIONS["triton, interpreted"] = interpreted


def scene(seed, batch=2, count=20, dtype=torch.float32, labels=None, valid=False, odd=False, ties=False):
    """Crowded boxes; with `odd` also empty, inverted, NaN and infinite ones, and scores that are not finite."""
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(batch, count, 2, generator=g) * 40
    boxes = torch.cat([low, low + torch.rand(batch, count, 2, generator=g) * 30], -1)
    scores = torch.rand(batch, count, generator=g)
    if ties:
        scores = (scores * 4).floor() / 4
        boxes = (boxes / 8).floor() * 8
    if odd and count:
        kind = torch.randint(6, (batch, count), generator=g)
        boxes[kind == 0] = boxes[kind == 0][:, [0, 1, 0, 1]]
        boxes[kind == 1] = boxes[kind == 1][:, [2, 3, 0, 1]]
        boxes[..., 2][kind == 2] = float("nan")
        boxes[..., 3][kind == 3] = float("inf")
        scores[(kind == 4) & (scores < 0.5)] = float("nan")
        scores[(kind == 4) & (scores > 0.5)] = float("-inf")
    label = None if labels is None else torch.randint(-1, 3, (batch, count), generator=g).to(labels)
    exists = torch.rand(batch, count, generator=g) < 0.8 if valid else None
    return boxes.to(dtype), scores.to(dtype), label, exists


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_matches_reference(name):
    @settings(max_examples=25 if "triton" in name else 100, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 3]),
        count=st.sampled_from([0, 1, 2, 20, 70]),
        dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
        labels=st.sampled_from([None, torch.int32, torch.int64]),
        valid=st.booleans(),
        odd=st.booleans(),
        ties=st.booleans(),
        threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    )
    def check(threshold, **options):
        args = scene(**options)
        assert torch.equal(IMPLEMENTATIONS[name](*args, threshold), reference(*args, threshold))

    check()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_hundreds_of_boxes(name):
    args = scene(1, batch=1, count=300, labels=torch.int64)
    keep = IMPLEMENTATIONS[name](*args, 0.4)
    assert 10 < keep.sum() < 290
    assert torch.equal(keep, reference(*args, 0.4))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_gpu_matches_reference(dtype):
    for seed in range(3):
        args = scene(seed, count=300, dtype=dtype, labels=torch.int64, valid=True, odd=True, ties=seed == 1)
        assert torch.equal(op(*(t.cuda() for t in args), 0.5).cpu(), reference(*args, 0.5))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_iou_that_is_the_threshold_is_not_above_it(name, dtype):
    """IoU and threshold are rounded to one dtype: boxes of overlap k / 10 or k / 7 stay at that threshold."""
    for whole in (7, 10):
        for part in range(1, whole):
            boxes = torch.tensor([[[0, 0, whole, 10], [0, 0, part, 10]]], dtype=dtype)
            args = (boxes, torch.tensor([[0.9, 0.8]]), None, None)
            assert IMPLEMENTATIONS[name](*args, part / whole).tolist() == [[True, True]]
            assert IMPLEMENTATIONS[name](*args, part / whole - 1e-6).tolist() == [[True, False]]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_threshold_is_the_same_on_a_gpu(dtype):
    boxes = torch.tensor([[[0, 0, 10, 10], [0, 0, 7, 10]]], dtype=dtype, device="cuda")
    scores = torch.tensor([[0.9, 0.8]], device="cuda")
    assert op(boxes, scores, None, None, 0.7).all()  # 0.7 in float32 is below 0.7 in float64
    assert not op(boxes, scores, None, None, 0.7 - 1e-6).all()


def test_views():
    boxes, scores, labels, valid = scene(4, labels=torch.int32, valid=True)
    expected = detops.nms_mask(boxes, scores, 0.4, labels, valid)
    strided = [torch.stack([t, t.roll(1)], -1)[..., 0] for t in (boxes, scores, labels, valid)]
    assert not strided[0].is_contiguous()
    assert torch.equal(detops.nms_mask(strided[0], strided[1], 0.4, *strided[2:]), expected)
    assert torch.equal(detops.nms_mask(boxes[0], scores[0], 0.4, labels[0], valid[0]), expected[0])


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    for options in ({}, {"labels": torch.int64, "valid": True}):
        args = [None if t is None else t.to(device) for t in scene(5, **options)]
        torch.library.opcheck(torch.ops.detops.nms_mask.default, (*args, 0.5))


@pytest.mark.parametrize("device", DEVICES)
def test_no_host_sync_and_compiles_whole(device):
    args = [t.to(device) for t in scene(6, labels=torch.int64, valid=True)]

    def mask(boxes, scores, labels, valid):
        return detops.nms_mask(boxes, scores, 0.5, labels, valid)

    assert detops.count_syncs(mask, *args) == 0
    with FakeTensorMode() as mode:
        assert mask(*(mode.from_tensor(t) for t in args)).shape == (2, 20)
    compiled = torch.compile(mask, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), mask(*args))


@needs_triton
@for_each_target
def test_compiles_ahead_of_time(target):
    cases = []
    for wide in ("fp32", "fp64"):
        types = dict(boxes="*" + wide, labels="*i64", words="*i64", N="i32", W="i32", iou_threshold="fp64")
        constants = dict(HAS_LABELS=wide == "fp32", DOUBLE=wide == "fp64", TILE=32, BITS=32)
        cases.append(("pairs_kernel", types, constants, 4))
    types = dict(words="*i64", alive="*u8", N="i32", W="i32")
    cases.append(("walk_kernel", types, dict(BLOCK_W=32, BITS=32), 1))
    assert_compiles("nms_mask", cases, target)
