"""The op decode_rows: the box, the class and the logits that each raw row of a YOLOX network predicts."""

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

from detops import grid_points

op = Op("decode_rows")

INF, NAN = float("inf"), float("nan")
SHAPES, STRIDES = [(5, 4), (2, 3), (0, 2), (1, 1)], [8, 16, 32, 64]


def arguments(
    seed: int,
    batch: int = 2,
    classes: int = 3,
    dtype: torch.dtype = torch.float32,
    channels_first: bool = False,
    coarse: bool = False,
    odd: bool = False,
    shapes: list[tuple[int, int]] = SHAPES,
) -> tuple[Any, ...]:
    """Return the op's arguments; with `coarse` logits repeat, with `odd` some numbers are not finite or very large."""
    g = torch.Generator().manual_seed(seed)
    outputs = []
    for height, width in shapes:
        rows = torch.randn(batch, height * width, 5 + classes, generator=g) * 2
        rows = rows.round() if coarse else rows
        if odd:
            chance = torch.rand(rows.shape, generator=g)
            for i, value in enumerate((NAN, INF, -INF, 200.0, -200.0)):
                rows.masked_fill_((chance >= 0.01 * i) & (chance < 0.01 * i + 0.01), value)
        rows = rows.to(dtype)
        outputs.append(rows.transpose(1, 2).contiguous().transpose(1, 2) if channels_first else rows)
    return outputs, grid_points(shapes, STRIDES[: len(shapes)])


def assert_matches(form: Form, args: tuple[Any, ...], device: str = "cpu") -> None:
    boxes, labels, logits, objectness = moved(form(*moved(args, device)), "cpu")
    expected, names, values, others = op.reference(*args)
    torch.testing.assert_close(boxes, expected, rtol=1e-6, atol=1e-4, equal_nan=True)
    assert torch.equal(labels, names)
    torch.testing.assert_close(logits, values, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(objectness, others, rtol=0, atol=0, equal_nan=True)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(100)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 3]),
        classes=st.sampled_from([1, 3, 20, 33]),
        dtype=st.sampled_from(DTYPES),
        channels_first=st.booleans(),
        coarse=st.booleans(),
        odd=st.booleans(),
    )
    def check(**options: Any) -> None:
        assert_matches(form, arguments(**options))

    check()


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for seed, dtype in enumerate((torch.float32, torch.float16, torch.bfloat16)):
        args = arguments(seed, classes=80, dtype=dtype, coarse=seed == 1, shapes=[(20, 15), (8, 8)])
        assert_matches(op, args, "cuda")


@pytest.mark.parametrize("form", [*op.forms, op.reference], ids=str)
def test_by_hand(form: Form) -> None:
    rows = torch.zeros(1, 2, 8)
    rows[0, 1] = torch.tensor([1.0, 0.5, 0, 0, -3, 2, 4, 4])
    boxes, labels, logits, objectness = form([rows], grid_points([(1, 2)], [8]))
    assert boxes.tolist() == [[[-4, -4, 4, 4], [12, 0, 20, 8]]]
    assert labels.tolist() == [[0, 1]]  # of equal logits the lower class
    assert logits.tolist() == [[0, 4]]
    assert objectness.tolist() == [[0, -3]]
    rows[0, 0, 6], rows[0, 1, 2] = NAN, 200.0
    assert form([rows], grid_points([(1, 2)], [8]))[2].isnan().all()
    rows[0, 0, 5:] = torch.tensor([-INF, INF, 7])
    assert form([rows], grid_points([(1, 2)], [8]))[1][0, 0] == 1
    rows[0, 0, 5:] = -INF
    _, labels, logits, _ = form([rows], grid_points([(1, 2)], [8]))
    assert (labels[0, 0], logits[0, 0]) == (0, -INF)


@op.for_each_form
def test_any_layout_gives_the_same(form: Form) -> None:
    assert_same_bits(form(*arguments(3)), form(*arguments(3, channels_first=True)))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(2, 3, 20, shapes=[(40, 30), (20, 15)])
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
@pytest.mark.parametrize("options", [{}, {"batch": 0}, {"dtype": torch.float16, "channels_first": True}], ids=str)
def test_opcheck(device: str, options: dict[str, Any]) -> None:
    op.check(*moved(arguments(4, **options), device))


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    args, more = (moved(arguments(6, batch), device) for batch in (2, 3))
    for form in (op, op.portable):
        assert assert_no_syncs(form, *args)[0].shape == (2, 27, 4)
    assert_compiles_whole(op.overload, args, more)


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": []},
        {"outputs": [torch.zeros(2, 27, 5)]},
        {"outputs": [torch.zeros(2, 26, 8), torch.zeros(2, 1, 9)]},
        {"outputs": [torch.zeros(2, 26, 8), torch.zeros(2, 1, 8).half()]},
        {"outputs": [torch.zeros(2, 27, 8, dtype=torch.int64)]},
        {"points": torch.zeros(26, 3)},
    ],
    ids=changed_argument,
)
def test_refuses(change: dict[str, Any]) -> None:
    op.refuses(arguments(7), **change)


KERNELS = [
    Kernel("rows_kernel",
           dict(outputs=("*" + name,) * 3, points="*fp32", boxes="*fp32", labels="*i64", logits="*fp32",
                objectness="*fp32", strides=("i32",) * 9, firsts=("i32",) * 3, starts=("i32",) * 3, rows=("i32",) * 3,
                C="i32", A="i32"),
           dict(LEVELS=3, TOGETHER=name != "bf16", BLOCK=64, BLOCK_C=16), 4)
    for name in ("fp32", "fp16", "bf16")
]  # fmt: skip
