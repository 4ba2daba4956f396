"""The op vlr_weights: every form gives what the definition says, but where rounding decides."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
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

import detops
from detops.portable import vlr_weights as portable_module
from detops.reference.vlr_weights import NEAR, overlaps

op = Op("vlr_weights")

Arguments = tuple[Tensor, Tensor, Tensor, Tensor | None]


def arguments(
    seed: int,
    batch: int = 2,
    boxes: int = 5,
    shapes: Sequence[tuple[int, int]] = ((6, 9), (3, 5), (1, 1)),
    valid: bool = False,
    dtype: torch.dtype = torch.float32,
    grid: bool = True,
) -> Arguments:
    """Anchors of a few levels, and boxes about as large, some of them without a region."""
    g = torch.Generator().manual_seed(seed)
    anchors = detops.grid_anchors(shapes, [8 * 2**i for i in range(len(shapes))], scale=3.0)
    if not grid:
        anchors = anchors + torch.randn(anchors.shape, generator=g) * 2
    low = torch.rand(batch, boxes, 2, generator=g) * 60 - 10
    gt = torch.cat([low, low + torch.rand(batch, boxes, 2, generator=g) * 50], -1)
    threshold = torch.rand(batch, boxes, generator=g) * 0.5
    threshold[torch.rand(batch, boxes, generator=g) < 0.2] = torch.inf
    exists = torch.rand(batch, len(anchors), generator=g) < 0.7 if valid else None
    return anchors.to(dtype), gt.to(dtype), threshold, exists


def doubtful(anchors: Tensor, gt_boxes: Tensor, threshold: Tensor) -> Tensor:
    """Return (B, A), whether a DIoU is so near a limit that rounding decides; for boxes like those of `arguments`."""
    near = torch.zeros(len(gt_boxes), len(anchors), dtype=torch.bool)
    for b, boxes in enumerate(gt_boxes.double()):
        for box, limit in zip(boxes, threshold[b].double(), strict=True):
            for a, anchor in enumerate(anchors.double()):
                diou = overlaps(anchor, box)[1]
                near[b, a] |= min(abs(diou - limit), abs(diou - NEAR * limit)) < 1e-5
    return near


def assert_matches(form: Form, args: Arguments, device: str = "cpu") -> None:
    expected, got = op.reference(*args), form(*moved(args, device)).cpu()
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    sure = ~doubtful(*args[:3])
    assert sure.sum() >= 0.9 * sure.numel()
    torch.testing.assert_close(got.double()[sure], expected[sure], rtol=1e-5, atol=1e-6)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(30)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        boxes=st.sampled_from([0, 1, 6]),
        shapes=st.sampled_from([((6, 9), (3, 5), (1, 1)), ((1, 1),), ((0, 3),), ((5, 14), (2, 3))]),
        valid=st.booleans(),
        dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64]),
        grid=st.booleans(),
    )
    def check(**options: Any) -> None:
        assert_matches(form, arguments(**options))

    check()


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for seed in range(3):
        assert_matches(op, arguments(seed, valid=seed == 1), device="cuda")


@pytest.mark.parametrize("form", [*op.forms, op.reference], ids=str)
def test_by_hand(form: Form) -> None:
    """A box 8 wide over anchors 8 wide: moved by k, IoU is (8 - k) / (8 + k), and DIoU less k^2 / (64 + (8 + k)^2)."""
    anchors = torch.tensor([[float(k), 0, 8 + k, 8] for k in range(9)])
    box, threshold = torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[0.5]])
    worth = form(anchors, box, threshold, None)
    # DIoU by k: 1, 0.771, 0.576, 0.406, 0.256, 0.123, ..., of which 0.125 .. 0.5 are near.
    expected = [0.0, 0, 0, 5 / 11, 4 / 12, 0, 0, 0, 0]
    torch.testing.assert_close(worth.float(), torch.tensor([expected]))
    valid = torch.tensor([[True] * 4 + [False] + [True] * 4])
    expected[4] = 0
    torch.testing.assert_close(form(anchors, box, threshold, valid).float(), torch.tensor([expected]))
    # The better of two boxes counts, whatever their order: that at 7 is 4 from the anchor at 3, and 3 from that at 4.
    two, limits = torch.tensor([[[0.0, 0, 8, 8], [7, 0, 15, 8]]]), torch.tensor([[0.5, 0.5]])
    both = torch.tensor([[0, 0, 0, 5 / 11, 5 / 11, 0, 0, 0, 0]])
    for order in ([0, 1], [1, 0]):
        torch.testing.assert_close(form(anchors, two[:, order], limits, None).float(), both)


@for_each_device
def test_many_boxes_and_anchors_against_the_portable_form(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that no box reaches are skipped, and the portable form works in chunks: the result is the same."""
    args = arguments(3, batch=3, boxes=70, shapes=((37, 61), (19, 31)), valid=True)
    args = (args[0], args[1] * 6, *args[2:])
    expected = op.portable(*args)
    monkeypatch.setattr(portable_module, "CHUNK_VALUES", 10**5)
    assert torch.equal(op.portable(*args), expected)
    got = op(*moved(args, device)).cpu()
    different = ~torch.isclose(got, expected, rtol=1e-5, atol=1e-6)
    assert different.float().mean() < 1e-3  # rounding decides
    assert (got > 0).float().mean() > 0.1


