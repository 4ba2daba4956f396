"""The op maps_at_points: all forms read what the reference and PyTorch's grid_sample read."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ahead_of_time import Kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from op import (
    DTYPES,
    Form,
    Op,
    assert_compiles_whole,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)
from point_scenes import point_scene

op = Op("maps_at_points")

KINDS = (*DTYPES, torch.uint8, torch.bool)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @settings(max_examples=25 if form.interpreted else 80, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        maps=st.sampled_from([0, 1, 4]),
        rows=st.sampled_from([0, 1, 3]),
        points=st.sampled_from([0, 1, 9]),
        size=st.tuples(st.integers(0, 6), st.integers(0, 9)),
        dtype=st.sampled_from(KINDS),
        indexed=st.booleans(),
        shared=st.booleans(),
        odd=st.booleans(),
        nearest=st.booleans(),
        border=st.booleans(),
    )
    def check(nearest: bool, border: bool, **options: Any) -> None:
        args = (*point_scene(**options), nearest, border)
        found, expected = form(*args), op.reference(*args)
        assert found.dtype == expected.dtype
        if nearest:
            assert torch.equal(found, expected)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    check()


@op.for_each_form
@pytest.mark.parametrize("border", [False, True])
def test_reads_what_grid_sample_reads(form: Form, border: bool) -> None:
    maps, _, points = point_scene(3, maps=3, points=200, size=(11, 8), indexed=False)
    grid = (2 * points - 1).flatten(0, 1)[:, None]
    for nearest in (False, True):
        mode, padding = "nearest" if nearest else "bilinear", "border" if border else "zeros"
        expected = F.grid_sample(
            maps.flatten(0, 1)[:, None], grid, mode=mode, padding_mode=padding, align_corners=False
        )[:, 0, 0].view(2, 3, 200)
        found = form(maps, None, points, nearest, border)
        same = (found - expected).abs() < 1e-5
        if nearest:  # grid_sample settles ties by its own rounding
            position = points * torch.tensor([8, 11]) - 0.5
            same |= ((position - position.floor() - 0.5).abs() < 1e-4).any(-1)
        assert same.all()


@op.for_each_form
def test_a_tie_goes_to_the_even_cell_and_cells_of_no_weight_are_not_read(form: Form) -> None:
    maps = torch.tensor([torch.nan, 1, 2, torch.inf]).view(1, 1, 1, 4)
    points = torch.tensor([[0.5, 0.5], [0.375, 0.5], [0.75, 0.5], [0.99, 0.5]])[None, None]
    assert form(maps, None, points, True, True).tolist() == [[[2, 1, 2, torch.inf]]]
    assert form(maps, None, points[:, :, :2], False, True).tolist() == [[[1.5, 1]]]


@op.for_each_form
def test_borders_go_on_or_fall_to_zero(form: Form) -> None:
    maps = torch.full((1, 1, 2, 2), 8.0)
    points = torch.tensor([[0.0, 0.5], [1, 1], [0.125, 0.5], [-0.25, 0.5], [torch.nan, 0.5]])[None, None]
    assert form(maps, None, points, False, True).tolist() == [[[8.0] * 5]]
    assert form(maps, None, points, False, False).tolist() == [[[4.0, 2, 6, 0, 0]]]


def test_views_are_read_where_they_are() -> None:
    maps, index, points = point_scene(5)
    spaced = torch.stack([maps, maps], -1)[..., 0]
    turned = maps.transpose(1, 3).contiguous().transpose(1, 3)
    for view in (spaced, turned):
        assert not view.is_contiguous()
        assert torch.equal(op(view, index, points.double(), False, True), op(maps, index, points, False, True))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = (*point_scene(7, rows=5, points=5000), False, False)
    assert_same_bits_for_any_threads(lambda: op(*args))


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for nearest, border in ((False, True), (True, False)):
        args = (*point_scene(8, points=300, size=(20, 30), odd=True), nearest, border)
        torch.testing.assert_close(op(*moved(args, "cuda")).cpu(), op.reference(*args), rtol=1e-5, atol=1e-6)


@for_each_device
@pytest.mark.parametrize("indexed", [False, True])
def test_opcheck(device: str, indexed: bool) -> None:
    op.check(*moved((*point_scene(9, indexed=indexed), False, True), device))


def test_compiles_whole() -> None:
    assert_compiles_whole(op, *((*point_scene(1, points=n), False, True) for n in (4, 9)))


@pytest.mark.parametrize(
    "change",
    [
        dict(maps=torch.zeros(2, 4, 5)),
        dict(maps=torch.zeros(2, 4, 5, 7).long()),
        dict(points=torch.zeros(2, 3, 9, 3)),
        dict(points=torch.zeros(1, 3, 9, 2)),
        dict(index=torch.zeros(2, 4).long()),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses((*point_scene(2), False, True), **change)


def test_without_an_index_there_are_as_many_rows_as_maps() -> None:
    maps, _, points = point_scene(2)
    with pytest.raises(RuntimeError, match="points: expected as many rows"):
        op(maps, None, points, False, True)


KERNELS = [
    Kernel("read_kernel",
           dict(maps=maps, index="*i64", points="*fp32", out="*fp32", Q="i32", h="i32", w="i32", M="i32", P="i32",
                map_image="i32", map_query="i32", map_row="i32", map_column="i32", point_image="i32", point_row="i32",
                point_number="i32", point_axis="i32"),
           dict(HAS_INDEX=True, NEAREST=nearest, BORDER=True, BLOCK=256), 4)
    for maps, nearest in (("*fp16", False), ("*u8", True))
]  # fmt: skip
