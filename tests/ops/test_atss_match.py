"""The op atss_match and atss_assign: every form makes the decisions of the definition."""

from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import assume, given
from hypothesis import strategies as st
from op import (
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
from detops.portable import _search
from detops.reference import atss_match as definition

op = Op("atss_match")
SHAPES, STRIDES = [(8, 8), (4, 4), (2, 2), (1, 1)], (8, 16, 32, 64)
SIZES = [64, 16, 4, 1]


Arguments = tuple[Tensor, list[int], Tensor, Tensor, Tensor | None, Tensor | None, int, int, float, bool, bool]
RULE = (9, 0.01, False, False)  # topk, margin, strict, all_boxes


def arguments(
    seed: int,
    batch: int = 2,
    boxes: int = 5,
    coarse: bool = False,
    odd: bool = False,
    ragged: bool = False,
    masked: bool = False,
    index_dtype: torch.dtype = torch.int64,
    topk: int = 9,
    static: bool = False,
) -> Arguments:
    """Make boxes of all sizes in and around an image of 64 pixels; with `coarse` on whole pixels, to make ties.

    With `static`, for super-gradients' rule.
    """
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(batch, boxes, 2, generator=g) * 70 - 10
    gt = torch.cat([low, low + 2 + torch.rand(batch, boxes, 2, generator=g) ** 2 * 60], -1)
    if coarse:
        gt = (gt / 4).round() * 4
    labels = torch.randint(0, 3, (batch, boxes), generator=g)
    if odd and boxes:
        kind = torch.randint(8, (batch, boxes), generator=g)
        gt[kind == 0] = gt[kind == 0][:, [2, 3, 0, 1]]
        gt[..., 1][kind == 1] = float("nan")
        gt[..., 2][kind == 2] = float("inf")
        gt[..., 2:][kind == 3] = gt[..., :2][kind == 3]
        gt[kind == 4] += 500
        gt[kind == 7] = torch.tensor([-1e20, -1e19, 1e20, 1e20])
        labels[kind == 5] = 3
        labels[kind == 6] = -1
    sizes = torch.randint(0, boxes + 1, (batch,), generator=g) if ragged else None
    valid = torch.rand(batch, sum(SIZES), generator=g) < 0.7 if masked else None
    anchors = detops.grid_anchors(SHAPES, STRIDES, scale=4)
    return anchors, SIZES, gt, labels.to(index_dtype), sizes, valid, 3, topk, 1e-9 if static else 0.01, static, static


def decided(args: Arguments, margin: float = 1e-4) -> bool:
    """Return whether float32 must decide alike: each decision is a tie of equal inputs, or clear by `margin`."""
    anchors, level_sizes, gt, _, _, valid, _, topk, least, _, all_boxes = args
    for b in range(len(gt)):
        exists = torch.ones(len(anchors), dtype=torch.bool) if valid is None else valid[b]
        ious = torch.zeros(len(gt[b]), len(anchors), dtype=torch.float64)
        for n, box in enumerate(gt[b].double()):
            if not (box[2:] - box[:2]).float().prod().isfinite():
                continue
            iou, distance, _ = definition.pairs(anchors, box, least)
            gaps = distance.sort().values.diff()
            chosen = definition.nearest(distance, exists, level_sizes, topk)
            found = iou[chosen]
            rivals = slice(None) if all_boxes else chosen
            ious[n, rivals] = iou[rivals]
            threshold = found.mean() + (found.std() if len(found) > 1 else 0)
            center = (anchors[:, :2] + anchors[:, 2:]).double() / 2
            inside = torch.cat([center - box[:2], box[2:] - center], 1)
            away = (found - threshold).abs()
            if ((gaps > 0) & (gaps < margin)).any() or ((away > 0) & (away < margin)).any() or found.std() < margin:
                return False
            if ((inside - least).abs() < 1e-3).any():
                return False
        gaps = ious.sort(0).values.diff(dim=0)
        if ((gaps > 0) & (gaps < 1e-6)).any():
            return False
    return True


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(300)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        boxes=st.sampled_from([0, 1, 3, 9]),
        coarse=st.booleans(),
        odd=st.booleans(),
        ragged=st.booleans(),
        masked=st.booleans(),
        index_dtype=st.sampled_from([torch.int32, torch.int64]),
        topk=st.sampled_from([1, 3, 9]),
        static=st.booleans(),
    )
    def check(**options: Any) -> None:
        args = arguments(**options)
        assume(decided(args))
        index, iou, threshold, positives = form(*args)
        expected, overlap, limit, count = op.reference(*args)
        assert torch.equal(positives, count)
        assert torch.equal(index, expected)
        assert iou.dtype == torch.float32
        torch.testing.assert_close(iou.double(), overlap, rtol=0, atol=1e-6)
        assert threshold.dtype == torch.float32
        torch.testing.assert_close(threshold.double(), limit, rtol=0, atol=1e-6)

    check()


