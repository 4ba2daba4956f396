"""The op simota_match and simota_assign: every implementation makes the decisions of the definition."""

import math

import pytest
import torch
from ahead_of_time import HAS_TRITON, assert_compiles, for_each_target, needs_triton
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from yolox_scenes import CLASS_TYPES, EXACT, FAST, decided, scene

import detops
from detops.geometry.boxes import to_xyxy
from detops.portable import simota_match as portable_module
from detops.portable.simota_match import simota_match as portable
from detops.reference import simota_match as definition
from detops.reference.simota_match import simota_match as reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
MASTER = (1.5, True, False, 10, 1.0, 3.0, 1.0)
RULES = {"exact": EXACT, "fast": FAST, "master": MASTER, "other numbers": (1.0, False, True, 3, 0.7, 2.0, 0.5)}


def op(*args):
    return torch.ops.detops.simota_match(*args)


def interpreted(*args):
    from detops.kernels.simota_match import simota_match

    return simota_match(*args)


IMPLEMENTATIONS = {"portable": portable, "op": op}
if HAS_TRITON and not torch.cuda.is_available():
    IMPLEMENTATIONS["triton, interpreted"] = interpreted


def check(implementation, args, rule):
    index, iou = implementation(*args, *rule)
    expected, overlap = reference(*args, *rule)
    assert index.dtype == torch.int64
    assert iou.dtype == torch.float32
    assert torch.equal(index, expected)
    torch.testing.assert_close(iou.double(), overlap, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_matches_reference(name):
    slow = "triton" in name

    @settings(max_examples=100 if slow else 200, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([1, 2]),
        boxes=st.sampled_from([0, 1, 2, 5] if slow else [0, 1, 2, 5, 13]),
        classes=st.sampled_from([1, 3, 20]),
        dtype=st.sampled_from(CLASS_TYPES),
        index_dtype=st.sampled_from([torch.int32, torch.int64]),
        odd=st.booleans(),
        coarse=st.booleans(),
        ragged=st.booleans(),
        rule=st.sampled_from(sorted(RULES)),
    )
    def compare(rule, **options):
        args = scene(size=32 if slow else 64, **options)
        assume(decided(*args, RULES[rule], margin=1e-4))
        check(IMPLEMENTATIONS[name], args, RULES[rule])

    compare()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["portable", "op"])
def test_many_boxes(name, rule):
    """Hundreds of boxes; where float32 decides otherwise, the two costs are equal to its rounding."""
    args = scene(3, boxes=300, classes=5, size=128)
    index, _ = IMPLEMENTATIONS[name](*args, *RULES[rule])
    expected, _ = reference(*args, *RULES[rule])
    assert (index >= 0).sum() > 100
    assert (index != expected).sum() <= 0.005 * (expected >= 0).sum()


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
def test_gpu_matches_reference(rule):
    for seed in range(6):
        args = scene(seed, boxes=8, odd=seed % 2 == 1, ragged=seed > 3)
        if not decided(*args, RULES[rule], margin=1e-4):
            continue
        moved = [t.cuda() if isinstance(t, torch.Tensor) else t for t in args]
        moved[0] = [level.cuda() for level in args[0]]
        index, iou = op(*moved, *RULES[rule])
        expected, overlap = reference(*args, *RULES[rule])
        assert torch.equal(index.cpu(), expected)
        torch.testing.assert_close(iou.cpu().double(), overlap, rtol=0, atol=2e-6)


def by_hand():
    """One box of 16 x 16 pixels around cell (1, 1) of a 4 x 4 grid; each prediction is its cell's own square."""
    cells = detops.grid_points([(4, 4)], [8])
    square = torch.cat([cells[:, :2], cells[:, 2:].expand(-1, 2)], 1)
    return dict(
        class_logits=torch.zeros(1, 16, 2), objectness=torch.zeros(1, 16), pred_boxes=to_xyxy(square)[None],
        points=cells, targets=([torch.tensor([[4.0, 4, 20, 20]])], [torch.tensor([1])]),
    )  # fmt: skip


