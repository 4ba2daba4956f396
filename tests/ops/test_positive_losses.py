"""The op positive_losses_: every form gives the numbers of the definition."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import given
from hypothesis import strategies as st
from op import (
    DTYPES,
    HAS_TRITON,
    TOLERANCES,
    Form,
    Op,
    Tolerance,
    assert_no_syncs,
    assert_same_bits,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)
from positive_scenes import SIZES, loss_arguments, positive_scene, with_one_box
from torch import Tensor

from detops.reference.positive_losses import CLASS_KINDS, box_losses, class_loss, distillation
from detops.reference.yolox_loss import KINDS as BOX_KINDS

op = Op("positive_losses_")

GRADIENT_TOLERANCES = {
    dtype: Tolerance(rtol, 1e-5 if dtype.itemsize == 2 else atol) for dtype, (rtol, atol) in TOLERANCES.items()
}


def assert_matches(
    form: Form, make: Callable[[], tuple[Any, ...]], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, list[Tensor]]:
    """Compare with the reference; return the losses and the class gradients."""
    ours, theirs = moved(make(), device), make()
    losses, factors, weight = form(*ours)
    expected, inverse, known = op.reference(*theirs)
    torch.testing.assert_close(losses.cpu().double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(factors.cpu().double(), inverse, rtol=1e-5, atol=1e-6)
    assert factors.dtype == weight.dtype == torch.float32
    torch.testing.assert_close(weight.cpu().double(), known, rtol=1e-5, atol=1e-6)
    rtol, atol = GRADIENT_TOLERANCES[dtype]
    for gradient, slope in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(gradient.cpu().double(), slope.double(), rtol=rtol, atol=atol)
    return losses, ours[0]


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(150)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        boxes=st.sampled_from([0, 1, 3]),
        classes=st.sampled_from([1, 3, 20]),
        bins=st.sampled_from([1, 2, 5, 17]),
        teacher=st.booleans(),
        region=st.booleans(),
        quality=st.booleans(),
        weight=st.booleans(),
        dtype=st.sampled_from(DTYPES),
        channels_last=st.booleans(),
        label_dtype=st.sampled_from([torch.int32, torch.int64]),
        losses=st.fixed_dictionaries(
            dict(
                class_kind=st.sampled_from(CLASS_KINDS),
                box_kind=st.sampled_from(BOX_KINDS),
                gamma=st.sampled_from([2.0, 1.5, 1.0]),
                alpha=st.sampled_from([0.25, 0.75]),
                temperature=st.sampled_from([1.0, 10.0]),
                margin=st.sampled_from([0.1, 0.01]),
                gradient=st.booleans(),
                varied=st.booleans(),
                by_head=st.booleans(),
                divisor=st.sampled_from(["given", "weights", "few weights"]),
            )
        ),
    )
    def check(dtype: torch.dtype, losses: dict[str, Any], **options: Any) -> None:
        data = positive_scene(dtype=dtype, **options)
        assert_matches(form, lambda: loss_arguments(data, **losses), form.computes(dtype))

    check()


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for seed, (dtype, class_kind, box_kind) in enumerate(zip(DTYPES, CLASS_KINDS, BOX_KINDS[1:], strict=True)):
        data = positive_scene(seed, classes=80, bins=17, region=True, dtype=dtype, quality=seed > 1, weight=seed > 2)
        judged = torch.float32 if dtype == torch.float64 else dtype

        def make(data: Any = data, class_kind: str = class_kind, box_kind: str = box_kind) -> tuple[Any, ...]:
            return loss_arguments(data, class_kind, box_kind)

        assert_matches(op, make, judged, device="cuda")


def test_by_hand() -> None:
    """Even distributions over 0 and 1 predict half a stride to each side, exactly the box, so the class target is 1."""
    data = positive_scene(0, batch=1, boxes=1, classes=2, bins=2)
    data["index"] = torch.full_like(data["index"], -1)
    data["index"][0, 7] = 0  # second row, second column, at 8, 8
    data["boxes"], data["labels"] = torch.tensor([[[4.0, 4, 12, 12]]]), torch.tensor([[1]])
    for maps in (data["cls_scores"], data["bbox_preds"], data["soft_targets"]):
        maps[0] = torch.zeros_like(maps[0])
    half = math.log(2)
    for form in (*op.forms, op.reference):
        args = loss_arguments(data)
        losses, _, weight = form(*args)
        # Quality focal loss: log 2 / 4 both as background and towards 1.
        torch.testing.assert_close(losses[:, 0].float(), torch.tensor([0, 0.5, 0, 2 * half, 0, 0]), rtol=0, atol=1e-6)
        assert weight.nonzero().tolist() == [[0, 7]]
        slope = -0.5 * 0.25 - 2 * half * 0.5 * 0.25
        torch.testing.assert_close(args[0][0][0, 1, 1, 1].item(), slope / 4, rtol=1e-5, atol=0)
        untouched = loss_arguments(data)[0][0]
        untouched[0, 1, 1, 1] = args[0][0][0, 1, 1, 1]
        assert_same_bits(args[0][0], untouched)


KINDS_BY_HAND = {  # losses and slopes
    ("quality", 0.5): ([0.027726, 0.192052, 0.023762], [-0.077315, 0.210003, -0.033508]),
    ("bce", 0.5): ([0.693147, 1.101413, 0.726928], [-0.2, 0.417574, -0.180797]),
    ("varifocal", 0.75): ([0.485203, 0.440565, 0.218078], [-0.14, 0.167030, -0.054239]),
    ("focal", 0.25): ([0.011090, 0.105628, 0.014257], [-0.030926, 0.115502, -0.020105]),
}


@pytest.mark.parametrize(("kind", "alpha"), KINDS_BY_HAND)
def test_class_kinds_by_hand(kind: str, alpha: float) -> None:
    """Logits 0, 1.5 and -2 towards 0.7, 0.4 and 0.3, gamma 2. The first: p = 1/2, BCE = log 2, away = p - q = -0.2.

    quality: 0.04 log 2 = 0.027726, by x -0.2 * 0.04 + log 2 * 2 * -0.2 / 4 = -0.077315; bce: log 2, by x -0.2;
    varifocal: 0.7 log 2, by x 0.7 * -0.2; focal: those of quality times 0.25 * 0.7 + 0.75 * 0.3 = 0.4. As background
    each costs log 2 times 1/4, 1, alpha / 4 and (1 - alpha) / 4.
    """
    logits, (losses, slopes) = [0.0, 1.5, -2.0], KINDS_BY_HAND[kind, alpha]
    factor = {"quality": 1, "bce": 1, "varifocal": alpha, "focal": 1 - alpha}[kind]
    background = [factor * math.log1p(math.exp(x)) / (1 if kind == "bce" else (1 + math.exp(-x)) ** 2) for x in logits]
    data = with_one_box(logits, [0.7, 0.4, 0.3])
    for form in (*op.forms, op.reference):
        args = loss_arguments(data, kind, alpha=alpha, scale=2.0)
        found = form(*args)[0][0]
        expected = torch.tensor([2 * (sum(losses) - sum(background)), 0, 0, 0])
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(args[0][0].flatten(2)[0, 1, :3], 2 * torch.tensor(slopes), rtol=0, atol=3e-6)


def test_focal_loss_of_a_hard_label_is_that_of_its_paper() -> None:
    """Towards 1: -alpha (1 - p)^gamma log p, and as background -(1 - alpha) p^gamma log(1 - p); here p = 1/4.

    0.25 * (3/4)^2 * log 4 = 0.194947 less 0.75 * (1/4)^2 * log(4/3) = 0.013485.
    """
    data = with_one_box([-math.log(3)], [1.0])
    for form in (*op.forms, op.reference):
        losses, *_ = form(*loss_arguments(data, "focal", scale=1.0))
        torch.testing.assert_close(losses[0, 0].item(), 0.194947 - 0.013485, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "crossed", "inner"),
    [("iou", 0.857143, 0.538462), ("giou", 1.079365, 0.671795), ("diou", 0.968254, 0.538462),
     ("ciou", 0.968254, 0.547810), ("iou_squared", 0.979592, 0.786982)],
)  # fmt: skip
def test_box_kinds_by_hand(kind: str, crossed: float, inner: float) -> None:
    """The box (0, 0, 10, 10) for (5, 5, 15, 15), and (2, 1, 5, 7) for (1, 2, 6, 6).

    First: IoU 25 / 175 = 1/7; hull 225, union 175: giou 6/7 + 50/225; centres 5 sqrt 2 apart, diagonal 15 sqrt 2: diou
    6/7 + 1/9; both are squares: ciou too. Second: IoU 12 / 26 = 6/13; hull 30: giou 7/13 + 4/30; one centre: diou 7/13;
    v = 4 / pi^2 (atan(5/4) - atan(1/2))^2 = 0.07578, ciou 7/13 + v^2 / (7/13 + v) = 0.547810.
    """
    data = with_one_box([0.0, 0.0], bins=17)
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
        for form in (*op.forms, op.reference):
            losses, _, weight = form(*loss_arguments(data, box_kind=kind))
            assert torch.equal(weight.float(), data["weight"])
            assert losses[1, 0] == sum(weights)
            torch.testing.assert_close(losses[2, 0].item(), expected, rtol=0, atol=2e-5)


def test_targets_beyond_the_bins_by_hand() -> None:
    """The point (2, 3) and the box (-20, 2.5, 2.25, 30): sides at 22, 0.5, 0.25 and 27 strides, of which 16 have bins.

    With logits k / 4 a target y costs log(sum of e^(k / 4)) - y / 4 = 5.494325 - y / 4; the far ones are 16 - margin.
    """
    data = with_one_box([0.0], bins=17)
    data["points"][0], data["boxes"] = torch.tensor([2.0, 3, 1]), torch.tensor([[[-20, 2.5, 2.25, 30]]])
    data["bbox_preds"][0][:] = torch.arange(17.0).repeat(4)[:, None, None] / 4
    data["weight"] = torch.ones(()).expand(data["index"].shape)
    for margin in (0.1, 0.01, 0.0):
        expected = 4 * 5.494325 - (0.5 + 0.25 + 2 * (16 - margin)) / 4
        for form in (*op.forms, op.reference):
            losses, *_ = form(*loss_arguments(data, margin=margin))
            torch.testing.assert_close(losses[3, 0].item(), expected, rtol=0, atol=2e-5)


@op.for_each_form
@pytest.mark.parametrize("kind", CLASS_KINDS)
def test_logits_where_probabilities_round_to_0_or_1(form: Form, kind: str) -> None:
    logits = [-1e4, -200.0, -100.0, -88.0, -20.0, 20.0, 100.0, 1e4]
    data = with_one_box(3 * logits, [q for q in (0.0, 0.3, 1.0) for _ in logits], bins=1)
    for gamma in (2.0, 1.0, 0.0):
        losses, _ = assert_matches(form, lambda: loss_arguments(data, kind, gamma=gamma, scale=0.01))  # noqa: B023
        assert losses.isfinite().all()


@op.for_each_form
def test_where_the_weight_is_zero_a_box_is_not_read(form: Form) -> None:
    """Nor is its distribution, if the quality is given; the class loss is the same."""
    data = positive_scene(6, bins=17, quality=True, weight=True)
    data["weight"][:, ::2] = data["weight"][:, ::2].minimum(torch.zeros(()))  # NaN stays where there is no box
    unread = (data["weight"] == 0)[:, : SIZES[0]]
    assert unread.any()
    args = loss_arguments(data)
    before = form(*args)
    for maps in ("bbox_preds", "soft_targets"):
        data[maps][0].flatten(2).transpose(1, 2)[unread] = float("nan")
    broken = loss_arguments(data)
    assert_same_bits((form(*broken), broken[0]), (before, args[0]))
    assert_matches(form, lambda: loss_arguments(data))


@op.for_each_form
def test_quality_and_weight_in_any_dtype_and_layout(form: Form) -> None:
    data = positive_scene(7, quality=True, weight=True)
    data |= {key: (data[key] * 8).round() / 8 for key in ("quality", "weight")}
    expected = form(*loss_arguments(data))
    for dtype in (torch.float64, torch.float16):
        other = {key: data[key].T.contiguous().T.to(dtype) for key in ("quality", "weight")}
        assert not other["weight"].is_contiguous()
        assert_same_bits(form(*loss_arguments(data | other)), expected)


@op.for_each_form
def test_a_box_that_is_not_finite_shows(form: Form) -> None:
    data = positive_scene(8, batch=1, boxes=1)
    data["boxes"][0, 0, 1] = float("nan")
    losses, _, weight = form(*loss_arguments(data))
    assert losses[[0, 2, 3]][:, 0].isnan().all()
    assert losses[1].isfinite().all()
    assert weight.isfinite().all()


def test_a_point_does_not_change_a_bit_of_another() -> None:
    """The C++ kernel computes several points together."""
    data = positive_scene(5, bins=17, region=True)
    index, region = data["index"], data["region"]
    args = loss_arguments(data)
    together, untouched = op(*args)[2], loss_arguments(data)[0]
    places = ((index >= 0) | (region > 0)).nonzero().tolist()
    assert len(places) > 9
    changed = torch.zeros(len(untouched), dtype=torch.int64)
    for b, a in places:
        alone = torch.zeros(index.shape, dtype=torch.bool)
        alone[b, a] = True
        one = loss_arguments(data | {"index": index.where(alone, -1), "region": region.where(alone, 0)})
        losses, _, weight = op(*one)
        assert torch.equal(weight, together.where(alone, 0))
        assert losses[5].any() == (region[b, a] > 0)
        for level, (gradient, before) in enumerate(zip(one[0], untouched, strict=True)):
            touched = gradient != before
            changed[level] += touched.sum()
            assert torch.equal(gradient[touched], args[0][level][touched])
    assert changed.sum() == (index >= 0).sum()


@op.for_each_form
def test_degenerate_boxes_are_finite(form: Form) -> None:
    data = positive_scene(1, batch=1, boxes=4, share=1.0)
    data["boxes"] = torch.tensor([[[4.0, 4, 4, 4], [900, 900, 903, 903], [8, 8, 8, 30], [-5, -5, 1e4, 1e4]]])
    for kind in BOX_KINDS:
        losses, gradients = assert_matches(form, lambda: loss_arguments(data, box_kind=kind))  # noqa: B023
        assert losses.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients)


@op.for_each_form
def test_what_is_not_finite_shows(form: Form) -> None:
    """A logit of a positive that is not finite makes its losses NaN; one elsewhere has no effect."""
    for maps, row in (("bbox_preds", 2), ("bbox_preds", 3), ("cls_scores", 1), ("soft_targets", 4)):
        data = positive_scene(2, batch=1)
        b, a = data["index"][:, : SIZES[0]].ge(0).nonzero()[0].tolist()
        data[maps][0].flatten(2)[b, 1, a] = float("nan")
        assert form(*loss_arguments(data))[0][row, 0].isnan()
        data = positive_scene(2, batch=1)
        b, a = data["index"][:, : SIZES[0]].lt(0).nonzero()[0].tolist()
        data[maps][0].flatten(2)[b, 1, a] = float("nan")
        assert form(*loss_arguments(data))[0].isfinite().all()


@op.for_each_form
def test_a_sum_of_weights_that_is_not_finite_shows(form: Form) -> None:
    data = positive_scene(2, batch=1)
    b, a = data["index"][:, : SIZES[0]].ge(0).nonzero()[0].tolist()
    data["cls_scores"][0].flatten(2)[b, 1, a] = float("nan")
    for varied in (False, True):
        losses, factors, _ = form(*loss_arguments(data, divisor="few weights", varied=varied))
        assert factors[: 2 if varied else 4].isnan().all()
        assert losses[2:4].isnan().all()


def test_factors_by_hand() -> None:
    """Weights 1/2 and 2, of two levels: one over 2.5 + 1e-6, or over 100 + 1/4 as that is at least 100."""
    data = positive_scene(5, batch=1, bins=17, region=True, weight=True)
    data["index"][:] = -1
    data["index"][0, [3, SIZES[0] + 2]] = 1
    data["weight"][0, [3, SIZES[0] + 2]] = torch.tensor([0.5, 2.0])
    for form in (*op.forms, op.reference):
        plain, ones, _ = form(*loss_arguments(data))
        assert ones.eq(1).all()
        assert plain[1].tolist() == [0.5, 2, 0, 0]
        for divisor, factor in (("weights", 1 / 2.500001), ("few weights", 1 / 100.25)):
            args = list(loss_arguments(data, divisor=divisor))  # type: ignore[arg-type]
            for divides in (True, False):
                args[12], args[16] = torch.tensor([[torch.nan], [0.25], [3.0]]), divides  # scales, divide_distillation
                losses, factors, _ = form(*args)
                expected = [3, 1, factor, factor, *[factor if divides else 1] * 2]
                torch.testing.assert_close(
                    factors[:, 0].double(), torch.tensor(expected[2:]).double(), rtol=1e-6, atol=0
                )
                expected = plain * torch.tensor(expected)[:, None]
                torch.testing.assert_close(losses, expected.to(losses.dtype), rtol=1e-5, atol=0)


@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
def test_the_triton_kernel_adds_the_sums_of_many_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as on large maps, compared with what it adds at once."""
    from detops.kernels import positive_losses as kernels

    monkeypatch.setattr(kernels, "BLOCK_SUM", 2)
    data = positive_scene(3, batch=5, share=0.8)
    for form in op.forms:
        for by_head, varied in ((False, True), (True, True), (True, False)):
            options = dict(varied=varied, by_head=by_head, divisor="weights")
            assert_matches(form, lambda: loss_arguments(data, **options))  # type: ignore[arg-type] # noqa: B023