@pytest.mark.parametrize("form", [op.portable, op], ids=str)
def test_hundreds_of_boxes(form: Form) -> None:
    args = arguments(1, batch=1, boxes=300)
    index, *_ = form(*args)
    expected, *_ = op.reference(*args)
    assert (expected >= 0).sum() > 20
    assert (index != expected).sum() <= 1  # where float32 rounds two IoUs to one


@op.for_each_form
def test_the_options_by_hand(form: Form) -> None:
    """Three boxes around one anchor: two take it, the third is nearer to it but has its own threshold too high."""
    anchors = torch.tensor([[0.0, 0, 8, 8], [1, 0, 9, 8]])
    gt = torch.tensor([[[0.0, 0, 8, 12], [0, 0, 8, 11], [-1, 0, 8, 8]]])
    labels = torch.zeros(1, 3).long()

    def owners(margin: float, strict: bool, all_boxes: bool, boxes: Tensor = gt) -> list[int]:
        index, *_ = form(anchors, [2], boxes, labels[:, : boxes.shape[1]], None, None, 1, 1, margin, strict, all_boxes)
        return list(index[0])

    # One candidate each, whose IoU is its own threshold: taken, but not if it must be above.
    assert owners(0.01, False, False) == [2, -1]
    assert owners(0.01, True, False) == [-1, -1]
    # A margin beyond which no centre lies.
    assert owners(6.0, False, False) == [-1, -1]
    # The best of all boxes: the last, whose centre is not as far inside as the margin wants, takes nothing by itself.
    assert owners(3.99, False, False, gt[:, :2]) == [1, -1]
    low = gt - torch.tensor([[[0.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0.5, 0.5]]])
    assert owners(3.99, False, False, low) == [1, -1]
    assert owners(3.99, False, True, low) == [2, -1]


@pytest.mark.parametrize("masked", [False, True])
def test_a_grid_gives_what_its_anchors_in_any_order_give(masked: bool) -> None:
    """In a grid only the anchors around a box are searched; shuffled, all are searched, and the same are chosen."""
    shapes, strides = [(40, 60), (20, 30), (1, 15), (15, 1)], (8, 16, 8, 8)
    sizes, g = [h * w for h, w in shapes], torch.Generator().manual_seed(5)
    anchors = detops.grid_anchors(shapes, strides)
    low = torch.rand(2, 60, 2, generator=g) * torch.tensor([560.0, 400]) - 40
    gt = torch.cat([low, low + 1 + torch.rand(2, 60, 2, generator=g) * 200], -1)
    gt[:, 0], gt[:, 1], gt[:, 2] = gt[:, 0] - 5000, gt[:, 1] * 1e7, torch.tensor([200.0, 100, 208, 108])
    labels, valid = torch.zeros(2, 60).long(), torch.ones(2, sum(sizes), dtype=torch.bool)
    if masked:
        valid = (anchors[:, 0] < 200) & (anchors[:, 1] < torch.tensor([300, -20])[:, None])
    order = torch.cat([torch.randperm(n, generator=g) + sum(sizes[:i]) for i, n in enumerate(sizes)])
    rows = gt[:, 3:]  # far away and between cells, the order of equal distances is not defined
    mine = op(anchors, sizes, rows, labels[:, 3:], None, valid, 1, *RULE)
    other = op(anchors[order], sizes, rows, labels[:, 3:], None, valid[:, order], 1, *RULE)
    assert (mine[0] >= 0).sum() > 20
    assert torch.equal(mine[0][:, order], other[0])
    assert torch.equal(mine[2], other[2])
    everything = op(anchors, sizes, gt, labels, None, valid, 1, *RULE)
    expected = op.portable(anchors, sizes, gt, labels, None, valid, 1, *RULE)
    assert torch.equal(everything[0], expected[0])
    torch.testing.assert_close(everything[2], expected[2])


