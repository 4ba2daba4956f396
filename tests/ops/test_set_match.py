"""The op set_match and hungarian_match: every form finds a matching of the least cost."""

from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import given
from hypothesis import strategies as st
from op import (
    DTYPES,
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
from set_scenes import set_scene
from torch import Tensor

import detops
from detops.reference import set_match as definition

op = Op("set_match")


def arguments(
    seed: int,
    groups: int = 1,
    kind: int = 1,
    gamma: float = 2.0,
    eps: float = 1e-8,
    weights: tuple[float, float, float] = (2.0, 5.0, 2.0),
    extra: bool = False,
    more: bool = False,
    **scene: Any,
) -> tuple[Any, ...]:
    """With `more` there are two more parts: of as many queries, and of two more."""
    found = set_scene(seed, **scene)
    classes = found["class_logits"].shape[3] - (kind == 0)
    logits, boxes = found["class_logits"], found["gt_boxes"]
    # Stored box by box, as a product of labels and logits may lie in memory.
    shape = (boxes.shape[1], *logits.shape[:3])
    costs = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul_(5).movedim(0, 3).to(logits.dtype)
    others = [set_scene(seed + i, **scene | dict(queries=logits.shape[2] + i)) for i in (0, 2) if more]
    for name in ("class_logits", "pred_boxes"):
        found[name] = [found[name], *(other[name][:1] for other in others)]
    return (*found.values(), classes, groups, kind, 0.25, gamma, eps, *weights, costs if extra else None)


def by_part(args: tuple[Any, ...], found: tuple[Tensor, ...]) -> list[tuple[Any, ...]]:
    """Arguments with one part each, and its queries and boxes."""
    parts, sets, rows = [], 0, 0
    for i, (logits, pred) in enumerate(zip(*args[:2], strict=True)):
        count = logits.shape[:3].numel()
        own = (logits, pred, *args[2:-1], args[-1] if i == 0 else None)
        index = found[1][rows : rows + count].view(logits.shape[:3])
        parts.append((own, found[0][sets : sets + len(logits)], index))
        sets, rows = sets + len(logits), rows + count
    assert (sets, rows) == (len(found[0]), len(found[1]))
    return parts


def total(args: tuple[Any, ...], query: Tensor) -> Tensor:
    """(S, G, B, 2) costs of a matching: how many are not finite, and the sum of the others."""
    logits, pred, boxes, labels, *_ = args
    kind, alpha, gamma, eps, *weights, extra = args[7:]
    found = torch.zeros(*query.shape[:3], 2, dtype=torch.float64)
    for s, g, b, n in (query >= 0).nonzero().tolist():
        q = int(query[s, g, b, n])
        x, box, target = logits[s, b, q : q + 1].double(), pred[s, b, q : q + 1].double(), boxes[b, n].double()
        cost = (
            weights[0] * definition._class_cost(x, int(labels[b, n]), kind, alpha, gamma, eps)
            + weights[1] * (box - target).abs().sum(1)
            - weights[2] * definition.giou(box, target)
            + (0 if extra is None else extra[s, b, q, n].double())
        )[0]
        found[s, g, b, 0] += not cost.isfinite()
        found[s, g, b, 1] += cost.nan_to_num(0, 0, 0)
    return found


def assert_as_good(args: tuple[Any, ...], found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    """The same boxes have a query, no query has two, and the costs are the same; all results say the same."""
    assert found[0].dtype == found[1].dtype == torch.int64
    assert torch.equal(found[2], wanted[2])
    for (own, query, index), (_, expected, _) in zip(by_part(args, found), by_part(args, wanted), strict=True):
        pairs = torch.full((*index.shape[:2], index.shape[2] + 1), -1)
        for s, g, b, n in (query >= 0).nonzero().tolist():
            pairs[s, b, query[s, g, b, n]] = n
        assert torch.equal(index, pairs[..., :-1])
        if torch.equal(query, expected):
            continue
        assert torch.equal((query >= 0).sum(3), (expected >= 0).sum(3))
        for row in query.flatten(0, 2):
            taken = row[row >= 0]
            assert len(taken.unique()) == len(taken)
        torch.testing.assert_close(total(own, query), total(own, expected), rtol=0, atol=1e-4)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(80)
    @given(
        seed=st.integers(0, 10**6),
        sets=st.sampled_from([0, 1, 2]),
        batch=st.sampled_from([0, 1, 3]),
        queries=st.sampled_from([0, 1, 2, 7]),
        boxes=st.sampled_from([0, 1, 4]),
        groups=st.sampled_from([1, 2, 3]),
        kind=st.sampled_from([0, 1]),
        gamma=st.sampled_from([2.0, 1.5]),
        eps=st.sampled_from([0.0, 1e-8]),
        dtype=st.sampled_from(DTYPES),
        odd=st.booleans(),
        ragged=st.booleans(),
        extra=st.booleans(),
        more=st.booleans(),
        label_dtype=st.sampled_from([torch.int64, torch.int32]),
    )
    def check(**options: Any) -> None:
        args = arguments(**options)
        assert_as_good(args, form(*args), op.reference(*args))

    check()


@op.for_each_form
def test_dozens_of_boxes(form: Form) -> None:
    for options in (dict(kind=0), dict(groups=2), dict(eps=0.0, ragged=True, odd=True, extra=True, more=True)):
        args = arguments(3, sets=1, batch=1, queries=50, boxes=18, **options)  # type: ignore[arg-type]
        found = form(*args)
        assert (found[0] >= 0).sum() > 2
        assert_as_good(args, found, op.reference(*args))


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for seed, options in enumerate((dict(kind=0), dict(groups=2), dict(eps=0.0, ragged=True, odd=True, more=True))):
        args = arguments(seed, queries=60, boxes=20, **options)  # type: ignore[arg-type]
        assert_as_good(args, tuple(part.cpu() for part in op(*moved(args, "cuda"))), op.reference(*args))


@op.for_each_form
def test_values_by_hand(form: Form) -> None:
    """Two queries and one box whose costs were worked out on paper."""
    pred = torch.tensor([[[[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2]]]])
    truth, label = torch.tensor([[[0.55, 0.5, 0.4, 0.4]]]), torch.tensor([[0]])
    logits = torch.tensor([[[[1.0, -0.5], [0, 2]]]])
    for query, cost in ((0, -2.347029), (1, 4.607249)):
        one, rest = [part[:, :, query : query + 1] for part in (logits, pred)], (truth, label, None, 2, 1, 1, 0.25, 2.0)
        more = (*rest, 1e-8, 2.0, 5.0, 2.0, None)
        assert form(*([part] for part in one), *more)[0].item() == 0
        assert total((*one, *more), torch.zeros(1, 1, 1, 1).long())[..., 1].item() == pytest.approx(cost, abs=2e-6)
    assert form([logits], [pred], truth, label, None, 2, 1, 1, 0.25, 2.0, 1e-8, 2.0, 5.0, 2.0)[0].tolist() == [[[[0]]]]
    softmax = torch.cat([logits, torch.full((1, 1, 2, 1), 0.5)], -1)
    for query, cost in ((0, -0.546549), (1, -0.099624)):
        assert definition._class_cost(softmax[0, 0], 0, 0, 0.25, 2.0, 1e-8)[query].item() == pytest.approx(
            cost, abs=1e-6
        )


def test_an_extra_cost_decides_where_the_others_are_the_same() -> None:
    logits, boxes = torch.zeros(2, 1, 3, 4), torch.full((2, 1, 3, 4), 0.5)
    truth = (boxes[0, :, :2], torch.zeros(1, 2).long())
    extra = torch.tensor([[[3.0, 1], [2, 3], [1, 3]], [[0, 9], [9, 9], [9, 0]]])[:, None]
    assert detops.hungarian_match(logits, boxes, truth, extra_cost=extra)[:, 0, 0].tolist() == [[2, 0], [0, 2]]
    assert detops.hungarian_match(logits[0], boxes[0], truth, extra_cost=extra[0])[0, 0].tolist() == [2, 0]


@op.for_each_form
def test_large_logits_have_costs(form: Form) -> None:
    """In float16 too; the best query of a box is the one that is surer of it, where boxes are the same."""
    logits = torch.tensor([[-40.0, -20, 20, 30, 12], [0, 0, 0, 0, 0]]).T[None, None]
    pred = torch.full((1, 1, 5, 4), 0.5)
    for dtype in (torch.float32, torch.float16):
        for eps in (0.0, 1e-8):
            args = ([logits.to(dtype)], [pred.to(dtype)], pred[0, :, :1], torch.tensor([[0]]), None)
            found = form(*args, 2, 1, 1, 0.25, 2.0, eps, 2.0, 5.0, 2.0)[0].item()
            assert found == 3 if eps == 0 else found in (2, 3)


def test_views_are_read_where_they_are() -> None:
    args = arguments(5, sets=3, groups=2, ragged=True)
    (logits,), (pred,), *rest = args
    by_image = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (logits, pred)]
    spaced = [torch.stack([t, t], -1)[..., 0] for t in (logits, pred)]
    for views in (by_image, spaced):
        assert not views[0].is_contiguous()
        assert_same_bits(op(*([one] for one in views), *rest), op(*args))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(7, sets=3, batch=3, queries=40, boxes=12, groups=2)
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
@pytest.mark.parametrize(
    "options", [{}, {"groups": 2, "kind": 0, "ragged": True, "extra": True, "more": True}], ids=["plain", "groups"]
)
def test_opcheck(device: str, options: dict[str, Any]) -> None:
    op.check(*moved(arguments(5, **options), device))


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    def match(logits: Tensor, pred: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        return detops.hungarian_match(logits, pred, (boxes, labels), groups=2)

    args, more = (moved(tuple(set_scene(6, boxes=n).values())[:4], device) for n in (3, 5))
    assert assert_no_syncs(match, *args).shape == (2, 2, 2, 3)
    assert_compiles_whole(match, args, more)


def test_hungarian_match_takes_targets_in_every_form() -> None:
    scene = set_scene(9, sets=3, boxes=4, ragged=True)
    logits, pred, boxes, labels, sizes = scene.values()
    expected = op([logits], [pred], boxes, labels, sizes, 4, 1, 1, 0.25, 2.0, 1e-8, 2.0, 5.0, 2.0)[0]
    lists = [b[:n] for b, n in zip(boxes, sizes, strict=True)], [b[:n] for b, n in zip(labels, sizes, strict=True)]
    dicts = [{"boxes": b, "class_labels": c} for b, c in zip(*lists, strict=True)]
    image_sizes = torch.tensor([[480, 640], [300, 200]])
    width_height = image_sizes.flip(1)[:, None].repeat(1, 1, 2)
    pixels = boxes * width_height
    corners = torch.cat([pixels[..., :2] - pixels[..., 2:] / 2, pixels[..., :2] + pixels[..., 2:] / 2], -1)
    truth = detops.GroundTruth(corners, labels, sizes, image_sizes)
    most = int(sizes.max())
    for targets in (lists, dicts, [{"boxes": d["boxes"], "labels": d["class_labels"]} for d in dicts], truth):
        found = detops.hungarian_match(logits, pred, targets)  # type: ignore[arg-type]
        assert torch.equal(found[..., :most], expected[..., :most])
    single = detops.hungarian_match(logits[1], pred[1], truth)
    assert torch.equal(single, expected[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(kind="sigmoid"), "kind: expected"),
        (dict(groups=4), "groups: expected a divisor of 6"),
        (dict(groups=0), "groups: expected"),
        (dict(pred_boxes=torch.zeros(2, 2, 5, 4)), r"pred_boxes: expected shape \(2, 2, 6, 4\)"),
        (dict(class_logits=torch.zeros(2, 6)), "class_logits: expected shape"),
        (dict(class_logits=torch.zeros(2, 2, 6, 4).long()), "class_logits: expected"),
        (dict(targets=(torch.zeros(3, 1, 4), torch.zeros(3, 1).long())), "targets: expected 2 images"),
        (dict(targets=[torch.zeros(4)]), "targets: expected"),
        (dict(targets=detops.GroundTruth(torch.zeros(2, 1, 4), torch.zeros(2, 1).long())), "image_sizes"),
        (dict(gamma=-1.0), "gamma: expected"),
        (dict(extra_cost=torch.zeros(2, 2, 3, 6)), r"extra_cost: expected shape \(2, 2, 6, 3\)"),
        (dict(extra_cost=torch.zeros(2, 2, 6, 3).long()), "extra_cost: expected"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    logits, pred, boxes, labels, _ = set_scene(8).values()
    given_: dict[str, Any] = dict(class_logits=logits, pred_boxes=pred, targets=(boxes, labels)) | change
    with pytest.raises((TypeError, ValueError), match=message):
        detops.hungarian_match(**given_)


def test_checked_mode_names_the_box() -> None:
    logits, pred, boxes, labels, _ = set_scene(8).values()
    labels[1, 2] = 7
    with detops.checked(), pytest.raises(ValueError, match=r"labels: box 2 of sample 1 has 7, expected .* 0 \.\. 3"):
        detops.hungarian_match(logits, pred, (boxes, labels))
    labels[1, 2], boxes[0, 1, 2] = -1, -0.5
    with detops.checked(), pytest.raises(ValueError, match="boxes: box 1 of sample 0"):
        detops.hungarian_match(logits, pred, (boxes, labels))


@pytest.mark.parametrize(
    "change",
    [
        dict(class_logits=[torch.zeros(2, 2, 6)]),
        dict(class_logits=[torch.zeros(2, 3, 6, 4)]),
        dict(pred_boxes=[torch.zeros(2, 2, 6, 3)]),
        dict(pred_boxes=[]),
        dict(gt_boxes=torch.zeros(2, 3, 3)),
        dict(gt_labels=torch.zeros(2, 4).long()),
        dict(sample_sizes=torch.zeros(3).long()),
        dict(num_classes=5),
        dict(groups=0),
        dict(kind=2),
        dict(extra_cost=torch.zeros(2, 2, 6, 4)),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(8), **change)


KERNELS = [
    Kernel("valid_kernel",
           dict(boxes="*fp32", labels="*i64", sizes="*i64", valid="*u8", N="i32", total="i32", num_classes="i32"),
           dict(HAS_SIZES=True, BLOCK=128), 4),
    Kernel("assign_kernel",
           dict(cost="*fp32", sizes="*u8", valid="*u8", query_of="*i64", box_of="*i64", Q="i32", N="i32", B="i32",
                G="i32", queries="i32"),
           dict(HAS_SIZES=False, HAS_VALID=True, BLOCK=512, BLOCK_S=32), 4),
    Kernel("cost_kernel",
           dict(logits=("*fp16", "*fp16"), preds=("*fp16", "*fp16"), totals="*fp32", boxes="*fp32", labels="*i64",
                valid="*u8", extra="*fp16", costs="*fp32", firsts=("i32",) * 2, logit_strides=("i32",) * 8,
                pred_strides=("i32",) * 8, B="i32", Q="i32", N="i32", G="i32", each="i32", extra_set="i32",
                extra_image="i32", extra_query="i32", extra_box="i32", alpha="fp32", gamma="fp32", eps="fp32",
                class_cost="fp32", box_cost="fp32", giou_cost="fp32"),
           dict(PARTS=2, IS_SOFTMAX=False, HAS_EPS=True, SQUARE=True, HAS_EXTRA=True, BLOCK=128), 4),
]  # fmt: skip
