"""The op set_loss: every form gives the sums and gradients of the definition."""

from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import given
from hypothesis import strategies as st
from op import (
    DTYPES,
    TOLERANCES,
    Form,
    Op,
    assert_same_bits,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)
from set_scenes import set_scene
from torch import Tensor

from detops.reference.set_loss import FOCAL, IA_BCE, MAL, POSITION, SOFTMAX, VARIFOCAL, VARIFOCAL_LIVE

op = Op("set_loss")
KINDS = (SOFTMAX, FOCAL, VARIFOCAL, MAL, IA_BCE, VARIFOCAL_LIVE, POSITION)


def arguments(
    seed: int,
    kind: int = VARIFOCAL,
    alpha: float = 0.75,
    gamma: float = 2.0,
    other_pairs: bool = False,
    given_quality: bool = False,
    with_gradient: bool = True,
    scale: float = 1.0,
    split: bool = False,
    clamp: bool = False,
    **scene: Any,
) -> tuple[Any, ...]:
    """A random box for some queries; others are background, or take no part.

    With `split` there are parts: two of the first queries of one tensor, a gap, and another tensor.
    """
    logits, pred, boxes, labels, _ = set_scene(seed, **scene).values()
    boxes, labels = boxes.nan_to_num(0.3).abs(), labels.where(labels < logits.shape[3], 0)
    g = torch.Generator().manual_seed(seed)
    stack, more, queries = [(logits, pred)], len(logits), logits.shape[2]
    parts = [0, 0, more, 0, queries]
    if split:
        stack.append(tuple(list(set_scene(seed + 1, **scene | dict(queries=queries + 2)).values())[:2]))
        first = queries // 2
        parts = [1, 0, more, 1, queries, 0, 0, min(more, 1), 0, first, 0, 0, more, first, queries - first]
    rows = sum(sets * len(boxes) * count for _, _, sets, _, count in zip(*[iter(parts)] * 5, strict=True))

    def pairs() -> Tensor:
        taken = torch.randint(-3, 4, (rows,), generator=g)
        chosen = torch.randint(0, max(boxes.shape[1], 1), (rows,), generator=g)
        return chosen.where((taken > 0) & (boxes.shape[1] > 0), taken.clamp(max=-1))

    index = pairs()
    quality = torch.rand(rows, generator=g) if given_quality else None
    if quality is not None:
        quality[quality < 0.2] = 0
    scales = scale * (0.2 + torch.rand(sum(parts[2::5]), 2, generator=g))
    weights = [1.0, 0.5, 2.0]
    all_logits, all_boxes = ([one[i] for one in stack] for i in (0, 1))
    return (all_logits, all_boxes, parts, boxes, labels, index, pairs() if other_pairs else None, quality, scales,
            weights, kind, alpha, gamma, 0.1, clamp, with_gradient)  # fmt: skip


def flat(found: Any) -> list[Tensor]:
    losses, of_logits, of_boxes = found
    return [losses, *of_logits, of_boxes]


def assert_close(form: Form, actual: Any, expected: Any, dtype: torch.dtype, scale: float = 1.0) -> None:
    for mine, other in zip(flat(actual), flat(expected), strict=True):
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
        rtol, atol = TOLERANCES[form.computes(torch.float32 if mine.dtype == torch.float32 else dtype)]
        torch.testing.assert_close(mine, other, rtol=rtol, atol=max(atol, 2e-5) * scale, equal_nan=True)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(70)
    @given(
        seed=st.integers(0, 10**6),
        kind=st.sampled_from(KINDS),
        alpha=st.sampled_from([0.25, 0.75, 1.0]),
        gamma=st.sampled_from([2.0, 1.5]),
        other_pairs=st.booleans(),
        given_quality=st.booleans(),
        split=st.booleans(),
        clamp=st.booleans(),
        with_gradient=st.booleans(),
        sets=st.sampled_from([0, 1, 2]),
        batch=st.sampled_from([0, 1, 2]),
        queries=st.sampled_from([0, 1, 5]),
        boxes=st.sampled_from([0, 1, 3]),
        classes=st.sampled_from([2, 5]),
        dtype=st.sampled_from(DTYPES),
    )
    def check(dtype: torch.dtype, **options: Any) -> None:
        args = arguments(**options, dtype=dtype)
        assert_close(form, form(*args), op.reference(*args), dtype)

    check()


