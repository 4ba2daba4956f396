"""The op positive_losses_backward: every implementation gives the gradient of the definition."""

import pytest
import torch
from ahead_of_time import HAS_TRITON, assert_compiles, for_each_target, needs_triton
from gfl_scenes import SHAPES, SIZES, TYPES, box_gradient, moved, scene
from hypothesis import given, settings
from hypothesis import strategies as st

from detops.portable.positive_losses_backward import positive_losses_backward as portable
from detops.reference.positive_losses import BOX_KINDS
from detops.reference.positive_losses_backward import positive_losses_backward as reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def op(*args):
    return torch.ops.detops.positive_losses_backward(*args)


def interpreted(*args):
    from detops.kernels.positive_losses_backward import positive_losses_backward

    return positive_losses_backward(*args)


IMPLEMENTATIONS = {"portable": portable, "op": op}
if HAS_TRITON and not torch.cuda.is_available():
    IMPLEMENTATIONS["triton, interpreted"] = interpreted
TOLERANCES = {torch.float32: (1e-4, 1e-5), torch.float64: (1e-6, 1e-7), torch.float16: (2e-3, 1e-3),
              torch.bfloat16: (1e-2, 1e-3)}  # fmt: skip


def compare(implementation, args, rtol, atol):
    for gradient, slope, preds in zip(implementation(*args), reference(*args), args[0], strict=True):
        assert gradient.dtype == preds.dtype
        assert gradient.is_contiguous()
        torch.testing.assert_close(gradient.double(), slope.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_matches_reference(name):
    slow = "triton" in name

    @settings(max_examples=40 if slow else 150, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        boxes=st.sampled_from([0, 1, 3]),
        bins=st.sampled_from([2, 5, 17]),
        teacher=st.booleans(),
        region=st.booleans(),
        dtype=st.sampled_from(TYPES),
        channels_last=st.booleans(),
        losses=st.fixed_dictionaries(dict(
            box_kind=st.sampled_from(BOX_KINDS),
            temperature=st.sampled_from([1.0, 10.0]),
            margin=st.sampled_from([0.1, 0.01]),
        )),
    )
    def check(dtype, losses, **options):
        rtol, atol = TOLERANCES[torch.float32 if slow and dtype == torch.float64 else dtype]
        compare(IMPLEMENTATIONS[name], box_gradient(scene(dtype=dtype, **options), **losses), rtol, atol)

    check()


@pytest.mark.gpu
def test_gpu_matches_reference():
    for seed, (dtype, kind) in enumerate(zip(TYPES, BOX_KINDS[1:], strict=True)):
        args = box_gradient(scene(seed, bins=17, region=True, dtype=dtype), kind)
        rtol = max(TOLERANCES[dtype][0], 1e-3)
        for gradient, slope in zip(op(*moved(args, "cuda")), reference(*args), strict=True):
            torch.testing.assert_close(gradient.cpu().double(), slope.double(), rtol=rtol, atol=1e-3)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_degenerate_boxes_and_broken_logits_elsewhere(name):
    data = scene(1, batch=1, boxes=4, region=True)
    data["boxes"] = torch.tensor([[[4.0, 4, 4, 4], [900, 900, 903, 903], [8, 8, 8, 30], [-5, -5, 1e4, 1e4]]])
    free = ((data["index"] < 0) & (data["region"] == 0))[0, : SIZES[0]]
    data["bbox_preds"][0].flatten(2)[0, :, free] = float("nan")
    gradients = IMPLEMENTATIONS[name](*box_gradient(data))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0].abs().sum() > 0
    assert not gradients[0].flatten(2)[0, :, free].any()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_broken_logit_of_a_positive_shows(name):
    data = scene(2)
    b, a = data["index"][:, : SIZES[0]].ge(0).nonzero()[0].tolist()
    data["bbox_preds"][0].flatten(2)[b, 1, a] = float("nan")
    assert IMPLEMENTATIONS[name](*box_gradient(data))[0].flatten(2)[b, :, a].isnan().any()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_positive_of_no_weight_is_none(name):
    """As those are whose label is no class: neither it nor its broken logits show, wherever it stands."""
    data = scene(4, bins=17, region=True, share=0.6)
    args = list(box_gradient(data))
    dead = (torch.arange(args[4].shape[1]) % 3 == 0) & (args[4] >= 0)
    args[5], args[6] = args[5].masked_fill(dead, 0), args[6].masked_fill(dead, 0)
    without = IMPLEMENTATIONS[name](*args[:4], args[4].masked_fill(dead, -1), *args[5:])
    broken = [level.clone() for level in args[0]]
    broken[0].flatten(2).transpose(1, 2)[dead[:, : SIZES[0]]] = float("nan")
    assert broken[0].isnan().any()
    gradients = IMPLEMENTATIONS[name](broken, *args[1:])
    assert all(torch.equal(a, b) for a, b in zip(gradients, without, strict=True))
    compare(IMPLEMENTATIONS[name], args, 1e-4, 1e-5)


