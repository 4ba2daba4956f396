"""The op nms_mask: every form keeps the same boxes, bit for bit."""

import importlib
from typing import Any

import pytest
import torch
from ahead_of_time import Kernel, needs_triton
from hypothesis import given
from hypothesis import strategies as st
from op import (
    DTYPES,
    Form,
    Op,
    assert_compiles_whole,
    assert_no_syncs,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)
from torch import Tensor

import detops

op = Op("nms_mask")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of Triton


def crowded_boxes(
    seed: int,
    batch: int = 2,
    count: int = 20,
    dtype: torch.dtype = torch.float32,
    labels: torch.dtype | None = None,
    valid: bool = False,
    odd: bool = False,
    ties: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Make boxes, scores, labels, valid; with `odd` some boxes are empty, inverted or not finite, and some scores."""
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


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(100)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 3]),
        count=st.sampled_from([0, 1, 2, 20, 32, 33, 70]),
        dtype=st.sampled_from(DTYPES),
        labels=st.sampled_from([None, torch.int32, torch.int64]),
        valid=st.booleans(),
        odd=st.booleans(),
        ties=st.booleans(),
        threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    )
    def check(threshold: float, **options: Any) -> None:
        args = crowded_boxes(**options)
        assert torch.equal(form(*args, threshold), op.reference(*args, threshold))

    check()


@op.for_each_form
def test_hundreds_of_boxes(form: Form) -> None:
    args = crowded_boxes(1, batch=1, count=300, labels=torch.int64)
    keep = form(*args, 0.4)
    assert 10 < keep.sum() < 290
    assert torch.equal(keep, op.reference(*args, 0.4))


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("loads", [1, 2, 8])
def test_all_ways_to_walk(loads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of boxes are walked by more warps, a few boxes at once; here as many as the interpreter can take."""
    module = importlib.import_module("detops.kernels.nms_mask")
    monkeypatch.setattr(module, "WIDE", 1)
    monkeypatch.setattr(module, "LOADS", loads)
    for count in (31, 64, 65, 97, 161):
        args = crowded_boxes(2, count=count, labels=torch.int64, valid=True, odd=True)
        assert torch.equal(module.nms_mask(*moved(args, DEVICE), 0.4).cpu(), op.reference(*args, 0.4))


@pytest.mark.slow
@needs_triton
def test_only_words_that_were_written_are_used() -> None:
    module = importlib.import_module("detops.kernels.nms_mask")
    args = crowded_boxes(3, count=150)
    torch.use_deterministic_algorithms(True)  # fills what is allocated with ones
    try:
        assert torch.equal(module.nms_mask(*moved(args, DEVICE), 0.4).cpu(), op.reference(*args, 0.4))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [2048, 2049, 4097, 9000])
def test_gpu_keeps_what_the_cpu_keeps_of_thousands(count: int) -> None:
    args = crowded_boxes(5, batch=2, count=count, labels=torch.int64, valid=True, odd=True)
    assert torch.equal(op(*moved(args, "cuda"), 0.5).cpu(), op(*args, 0.5))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_gpu_matches_reference(dtype: torch.dtype) -> None:
    for seed in range(3):
        args = crowded_boxes(seed, count=300, dtype=dtype, labels=torch.int64, valid=True, odd=True, ties=seed == 1)
        assert torch.equal(op(*moved(args, "cuda"), 0.5).cpu(), op.reference(*args, 0.5))


