"""The op vlr_weights: every implementation gives what the definition says, but where rounding decides."""

import pytest
import torch
from ahead_of_time import Kernel
from gfl_scenes import moved
from hypothesis import given, settings
from hypothesis import strategies as st

import detops
from detops.portable import vlr_weights as portable_module
from detops.reference.vlr_weights import LOWEST, overlaps

op = Op("vlr_weights")




def scene(seed, batch=2, boxes=5, shapes=((6, 9), (3, 5), (1, 1)), valid=False, dtype=torch.float32, grid=True):
    """Arguments of the op: anchors of a few levels, boxes about as large, some of them without a region."""
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


def doubtful(anchors, gt_boxes, threshold):
    """(B, A): a DIoU is so near a limit that rounding decides; for boxes as plain as those of `scene`."""
    near = torch.zeros(len(gt_boxes), len(anchors), dtype=torch.bool)
    for b, boxes in enumerate(gt_boxes.double()):
        for box, limit in zip(boxes, threshold[b].double(), strict=True):
            for a, anchor in enumerate(anchors.double()):
                diou = overlaps(anchor, box)[1]
                near[b, a] |= min(abs(diou - limit), abs(diou - LOWEST * limit)) < 1e-5
    return near


def assert_matches(implementation, args, device="cpu"):
    expected, got = op.reference(*args), implementation(*moved(args, device)).cpu()
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    sure = ~doubtful(*args[:3])
    assert sure.sum() >= 0.9 * sure.numel()
    torch.testing.assert_close(got.double()[sure], expected[sure], rtol=1e-5, atol=1e-6)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @settings(max_examples=15 if form.interpreted else 30, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        boxes=st.sampled_from([0, 1, 6]),
        shapes=st.sampled_from([((6, 9), (3, 5), (1, 1)), ((1, 1),), ((0, 3),), ((5, 14), (2, 3))]),
        valid=st.booleans(),
        dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64]),
        grid=st.booleans(),
    )
    def check(**options):
        assert_matches(form, scene(**options))

    check()


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for seed in range(3):
        assert_matches(op, scene(seed, valid=seed == 1), device="cuda")


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS.values(), reference], ids=[*IMPLEMENTATIONS, "reference"])
def test_by_hand(implementation) -> None:
    """A box 8 wide over anchors 8 wide: moved by k, IoU is (8 - k) / (8 + k), and DIoU less k^2 / (64 + (8 + k)^2)."""
    anchors = torch.tensor([[float(k), 0, 8 + k, 8] for k in range(9)])
    box, threshold = torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[0.5]])
    worth = implementation(anchors, box, threshold, None)
    # DIoU by k: 1, 0.771, 0.576, 0.406, 0.256, 0.123, ..., of which 0.125 .. 0.5 are near.
    expected = [0, 0, 0, 5 / 11, 4 / 12, 0, 0, 0, 0]
    torch.testing.assert_close(worth.float(), torch.tensor([expected]))
    valid = torch.tensor([[True] * 4 + [False] + [True] * 4])
    expected[4] = 0
    torch.testing.assert_close(implementation(anchors, box, threshold, valid).float(), torch.tensor([expected]))
    # Of two boxes the better one counts, wherever it stands: that at 7 is 4 from the anchor at 3, and 3 from that at 4.
    two, limits = torch.tensor([[[0.0, 0, 8, 8], [7, 0, 15, 8]]]), torch.tensor([[0.5, 0.5]])
    expected = torch.tensor([[0, 0, 0, 5 / 11, 5 / 11, 0, 0, 0, 0]])
    for order in ([0, 1], [1, 0]):
        torch.testing.assert_close(implementation(anchors, two[:, order], limits, None).float(), expected)


@op.for_each_form
def test_boxes_without_a_region(form: Form) -> None:
    nan, inf = float("nan"), float("inf")
    anchors, *_ = scene(0)
    boxes = [[nan, 0, 30, 30], [0, 0, 30, nan], [0, 0, inf, 30], [-inf, 0, inf, 30], [30, 30, 0, 0], [5, 5, 5, 5],
             [900, 0, 930, 30], [0, 0, 30, 30], [0, 0, 30, 30], [0, 0, 30, 30]]  # fmt: skip
    thresholds = torch.full((1, len(boxes)), 0.3)
    thresholds[0, -3:] = torch.tensor([inf, nan, 0.0])
    worth = form(anchors, torch.tensor([boxes]), thresholds, None)
    assert not worth.any()
    boxes.append([0, 0, 30, 30])
    thresholds = torch.cat([thresholds, torch.tensor([[0.3]])], 1)
    assert form(anchors, torch.tensor([boxes]), thresholds, None).any()


@for_each_device
def test_many_boxes_and_anchors_against_the_portable_form(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that boxes do not reach are passed over; chunks do not show."""
    args = scene(3, batch=3, boxes=70, shapes=((37, 61), (19, 31)), valid=True)
    args = (args[0], args[1] * 6, *args[2:])
    expected = op.portable(*args)
    monkeypatch.setattr(portable_module, "CHUNK_VALUES", 10**5)
    assert torch.equal(op.portable(*args), expected)
    got = op(*moved(args, device)).cpu()
    different = ~torch.isclose(got, expected, rtol=1e-5, atol=1e-6)
    assert different.float().mean() < 1e-3  # rounding decides
    assert (got > 0).float().mean() > 0.1


def test_non_contiguous_and_any_number_of_threads() -> None:
    anchors, boxes, threshold, valid = scene(4, boxes=9, valid=True)
    expected = op(anchors, boxes, threshold, valid)
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (anchors, boxes, threshold, valid)]
    assert not turned[1].is_contiguous()
    assert torch.equal(op(*turned), expected)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(op(anchors, boxes, threshold, valid), expected)
    finally:
        torch.set_num_threads(before)


@op.for_each_form
def test_another_default_dtype_changes_nothing(form: Form) -> None:
    args = scene(10, valid=True)
    expected = form(*args)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(form(*args), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@for_each_device
def test_opcheck(device: str) -> None:
    for args in (scene(5, valid=True), scene(6, boxes=0), scene(7, batch=0)):
        torch.library.opcheck(torch.ops.detops.vlr_weights.default, moved(args, device))


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    args = moved(scene(8, valid=True), device)
    assert detops.count_syncs(op, *args) == 0
    with FakeTensorMode() as mode:
        op.portable(*(mode.from_tensor(t) for t in args))
    compiled = torch.compile(op, fullgraph=True)
    assert torch.equal(compiled(*args), op(*args))


def test_wrong_shapes_are_refused() -> None:
    args = scene(9, valid=True)
    for place, value, message in ((0, args[0][:, :3], "anchors"), (1, args[1][0], "gt_boxes"),
                                  (2, args[2][:, :1], "threshold"), (3, args[3].float(), "valid"),
                                  (3, args[3][:, :2], "valid")):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            op(*[value if i == place else arg for i, arg in enumerate(args)])


@needs_triton
@for_each_target
def test_compiles_ahead_of_time(target) -> None:
    types = dict(anchors="*fp32", boxes="*fp32", thresholds="*fp32", valid="*u8", worth="*fp32", A="i32", N="i32",
                 lowest="fp32")  # fmt: skip
    cases = [("region_kernel", types, dict(HAS_VALID=on, BLOCK=256), 4) for on in (True, False)]
    assert_compiles("vlr_weights", cases, target)