@op.for_each_form
@pytest.mark.parametrize("kind", KINDS)
def test_large_logits_and_many_classes(form: Form, kind: int) -> None:
    """Logits of 60 and -60, for which p or 1 - p is 0 in float32, have finite losses and gradients."""
    args = arguments(2, kind, queries=9, classes=91, batch=1, boxes=4)
    logits = [args[0][0] * 20]
    found, expected = form(logits, *args[1:]), op.reference(logits, *args[1:])
    assert all(part.isfinite().all() for part in flat(found))
    assert_close(form, found, expected, torch.float32, 10.0)


@op.for_each_form
@pytest.mark.parametrize("kind", [SOFTMAX, FOCAL, IA_BCE])
def test_a_nan_reaches_the_loss(form: Form, kind: int) -> None:
    args = arguments(4, kind, sets=2)
    index = args[5].view(2, 2, 6)
    args[0][0][1, 0, 2, 1], index[1, 0, 2] = torch.nan, -1
    losses, (gradient,), _ = form(*args)
    assert losses[1, 0].isnan()
    assert losses[0].isfinite().all()
    assert gradient[1, 0, 2].isnan().any()
    index[1, 0, 2] = -2
    losses, (gradient,), _ = form(*args)
    assert losses.isfinite().all()
    assert (gradient[1, 0, 2] == 0).all()


@op.for_each_form
def test_boxes_without_area_and_boxes_far_apart(form: Form) -> None:
    point, far = [0.5, 0.5, 0.0, 0.0], [5.0, -3.0, 0.1, 0.2]
    pred = torch.tensor([[[point, point, far]]])
    boxes = torch.tensor([[point, far]])
    args = ([torch.zeros(1, 1, 3, 2)], [pred], [0, 0, 1, 0, 3], boxes, torch.tensor([[0, 1]]), torch.tensor([0, 1, 1]),
            None, None, torch.ones(1, 2), [1.0] * 3, VARIFOCAL, 0.75, 2.0, 0.1, False, True)  # fmt: skip
    found = form(*args)
    assert all(part.isfinite().all() for part in flat(found))
    torch.testing.assert_close(found[0], op.reference(*args)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_matches_reference(kind: int) -> None:
    args = arguments(kind, kind, queries=70, classes=7, other_pairs=True, split=True)
    assert_close(op, moved(op(*moved(args, "cuda")), "cpu"), op.reference(*args), torch.float32)


@op.for_each_form
@pytest.mark.parametrize(
    ("kind", "alpha", "gamma", "loss", "gradient"),
    [
        (SOFTMAX, 0.0, 0.0, 0.713424, (-0.412228, 0.110865, 0.301363)),
        (FOCAL, 0.25, 2.0, 1.423868, (-0.013145, 0.103453)),
        (VARIFOCAL, 0.75, 2.0, 1.834691, (-0.036337, 0.040360)),
        (VARIFOCAL_LIVE, 0.25, 2.0, 1.834691, (-0.036337, 0.103453)),
        (MAL, 1.0, 1.5, 2.740559, (0.045123, 0.087581)),
        (MAL, 1.0, 2.0, 2.599262, (0.126121, 0.053814)),
        (MAL, 0.5, 2.0, 1.653793, (0.126121, 0.026907)),
        (IA_BCE, 0.25, 2.0, 2.438375, (-0.034767, 0.137937)),
    ],
)
def test_values_by_hand(
    form: Form, kind: int, alpha: float, gamma: float, loss: float, gradient: tuple[float, ...]
) -> None:
    """Worked out on paper, and what the libraries that train with these losses give."""
    pred = torch.tensor([[[[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2]]]])
    truth, label = torch.tensor([[[0.55, 0.5, 0.4, 0.4]]]), torch.tensor([[0]])
    logits = torch.tensor([[[[1.0, -0.5, 0.5], [0, 2, 0.5]]]])
    scale = torch.ones(1, 2)
    if kind == SOFTMAX:
        scale[0, 0] = 1 / 1.1  # the sum of the weights of a box and of "no object"
    else:
        logits = logits[..., :2]
    losses, found, _ = form(
        [logits], [pred], [0, 0, 1, 0, 2], truth, label, torch.tensor([0, -1]), None, None, scale, [1.0] * 3, kind, alpha,
        gamma, 0.1, False, True,
    )  # fmt: skip
    assert losses[0].tolist() == pytest.approx([loss, 0.05, 0.222222], abs=2e-6)
    assert found[0][0, 0, 0].tolist() == pytest.approx(gradient, abs=2e-6)


def test_views_are_read_where_they_are() -> None:
    args = arguments(5, sets=3, queries=9, other_pairs=True)
    (logits,), (pred,), *rest = args
    by_image = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (logits, pred)]
    part = [torch.cat([t.roll(1, 2), t], 2)[:, :, 9:] for t in (logits, pred)]
    for views in (by_image, part):
        assert not views[0].is_contiguous()
        lists = [[one] for one in views]
        assert_same_bits([t.contiguous() for t in flat(op(*lists, *rest))], flat(op(*args)))
        for other in op.kernels[1:]:
            assert_close(other, other(*lists, *rest), op(*args), torch.float32)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(7, sets=3, batch=3, queries=300, boxes=12, classes=60)
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
@pytest.mark.parametrize(
    "options", [{"split": True, "clamp": True}, {"with_gradient": False, "kind": 0, "given_quality": True}], ids=str
)
def test_opcheck(device: str, options: dict[str, Any]) -> None:
    op.check(*moved(arguments(5, **options), device))