@op.for_each_kernel
def test_indices_out_of_range_are_not_read(form: Form) -> None:
    data = positive_scene(3)
    data["index"][0, :3] = torch.tensor([3, 10**12, -(10**12)])
    data["labels"][0] = torch.tensor([3, -1, 10**9])
    args = loss_arguments(data)
    losses, _, weight = form(*args)
    assert losses.isfinite().all()
    assert not weight[0].any()
    assert_same_bits(args[0][0][0], loss_arguments(data)[0][0][0])


def test_any_number_of_threads_gives_the_same_bits() -> None:
    data = positive_scene(4, batch=3, share=0.8)

    def run() -> Any:
        args = loss_arguments(data)
        return op(*args), args[0]

    assert_same_bits_for_any_threads(run)


def test_gradcheck_of_the_reference() -> None:
    g = torch.Generator().manual_seed(5)
    raw, soft = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    point, box = torch.tensor([16.0, 8, 8]).double(), torch.tensor([3.0, 1, 40, 22]).double()
    for number in range(BOX_KINDS.index("ciou")):  # without CIoU, whose alpha is a constant to the gradient

        def boxes(raw: Tensor, number: int = number) -> tuple[Tensor, ...]:
            found = box_losses(raw, soft, point, box, number, 4.0, 0.1)
            return found.iou_loss, found.dfl, found.ld, distillation(raw, soft, 2.0)

        assert torch.autograd.gradcheck(boxes, raw.requires_grad_())
    x, q = (torch.randn(9, generator=g, dtype=torch.float64) for _ in range(2))
    for kind in CLASS_KINDS:

        def classes(x: Tensor, kind: str = kind) -> tuple[Tensor, Tensor]:
            return class_loss(x, q.sigmoid(), kind, 0.3, 1.5)

        assert torch.autograd.gradcheck(classes, x.requires_grad_())