def test_by_hand():
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
    # Of equal cost the lower index comes first: the ten are (1, 1) and the nine lowest of the others.
    assert found.box_index[0].tolist() == [0] * 10 + [-1] * 6
    fewer = detops.simota_assign(**whole, topk=4)
    assert fewer.box_index[0].tolist() == [0, 0, 0, -1, -1, 0] + [-1] * 10
    near = detops.simota_assign(**whole, center_radius=0.6, candidates="own", dynamic_ks_bias=1.1)
    assert near.box_index[0].tolist() == [-1] * 5 + [0] + [-1] * 10


def test_class_cost_by_hand():
    """Two cells that differ in the logit of the label alone; p = sqrt(sigmoid(class) sigmoid(objectness))."""
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


def test_a_contested_cell_goes_to_the_cheapest_of_all_boxes_or_of_its_pickers():
    """Three equal boxes want cell 5; the first fits best by IoU there but is of another class."""
    cells = detops.grid_points([(1, 1)], [8])
    boxes = torch.tensor([[[0.0, 0, 8, 8], [0, 0, 8, 7], [0, 0, 8, 8]]])
    args = dict(class_logits=torch.tensor([[[-9.0, 9.0]]]), objectness=torch.tensor([[9.0]]),
                pred_boxes=torch.tensor([[[0.0, 0, 8, 8]]]), points=cells)  # fmt: skip
    for candidates in ("all", "own"):
        labels = torch.tensor([[0, 1, 0]])
        found = detops.simota_assign(**args, targets=(boxes, labels), candidates=candidates)
        assert found.box_index.tolist() == [[1]]
        assert found.quality.item() == pytest.approx(7 / 8)
        found = detops.simota_assign(**args, targets=(boxes, labels * 0), candidates=candidates)
        assert found.box_index.tolist() == [[0]]  # a tie: the lower index


def test_the_rules_differ_where_super_gradients_differ():
    """A box whose own candidates are few takes others' under the exact rule, and not under the fast one."""
    args = scene(5, batch=1, boxes=12, classes=3)
    exact, _ = op(*args, *EXACT)
    fast, _ = op(*args, *FAST)
    assert not torch.equal(exact, fast)
    own, _ = definition.regions(args[3], args[4][0], args[5][0], 3, 2.5, False)
    for cell in (fast[0] >= 0).nonzero()[:, 0].tolist():
        assert own[fast[0, cell], cell]


@pytest.mark.parametrize("rule", ["exact", "fast"])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_what_takes_nothing(name, rule):
    """Boxes off the image, broken ones and ignored ones leave everything as if they were not there."""
    levels, objectness, pred, cells, gt, labels, _ = scene(7, batch=1, boxes=3, size=32)
    alone, _ = IMPLEMENTATIONS[name](levels, objectness, pred, cells, gt, labels, None, *RULES[rule])
    assert (alone >= 0).any()
    nan, inf = float("nan"), float("inf")
    broken = torch.tensor([[500.0, 500, 10, 10], [16, 16, -1, 5], [nan, 16, 5, 5], [16, 16, inf, 5], [16, 16, 9, 9],
                           [16, 16, 9, 9]])  # fmt: skip
    gt = torch.cat([gt, broken[None]], 1)
    labels = torch.cat([labels, torch.tensor([[0, 0, 0, 0, 4, -1]])], 1)
    index, _ = IMPLEMENTATIONS[name](levels, objectness, pred, cells, gt, labels, None, *RULES[rule])
    assert torch.equal(index, alone)
    none, iou = IMPLEMENTATIONS[name](levels, objectness, pred, cells, gt[:, 3:], labels[:, 3:], None, *RULES[rule])
    assert (none == -1).all()
    assert (iou == 0).all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_extreme_logits_and_empty_batches(name):
    args = scene(8, batch=1, boxes=4, size=32)
    for value in (1e4, -1e4, 60.0, -60.0, 31.0):
        levels = [torch.full_like(level, value) for level in args[0]]
        for objectness in (torch.full_like(args[1], value), torch.full_like(args[1], -value)):
            rest = (levels, objectness, *args[2:])
            assert torch.equal(IMPLEMENTATIONS[name](*rest, *EXACT)[0], reference(*rest, *EXACT)[0])
    index, iou = IMPLEMENTATIONS[name](*scene(9, batch=0, size=32), *EXACT)
    assert index.shape == iou.shape == (0, args[1].shape[1])


