"""The op background_losses: the class loss of all levels as if no point had a box."""

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

from detops.losses._class_loss import ClassLoss
from detops.reference.positive_losses import class_loss

op = Op("background_losses")

SHAPES = [(7, 11), (4, 6), (0, 3), (1, 1)]


def arguments(
    seed: int,
    batch: int = 2,
    classes: int = 3,
    dtype: torch.dtype = torch.float32,
    masked: bool = True,
    channels_last: bool = False,
    groups: int = 1,
    divisor: tuple[torch.dtype, int, float, float, float] = (torch.float32, 1, 0.0, 0.0, 0.0),
    factor: float = 0.75,
    gamma: float = 2.0,
    gradient: bool = True,
    shapes: list[tuple[int, int]] = SHAPES,
) -> tuple[Any, ...]:
    """Return the op's arguments; logits at points that take no part are NaN.

    The divisor is: dtype of the counts, their number per group, their least value, epsilon, and the scale that is kept.
    """
    g = torch.Generator().manual_seed(seed)
    levels = [(torch.randn(batch, classes, *shape, generator=g) * 4 - 1).to(dtype) for shape in shapes]
    valid = None
    if masked:
        valid = torch.rand(batch, sum(h * w for h, w in shapes), generator=g) < 0.7
        of_levels = valid.split([h * w for h, w in shapes], 1)
        for level, there in zip(levels, of_levels, strict=True):
            level.masked_fill_(~there.view(batch, 1, *level.shape[2:]), float("nan"))
    if channels_last:
        levels = [level.contiguous(memory_format=torch.channels_last) for level in levels]
    dtype, number, *rest = divisor
    counts = torch.randint(17, (groups, number), generator=g)  # of which the sums are exact
    counts[:, 0] += 1
    counts = counts / (8 if dtype.is_floating_point else 1)
    return levels, valid, counts.to(dtype), *rest, factor, gamma, gradient


def assert_matches(form: Form, args: tuple[Any, ...], device: str = "cpu") -> None:
    losses, scales, gradients = moved(form(*moved(args, device)), "cpu")
    expected, numbers, slopes = op.reference(*args)
    assert_same_bits(scales, numbers)
    dtype = args[0][0].dtype
    exact = dtype == torch.float64 and device == "cpu"
    rtol = 1e-12 if exact and not form.interpreted else 4e-6
    torch.testing.assert_close(losses.double(), expected, rtol=rtol, atol=1e-6)
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rtol = {torch.float16: 2**-10, torch.bfloat16: 2**-7}.get(dtype, 1e-5)
    for gradient, slope, level in zip(gradients, slopes, args[0] if args[-1] else [], strict=True):
        torch.testing.assert_close(gradient.double(), slope.double(), rtol=rtol, atol=1e-6)
        assert gradient.dtype == dtype
        assert gradient.stride() == level.stride()


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(150)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 3]),
        classes=st.sampled_from([1, 3, 20]),
        dtype=st.sampled_from(DTYPES),
        masked=st.booleans(),
        channels_last=st.booleans(),
        groups=st.sampled_from([1, 2, 4]),
        divisor=st.tuples(
            st.sampled_from([torch.int64, torch.int32, torch.float32, torch.float64]),
            st.sampled_from([1, 3, 150]),
            st.sampled_from([0.0, 1.0, 9.0]),
            st.sampled_from([0.0, 1e-6, 0.3]),
            st.sampled_from([0.0, 16384.0]),
        ),
        factor=st.sampled_from([1.0, 0.75]),
        gamma=st.sampled_from([0.0, 1.0, 1.5, 2.0]),
        gradient=st.booleans(),
    )
    def check(**options: Any) -> None:
        assert_matches(form, arguments(**options))

    check()


@op.for_each_form
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_levels_of_many_blocks(form: Form, masked: bool, channels_last: bool) -> None:
    shapes = [(3, 2000), (50, 70)] if not form.interpreted else [(3, 700), (1, 30)]
    assert_matches(form, arguments(1, 2, 5, masked=masked, channels_last=channels_last, shapes=shapes, groups=2))


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for seed, dtype in enumerate(DTYPES):
        shapes = [(64, 70), (9, 9)]
        for channels_last in (False, True):
            args = arguments(seed, 3, 80, dtype, channels_last=channels_last, shapes=shapes, groups=2)
            assert_matches(op, args, device="cuda")


BY_HAND = (
    (ClassLoss("bce"), 0.126928, 0.119203),
    (ClassLoss("varifocal", alpha=0.75), 0.001353, 0.003653),
    (ClassLoss("focal", alpha=0.25), 0.001353, 0.003653),
    (ClassLoss("quality"), 0.001804, 0.004871),
)


