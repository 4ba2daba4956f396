"""The op tal_match and tal_assign: every form makes the decisions of the definition."""

from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from aligned_scenes import AlignedScene, aligned_scene, decided, numbers
from hypothesis import assume, given
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
from detops.assign.tal import RULES, TalRule
from detops.portable import _search

op = Op("tal_match")

ALL_RULES: dict[str, TalRule] = RULES | {
    "small boxes": TalRule(0.5, 6.0, 3, overlap="ciou", contest="all", min_side=1.0),
    "other numbers": TalRule(0.7, 2.0, 4, candidates="all", fallback=True, reach=3.0, margin=1.0),
    "class alone": TalRule(1.0, 0.0, 5, contest="takers"),
    "one to one": RULES["yolov8"]._replace(topk=1),
}


def check(form: Form, scene: AlignedScene, rule: TalRule, device: str = "cpu") -> None:
    index, quality = moved(form(*moved(scene, device), *numbers(rule)), "cpu")
    expected, target = op.reference(*scene, *numbers(rule))
    assert index.dtype == torch.int64
    assert quality.dtype == torch.float32
    assert torch.equal(index, expected)
    torch.testing.assert_close(quality.double(), target, rtol=0, atol=2e-5)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(120)
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
        masked=st.booleans(),
        rule=st.sampled_from(sorted(ALL_RULES)),
    )
    def compare(rule: str, **options: Any) -> None:
        scene = aligned_scene(size=32 if form.interpreted else 64, **options)
        assume(decided(scene, ALL_RULES[rule]))
        check(form, scene, ALL_RULES[rule])

    compare()