@op.for_each_form
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("topk", [9, 100])
def test_anchors_of_several_tiles(form: Form, shuffled: bool, topk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More anchors than the Triton kernel looks at together, in a grid and in any order, and more than a warp keeps."""
    if form.interpreted:
        monkeypatch.setattr("detops.kernels.atss_match.BLOCK_REACH", 4)
    sizes, g = [520, 0, 130, 35], torch.Generator().manual_seed(2)
    anchors = detops.grid_anchors([(20, 26), (10, 13), (5, 7)], (8, 16, 32), scale=4)
    if shuffled:
        anchors = torch.cat([part[torch.randperm(len(part), generator=g)] for part in anchors.split(sizes)])
    low = torch.rand(1, 3, 2, generator=g) * torch.tensor([150.0, 100])
    gt = torch.cat([low, low + 5 + torch.rand(1, 3, 2, generator=g) * 90], -1)
    gt[0, 2] -= 40
    args = (anchors, sizes, gt, torch.zeros(1, 3).long(), None, None, 1, topk, 0.01, False, False)
    assert decided(args)
    index, iou, threshold, positives = form(*args)
    expected, overlap, limit, count = op.reference(*args)
    assert torch.equal(index, expected)
    assert torch.equal(positives, count)
    assert count > 0
    torch.testing.assert_close(iou.double(), overlap, rtol=0, atol=1e-6)
    torch.testing.assert_close(threshold.double(), limit, rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    compared = 0
    for seed in range(8):
        args = arguments(seed, boxes=9, odd=seed % 2 == 1, masked=seed > 3)
        if decided(args):
            assert torch.equal(op(*moved(args, "cuda"))[0].cpu(), op.reference(*args)[0])
            compared += 1
    assert compared >= 4


def test_values_of_mmdetection() -> None:
    """Five grids of an image of 256 pixels and two boxes; anchors and IoUs as MMDetection's assigner finds them."""
    shapes = [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
    anchors = detops.grid_anchors(shapes)
    boxes = torch.tensor([[[40.0, 40, 120, 100], [60, 50, 200, 220]]])
    found = detops.atss_assign(anchors, [h * w for h, w in shapes], (boxes, torch.tensor([[7, 2]])), 80)
    first = (found.box_index[0] == 0).nonzero()[:, 0].tolist()
    second = (found.box_index[0] == 1).nonzero()[:, 0].tolist()
    assert first == [265, 266, 267, 297, 298, 299, 329, 330, 331]
    assert second == [1144, 1145, 1159, 1160, 1161, 1175, 1176, 1177, 1192]
    expected = torch.tensor([0.6747, 0.7595, 0.5977]).repeat_interleave(3)
    torch.testing.assert_close(found.quality[0, first], expected, rtol=0, atol=6e-5)
    expected = torch.tensor([0.6704, 0.6033, 0.586, 0.6884, 0.6188, 0.586, 0.6884, 0.6188, 0.6528])
    torch.testing.assert_close(found.quality[0, second], expected, rtol=0, atol=6e-5)
    assert found.num_positives == 18
    assert found.labels[0, 265] == 7
    assert found.labels[0, 0] == -1


def test_a_single_candidate_is_taken() -> None:
    """The unbiased standard deviation of one number is NaN, which would be no threshold."""
    found = detops.atss_assign(
        torch.tensor([[0.0, 0, 8, 8]]), [1], ([torch.tensor([[1.0, 1, 9, 9]])], [torch.tensor([0])]), 1
    )
    assert found.box_index.tolist() == [[0]]


@pytest.mark.parametrize("form", [*op.forms, op.reference], ids=str)
def test_candidates_of_one_iou_are_all_taken(form: Form) -> None:
    """A small box within all its candidates: a mean that is rounded up would be above all of their IoUs."""
    g = torch.Generator().manual_seed(0)
    anchors = detops.grid_anchors([(8, 10)], [8])
    for _ in range(40):
        low = 10 + torch.rand(2, generator=g) * torch.tensor([40.0, 30])
        box = torch.cat([low, low + 9 + torch.rand(2, generator=g) * 3])
        index, *_ = form(anchors, [80], box[None, None], torch.zeros(1, 1).long(), None, None, 1, *RULE)
        center = (anchors[:, :2] + anchors[:, 2:]) / 2
        inside = torch.cat([center - box[:2], box[2:] - center], 1).amin(1) > 0.01
        assert (index[0] == 0).tolist() == inside.tolist()


@op.for_each_form
def test_an_anchor_with_a_nan_is_the_farthest(form: Form) -> None:
    """On levels with enough other anchors, the result is as if it did not exist."""
    anchors, sizes, gt, labels, *_ = arguments(6, boxes=9)
    rows = torch.cat([torch.arange(0, 64, 3), torch.tensor([64, 70, 79])])
    broken, valid = anchors.clone(), torch.ones(len(gt), len(anchors), dtype=torch.bool)
    broken[rows, rows % 4] = float("nan")
    valid[:, rows] = False
    rule = (5, *RULE[1:])
    found = form(broken, sizes, gt, labels, None, None, 3, *rule)
    expected = form(anchors, sizes, gt, labels, None, valid, 3, *rule)
    assert (found[0] >= 0).sum() > 20
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_equal_claims_go_to_the_lower_box_and_views_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    anchors, sizes, gt, labels, _, _, *rest = arguments(2, boxes=4)
    twice = torch.cat([gt, gt], 1)
    index, *_ = op(anchors, sizes, twice, torch.cat([labels, labels], 1), None, None, *rest)
    assert torch.equal(index, op(anchors, sizes, gt, labels, None, None, *rest)[0])
    strided = (torch.stack([t, t], -1)[..., 0] for t in (anchors, gt, labels))
    anchors_, gt_, labels_ = strided
    assert torch.equal(op(anchors_, sizes, gt_, labels_, None, None, *rest)[0], index)
    monkeypatch.setattr(_search, "CHUNK_VALUES", 1)
    assert torch.equal(op.portable(anchors, sizes, gt, labels, None, None, *rest)[0], index)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(6, batch=3, boxes=40, coarse=True)
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
@pytest.mark.parametrize("options", [{}, {"ragged": True, "masked": True, "boxes": 0}], ids=["plain", "no boxes"])
def test_opcheck(device: str, options: dict[str, Any]) -> None:
    op.check(*moved(arguments(3, **options), device))


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    def assign(anchors: Tensor, boxes: Tensor, labels: Tensor) -> detops.Assignment:
        return detops.atss_assign(anchors, SIZES, (boxes, labels), 3)

    (anchors, _, *boxes), (_, _, *more) = (moved(arguments(4, boxes=count)[:4], device) for count in (5, 8))
    assert assert_no_syncs(assign, anchors, *boxes).quality.shape == (2, 85)
    assert assert_no_syncs(op.portable, *moved(arguments(4), device))[1].shape == (2, 85)
    assert_compiles_whole(assign, (anchors, *boxes), (anchors, *more))


@op.for_each_form
@pytest.mark.parametrize("options", [{"batch": 0}, {"boxes": 0}], ids=str)
def test_empty(form: Form, options: dict[str, Any]) -> None:
    args = arguments(5, **options)
    index, iou, threshold, positives = form(*args)
    assert not positives.any()
    assert index.shape == iou.shape == (len(args[2]), 85)
    assert threshold.shape == args[2].shape[:2]
    assert (index == -1).all()
    assert not iou.any()


@op.for_each_form
def test_padding_is_never_read(form: Form) -> None:
    anchors, sizes, gt, labels, _, _, *rest = arguments(7)
    counts = torch.tensor([2, 0])
    expected = form(anchors, sizes, gt, labels, counts, None, *rest)
    padding = torch.arange(gt.shape[1]) >= counts[:, None]
    gt[padding], labels[padding] = torch.nan, 2**40
    found = form(anchors, sizes, gt, labels, counts, None, *rest)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert (found[0] >= 0).any()


BOXES, LABELS = torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"anchors": torch.zeros(85, 2)}, ValueError, r"anchors: expected shape \(A, 4\), got \(85, 2\)"),
        ({"level_sizes": [64]}, ValueError, r"level_sizes: expected numbers with the sum 85, got \[64\]"),
        (
            {"targets": (torch.zeros(1, 2, 3), LABELS)},
            ValueError,
            r"boxes: expected shape \(B, N, 4\), got \(1, 2, 3\)",
        ),
        ({"targets": (BOXES, torch.zeros(1, 2))}, TypeError, "labels: expected integers, got float32"),
        ({"targets": (BOXES, LABELS[:, :1])}, ValueError, r"labels: expected shape \(1, 2\) to match boxes"),
        (
            {"targets": (BOXES.to("meta"), LABELS.to("meta"))},
            ValueError,
            "targets: expected a tensor on cpu, as anchors is",
        ),
        ({"ignore_overlap": 1.5}, ValueError, r"ignore_overlap: expected 0 \.\. 1, got 1.5"),
        ({"valid": torch.ones(1, 3, dtype=torch.bool)}, ValueError, r"valid: expected shape \(1, 85\)"),
        ({"num_classes": 0}, ValueError, "num_classes: expected at least 1, got 0"),
        ({"topk": 0}, ValueError, r"topk: expected 1 \.\. 1000, got 0"),
        ({"topk": 1001}, ValueError, r"topk: expected 1 \.\. 1000, got 1001"),
        ({"contest": "some"}, ValueError, "contest: expected 'takers' or 'all', got 'some'"),
        ({"margin": -1.0}, ValueError, r"margin: expected a number of at least 0, got -1.0"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = dict(
        anchors=detops.grid_anchors(SHAPES, STRIDES), level_sizes=SIZES, targets=(BOXES, LABELS), num_classes=3
    )
    with pytest.raises(error, match=message):
        detops.atss_assign(**good | change)


def test_checked_mode_names_the_box() -> None:
    args: dict[str, Any] = dict(anchors=detops.grid_anchors(SHAPES, STRIDES), level_sizes=SIZES, num_classes=3)
    boxes, labels = torch.tensor([[[0.0, 0, 9, 9]]]), torch.tensor([[3]])
    with detops.checked(), pytest.raises(ValueError, match="labels: sample 0, box 0 has 3, expected a value below 3"):
        detops.atss_assign(targets=(boxes, labels), **args)
    assert detops.atss_assign(targets=(boxes, labels), **args).num_positives == 0
    huge = torch.tensor([[[-1e20, -1e20, 1e20, 1e20]]])
    with detops.checked(), pytest.raises(ValueError, match=r"box 0 has .*, expected an area that float32 holds"):
        detops.atss_assign(targets=(huge, labels * 0), **args)
    assert detops.atss_assign(targets=(huge, labels * 0), **args).num_positives == 0
    boxes = torch.tensor([[[0.0, 0, 9, 9], [5, 8, 3, 9]]])
    message = r"boxes: sample 0, box 1 has \[5.0, 8.0, 3.0, 9.0\], expected x2 >= x1 and y2 >= y1"
    with detops.checked(), pytest.raises(ValueError, match=message):
        detops.atss_assign(targets=(boxes, torch.zeros(1, 2).long()), **args)
    two_and_one = detops.RaggedBatch.from_list([torch.ones(2, 4), torch.ones(1, 4)])
    one_and_two = detops.RaggedBatch.from_list([torch.zeros(1).long(), torch.zeros(2).long()])
    with detops.checked(), pytest.raises(ValueError, match="labels: sample 0 has 1, expected 2, as boxes has"):
        detops.atss_assign(targets=(two_and_one, one_and_two), **args)
    with pytest.raises(ValueError, match="strides: expected 4, one per level, got 1"):
        detops.grid_anchors(SHAPES, [8])


@pytest.mark.parametrize(
    "change",
    [
        dict(anchors=torch.zeros(85, 3)),
        dict(level_sizes=[64]),
        dict(level_sizes=[86, -1]),
        dict(gt_boxes=torch.zeros(2, 5, 3)),
        dict(gt_labels=torch.zeros(2, 4).long()),
        dict(sample_sizes=torch.zeros(3).long()),
        dict(valid=torch.ones(2, 85)),
        dict(valid=torch.ones(2, 84, dtype=torch.bool)),
        dict(topk=0),
        dict(margin=-1.0),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(8), **change)


TAKE: dict[str, str | tuple[str, ...]] = dict(
    anchors="*fp32", boxes="*fp32", labels="*i64", sample_sizes="*i64", valid="*u8", best="*i64", times="*i32",
    exists="*u8", thresholds="*fp32", hulls="*fp32", edges="*i32", A="i32", T="i32", N="i32", C="i32", margin="fp32",
)  # fmt: skip
RULES = dict(LEVELS=5, STRICT=True, ALL_BOXES=True, HAS_SIZES=True, HAS_VALID=True, BLOCK=64, BLOCK_T=128)
KERNELS = [
    Kernel("tiles_kernel",
           dict(anchors="*fp32", hulls="*fp32", edges="*i32", best="*i64", times="*i32", positives="*i64",
                starts=("i32",) * 5, firsts=("i32",) * 5, sizes=("i32",) * 5, A="i32", T="i32"),
           dict(LEVELS=5, ALL_BOXES=True, BLOCK=64), 1),
    Kernel("take_kernel", TAKE, RULES | dict(TOPK=9, SLOTS=64), 1),
    Kernel("take_many_kernel", TAKE, RULES | dict(TOPK=100, SLOTS=512), 8),
    Kernel("contest_kernel",
           dict(anchors="*fp32", boxes="*fp32", exists="*u8", times="*i32", best="*i64", A="i32", N="i32"),
           dict(BLOCK=64), 2),
    Kernel("result_kernel", dict(best="*i64", index="*i64", overlaps="*fp32", positives="*i64", A="i32"), dict(BLOCK=256), 4),
]  # fmt: skip
