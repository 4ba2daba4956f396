"""The op select_detections: every form finds the same detections, bit for bit."""

import math
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

op = Op("select_detections")

Scene = tuple[Tensor, Tensor, Tensor, Tensor | None]


def candidates(
    seed: int, batch: int = 2, count: int = 20, labels: torch.dtype = torch.int64, sizes: bool = True, odd: bool = False,
    ties: bool = False,
) -> Scene:  # fmt: skip
    """Make boxes, labels, descending scores and image sizes; with `odd`, some boxes and scores are no candidates."""
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(batch, count, 2, generator=g) * 50 - 10
    boxes = torch.cat([low, low + torch.rand(batch, count, 2, generator=g) * 30], -1)
    scores = torch.rand(batch, count, generator=g)
    if ties:
        boxes, scores = (boxes / 8).floor() * 8, (scores * 4).floor() / 4
    scores = scores.sort(1, descending=True).values
    if odd and count:
        kind = torch.randint(9, (batch, count), generator=g)
        boxes[kind == 0] = boxes[kind == 0][:, [0, 1, 0, 1]]
        boxes[kind == 1] = boxes[kind == 1][:, [2, 3, 0, 1]]
        boxes[..., 2][kind == 2] = math.nan
        boxes[..., 3][kind == 3] = math.inf
        boxes[..., 0][kind == 4] = -math.inf
        boxes[..., 1][kind == 5] = math.nan
        scores[kind == 6] = math.nan
        scores[kind == 7] = -math.inf
    label = torch.randint(-1, 3, (batch, count), generator=g).to(labels)
    size = torch.randint(1, 60, (batch, 2), generator=g) if sizes else None
    return boxes, label, scores, size


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(100)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 3]),
        count=st.sampled_from([0, 1, 2, 20, 70]),
        labels=st.sampled_from([torch.int32, torch.int64]),
        sizes=st.booleans(),
        odd=st.booleans(),
        ties=st.booleans(),
        least=st.sampled_from([-3e38, 0.0, 0.25, 0.9]),
        iou_threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0, math.inf]),
        most=st.sampled_from([1, 5, 100]),
    )
    def check(least: float, iou_threshold: float, most: int, **options: Any) -> None:
        args = (*candidates(**options), least, iou_threshold, most)
        assert_same_bits(form(*args), op.reference(*args))

    check()


@op.for_each_form
def test_hundreds_of_candidates(form: Form) -> None:
    """More than a program takes at once, and more detections than are asked for."""
    scene = candidates(1, batch=1, count=300, sizes=False)
    for most in (20, 400):
        found = form(*scene, 0.05, 0.9, most)
        assert (found[1] >= -1).sum() == most
        assert (found[2] > 0).sum() == min(most, (op.reference(*scene, 0.05, 0.9, 400)[2] > 0).sum())
        assert_same_bits(found, op.reference(*scene, 0.05, 0.9, most))


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for seed in range(4):
        args = (*candidates(seed, count=300, odd=True, ties=seed % 2 == 1), 0.1, 0.5, 100)
        assert_same_bits(moved(op(*moved(args, "cuda")), "cpu"), op.reference(*args))


def test_by_hand() -> None:
    """The second box overlaps the first by 1/3, the third has another label, the fourth lies off the image."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 0, 15, 10], [0, 0, 10, 9], [30, 2, 40, 9], [-5, -5, 6, 3]]])
    labels, scores = torch.tensor([[1, 1, 2, 1, 0]]), torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.2]])
    sizes = torch.tensor([[20, 25]])
    for form in (*op.forms, op.reference):
        found, names, values = form(boxes, labels, scores, sizes, 0.1, 0.3, 4)
        assert names.tolist() == [[1, 2, 0, -1]]
        assert found[0].tolist() == [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 6, 3], [0, 0, 0, 0]]
        assert_same_bits(values, torch.tensor([[0.9, 0.7, 0.2, 0]]))
        assert form(boxes, labels, scores, sizes, 0.1, 0.4, 4)[1].tolist() == [[1, 1, 2, 0]]
        assert form(boxes, labels, scores, sizes, 0.65, math.inf, 4)[1].tolist() == [[1, 1, 2, -1]]
        assert form(boxes, labels, scores, None, 0.1, math.inf, 4)[1].tolist() == [[1, 1, 2, 1]]


def test_any_layout_and_number_of_threads() -> None:
    scene = candidates(3, batch=5, count=90)
    expected = op(*scene, 0.1, 0.5, 30)
    assert_same_bits_for_any_threads(lambda: op(*scene, 0.1, 0.5, 30))
    strided = [torch.stack([t, t], -1)[..., 0] for t in scene if t is not None]
    for form in op.forms:
        assert_same_bits(form(*strided, 0.1, 0.5, 30), expected)


@for_each_device
def test_opcheck(device: str) -> None:
    op.check(*moved(candidates(4, odd=True), device), 0.1, 0.5, 30)
    op.check(*moved(candidates(5, sizes=False), device), 0.1, math.inf, 5)


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    args, more = ((*moved(candidates(6, count=n), device), 0.1, 0.5, 30) for n in (20, 41))
    for form in (op, op.portable):
        assert assert_no_syncs(form, *args)[0].shape == (2, 30, 4)
    assert_compiles_whole(op.overload, args, more)


@pytest.mark.parametrize(
    "change",
    [
        dict(boxes=torch.zeros(2, 20)),
        dict(labels=torch.zeros(2, 19).long()),
        dict(scores=torch.zeros(20)),
        dict(image_sizes=torch.zeros(2, 3)),
        dict(iou_threshold=math.nan),
        dict(max_detections=0),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses((*candidates(8), 0.1, 0.5, 30), **change)


KERNELS = [
    Kernel("candidates_kernel", dict(boxes="*fp32", scores="*fp32", image_sizes="*fp32", clipped="*fp32", alive="*u8",
                                     M="i32", least="fp32"), dict(HAS_SIZES=True, BLOCK=256), 4),
    Kernel("gather_kernel", dict(boxes="*fp32", labels="*i64", scores="*fp32", kept="*u8", found_boxes="*fp32",
                                 found_labels="*i64", found_scores="*fp32", M="i32", K="i32"), dict(BLOCK=256), 4),
]  # fmt: skip
