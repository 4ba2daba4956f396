"""The op nms_mask and its public forms: every form keeps the same boxes, bit for bit."""

import importlib
from typing import Any

import loaded_torchvision
import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import given, settings
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
    """Boxes, scores, labels, valid; with `odd` also empty, inverted, NaN and infinite ones, and scores that are not finite."""
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
    @settings(max_examples=25 if form.interpreted else 100, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 3]),
        count=st.sampled_from([0, 1, 2, 20, 70]),
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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_gpu_matches_reference(dtype: torch.dtype) -> None:
    for seed in range(3):
        args = crowded_boxes(seed, count=300, dtype=dtype, labels=torch.int64, valid=True, odd=True, ties=seed == 1)
        assert torch.equal(op(*moved(args, "cuda"), 0.5).cpu(), op.reference(*args, 0.5))


def test_by_hand() -> None:
    """IoU of the first two is 81 / 100; the third meets the first alone, which is dropped."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [0, 0, 5, 3], [20, 20, 30, 30]])
    scores = torch.tensor([0.8, 0.9, 0.2, 0.1])
    assert detops.nms(boxes, scores, 0.5).tolist() == [1, 2, 3]
    assert detops.nms(boxes, scores, 0.81).tolist() == [1, 0, 2, 3]  # strictly above
    assert detops.nms(boxes, scores, 0.0).tolist() == [1, 3]
    assert detops.nms(boxes, torch.ones(4), 0.5).tolist() == [0, 2, 3]  # ties: the lower index
    assert detops.nms(boxes[:0], scores[:0], 0.5).tolist() == []
    labels = torch.tensor([0, 1, 0, 1])
    assert detops.batched_nms(boxes, scores, labels, 0.1).tolist() == [1, 0, 3]
    valid = torch.tensor([True, False, True, True])
    assert detops.nms_mask(boxes, scores, 0.5, valid=valid).tolist() == [True, False, True, True]


def per_class(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """What torchvision's vanilla form does: class after class, then by score."""
    kept = []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        kept.append(rows[detops.nms(boxes[rows], scores[rows], threshold)])
    rows = torch.cat(kept).sort().values
    return rows[scores[rows].sort(descending=True, stable=True).indices]


def one_image(batch: tuple[Any, ...]) -> Any:
    return [None if tensor is None else tensor[0] for tensor in batch]


def test_batched_nms_is_nms_of_each_class() -> None:
    boxes, scores, labels, _ = one_image(crowded_boxes(2, count=200, labels=torch.int64))
    assert torch.equal(detops.batched_nms(boxes, scores, labels, 0.4), per_class(boxes, scores, labels, 0.4))


def test_torchvision_agrees() -> None:
    if not loaded_torchvision.has_compiled_operators():
        pytest.skip("torchvision's compiled operators do not load here")
    ops = importlib.import_module("torchvision.ops")

    boxes, scores, labels, _ = one_image(crowded_boxes(3, count=300, labels=torch.int64))
    assert torch.equal(detops.nms(boxes, scores, 0.5), ops.nms(boxes, scores, 0.5))
    expected = ops.boxes._batched_nms_vanilla(boxes, scores, labels, 0.5)
    assert torch.equal(detops.batched_nms(boxes, scores, labels, 0.5), expected)


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
    ("change", "error", "message"),
    [
        ({"boxes": torch.zeros(4)}, ValueError, r"boxes: expected shape \(B, N, 4\) or \(N, 4\), got \(4,\)"),
        (
            {"boxes": torch.zeros(3, 4, dtype=torch.int64)},
            TypeError,
            "boxes: expected a floating-point tensor, got int64",
        ),
        ({"scores": torch.zeros(2)}, ValueError, r"scores: expected shape \(3,\) to match boxes, got \(2,\)"),
        ({"labels": torch.zeros(3)}, TypeError, "labels: expected integers, got float32"),
        ({"valid": torch.zeros(3)}, TypeError, "valid: expected a bool tensor, got float32"),
        ({"iou_threshold": float("nan")}, ValueError, "iou_threshold: expected a number, got nan"),
    ],
)
def test_errors_name_the_argument(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        detops.nms_mask(**dict[str, Any](boxes=torch.zeros(3, 4), scores=torch.zeros(3), iou_threshold=0.5) | change)


def test_nms_takes_one_image() -> None:
    with pytest.raises(ValueError, match=r"boxes: expected shape \(N, 4\), got \(1, 3, 4\)"):
        detops.nms(torch.zeros(1, 3, 4), torch.zeros(1, 3), 0.5)


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
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, object]) -> None:
    op.refuses((*crowded_boxes(8), 0.5), **change)


KERNELS = [
    Kernel("pairs_kernel", dict(boxes="*" + wide, labels="*i64", words="*i64", N="i32", W="i32", iou_threshold="fp32"),
           dict(HAS_LABELS=wide == "fp32", DOUBLE=wide == "fp64", TILE=32, BITS=32), 4)
    for wide in ("fp32", "fp64")
]  # fmt: skip
KERNELS.append(Kernel("walk_kernel", dict(words="*i64", alive="*u8", N="i32", W="i32"), dict(BLOCK_W=32, BITS=32), 1))
