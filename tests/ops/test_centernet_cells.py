"""The op centernet_cells: every form gives what the definition says, integers bit for bit."""

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

op = Op("centernet_cells")

NAMES = ("cell", "radius", "label", "size", "offset", "index", "last", "count")
Arguments = tuple[Any, ...]


def arguments(
    seed: int = 0,
    batch: int = 2,
    boxes: int = 6,
    dtype: torch.dtype = torch.float32,
    label_dtype: torch.dtype = torch.int64,
    coarse: bool = True,
    ragged: bool = False,
    map_size: tuple[int, int] = (6, 9),
    overlap: float = 0.3,
    least: int = 0,
    legacy: bool = False,
    elliptical: float = 0.0,
) -> Arguments:
    """Boxes on an image of 4 pixels per cell; with `coarse` several share a cell, and some take no part."""
    g = torch.Generator().manual_seed(seed)
    height, width = 4 * map_size[0], 4 * map_size[1]
    low = torch.rand(batch, boxes, 2, generator=g) * torch.tensor([width * 1.3, height * 1.3]) - 6
    xyxy = torch.cat([low, low + torch.rand(batch, boxes, 2, generator=g) * 20], -1)
    if coarse:
        xyxy = (xyxy / 8).round() * 8
    labels = torch.randint(-1, 4, (batch, boxes), generator=g)
    sizes = torch.randint(0, boxes + 1, (batch,), generator=g) if ragged else None
    size = [height, width]
    return (xyxy.to(dtype), labels.to(label_dtype), sizes, list(map_size), size, 3, overlap, least, legacy, elliptical)


def assert_matches(form: Form, args: Arguments, device: str = "cpu") -> None:
    expected = dict(zip(NAMES, op.reference(*args), strict=True))
    got = dict(zip(NAMES, moved(form(*moved(args, device)), "cpu"), strict=True))
    radius, other = expected.pop("radius"), got.pop("radius")
    # The definition solves the equations as they stand: where a radius is nearly whole, rounding decides.
    assert other.dtype == torch.int64
    assert radius.shape == other.shape
    assert ((radius - other).abs() <= 1).all()
    assert (radius != other).float().sum() <= 0.2 * radius.numel() + 1
    assert_same_bits(got, expected)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(40)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 3]),
        boxes=st.sampled_from([0, 1, 6, 40]),
        dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64]),
        label_dtype=st.sampled_from([torch.int64, torch.int32, torch.int8]),
        coarse=st.booleans(),
        ragged=st.booleans(),
        map_size=st.sampled_from([(6, 9), (1, 1), (17, 3)]),
        options=st.sampled_from([{}, {"legacy": True}, {"elliptical": 0.54}, {"overlap": 0.7, "least": 2}]),
    )
    def check(options: dict[str, Any], **more: Any) -> None:
        assert_matches(form, arguments(**more, **options))

    check()


@op.for_each_kernel
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_radii_are_those_of_the_portable_form_bit_for_bit(form: Form, legacy: bool, dtype: torch.dtype) -> None:
    args = arguments(3, batch=2, boxes=100, coarse=False, legacy=legacy, dtype=dtype, map_size=(64, 64))
    assert_same_bits(form(*args), op.portable(*args))


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    scenes: list[dict[str, Any]] = [{}, {"legacy": True}, {"elliptical": 0.5}, {"ragged": True}]
    for seed, options in enumerate(scenes):
        assert_matches(op, arguments(seed, boxes=40, **options), device="cuda")