@op.for_each_form
def test_non_contiguous_arguments(form: Form) -> None:
    args = arguments(4, boxes=9, valid=True)
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in args if t is not None]
    assert not turned[1].is_contiguous()
    assert_same_bits(form(*turned), form(*args))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(4, boxes=9, valid=True)
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
@pytest.mark.parametrize("options", [{"valid": True}, {"boxes": 0}, {"batch": 0}], ids=str)
def test_opcheck(device: str, options: dict[str, Any]) -> None:
    op.check(*moved(arguments(5, **options), device))


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    args, more = (moved(arguments(8, boxes=boxes, valid=True), device) for boxes in (5, 7))
    for form in (op, op.portable):
        assert assert_no_syncs(form, *args).shape == (2, 70)
    assert_compiles_whole(op.overload, args, more)
    assert_compiles_whole(op.overload, args, backend="inductor")


@op.for_each_form
def test_boxes_without_a_region(form: Form) -> None:
    nan, inf = float("nan"), float("inf")
    anchors, *_ = arguments(0)
    boxes = [[nan, 0, 30, 30], [0, 0, 30, nan], [0, 0, inf, 30], [-inf, 0, inf, 30], [30, 30, 0, 0], [5, 5, 5, 5],
             [900, 0, 930, 30], [0, 0, 30, 30], [0, 0, 30, 30], [0, 0, 30, 30]]  # fmt: skip
    thresholds = torch.full((1, len(boxes)), 0.3)
    thresholds[0, -3:] = torch.tensor([inf, nan, 0.0])
    worth = form(anchors, torch.tensor([boxes]), thresholds, None)
    assert not worth.any()
    boxes.append([0, 0, 30, 30])
    thresholds = torch.cat([thresholds, torch.tensor([[0.3]])], 1)
    assert form(anchors, torch.tensor([boxes]), thresholds, None).any()


@op.for_each_form
@pytest.mark.parametrize(("images", "boxes", "anchors"), [(0, 3, 5), (2, 0, 5), (2, 3, 0)])
def test_empty(form: Form, images: int, boxes: int, anchors: int) -> None:
    worth = form(torch.ones(anchors, 4), torch.ones(images, boxes, 4), torch.ones(images, boxes), None)
    assert worth.shape == (images, anchors)
    assert not worth.any()


@pytest.mark.parametrize(
    "change",
    [
        dict(anchors=torch.zeros(70, 3)),
        dict(gt_boxes=torch.zeros(5, 4)),
        dict(threshold=torch.zeros(2, 1)),
        dict(valid=torch.ones(2, 70)),
        dict(valid=torch.ones(2, 2, dtype=torch.bool)),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(9, valid=True), **change)


KERNELS = [
    Kernel("region_kernel", dict(anchors="*fp32", boxes="*fp32", thresholds="*fp32", valid="*u8", worth="*fp32", A="i32",
                                 N="i32", lowest="fp32"), dict(HAS_VALID=on, BLOCK=256), 4)
    for on in (True, False)
]  # fmt: skip
