"""gaussian_radius: known values, the plain statement in high precision, and extreme boxes."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import detops

KNOWN = {  # (height, width) -> {overlap: (fixed, legacy)}; MMDetection's and CornerNet's own results
    (8, 8): {0.1: (2.735089, 3.459644), 0.3: (1.809110, 3.963561), 0.5: (1.171573, 3.313708), 0.7: (0.653360, 2.186560)},
    (10, 20): {0.1: (4.145898, 6.0), 0.3: (2.890228, 6.779734), 0.5: (1.909830, 5.615528), 0.7: (1.077384, 3.677925)},
    (100, 100): {0.1: (34.188612, 43.245553), 0.3: (22.613872, 49.544512), 0.5: (14.644661, 41.421356), 0.7: (8.166999, 27.332005)},
    (2, 50): {0.3: (0.691466, None), 0.5: (0.490004, None), 0.7: (0.291735, None)},
    (2, 2): {0.3: (0.452277, None)},
    (0, 0): {0.1: (0, 0), 0.3: (0, 0), 0.7: (0, 0)},
}  # fmt: skip
CASES = [(h, w, o, *values) for (h, w), rows in KNOWN.items() for o, values in rows.items()]


@pytest.mark.parametrize(("h", "w", "o", "fixed", "legacy"), CASES)
def test_known_values(h, w, o, fixed, legacy):
    assert detops.gaussian_radius(h, w, o) == pytest.approx(fixed, abs=1e-6)
    assert detops.gaussian_radius(torch.tensor(w), torch.tensor(h), o).item() == pytest.approx(
        fixed, rel=1e-6, abs=1e-6
    )
    if legacy is not None:
        assert detops.gaussian_radius(h, w, o, formula="legacy") == pytest.approx(legacy, abs=1e-6)


def reference(h: float, w: float, o: float, formula: str) -> float:
    """The textbook roots of the three quadratics a r^2 - b r + c, in CornerNet's order."""
    same_way, inward = (1, h + w, h * w * (1 - o) / (1 + o)), (4, 2 * (h + w), (1 - o) * h * w)
    outward = (4 * o, -2 * o * (h + w), (o - 1) * h * w)
    roots = [math.sqrt(max(b * b - 4 * a * c, 0.0)) for a, b, c in (same_way, inward, outward)]
    if formula == "legacy":
        return min((b + root) / 2 for (_, b, _), root in zip((same_way, inward, outward), roots, strict=True))
    signs = (-1, -1, 1)
    parts = zip((same_way, inward, outward), signs, roots, strict=True)
    return min((b + sign * root) / (2 * a) for (a, b, _), sign, root in parts)


@settings(max_examples=300, deadline=None)
@given(
    h=st.floats(0.25, 2000, width=32),
    w=st.floats(0.25, 2000, width=32),
    o=st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.95]),
    formula=st.sampled_from(["fixed", "legacy"]),
)
def test_matches_reference(h, w, o, formula):
    expected = reference(h, w, o, formula)
    # The textbook roots of the reference cancel: their error in float64 limits the precision of the comparison.
    slack = 1e-13 * (h + w) ** 2 / max(min(h, w), 1e-3)
    assert detops.gaussian_radius(h, w, o, formula) == pytest.approx(expected, rel=1e-10, abs=slack)
    result = detops.gaussian_radius(torch.tensor([h]), torch.tensor([w]), o, formula)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(expected, rel=2e-6, abs=slack)


