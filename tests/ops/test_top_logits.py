"""The op top_logits: each level's highest class logits, in order."""

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
    assert_same_bits,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)

op = Op("top_logits")

SHAPES = [(7, 5), (3, 4), (0, 2), (1, 1)]
INF = float("inf")


def arguments(
    seed: int,
    batch: int = 2,
    classes: int = 3,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    least: float = -1.0,
    count: int = 9,
    ties: bool = False,
    shapes: list[tuple[int, int]] = SHAPES,
) -> tuple[Any, ...]:
    """Return the op's arguments; some logits are not finite."""
    g = torch.Generator().manual_seed(seed)
    levels = []
    for shape in shapes:
        level = torch.randn(batch, classes, *shape, generator=g) * 3
        level = level.round() if ties else level
        odd = torch.rand(level.shape, generator=g)
        for i, value in enumerate((float("nan"), INF, -INF, 0.0, -0.0)):
            level.masked_fill_((odd >= 0.02 * i) & (odd < 0.02 * i + 0.02), value)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        levels.append(level.to(dtype).contiguous(memory_format=layout))
    return levels, least, count


def assert_matches(form: Form, args: tuple[Any, ...], device: str = "cpu") -> None:
    values, index = moved(form(*moved(args, device)), "cpu")
    expected, places = op.reference(*args)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(index, places)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(150)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 3]),
        classes=st.sampled_from([1, 3, 20]),
        dtype=st.sampled_from(DTYPES),
        channels_last=st.booleans(),
        least=st.sampled_from([-INF, -1.0, 0.0, 2.5, 100.0]),
        count=st.sampled_from([1, 9, 10**6]),
        ties=st.booleans(),
    )
    def check(**options: Any) -> None:
        assert_matches(form, arguments(**options))

    check()


@pytest.mark.parametrize("least", [-INF, 1.0])
@pytest.mark.parametrize("channels_last", [False, True])
def test_more_than_one_task_and_more_keys_than_are_kept(channels_last: bool, least: float) -> None:
    args = arguments(1, 2, 40, channels_last=channels_last, least=least, count=50, shapes=[(70, 60), (50, 41)])
    for form in (op, op.portable):
        assert_matches(form, args)


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for seed, dtype in enumerate(DTYPES):
        for channels_last in (False, True):
            args = arguments(seed, 3, 20, dtype, channels_last, count=100, shapes=[(32, 35), (9, 9)])
            assert_matches(op, args, device="cuda")


def test_by_hand() -> None:
    """Two levels of two points and two classes; the first level's best are 5 and 4, the second's 4 and 1."""
    levels = [torch.tensor([[[[5.0, 1]], [[-3, 4]]]]), torch.tensor([[[[1.0, float("nan")]], [[0, 4]]]])]
    for form in (*op.forms, op.reference):
        values, index = form(levels, 0.5, 2)
        assert values.tolist() == [[5, 4, 4, 1]]
        assert index.tolist() == [[0, 3, 7, 4]]
        values, index = form(levels, 4.5, 2)
        assert values.nan_to_num(-9).tolist() == [[5, -9, -9, -9]]
        assert index.tolist() == [[0, 0, 0, 0]]


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(2, 3, 20, ties=True, count=30, shapes=[(80, 90), (20, 25)])
    assert_same_bits_for_any_threads(lambda: op(*args))


@op.for_each_form
def test_both_layouts_give_the_same(form: Form) -> None:
    assert_same_bits(form(*arguments(3, ties=True)), form(*arguments(3, ties=True, channels_last=True)))


@for_each_device
def test_opcheck(device: str) -> None:
    levels = [torch.randn(2, 3, *shape, device=device) for shape in SHAPES]  # all are found: none is NaN
    op.check(levels, -INF, 4)
    op.check([level.to(memory_format=torch.channels_last) for level in levels], -INF, 10**6)


@for_each_device
def test_no_host_sync(device: str) -> None:
    args: Any = moved(arguments(6), device)
    for form in (op, op.portable):
        values, index = assert_no_syncs(form, *args)
        assert values.shape == index.shape == (2, 9 + 9 + 3)


@pytest.mark.parametrize(
    "change",
    [
        {"logits": [torch.zeros(2, 3, 4)]},
        {"logits": [torch.zeros(2, 3, 8, 8)[..., ::2]]},
        {"logits": [torch.zeros(2, 3, 4, 4, dtype=torch.int64)]},
        {"logits": [torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 4)]},
        {"logits": [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4).half()]},
        {"count": 0},
    ],
    ids=changed_argument,
)
def test_refuses(change: dict[str, Any]) -> None:
    op.refuses(arguments(7), **change)


KERNELS = [
    Kernel("keys_kernel",
           dict(maps=("*" + name,) * 3, keys="*i64", starts=("i32",) * 3, rows=("i32",) * 3, inner=("i32",) * 3,
                outer=("i32",) * 3, C="i32", A="i32", least="fp32"),
           dict(LEVELS=3, BLOCK=1024), 4)
    for name in ("fp32", "fp16", "bf16", "fp64")
] + [
    Kernel("read_kernel", dict(keys="*i64", values="*fp32", index="*i64", count="i32"), dict(BLOCK=1024), 4)
]  # fmt: skip