@pytest.mark.parametrize("name", ["op", *(n for n in IMPLEMENTATIONS if "triton" in n)])
def test_indices_out_of_range_are_not_read(name):
    data = scene(3)
    data["index"][0, :3] = torch.tensor([3, 10**12, -(10**12)])
    gradients = IMPLEMENTATIONS[name](*box_gradient(data))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0].flatten(2)[0, :, :3].any()


def test_a_point_does_not_change_a_bit_of_another():
    """The C++ kernel computes a few together."""
    data = scene(5, bins=17, region=True)
    preds, soft, points, boxes, index, weight, region, *rest = box_gradient(data)
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


@pytest.mark.parametrize("device", DEVICES)
def test_many_megabytes(device):
    """So many that the C++ kernel writes their zeros past the caches."""
    shapes = [(1, 68, 255, 257), (1, 68, 7, 11), (1, 68, 1, 1)]
    g = torch.Generator().manual_seed(9)
    preds = [torch.randn(shape, generator=g) for shape in shapes]
    count = sum(shape[2] * shape[3] for shape in shapes)
    index = torch.where(torch.rand(1, count, generator=g) < 0.001, 0, -1)
    index[0, -1] = 0
    points = torch.cat([torch.rand(count, 2, generator=g) * 100, torch.full((count, 1), 8.0)], 1)
    weight, boxes = (index >= 0).float(), torch.tensor([[[10.0, 20, 90, 70]]])
    args = (preds, [], points, boxes, index, weight, None, torch.ones(4, 3), BOX_KINDS.index("giou"), 1.0, 0.1, count)
    for _ in range(3):  # into memory that held the last gradients
        for gradient, slope in zip(op(*moved(args, device)), portable(*args), strict=True):
            torch.testing.assert_close(gradient.cpu(), slope, rtol=1e-4, atol=1e-5)
            gradient.fill_(7)


def test_any_number_of_threads_gives_the_same_bits():
    args, before, found = box_gradient(scene(4, batch=3, region=True)), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(op(*args))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    for args in (box_gradient(scene(6, region=True)), box_gradient(scene(7, boxes=0, teacher=False))):
        torch.library.opcheck(torch.ops.detops.positive_losses_backward.default, moved(args, device))


def test_wrong_shapes_are_refused():
    args = list(box_gradient(scene(8)))
    for place, value, message in ((7, torch.ones(4, 2), "factors"), (5, torch.ones(2, 3), "weight"),
                                  (4, args[4].int(), "index"), (1, args[1][:1], "soft_targets"), (8, 5, "box_kind"),
                                  (10, -0.1, "margin")):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            op(*[value if i == place else arg for i, arg in enumerate(args)])
    assert len(op(*args)) == len(SHAPES)


@needs_triton
@for_each_target
def test_compiles_ahead_of_time(target):
    types = dict(preds="*fp16", preds_b="i64", preds_c="i64", preds_y="i64", preds_x="i64", soft="*fp16", soft_b="i64",
                 soft_c="i64", soft_y="i64", soft_x="i64", gradient="*fp16", points="*fp32", boxes="*fp32",
                 index="*i64", weight="*fp32", region="*fp32", factors="*fp32", level="i32", L="i32", start="i32", R="i32", W="i32",
                 A="i32", N="i32", temperature="fp32", margin="fp32")  # fmt: skip
    cases = [
        ("gradient_kernel", types, dict(BOX_KIND=kind, BINS=17, HAS_SOFT=on, HAS_REGION=on, BLOCK=32, BLOCK_J=32), 1)
        for kind, on in ((BOX_KINDS.index("giou"), True), (BOX_KINDS.index("ciou"), False))
    ]
    assert_compiles("positive_losses_backward", cases, target)
