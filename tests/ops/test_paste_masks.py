"""The op paste_masks: every form makes the same pixels, bit for bit, and they are those of grid_sample."""

from typing import Any

import pytest
import torch
from ahead_of_time import Kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_scenes import CASES, REFUSED, THRESHOLDS, blobs, detectron2_values, mask_scene, one_mask, scenes
from op import (
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

from detops.portable import paste_masks as portable_module

op = Op("paste_masks")

Scene = tuple[Tensor, Tensor, int, int]


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")  # the interpreter's numpy
@op.for_each_form
def test_matches_reference(form: Form) -> None:
    @form.examples(200)
    @given(args=scenes, threshold=st.sampled_from(THRESHOLDS))
    def check(args: Scene, threshold: float) -> None:
        assert torch.equal(form(*args, threshold), op.reference(*args, threshold))

    check()


@settings(max_examples=200, deadline=None)
@given(args=scenes.filter(lambda args: bool(((s := args[1][:, 2:] - args[1][:, :2]) > 0.01).all() & (s < 1e6).all())))
def test_matches_grid_sample(args: Scene) -> None:
    """Compared in float64; if a value is within 1e-6 of the threshold, rounding may decide."""
    masks, boxes, height, width = args
    masks = masks.float().nan_to_num(0, 1, 0).clamp(0, 1)
    value = detectron2_values(masks.double(), boxes.double(), height, width)
    pasted = op.reference(masks, boxes, height, width, 0.5)
    certain = (value - 0.5).abs() > 1e-6
    assert torch.equal(pasted[certain], (value >= 0.5)[certain])


def test_matches_grid_sample_in_float32() -> None:
    """With a network's values in an image of usual size, hardly any pixel is so close to the threshold."""
    masks, boxes = blobs(10, (480, 640))
    value = detectron2_values(masks, boxes, 480, 640)
    different = op(masks, boxes, 480, 640, 0.5) != (value >= 0.5)
    assert different.sum() <= 5
    assert ((value[different] - 0.5).abs() < 1e-4).all()


@pytest.mark.gpu
def test_gpu_matches_reference() -> None:
    for seed in range(20):
        args = mask_scene(
            seed, count=9, mask_size=(28, 28), image_size=(70, 300), ties=seed % 2 == 0, odd=seed % 3 == 0
        )
        assert torch.equal(op(*moved(args, "cuda"), 0.5).cpu(), op.reference(*args, 0.5))


@op.for_each_form
def test_hundreds_of_masks(form: Form) -> None:
    count = 10 if form.interpreted else 300
    args = (*blobs(count, (90, 160)), 90, 160, 0.5)
    pasted = form(*args)
    assert pasted.flatten(1).any(1).all()
    assert torch.equal(pasted, op.reference(*args))


@op.for_each_form
@pytest.mark.parametrize("case", CASES)
def test_boxes_by_hand(form: Form, case: str) -> None:
    box, columns, rows = CASES[case]
    expected = torch.zeros(1, 6, 8, dtype=torch.bool)
    for y in rows:
        expected[0, y, list(columns)] = True
    assert torch.equal(form(*one_mask(box)), expected)


@op.for_each_form
def test_a_value_at_the_threshold_belongs_to_the_mask(form: Form) -> None:
    box = [-40.0, -40, 48, 46]
    assert form(*one_mask(box, 0.5)).all()
    assert not form(*one_mask(box, 0.4999)).any()
    assert not form(*one_mask(box, float("nan"))).any()


@op.for_each_form
def test_a_low_threshold_reaches_half_a_cell_beyond_the_box(form: Form) -> None:
    """Cells are 2 pixels wide; half a pixel outside, the value has fallen to 1/4."""
    pasted = form(*one_mask([4.0, 4, 12, 12], size=(16, 16), threshold=0.2))
    assert pasted[0, 8].nonzero().flatten().tolist() == list(range(3, 13))


def test_the_other_masks_do_not_matter() -> None:
    masks, boxes, *rest = (*blobs(30, (200, 300)), 200, 300, 0.5)
    alone = [op(masks[n : n + 1], boxes[n : n + 1], *rest) for n in range(30)]
    assert torch.equal(torch.cat(alone), op(masks, boxes, *rest))


def test_portable_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    args = (*mask_scene(3, count=7), 0.5)
    expected = op.reference(*args)
    for values in (1, 100, 2000):
        monkeypatch.setattr(portable_module, "CHUNK_VALUES", values)
        assert torch.equal(op.portable(*args), expected)


@op.for_each_form
def test_views(form: Form) -> None:
    masks, boxes, *rest = mask_scene(4)
    strided = torch.stack([masks.transpose(1, 2), masks.transpose(1, 2)], -1)[..., 1].transpose(1, 2)
    boxes_strided = torch.stack([boxes, boxes], -1)[..., 0]
    assert not strided.is_contiguous()
    assert not boxes_strided.is_contiguous()
    expected = form(masks, boxes, *rest, 0.5)
    assert torch.equal(form(strided, boxes_strided, *rest, 0.5), expected)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    args = (*blobs(30, (200, 300)), 200, 300, 0.5)
    assert_same_bits_for_any_threads(lambda: op(*args))


@for_each_device
def test_opcheck(device: str) -> None:
    op.check(*moved(mask_scene(5), device), 0.5)


@for_each_device
def test_no_host_sync_and_compiles_whole(device: str) -> None:
    masks, boxes, *size = moved(mask_scene(6), device)
    for form in (op, op.portable):
        assert assert_no_syncs(form, masks, boxes, *size, 0.5).shape == (4, 23, 31)
    assert_compiles_whole(op.overload, *((masks, boxes, *image, 0.5) for image in (size, (40, 50))))


@op.for_each_form
def test_no_masks(form: Form) -> None:
    pasted = form(torch.zeros(0, 28, 28), torch.zeros(0, 4), 6, 8, 0.5)
    assert pasted.shape == (0, 6, 8)
    assert pasted.dtype == torch.bool


@pytest.mark.parametrize("change", REFUSED, ids=changed_argument)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses((*mask_scene(7), 0.5), **change)


_TILE = dict(BLOCK_H=16, BLOCK_W=128)
KERNELS = [
    Kernel("positions_kernel",
           dict(boxes="*fp32", rows="*i32", along_y="*fp32", columns="*i32", along_x="*fp32", H="i32", W="i32", h="i32",
                w="i32"), dict(BLOCK=256), 4),
] + [
    Kernel("paste_kernel",
           dict(masks="*fp32", rows="*i32", along_y="*fp32", columns="*i32", along_x="*fp32", pasted="*u8", H="i32",
                W="i32", stride="i32", cells="i32", threshold="fp32"), constants, 4)
    for constants in (_TILE, _TILE | dict(W=1))  # Triton makes a constant of a width of 1
]  # fmt: skip
