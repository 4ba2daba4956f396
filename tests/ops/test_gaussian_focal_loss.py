"""The op gaussian_focal_loss and its public forms: values, gradients, extremes, reductions."""

import functools
from typing import Any, Literal

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
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)
from torch import Tensor

import detops

op = Op("gaussian_focal_loss")

STANDARD = (2.0, 4.0, 1.0, 1.0)  # alpha, gamma, weight of positives, of negatives


def random_maps(
    seed: int,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    spread: float = 4.0,
    target_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Make logits and targets. Rounding to a short type may turn 0.999 into 1: then that is every form's target."""
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(shape, generator=g) * spread).to(dtype)
    target = torch.rand(shape, generator=g) * (torch.rand(shape, generator=g) < 0.3)
    target = target.masked_fill(torch.rand(shape, generator=g) < 0.1, 1.0)
    return logits, target.to(target_dtype or dtype)


# How far a gradient may be off: the rounding of its dtype, and where small its smallest step.
GRADIENT_ERROR: dict[torch.dtype, dict[str, Any]] = {
    torch.float64: dict(rtol=1e-12, atol=1e-12),
    torch.float32: dict(rtol=2e-6, atol=1e-6),
    torch.float16: dict(rtol=2**-10, atol=2**-23),
    torch.bfloat16: dict(rtol=2**-7, atol=1e-6),
}


def assert_matches(
    form: Form,
    logits: Tensor,
    target: Tensor,
    factors: tuple[float, ...] = STANDARD,
    scale: Tensor | None = None,
    device: str = "cpu",
) -> None:
    total, gradient = op.reference(logits, target, scale, *factors, True)
    got, got_gradient = moved(form(*moved((logits, target, scale), device), *factors, True), "cpu")
    # Triton's exponential of float64 is a polynomial of float32's.
    exact = logits.dtype == torch.float64 and not form.interpreted and device == "cpu"
    wide = torch.float64 if exact else torch.float32
    torch.testing.assert_close(got.double(), total, **GRADIENT_ERROR[wide])
    assert got.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert got_gradient.dtype == logits.dtype
    close = GRADIENT_ERROR[wide if logits.dtype == torch.float64 else logits.dtype]
    torch.testing.assert_close(got_gradient.double(), gradient.double(), **close)


factor_sets = st.sampled_from(
    [(2.0, 4.0, 1.0, 1.0), (2.0, 4.0, 0.25, 0.75), (1.5, 3.0, 1.0, 2.0), (0.5, 0.0, 1.0, 1.0)]
)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(120)
    @given(
        seed=st.integers(0, 10**6),
        shape=st.sampled_from([(1,), (0,), (15,), (16,), (17,), (2, 3, 5, 7), (4099,), (1, 2, 40, 60)]),
        dtypes=st.sampled_from(
            [
                *((dtype, None) for dtype in DTYPES),
                *((dtype, torch.float32) for dtype in (torch.float16, torch.bfloat16)),
            ]
        ),
        spread=st.sampled_from([0.1, 4.0, 30.0]),
        factors=factor_sets,
        scale=st.sampled_from([None, 0.25, 3.0]),
    )
    def check(
        seed: int,
        shape: tuple[int, ...],
        dtypes: tuple[torch.dtype, torch.dtype | None],
        spread: float,
        factors: tuple[float, ...],
        scale: float | None,
    ) -> None:
        logits, target = random_maps(seed, shape, dtypes[0], spread, dtypes[1])
        assert_matches(form, logits, target, factors, None if scale is None else torch.tensor(scale))

    check()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_matches_reference(dtype: torch.dtype) -> None:
    for seed, factors in enumerate([(2.0, 4.0, 1.0, 1.0), (1.5, 3.0, 0.5, 2.0)]):
        assert_matches(op, *random_maps(seed, (2, 3, 50, 70), dtype), factors, device="cuda")