@pytest.mark.parametrize(
    "change",
    [
        dict(class_logits=[torch.zeros(2, 2, 6)]),
        dict(class_logits=[torch.zeros(2, 2, 4, 6).mT]),
        dict(pred_boxes=[torch.zeros(2, 2, 6, 3)]),
        dict(pred_boxes=[]),
        dict(parts=[0, 0, 2, 0]),
        dict(parts=[1, 0, 2, 0, 6]),
        dict(parts=[0, 1, 2, 0, 6]),
        dict(parts=[0, 0, 2, 1, 6]),
        dict(parts=[0, 0, -1, 0, 6]),
        dict(gt_boxes=torch.zeros(2, 3, 3)),
        dict(gt_labels=torch.zeros(2, 4).long()),
        dict(index=torch.zeros(24)),
        dict(box_index=torch.zeros(20).long()),
        dict(quality=torch.zeros(2, 2, 5)),
        dict(scale=torch.zeros(2)),
        dict(weights=[1.0, 1.0]),
        dict(kind=7),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(8), **change)


TWO: dict[str, str | tuple[str, ...]] = dict(firsts=("i32",) * 2, sizes=("i32",) * 4)
STRIDES: dict[str, str | tuple[str, ...]] = dict(logit_strides=("i32",) * 6, gradient_strides=("i32",) * 6)
KERNELS = [
    Kernel("query_kernel",
           dict(preds=("*fp16",) * 2, boxes="*fp32", labels="*i64", index="*i64", box_index="*i64", quality="*fp32",
                scale="*fp32", found_labels="*i32", found_quality="*fp32", gradients="*fp16", sums="*fp32", **TWO,
                pred_strides=("i32",) * 8, B="i32", N="i32", C="i32", rows="i32", l1_weight="fp32", giou_weight="fp32"),
           dict(PARTS=2, HAS_QUALITY=False, CLAMP=True, WITH_GRADIENT=True, DOUBLE=False, BLOCK=64), 2),
    *[
        Kernel("logit_kernel",
               dict(logits=("*fp16",) * 2, gradients=("*fp16",) * 2, found_labels="*i32", found_quality="*fp32",
                    scale="*fp32", sums="*fp32", **TWO, **STRIDES, B="i32", C="i32", class_weight="fp32", alpha="fp32",
                    gamma="fp32", exponent="fp32", factor="fp32"),
               dict(PARTS=2, KIND=kind, FIXED=kind in (VARIFOCAL, MAL), SQUARE=kind == IA_BCE, SQUARE_GAMMA=kind != MAL,
                    WITH_GRADIENT=True, DOUBLE=False, BLOCK=2048), 8)
        for kind in KINDS[1:]
    ],
    Kernel("softmax_kernel",
           dict(logits=("*fp32",) * 2, gradients=("*fp32",) * 2, found_labels="*i32", scale="*fp32", sums="*fp32", **TWO,
                **STRIDES, B="i32", C="i32", class_weight="fp32", factor="fp32"),
           dict(PARTS=2, WITH_GRADIENT=True, DOUBLE=False, BLOCK=16, BLOCK_C=128), 4),
    Kernel("sum_kernel",
           dict(of_logits="*fp32", of_boxes="*fp32", losses="*fp32", R="i32", class_parts="i32", box_parts="i32"),
           dict(DOUBLE=False, BLOCK=256), 4),
]  # fmt: skip
