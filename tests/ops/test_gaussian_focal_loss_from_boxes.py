"""The op gaussian_focal_loss_from_boxes and its public form: the loss of the drawn heatmap, without the heatmap."""

import re
from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from gaussian_scenes import gaussian_scene
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
from torch import Tensor

import detops

op = Op("gaussian_focal_loss_from_boxes")

STANDARD = (6.0, 2.0, 4.0, 1.0, 1.0)  # diameter to sigma, alpha, gamma, weight of positives, of negatives


def arguments(
    seed: int, dtype: torch.dtype = torch.float32, weighted: bool = False, scale: float | None = None, **options: Any
) -> tuple[Any, ...]:
    """Return all arguments of the op except the factors."""
    scene = gaussian_scene(seed, filled=False, **options)
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(scene.heatmap.shape, generator=g) * 4 - 1).to(dtype)
    batch, _, height, width = logits.shape
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.rand(batch, height, width, generator=g).to(wide) if weighted else None
    factor = None if scale is None else torch.tensor(scale, dtype=wide)
    return logits, scene.centers, scene.radii, scene.labels, scene.sizes, weight, factor


def assert_matches(form: Form, args: Any, factors: tuple[float, ...] = STANDARD, device: str = "cpu") -> None:
    total, gradient = op.reference(*args, *factors, True)
    got, got_gradient = moved(form(*moved(tuple(args), device), *factors, True), "cpu")
    dtype = args[0].dtype
    # The targets' exponentials are float32's everywhere but in portable and C++ float64.
    exact = dtype == torch.float64 and not form.interpreted and device == "cpu"
    torch.testing.assert_close(got.double(), total, rtol=1e-12 if exact else 4e-6, atol=1e-6)
    rounding = {torch.float16: 2**-10, torch.bfloat16: 2**-7}.get(dtype, 1e-11 if exact else 1e-5)
    torch.testing.assert_close(got_gradient.double(), gradient.double(), rtol=rounding, atol=2e-6)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got_gradient.dtype == dtype


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(40)
    @given(
        seed=st.integers(0, 10**6),
        shape=st.sampled_from([(0, 2, 4, 4), (1, 1, 1, 1), (2, 3, 9, 17), (1, 2, 5, 33), (2, 1, 16, 16)]),
        boxes=st.sampled_from([0, 1, 5, 70]),
        dtype=st.sampled_from(DTYPES),
        index_dtype=st.sampled_from([torch.int32, torch.int64]),
        subpixel=st.booleans(),
        elliptical=st.booleans(),
        ragged=st.booleans(),
        weighted=st.booleans(),
        scale=st.sampled_from([None, 0.2]),
        factors=st.sampled_from(
            [
                STANDARD,
                (6.0, 2.0, 4.0, 0.25, 0.75),
                (3.0, 1.5, 3.0, 1.0, 2.0),
                (6.0, 0.0, 4.0, 0.5, 0.75),
                (6.0, 1.0, 0.0, 1.0, 1.0),
                (6.0, 0.0, 0.0, 1.0, 1.0),
                (6.0, 0.3, 2.0, 1.0, 1.0),
                (6.0, 5.0, 4.0, 1.0, 1.0),
            ]
        ),
    )
    def check(seed: int, shape: tuple[int, ...], boxes: int, factors: tuple[float, ...], **options: Any) -> None:
        sizes: dict[str, Any] = dict(zip(("batch", "classes", "height", "width"), shape, strict=True))
        assert_matches(form, arguments(seed, boxes=boxes, **sizes, **options), factors)

    check()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_matches_reference(dtype: torch.dtype) -> None:
    for seed in range(3):
        assert_matches(op, arguments(seed, dtype, weighted=seed == 1, height=40, width=70, boxes=70), device="cuda")