@op.for_each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("logit", [9.0, 12.0, 20.0, 80.0, 5000.0])
def test_exact_where_probabilities_overflow(form: Form, dtype: torch.dtype, logit: float) -> None:
    """A confident mistake has its logit as loss and a gradient of one, in every dtype."""
    for x, t, sign in ((logit, 0.0, 1.0), (-logit, 1.0, -1.0)):
        logits, target = torch.full((4,), x).to(dtype), torch.full((4,), t).to(dtype)
        total, gradient = form(logits, target, None, *STANDARD, True)
        assert total.item() == pytest.approx(4 * abs(logits[0].item()), rel=1e-3)
        assert gradient.float().tolist() == pytest.approx([sign] * 4, rel=1e-2)


@op.for_each_form
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("position", [0, 15, 33])
def test_a_logit_that_is_not_finite_makes_nan(form: Form, value: float, position: int) -> None:
    logits, target = random_maps(1, (40,))
    logits[position] = value
    total, gradient = form(logits, target, None, *STANDARD, True)
    assert total.isnan()
    assert gradient.isnan().nonzero().tolist() == [[position]]
    with (
        detops.checked(),
        pytest.raises(ValueError, match=rf"pred: \({position},\) has (nan|inf|-inf), expected finite"),
    ):
        detops.gaussian_focal_loss(logits, target)


def test_known_values() -> None:
    """The target of the CenterNet tutorial: a Gaussian of radius 2, sigma 1 at [0, 0] and [1, 2] of (2, 4, 8, 8)."""
    target = torch.zeros(2, 4, 8, 8)
    target[0, 0, 1:6, 1:6] = target[1, 2, 1:6, 1:6] = detops.gaussian_kernel(2, 1.0)
    for p, total in ((0.5, 84.690345), (0.1, 4.243008), (0.9, 907.798085)):
        pred = torch.full(target.shape, p)
        loss = detops.gaussian_focal_loss(pred, target, reduction="sum", from_logits=False)
        assert loss.item() == pytest.approx(total, rel=1e-6)
        loss = detops.gaussian_focal_loss(pred.logit(), target, avg_factor=2)
        assert loss.item() == pytest.approx(total / 2, rel=1e-6)
    loss = detops.gaussian_focal_loss(torch.full(target.shape, 0.5), target, from_logits=False)
    assert loss.item() == pytest.approx(0.16541083, rel=1e-6)


@for_each_device
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_fused_form_is_the_sum_of_the_elements(device: str, reduction: Literal["mean", "sum"]) -> None:
    logits, target = (t.to(device) for t in random_maps(2, (2, 3, 9, 11)))
    results = []
    for fused in (True, False):
        x = logits.clone().requires_grad_()
        extra: Any = {} if fused else {"weight": torch.ones((), device=device)}
        loss = detops.gaussian_focal_loss(x, target, reduction=reduction, **extra)
        (loss * 3).backward()
        results.append((loss.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1])


def test_gradients_of_the_elements() -> None:
    logits, target = random_maps(3, (3, 5), torch.float64, spread=1.5)
    options: dict[str, Any]
    for options in ({}, {"reduction": "none"}, {"from_logits": False}):
        x = logits.sigmoid() if "from_logits" in options else logits

        def loss(x: Tensor, options: Any = options) -> Tensor:
            return detops.gaussian_focal_loss(x, target, **options)

        assert torch.autograd.gradcheck(loss, x.clone().requires_grad_())


def test_weights_and_reductions() -> None:
    pred, target = torch.tensor([0.3, 0.6, 0.8]), torch.tensor([0.0, 1.0, 0.5])
    loss = functools.partial(detops.gaussian_focal_loss, pred, target, from_logits=False)
    elements = loss(reduction="none")
    assert elements.tolist() == pytest.approx([0.0321007, 0.0817321, 0.0643775], rel=1e-5)
    weight = torch.tensor([1.0, 0.0, 2.0])
    assert loss(weight=weight).item() == pytest.approx((elements * weight).mean().item())
    divided = loss(weight=weight, avg_factor=torch.tensor(2))
    assert divided.item() == pytest.approx((elements * weight).sum().item() / 2)
    nothing_negative = loss(negative_weight=torch.zeros(1), reduction="sum")
    assert nothing_negative.item() == pytest.approx(elements[1].item())