def test_zero_size_boxes_match_without_nan():
    args = by_hand() | dict(targets=([torch.tensor([[12.0, 12, 12, 12]])], [torch.tensor([1])]))
    found = detops.simota_assign(**args)
    assert found.num_positives == 1
    assert found.quality.sum() == 0


def test_memory_does_not_grow_with_boxes():
    from detops.apps.bench.runner import peak_extra

    few, many = (
        peak_extra(lambda args=args: op(*args, *EXACT), False)
        for args in (scene(1, batch=1, boxes=1, size=256), scene(1, batch=1, boxes=400, size=256))
    )
    assert 0 <= many - few <= 399 * 10 * 8  # the picks


def test_views_and_chunks(monkeypatch):
    levels, objectness, pred, cells, gt, labels, _ = scene(10, boxes=7)
    expected = reference(levels, objectness, pred, cells, gt, labels, None, *EXACT)[0]
    views = [torch.stack([level, level], -1)[..., 0] for level in levels]
    channels_first = [level.transpose(1, 2).contiguous().transpose(1, 2) for level in levels]
    for logits in (views, channels_first):
        args = (logits, torch.stack([objectness] * 2, 1)[:, 1], torch.stack([pred] * 2)[1], cells, gt, labels, None)
        assert torch.equal(op(*args, *EXACT)[0], expected)
        assert torch.equal(portable(*args, *EXACT)[0], expected)
    one = gt[:1, :1].expand(2, 7, 4)
    assert torch.equal(
        op(levels, objectness, pred, cells, one, labels, None, *EXACT)[0],
        op(levels, objectness, pred, cells, one.clone(), labels, None, *EXACT)[0],
    )
    monkeypatch.setattr(portable_module, "CHUNK_VALUES", 1)
    assert torch.equal(portable(levels, objectness, pred, cells, gt, labels, None, *EXACT)[0], expected)


def test_any_number_of_threads_gives_the_same():
    args = scene(11, boxes=40, size=128, coarse=True)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(op(*args, *EXACT))
    finally:
        torch.set_num_threads(before)
    for index, iou in found[1:]:
        assert torch.equal(index, found[0][0])
        assert torch.equal(iou, found[0][1])


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    for rule, options in ((EXACT, {}), (FAST, {"ragged": True, "boxes": 0})):
        args = [t.to(device) if isinstance(t, torch.Tensor) else t for t in scene(12, size=32, **options)]
        args[0] = [level.to(device) for level in args[0]]
        torch.library.opcheck(torch.ops.detops.simota_match.default, (*args, *rule))


