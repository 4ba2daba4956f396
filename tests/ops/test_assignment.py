"""The op assignment and linear_assignment: every form finds the optimum, and the same one."""

import itertools
import math
from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import given, settings
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
from torch import Tensor

import detops
from detops.portable import assignment as portable_module

op = Op("assignment")
without_library = Form("portable, without the library", lambda cost, sizes: portable_module._assign(cost, sizes))
for_each_form = pytest.mark.parametrize("form", [*op.forms, without_library], ids=str)


def costs(
    seed: int,
    problems: int = 3,
    rows: int = 6,
    columns: int = 4,
    dtype: torch.dtype = torch.float32,
    whole: bool = False,
    odd: float = 0.0,
    ragged: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Costs and sizes; with `whole` small integers, so that there are ties; with `odd` a share that is not finite."""
    g = torch.Generator().manual_seed(seed)
    shape = (problems, rows, columns)
    cost = torch.randint(-4, 5, shape, generator=g).float() if whole else torch.randn(shape, generator=g)
    if odd:
        kind = torch.rand(shape, generator=g)
        values = torch.tensor([torch.nan, torch.inf, -torch.inf])[torch.randint(3, shape, generator=g)]
        cost = cost.where(kind >= odd, values)
        if columns:
            cost[:, :, 0] = cost[:, :, 0].where(kind[:, :1, 0] >= odd, torch.nan)
    sizes = torch.randint(0, columns + 1, (problems,), generator=g) if ragged else None
    return cost.to(dtype), sizes


def total(cost: Tensor, rows: Tensor) -> tuple[int, float]:
    """Of one problem: how many pairs are forbidden, and the sum of the others; each row is taken once."""
    pairs = [(q, n) for n, q in enumerate(rows.tolist()) if q >= 0]
    assert len({q for q, _ in pairs}) == len(pairs) == min(cost.shape[0], len(rows))
    values = [cost[q, n].item() for q, n in pairs]
    finite = [value for value in values if math.isfinite(value)]
    return len(values) - len(finite), sum(finite)


@for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(150)
    @given(
        seed=st.integers(0, 10**6),
        problems=st.sampled_from([0, 1, 3]),
        rows=st.sampled_from([0, 1, 2, 5, 17]),
        columns=st.sampled_from([0, 1, 3, 8]),
        dtype=st.sampled_from(DTYPES),
        whole=st.booleans(),
        odd=st.sampled_from([0.0, 0.0, 0.3, 0.9]),
        ragged=st.booleans(),
    )
    def check(**options: Any) -> None:
        args = costs(**options)
        assert torch.equal(form(*args), op.reference(*args))

    check()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(0, 5),
    columns=st.integers(0, 5),
    whole=st.booleans(),
    odd=st.sampled_from([0.0, 0.4]),
)
def test_the_reference_is_the_best_of_all(seed: int, rows: int, columns: int, whole: bool, odd: float) -> None:
    cost, _ = costs(seed, 1, rows, columns, torch.float64, whole, odd)
    few, many = sorted((rows, columns))
    by_few = cost[0] if rows == few else cost[0].T
    best = (0, 0.0)
    for number, chosen in enumerate(itertools.permutations(range(many), few)):
        values = [by_few[i, j].item() for i, j in enumerate(chosen)]
        finite = [value for value in values if math.isfinite(value)]
        rank = (few - len(finite), sum(finite))
        best = rank if number == 0 else min(best, rank)
    forbidden, least = total(cost[0], op.reference(cost, None)[0])
    assert forbidden == best[0]
    assert least == pytest.approx(best[1], abs=1e-12)


@pytest.mark.parametrize("whole", [False, True])
def test_thousands_of_problems_have_the_optimum_of_scipy(whole: bool) -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    g = torch.Generator().manual_seed(3)
    for rows, columns, problems in ((30, 7, 1500), (9, 9, 500), (5, 12, 500), (300, 20, 60), (120, 100, 10)):
        cost, _ = costs(int(torch.randint(1000, (), generator=g)), problems, rows, columns, torch.float64, whole)
        found = detops.linear_assignment(cost)
        for matrix, chosen in zip(cost, found, strict=True):
            least = matrix.numpy()[optimize.linear_sum_assignment(matrix.numpy())].sum()
            assert total(matrix, chosen)[1] == pytest.approx(least, abs=0 if whole else 1e-9)


@pytest.mark.slow
def test_a_large_problem_has_the_optimum_of_scipy() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    matrix = torch.randn(900, 500, generator=torch.Generator().manual_seed(0)).double()
    least = matrix.numpy()[optimize.linear_sum_assignment(matrix.numpy())].sum()
    assert total(matrix, detops.linear_assignment(matrix))[1] == pytest.approx(least, abs=1e-9)


@for_each_form
def test_dozens_of_columns(form: Form) -> None:
    for args in (costs(5, 2, 24, 18), costs(6, 1, 18, 24, odd=0.2), costs(7, 1, 20, 20, whole=True)):
        assert torch.equal(form(*args), op.reference(*args))


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for rows, columns, odd in ((300, 20, 0.0), (40, 60, 0.2), (100, 90, 0.0)):
        args = costs(rows, 4, rows, columns, whole=rows == 100, odd=odd, ragged=True)
        assert torch.equal(op(*moved(args, "cuda")).cpu(), op.reference(*args))


@for_each_form
def test_values_by_hand(form: Form) -> None:
    nan = math.nan
    for rows, expected in (
        ([[4, 1.5], [2, 0], [3, 5]], [2, 1]),
        ([[1, 1], [1, 1], [1, 1]], [0, 1]),
        ([[nan, -2], [nan, -1], [nan, 0]], [1, 0]),
        ([[10, -10, 10], [10, 10, -10], [nan, 10, 10]], [0, 2, 1]),
        ([[-math.inf, 3], [3, math.inf]], [1, 0]),
    ):
        found = form(torch.tensor([rows]), None)[0].tolist()
        assert total(torch.tensor(rows), torch.tensor(found)) == total(torch.tensor(rows), torch.tensor(expected))


@for_each_form
def test_costs_of_any_size_end(form: Form) -> None:
    """Where sums leave the range of float64, rows are still taken once each."""
    cost = torch.tensor([[[1e308, -1e308, 1e308], [-1e308, 1e308, 1e308], [1e308, 1e308, -1e308], [0, 0, 0]]]).double()
    for matrix in (cost, cost.mT, cost * torch.tensor([1.0, -1, 1])):
        found = form(matrix.contiguous(), None)[0]
        taken = found[found >= 0]
        assert len(taken.unique()) == len(taken) == 3


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_integers_views_and_leading_dimensions(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(4)
    cost = torch.randint(0, 50, (2, 3, 7, 5), generator=g).to(dtype)
    sizes = torch.randint(0, 6, (2, 3), generator=g)
    expected = op.reference(cost.flatten(0, 1), sizes.flatten()).unflatten(0, (2, 3))
    assert torch.equal(detops.linear_assignment(cost, sizes), expected)
    strided = torch.stack([cost, cost + 1], -1)[..., 0].transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous()
    assert torch.equal(detops.linear_assignment(strided, sizes), expected)
    assert torch.equal(detops.linear_assignment(cost[0, 0]), op.reference(cost[0, :1], None)[0])


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = costs(7, 7, 30, 20, whole=True)
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck(device: str, ragged: bool) -> None:
    op.check(*moved(costs(5, ragged=ragged), device))


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    args, more = (moved(costs(6, columns=n, ragged=True), device) for n in (4, 7))
    assert assert_no_syncs(detops.linear_assignment, *args).shape == (3, 4)
    assert_compiles_whole(detops.linear_assignment, args, more)


@pytest.mark.skipif(not torch._C._dispatch_has_kernel_for_dispatch_key("detops::assignment", "CPU"), reason="no C++")
def test_a_device_without_a_kernel_waits_for_the_host() -> None:
    """The one op that does; a tensor without values stands for such a device."""
    args = costs(6, ragged=True)
    assert torch.equal(op.portable(*args), op.reference(*args))
    with pytest.raises(NotImplementedError, match="meta"):
        op.portable(args[0].to("meta"), None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: detops.linear_assignment([[1.0]]), "cost: expected numbers, got list"),  # type: ignore[arg-type]
        (lambda: detops.linear_assignment(torch.ones(3)), "cost: expected shape"),
        (lambda: detops.linear_assignment(torch.ones(2, 2) > 0), "cost: expected numbers"),
        (lambda: detops.linear_assignment(torch.ones(2, 2, 2), torch.ones(3).long()), r"sizes: expected shape \(2,\)"),
        (lambda: detops.linear_assignment(torch.ones(2, 2, 2), torch.ones(2)), "sizes: expected integers"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize(
    "change",
    [dict(cost=torch.zeros(6, 4)), dict(cost=torch.zeros(3, 6, 4) > 0), dict(sizes=torch.zeros(2))],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(costs(8), **change)


KERNELS = [
    Kernel("assign_kernel",
           dict(cost="*fp32", sizes="*i64", valid="*i64", query_of="*i64", box_of="*i64", Q="i32", N="i32", B="i32",
                G="i32", queries="i32"),
           dict(HAS_SIZES=True, HAS_VALID=False, BLOCK=512, BLOCK_S=32), 4)
]  # fmt: skip