def test_given_positives() -> None:
    """Positives by row and class, whatever the targets; every cell below 1 is a negative too."""
    logits, target = random_maps(9, (6, 3), torch.float64, spread=1.0)
    target = target.where(target < 1, 0.5)
    rows, labels = torch.tensor([0, 4, 4]), torch.tensor([2, 0, 0], dtype=torch.int32)
    p = logits.sigmoid()
    positive = -3 * (1 - p[rows, labels.long()]) ** 2 * p[rows, labels.long()].log()
    negative = -((1 - target) ** 4) * p**2 * (1 - p).log()
    options: dict[str, Any] = dict(pos_inds=rows, pos_labels=labels, pos_weight=3.0)
    for from_logits, pred in ((True, logits), (False, p)):
        loss = detops.gaussian_focal_loss(pred, target, avg_factor=5, from_logits=from_logits, **options)
        torch.testing.assert_close(loss, (positive.sum() + negative.sum()) / 5, rtol=1e-7, atol=0)
        loss = detops.gaussian_focal_loss(pred, target, from_logits=from_logits, **options)
        torch.testing.assert_close(loss, positive.mean() + negative.mean(), rtol=1e-9, atol=0)

    def summed(x: Tensor) -> Tensor:
        return detops.gaussian_focal_loss(x, target, reduction="sum", **options)

    assert torch.autograd.gradcheck(summed, logits.requires_grad_())
    with pytest.raises(ValueError, match="pos_inds, pos_labels: expected both or neither"):
        detops.gaussian_focal_loss(logits, target, pos_inds=rows)
    with pytest.raises(ValueError, match=r"pred: expected shape \(N, C\) with pos_inds, got \(3,\)"):
        detops.gaussian_focal_loss(logits[0], target[0], **options)
    with pytest.raises(ValueError, match=r"pos_labels: expected shape \(3,\)"):
        detops.gaussian_focal_loss(logits, target, pos_inds=rows, pos_labels=labels[:2])


def test_backward_again() -> None:
    """The gradient is scaled in place and handed on; a retained graph still gives it a second time."""
    logits, target = random_maps(10, (5, 7))
    x = logits.clone().requires_grad_()
    loss = detops.gaussian_focal_loss(x, target)
    first, second, third = (torch.autograd.grad(loss * f, x, retain_graph=True)[0] for f in (1.0, 65536.0, 1.0))
    assert first.abs().sum() > 0
    torch.testing.assert_close(second, 65536 * first)
    assert torch.equal(first, third)


def test_a_loss_scale_beyond_float16() -> None:
    logits, target = random_maps(11, (5, 7), torch.float16)
    x = logits.clone().requires_grad_()
    (detops.gaussian_focal_loss(x, target, avg_factor=2.0**17) * 2.0**17).backward()
    y = logits.double().requires_grad_()
    (expected,) = torch.autograd.grad(detops.gaussian_focal_loss(y, target.double(), reduction="sum"), y)
    torch.testing.assert_close(x.grad.double(), expected, rtol=2e-3, atol=2.0**-6)


def test_a_loss_scale_saves_the_gradients_of_float16() -> None:
    """Divided by the number of positives they would underflow in float16; a loss scale prevents it."""
    logits, target = random_maps(12, (2, 3, 16, 16), torch.float32)
    narrow, wide = (logits - 4).half().requires_grad_(), (logits - 4).half().float().requires_grad_()
    for x in (narrow, wide):
        (detops.gaussian_focal_loss(x, target, avg_factor=200) * 2.0**16).backward()
    torch.testing.assert_close(narrow.grad.float(), wide.grad, rtol=2e-3, atol=1e-4)
    assert (wide.grad.abs() < 2.0**16 * 6e-8).float().mean() > 0.2


def test_weights_beyond_float16() -> None:
    logits = torch.tensor([[-9.0, 9.0, -3.0]]).half().requires_grad_()
    target = torch.tensor([[1.0, 0.0, 0.5]])
    options: dict[str, Any] = dict(reduction="sum", pos_weight=900, neg_weight=50)
    detops.gaussian_focal_loss(logits, target, **options).backward()
    x = logits.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(detops.gaussian_focal_loss(x, target, **options), x)
    torch.testing.assert_close(logits.grad.double(), expected, rtol=2e-3, atol=1e-4)


