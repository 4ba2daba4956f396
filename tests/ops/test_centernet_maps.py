"""The op centernet_maps: sizes and offsets of boxes in dense maps."""

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
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)

op = Op("centernet_maps")


def arguments(
    seed: int = 0,
    batch: int = 2,
    boxes: int = 5,
    size: tuple[int, int] = (6, 7),
    dtype: torch.dtype = torch.float32,
    wide: torch.dtype = torch.float32,
    index_dtype: torch.dtype = torch.int64,
) -> tuple[Any, ...]:
    """Return boxes at distinct cells, some of which lie beyond the map or are not used."""
    g = torch.Generator().manual_seed(seed)
    wh, offset = (torch.randn(batch, boxes, 2, generator=g).to(wide) for _ in range(2))
    area = size[0] * size[1]
    index = torch.zeros(batch, boxes, dtype=index_dtype)
    for row in index:
        row.copy_(torch.randperm(max(area, boxes) + 3, generator=g)[:boxes] - 1)
    used = torch.rand(batch, boxes, generator=g) < 0.8
    offset[~used] = torch.nan  # is not read
    return wh, offset, index, used, *size, dtype


def assert_matches(form: Form, args: tuple[Any, ...], device: str = "cpu") -> None:
    maps, expected = moved(form(*moved(args, device)), "cpu"), op.reference(*args)
    assert maps.dtype == args[-1]
    assert maps.is_contiguous()
    assert torch.equal(maps, expected)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(60)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 3]),
        boxes=st.sampled_from([0, 1, 5, 400]),
        size=st.sampled_from([(6, 7), (1, 1), (30, 20)]),
        dtype=st.sampled_from(DTYPES),
        wide=st.sampled_from([torch.float32, torch.float64]),
        index_dtype=st.sampled_from([torch.int32, torch.int64]),
    )
    def check(**options: Any) -> None:
        assert_matches(form, arguments(**options))

    check()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_matches_reference(dtype: torch.dtype) -> None:
    assert_matches(op, arguments(1, boxes=100, size=(30, 20), dtype=dtype), "cuda")


@pytest.mark.parametrize("form", [*op.forms, op.reference], ids=str)
def test_by_hand(form: Form) -> None:
    wh, offset = torch.tensor([[[3.0, 4], [5, 6], [7, 8]]]), torch.tensor([[[0.5, 0.25], [0, 0], [1, 1]]])
    index, used = torch.tensor([[2, 1, 4]]), torch.tensor([[True, False, True]])
    maps = form(wh, offset, index, used, 2, 2, torch.float32)
    assert maps[0, :, 1, 0].tolist() == [3, 4, 0.5, 0.25, 1]
    assert maps.sum() == 3 + 4 + 0.75 + 1  # nothing else: one box is not used, one lies beyond the map


@op.for_each_form
def test_any_layout(form: Form) -> None:
    args = arguments(3)
    views = [torch.stack([value, value], -1)[..., 0] for value in args[:4]]
    assert torch.equal(form(*views, *args[4:]), op.reference(*args))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(2, batch=6, boxes=40, size=(30, 20))
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
@pytest.mark.parametrize("options", [{}, {"boxes": 0, "dtype": torch.float16}], ids=["plain", "no boxes"])
def test_opcheck(device: str, options: dict[str, Any]) -> None:
    op.check(*moved(arguments(4, **options), device))


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    args, more = (moved(arguments(5, boxes=boxes), device) for boxes in (5, 8))
    for form in (op, op.portable):
        assert assert_no_syncs(form, *args).shape == (2, 5, 6, 7)
    assert_compiles_whole(op.overload, args, more)


@pytest.mark.parametrize(
    "change",
    [
        {"wh": torch.zeros(2, 5, 3)},
        {"offset": torch.zeros(2, 4, 2)},
        {"index": torch.zeros(2)},
        {"used": torch.zeros(2, 5)},
        {"height": 0},
        {"width": -1},
        {"dtype": torch.int64},
    ],
    ids=changed_argument,
)
def test_refuses(change: dict[str, Any]) -> None:
    op.refuses(arguments(7), **change)


KERNELS = [
    Kernel("maps_kernel",
           dict(wh="*fp32", offset="*fp32", index="*i64", used="*u8", maps="*" + kind, N="i32", cells="i32"),
           dict(BLOCK=256, BLOCK_N=32), 4)
    for kind in ("fp32", "fp16")
]  # fmt: skip
