"""The pixels of InstanceMasks: pasting as Detectron2 and torchvision do, crops, RLE, areas and overlaps."""

from dataclasses import replace

import loaded_torchvision
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_scenes import coco, detectron2_values, full_masks, instances, round_masks, torchvision_values
from PIL import Image

from detops import InstanceMasks
from detops.masks.placement import Mode

usual = st.builds(
    instances,
    seed=st.integers(0, 10**6),
    count=st.sampled_from([0, 1, 5]),
    mask_size=st.sampled_from([(1, 1), (5, 5), (4, 6), (28, 28)]),
    image_size=st.sampled_from([(1, 1), (23, 31), (60, 90)]),
    ties=st.booleans(),
).filter(lambda found: bool((found.boxes[:, 2:] - found.boxes[:, :2] > 0.01).all()))
strange = st.builds(instances, seed=st.integers(0, 10**6), odd=st.just(True), mask_size=st.just((4, 6)))
modes = pytest.mark.parametrize("mode", ["detectron2", "torchvision"])


@settings(max_examples=100, deadline=None)
@given(found=usual)
def test_pastes_as_detectron2(found: InstanceMasks) -> None:
    value = detectron2_values(found.masks.double(), found.boxes.double(), *found.image_size)
    certain = (value - 0.5).abs() > 1e-6
    assert torch.equal(found.paste()[certain], (value >= 0.5)[certain])


@settings(max_examples=100, deadline=None)
@given(found=usual)
def test_pastes_as_torchvision(found: InstanceMasks) -> None:
    value = torchvision_values(found.masks, found.boxes, found.image_size)
    certain = (value - 0.5).abs() > 1e-6
    assert torch.equal(replace(found, mode="torchvision").paste()[certain], (value >= 0.5)[certain])


def test_torchvision_agrees() -> None:
    loaded_torchvision.load()
    from torchvision.models.detection import roi_heads

    found = round_masks(mode="torchvision")
    value = roi_heads.paste_masks_in_image(found.masks[:, None], found.boxes, found.image_size)[:, 0]
    certain = (value - 0.5).abs() > 1e-5
    assert torch.equal(found.paste()[certain], (value >= 0.5)[certain])


def test_the_modes_differ() -> None:
    """On discs, the mean IoU of the two modes' results is known to be 0.96."""
    found = round_masks(40, (800, 1333))
    first, second = found.paste(), replace(found, mode="torchvision").paste()
    iou = (first & second).flatten(1).sum(1) / (first | second).flatten(1).sum(1)
    assert 0.9 < iou.mean() < 0.99


def test_paste_of_some() -> None:
    found = instances()
    whole = found.paste(threshold=0.4)
    assert torch.equal(found.paste(2, threshold=0.4), whole[2])
    assert torch.equal(found.paste(index=-1, threshold=0.4), whole[-1])
    assert torch.equal(found.paste([4, 1], threshold=0.4), whole[[4, 1]])
    assert torch.equal(found.paste(slice(1, 3), threshold=0.4), whole[1:3])
    chosen = found.scores > 0.5
    assert torch.equal(found.paste(chosen, threshold=0.4), whole[chosen])
    assert torch.equal(found[chosen].paste(threshold=0.4), whole[chosen])
    assert found.paste([]).shape == (0, 23, 31)
    assert torch.equal(found.paste(np.int64(2), threshold=0.4), whole[2])  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        found.paste(6)


@modes
@settings(max_examples=100, deadline=None)
@given(found=usual | strange, threshold=st.sampled_from([0.5, 0.2, 0.9]))
def test_crops_hold_all_pixels(mode: Mode, found: InstanceMasks, threshold: float) -> None:
    found = replace(found, masks=found.masks.nan_to_num().clamp(0, 1), mode=mode)
    drawn = torch.zeros(len(found), *found.image_size, dtype=torch.bool)
    for n, (mask, x, y) in enumerate(found.crops(threshold=threshold)):
        drawn[n, y : y + mask.shape[0], x : x + mask.shape[1]] = mask
        assert drawn[n].sum() == mask.sum()  # nothing lay outside
    assert torch.equal(drawn, found.paste(threshold=threshold))


def test_crops_are_as_large_as_their_boxes() -> None:
    boxes = [[3.2, 4.0, 9.1, 12.0], [-5.0, -5, 4, 6], [30.0, 2, 50, 4], [5.0, 5, 5, 9]]
    sizes = [(tuple(crop.mask.shape), crop.x, crop.y) for crop in full_masks(boxes, (20, 24)).crops()]
    assert sizes == [((8, 7), 3, 4), ((6, 4), 0, 0), ((0, 0), 0, 0), ((0, 0), 0, 0)]


@modes
def test_empty_boxes_have_empty_masks(mode: Mode) -> None:
    boxes = [[5.0, 5, 5, 9], [5, 5, 9, 5], [9, 5, 5, 9], [5, 5, 4.9, 9], [5, torch.nan, 9, 9], [5, 5, torch.inf, 9]]
    found = full_masks(torch.tensor(boxes), (20, 24), mode)
    assert not found.paste().any()
    assert found.areas().tolist() == [0] * 6
    assert [crop.mask.numel() for crop in found.crops()] == [0] * 6
    assert not found.iou(found).any()


