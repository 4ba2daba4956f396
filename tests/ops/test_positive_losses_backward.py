"""The op positive_losses_backward: every form gives the gradient of the definition."""

from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import given
from hypothesis import strategies as st
from op import (
    DTYPES,
    TOLERANCES,
    Form,
    Op,
    assert_no_syncs,
    assert_same_bits,
    assert_same_bits_for_any_threads,
    changed_argument,
    for_each_device,
    moved,
)
from positive_scenes import SHAPES, SIZES, backward_arguments, positive_scene

from detops.reference.yolox_loss import KINDS as BOX_KINDS

op = Op("positive_losses_backward")


def assert_matches(form: Form, args: Any, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
    rtol, atol = TOLERANCES[dtype]
    for gradient, slope, preds in zip(form(*moved(args, device)), op.reference(*args), args[0], strict=True):
        assert gradient.dtype == preds.dtype
        assert gradient.is_contiguous()
        torch.testing.assert_close(gradient.cpu().double(), slope.double(), rtol=rtol, atol=atol)


@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(150)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        boxes=st.sampled_from([0, 1, 3]),
        bins=st.sampled_from([1, 2, 5, 17]),
        teacher=st.booleans(),
        region=st.booleans(),
        dtype=st.sampled_from(DTYPES),
        channels_last=st.booleans(),
        losses=st.fixed_dictionaries(
            dict(
                columns=st.sampled_from([1, 2, len(SHAPES)]),
                groups=st.sampled_from([1, 2, len(SHAPES)]),
                box_kind=st.sampled_from(BOX_KINDS),
                temperature=st.sampled_from([1.0, 10.0]),
                margin=st.sampled_from([0.1, 0.01]),
            )
        ),
    )
    def check(dtype: torch.dtype, losses: dict[str, Any], **options: Any) -> None:
        args = backward_arguments(positive_scene(dtype=dtype, **options), **losses)
        assert_matches(form, args, form.computes(dtype))

    check()


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for seed, (dtype, kind) in enumerate(zip(DTYPES, BOX_KINDS[1:], strict=True)):
        args = backward_arguments(positive_scene(seed, bins=17, region=True, dtype=dtype), kind)
        assert_matches(op, args, torch.float32 if dtype == torch.float64 else dtype, device="cuda")


@op.for_each_form
@pytest.mark.parametrize("kind", BOX_KINDS)
def test_degenerate_boxes_and_broken_logits_elsewhere(form: Form, kind: str) -> None:
    data = positive_scene(1, batch=1, boxes=4, region=True)
    data["boxes"] = torch.tensor([[[4.0, 4, 4, 4], [900, 900, 903, 903], [8, 8, 8, 30], [-5, -5, 1e4, 1e4]]])
    free = ((data["index"] < 0) & (data["region"] == 0))[0, : SIZES[0]]
    data["bbox_preds"][0].flatten(2)[0, :, free] = float("nan")
    gradients = form(*backward_arguments(data, kind))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0].abs().sum() > 0
    assert not gradients[0].flatten(2)[0, :, free].any()


@op.for_each_form
def test_a_broken_logit_of_a_positive_shows(form: Form) -> None:
    data = positive_scene(2)
    b, a = data["index"][:, : SIZES[0]].ge(0).nonzero()[0].tolist()
    data["bbox_preds"][0].flatten(2)[b, 1, a] = float("nan")
    assert form(*backward_arguments(data))[0].flatten(2)[b, :, a].isnan().any()


@op.for_each_form
def test_a_positive_of_no_weight_is_none(form: Form) -> None:
    """A positive of weight 0, or whose label is no class, has no effect, even if its logits are not finite."""
    data = positive_scene(4, bins=17, region=True, share=0.6)
    args = list(backward_arguments(data))
    dead = (torch.arange(args[4].shape[1]) % 3 == 0) & (args[4] >= 0)
    args[5], args[6] = args[5].masked_fill(dead, 0), args[6].masked_fill(dead, 0)
    without = form(*args[:4], args[4].masked_fill(dead, -1), *args[5:])
    broken = [level.clone() for level in args[0]]
    broken[0].flatten(2).transpose(1, 2)[dead[:, : SIZES[0]]] = float("nan")
    assert broken[0].isnan().any()
    assert_same_bits(form(broken, *args[1:]), without)
    assert_matches(form, args)


@op.for_each_kernel
def test_indices_out_of_range_are_not_read(form: Form) -> None:
    data = positive_scene(3)
    data["index"][0, :3] = torch.tensor([3, 10**12, -(10**12)])
    gradients = form(*backward_arguments(data))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0].flatten(2)[0, :, :3].any()


