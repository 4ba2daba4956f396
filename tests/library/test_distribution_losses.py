"""GFL's and LD's losses: quality focal, distribution focal, localization distillation, and distances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

import detops

RISING = torch.arange(17.0) / 4


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def one_quality(logits, label, score, beta):
    total = 0.0
    for c, x in enumerate(logits):
        y, p = (score if c == label else 0.0), sigmoid(x)
        total += abs(y - p) ** beta * -(y * math.log(p) + (1 - y) * math.log(1 - p))
    return total


def test_quality_focal_loss_by_hand():
    """Values of MMDetection's class."""
    logits = torch.tensor([[0.0, 1, -1], [2, 0, 0]])
    got = detops.quality_focal_loss(logits, torch.tensor([1, 3]), torch.tensor([0.8, 0.0]), reduction="none")
    torch.testing.assert_close(got, torch.tensor([0.198384, 1.996652]), rtol=0, atol=1e-6)
    assert torch.equal(
        detops.QualityFocalLoss(reduction="none")(logits, torch.tensor([1, -1]), torch.zeros(2))[1], got[1]
    )


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(0, 5), classes=st.integers(1, 6), beta=st.sampled_from([1.0, 2.0, 3.0])
)
def test_quality_focal_loss_is_the_formula(seed, rows, classes, beta):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=g, dtype=torch.float64) * 3
    labels = torch.randint(-2, classes + 2, (rows,), generator=g)
    scores = torch.rand(rows, generator=g, dtype=torch.float64)
    got = detops.quality_focal_loss(logits, labels, scores, beta, reduction="none")
    rows = zip(logits.tolist(), labels.tolist(), scores.tolist(), strict=True)
    torch.testing.assert_close(got, torch.tensor([one_quality(*row, beta) for row in rows], dtype=torch.float64))


def test_quality_focal_loss_is_exact_far_out():
    logits = torch.tensor([[40.0, -40]], requires_grad=True)
    loss = detops.quality_focal_loss(logits, torch.tensor([1]), torch.tensor([1.0]), reduction="sum")
    assert loss.item() == pytest.approx(80)
    assert torch.autograd.grad(loss, logits)[0].tolist() == [pytest.approx([1, -1])]


def test_distribution_focal_loss_by_hand():
    """Values of MMDetection's class, and both ends; MMDetection does not accept the upper one."""
    for y, expected in ((15.9, 1.519325), (3.25, 4.681825), (0.0, 5.494324)):
        assert detops.distribution_focal_loss(RISING, torch.tensor(y)).item() == pytest.approx(expected, abs=1e-5)
    assert detops.distribution_focal_loss(RISING, torch.tensor(16.0)) == -RISING.log_softmax(0)[16]
    for beyond, end in ((17.0, 16.0), (-1.0, 0.0), (math.inf, 16.0), (math.nan, 0.0)):
        assert detops.distribution_focal_loss(RISING, torch.tensor(beyond)) == detops.distribution_focal_loss(
            RISING, torch.tensor(end)
        )
        with detops.checked(), pytest.raises(ValueError, match=r"target: expected 0 \.\. 16, got"):
            detops.distribution_focal_loss(RISING, torch.tensor(beyond))
    with detops.checked(), pytest.raises(ValueError, match=r"target: expected 0 \.\. 16, got 17 at \(1, 0\)"):
        detops.distribution_focal_loss(RISING.expand(2, 2, 17), torch.tensor([[0.0, 16], [17, 18]]))


def test_localization_distillation_by_hand():
    for temperature, expected in ((1.0, 0.1389762), (10.0, 0.1759392)):
        loss = detops.localization_distillation_loss(RISING, RISING.flip(0), temperature)
        assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert detops.LocalizationDistillationLoss()(RISING, RISING.flip(0)).item() == pytest.approx(
        0.25 * 0.1759392, abs=1e-6
    )
    assert detops.localization_distillation_loss(RISING, RISING) == pytest.approx(0, abs=1e-7)


def test_distances_by_hand():
    assert detops.distribution_to_distances(torch.zeros(2, 3, 68)).tolist() == [[[8.0] * 4] * 3] * 2
    one = torch.full((1, 4, 4), -1e4)
    one[0, torch.arange(4), torch.tensor([0, 3, 1, 2])] = 1e4
    assert detops.distribution_to_distances(one.flatten(1), reg_max=3).tolist() == [[0, 3, 1, 2]]
    point, box = torch.tensor([5.0, 5.0]), torch.tensor([0.0, -20, 7, 30])
    assert detops.boxes_to_distances(point, box).tolist() == [5, 25, 2, 25]
    torch.testing.assert_close(detops.boxes_to_distances(point, box, 16), torch.tensor([5, 15.9, 2, 15.9]))
    assert torch.equal(detops.distances_to_boxes(point, detops.boxes_to_distances(point, box)), box)
    assert detops.distances_to_boxes(point, torch.full((4,), 9.0), (10, 12)).tolist() == [0, 0, 12, 10]
    many = detops.boxes_to_distances(torch.rand(7, 2), torch.rand(3, 1, 4))
    assert many.shape == (3, 7, 4)