@for_each_device
@pytest.mark.parametrize("shape", [(2, 3, 130, 96), (1, 2, 37, 9000), (3, 1, 300, 50)])
def test_equals_the_two_steps(device: str, shape: tuple[int, ...]) -> None:
    """Across strips and tiles, for rows longer than a strip and windows wider than a vector, it is the dense loss."""
    g = torch.Generator().manual_seed(0)
    batch, classes, height, width = shape
    logits = torch.randn(shape, generator=g).to(device)
    sizes = torch.tensor([width, height])
    centers = (torch.rand(batch, 40, 2, generator=g) * sizes).long().to(device)
    radii, labels = (torch.randint(high, (batch, 40), generator=g).to(device) for high in (60, classes))
    heatmap = detops.draw_heatmap_batched(torch.zeros(shape, device=device), centers, radii, labels=labels)
    results = []
    for from_boxes in (False, True):
        x = logits.clone().requires_grad_()
        if from_boxes:
            loss = detops.gaussian_focal_loss_from_boxes(x, centers, radii, labels, avg_factor=7)
        else:
            loss = detops.gaussian_focal_loss(x, heatmap, avg_factor=7, from_logits=True)
        loss.backward()
        results.append((loss.detach(), x.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=2e-6, atol=0)
    torch.testing.assert_close(results[0][1], results[1][1])


@op.for_each_form
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("cell", [(0, 0), (4, 5)])
def test_a_logit_that_is_not_finite_makes_nan(form: Form, value: float, cell: tuple[int, int]) -> None:
    logits = torch.zeros(1, 1, 9, 11)
    logits[0, 0, *cell] = value  # without a box, or at the centre of one
    box = torch.tensor([[[5, 4]]]), torch.tensor([[2]]), torch.tensor([[0]])
    total, gradient = form(logits, *box, None, None, None, *STANDARD, True)
    assert total.isnan()
    assert gradient.isnan().nonzero().tolist() == [[0, 0, *cell]]
    with detops.checked(), pytest.raises(ValueError, match=r"logits: \(0, 0, \d, \d\) has (nan|inf|-inf), expected"):
        detops.gaussian_focal_loss_from_boxes(logits, *box)


@op.for_each_form
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("negative_weight", [1.0, 0.75])
@pytest.mark.parametrize("alpha", [2.0, 0.0, 1.5])
def test_background_whose_logits_are_all_negative(
    form: Form, dtype: torch.dtype, weighted: bool, negative_weight: float, alpha: float
) -> None:
    """The C++ kernel uses shorter formulas for it."""
    *args, weight, _ = arguments(3, dtype, weighted, batch=1, classes=2, height=11, width=37, boxes=0)
    logits = -args[0].abs()
    extremes = torch.tensor([-0.0, -1e-30, -1e-6, -30.0, -86.9, -87.0, -87.1, -100.0, -177.4, -346.0, -1e4])
    logits[0, 1, 5, : len(extremes)] = extremes.to(dtype)
    scale = torch.tensor(0.3, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    factors = (6.0, alpha, 4.0, 1.0, negative_weight)
    assert_matches(form, (logits, *args[1:], weight, scale), factors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("alpha", [2.0, 0.0, 1.5])
@pytest.mark.parametrize("negative_weight", [1.0, 0.75])
def test_a_cell_does_not_change_a_bit_of_another(
    dtype: torch.dtype, weighted: bool, alpha: float, negative_weight: float
) -> None:
    """Not even if the C++ kernel uses another formula for the cells around it."""
    logits, *args = arguments(4, dtype, weighted, batch=1, classes=1, height=20, width=37, boxes=0)
    logits, factors = -logits.abs(), (6.0, alpha, 4.0, 1.0, negative_weight)
    logits[0, 0, 10, 3] = -1
    before = op(logits, *args, *factors, True)[1]
    for value in (3.0, 0.0, -90.0, float("nan"), float("-inf")):
        logits[0, 0, 10, 3] = value
        after = op(logits, *args, *factors, True)[1]
        assert (after != before).nonzero().tolist() == [[0, 0, 10, 3]]


@op.for_each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_any_exponent_of_any_logit(form: Form, dtype: torch.dtype, alpha: float) -> None:
    """Probabilities may round to 0 (0^0 is 1) or 1; alpha 0 is plain BCE, softplus, whose derivative is the sigmoid."""
    x = torch.tensor([-1e4, -745.0, -200.0, -104.0, -90.0, -87.0, -20.0, -1.0, -0.0, 0.0, 1.0, 20.0, 90.0, 104.0, 1e4])
    logits, target = torch.stack([x, -x.abs()])[None, None].to(dtype), torch.zeros(1, 0)
    args = logits, torch.zeros(1, 0, 2), target, target, *[None] * 3, 6.0, alpha, 4.0, 1.0, 1.0, True
    total, gradient = form(*args)
    expected, slope = op.reference(*args)
    rtol = 1e-12 if dtype == torch.float64 and not form.interpreted else 2e-6
    torch.testing.assert_close(total.double(), expected, rtol=rtol, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=rtol, atol=1e-12)
    if alpha == 0:
        torch.testing.assert_close(expected, torch.nn.functional.softplus(logits.double()).sum())
        torch.testing.assert_close(slope, logits.sigmoid())


@op.for_each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_weight_is_zero_a_negative_is_not_read(form: Form, dtype: torch.dtype) -> None:
    logits, centers, radii, labels, sizes, weight, _ = arguments(11, dtype, True, height=20, width=37, ragged=False)
    args = [logits, centers, radii, labels, sizes, weight, None]
    target = torch.zeros(logits.shape)
    torch.ops.detops.draw_gaussians_(target, centers, radii, labels, sizes, 6.0, 1.0)
    weight[:, 5:15, 3:30] = 0
    unread = (weight == 0)[:, None] & (target != 1)
    assert unread.any()
    assert ((weight == 0)[:, None] & (target == 1)).any()  # a positive still counts
    assert_matches(form, args)
    expected, slope = form(*args, *STANDARD, True)
    for value in (float("nan"), float("inf"), float("-inf"), 3.0):
        args[0] = logits.masked_fill(unread, value)
        total, gradient = form(*args, *STANDARD, True)
        assert torch.equal(total, expected)
        assert torch.equal(gradient, slope)
        assert not gradient[unread].any()
        assert_matches(form, args)
    x = args[0].requires_grad_()
    options = dict(negative_weight=weight, reduction="sum")
    loss = detops.gaussian_focal_loss_from_boxes(x, centers, radii, labels, **options)
    with detops.checked():
        detops.gaussian_focal_loss_from_boxes(x, *(t[:, :0] for t in (centers, radii, labels)), **options)
    dense = detops.gaussian_focal_loss(x, target.to(dtype), from_logits=True, negative_weight=weight[:, None],
                                       reduction="sum")  # fmt: skip
    torch.testing.assert_close(dense, loss)
    assert torch.autograd.grad(dense, x)[0].isfinite().all()


@op.for_each_form
def test_many_boxes_at_one_centre_and_around_it(form: Form) -> None:
    centers = torch.tensor([[[3, 3]] * 60 + [[4, 3]] * 60])
    radii = torch.arange(120)[None] % 7
    logits = torch.randn(1, 2, 8, 9, generator=torch.Generator().manual_seed(1))
    args = (logits, centers, radii, torch.arange(120)[None] % 2)
    assert_matches(form, (*args, None, None, None))


def test_gradcheck_and_backward_again() -> None:
    logits, centers, radii, labels, *_ = arguments(5, torch.float64, height=4, width=5, ragged=False, boxes=4)

    def loss(x: Tensor) -> Tensor:
        return detops.gaussian_focal_loss_from_boxes(x, centers, radii, labels, reduction="sum")

    x = logits.requires_grad_()
    assert torch.autograd.gradcheck(loss, x)
    total = loss(x)
    first, second = (torch.autograd.grad(total * factor, x, retain_graph=True)[0] for factor in (1, 3))
    torch.testing.assert_close(second, 3 * first)


@for_each_device
def test_forms_of_the_batch(device: str) -> None:
    """Lists, ragged batches and padded tensors; channels last; a weight with or without a channel."""
    logits, centers, radii, labels, sizes, weight, _ = arguments(6, weighted=True)
    logits, weight = logits.to(device), weight.to(device)
    ragged: Any = [detops.RaggedBatch(t.to(device), sample_sizes=sizes.to(device)) for t in (centers, radii, labels)]
    lists: Any = [batch.split() for batch in ragged]
    expected = detops.gaussian_focal_loss_from_boxes(logits, *ragged, negative_weight=weight)
    other = detops.gaussian_focal_loss_from_boxes(
        logits.to(memory_format=torch.channels_last), *lists, negative_weight=weight[:, None]
    )
    assert torch.equal(expected, other)
    assert expected != detops.gaussian_focal_loss_from_boxes(logits, *ragged)


def test_a_loss_scale_saves_the_gradients_of_float16() -> None:
    logits = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 4
    centers, radii = torch.tensor([[[4, 5]], [[9, 9]]]), torch.tensor([[2], [3]])
    labels = torch.tensor([[1], [0]])
    narrow, wide = logits.half().requires_grad_(), logits.half().float().requires_grad_()
    for x in (narrow, wide):
        loss = detops.gaussian_focal_loss_from_boxes(x, centers, radii, labels, avg_factor=200)
        (loss * 2.0**16).backward()
    torch.testing.assert_close(narrow.grad.float(), wide.grad, rtol=2e-3, atol=1e-4)
    assert (wide.grad.abs() < 2.0**16 * 6e-8).float().mean() > 0.2


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = arguments(7, height=300, width=100, boxes=30)
    assert_same_bits_for_any_threads(lambda: op(*args, *STANDARD, True))


@for_each_device
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_opcheck(device: str, weighted: bool, with_gradient: bool) -> None:
    args = arguments(8 + weighted, weighted=weighted, scale=0.5)
    op.check(*moved(args, device), *STANDARD, with_gradient)


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    def loss(logits: Tensor, centers: Tensor, radii: Tensor, labels: Tensor, count: Tensor) -> Tensor:
        return detops.gaussian_focal_loss_from_boxes(logits, centers, radii, labels, avg_factor=count)

    def step(logits: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        leaf = logits.detach().requires_grad_()
        value = loss(leaf, *rest)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    count = torch.tensor(3, device=device)
    args, more = ((*moved(arguments(10, ragged=False, boxes=boxes)[:4], device), count) for boxes in (6, 9))
    assert assert_no_syncs(step, *args)[1].shape == args[0].shape
    assert assert_no_syncs(op.portable, *moved(arguments(10), device), *STANDARD, True)[1].shape == args[0].shape
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for logits, *rest in (args, more):
        leaf = logits.clone().requires_grad_()
        compiled(leaf, *rest).backward()
        torch.testing.assert_close(leaf.grad, step(logits, *rest)[1])


@op.for_each_form
def test_padding_is_never_read(form: Form) -> None:
    logits, centers, radii, labels, _, *rest = arguments(12, subpixel=True, elliptical=True)
    sizes = torch.tensor([2, 0])
    expected = form(logits, centers, radii, labels, sizes, *rest, *STANDARD, True)
    padding = torch.arange(centers.shape[1]) >= sizes[:, None]
    centers[padding], radii[padding], labels[padding] = torch.nan, torch.nan, 2**40
    assert_same_bits(form(logits, centers, radii, labels, sizes, *rest, *STANDARD, True), expected)


@op.for_each_form
def test_boxes_that_are_skipped(form: Form) -> None:
    """With boxes that are NaN, infinite, negative, of no class or padding, the loss is that of an empty image."""
    nan, inf = float("nan"), float("inf")
    centers = torch.tensor([[[nan, 1], [1, inf], [1, 1], [1, 1], [1, 1], [1, 1], [1, 1]]])
    radii = torch.tensor([[1, 1, nan, inf, -1.0, 1, 1]])
    labels = torch.tensor([[0, 0, 0, 0, 0, 2, 0]])
    logits = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(2))
    args = (logits, centers, radii, labels, torch.tensor([6]), None, None)
    got = form(*args, *STANDARD, True)
    empty = form(logits, *(t[:, :0] for t in (centers, radii, labels)), None, None, None, *STANDARD, True)
    torch.testing.assert_close(got, empty)
    ragged: Any = [detops.RaggedBatch(t, sample_sizes=args[4]) for t in (centers, radii, labels)]
    message = r"centers: sample 0, box 0 has \[nan, 1.0\], expected finite"
    with detops.checked(), pytest.raises(ValueError, match=message):
        detops.gaussian_focal_loss_from_boxes(logits, *ragged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 4, 4)}, "logits: expected shape (B, C, H, W), got (2, 4, 4)"),
        ({"centers": torch.zeros(2, 1, 2)}, "centers: expected shape (1, 1, 2) to match logits, got (2, 1, 2)"),
        ({"radii": torch.zeros(1, 2)}, "radii: expected shape (1, 1) to match centers"),
        ({"labels": torch.zeros(1, 3, dtype=torch.int64)}, "labels: expected shape (1, 1) to match centers"),
        ({"reduction": "none"}, 'reduction: expected "mean" or "sum"'),
        ({"negative_weight": torch.zeros(4, 4)}, "negative_weight: expected shape (1, 4, 4)"),
        ({"diameter_to_sigma_factor": 0}, "diameter_to_sigma_factor: expected a finite number above 0, got 0"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = dict(
        logits=torch.zeros(1, 2, 4, 4),
        centers=torch.zeros(1, 1, 2),
        radii=torch.zeros(1, 1),
        labels=torch.zeros(1, 1, dtype=torch.int64),
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        detops.gaussian_focal_loss_from_boxes(**good | change)


@pytest.mark.parametrize(
    "change",
    [
        dict(logits=torch.zeros(2, 3, 11)),
        dict(logits=torch.zeros(2, 3, 17, 11).transpose(2, 3)),
        dict(logits=torch.zeros(2, 3, 11, 17, dtype=torch.int64)),
        dict(centers=torch.zeros(2, 6, 1)),
        dict(radii=torch.zeros(1, 6)),
        dict(labels=torch.zeros(2, 5).long()),
        dict(sample_sizes=torch.zeros(1).long()),
        dict(negative_weight=torch.zeros(2, 11)),
        dict(negative_weight=torch.zeros(2, 11, 17).double()),
        dict(scale=torch.zeros(2)),
    ],
    ids=changed_argument,
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses((*arguments(13), *STANDARD, True), **change)


KERNELS = [
    Kernel("loss_kernel",
           dict(logits="*" + name, centers="*" + index, radii="*" + index, labels="*i32", sample_sizes="*i64",
                negative_weight="*" + wide, scale="*" + wide, sums="*" + wide, gradient="*" + name, C="i32", H="i32",
                W="i32", N="i32", diameter_to_sigma_factor="fp32", alpha="fp32", gamma="fp32", pos_weight="fp32",
                neg_weight="fp32", least="fp32", kept="fp32"),
           dict(HAS_SIZES=flag, HAS_WEIGHT=flag, HAS_SCALE=flag, DIVIDED=not flag, STANDARD=flag, ELLIPTICAL=not flag, WITH_GRADIENT=True,
                BLOCK_H=8, BLOCK_W=64, BLOCK_N=64, DOUBLE=wide == "fp64"), 4)
    for name, wide, index, flag in (("fp32", "fp32", "i64", True), ("fp16", "fp32", "i32", False),
                                    ("bf16", "fp32", "fp32", True), ("fp64", "fp64", "fp64", False))
]  # fmt: skip