@for_each_device
def test_opcheck(device: str) -> None:
    for args in (
        loss_arguments(positive_scene(6, region=True)),
        loss_arguments(positive_scene(7, boxes=0, teacher=False), gradient=False),
        loss_arguments(positive_scene(8, quality=True, weight=True), "varifocal", "ciou"),
    ):
        op.check(*moved(args, device))


@for_each_device
def test_no_host_sync(device: str) -> None:
    for args in (
        loss_arguments(positive_scene(9, region=True)),
        loss_arguments(positive_scene(9, quality=True, weight=True), "focal", "ciou"),
    ):
        for form in (op, op.portable):
            losses, factors, weight = assert_no_syncs(form, *moved(args, device))
            assert losses.shape == (6, len(args[1]))
            assert factors.shape == (4, 1)
            assert weight.shape == args[7].shape


@pytest.mark.parametrize(
    "change",
    [
        {"class_kind": 4},
        {"class_kind": -1},
        {"box_kind": 5},
        {"margin": 1.5},
        {"margin": -0.1},
        {"points": torch.ones(4, 3)},
        {"boxes": torch.ones(2, 3, 5)},
        {"labels": torch.ones(2, 2)},
        {"index": torch.zeros(2, 31, dtype=torch.int32)},
        {"quality": torch.ones(2, 3)},
        {"weight": torch.ones(1)},
        {"region": torch.ones(2, 31, dtype=torch.float64)},
        {"scales": torch.ones(3, 3)},
        {"scales": torch.ones(2, 1)},
        {"scales": torch.ones(3)},
        {"box_scale": torch.ones(2)},
        {"box_scale": torch.ones(())},
        {"background": torch.ones(3)},
        {"weights": [1.0] * 4},
        {"cls_scores": []},
        {"soft_targets": [torch.ones(2, 20, 4, 6)]},
        {"class_gradients": [torch.ones(2, 3, 4, 6)]},
        {"heads": -1},
        {"heads": 3},
    ],
    ids=changed_argument,
)
def test_refuses(change: dict[str, Any]) -> None:
    op.refuses(loss_arguments(positive_scene(8)), **change)


