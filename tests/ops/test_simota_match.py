"""The op simota_match and simota_assign: every form makes the decisions of the definition."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import assume, given
from hypothesis import strategies as st
from op import (
    DTYPES,
    HAS_TRITON,
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
from yolox_scenes import EXACT, FAST, Rule, YoloxScene, decided, raw_outputs, yolox_scene

import detops
from detops.geometry.boxes import boxes_at_points, to_cxcywh, to_xyxy
from detops.portable import _search
from detops.reference import simota_match as definition

op = Op("simota_match")

MASTER: Rule = (1.5, True, False, 10, 1.0, 3.0, 1.0)
RULES: dict[str, Rule] = {
    "exact": EXACT,
    "fast": FAST,
    "master": MASTER,
    "other numbers": (1.0, False, True, 3, 0.7, 2.0, 0.5),
    "few at the centre": (0.4, False, False, 10, 1.0, 3.0, 1.0),
}


def check(form: Form, args: YoloxScene, rule: Rule, device: str = "cpu") -> None:
    index, iou, positives = moved(form(*moved(args, device), *rule), "cpu")
    expected, overlap, count = op.reference(*args, *rule)
    assert index.dtype == torch.int64
    assert iou.dtype == torch.float32
    assert torch.equal(index, expected)
    torch.testing.assert_close(iou.double(), overlap, rtol=0, atol=2e-6)
    assert torch.equal(positives, count)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(200)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([1, 2]),
        boxes=st.sampled_from([0, 1, 2, 5] if form.interpreted else [0, 1, 2, 5, 13]),
        classes=st.sampled_from([1, 3, 20]),
        dtype=st.sampled_from(DTYPES),
        index_dtype=st.sampled_from([torch.int32, torch.int64]),
        odd=st.booleans(),
        coarse=st.booleans(),
        ragged=st.booleans(),
        rule=st.sampled_from(sorted(RULES)),
    )
    def compare(rule: str, **options: Any) -> None:
        args = yolox_scene(size=32 if form.interpreted else 64, **options)
        assume(decided(*args, RULES[rule], margin=1e-4))
        check(form, args, RULES[rule])

    compare()


@op.for_each_form
def test_raw_outputs_and_corners_match_reference(form: Form) -> None:
    """Predictions that are read from a network's raw outputs, and boxes given as corners."""

    @form.examples(60)
    @given(
        seed=st.integers(0, 10**6),
        boxes=st.sampled_from([0, 1, 5]),
        classes=st.sampled_from([1, 3, 20]),
        dtype=st.sampled_from(DTYPES),
        odd=st.booleans(),
        ragged=st.booleans(),
        channels_first=st.booleans(),
        rule=st.sampled_from(sorted(RULES)),
    )
    def compare(rule: str, dtype: torch.dtype, channels_first: bool, **options: Any) -> None:
        levels, objectness, pred, cells, gt, labels, sizes = yolox_scene(size=32 if form.interpreted else 64, **options)
        outputs = raw_outputs(levels, objectness, pred, cells, dtype)
        if channels_first:
            outputs = [output.transpose(1, 2).contiguous().transpose(1, 2) for output in outputs]
        raw = torch.cat(outputs, 1).float()
        plain = [output[..., 5:] for output in outputs], raw[..., 4], boxes_at_points(raw, cells)
        corners = to_xyxy(gt)
        assume(decided(*plain, cells, to_cxcywh(corners), labels, sizes, RULES[rule], margin=1e-4))
        index, iou, positives = form(outputs, None, None, cells, corners, labels, sizes, *RULES[rule], False)
        for args in (
            (*plain, cells, to_cxcywh(corners), labels, sizes),
            (outputs, None, None, cells, corners, labels, sizes),
        ):
            expected, overlap, count = op.reference(*args, *RULES[rule], args[1] is not None)
            assert torch.equal(index, expected)
            torch.testing.assert_close(iou.double(), overlap, rtol=0, atol=2e-6)
            assert positives == count

    compare()


@op.for_each_form
@pytest.mark.parametrize("rule", ["exact", "fast"])
def test_boxes_of_several_tiles(form: Form, rule: str) -> None:
    """More cells than the Triton kernels look at together."""
    args = yolox_scene(4, batch=1, boxes=3, size=96)
    assert decided(*args, RULES[rule], margin=1e-4)
    check(form, args, RULES[rule])