@pytest.mark.parametrize(("loss", "cost", "slope"), BY_HAND)
def test_class_losses_by_hand(loss: ClassLoss, cost: float, slope: float) -> None:
    """At a logit of -2, p = 0.119203, BCE = log(1 + e^-2) = 0.126928, gamma 2.

    bce: 0.126928, by x p; varifocal with alpha 0.75 and focal with 0.25: 0.75 p^2 BCE = 0.001353, by x
    0.75 (2 p^2 (1 - p) BCE + p^3) = 0.003653; quality: those over 0.75.
    """
    levels, valid = [torch.full((2, 3, 1, 2), -2.0)], torch.tensor([[True, False], [True, True]])
    for form in (*op.forms, op.reference):
        losses, _, (gradient,) = form(levels, valid, torch.tensor([[0.5]]), 0.0, 0.0, 0.0, *loss.background, True)
        torch.testing.assert_close(losses.tolist(), [2 * 9 * cost], rtol=0, atol=2e-5)
        expected = 2 * slope * valid.view(2, 1, 1, 2).expand(2, 3, 1, 2)
        torch.testing.assert_close(gradient.float(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
def test_background_is_a_target_of_zero(gamma: float) -> None:
    """The definition of the losses at positives gives the same numbers for a target of 0 that is no positive's."""
    x = torch.linspace(-9, 9, 31, dtype=torch.float64)
    for kind in ("quality", "bce", "varifocal", "focal"):
        loss = ClassLoss(kind, gamma, 0.3)  # type: ignore[arg-type]
        expected = sum(class_loss(value, torch.zeros(()).double(), kind, 0.3, gamma)[1] for value in x)
        found, *_ = op.reference([x.view(1, 1, 1, -1)], None, torch.ones(1, 1), 0.0, 0.0, 0.0, *loss.background, False)
        torch.testing.assert_close(found[0], expected)


def test_factors_by_hand() -> None:
    """Counts of 2, 0 and 5, each at least 1, are 8; with eps 2 the factor is 1/10. The second head's is 1/(6 + 2)."""
    args = list(arguments(11, groups=2, masked=False))
    args[2:5] = torch.tensor([[2, 0, 5], [1, 1, 4]]), 1.0, 2.0
    for form in (*op.forms, op.reference):
        args[5] = 0.0
        losses, scales, gradients = form(*args)
        torch.testing.assert_close(scales.tolist(), [[0.1, 0.125]] * 2 + [[1.0] * 2], rtol=1e-7, atol=0)
        args[5] = 1000.0
        scaled, scales, slopes = form(*args)
        torch.testing.assert_close(scales.tolist(), [[0.1, 0.125], [800.0, 1000.0], [0.000125] * 2], rtol=2e-7, atol=0)
        torch.testing.assert_close(scaled, 8000 * losses, rtol=1e-5, atol=0)
        for slope, gradient in zip(slopes, gradients, strict=True):
            torch.testing.assert_close(slope, 8000 * gradient, rtol=1e-5, atol=1e-6)


@op.for_each_form
def test_a_divisor_that_is_not_finite_shows(form: Form) -> None:
    for kept in (0.0, 16384.0):
        args = list(arguments(12, masked=False))
        args[2], args[5] = torch.full((1, 1), float("nan")), kept
        losses, scales, _ = form(*args)
        assert losses[[0, 1, 3]].isnan().all()
        assert scales[0].isnan()


@op.for_each_form
def test_what_is_not_finite_shows(form: Form) -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        levels, *rest = arguments(3, masked=False)
        levels[1][1, 2, 3, 4] = value
        losses, _, gradients = form(levels, *rest)
        assert losses.isnan().tolist() == [False, True, False, False]
        assert gradients[1].isnan().sum() == gradients[1][1, 2, 3, 4].isnan().sum() == 1


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(4, 3, 20, shapes=[(40, 50), (20, 25)])
    assert_same_bits_for_any_threads(lambda: op(*args))


def test_both_layouts_give_the_same_gradients() -> None:
    for masked in (False, True):
        planes, points = (arguments(5, masked=masked, channels_last=last) for last in (False, True))
        for ours, theirs in zip(op(*planes)[2], op(*points)[2], strict=True):
            assert_same_bits(ours, theirs.contiguous())


@for_each_device
def test_opcheck(device: str) -> None:
    op.check(*moved(arguments(6), device))
    op.check(*moved(arguments(7, masked=False, channels_last=True, gradient=False), device))


@for_each_device
def test_no_host_sync(device: str) -> None:
    args: Any = moved(arguments(8, groups=2), device)
    for form in (op, op.portable):
        losses, scales, gradients = assert_no_syncs(form, *args)
        assert scales.shape == (3, 2)
        assert losses.shape == (len(SHAPES),)
        assert [gradient.shape for gradient in gradients] == [level.shape for level in args[0]]


@pytest.mark.parametrize(
    "change",
    [
        {"logits": []},
        {"logits": [torch.zeros(2, 3, 4)]},
        {"logits": [torch.zeros(2, 3, 8, 8)[..., ::2]]},
        {"logits": [torch.zeros(2, 3, 4, 4, dtype=torch.int64)]},
        {"logits": [torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 4)]},
        {"logits": [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4).half()]},
        {"valid": torch.ones(2, 3, dtype=torch.bool)},
        {"valid": torch.ones(2, 102)},
        {"counts": torch.ones(1)},
        {"counts": torch.ones(3, 1)},
        {"counts": torch.ones(1, 1, dtype=torch.bool)},
    ],
    ids=changed_argument,
)
def test_refuses(change: dict[str, Any]) -> None:
    op.refuses(arguments(9), **change)


KERNELS = [
    Kernel("background_kernel",
           dict(maps=("*" + name,) * 3, gradient_maps=("*" + name,) * 3, starts=("i32",) * 3, rows=("i32",) * 3,
                inner=("i32",) * 3, valid="*u8", counts="*" + counts, scales="*fp32", sums="*" + wide, B="i32",
                C="i32", A="i32", M="i32", least="fp32", eps="fp32", kept="fp32", factor="fp32", gamma="fp32"),
           dict(LEVELS=3, GROUPS=1, HAS_VALID=masked, STANDARD=square, WITH_GRADIENT=True, KEPT=name == "fp16",
                DOUBLE=wide == "fp64", BLOCK=2048, BLOCK_M=64), 8)
    for name, wide, counts, masked, square in (
        ("fp32", "fp32", "i64", False, True), ("fp16", "fp32", "i64", True, True),
        ("bf16", "fp32", "fp32", True, False), ("fp64", "fp64", "fp32", False, False))
]  # fmt: skip