def test_crops_hold_what_rounding_adds() -> None:
    """In a box of 1e9 pixels, float32 rounds pixels just outside it onto its edge, where a full mask is 1/2."""
    side = 1e9
    boxes = torch.tensor([[-side, 0, 3, 20], [0, -side, 24, 3], [-side, 5, 3, 9]], dtype=torch.float64)
    found = full_masks(boxes, (20, 24))
    assert [found.paste(0).sum(), found.paste(1).sum()] == [80, 96]
    assert [crop.mask.sum() for crop in found.crops()] == found.areas().tolist() == [80, 96, 16]


def test_crops_of_boxes_beyond_float64_are_empty() -> None:
    found = full_masks(torch.tensor([[-1.7e308, 0, 1.7e308, 9]], dtype=torch.float64), (20, 24))
    assert not found.paste().any()
    for threshold in (0.5, 0.2):
        assert found.crops(threshold=threshold)[0].mask.shape == (0, 0)


@modes
@settings(max_examples=100, deadline=None)
@given(found=usual | strange, threshold=st.sampled_from([0.5, 0.2, 0.9]))
def test_rle_is_that_of_pycocotools(mode: Mode, found: InstanceMasks, threshold: float) -> None:
    found = replace(found, mode=mode)
    pasted = found.paste(threshold=threshold).numpy().astype(np.uint8)
    expected = [coco().encode(np.asfortranarray(mask)) for mask in pasted]
    assert found.to_rle(threshold=threshold) == expected
    assert found.areas(threshold=threshold).tolist() == pasted.sum((1, 2), dtype=np.int64).tolist()


@modes
@settings(max_examples=60, deadline=None)
@given(found=usual | strange, seed=st.integers(0, 10**6), threshold=st.sampled_from([0.5, 0.2]))
def test_iou_is_that_of_the_pixels(mode: Mode, found: InstanceMasks, seed: int, threshold: float) -> None:
    """Each side is pasted in its own mode."""
    other = instances(seed, 4, odd=seed % 2 == 0, image_size=found.image_size, mask_size=(3, 5), mode=mode)
    first, second = (masks.paste(threshold=threshold).flatten(1).double() for masks in (found, other))
    shared = first @ second.T
    union = first.sum(1)[:, None] + second.sum(1) - shared
    expected = (shared / union).nan_to_num(0).float()
    assert torch.equal(found.iou(other, threshold=threshold), expected)


def test_iou_of_many() -> None:
    found, other = round_masks(30), round_masks(20, seed=1)
    expected = coco().iou(found.to_rle(), other.to_rle(), [False] * 20)
    assert (expected > 0.1).sum() > 10
    torch.testing.assert_close(found.iou(other), torch.from_numpy(expected).float())
    assert torch.equal(found.iou(found).diagonal(), torch.ones(30))


def test_packed_pixels() -> None:
    found = round_masks(5, (37, 61))
    expected = np.packbits(found.paste().numpy(), axis=2)
    assert (found.paste(packed=True).numpy() == expected).all()
    assert (found.paste(2, packed=True).numpy() == expected[2]).all()


def test_no_detections() -> None:
    none = instances(count=0)
    assert none.paste().shape == (0, 23, 31)
    assert none.to_rle() == []
    assert none.crops() == []
    assert none.areas().shape == (0,)
    assert none.iou(instances()).shape == (0, 6)
    assert instances().iou(none).shape == (6, 0)
    assert none.draw(Image.new("RGB", (31, 23))).size == (31, 23)
    assert len(none) == 0


@modes
def test_huge_boxes_cost_no_memory(mode: Mode) -> None:
    boxes = [[-1e9, -1e9, 1e9, 1e9], [0.0, 0, 1e9, 1e9], [1e8, 1e8, 1e9, 1e9], [0.0, 0, 3e38, 3e38]]
    found = full_masks(boxes, (40, 50), mode)
    # The second box's first cell is 36 million pixels wide: its image is at the cell's very edge, just below 1/2.
    assert found.areas().tolist()[0] == 2000
    assert found.areas(threshold=0.2).tolist()[:2] == [2000, 2000]
    assert found.areas().tolist()[2] == 0
    assert [tuple(crop.mask.shape) for crop in found.crops()][::2] == [(40, 50), (0, 0)]
    found.draw(Image.new("RGB", (50, 40)))


@pytest.mark.gpu
@modes
def test_gpu_is_the_cpu(mode: Mode) -> None:
    """Results are integers and bool tensors, so they are compared bit for bit."""
    for seed in range(5):
        here, there = (
            instances(seed, device=device, mode=mode, odd=seed > 2, mask_size=(28, 28)) for device in ("cpu", "cuda")
        )
        assert torch.equal(here.paste(), there.paste().cpu())
        assert here.to_rle() == there.to_rle()
        assert torch.equal(here.iou(here), there.iou(there).cpu())
        assert torch.equal(here.areas(), there.areas().cpu())