@op.for_each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_iou_that_is_the_threshold_is_not_above_it(form: Form, dtype: torch.dtype) -> None:
    """IoU and threshold are rounded to one dtype: boxes with an IoU of k / 10 or k / 7 are kept at that threshold."""
    for whole in (7, 10):
        for part in range(1, whole):
            boxes = torch.tensor([[[0, 0, whole, 10], [0, 0, part, 10]]], dtype=dtype)
            args = (boxes, torch.tensor([[0.9, 0.8]]), None, None)
            assert form(*args, part / whole).tolist() == [[True, True]]
            assert form(*args, part / whole - 1e-6).tolist() == [[True, False]]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_threshold_is_the_same_on_a_gpu(dtype: torch.dtype) -> None:
    boxes = torch.tensor([[[0, 0, 10, 10], [0, 0, 7, 10]]], dtype=dtype, device="cuda")
    scores = torch.tensor([[0.9, 0.8]], device="cuda")
    assert op(boxes, scores, None, None, 0.7).all()  # 0.7 in float32 is below 0.7 in float64
    assert not op(boxes, scores, None, None, 0.7 - 1e-6).all()


def test_views() -> None:
    boxes, scores, labels, valid = crowded_boxes(4, labels=torch.int32, valid=True)
    expected = detops.nms_mask(boxes, scores, 0.4, labels, valid)
    assert labels is not None
    assert valid is not None
    strided = [torch.stack([t, t.roll(1)], -1)[..., 0] for t in (boxes, scores, labels, valid)]
    assert not strided[0].is_contiguous()
    assert torch.equal(detops.nms_mask(strided[0], strided[1], 0.4, *strided[2:]), expected)
    assert torch.equal(detops.nms_mask(boxes[0], scores[0], 0.4, labels[0], valid[0]), expected[0])


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = crowded_boxes(7, batch=5, count=200, labels=torch.int64)
    assert_same_bits_for_any_threads(lambda: op(*args, 0.5))


@for_each_device
@pytest.mark.parametrize("options", [{}, {"labels": torch.int64, "valid": True}], ids=["plain", "labels, valid"])
def test_opcheck(device: str, options: dict[str, Any]) -> None:
    op.check(*moved(crowded_boxes(5, **options), device), 0.5)


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    def mask(boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        return detops.nms_mask(boxes, scores, 0.5, labels, valid)

    args, more = (moved(crowded_boxes(6, count=n, labels=torch.int64, valid=True), device) for n in (20, 31))
    assert assert_no_syncs(mask, *args).shape == (2, 20)
    assert assert_no_syncs(op.portable, *args, 0.5).shape == (2, 20)
    assert_compiles_whole(mask, args, more)


@pytest.mark.parametrize(
    "change",
    [
        dict(boxes=torch.zeros(2, 20)),
        dict(boxes=torch.zeros(2, 20, 4, dtype=torch.complex64)),
        dict(scores=torch.zeros(2, 19)),
        dict(labels=torch.zeros(20)),
        dict(valid=torch.ones(2, 20)),
        dict(valid=torch.ones(1, 20, dtype=torch.bool)),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses((*crowded_boxes(8), 0.5), **change)


KERNELS = [
    Kernel("keys_kernel", dict(scores="*fp16", keys="*i64", count="i32", N="i32", stride_b="i32", stride_n="i32"),
           dict(BLOCK=256), 4)
] + [
    Kernel("pairs_kernel",
           dict(boxes="*" + kind, labels="*i64", order="*i64", words="*i32", N="i32", W="i32", iou_threshold="fp64"),
           dict(ORDER=order, HAS_LABELS=kind == "fp32", DOUBLE=kind == "fp64", BITS=32), 4)
    for order, kind in ((0, "fp32"), (1, "fp64"), (2, "fp32"))
] + [
    Kernel(name, dict(words="*i32", order="*i64", valid="*u8", kept="*u8", N="i32", W="i32"),
           dict(ORDER=order, HAS_VALID=order != 1, BLOCK_W=width, BITS=32, ROWS=rows), warps)
    for name, order, width, rows, warps in (
        ("walk_kernel", 0, 32, 32, 1), ("walk_kernel", 1, 32, 32, 1), ("walk_kernel", 2, 64, 32, 1),
        ("wide_walk_kernel", 0, 128, 32, 4), ("wide_walk_kernel", 2, 512, 8, 4), ("wide_walk_kernel", 0, 2048, 2, 4),
    )
]  # fmt: skip