@op.for_each_form
@pytest.mark.parametrize("rule", ["ppyoloe", "small boxes", "other numbers"])
def test_points_of_several_tiles(form: Form, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More points than the Triton kernel looks at together, and more tiles."""
    if form.interpreted:
        monkeypatch.setattr("detops.kernels.tal_match.BLOCK_REACH", 4)
    scene = aligned_scene(3, batch=1, boxes=3, size=128)
    assert decided(scene, ALL_RULES[rule])
    check(form, scene, ALL_RULES[rule])


@op.for_each_form
def test_a_box_without_points_takes_the_best_of_all(form: Form) -> None:
    scene = aligned_scene(3, batch=1, boxes=3, size=128)
    scene.gt_boxes[0, 1] = torch.tensor([-40.0, -40, -20, -20])
    scene.pred_boxes[0, 200] = scene.gt_boxes[0, 1] + 1
    rule = RULES["ppyoloe"]._replace(fallback=True)
    assert decided(scene, rule)
    check(form, scene, rule)
    index, _ = form(*scene, *numbers(rule))
    assert (index[0] == 1).nonzero()[:, 0].tolist() == [200]


@pytest.mark.parametrize("rule", ALL_RULES)
@pytest.mark.parametrize("form", [op.portable, op], ids=str)
def test_many_boxes(form: Form, rule: str) -> None:
    """Hundreds of boxes; where float32 decides otherwise, what is compared is equal to its rounding."""
    scene = aligned_scene(3, boxes=150, classes=5, size=128)
    index, quality = form(*scene, *numbers(ALL_RULES[rule]))
    expected, target = op.reference(*scene, *numbers(ALL_RULES[rule]))
    assert (index >= 0).sum() > 50
    assert (index != expected).sum() <= 0.005 * (expected >= 0).sum()
    assert ((quality - target).abs() > 1e-4).sum() <= 0.01 * (expected >= 0).sum()


@pytest.mark.gpu
@pytest.mark.parametrize("rule", ALL_RULES)
def test_gpu_matches_reference(rule: str) -> None:
    compared = 0
    for seed in range(8):
        scene = aligned_scene(seed, boxes=6, odd=seed % 2 == 1, ragged=seed > 3, masked=seed > 5)
        if decided(scene, ALL_RULES[rule]):
            check(op, scene, ALL_RULES[rule], "cuda")
            compared += 1
    assert compared >= 2


def by_hand() -> dict[str, Any]:
    """Six points, four boxes; two contain point 4, and a third fits it better."""
    x, y = torch.meshgrid(torch.tensor([8.0, 24, 40]), torch.tensor([8.0, 24]), indexing="xy")
    points = torch.stack([x.flatten(), y.flatten(), torch.full((6,), 16.0)], 1)
    boxes = torch.tensor([[[3.0, 22, 31, 28], [21, 20, 28, 31], [31, 4, 42, 34], [25, 12, 31, 25]]])
    pred = [[-2, -3, 16, 21], [13, -6, 37, 24], [22, 3, 50, 22], [-8, 16, 12, 34], [18, 11, 33, 30], [34, 11, 54, 36]]
    logits = torch.tensor([[[-2.5, -1], [-0.5, 0], [-2, 0], [1, 1], [0, 0], [-1, 0.5]]])
    return dict(class_logits=logits, pred_boxes=torch.tensor([pred], dtype=torch.float32), points=points,
                targets=(boxes, torch.tensor([[0, 1, 1, 0]])))  # fmt: skip


BY_HAND = {
    "ppyoloe": ([-1, -1, 2, 0, 3, 2], [0, 0, 0.298192, 0.113853, 0.273683, 0.281946]),
    "tood": ([-1, -1, 2, 0, 1, 2], [0, 0, 0.298108, 0.107216, 0.239474, 0.281867]),
    "yolov9": ([-1, -1, 2, -1, 3, 2], [0, 0, 0.245008, 0, 0.255512, 0.203254]),
    "yolov8": ([-1, -1, 2, -1, 1, 2], [0, 0, 0.245008, 0, 0.198099, 0.203254]),
}


@op.for_each_form
@pytest.mark.parametrize("rule", BY_HAND)
def test_values_of_the_originals(form: Form, rule: Any) -> None:
    """What super-gradients, MMDetection and LibreYOLO return for one scene."""
    args, (index, quality) = by_hand(), BY_HAND[rule]
    boxes, labels = args["targets"]
    numbers_ = numbers(RULES[rule]._replace(topk=2))
    found = form([args["class_logits"]], args["pred_boxes"], args["points"], boxes, labels, None, None, *numbers_)
    assert found[0][0].tolist() == index
    torch.testing.assert_close(found[1][0], torch.tensor(quality), rtol=0, atol=1e-6)
    public = detops.tal_assign(**args, rule=rule, topk=2)
    assert public.box_index[0].tolist() == index
    assert public.labels[0].tolist() == [int(labels[0, i]) if i >= 0 else -1 for i in index]
    assert public.num_positives == sum(i >= 0 for i in index)


@op.for_each_form
@pytest.mark.parametrize(
    ("distance", "rules"), [(0.0, "yolov9"), (1e-6, "ppyoloe yolov8 yolov9"), (0.005, "ppyoloe yolov8 yolov9"),
                            (0.02, "ppyoloe tood yolov8 yolov9")],
)  # fmt: skip
def test_the_border_of_a_box(form: Form, distance: float, rules: str) -> None:
    """One point, so far right of the left side."""
    box = torch.tensor([[[8 - distance, 0, 18, 16]]], dtype=torch.float64)
    for name, rule in RULES.items():
        rule = rule._replace(fallback=False)
        args = ([torch.zeros(1, 1, 1)], box.float(), torch.tensor([[8.0, 8, 16]]), box, torch.tensor([[0]]), None, None)
        assert (form(*args, *numbers(rule))[0].item() == 0) == (name in rules.split())


def test_quality_early_in_training() -> None:
    """One point of probability 0.01: eps bites where the overlap is small, the more the larger it is."""
    logit, points = torch.full((1, 1, 1), -4.59511985), torch.tensor([[50.0, 50, 8]])
    box = torch.tensor([[0.0, 0, 100, 100]])
    for u, small, large in ((0.5, 0.499997, 0.499680), (0.1, 0.090909, 0.009091), (0.05, 0.006757, 0.000078)):
        pred = torch.tensor([[[0.0, 0, 100, 100 * u]]])
        for rule, quality in (("ppyoloe", small), ("tood", large)):
            found = detops.tal_assign(logit, pred, points, ([box], [torch.tensor([0])]), rule=rule)  # type: ignore[arg-type]
            assert found.quality.item() == pytest.approx(quality, abs=2e-6)


@op.for_each_form
def test_a_box_has_nothing_where_all_metrics_are_zero(form: Form) -> None:
    points = detops.grid_points([(4, 4)], [8])
    away = torch.tensor([100.0, 100, 110, 110]).expand(1, 16, 4)
    box, label = torch.tensor([[[0.0, 0, 32, 32]]]), torch.tensor([[0]])
    for rule in RULES.values():
        index, quality = form([torch.zeros(1, 16, 1)], away, points, box, label, None, None, *numbers(rule))
        assert (index == -1).all()
        assert not quality.any()
        lost = torch.full((1, 16, 1), float("nan"))
        index, _ = form([lost], box.expand(1, 16, 4), points, box, label, None, None, *numbers(rule))
        assert (index == -1).all()


def test_small_boxes_have_points_by_their_least_side() -> None:
    """A box of 2 pixels around a point of stride 16 gets the four of stride 8 around it too."""
    points = detops.grid_points([(4, 4), (2, 2)], [8, 16])
    box, label = torch.tensor([[7.0, 7, 9, 9]]), torch.tensor([0])
    pred = box[0].expand(1, 20, 4)
    plain = detops.tal_assign(torch.zeros(1, 20, 1), pred, points, ([box], [label]))
    assert (plain.box_index[0] >= 0).nonzero().flatten().tolist() == [16]
    wide = detops.tal_assign(torch.zeros(1, 20, 1), pred, points, ([box], [label]), rule=TalRule(min_side=1.1))
    assert (wide.box_index[0] >= 0).nonzero().flatten().tolist() == [0, 1, 4, 5, 16]


def test_ignored_regions_take_points_without_a_box_out() -> None:
    args = by_hand()
    boxes, labels = args["targets"]
    region = torch.tensor([[[0.0, 0, 30, 30]]])
    args["targets"] = detops.GroundTruth(boxes, labels, ignored=region)
    found = detops.tal_assign(**args, topk=2)
    assert found.box_index[0].tolist() == [-2, -2, 2, 0, 3, 2]


def test_nothing_is_differentiated() -> None:
    args = by_hand()
    args["class_logits"].requires_grad_()
    args["pred_boxes"].requires_grad_()
    assert not detops.tal_assign(**args).quality.requires_grad


def test_memory_does_not_grow_with_boxes() -> None:
    from detops.apps.bench.runner import peak_extra

    few, many = (aligned_scene(1, batch=1, boxes=boxes, size=256) for boxes in (1, 400))
    rule = numbers(RULES["ppyoloe"])
    most = peak_extra(lambda: op(*many, *rule), False) - peak_extra(lambda: op(*few, *rule), False)
    assert 0 <= most <= 399 * 13 * 4  # what is taken


def test_views_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = aligned_scene(10, boxes=7)
    rule = numbers(RULES["yolov9"])
    expected = op.reference(*scene, *rule)[0]
    levels, pred = scene.class_logits, scene.pred_boxes
    views = [torch.stack([level, level], -1)[..., 0] for level in levels]
    channels_first = [level.transpose(1, 2).contiguous().transpose(1, 2) for level in levels]
    for logits in (views, channels_first, [torch.cat(levels, 1)]):
        args = scene._replace(class_logits=logits, pred_boxes=torch.stack([pred] * 2)[1])
        assert torch.equal(op(*args, *rule)[0], expected)
        assert torch.equal(op.portable(*args, *rule)[0], expected)
    monkeypatch.setattr(_search, "CHUNK_VALUES", 1)
    assert torch.equal(op.portable(*scene, *rule)[0], expected)


def test_points_that_form_no_grid() -> None:
    scene = aligned_scene(15, boxes=7)
    order = torch.randperm(len(scene.points), generator=torch.Generator().manual_seed(0))
    mixed = scene._replace(
        class_logits=[torch.cat(scene.class_logits, 1)[:, order]], pred_boxes=scene.pred_boxes[:, order],
        points=scene.points[order],
    )  # fmt: skip
    for rule in ALL_RULES.values():
        assert torch.equal(op(*mixed, *numbers(rule))[0], op(*scene, *numbers(rule))[0][:, order])


def test_any_number_of_threads_gives_the_same_bits() -> None:
    scene = aligned_scene(11, boxes=40, size=128, coarse=True)
    assert_same_bits_for_any_threads(lambda: op(*scene, *numbers(RULES["ppyoloe"])))


@for_each_device
@pytest.mark.parametrize(("rule", "options"), [("ppyoloe", {}), ("yolov9", {"ragged": True, "masked": True})])
def test_opcheck(device: str, rule: str, options: dict[str, Any]) -> None:
    op.check(*moved(aligned_scene(12, size=32, **options), device), *numbers(RULES[rule]))


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    def assign(logits: list[Tensor], pred: Tensor, points: Tensor, boxes: Tensor, labels: Tensor) -> detops.Assignment:
        return detops.tal_assign(logits, pred, points, (boxes, labels), rule="yolov9")

    def arguments(boxes: int) -> tuple[Any, ...]:
        scene = aligned_scene(13, boxes=boxes, size=32)
        return moved(tuple(scene[:5]), device)

    args = arguments(5)
    assert assert_no_syncs(assign, *args).box_index.shape == args[1].shape[:2]
    for rule in ALL_RULES.values():
        assert_no_syncs(op.portable, *moved(aligned_scene(13, size=32), device), *numbers(rule))
    assert_compiles_whole(assign, args, arguments(8))


@pytest.mark.parametrize("rule", RULES)
@op.for_each_form
def test_what_takes_nothing(form: Form, rule: str) -> None:
    """Broken boxes and ignored ones leave everything as if they were not there."""
    scene = aligned_scene(7, batch=1, boxes=3, size=32)
    alone = form(*scene, *numbers(RULES[rule]))
    assert (alone[0] >= 0).any()
    nan, inf = float("nan"), float("inf")
    broken = torch.tensor([[20.0, 16, 10, 30], [nan, 0, 32, 32], [0, 0, inf, 32], [0, 0, 32, 32], [0, 0, 32, 32]])
    more = scene._replace(
        gt_boxes=torch.cat([scene.gt_boxes, broken[None]], 1),
        gt_labels=torch.cat([scene.gt_labels, torch.tensor([[0, 0, 0, 4, -1]])], 1),
    )
    for ours, theirs in zip(form(*more, *numbers(RULES[rule])), alone, strict=True):
        assert torch.equal(ours, theirs)
    padded = more._replace(gt_labels=more.gt_labels.clamp(0, 3), sample_sizes=torch.tensor([3]))
    assert torch.equal(form(*padded, *numbers(RULES[rule]))[0], alone[0])


@op.for_each_form
@pytest.mark.parametrize("options", [{"batch": 0}, {"boxes": 0}], ids=str)
def test_empty(form: Form, options: dict[str, Any]) -> None:
    scene = aligned_scene(9, size=32, **options)
    index, quality = form(*scene, *numbers(RULES["ppyoloe"]))
    assert index.shape == quality.shape == scene.pred_boxes.shape[:2]
    assert (index == -1).all()
    assert not quality.any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"class_logits": torch.zeros(1, 5, 2)}, ValueError, "class_logits: expected 6 points, as pred_boxes has, got 5"),
        ({"class_logits": []}, ValueError, "class_logits: expected at least one level"),
        ({"class_logits": torch.zeros(2, 6, 2)}, ValueError, r"class_logits: expected shape \(1, A_l, C\)"),
        ({"pred_boxes": torch.zeros(1, 6, 3)}, ValueError, r"pred_boxes: expected shape \(B, A, 4\)"),
        ({"points": torch.zeros(6, 2)}, ValueError, r"points: expected shape \(6, 3\)"),
        ({"valid": torch.zeros(1, 6)}, TypeError, "valid: expected a bool tensor"),
        ({"valid": torch.zeros(1, 5).bool()}, ValueError, r"valid: expected shape \(1, 6\)"),
        ({"targets": ([torch.zeros(1, 4)] * 2, [torch.zeros(1).long()] * 2)}, ValueError,
         "targets: expected 1 images, as pred_boxes has, got 2"),
        ({"rule": "yolov7"}, ValueError, "rule: expected a TalRule or one of ppyoloe, tood, yolov8, yolov9, got 'yolov7'"),
        ({"rule": TalRule(overlap="giou")}, ValueError, "overlap: expected 'iou' or 'ciou', got 'giou'"),  # type: ignore[arg-type]
        ({"rule": TalRule(reach=0.0)}, ValueError, "reach: expected a number above 0, or None, got 0.0"),
        ({"topk": 0}, ValueError, r"topk: expected 1 \.\. 1000, got 0"),
        ({"alpha": -1.0}, ValueError, "alpha: expected a number of at least 0, got -1.0"),
        ({"beta": float("nan")}, ValueError, "beta: expected a number of at least 0, got nan"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        detops.tal_assign(**by_hand() | change)


@pytest.mark.parametrize(
    ("label", "box", "message"),
    [
        (2, (4, 4, 20, 20), "labels: sample 0, box 0 has 2, expected a value below 2"),
        (1, (9, 0, 4, 4), "boxes: sample 0, box 0 .* expected x2 >= x1 and y2 >= y1"),
        (1, (0, 0, float("nan"), 4), "boxes: sample 0, box 0 .* expected finite numbers"),
    ],
)
def test_checked_mode_names_the_box(label: int, box: tuple[float, ...], message: str) -> None:
    args = by_hand() | dict(targets=([torch.tensor([box], dtype=torch.float32)], [torch.tensor([label])]))
    assert detops.tal_assign(**args).num_positives == 0
    with detops.checked(), pytest.raises(ValueError, match=message):
        detops.tal_assign(**args)


@pytest.mark.parametrize(
    "change",
    [
        dict(class_logits=[]),
        dict(class_logits=[torch.zeros(2, 20, 4)]),
        dict(pred_boxes=torch.zeros(2, 21, 3)),
        dict(points=torch.zeros(21, 2)),
        dict(gt_boxes=torch.zeros(1, 5, 4)),
        dict(gt_labels=torch.zeros(2, 4).long()),
        dict(sample_sizes=torch.zeros(3).long()),
        dict(valid=torch.zeros(2, 20).bool()),
        dict(topk=0),
        dict(alpha=-1.0),
        dict(beta=-1.0),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses((*aligned_scene(14, size=32), *numbers(RULES["ppyoloe"])), **change)


def _kernels() -> list[Kernel]:
    three = ("i32",) * 3
    levels: dict[str, str | tuple[str, ...]] = dict(
        levels=("*fp16",) * 3, strides_b=three, strides_r=three, strides_c=three, starts=three, rows=three, pred="*fp32"
    )  # fmt: skip
    boxes = dict(boxes="*fp32", labels="*i64", sizes="*i64")
    counts = dict(state="*i64", A="i32", N="i32")
    powers = dict(C="i32", alpha="fp32", beta="fp32")
    tiles = dict(points="*fp32", hulls="*fp32", edges="*i32", T="i32")
    take = tiles | dict(valid="*u8", margin="fp32", reach="fp32", min_side="fp32")
    out = dict(index="*i64", quality="*fp32")
    flags: dict[str, object] = dict(LEVELS=3, CIOU=True, ALPHA_1=False, BETA_6=True, HAS_SIZES=True)
    wide: dict[str, object] = dict(LEVELS=3, CIOU=False, ALPHA_1=True, BETA_6=False, HAS_SIZES=False)
    block: dict[str, object] = dict(BLOCK=64)
    tops: dict[str, object] = dict(TOPK=13, BLOCK=64, BLOCK_T=128, SLOTS=32)
    inside: dict[str, object] = dict(ALL_POINTS=False, FALLBACK=True, HAS_VALID=True)
    whole: dict[str, object] = dict(ALL_POINTS=True, FALLBACK=False, HAS_VALID=False)
    return [
        Kernel(
            "tiles_kernel", tiles | counts | dict(firsts=three, starts=three, rows=three), dict(LEVELS=3, BLOCK=64), 1
        ),
        Kernel("take_kernel", levels | boxes | counts | powers | take, flags | tops | inside, 1),
        Kernel("take_kernel", levels | boxes | counts | powers | take, wide | tops | whole, 1),
        Kernel("resolve_kernel", levels | boxes | counts | powers | out, flags | block | dict(ALL_BOXES=True), 2),
        Kernel("quality_kernel", counts | out | dict(eps="fp32"), block, 2),
    ]


KERNELS = _kernels()