@pytest.mark.parametrize("device", DEVICES)
def test_no_host_sync_and_compiles_whole(device):
    levels, objectness, pred, cells, gt, labels, _ = scene(13, size=32)
    args = [t.to(device) for t in (torch.cat(levels, 1), objectness, to_xyxy(pred), cells, to_xyxy(gt), labels)]

    def assign(*args):
        return detops.simota_assign(*args[:4], args[4:])

    assert detops.count_syncs(assign, *args) == 0
    with FakeTensorMode() as mode:
        found = assign(*(mode.from_tensor(t) for t in args))
        assert found.box_index.shape == objectness.shape
    compiled = torch.compile(assign, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(compiled(*args), assign(*args), strict=True):
        assert torch.equal(mine, theirs)


def test_nothing_is_differentiated():
    args = by_hand()
    args["class_logits"].requires_grad_()
    assert not detops.simota_assign(**args).quality.requires_grad


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"objectness": torch.zeros(16)}, ValueError, r"objectness: expected shape \(B, A\), got \(16,\)"),
        ({"class_logits": torch.zeros(1, 9, 2)}, ValueError, "class_logits: expected 16 points, as objectness has, got 9"),
        ({"class_logits": []}, ValueError, "class_logits: expected at least one level"),
        ({"pred_boxes": torch.zeros(1, 16, 3)}, ValueError, r"pred_boxes: expected shape \(1, 16, 4\)"),
        ({"points": torch.zeros(16, 2)}, ValueError, r"points: expected shape \(16, 3\)"),
        ({"targets": ([torch.zeros(1, 4)], [torch.zeros(1)])}, TypeError, "labels: expected integers, got float32"),
        ({"targets": ([torch.zeros(1, 4)], [torch.zeros(2).long()])}, ValueError, "labels: sample 0 has 2, expected 1, as boxes"),
        ({"targets": ([torch.zeros(1, 4)] * 2, [torch.zeros(1).long()] * 2)}, ValueError,
         "targets: expected 1 images, as objectness has, got 2"),
        ({"candidates": "some"}, ValueError, "candidates: expected 'all' or 'own', got 'some'"),
        ({"region": "box"}, ValueError, "region: expected 'box_or_center' or 'center', got 'box'"),
        ({"topk": 0}, ValueError, r"topk: expected 1 \.\. 1000, got 0"),
        ({"dynamic_ks_bias": -1.0}, ValueError, r"dynamic_ks_bias: expected 0 \.\. 1000, got -1.0"),
        ({"center_radius": float("nan")}, ValueError, "center_radius: expected at least 0, got nan"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        detops.simota_assign(**by_hand() | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (([4.0, 4, 20, 20], 2), "labels: sample 0, box 0 has 2, expected a value below 2"),
        (([9.0, 0, 4, 4], 1), "boxes: sample 0, box 0 .* expected x2 >= x1 and y2 >= y1"),
        (([0.0, 0, float("nan"), 4], 1), "boxes: sample 0, box 0 .* expected finite numbers"),
    ],
)
def test_checked_mode_names_the_box(change, message):
    boxes = [torch.tensor([change[0]])]
    args = by_hand() | dict(targets=(boxes, [torch.tensor([change[1]])]))
    assert detops.simota_assign(**args).num_positives == 0
    with detops.checked(), pytest.raises(ValueError, match=message):
        detops.simota_assign(**args)
    ignored = args | dict(targets=(boxes, [torch.tensor([-1])]))
    with detops.checked():
        assert detops.simota_assign(**ignored).num_positives == 0


@needs_triton
@for_each_target
def test_compiles_ahead_of_time(target):
    boxes = dict(objectness="*fp32", cells="*fp32", boxes="*fp32")
    sides = dict(stride_b="i32", stride_r="i32", stride_c="i32")
    cells = dict(logits="*fp16", **sides, **boxes, candidate="*u8", total="*fp32", start="i32", R="i32", C="i32", A="i32",
                 N="i32", radius="fp32")  # fmt: skip
    three = ("i32",) * 3
    pick = dict(levels=("*fp16",) * 3, strides_b=three, strides_r=three, strides_c=three, starts=three, rows=three,
                **boxes, pred="*fp32", candidate="*u8", total="*fp32", present="*u8", times="*i32", taken="*i64", A="i32",
                N="i32", radius="fp32", k_scale="fp32", iou_weight="fp32", class_weight="fp32")  # fmt: skip
    resolve = dict(logits="*fp16", **sides, **boxes, pred="*fp32", present="*u8", times="*i32", taken="*i64",
                   index="*i64", matched="*fp32", start="i32", R="i32", A="i32", N="i32", radius="fp32",
                   iou_weight="fp32", class_weight="fp32")  # fmt: skip
    cases = [
        ("cells_kernel", cells, dict(CENTER_ONLY=False, BLOCK=32, BLOCK_C=128), 4),
        ("pick_kernel", pick, dict(LEVELS=3, CENTER_ONLY=False, OWN=True, TOPK=10, MOST=11, BLOCK=256), 4),
        ("resolve_kernel", resolve, dict(CENTER_ONLY=False, OWN=False, BLOCK=32), 1),
    ]
    assert_compiles("simota_match", cases, target)
