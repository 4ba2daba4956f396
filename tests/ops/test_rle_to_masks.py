"""The op rle_to_masks: pixels from run lengths."""

from typing import Any

import numpy as np
import pytest
import run_length_scenes
import torch
from ahead_of_time import Kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from op import Form, Op, assert_compiles_whole, assert_same_bits, changed_argument, for_each_device, moved
from pycocotools import mask as coco
from run_length_scenes import REFUSED, Scene, run_length_scene

from detops.portable import rle_to_masks as portable_module

op = Op("rle_to_masks")


@op.for_each_form
@settings(max_examples=150, deadline=None)
@given(scene=run_length_scenes.scenes, shares=st.tuples(*[st.floats(0, 1)] * 4), packed=st.booleans())
def test_matches_reference(form: Form, scene: Scene, shares: tuple[float, ...], packed: bool) -> None:
    *_, height, width = scene
    x, y = int(shares[0] * width), int(shares[1] * height)
    rows, columns = round(shares[2] * (height - y)), round(shares[3] * (width - x))
    args = (*scene, x, y, rows, columns, packed)
    assert_same_bits(form(*args), op.reference(*args))


@op.for_each_form
def test_is_what_pycocotools_decodes(form: Form) -> None:
    counts, offsets, height, width = run_length_scene(3, 4, 30, 40, "boxes")
    masks = form(counts, offsets, height, width, 0, 0, height, width, False)
    for n, mask in enumerate(masks.numpy()):
        text = coco.frPyObjects(
            {"size": [height, width], "counts": counts[offsets[n] : offsets[n + 1]].tolist()}, height, width
        )
        assert (coco.decode(text) == mask).all()
    packed = form(counts, offsets, height, width, 0, 0, height, width, True).numpy()
    assert (packed == np.packbits(masks.numpy(), axis=2)).all()


@op.for_each_form
def test_counts_that_do_not_fit_the_image(form: Form) -> None:
    """What is beyond it is cut, what is left out is 0."""
    counts = torch.tensor([1, 2, 1, 1, 99, 2, 3], dtype=torch.int32)
    masks = form(counts, torch.tensor([0, 3, 5, 7]), 2, 3, 0, 0, 2, 3, False)
    assert masks[0].T.flatten().tolist() == [False, True, True, False, False, False]
    assert masks[1].T.flatten().tolist() == [False, True, True, True, True, True]
    assert masks[2].T.flatten().tolist() == [False, False, True, True, True, False]


def test_portable_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    args = (*run_length_scene(3, 5), 2, 1, 6, 9, False)
    expected = op.reference(*args)
    for values in (1, 200):
        monkeypatch.setattr(portable_module, "CHUNK_VALUES", values)
        assert_same_bits(op.portable(*args), expected)


@for_each_device
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(device: str, packed: bool) -> None:
    op.check(*moved(run_length_scene(5), device), 2, 1, 6, 9, packed)


def test_compiles_whole() -> None:
    calls = [(*run_length_scene(seed, count), 2, 1, 6, 9, False) for seed, count in ((1, 3), (2, 5))]
    assert_compiles_whole(op.overload, *calls)


@pytest.mark.parametrize(
    "change", [*REFUSED, dict(x=-1), dict(y=9), dict(rows=9), dict(columns=12)], ids=changed_argument
)
def test_the_op_itself_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    op.refuses((*run_length_scene(7), 2, 1, 6, 9, False), **change)


KERNELS = [
    Kernel("decode_kernel",
           dict(ends="*i64", offsets="*i64", out="*u8", H="i32", x="i32", y="i32", rows="i32", columns="i32", wide="i32",
                steps="i32"), dict(EACH=each, BLOCK=256), 4)
    for each in (1, 8)
]  # fmt: skip
