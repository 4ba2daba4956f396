"""The op decode_peaks: the highest local maxima of a heatmap, in order, and the box at each."""

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

op = Op("decode_peaks")

INF, NAN = float("inf"), float("nan")


def arguments(
    seed: int,
    shape: tuple[int, ...] = (2, 3, 6, 9),
    kernel: int = 3,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    count: int = 20,
    steps: int = 0,
    odd: bool = True,
) -> tuple[Any, ...]:
    """Return the op's arguments; with `steps` logits repeat, so that there are ties and plateaus."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=g) * 3
    if steps:
        logits = (logits * steps).round() / steps
    if odd:
        chance = torch.rand(shape, generator=g)
        for i, value in enumerate((NAN, INF, -INF, 0.0, -0.0)):
            logits.masked_fill_((chance >= 0.02 * i) & (chance < 0.02 * i + 0.02), value)
    wh, offset = (torch.randn(shape[0], 2, *shape[2:], generator=g) for _ in range(2))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    maps = [level.to(dtype).contiguous(memory_format=layout) for level in (logits, wh.abs() * 4, offset)]
    return (*maps, kernel, 4.0, 3.7, count)


def assert_matches(form: Form, args: tuple[Any, ...], device: str = "cpu") -> None:
    boxes, labels, values = moved(form(*moved(args, device)), "cpu")
    expected, names, logits = op.reference(*args)
    assert boxes.dtype == values.dtype == torch.float32
    assert torch.equal(boxes, expected)
    assert torch.equal(labels, names)
    torch.testing.assert_close(values, logits, rtol=0, atol=0, equal_nan=True)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(120)
    @given(
        seed=st.integers(0, 10**6),
        shape=st.sampled_from([(0, 2, 3, 3), (1, 1, 1, 1), (2, 3, 6, 9), (1, 7, 5, 2)]),
        kernel=st.sampled_from([1, 3, 5]),
        dtype=st.sampled_from(DTYPES),
        channels_last=st.booleans(),
        count=st.sampled_from([1, 20, 10**6]),
        steps=st.sampled_from([0, 1, 4]),
    )
    def check(**options: Any) -> None:
        assert_matches(form, arguments(**options))

    check()


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for seed, channels_last in enumerate((False, True) * 3):
        assert_matches(op, arguments(seed, (2, 9, 20, 30), channels_last=channels_last, steps=seed % 3), "cuda")
        assert_matches(op, arguments(seed, (1, 9, 20, 30), count=10**6, dtype=torch.float16), "cuda")


@op.for_each_form
def test_more_than_a_block_and_a_task(form: Form) -> None:
    """The highest are spread over blocks, of which each keeps as many as there are places."""
    for channels_last in (False, True):
        assert_matches(form, arguments(1, (1, 5, 30, 20), channels_last=channels_last, count=40))
    if not form.interpreted:
        assert_matches(form, arguments(2, (1, 9, 90, 95), count=300, steps=2))


@pytest.mark.parametrize("form", [*op.forms, op.reference], ids=str)
def test_by_hand(form: Form) -> None:
    logits = torch.full((1, 2, 3, 4), -5.0)
    logits[0, 0, 1, 2] = logits[0, 1, 0, 0] = 2.0
    logits[0, 0, 1, 1] = 1.0  # beside a higher one
    wh, offset = torch.full((1, 2, 3, 4), 2.0), torch.zeros(1, 2, 3, 4)
    offset[0, 0, 1, 2] = 0.5
    boxes, labels, values = form(logits, wh, offset, 3, 4.0, 8.0, 3)
    assert labels.tolist()[0][:2] == [0, 1]
    assert values.tolist()[0] == [2, 2, -5]
    assert boxes.tolist()[0][:2] == [[6, 0, 14, 16], [-4, -8, 4, 8]]
    logits[:] = torch.tensor([-INF, NAN, -INF, -INF])
    logits[0, 1, 2, 3] = INF
    boxes, labels, values = form(logits, wh, offset, 3, 4.0, 8.0, 2)
    assert labels.tolist() == [[1, -1]]
    assert boxes.tolist() == [[[8, 8, 16, 24], [0] * 4]]
    assert values.tolist()[0][0] == INF
    assert values[0, 1].isnan()


@op.for_each_form
def test_around_a_nan_nothing_is_a_peak(form: Form) -> None:
    logits = torch.zeros(1, 1, 5, 5)
    logits[0, 0, 2, 2] = NAN
    maps = logits, torch.ones(1, 2, 5, 5), torch.zeros(1, 2, 5, 5)
    assert (form(*maps, 3, 1.0, 1.0, 25)[1] == 0).sum() == 25 - 9
    assert (form(*maps, 5, 1.0, 1.0, 25)[1] == 0).sum() == 0


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(2, (3, 4, 170, 160), count=100, steps=2)
    assert_same_bits_for_any_threads(lambda: op(*args))


@op.for_each_form
def test_any_layout_gives_the_same(form: Form) -> None:
    args = arguments(3, steps=1)
    assert_same_bits(form(*args), form(*arguments(3, steps=1, channels_last=True)))
    wide = [torch.stack([level, level], -1)[..., 0] for level in args[1:3]]
    assert_same_bits(form(*args), form(args[0], *wide, *args[3:]))


@for_each_device
def test_opcheck(device: str) -> None:
    op.check(*moved(arguments(4, odd=False, kernel=1, count=5), device))
    op.check(*moved(arguments(4, odd=False, kernel=1, channels_last=True, dtype=torch.float16), device))


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    args, more = (moved(arguments(6, (batch, 3, 6, 9)), device) for batch in (2, 3))
    for form in (op, op.portable):
        boxes, labels, values = assert_no_syncs(form, *args)
        assert boxes.shape == (2, 20, 4)
        assert labels.shape == values.shape == (2, 20)
    assert_compiles_whole(op.overload, args, more)


@pytest.mark.parametrize(
    "change",
    [
        {"logits": torch.zeros(2, 6, 9)},
        {"logits": torch.zeros(2, 3, 6, 9, dtype=torch.int64)},
        {"logits": torch.zeros(2, 3, 6, 18)[..., ::2]},
        {"wh": torch.zeros(2, 1, 6, 9)},
        {"offset": torch.zeros(2, 2, 6, 8)},
        {"kernel": 2},
        {"count": 0},
    ],
    ids=changed_argument,
)
def test_refuses(change: dict[str, Any]) -> None:
    op.refuses(arguments(7), **change)


KERNELS = [
    Kernel("peaks_kernel",
           dict(logits="*" + name, keys="*i64", C="i32", H="i32", W="i32", reach="i32"),
           dict(BY_CLASS=name != "fp16", KEEP=keep, BLOCK=2048), 8)
    for name, keep in (("fp32", 128), ("fp16", 128), ("bf16", 16), ("fp64", 2048))
] + [
    Kernel("boxes_kernel",
           dict(keys="*i64", wh="*fp16", offset="*fp16", boxes="*fp32", labels="*i64", values="*fp32", K="i32", H="i32",
                W="i32", scale_x="fp32", scale_y="fp32", wh_b="i32", wh_c="i32", wh_y="i32", wh_x="i32", offset_b="i32",
                offset_c="i32", offset_y="i32", offset_x="i32"),
           dict(BLOCK=256), 4)
]  # fmt: skip