def test_autocast_and_views() -> None:
    logits, target = random_maps(4, (2, 3, 6, 6))
    expected = detops.gaussian_focal_loss(logits, target)
    channels_last = logits.to(memory_format=torch.channels_last).requires_grad_()
    loss = detops.gaussian_focal_loss(channels_last, target)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert channels_last.grad.shape == logits.shape
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert detops.gaussian_focal_loss(logits.bfloat16(), target).dtype == torch.float32


def test_the_module() -> None:
    logits, target = random_maps(5, (2, 8))
    module = detops.GaussianFocalLoss(loss_weight=2.0, neg_weight=0.5)
    expected = 2 * detops.gaussian_focal_loss(logits, target, neg_weight=0.5, avg_factor=3)
    torch.testing.assert_close(module(logits, target, avg_factor=3), expected)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    logits, target = random_maps(6, (3, 10_000))
    assert_same_bits_for_any_threads(lambda: op(logits, target, None, *STANDARD, True))


@for_each_device
@pytest.mark.parametrize("with_gradient", [True, False])
def test_opcheck(device: str, with_gradient: bool) -> None:
    op.check(*moved(random_maps(7, (3, 50)), device), None, *STANDARD, with_gradient)


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    def step(logits: Tensor, target: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        leaf = logits.detach().requires_grad_()
        loss = detops.gaussian_focal_loss(leaf, target, avg_factor=count)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    def loss(logits: Tensor, target: Tensor, count: Tensor) -> Tensor:
        return detops.gaussian_focal_loss(logits, target, avg_factor=count)

    count = torch.tensor(3, device=device)
    args, more = ((*moved(random_maps(8, (2, size)), device), count) for size in (40, 70))
    assert assert_no_syncs(step, *args)[1].shape == (2, 40)
    assert assert_no_syncs(op.portable, *args[:2], None, *STANDARD, True)[1].shape == (2, 40)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for logits, *rest in (args, more):
        leaf = logits.clone().requires_grad_()
        compiled(leaf, *rest).backward()
        torch.testing.assert_close(leaf.grad, step(logits, *rest)[1])


def test_an_empty_batch_trains() -> None:
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    loss = detops.gaussian_focal_loss(x, torch.zeros(0, 3, 4, 4))
    loss.backward()
    assert loss.item() == 0
    assert x.grad.shape == x.shape


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pred": [0.5]}, TypeError, "pred: expected a floating-point tensor, got list"),
        (
            {"target": torch.zeros(3, dtype=torch.int64)},
            TypeError,
            "target: expected a floating-point tensor, got int64",
        ),
        ({"target": torch.zeros(4)}, ValueError, "target: expected shape (3,) to match pred, got (4,)"),
        ({"target": torch.zeros(3, device="meta")}, ValueError, "target: expected a tensor on cpu"),
        ({"reduction": "max"}, ValueError, 'reduction: expected "none", "mean" or "sum", got \'max\''),
        ({"reduction": "sum", "avg_factor": 2}, ValueError, "avg_factor: expected None"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        detops.gaussian_focal_loss(**{"pred": torch.zeros(3), "target": torch.zeros(3), **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        dict(target=torch.zeros(3, 4)),
        dict(target=torch.zeros(5, 3).t()),
        dict(target=torch.zeros(3, 5).double()),
        dict(logits=torch.zeros(5, 3).t()),
        dict(scale=torch.zeros(2)),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses((*random_maps(13, (3, 5)), None, *STANDARD, True), **change)


KERNELS = [
    Kernel("loss_kernel",
           dict(logits="*" + name, target="*" + wide, scale="*" + wide, gradient="*" + name, sums="*" + wide, count="i32",
                alpha="fp32", gamma="fp32", pos_weight="fp32", neg_weight="fp32"),
           dict(HAS_SCALE=scaled, STANDARD=standard, WITH_GRADIENT=True, BLOCK=2048, DOUBLE=wide == "fp64"), 8)
    for name, wide, standard, scaled in (("fp32", "fp32", True, True), ("fp16", "fp32", False, True),
                                         ("bf16", "fp32", True, False), ("fp64", "fp64", False, True))
]  # fmt: skip
