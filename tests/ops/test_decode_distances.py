"""The op decode_distances: every form gives the boxes of the definition."""

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
    assert_no_syncs,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)
from positive_scenes import positive_scene

import detops

op = Op("decode_distances")


def arguments(seed: int = 0, **options: Any) -> tuple[Any, ...]:
    scene = positive_scene(seed, teacher=False, **options)
    return scene["bbox_preds"], scene["points"]


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(60)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        bins=st.sampled_from([1, 2, 5, 16, 17]),
        dtype=st.sampled_from(DTYPES),
        channels_last=st.booleans(),
    )
    def check(**options: Any) -> None:
        args = arguments(**options)
        boxes = form(*args)
        assert boxes.dtype == torch.float32
        torch.testing.assert_close(boxes.double(), op.reference(*args), rtol=1e-5, atol=1e-4)

    check()


@op.for_each_form
def test_what_is_not_finite_stays_at_its_point(form: Form) -> None:
    preds, points = arguments()
    expected = form(preds, points)
    preds[0][1, 3, 2, 1] = float("nan")
    boxes = form(preds, points)
    assert not boxes[1, 2 * 6 + 1, 0].isfinite()
    boxes[1, 2 * 6 + 1] = expected[1, 2 * 6 + 1]
    torch.testing.assert_close(boxes, expected, rtol=0, atol=0)


def test_by_hand() -> None:
    """Even distributions over 0, 1 and 2 have the mean 1: a stride to each side. One number is the distance itself."""
    points = torch.tensor([[12.0, 20, 8]])
    for form in op.forms:
        assert form([torch.zeros(1, 12, 1, 1)], points).tolist() == [[[4, 12, 20, 28]]]
        assert form([torch.tensor([1.0, 0.5, 0, 2]).view(1, 4, 1, 1)], points).tolist() == [[[4, 16, 12, 36]]]


@pytest.mark.parametrize("form", [op.portable, op], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_runs_in_any_layout(form: Form, dtype: torch.dtype) -> None:
    """Many points in a row, as many as are computed together and some more; channels last; a cut-out of wider maps."""
    shapes, g = [(9, 15), (1, 64)], torch.Generator().manual_seed(0)
    points = detops.grid_points(shapes, (8, 16))
    wide = [torch.randn(2, 36, h, w + 1, generator=g).mul(2).to(dtype) for h, w in shapes]
    cut = [level[..., 1:] for level in wide]
    expected = op.reference(cut, points)
    for maps in (cut, [m.contiguous() for m in cut], [m.contiguous(memory_format=torch.channels_last) for m in cut]):
        torch.testing.assert_close(form(maps, points).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for bins in (1, 16, 17):
        args = arguments(bins, bins=bins)
        torch.testing.assert_close(op(*moved(args, "cuda")).cpu().double(), op.reference(*args), rtol=1e-5, atol=1e-4)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(bins=17)
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
def test_opcheck_and_no_host_sync(device: str) -> None:
    args = moved(arguments(), device)
    op.check(*args)
    assert assert_no_syncs(op.portable, *args).shape == (2, len(args[1]), 4)


@pytest.mark.parametrize(
    "change",
    [dict(bbox_preds=[]), dict(bbox_preds=[torch.zeros(2, 6, 31, 1)]), dict(points=torch.zeros(31, 2))],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(), **change)


def _kernels() -> list[Kernel]:
    three = ("i32",) * 3
    types: dict[str, str | tuple[str, ...]] = dict(
        levels=("*fp16",) * 3, strides_b=three, strides_c=three, strides_y=three, strides_x=three, starts=three,
        rows=three, widths=three, points="*fp32", boxes="*fp32", A="i32",
    )  # fmt: skip
    return [
        Kernel("decode_kernel", types, dict(LEVELS=3, BINS=bins, BLOCK=64, BLOCK_J=block), 4)
        for bins, block in ((17, 32), (1, 2))
    ]


KERNELS = _kernels()