@op.for_each_form
def test_cheap_cells_far_from_a_box(form: Form) -> None:
    """The cells around a small box, but for the best, say that it is of another class: it picks some further away."""
    cells, small = detops.grid_points([(16, 16)], [8]), torch.tensor([4.0, 4, 6, 6])
    pred = torch.cat([cells[:, :2], torch.full((256, 2), 6.0)], 1)[None]
    logits = torch.zeros(1, 256, 2)
    pred[0, :5], logits[0, :32, 0] = small, -200.0
    logits[0, :, 1] = torch.linspace(-8, -1, 256)
    gt = torch.stack([small, torch.tensor([100.0, 100, 20, 20])])[None]
    args = ([logits], torch.zeros(1, 256), pred, cells, gt, torch.tensor([[0, 1]]), None)
    check(form, args, EXACT)
    index, *_ = form(*args, *EXACT)
    assert (index[0] == 0).nonzero()[:, 0].tolist() == [0, 32, 33]


@op.for_each_form
def test_a_prediction_whose_centre_is_nan_overlaps_nothing(form: Form) -> None:
    args = yolox_scene(3, batch=1, boxes=3)
    args[2][0, ::3, 0] = float("nan")
    args[2][0, 1::9, 1] = float("nan")
    assert decided(*args, EXACT, margin=1e-4)
    check(form, args, EXACT)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs triton's interpreter")