KERNELS = [
    Kernel("positives_kernel",
           dict(score_maps=("*fp16",) * 3, gradient_maps=("*fp16",) * 3, pred_maps=("*fp16",) * 3,
                soft_maps=("*fp16",) * 3, score_strides=("i32",) * 12, gradient_strides=("i32",) * 12,
                pred_strides=("i32",) * 12, soft_strides=("i32",) * 12, starts=("i32",) * 3, rows=("i32",) * 3,
                widths=("i32",) * 3, points="*fp32", boxes="*fp32", labels="*i64", index="*i64", quality="*fp32",
                weight="*fp32", region="*fp32", background="*fp32", scales="*fp32",
                weights="*fp32", parts="*fp32", B="i32", C="i32",
                A="i32", N="i32", alpha="fp32", gamma="fp32", temperature="fp32", margin="fp32",
                of_class="fp32", of_iou="fp32", of_dfl="fp32", of_ld="fp32", of_vlr="fp32"),
           dict(LEVELS=3, GROUPS=1, CLASS_KIND=CLASS_KINDS.index(class_kind), BOX_KIND=BOX_KINDS.index(box_kind), SQUARE=square,
                BINS=17, HAS_QUALITY=given, HAS_WEIGHT=given, HAS_SOFT=not given, HAS_REGION=not given,
                WITH_GRADIENT=True, BLOCK=32, BLOCK_C=128, BLOCK_J=32), 1)
    for class_kind, box_kind, square, given in (("quality", "giou", True, False), ("bce", "ciou", False, True),
                                                ("varifocal", "iou", True, True), ("focal", "diou", False, False))
]  # fmt: skip
KERNELS += [
    Kernel("finish_kernel",
           dict(parts="*fp32", scales="*fp32", box_scale="*fp32", losses="*" + wide, factors="*fp32", n="i32",
                least="fp32", eps="fp32"),
           dict(COLUMNS=columns, GROUPS=groups, GIVEN=given, OF_DISTILLATION=given, DOUBLE=wide == "fp64",
                BLOCK=1024), 4)
    for wide, columns, groups, given in (("fp32", 1, 1, False), ("fp64", 2, 2, True))
]  # fmt: skip