FUNCTIONS = {
    "quality": lambda x, **k: detops.quality_focal_loss(x, torch.tensor([2, -1, 0]), torch.tensor([0.7, 0, 1.0]), **k),
    "distribution": lambda x, **k: detops.distribution_focal_loss(x, torch.tensor([0.0, 3.5, 8]), **k),
    "distillation": lambda x, **k: detops.localization_distillation_loss(x, x.detach().flip(1), **k),
}


def logits(dtype=torch.float32):
    return torch.randn(3, 9, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_dtypes_weights_and_reductions(name):
    loss, eps = FUNCTIONS[name], torch.finfo(torch.float32).eps
    teacher = logits(torch.float64).flip(1)
    checked = loss if name != "distillation" else lambda x, **k: detops.localization_distillation_loss(x, teacher, **k)
    assert torch.autograd.gradcheck(lambda x: checked(x, reduction="none"), logits(torch.float64).requires_grad_())
    x, weight = logits(), torch.tensor([1.0, 0.0, 3.0])
    elements = loss(x, reduction="none")
    assert elements.shape == (3,)
    for options, expected in (
        (dict(), elements.mean()), (dict(reduction="sum"), elements.sum()), (dict(weight=weight), (elements * weight).mean()),
        (dict(weight=weight, avg_factor=torch.tensor(2.0)), (elements * weight).sum() / (2 + eps)),
    ):  # fmt: skip
        torch.testing.assert_close(loss(x, **options), expected)
    strided = torch.stack([x, x], -1)[..., 0]
    assert torch.equal(loss(strided, reduction="none"), elements)
    for dtype in (torch.float16, torch.bfloat16):
        half = (x * 8).to(dtype)
        got = loss(half, reduction="none")
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, loss(half.float(), reduction="none"))
        assert got.isfinite().all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_host_sync_and_compiles_whole(name):
    x = logits().requires_grad_()
    assert detops.count_syncs(lambda: FUNCTIONS[name](x).backward()) == 0
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), FUNCTIONS[name](x))
    if name == "distillation":
        with FakeTensorMode() as mode:
            assert FUNCTIONS[name](mode.from_tensor(x)).shape == ()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: detops.quality_focal_loss(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2)), TypeError,
         "labels: expected integers, got float32"),
        (lambda: detops.quality_focal_loss(torch.zeros(2, 3), torch.zeros(3).long(), torch.zeros(2)), ValueError,
         r"labels: expected shape \(2,\) to match pred, got \(3,\)"),
        (lambda: detops.distribution_focal_loss(torch.zeros(2, 1), torch.zeros(2)), ValueError, "pred: expected shape"),
        (lambda: detops.distribution_focal_loss(torch.zeros(2, 3), torch.zeros(3)), ValueError, "target: expected shape"),
        (lambda: detops.localization_distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4)), ValueError,
         r"soft_target: expected shape \(2, 3\) to match pred, got \(2, 4\)"),
        (lambda: detops.localization_distillation_loss(torch.zeros(3), torch.zeros(3), 0.5), ValueError,
         "temperature: expected at least 1, got 0.5"),
        (lambda: detops.LocalizationDistillationLoss(temperature=0), ValueError, "temperature: expected at least 1"),
        (lambda: detops.distribution_to_distances(torch.zeros(2, 67)), ValueError, r"logits: expected shape \(\.\.\., 68\)"),
        (lambda: detops.distribution_to_distances(torch.zeros(2, 4), 0), ValueError, "reg_max: expected at least 1"),
        (lambda: detops.boxes_to_distances(torch.zeros(3, 2), torch.zeros(5, 4, 4)), ValueError,
         r"boxes: expected a shape that broadcasts to points \(3, 2\), got \(5, 4, 4\)"),
        (lambda: detops.distances_to_boxes(torch.zeros(3, 2), torch.zeros(4, 4)), ValueError,
         r"distances: expected a shape that broadcasts to points \(3, 2\), got \(4, 4\)"),
        (lambda: detops.boxes_to_distances(torch.zeros(3), torch.zeros(4)), ValueError, r"points: expected shape \(\.\.\., 2\)"),
        (lambda: detops.distances_to_boxes(torch.zeros(2).long(), torch.zeros(4)), TypeError, "points: expected a floating"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