@pytest.mark.parametrize("own", [False, True])
def test_boxes_that_pick_more_than_a_program_keeps(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from detops.kernels import simota_match as kernels

    args = yolox_scene(37, batch=1, boxes=2)
    near = args[4][:, :1].expand(1, 84, 4) + torch.rand(1, 84, 4, generator=torch.Generator().manual_seed(0))
    args = (*args[:2], near, *args[3:])
    rule = (2.5, False, own, 60, 1.0, 3.0, 1.0)
    assert decided(*args, rule, margin=1e-4)
    assert (op.reference(*args, *rule)[0] == 0).sum() > 32
    monkeypatch.setattr(kernels, "MOST_SLOTS", 32)
    for listed in (1000, 4):
        monkeypatch.setattr(kernels, "MOST_LISTED", listed)
        check(op.kernels[1], args, rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", [op.portable, op], ids=str)
def test_many_boxes(form: Form, rule: str) -> None:
    """Hundreds of boxes; if float32 decides otherwise, the two costs are equal up to its rounding."""
    args = yolox_scene(3, boxes=300, classes=5, size=128)
    index, *_ = form(*args, *RULES[rule])
    expected, *_ = op.reference(*args, *RULES[rule])
    assert (index >= 0).sum() > 100
    assert (index != expected).sum() <= 0.005 * (expected >= 0).sum()


@pytest.mark.parametrize("weights", [(3.0, 1.0), (0.0, 1.0), (0.1, 5.0), (3.0, 0.0), (-1.0, 1.0)])
@pytest.mark.parametrize("form", [op.portable, op], ids=str)
def test_boxes_that_pick_beyond_their_best(form: Form, weights: tuple[float, float]) -> None:
    """Small boxes, whose best candidates are few, and large predictions: most picks are of cells far and wide."""
    g = torch.Generator().manual_seed(0)
    levels, objectness, pred, cells, gt, labels, sizes = yolox_scene(0, boxes=20, classes=3, size=160)
    gt[..., 2:] = 2 + 6 * torch.rand(gt[..., 2:].shape, generator=g)
    pred[..., 2:] = 100 + 60 * torch.rand(pred[..., 2:].shape, generator=g)
    levels[0][0, ::7, 0] = math.nan
    rule = (2.5, False, False, 10, 1e3, *weights)
    args = levels, objectness, pred, cells, gt, labels, sizes
    index, *_ = form(*args, *rule)
    expected, *_ = op.reference(*args, *rule)
    _, best = definition.regions(cells, gt[1], labels[1], 3, *rule[:2])
    assert (expected[1] >= 0).sum() > 1.5 * best.any(0).sum()
    assert (index != expected).sum() <= 0.005 * (expected >= 0).sum()


@pytest.mark.parametrize("k_scale", [30.0, 1000.0])
@pytest.mark.parametrize("center_only", [False, True])
def test_small_boxes_on_a_wide_map(center_only: bool, k_scale: float) -> None:
    """Rows of many cells: those at a region's border, and those whose predictions hardly touch the box, or do not."""
    g = torch.Generator().manual_seed(1)
    levels, objectness, pred, cells, gt, labels, _ = yolox_scene(1, batch=3, boxes=20, classes=2, size=256)
    square = torch.cat([cells[:, :2], cells[:, 2:].expand(-1, 2)], 1)
    gt[..., 2:] = 4 + 12 * torch.rand(gt[..., 2:].shape, generator=g)
    pred = square + 6 * torch.randn(pred.shape, generator=g) * torch.tensor([1, 1, 0, 0])
    rule = (2.5, center_only, False, 1000, k_scale, 3.0, 1.0)
    args = levels, objectness, pred, cells, gt, labels, None
    index, iou, _ = op(*args, *rule)
    expected, overlap, _ = op.reference(*args, *rule)
    assert (expected >= 0).sum() > 300
    assert (index != expected).sum() <= 2
    assert ((iou - overlap).abs() > 1e-5).sum() <= 2


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
def test_gpu_matches_reference(rule: str) -> None:
    compared = 0
    for seed in range(6):
        args = yolox_scene(seed, boxes=8, odd=seed % 2 == 1, ragged=seed > 3)
        if decided(*args, RULES[rule], margin=1e-4):
            check(op, args, RULES[rule], "cuda")
            compared += 1
    assert compared >= 2


def by_hand(box: Sequence[float] = (4, 4, 20, 20), label: int = 1) -> dict[str, Any]:
    """One box of 16 x 16 pixels around cell (1, 1) of a 4 x 4 grid; each prediction is its cell's own square."""
    points = detops.grid_points([(4, 4)], [8])
    square = torch.cat([points[:, :2], points[:, 2:].expand(-1, 2)], 1)
    return dict(
        class_logits=torch.zeros(1, 16, 2), objectness=torch.zeros(1, 16), pred_boxes=to_xyxy(square)[None],
        points=points, targets=([torch.tensor([box], dtype=torch.float32)], [torch.tensor([label])]),
    )  # fmt: skip


def test_by_hand() -> None:
    """IoUs: 1/4 for the cell in the middle, 1/10 for four, 1/4 of that area for the corners; their sum is below 1."""
    found = detops.simota_assign(**by_hand())
    assert found.box_index[0].tolist() == [-1] * 5 + [0] + [-1] * 10
    assert found.labels[0, 5] == 1
    assert found.quality[0, 5] == 0.25
    assert found.num_positives == 1
    # The whole box from every cell: nine IoUs of 1 and then seven more, of which ten count.
    whole = by_hand() | dict(pred_boxes=torch.tensor([4.0, 4, 20, 20]).expand(1, 16, 4))
    found = detops.simota_assign(**whole)
    assert found.num_positives == 10
    # Strictly within the box are the middles 4 < x, y < 20: only cell (1, 1); within 2.5 cells all but the far corner's.
    assert (found.quality[found.box_index >= 0] == 1).all()
    assert found.box_index[0, 5] == 0
    # At equal cost the lower index comes first: the ten are (1, 1) and the nine lowest of the others.
    assert found.box_index[0].tolist() == [0] * 10 + [-1] * 6
    fewer = detops.simota_assign(**whole, topk=4)
    assert fewer.box_index[0].tolist() == [0, 0, 0, -1, -1, 0] + [-1] * 10
    near = detops.simota_assign(**whole, center_radius=0.6, candidates="own", dynamic_ks_bias=1.1)
    assert near.box_index[0].tolist() == [-1] * 5 + [0] + [-1] * 10


def test_class_cost_by_hand() -> None:
    """Two cells that differ only in the logit of the label; p = sqrt(sigmoid(class) sigmoid(objectness))."""
    args = by_hand()
    args["pred_boxes"] = torch.tensor([4.0, 4, 20, 20]).expand(1, 16, 4)
    args["class_logits"][0, 14, 1] = 1.0
    args["class_logits"][0, 15, 0] = 1.0
    found = detops.simota_assign(**args, topk=2, center_radius=5.0)  # cell 5 is in the box, then the cheapest other
    assert found.box_index[0].tolist() == [-1] * 5 + [0] + [-1] * 8 + [0, -1]
    p = math.sqrt(0.5 / (1 + math.exp(-1.0)))
    logits, objectness = args["class_logits"][0, 14:15], torch.zeros(1)
    cost = definition.costs(logits, objectness, torch.tensor([1]), torch.ones(1, 1), 3.0, 1.0)
    assert cost.item() == pytest.approx(-math.log(p) - math.log(1 - 0.5), abs=1e-6)


def test_a_contested_cell_goes_to_the_cheapest_of_all_boxes_or_of_its_pickers() -> None:
    """Three equal boxes pick cell 5; the first has the best IoU there, but another class."""
    boxes, labels = torch.tensor([[[0.0, 0, 8, 8], [0, 0, 8, 7], [0, 0, 8, 8]]]), torch.tensor([[0, 1, 0]])
    args: dict[str, Any] = dict(
        class_logits=torch.tensor([[[-9.0, 9.0]]]), objectness=torch.tensor([[9.0]]),
        pred_boxes=torch.tensor([[[0.0, 0, 8, 8]]]), points=detops.grid_points([(1, 1)], [8]),
    )  # fmt: skip
    for candidates in ("all", "own"):
        found = detops.simota_assign(**args, targets=(boxes, labels), candidates=candidates)
        assert found.box_index.tolist() == [[1]]
        assert found.quality.item() == pytest.approx(7 / 8)
        found = detops.simota_assign(**args, targets=(boxes, labels * 0), candidates=candidates)
        assert found.box_index.tolist() == [[0]]  # a tie: the lower index


def test_the_rules_differ_where_super_gradients_differ() -> None:
    """A box with few own candidates also picks others' under the exact rule, but not under the fast one."""
    args = yolox_scene(5, batch=1, boxes=12, classes=3)
    exact, *_ = op(*args, *EXACT)
    fast, *_ = op(*args, *FAST)
    assert not torch.equal(exact, fast)
    own, _ = definition.regions(args[3], args[4][0], args[5][0], 3, 2.5, False)
    cells = (fast[0] >= 0).nonzero()[:, 0]
    assert len(cells) > 10
    assert own[fast[0, cells], cells].all()


@op.for_each_form
def test_extreme_logits(form: Form) -> None:
    args = yolox_scene(8, batch=1, boxes=4, size=32)
    for value in (1e4, -1e4, 60.0, -60.0, 31.0):
        levels = [torch.full_like(level, value) for level in args[0]]
        for objectness in (torch.full_like(args[1], value), torch.full_like(args[1], -value)):
            rest = (levels, objectness, *args[2:])
            assert torch.equal(form(*rest, *EXACT)[0], op.reference(*rest, *EXACT)[0])


def test_nothing_is_differentiated() -> None:
    args = by_hand()
    args["class_logits"].requires_grad_()
    assert not detops.simota_assign(**args).quality.requires_grad


def test_memory_does_not_grow_with_boxes() -> None:
    from detops.apps.bench.runner import peak_extra

    few, many = (yolox_scene(1, batch=1, boxes=boxes, size=256) for boxes in (1, 400))
    most = peak_extra(lambda: op(*many, *EXACT), False) - peak_extra(lambda: op(*few, *EXACT), False)
    assert 0 <= most <= 399 * 10 * 8  # the picks


def test_views_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    levels, objectness, pred, cells, gt, labels, _ = yolox_scene(10, boxes=7)
    expected = op.reference(levels, objectness, pred, cells, gt, labels, None, *EXACT)[0]
    views = [torch.stack([level, level], -1)[..., 0] for level in levels]
    channels_first = [level.transpose(1, 2).contiguous().transpose(1, 2) for level in levels]
    for logits in (views, channels_first):
        args = (logits, torch.stack([objectness] * 2, 1)[:, 1], torch.stack([pred] * 2)[1], cells, gt, labels, None)
        assert torch.equal(op(*args, *EXACT)[0], expected)
        assert torch.equal(op.portable(*args, *EXACT)[0], expected)
    one = gt[:1, :1].expand(2, 7, 4)
    assert torch.equal(
        op(levels, objectness, pred, cells, one, labels, None, *EXACT)[0],
        op(levels, objectness, pred, cells, one.clone(), labels, None, *EXACT)[0],
    )
    monkeypatch.setattr(_search, "CHUNK_VALUES", 1)
    assert torch.equal(op.portable(levels, objectness, pred, cells, gt, labels, None, *EXACT)[0], expected)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = yolox_scene(11, boxes=40, size=128, coarse=True)
    assert_same_bits_for_any_threads(lambda: op(*args, *EXACT))


@for_each_device
@pytest.mark.parametrize(("rule", "options"), [("exact", {}), ("fast", {"ragged": True, "boxes": 0})])
def test_opcheck(device: str, rule: str, options: dict[str, Any]) -> None:
    args = yolox_scene(12, size=32, **options)
    op.check(*moved(args, device), *RULES[rule])
    op.check(*moved((raw_outputs(*args[:4]), None, None, *args[3:]), device), *RULES[rule], False)


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    def assign(
        logits: list[Tensor], objectness: Tensor, pred: Tensor, points: Tensor, boxes: Tensor, labels: Tensor
    ) -> detops.Assignment:
        return detops.simota_assign(logits, objectness, pred, points, (boxes, labels))

    def arguments(boxes: int) -> tuple[Any, ...]:
        levels, objectness, pred, points, gt, labels, _ = yolox_scene(13, boxes=boxes, size=32)
        return moved((levels, objectness, to_xyxy(pred), points, to_xyxy(gt), labels), device)

    args = arguments(5)
    assert assert_no_syncs(assign, *args).box_index.shape == args[1].shape
    assert assert_no_syncs(op.portable, *moved(yolox_scene(13, size=32), device), *EXACT)[0].shape == args[1].shape
    assert_compiles_whole(assign, args, arguments(8))


@pytest.mark.parametrize("rule", ["exact", "fast"])
@op.for_each_form
def test_what_takes_nothing(form: Form, rule: str) -> None:
    """Boxes off the image, invalid ones and ignored ones do not change the result."""
    levels, objectness, pred, cells, gt, labels, _ = yolox_scene(7, batch=1, boxes=3, size=32)
    alone, *_ = form(levels, objectness, pred, cells, gt, labels, None, *RULES[rule])
    assert (alone >= 0).any()
    nan, inf = float("nan"), float("inf")
    broken = torch.tensor([[500.0, 500, 10, 10], [16, 16, -1, 5], [nan, 16, 5, 5], [16, 16, inf, 5], [16, 16, 9, 9],
                           [16, 16, 9, 9]])  # fmt: skip
    gt = torch.cat([gt, broken[None]], 1)
    labels = torch.cat([labels, torch.tensor([[0, 0, 0, 0, 4, -1]])], 1)
    index, *_ = form(levels, objectness, pred, cells, gt, labels, None, *RULES[rule])
    assert torch.equal(index, alone)
    none, iou, positives = form(levels, objectness, pred, cells, gt[:, 3:], labels[:, 3:], None, *RULES[rule])
    assert (none == -1).all()
    assert (iou == 0).all()
    assert positives == 0


def test_zero_size_boxes_match_without_nan() -> None:
    found = detops.simota_assign(**by_hand((12, 12, 12, 12)))
    assert found.num_positives == 1
    assert found.quality.sum() == 0


@op.for_each_form
@pytest.mark.parametrize("options", [{"batch": 0}, {"boxes": 0}], ids=str)
def test_empty(form: Form, options: dict[str, Any]) -> None:
    args = yolox_scene(9, size=32, **options)
    index, iou, positives = form(*args, *EXACT)
    assert index.shape == iou.shape == args[1].shape
    assert (index == -1).all()
    assert not iou.any()
    assert positives.dtype == torch.int64
    assert positives.tolist() == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"objectness": torch.zeros(16)}, ValueError, r"objectness: expected shape \(B, A\), got \(16,\)"),
        ({"class_logits": torch.zeros(1, 9, 2)}, ValueError, "class_logits: expected 16 points, as objectness has, got 9"),
        ({"class_logits": []}, ValueError, "class_logits: expected at least one level"),
        ({"pred_boxes": torch.zeros(1, 16, 3)}, ValueError, r"pred_boxes: expected shape \(1, 16, 4\)"),
        ({"points": torch.zeros(16, 2)}, ValueError, r"points: expected shape \(16, 3\)"),
        ({"targets": ([torch.zeros(1, 4)], [torch.zeros(1)])}, TypeError, "labels: expected integers, got float32"),
        ({"targets": ([torch.zeros(1, 4)], [torch.zeros(2).long()])}, ValueError,
         r"labels: sample 0 has 2, expected 1, as boxes has"),
        ({"targets": ([torch.zeros(1, 4)] * 2, [torch.zeros(1).long()] * 2)}, ValueError,
         "targets: expected 1 images, as objectness has, got 2"),
        ({"candidates": "some"}, ValueError, "candidates: expected 'all' or 'own', got 'some'"),
        ({"region": "box"}, ValueError, "region: expected 'box_or_center' or 'center', got 'box'"),
        ({"topk": 0}, ValueError, r"topk: expected 1 \.\. 1000, got 0"),
        ({"dynamic_ks_bias": -1.0}, ValueError, r"dynamic_ks_bias: expected 0 \.\. 1000, got -1.0"),
        ({"center_radius": float("nan")}, ValueError, "center_radius: expected at least 0, got nan"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        detops.simota_assign(**by_hand() | change)


@pytest.mark.parametrize(
    ("label", "box", "message"),
    [
        (2, (4, 4, 20, 20), "labels: sample 0, box 0 has 2, expected a value below 2"),
        (1, (9, 0, 4, 4), "boxes: sample 0, box 0 .* expected x2 >= x1 and y2 >= y1"),
        (1, (0, 0, float("nan"), 4), "boxes: sample 0, box 0 .* expected finite numbers"),
    ],
)
def test_checked_mode_names_the_box(label: int, box: Sequence[float], message: str) -> None:
    args = by_hand(box, label)
    assert detops.simota_assign(**args).num_positives == 0
    with detops.checked(), pytest.raises(ValueError, match=message):
        detops.simota_assign(**args)
    with detops.checked():
        assert detops.simota_assign(**by_hand(box, -1)).num_positives == 0


@pytest.mark.parametrize(
    "change",
    [
        dict(outputs=[]),
        dict(outputs=[torch.zeros(2, 21, 4), torch.zeros(2, 0, 5)]),
        dict(objectness=torch.zeros(21)),
        dict(objectness=None),
        dict(pred_boxes=torch.zeros(2, 21, 3)),
        dict(cells=torch.zeros(21, 2)),
        dict(gt_boxes=torch.zeros(1, 5, 4)),
        dict(gt_labels=torch.zeros(2, 4).long()),
        dict(sample_sizes=torch.zeros(3).long()),
        dict(topk=0),
        dict(k_scale=-1.0),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses((*yolox_scene(14, size=32), *EXACT), **change)


def _kernels() -> list[Kernel]:
    three = ("i32",) * 3
    levels: dict[str, str | tuple[str, ...]] = dict(
        levels=("*fp16",) * 3, strides_b=three, strides_r=three, strides_c=three, starts=three, rows=three,
        objectness="*fp32", pred="*fp32", cells="*fp32", boxes="*fp32", counts="*i32", times="*i32", taken="*i64",
        A="i32", N="i32", radius="fp32",
    )  # fmt: skip
    boxes = dict(given="*fp32", labels="*i64", sample_sizes="*i64", boxes="*fp32", counts="*i32", positives="*i64",
                 C="i32", N="i32")  # fmt: skip
    tiles: dict[str, str | tuple[str, ...]] = dict(
        firsts=three,
        listed="*i32",
        hulls="*fp32",
        edges="*i32",
        candidate="*u8",
        total="*fp32",
        C="i32",
        T="i32",
        cap="i32",
    )
    costs = dict(iou_weight="fp32", class_weight="fp32")
    pick = levels | tiles | costs | dict(most="i32", k_scale="fp32")
    resolve = levels | costs | dict(index="*i64", matched="*fp32", positives="*i64")
    rule: dict[str, object] = dict(LEVELS=3, CENTER_ONLY=False)
    tiles_of = rule | dict(RAW=True, BLOCK=32, BLOCK_T=64)
    return [
        Kernel("boxes_kernel", boxes, dict(HAS_SIZES=True, CXCYWH=False, BLOCK=128), 1),
        Kernel("cells_kernel", levels | tiles, dict(rule, TOGETHER=True, RAW=True, BLOCK=32, BLOCK_N=64, BLOCK_C=8), 1),
        Kernel("pick_kernel", pick, tiles_of | dict(OWN=False, TOPK=10, TOP_SLOTS=32, SLOTS=32), 1),
        Kernel("pick_kernel", pick, tiles_of | dict(OWN=True, TOPK=10, TOP_SLOTS=32, SLOTS=32), 1),
        Kernel("pick_kernel", pick, tiles_of | dict(OWN=False, TOPK=100, TOP_SLOTS=128, SLOTS=64), 1),
        Kernel("resolve_kernel", resolve, dict(rule, OWN=False, RAW=True, BLOCK=32, BLOCK_N=64), 1),
    ]


KERNELS = _kernels()