@op.for_each_form
def test_by_hand(form: Form) -> None:
    """Three boxes at cell (3, 3) of 8 by 8, the last of another class, and one beyond the right edge of the map."""
    boxes = torch.tensor([[[20.0, 20, 36, 36], [22, 22, 34, 34], [20, 20, 36, 36], [56, 0, 80, 16]]])
    labels = torch.tensor([[1, 1, 0, 1]])
    found = dict(zip(NAMES, form(boxes, labels, None, [8, 8], [64, 64], 2, 0.3, 0, False, 0.0), strict=True))
    assert found["cell"].tolist() == [[[3, 3], [3, 3], [3, 3], [7, 1]]]
    assert found["index"].tolist() == [[27, 27, 27, 15]]
    assert found["last"].tolist() == [[False, False, True, True]]
    assert found["count"].item() == 3
    assert found["size"].tolist() == [[[2, 2], [1.5, 1.5], [2, 2], [3, 2]]]
    assert found["offset"].tolist() == [[[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [1.5, 0]]]
    assert found["radius"].tolist() == [[0, 0, 0, 0]]  # a square of 8 cells has 1.8
    wider = form(boxes * 4, labels, None, [32, 32], [256, 256], 2, 0.3, 0, False, 0.0)[1]
    assert wider.tolist() == [[1, 1, 1, 2]]


@op.for_each_form
def test_boxes_that_take_no_part(form: Form) -> None:
    nan, inf, big = float("nan"), float("inf"), 3e38
    boxes = torch.tensor(
        [[[nan, 0, 30, 30], [0, 0, 30, nan], [0, 0, inf, 30], [-inf, 0, 8, 8], [30, 30, 0, 0], [900, 0, 930, 30],
          [-30, 0, 0, 30], [64, 0, 70, 30], [0, 0, 8, 8], [0, 0, 8, 8], [0, 0, 8, 8]]]
    )  # fmt: skip
    labels = torch.tensor([[0] * 8 + [-1, 3, 10**9]])
    args = [[8, 8], [64, 64], 3, 0.3, 1, False, 0.0]
    cell, radius, label, size, offset, index, last, count = form(boxes, labels, None, *args)
    assert (label == -1).all()
    assert (index == 64).all()
    assert not last.any()
    assert count == 0
    assert not any(pair.any() for pair in (cell, size, offset))
    assert (radius == 1).all()
    # Boxes that only touch the image, of no size, and so large that a side is not finite.
    boxes = torch.tensor([[[63.0, 0, 90, 90], [-5, -5, 0.5, 0.5], [7, 7, 7, 7], [-big, -big, big, big]]])
    _, radius, label, _, _, index, _, count = form(boxes, torch.zeros(1, 4, dtype=torch.int64), None, *args)
    assert label.tolist() == [[0, 0, 0, 0]]
    assert index.tolist() == [[47, 0, 0, 0]]
    assert count == 2
    assert radius[0, 3] == -1


@op.for_each_form
def test_many_boxes_of_one_cell(form: Form) -> None:
    boxes = torch.tensor([10.0, 10, 14, 14]).expand(1, 70, 4)
    labels = torch.arange(70)[None] % 7
    *_, last, count = form(boxes, labels, torch.tensor([69]), [8, 8], [64, 64], 7, 0.3, 0, False, 0.0)
    assert last[0].nonzero().tolist() == [[68]]
    assert count == 7


@op.for_each_form
def test_another_default_dtype_changes_nothing(form: Form) -> None:
    args = arguments(10)
    expected = form(*args)
    torch.set_default_dtype(torch.float64)
    try:
        assert_same_bits(form(*args), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@op.for_each_form
def test_non_contiguous_arguments(form: Form) -> None:
    args = arguments(4, boxes=9, ragged=True)
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in args[:2]]
    assert not turned[0].is_contiguous()
    assert_same_bits(form(*turned, *args[2:]), form(*args))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(4, batch=9, boxes=20)
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
@pytest.mark.parametrize("options", [{"ragged": True}, {"boxes": 0}, {"batch": 0}, {"elliptical": 0.5}], ids=str)
def test_opcheck(device: str, options: dict[str, Any]) -> None:
    op.check(*moved(arguments(5, **options), device))


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    args, more = (moved(arguments(8, boxes=boxes, ragged=True), device) for boxes in (5, 7))
    for form in (op, op.portable):
        assert assert_no_syncs(form, *args)[0].shape == (2, 5, 2)
    assert_compiles_whole(op.overload, args, more)


@pytest.mark.parametrize(
    "change",
    [
        dict(boxes=torch.zeros(2, 6, 3)),
        dict(labels=torch.zeros(2, 5)),
        dict(sample_sizes=torch.ones(3)),
        dict(map_size=[3]),
        dict(map_size=[0, 3]),
        dict(image_size=[3]),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(9, ragged=True), **change)


def _types(wide: str, name: str) -> dict[str, str]:
    pairs = dict(cell="*i64", radius="*i64", label="*i64", size="*" + wide, offset="*" + wide, index="*i64", last="*u8")
    numbers = dict.fromkeys(["N", "H", "W", "image_h", "image_w", "classes", "least"], "i32")
    ratios = dict.fromkeys(["ratio_x", "ratio_y", "overlap", "of_same", "of_shift", "elliptical"], "fp64")
    return dict(boxes="*" + name, labels="*i64", sample_sizes="*i64", **pairs, counts="*i64", **numbers, **ratios)


KERNELS = [
    Kernel("cells_kernel", _types(wide, name),
           dict(HAS_SIZES=legacy, LEGACY=legacy, ELLIPTICAL=elliptical, DOUBLE=wide == "fp64", BLOCK=32), 4)
    for name, wide, legacy, elliptical in (("fp32", "fp32", False, False), ("fp16", "fp32", True, False),
                                           ("fp32", "fp32", False, True), ("fp64", "fp64", False, False))
]  # fmt: skip
