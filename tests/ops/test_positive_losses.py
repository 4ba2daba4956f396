"""The op positive_losses_: every implementation gives the numbers of the definition."""

import math

import pytest
import torch
from ahead_of_time import HAS_TRITON, assert_compiles, for_each_target, needs_triton
from gfl_scenes import SIZES, TYPES, moved, positives, scene
from hypothesis import given, settings
from hypothesis import strategies as st

from detops.portable.positive_losses import positive_losses_ as portable
from detops.reference.positive_losses import box_losses, distillation
from detops.reference.positive_losses import positive_losses_ as reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def op(*args):
    return torch.ops.detops.positive_losses_(*args)


def interpreted(*args):
    from detops.kernels.positive_losses import positive_losses_

    return positive_losses_(*args)


IMPLEMENTATIONS = {"portable": portable, "op": op}
if HAS_TRITON and not torch.cuda.is_available():
    IMPLEMENTATIONS["triton, interpreted"] = interpreted
TOLERANCES = {torch.float32: (1e-4, 1e-5), torch.float64: (1e-6, 1e-7), torch.float16: (2e-3, 1e-5),
              torch.bfloat16: (1e-2, 1e-5)}  # fmt: skip


def compare(implementation, make, rtol, atol):
    mine, theirs = make(), make()
    losses, weight = implementation(*mine)
    expected, known = reference(*theirs)
    torch.testing.assert_close(losses.cpu().double(), expected, rtol=max(rtol, 1e-4), atol=1e-4)
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.cpu().double(), known, rtol=1e-5, atol=1e-6)
    for gradient, slope in zip(mine[0], theirs[0], strict=True):
        torch.testing.assert_close(gradient.cpu().double(), slope.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_matches_reference(name):
    slow = "triton" in name

    @settings(max_examples=40 if slow else 150, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.sampled_from([0, 1, 2]),
        boxes=st.sampled_from([0, 1, 3]),
        classes=st.sampled_from([1, 3, 20]),
        bins=st.sampled_from([2, 5, 17]),
        teacher=st.booleans(),
        region=st.booleans(),
        dtype=st.sampled_from(TYPES),
        channels_last=st.booleans(),
        index_dtype=st.sampled_from([torch.int32, torch.int64]),
        beta=st.sampled_from([2.0, 1.5]),
        temperature=st.sampled_from([1.0, 10.0]),
        gradient=st.booleans(),
    )
    def check(dtype, beta, temperature, gradient, **options):
        data = scene(dtype=dtype, **options)
        rtol, atol = TOLERANCES[torch.float32 if slow and dtype == torch.float64 else dtype]
        compare(IMPLEMENTATIONS[name], lambda: positives(data, beta, temperature, gradient=gradient), rtol, atol)

    check()


@pytest.mark.gpu
def test_gpu_matches_reference():
    for seed, dtype in enumerate(TYPES[:3]):
        data = scene(seed, classes=80, bins=17, region=True, dtype=dtype)
        on_gpu, args = moved(positives(data), "cuda"), positives(data)
        losses, weight = op(*on_gpu)
        expected, known = reference(*args)
        torch.testing.assert_close(losses.cpu().double(), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(weight.cpu().double(), known, rtol=1e-4, atol=1e-5)
        rtol, atol = TOLERANCES[dtype]
        for gradient, slope in zip(on_gpu[0], args[0], strict=True):
            torch.testing.assert_close(gradient.cpu().double(), slope.double(), rtol=max(rtol, 1e-3), atol=atol)


def test_by_hand():
    """Even distributions over 0 and 1 say half a stride to each side: the very box, so its label is to say 1."""
    data = scene(0, batch=1, boxes=1, classes=2, bins=2)
    data["index"] = torch.full_like(data["index"], -1)
    data["index"][0, 7] = 0  # second row, second column, at 8, 8
    data["gt_boxes"], data["gt_labels"] = torch.tensor([[[4.0, 4, 12, 12]]]), torch.tensor([[1]])
    for maps in (data["cls_scores"], data["bbox_preds"], data["soft_targets"]):
        maps[0] = torch.zeros_like(maps[0])
    half = math.log(2)
    for implementation in (*IMPLEMENTATIONS.values(), reference):
        args = positives(data)
        losses, weight = implementation(*args)
        # Quality focal loss: log 2 / 4 both as background and towards 1.
        torch.testing.assert_close(losses[:, 0].float(), torch.tensor([0, 0.5, 0, 2 * half, 0, 0]), rtol=0, atol=1e-6)
        assert weight.nonzero().tolist() == [[0, 7]]
        slope = -0.5 * 0.25 - 2 * half * 0.5 * 0.25
        torch.testing.assert_close(args[0][0][0, 1, 1, 1].item(), slope / 4, rtol=1e-5, atol=0)
        untouched = positives(data)[0][0]
        untouched[0, 1, 1, 1] = args[0][0][0, 1, 1, 1]
        assert torch.equal(args[0][0], untouched)


def test_an_anchor_does_not_change_a_bit_of_another():
    """The C++ kernel computes a few together."""
    data = scene(5, bins=17, region=True)
    index, region = data["index"], data["region"]
    args = positives(data)
    together, untouched = op(*args)[1], positives(data)[0]
    places = ((index >= 0) | (region > 0)).nonzero().tolist()
    assert len(places) > 9
    changed = torch.zeros(len(untouched), dtype=torch.int64)
    for b, a in places:
        alone = torch.zeros(index.shape, dtype=torch.bool)
        alone[b, a] = True
        one = positives(data | {"index": index.where(alone, -1), "region": region.where(alone, 0)})
        losses, weight = op(*one)
        assert torch.equal(weight, together.where(alone, 0))
        assert losses[5].any() == (region[b, a] > 0)
        for level, (gradient, before) in enumerate(zip(one[0], untouched, strict=True)):
            touched = gradient != before
            changed[level] += touched.sum()
            assert torch.equal(gradient[touched], args[0][level][touched])
    assert changed.sum() == (index >= 0).sum()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_degenerate_boxes_are_finite(name):
    data = scene(1, batch=1, boxes=4, share=1.0)
    data["gt_boxes"] = torch.tensor([[[4.0, 4, 4, 4], [900, 900, 903, 903], [8, 8, 8, 30], [-5, -5, 1e4, 1e4]]])
    args = positives(data)
    losses, _ = IMPLEMENTATIONS[name](*args)
    assert losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in args[0])
    compare(IMPLEMENTATIONS[name], lambda: positives(data), 1e-4, 1e-5)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_what_is_not_finite_shows(name):
    """A broken logit of a positive makes its losses NaN; one elsewhere does not count."""
    for maps, row in (("bbox_preds", 2), ("bbox_preds", 3), ("cls_scores", 1), ("soft_targets", 4)):
        data = scene(2)
        b, a = data["index"][:, : SIZES[0]].ge(0).nonzero()[0].tolist()
        data[maps][0].flatten(2)[b, 1, a] = float("nan")
        assert IMPLEMENTATIONS[name](*positives(data))[0][row, 0].isnan()
        data = scene(2)
        b, a = data["index"][:, : SIZES[0]].lt(0).nonzero()[0].tolist()
        data[maps][0].flatten(2)[b, 1, a] = float("nan")
        assert IMPLEMENTATIONS[name](*positives(data))[0].isfinite().all()


@pytest.mark.parametrize("name", ["op", *(n for n in IMPLEMENTATIONS if "triton" in n)])
def test_indices_out_of_range_are_not_read(name):
    data = scene(3)
    data["index"][0, :3] = torch.tensor([3, 10**12, -(10**12)])
    data["gt_labels"][0] = torch.tensor([3, -1, 10**9])
    args = positives(data)
    losses, weight = IMPLEMENTATIONS[name](*args)
    assert losses.isfinite().all()
    assert not weight[0].any()
    assert torch.equal(args[0][0][0], positives(data)[0][0][0])


def test_any_number_of_threads_gives_the_same_bits():
    data, before, found = scene(4, batch=3, share=0.8), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            args = positives(data)
            found.append((*op(*args), *args[0]))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_gradcheck_of_the_reference():
    g = torch.Generator().manual_seed(5)
    raw, soft = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    cell, box = torch.tensor([16.0, 8, 8]).double(), torch.tensor([3.0, 1, 40, 22]).double()

    def losses(raw):
        found = box_losses(raw, soft, cell, box, 4.0)
        return found.giou, found.dfl, found.ld, distillation(raw, soft, 2.0)

    assert torch.autograd.gradcheck(losses, raw.requires_grad_())


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    for args in (positives(scene(6, region=True)), positives(scene(7, boxes=0, teacher=False), gradient=False)):
        torch.library.opcheck(torch.ops.detops.positive_losses_.default, moved(args, device))


@needs_triton
@for_each_target
def test_compiles_ahead_of_time(target):
    types = dict(scores="*fp16", scores_b="i64", scores_c="i64", scores_y="i64", scores_x="i64", class_gradient="*fp16",
                 preds="*fp16", preds_b="i64", preds_c="i64", preds_y="i64", preds_x="i64", soft="*fp16", soft_b="i64",
                 soft_c="i64", soft_y="i64", soft_x="i64", cells="*fp32", boxes="*fp32", labels="*i64", index="*i64",
                 region="*fp32", scale="*fp32", weights="*fp32", parts="*fp32", start="i32", R="i32", W="i32", C="i32",
                 A="i32", N="i32", beta="fp32", temperature="fp32")  # fmt: skip
    cases = [
        ("positives_kernel", types, dict(BINS=17, HAS_SOFT=on, HAS_REGION=on, WITH_GRADIENT=True, STANDARD=on, BLOCK=32,
                                         BLOCK_C=128, BLOCK_J=32), 1)
        for on in (True, False)
    ]  # fmt: skip
    assert_compiles("positive_losses", cases, target)
