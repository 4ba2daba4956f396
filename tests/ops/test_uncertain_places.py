"""The op uncertain_places: all forms choose what the reference chooses, whatever ties and broken values there are."""

from typing import Any

import pytest
import torch
from hypothesis import given
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

op = Op("uncertain_places")


def arguments(seed: int, share: float = 0.5, border: bool = True, **scene: Any) -> tuple[Any, ...]:
    """Maps of few values, so that ties abound; index, points, count, border."""
    maps, index, points = point_scene(seed, **scene)
    return (2 * maps).round() / 2, index, points, int(share * points.shape[2]), border


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(100)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        maps=st.sampled_from([0, 1, 4]),
        rows=st.sampled_from([0, 1, 3]),
        points=st.sampled_from([0, 1, 9, 40]),
        size=st.tuples(st.integers(0, 6), st.integers(0, 9)),
        dtype=st.sampled_from(DTYPES),
        shared=st.booleans(),
        odd=st.booleans(),
        share=st.sampled_from([0, 0.3, 0.75, 1]),
        border=st.booleans(),
    )
    def check(**options: Any) -> None:
        maps, index, points, *rest = arguments(**options)
        # On centres of cells, where every form reads the same bits.
        height, width = max(maps.shape[2], 1), max(maps.shape[3], 1)
        cells = torch.tensor([width, height])
        points = ((points.clamp(-1, 2) * cells).floor() + 0.5) / cells
        args = (maps, index, points, *rest)
        assert torch.equal(form(*args), op.reference(*args))

    check()


@op.for_each_form
def test_magnitudes_decide_and_ties_go_to_the_first(form: Form) -> None:
    values = torch.tensor([3.0, -1, torch.nan, 1, -0.0, torch.inf, -3, 0])
    points = torch.stack([(torch.arange(8) + 0.5) / 8, torch.full((8,), 0.5)], -1)[None, None]
    order = [4, 7, 1, 3, 0, 6, 5, 2]
    for count in range(9):
        found = form(values.view(1, 1, 1, 8), torch.zeros(1, 1).long(), points, count, True)
        assert found.tolist() == [[sorted(order[:count])]]


@op.for_each_form
def test_many_candidates(form: Form) -> None:
    maps, index, points, *_ = arguments(3, rows=2, points=5000, size=(20, 31), dtype=torch.float64)
    found, expected = (call(maps, index, points, 1234, True) for call in (form, op.reference))
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)


@op.for_each_form
def test_without_a_map_the_first_are_taken_and_nothing_is_read(form: Form) -> None:
    maps, _, points, *_ = arguments(5)
    maps[:], points[:] = torch.nan, torch.nan
    found = form(maps, torch.tensor([[-1, 4, 9]] * 2), points, 3, True)
    assert found.tolist() == [[[0, 1, 2]] * 3] * 2


def test_views_are_read_where_they_are() -> None:
    maps, index, points, *rest = arguments(6, points=60)
    turned = maps.transpose(1, 3).contiguous().transpose(1, 3)
    assert torch.equal(op(turned, index, points.double(), *rest), op(maps, index, points, *rest))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(7, rows=5, points=3000)
    assert_same_bits_for_any_threads(lambda: op(*args))


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    args = arguments(8, points=700, dtype=torch.float64, odd=True)
    assert torch.equal(op(*moved(args, "cuda")).cpu(), op.reference(*args))


@for_each_device
def test_opcheck(device: str) -> None:
    op.check(*moved(arguments(9), device))


def test_compiles_whole() -> None:
    assert_compiles_whole(op, *(arguments(1, points=n) for n in (8, 18)))


@pytest.mark.parametrize(
    "change",
    [
        dict(maps=torch.zeros(2, 4, 5)),
        dict(maps=torch.zeros(2, 4, 5, 7).long()),
        dict(points=torch.zeros(2, 3, 9, 3)),
        dict(index=torch.zeros(2, 2).long()),
        dict(count=-1),
        dict(count=10),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(2), **change)
