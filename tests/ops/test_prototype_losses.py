"""The op prototype_losses: all forms give the loss and both gradients of the reference, and those of autograd."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ahead_of_time import Kernel
from hypothesis import given
from hypothesis import strategies as st
from op import (
    DTYPES,
    TOLERANCES,
    Form,
    Op,
    assert_compiles_whole,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)
from torch import Tensor

from detops import ops

op = Op("prototype_losses")


def arguments(
    seed: int, batch: int = 2, points: int = 5, depth: int = 4, size: tuple[int, int] = (9, 21), boxes: int = 3,
    dtype: torch.dtype = torch.float32, odd: bool = False, scaled: bool = True, kind: int = 0,
    with_gradient: bool = True,
) -> tuple[Any, ...]:  # fmt: skip
    """Coefficients, prototypes, labels, index, cells, scale, kind, with_gradient.

    Args:
        seed: Of the numbers.
        batch: B.
        points: A.
        depth: K.
        size: h and w.
        boxes: N.
        dtype: Of coefficients and prototypes.
        odd: Whether some boxes are inverted, flat, off the grid, NaN or infinite.
        scaled: Whether there is a scale.
        kind: As the op has it.
        with_gradient: As the op has it.
    """
    g = torch.Generator().manual_seed(seed)
    coefficients = torch.randn(batch, points, depth, generator=g).to(dtype)
    prototypes = torch.randn(batch, depth, *size, generator=g).to(dtype)
    labels = torch.rand(batch, boxes, *size, generator=g) > 0.5
    index = torch.randint(-2, boxes + 1, (batch, points), generator=g)
    extent = torch.tensor([*size[::-1]])
    low = (torch.rand(batch, boxes, 2, generator=g) * 1.2 - 0.2) * extent
    cells = torch.cat([low, low + 0.3 + torch.rand(batch, boxes, 2, generator=g) * extent], 2)
    whole = torch.rand(batch, boxes, 4, generator=g) < 0.3
    cells = cells.round().where(whole, cells)  # sides on cells
    if odd:
        which = torch.randint(6, (batch, boxes), generator=g)
        cells[which == 0] = cells[which == 0][:, [2, 1, 0, 3]]
        cells[..., 2] = cells[..., 0].where(which == 1, cells[..., 2])
        cells[which == 2] += 3 * extent.repeat(2)
        cells[..., 1] = torch.full_like(cells[..., 1], torch.nan).where(which == 3, cells[..., 1])
        cells[..., 3] = torch.full_like(cells[..., 3], torch.inf).where(which == 4, cells[..., 3])
    scale = torch.tensor(0.7) if scaled else None
    return coefficients, prototypes, labels, index, cells, scale, kind, with_gradient


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(100)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        points=st.sampled_from([0, 1, 5, 20]),
        depth=st.sampled_from([0, 1, 4, 7]),
        size=st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 7, 40])),
        boxes=st.sampled_from([0, 1, 3]),
        dtype=st.sampled_from(DTYPES),
        odd=st.booleans(),
        scaled=st.booleans(),
        kind=st.sampled_from([0, 1]),
        with_gradient=st.booleans(),
    )
    def check(**options: Any) -> None:
        args = arguments(**options)
        tolerance = TOLERANCES[torch.float32 if options["dtype"] != torch.float64 else form.computes(torch.float64)]
        for found, expected in zip(form(*args), op.reference(*args), strict=True):
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, **tolerance._asdict())

    check()


@op.for_each_form
@pytest.mark.parametrize("kind", [0, 1])
def test_is_what_autograd_computes(form: Form, kind: int) -> None:
    coefficients, prototypes, labels, index, cells, scale, *rest = arguments(
        1, points=40, size=(19, 33), depth=6, kind=kind
    )
    row, basis = coefficients.double().requires_grad_(), prototypes.double().requires_grad_()
    total = row.sum() * 0
    y, x = torch.meshgrid(torch.arange(19), torch.arange(33), indexing="ij")
    for b, a in ((index >= 0) & (index < 3)).nonzero().tolist():
        n = int(index[b, a])
        x1, y1, x2, y2 = cells[b, n].tolist()
        m = kind  # cells more on each side
        inside = (x >= x1 - m) & (x < x2 + m) & (y >= y1 - m) & (y < y2 + m)
        z, label = (row[b, a][:, None, None] * basis[b]).sum(0), labels[b, n].double()
        loss = F.binary_cross_entropy_with_logits(z, label, reduction="none")
        far = 100 * label if kind else torch.zeros_like(label)
        total = total + loss.where(inside, far).sum() / ((x2 - x1) * (y2 - y1))
    expected = [total * scale.double(), *torch.autograd.grad(total * scale.double(), (row, basis))]
    for mine, other in zip(form(coefficients, prototypes, labels, index, cells, scale, *rest), expected, strict=True):
        torch.testing.assert_close(mine, other.float(), rtol=1e-4, atol=1e-5)


@op.for_each_form
def test_sides_on_cells_take_the_first_and_leave_the_last(form: Form) -> None:
    """Columns 2 and 3, rows 1 to 3; a tenth of a cell more takes one more."""
    labels, index = torch.zeros(1, 1, 5, 8, dtype=torch.bool), torch.zeros(1, 1).long()
    for box, count, area in (([2.0, 1, 4, 4], 6, 6.0), ([2.0, 1, 4.1, 4], 9, 6.3), ([1.9, 1, 4, 4], 6, 6.3)):
        args = (torch.zeros(1, 1, 2), torch.ones(1, 2, 5, 8), labels, index, torch.tensor([[box]]), None)
        loss, of_rows, of_maps = form(*args, 0, True)
        assert loss.item() == pytest.approx(count * 0.693147 / area, rel=1e-5)
        assert of_rows.tolist() == [[[pytest.approx(0.5 * count / area)] * 2]]
        assert not of_maps.any()
    loss, *_ = form(*args[:2], ~labels, *args[3:], 1, True)
    assert loss.item() == pytest.approx((5 * 4 * 0.693147 + 100 * 20) / 6.3, rel=1e-5)


@op.for_each_form
def test_what_has_no_box_is_not_read(form: Form) -> None:
    coefficients, prototypes, labels, index, cells, *rest = arguments(3)
    index[:] = -1
    index[0, 1] = 2
    expected = form(coefficients, prototypes, labels, index, cells, *rest)
    coefficients[0, [0, 2, 3, 4]], coefficients[1], prototypes[1] = torch.nan, torch.nan, torch.nan
    cells[0, :2], cells[1] = torch.nan, torch.nan
    found = form(coefficients, prototypes, labels, index, cells, *rest)
    assert found[1][0, 1].any()
    assert not found[1][1].any()
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)


@op.for_each_form
def test_a_coefficient_that_is_not_finite_makes_the_loss_nan(form: Form) -> None:
    for value in (torch.nan, torch.inf):
        coefficients, *rest = arguments(4)
        coefficients[rest[2] >= 0] = value
        assert form(coefficients, *rest)[0].isnan()


def test_views_are_read_where_they_are() -> None:
    coefficients, prototypes, labels, *rest = arguments(5)
    expected = op(coefficients, prototypes, labels, *rest)
    turned = prototypes.transpose(1, 3).contiguous().transpose(1, 3)
    spaced = torch.stack([coefficients, coefficients], -1)[..., 0]
    assert not turned.is_contiguous()
    for mine, other in zip(op(spaced, turned, labels, *rest), expected, strict=True):
        assert torch.equal(mine, other)
        assert mine.is_contiguous()


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(7, points=40, size=(33, 50), boxes=9, kind=1)
    assert_same_bits_for_any_threads(lambda: op(*args))


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for kind in (0, 1):
        args = arguments(8, points=60, depth=32, size=(40, 70), boxes=9, odd=True, kind=kind)
        for found, expected in zip(op(*moved(args, "cuda")), op.reference(*args), strict=True):
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


@for_each_device
@pytest.mark.parametrize("with_gradient", [False, True])
def test_opcheck(device: str, with_gradient: bool) -> None:
    op.check(*moved(arguments(9, with_gradient=with_gradient), device))


def test_compiles_whole() -> None:
    def losses(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return ops.prototype_losses(*tensors, None, 0, True)  # type: ignore[call-arg, arg-type]

    assert_compiles_whole(losses, *(arguments(1, points=n)[:5] for n in (4, 9)))


@pytest.mark.parametrize(
    "change",
    [
        dict(coefficients=torch.zeros(2, 5)),
        dict(prototypes=torch.zeros(2, 3, 9, 21)),
        dict(labels=torch.zeros(2, 3, 9, 20, dtype=torch.bool)),
        dict(labels=torch.zeros(2, 3, 9, 21)),
        dict(labels=torch.zeros(2, 3, 21, 9, dtype=torch.bool).mT),
        dict(index=torch.zeros(2, 4).long()),
        dict(cells=torch.zeros(2, 3, 5)),
        dict(scale=torch.zeros(2)),
        dict(kind=2),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses(arguments(2), **change)


KERNELS = [
    Kernel(name,
           dict(coefficients=kind, prototypes=kind, labels="*u8", index="*i64", cells="*fp32", **more, A="i32", K="i32",
                h="i32", w="i32", N="i32"),
           dict(YOLACT=sums == "*fp64", DEPTH=32, **constants), 4)
    for kind, sums in (("*fp16", "*fp32"), ("*fp64", "*fp64"))
    for name, more, constants in (
        ("positive_kernel", dict(losses=sums, of_rows=sums), dict(WITH_GRADIENT=True, CELLS=64, FAR=100.0)),
        ("tile_kernel", dict(order="*i64", counts="*i64", of_maps=sums), dict(ROWS=4, COLUMNS=16)),
    )
]  # fmt: skip
