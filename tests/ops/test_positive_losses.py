"""The op positive_losses_: every implementation gives the numbers of the definition."""

import math

import pytest
import torch
from ahead_of_time import HAS_TRITON, assert_compiles, for_each_target, needs_triton
from gfl_scenes import SIZES, TYPES, moved, positives, scene
from hypothesis import given, settings
from hypothesis import strategies as st

from detops.portable.positive_losses import positive_losses_ as portable
from detops.reference.positive_losses import BOX_KINDS, CLASS_KINDS, box_losses, class_loss, distillation
from detops.reference.positive_losses import positive_losses_ as reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def op(*args):
    return torch.ops.detops.positive_losses_(*args)


def interpreted(*args):
    from detops.kernels.positive_losses import positive_losses_

    return positive_losses_(*args)


IMPLEMENTATIONS = {"portable": portable, "op": op}
if HAS_TRITON and not torch.cuda.is_available():
    IMPLEMENTATIONS["triton, interpreted"] = interpreted
TOLERANCES = {torch.float32: (1e-4, 1e-5), torch.float64: (1e-6, 1e-7), torch.float16: (2e-3, 1e-5),
              torch.bfloat16: (1e-2, 1e-5)}  # fmt: skip


def compare(implementation, make, rtol, atol):
    mine, theirs = make(), make()
    losses, weight = implementation(*mine)
    expected, known = reference(*theirs)
    torch.testing.assert_close(losses.cpu().double(), expected, rtol=max(rtol, 1e-4), atol=1e-4)
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.cpu().double(), known, rtol=1e-5, atol=1e-6)
    for gradient, slope in zip(mine[0], theirs[0], strict=True):
        torch.testing.assert_close(gradient.cpu().double(), slope.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_matches_reference(name):
    slow = "triton" in name

    @settings(max_examples=40 if slow else 150, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        boxes=st.sampled_from([0, 1, 3]),
        classes=st.sampled_from([1, 3, 20]),
        bins=st.sampled_from([2, 5, 17]),
        teacher=st.booleans(),
        region=st.booleans(),
        dtype=st.sampled_from(TYPES),
        channels_last=st.booleans(),
        index_dtype=st.sampled_from([torch.int32, torch.int64]),
        quality=st.booleans(),
        weight=st.booleans(),
        losses=st.fixed_dictionaries(dict(
            class_kind=st.sampled_from(CLASS_KINDS),
            box_kind=st.sampled_from(BOX_KINDS),
            gamma=st.sampled_from([2.0, 1.5, 1.0]),
            alpha=st.sampled_from([0.25, 0.75]),
            temperature=st.sampled_from([1.0, 10.0]),
            margin=st.sampled_from([0.1, 0.01]),
            gradient=st.booleans(),
        )),
    )
    def check(dtype, losses, **options):
        data = scene(dtype=dtype, **options)
        rtol, atol = TOLERANCES[torch.float32 if slow and dtype == torch.float64 else dtype]
        compare(IMPLEMENTATIONS[name], lambda: positives(data, **losses), rtol, atol)

    check()


@pytest.mark.gpu
def test_gpu_matches_reference():
    for seed, (dtype, class_kind, box_kind) in enumerate(zip(TYPES, CLASS_KINDS, BOX_KINDS[1:], strict=True)):
        data = scene(seed, classes=80, bins=17, region=True, dtype=dtype, quality=seed > 1, weight=seed > 2)
        on_gpu, args = (moved(positives(data, class_kind, box_kind), device) for device in ("cuda", "cpu"))
        losses, weight = op(*on_gpu)
        expected, known = reference(*args)
        torch.testing.assert_close(losses.cpu().double(), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(weight.cpu().double(), known, rtol=1e-4, atol=1e-5)
        rtol, atol = TOLERANCES[dtype]
        for gradient, slope in zip(on_gpu[0], args[0], strict=True):
            torch.testing.assert_close(gradient.cpu().double(), slope.double(), rtol=max(rtol, 1e-3), atol=atol)


def test_by_hand():
    """Even distributions over 0 and 1 say half a stride to each side: the very box, so its label is to say 1."""
    data = scene(0, batch=1, boxes=1, classes=2, bins=2)
    data["index"] = torch.full_like(data["index"], -1)
    data["index"][0, 7] = 0  # second row, second column, at 8, 8
    data["boxes"], data["labels"] = torch.tensor([[[4.0, 4, 12, 12]]]), torch.tensor([[1]])
    for maps in (data["cls_scores"], data["bbox_preds"], data["soft_targets"]):
        maps[0] = torch.zeros_like(maps[0])
    half = math.log(2)
    for implementation in (*IMPLEMENTATIONS.values(), reference):
        args = positives(data)
        losses, weight = implementation(*args)
        # Quality focal loss: log 2 / 4 both as background and towards 1.
        torch.testing.assert_close(losses[:, 0].float(), torch.tensor([0, 0.5, 0, 2 * half, 0, 0]), rtol=0, atol=1e-6)
        assert weight.nonzero().tolist() == [[0, 7]]
        slope = -0.5 * 0.25 - 2 * half * 0.5 * 0.25
        torch.testing.assert_close(args[0][0][0, 1, 1, 1].item(), slope / 4, rtol=1e-5, atol=0)
        untouched = positives(data)[0][0]
        untouched[0, 1, 1, 1] = args[0][0][0, 1, 1, 1]
        assert torch.equal(args[0][0], untouched)


def one_positive(logits, quality=None, **options):
    """A scene of a positive per logit, at the first points of the first level; each is of class 1 of 2."""
    count = len(logits)
    data = scene(0, batch=1, boxes=1, classes=2, teacher=False, **options)
    data["index"] = torch.full_like(data["index"], -1)
    data["index"][0, :count] = 0
    data["labels"][:] = 1
    data["cls_scores"][0].flatten(2)[0, 1, :count] = torch.tensor(logits)
    if quality is not None:
        data["quality"] = torch.zeros(data["index"].shape)
        data["quality"][0, :count] = torch.tensor(quality)
    return data


KINDS_BY_HAND = {
    ("quality", 0.5): ([0.027726, 0.192052, 0.023762], [-0.077315, 0.210003, -0.033508]),
    ("bce", 0.5): ([0.693147, 1.101413, 0.726928], [-0.2, 0.417574, -0.180797]),
    ("varifocal", 0.75): ([0.485203, 0.440565, 0.218078], [-0.14, 0.167030, -0.054239]),
    ("focal", 0.25): ([0.011090, 0.105628, 0.014257], [-0.030926, 0.115502, -0.020105]),
}


@pytest.mark.parametrize(("kind", "alpha"), KINDS_BY_HAND)
def test_class_kinds_by_hand(kind, alpha):
    """Logits 0, 1.5 and -2 towards 0.7, 0.4 and 0.3, gamma 2. The first: p = 1/2, BCE = log 2, away = p - q = -0.2.

    quality: 0.04 log 2 = 0.027726, by x -0.2 * 0.04 + log 2 * 2 * -0.2 / 4 = -0.077315; bce: log 2, by x -0.2;
    varifocal: 0.7 log 2, by x 0.7 * -0.2; focal: those of quality times 0.25 * 0.7 + 0.75 * 0.3 = 0.4. As background
    each costs log 2 times 1/4, 1, alpha / 4 and (1 - alpha) / 4.
    """
    logits, (losses, slopes) = [0.0, 1.5, -2.0], KINDS_BY_HAND[kind, alpha]
    factor = {"quality": 1, "bce": 1, "varifocal": alpha, "focal": 1 - alpha}[kind]
    background = [factor * math.log1p(math.exp(x)) / (1 if kind == "bce" else (1 + math.exp(-x)) ** 2) for x in logits]
    data = one_positive(logits, [0.7, 0.4, 0.3])
    for implementation in (*IMPLEMENTATIONS.values(), reference):
        args = positives(data, kind, alpha=alpha, scale=2.0)
        found = implementation(*args)[0][0]
        expected = torch.tensor([2 * (sum(losses) - sum(background)), 0, 0, 0])
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(args[0][0].flatten(2)[0, 1, :3], 2 * torch.tensor(slopes), rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    ("kind", "crossed", "inner"),
    [("iou", 0.857143, 0.538462), ("giou", 1.079365, 0.671795), ("diou", 0.968254, 0.538462),
     ("ciou", 0.968254, 0.547810), ("iou_squared", 0.979592, 0.786982)],
)  # fmt: skip
def test_box_kinds_by_hand(kind, crossed, inner):
    """The box (0, 0, 10, 10) for (5, 5, 15, 15), and (2, 1, 5, 7) for (1, 2, 6, 6).

    First: IoU 25 / 175 = 1/7; hull 225, union 175: giou 6/7 + 50/225; centres 5 sqrt 2 apart, diagonal 15 sqrt 2: diou
    6/7 + 1/9; both are squares: ciou too. Second: IoU 12 / 26 = 6/13; hull 30: giou 7/13 + 4/30; one centre: diou 7/13;
    v = 4 / pi^2 (atan(5/4) - atan(1/2))^2 = 0.07578, ciou 7/13 + v^2 / (7/13 + v) = 0.547810.
    """
    data = one_positive([0.0, 0.0], bins=17)
    data["boxes"] = torch.tensor([[[5.0, 5, 15, 15], [1, 2, 6, 6]]])
    data["labels"], data["index"][0, 1] = torch.tensor([[1, 1]]), 1
    data["points"][:2] = torch.tensor([[5.0, 5, 1], [3, 4, 1]])
    preds = data["bbox_preds"][0].flatten(2)[0].unflatten(0, (4, 17))
    for place, distances in enumerate([(5, 5, 5, 5), (1, 3, 2, 3)]):
        preds[:, :, place] = 80.0 * torch.nn.functional.one_hot(torch.tensor(distances), 17)
    for weights in ([1.0, 0.0], [0.0, 1.0], [0.5, 2.0]):
        data["weight"] = torch.zeros(data["index"].shape)
        data["weight"][0, :2] = torch.tensor(weights)
        expected = weights[0] * crossed + weights[1] * inner
        for implementation in (*IMPLEMENTATIONS.values(), reference):
            losses, weight = implementation(*positives(data, box_kind=kind))
            assert torch.equal(weight.float(), data["weight"])
            assert losses[1, 0] == sum(weights)
            torch.testing.assert_close(losses[2, 0].item(), expected, rtol=0, atol=2e-5)


def test_targets_beyond_the_bins_by_hand():
    """The point (2, 3) and the box (-20, 2.5, 2.25, 30): sides at 22, 0.5, 0.25 and 27 strides, of which 16 have bins.

    With logits k / 4 a target y costs log(sum of e^(k / 4)) - y / 4 = 5.494325 - y / 4; the far ones are 16 - margin.
    """
    data = one_positive([0.0], bins=17)
    data["points"][0], data["boxes"] = torch.tensor([2.0, 3, 1]), torch.tensor([[[-20, 2.5, 2.25, 30]]])
    data["bbox_preds"][0][:] = torch.arange(17.0).repeat(4)[:, None, None] / 4
    data["weight"] = torch.ones(()).expand(data["index"].shape)
    for margin in (0.1, 0.01, 0.0):
        expected = 4 * 5.494325 - (0.5 + 0.25 + 2 * (16 - margin)) / 4
        for implementation in (*IMPLEMENTATIONS.values(), reference):
            losses, _ = implementation(*positives(data, margin=margin))
            torch.testing.assert_close(losses[3, 0].item(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", CLASS_KINDS)
def test_logits_where_probabilities_round_to_0_or_1(name, kind):
    logits = [-1e4, -200.0, -100.0, -88.0, -20.0, 20.0, 100.0, 1e4]
    for q in (0.0, 0.3, 1.0):
        for gamma in (2.0, 1.0, 0.0):
            data = one_positive(logits, [q] * len(logits))
            args = positives(data, kind, gamma=gamma, scale=0.01)
            assert IMPLEMENTATIONS[name](*args)[0].isfinite().all()
            compare(IMPLEMENTATIONS[name], lambda: positives(data, kind, gamma=gamma, scale=0.01), 1e-4, 1e-5)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_where_the_weight_is_zero_a_box_is_not_read(name):
    """Nor its distribution where the quality is given; the class counts all the same."""
    data = scene(6, bins=17, quality=True, weight=True)
    data["weight"][:, ::2] = data["weight"][:, ::2].minimum(torch.zeros(()))  # NaN stays where there is no box
    unread = (data["weight"] == 0)[:, : SIZES[0]]
    assert unread.any()
    expected, before = positives(data), IMPLEMENTATIONS[name](*positives(data))
    IMPLEMENTATIONS[name](*expected)
    for maps in ("bbox_preds", "soft_targets"):
        data[maps][0].flatten(2).transpose(1, 2)[unread] = float("nan")
    args = positives(data)
    losses, weight = IMPLEMENTATIONS[name](*args)
    assert torch.equal(losses, before[0])
    assert torch.equal(weight, before[1])
    assert all(torch.equal(a, b) for a, b in zip(args[0], expected[0], strict=True))
    compare(IMPLEMENTATIONS[name], lambda: positives(data), 1e-4, 1e-5)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_quality_and_weight_in_any_dtype_and_layout(name):
    data = scene(7, quality=True, weight=True)
    data |= {key: (data[key] * 8).round() / 8 for key in ("quality", "weight")}
    expected = IMPLEMENTATIONS[name](*positives(data))
    for dtype in (torch.float64, torch.float16):
        other = {key: data[key].T.contiguous().T.to(dtype) for key in ("quality", "weight")}
        assert not other["weight"].is_contiguous()
        found = IMPLEMENTATIONS[name](*positives(data | other))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_box_that_is_not_finite_shows(name):
    data = scene(8, batch=1, boxes=1)
    data["boxes"][0, 0, 1] = float("nan")
    losses, weight = IMPLEMENTATIONS[name](*positives(data))
    assert losses[[0, 2, 3]][:, 0].isnan().all()
    assert losses[1].isfinite().all()
    assert weight.isfinite().all()


def test_a_point_does_not_change_a_bit_of_another():
    """The C++ kernel computes a few together."""
    data = scene(5, bins=17, region=True)
    index, region = data["index"], data["region"]
    args = positives(data)
    together, untouched = op(*args)[1], positives(data)[0]
    places = ((index >= 0) | (region > 0)).nonzero().tolist()
    assert len(places) > 9
    changed = torch.zeros(len(untouched), dtype=torch.int64)
    for b, a in places:
        alone = torch.zeros(index.shape, dtype=torch.bool)
        alone[b, a] = True
        one = positives(data | {"index": index.where(alone, -1), "region": region.where(alone, 0)})
        losses, weight = op(*one)
        assert torch.equal(weight, together.where(alone, 0))
        assert losses[5].any() == (region[b, a] > 0)
        for level, (gradient, before) in enumerate(zip(one[0], untouched, strict=True)):
            touched = gradient != before
            changed[level] += touched.sum()
            assert torch.equal(gradient[touched], args[0][level][touched])
    assert changed.sum() == (index >= 0).sum()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_degenerate_boxes_are_finite(name):
    data = scene(1, batch=1, boxes=4, share=1.0)
    data["boxes"] = torch.tensor([[[4.0, 4, 4, 4], [900, 900, 903, 903], [8, 8, 8, 30], [-5, -5, 1e4, 1e4]]])
    args = positives(data)
    losses, _ = IMPLEMENTATIONS[name](*args)
    assert losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in args[0])
    compare(IMPLEMENTATIONS[name], lambda: positives(data), 1e-4, 1e-5)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_what_is_not_finite_shows(name):
    """A broken logit of a positive makes its losses NaN; one elsewhere does not count."""
    for maps, row in (("bbox_preds", 2), ("bbox_preds", 3), ("cls_scores", 1), ("soft_targets", 4)):
        data = scene(2)
        b, a = data["index"][:, : SIZES[0]].ge(0).nonzero()[0].tolist()
        data[maps][0].flatten(2)[b, 1, a] = float("nan")
        assert IMPLEMENTATIONS[name](*positives(data))[0][row, 0].isnan()
        data = scene(2)
        b, a = data["index"][:, : SIZES[0]].lt(0).nonzero()[0].tolist()
        data[maps][0].flatten(2)[b, 1, a] = float("nan")
        assert IMPLEMENTATIONS[name](*positives(data))[0].isfinite().all()


@pytest.mark.parametrize("name", ["op", *(n for n in IMPLEMENTATIONS if "triton" in n)])
def test_indices_out_of_range_are_not_read(name):
    data = scene(3)
    data["index"][0, :3] = torch.tensor([3, 10**12, -(10**12)])
    data["labels"][0] = torch.tensor([3, -1, 10**9])
    args = positives(data)
    losses, weight = IMPLEMENTATIONS[name](*args)
    assert losses.isfinite().all()
    assert not weight[0].any()
    assert torch.equal(args[0][0][0], positives(data)[0][0][0])


def test_any_number_of_threads_gives_the_same_bits():
    data, before, found = scene(4, batch=3, share=0.8), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            args = positives(data)
            found.append((*op(*args), *args[0]))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_gradcheck_of_the_reference():
    g = torch.Generator().manual_seed(5)
    raw, soft = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    point, box = torch.tensor([16.0, 8, 8]).double(), torch.tensor([3.0, 1, 40, 22]).double()
    for kind in range(BOX_KINDS.index("ciou")):  # whose alpha is no part of the gradient

        def losses(raw, kind=kind):
            found = box_losses(raw, soft, point, box, kind, 4.0, 0.1)
            return found.iou_loss, found.dfl, found.ld, distillation(raw, soft, 2.0)

        assert torch.autograd.gradcheck(losses, raw.requires_grad_())
    x, q = (torch.randn(9, generator=g, dtype=torch.float64) for _ in range(2))
    for kind in CLASS_KINDS:
        assert torch.autograd.gradcheck(lambda x, kind=kind: class_loss(x, q.sigmoid(), kind, 0.3, 1.5), x.requires_grad_())


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    for args in (
        positives(scene(6, region=True)),
        positives(scene(7, boxes=0, teacher=False), gradient=False),
        positives(scene(8, quality=True, weight=True), "varifocal", "ciou"),
    ):
        torch.library.opcheck(torch.ops.detops.positive_losses_.default, moved(args, device))


def test_wrong_arguments_are_refused():
    names = "gradients scores preds soft points boxes labels index quality weight region scale class_kind box_kind".split()
    args, placed = list(positives(scene(8))), {name: i for i, name in enumerate(names)}
    for name, value, message in (
        ("class_kind", 4, "class_kind: expected 0 .. 3"), ("box_kind", 5, "box_kind: expected 0 .. 4"),
        ("quality", torch.ones(2, 3), "quality: expected shape"), ("weight", torch.ones(1), "weight: expected shape"),
        ("points", torch.ones(4, 3), "points: expected shape"), ("boxes", torch.ones(2, 3, 5), "boxes: expected shape"),
        ("labels", torch.ones(2, 2), "labels: expected shape"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            op(*[value if i == placed[name] else arg for i, arg in enumerate(args)])
    with pytest.raises(RuntimeError, match=r"margin: expected 0 \.\. 1"):
        op(*args[:-2], 1.5, args[-1])


@needs_triton
@for_each_target
def test_compiles_ahead_of_time(target):
    types = dict(scores="*fp16", scores_b="i64", scores_c="i64", scores_y="i64", scores_x="i64", class_gradient="*fp16",
                 preds="*fp16", preds_b="i64", preds_c="i64", preds_y="i64", preds_x="i64", soft="*fp16", soft_b="i64",
                 soft_c="i64", soft_y="i64", soft_x="i64", points="*fp32", boxes="*fp32", labels="*i64",
                 index="*i64", quality="*fp32", weight="*fp32", region="*fp32", scale="*fp32", weights="*fp32", parts="*fp32", start="i32", R="i32", W="i32", C="i32",
                 A="i32", N="i32", alpha="fp32", gamma="fp32", temperature="fp32", margin="fp32")  # fmt: skip
    constants = dict(BINS=17, WITH_GRADIENT=True, BLOCK=32, BLOCK_C=128, BLOCK_J=32)
    cases = []
    for class_kind, box_kind in enumerate((2, 0, 4, 3)):  # GFL's first
        on = class_kind % 2 == 0
        flags = dict.fromkeys(("SQUARE", "HAS_SOFT", "HAS_REGION"), on)
        flags |= dict.fromkeys(("HAS_QUALITY", "HAS_WEIGHT"), class_kind > 1)
        kinds = dict(CLASS_KIND=class_kind, BOX_KIND=box_kind)
        cases.append(("positives_kernel", types, constants | flags | kinds, 1))
    assert_compiles("positive_losses", cases, target)