def test_a_point_does_not_change_a_bit_of_another() -> None:
    """The C++ kernel computes several points together."""
    data = positive_scene(5, bins=17, region=True)
    preds, soft, points, boxes, index, weight, region, *rest = backward_arguments(data)
    together = op(preds, soft, points, boxes, index, weight, region, *rest)[0].flatten(2)
    places = ((index >= 0) | (region > 0))[:, : SIZES[0]].nonzero().tolist()
    assert len(places) > 9
    for b, a in places:
        alone = torch.zeros(index.shape, dtype=torch.bool)
        alone[b, a] = True
        one = index.where(alone, -1), weight.where(alone, 0), region.where(alone, 0)
        found = op(preds, soft, points, boxes, *one, *rest)[0].flatten(2)
        assert torch.equal(found[b, :, a], together[b, :, a])
        assert found[b, :, a].any()
        found[b, :, a] = 0
        assert not found.any()


@for_each_device
def test_many_megabytes(device: str) -> None:
    """The maps are so large that the C++ kernel writes their zeros past the caches."""
    shapes = [(1, 68, 255, 257), (1, 68, 7, 11), (1, 68, 1, 1)]
    g = torch.Generator().manual_seed(9)
    preds = [torch.randn(shape, generator=g) for shape in shapes]
    count = sum(shape[2] * shape[3] for shape in shapes)
    index = torch.where(torch.rand(1, count, generator=g) < 0.001, 0, -1)
    index[0, -1] = 0
    points = torch.cat([torch.rand(count, 2, generator=g) * 100, torch.full((count, 1), 8.0)], 1)
    weight, boxes = (index >= 0).float(), torch.tensor([[[10.0, 20, 90, 70]]])
    losses = BOX_KINDS.index("giou"), 1.0, 0.1
    args: Any = (
        preds,
        [],
        points,
        boxes,
        index,
        weight,
        None,
        torch.ones(2, 3),
        torch.ones(4, 1),
        [1.0] * 4,
        *losses,
        count,
    )
    for _ in range(3):  # into memory that held the last gradients
        for gradient, slope in zip(op(*moved(args, device)), op.portable(*args), strict=True):
            torch.testing.assert_close(gradient.cpu(), slope, rtol=1e-4, atol=1e-5)
            gradient.fill_(7)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = backward_arguments(positive_scene(4, batch=3, region=True))
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
def test_opcheck(device: str) -> None:
    op.check(*moved(backward_arguments(positive_scene(6, region=True)), device))
    op.check(*moved(backward_arguments(positive_scene(7, boxes=0, teacher=False), "ciou"), device))


@for_each_device
def test_no_host_sync(device: str) -> None:
    args: Any = moved(backward_arguments(positive_scene(9, region=True), "ciou"), device)
    for form in (op, op.portable):
        for gradient, preds in zip(assert_no_syncs(form, *args), args[0], strict=True):
            assert gradient.shape == preds.shape


@pytest.mark.parametrize(
    "change",
    [
        {"slopes": torch.ones(4, 3)},
        {"slopes": torch.ones(1, 2)},
        {"slopes": torch.ones(4)},
        {"factors": torch.ones(4, 3)},
        {"factors": torch.ones(3, 1)},
        {"factors": torch.ones(4)},
        {"weights": [1.0] * 3},
        {"weight": torch.ones(2, 3)},
        {"index": torch.zeros(2, 31, dtype=torch.int32)},
        {"points": torch.ones(31, 2)},
        {"boxes": torch.ones(1, 3, 4)},
        {"soft_targets": [torch.ones(2, 20, 4, 6)]},
        {"bbox_preds": []},
        {"box_kind": 5},
        {"margin": -0.1},
    ],
    ids=changed_argument,
)
def test_refuses(change: dict[str, Any]) -> None:
    args = backward_arguments(positive_scene(8))
    assert len(op(*args)) == len(SHAPES)
    op.refuses(args, **change)


KERNELS = [
    Kernel("gradient_kernel",
           dict(pred_maps=("*fp16",) * 3, soft_maps=("*fp16",) * 3, gradient_maps=("*fp16",) * 3,
                pred_strides=("i32",) * 12, soft_strides=("i32",) * 12, starts=("i32",) * 3, rows=("i32",) * 3,
                widths=("i32",) * 3, points="*fp32", boxes="*fp32", index="*i64", weight="*fp32", region="*fp32",
                slopes="*fp32", factors="*fp32", A="i32", N="i32", temperature="fp32", margin="fp32",
                of_iou="fp32", of_dfl="fp32", of_ld="fp32", of_vlr="fp32"),
           dict(LEVELS=3, COLUMNS=1, GROUPS=1, BOX_KIND=BOX_KINDS.index(kind), BINS=17, HAS_SOFT=on, HAS_REGION=on, BLOCK=32, BLOCK_J=32), 1)
    for kind, on in (("giou", True), ("ciou", False))
]  # fmt: skip