def exact(h: float, w: float, o: float) -> float:
    """The fixed formula with 200 digits, by Newton's method on the three square roots."""

    def sqrt(value: Fraction) -> Fraction:
        scale = 10**400
        return Fraction(math.isqrt(value.numerator * scale // value.denominator), 10**200)

    h, w, o = Fraction(h), Fraction(w), Fraction(o)
    b, area = h + w, h * w
    same = (b - sqrt(b * b - 4 * area * (1 - o) / (1 + o))) / 2
    inward = (2 * b - sqrt(4 * b * b - 16 * (1 - o) * area)) / 8
    outward = (-2 * o * b + sqrt(4 * o * o * b * b + 16 * o * (1 - o) * area)) / (8 * o)
    return float(min(same, inward, outward))


@pytest.mark.parametrize(
    ("h", "w"),
    [(1, 100_000), (1e-3, 1e4), (1e-10, 1e-10), (1e-18, 1.0), (1e15, 2e15), (2.0**-100, 2.0**-90), (3, 3)],
)
def test_thin_tiny_and_huge_boxes_lose_no_precision(h, w):
    """In float32, where the textbook root of 1 x 100000 is off by all its digits."""
    tensor = torch.tensor([h], dtype=torch.float32), torch.tensor([w], dtype=torch.float32)
    for o in (0.3, 0.7):
        result = detops.gaussian_radius(*tensor, o).item()
        assert result == pytest.approx(exact(tensor[0].item(), tensor[1].item(), o), rel=1e-6)


def test_the_radius_keeps_the_overlap():
    """Corners moved by the radius, in each of the three directions, still overlap enough."""
    h, w, o = 37.0, 81.0, 0.6
    r = detops.gaussian_radius(h, w, o)
    same_way = (h - r) * (w - r) / (2 * h * w - (h - r) * (w - r))
    inward = (h - 2 * r) * (w - 2 * r) / (h * w)
    outward = h * w / ((h + 2 * r) * (w + 2 * r))
    assert min(same_way, inward, outward) == pytest.approx(o)


def test_shapes_dtypes_and_broadcasting():
    h = torch.rand(3, 1) * 50
    assert detops.gaussian_radius(h, torch.rand(1, 4) * 50).shape == (3, 4)
    assert detops.gaussian_radius(h, 10.0).shape == (3, 1)
    assert detops.gaussian_radius(10, h).shape == (3, 1)
    assert detops.gaussian_radius(torch.tensor([4]), torch.tensor([4])).dtype == torch.float32
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert detops.gaussian_radius(h.to(dtype), h.to(dtype)).dtype == dtype
    assert isinstance(detops.gaussian_radius(3, 4), float)
    assert detops.gaussian_radius(torch.zeros(0), torch.zeros(0)).shape == (0,)


def test_the_precision_of_half_is_that_of_its_rounding():
    h, w = torch.tensor([60.0, 300.0]), torch.tensor([2.0, 500.0])
    expected = detops.gaussian_radius(h, w)
    assert torch.equal(detops.gaussian_radius(h.half(), w.half()), expected.half())


def test_nonsense_sides_are_nan():
    sides = torch.tensor([-1.0, float("nan"), float("inf"), float("-inf")])
    assert detops.gaussian_radius(sides, torch.ones(4)).isnan().all()
    assert detops.gaussian_radius(torch.zeros(1), torch.full((1,), 5.0)).tolist() == [0.0]


def test_gradients():
    sides = [torch.tensor([3.0, 20.0, 7.0], dtype=torch.float64, requires_grad=True) for _ in range(2)]
    sides[1].data.add_(1.5)
    for formula in ("fixed", "legacy"):
        assert torch.autograd.gradcheck(lambda h, w, f=formula: detops.gaussian_radius(h, w, 0.4, f), sides)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1, 2, 0.0), ValueError, "min_overlap: expected a number above 0 and at most 1, got 0.0"),
        ((1, 2, 1.5), ValueError, "min_overlap"),
        ((1, 2, 0.5, "new"), ValueError, 'formula: expected "fixed" or "legacy", got \'new\''),
        (("1", 2), TypeError, "height: expected a number or a tensor, got str"),
        ((1, torch.ones(1, dtype=torch.bool)), TypeError, "width: expected numbers, got bool"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error) as caught:
        detops.gaussian_radius(*arguments)
    assert message in str(caught.value)


def test_gaussian_kernel():
    kernel = detops.gaussian_kernel(3, sigma=0.5, dtype=torch.float64)
    assert kernel.shape == (7, 7)
    assert kernel[3, 3] == 1
    assert kernel[3, 0] == 0  # exp(-18) is below float32's epsilon
    assert torch.equal(kernel, kernel.T)
    assert detops.gaussian_kernel(0, 1.0).tolist() == [[1.0]]
    for arguments in ((-1, 1.0), (1.5, 1.0), (1, 0.0), (1, float("nan"))):
        with pytest.raises(ValueError, match="expected"):
            detops.gaussian_kernel(*arguments)
