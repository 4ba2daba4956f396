"""InstanceMasks: pasting as Detectron2 and torchvision do, crops, RLE, areas, overlaps, pictures, and other libraries."""

import json
import sys
from types import ModuleType, SimpleNamespace

import loaded_torchvision
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_scenes import blobs, scene
from PIL import Image
from pycocotools import mask as coco
from test_paste_masks import grid_sample

import detops
from detops import InstanceMasks

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def instances(seed=0, count=6, device="cpu", **options):
    masks, boxes, *image_size = scene(seed, count, **options)
    g = torch.Generator().manual_seed(seed)
    labels, scores = torch.randint(0, 5, (count,), generator=g), torch.rand(count, generator=g)
    return InstanceMasks(*(t.to(device) for t in (boxes, labels, scores, masks)), tuple(image_size))


def round_ones(count=12, image_size=(120, 200), seed=0):
    masks, boxes = blobs(count, image_size, seed)
    return InstanceMasks(boxes, torch.arange(count), torch.linspace(1, 0, count), masks, image_size)


def torchvision_paste(masks, boxes, image_size):
    """torchvision's `paste_masks_in_image`, before any threshold: a border, whole pixels, a resize.

    Boxes are rounded as there, in float32, masks resized in float64.
    """
    size = masks.shape[-1]
    pasted = torch.zeros(len(masks), *image_size, dtype=torch.float64)
    center, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((size + 2) / size)
    whole = torch.cat([center - half, center + half], 1).to(torch.int64)
    for n, (x1, y1, x2, y2) in enumerate(whole.tolist()):
        padded = F.pad(masks[n].double(), (1, 1, 1, 1))[None, None]
        large = F.interpolate(padded, size=(y2 - y1 + 1, x2 - x1 + 1), mode="bilinear", align_corners=False)[0, 0]
        left, right = max(x1, 0), min(x2 + 1, image_size[1])
        top, bottom = max(y1, 0), min(y2 + 1, image_size[0])
        if left < right and top < bottom:
            pasted[n, top:bottom, left:right] = large[top - y1 : bottom - y1, left - x1 : right - x1]
    return pasted


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
def test_pastes_as_detectron2(found):
    value = grid_sample(found.masks.double(), found.boxes.double(), *found.image_size)
    certain = (value - 0.5).abs() > 1e-6
    assert torch.equal(found.paste()[certain], (value >= 0.5)[certain])


@settings(max_examples=100, deadline=None)
@given(found=usual)
def test_pastes_as_torchvision(found):
    value = torchvision_paste(found.masks, found.boxes, found.image_size)
    certain = (value - 0.5).abs() > 1e-6
    assert torch.equal(found.paste(mode="torchvision")[certain], (value >= 0.5)[certain])


def test_torchvision_agrees():
    loaded_torchvision.load()
    from torchvision.models.detection import roi_heads

    found = round_ones()
    value = roi_heads.paste_masks_in_image(found.masks[:, None], found.boxes, found.image_size)[:, 0]
    certain = (value - 0.5).abs() > 1e-5
    assert torch.equal(found.paste(mode="torchvision")[certain], (value >= 0.5)[certain])


def test_the_modes_differ():
    """Which is why there are two: on discs, the mean IoU of the results is known to be 0.96."""
    found = round_ones(40, (800, 1333))
    first, second = found.paste(), found.paste(mode="torchvision")
    iou = (first & second).flatten(1).sum(1) / (first | second).flatten(1).sum(1)
    assert 0.9 < iou.mean() < 0.99


def test_paste_of_some():
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
    assert len(found[3]) == 1
    assert len(found[torch.tensor(3)]) == 1
    assert torch.equal(found.paste(np.int64(2), threshold=0.4), whole[2])
    with pytest.raises(IndexError):
        found.paste(6)
    with pytest.raises(IndexError, match=r"index: expected a number, a slice or a list, got shape \(1, 2\)"):
        found.paste([[0, 1]])


@modes
@settings(max_examples=100, deadline=None)
@given(found=usual | strange, threshold=st.sampled_from([0.5, 0.2, 0.9]))
def test_crops_hold_all_pixels(mode, found, threshold):
    found = InstanceMasks(
        found.boxes, found.labels, found.scores, found.masks.nan_to_num().clamp(0, 1), found.image_size
    )
    drawn = torch.zeros(len(found), *found.image_size, dtype=torch.bool)
    for n, (mask, x, y) in enumerate(found.crops(threshold=threshold, mode=mode)):
        drawn[n, y : y + mask.shape[0], x : x + mask.shape[1]] = mask
        assert drawn[n].sum() == mask.sum()  # nothing lay outside
    assert torch.equal(drawn, found.paste(threshold=threshold, mode=mode))


def test_crops_are_as_large_as_their_boxes():
    boxes = torch.tensor([[3.2, 4.0, 9.1, 12.0], [-5.0, -5, 4, 6], [30.0, 2, 50, 4], [5.0, 5, 5, 9]])
    found = InstanceMasks(boxes, torch.zeros(4, dtype=torch.int64), torch.ones(4), torch.ones(4, 28, 28), (20, 24))
    sizes = [(tuple(crop.mask.shape), crop.x, crop.y) for crop in found.crops()]
    assert sizes == [((8, 7), 3, 4), ((6, 4), 0, 0), ((0, 0), 0, 0), ((0, 0), 0, 0)]


@modes
def test_empty_boxes_have_empty_masks(mode):
    boxes = [[5.0, 5, 5, 9], [5, 5, 9, 5], [9, 5, 5, 9], [5, 5, 4.9, 9], [5, torch.nan, 9, 9], [5, 5, torch.inf, 9]]
    found = InstanceMasks(
        torch.tensor(boxes), torch.zeros(6, dtype=torch.int64), torch.ones(6), torch.ones(6, 28, 28), (20, 24)
    )
    assert not found.paste(mode=mode).any()
    assert found.areas(mode=mode).tolist() == [0] * 6
    assert [crop.mask.numel() for crop in found.crops(mode=mode)] == [0] * 6
    assert not found.iou(found, mode=mode).any()


def test_crops_hold_what_rounding_adds():
    """In a box of 1e9 pixels, float32 takes pixels just outside it for its edge, where a full mask is 1/2."""
    side = 1e9
    boxes = torch.tensor([[-side, 0, 3, 20], [0, -side, 24, 3], [-side, 5, 3, 9]], dtype=torch.float64)
    found = InstanceMasks(boxes, torch.zeros(3, dtype=torch.int64), torch.ones(3), torch.ones(3, 28, 28), (20, 24))
    assert [found.paste(0).sum(), found.paste(1).sum()] == [80, 96]
    assert [crop.mask.sum() for crop in found.crops()] == found.areas().tolist() == [80, 96, 16]


def test_crops_of_boxes_beyond_float64_are_empty():
    boxes = torch.tensor([[-1.7e308, 0, 1.7e308, 9]], dtype=torch.float64)
    found = InstanceMasks(boxes, torch.zeros(1, dtype=torch.int64), torch.ones(1), torch.ones(1, 28, 28), (20, 24))
    assert not found.paste().any()
    for threshold in (0.5, 0.2):
        assert found.crops(threshold=threshold)[0].mask.shape == (0, 0)


@modes
@settings(max_examples=100, deadline=None)
@given(found=usual | strange, threshold=st.sampled_from([0.5, 0.2, 0.9]))
def test_rle_is_that_of_pycocotools(mode, found, threshold):
    pasted = found.paste(threshold=threshold, mode=mode).numpy().astype(np.uint8)
    expected = [coco.encode(np.asfortranarray(mask)) for mask in pasted]
    assert found.to_rle(threshold, mode) == expected
    assert found.areas(threshold, mode).tolist() == pasted.sum((1, 2), dtype=np.int64).tolist()


@modes
@settings(max_examples=60, deadline=None)
@given(found=usual | strange, seed=st.integers(0, 10**6))
def test_iou_is_that_of_the_pixels(mode, found, seed):
    other = instances(seed, 4, odd=seed % 2 == 0, image_size=found.image_size, mask_size=(3, 5))
    first, second = (masks.paste(mode=mode).flatten(1).double() for masks in (found, other))
    shared = first @ second.T
    union = first.sum(1)[:, None] + second.sum(1) - shared
    expected = (shared / union).nan_to_num(0).float()
    assert torch.equal(found.iou(other, mode=mode), expected)


def test_iou_of_many_in_chunks(monkeypatch):
    found, other = round_ones(30), round_ones(20, seed=1)
    expected = coco.iou(found.to_rle(), other.to_rle(), [False] * 20)
    assert (expected > 0.1).sum() > 10
    torch.testing.assert_close(found.iou(other), torch.from_numpy(expected).float())
    whole = detops.run_lengths.intersections
    monkeypatch.setattr(detops.run_lengths, "intersections", lambda *args: whole(*args, chunk=300))
    torch.testing.assert_close(found.iou(other), torch.from_numpy(expected).float())
    assert torch.equal(found.iou(found).diagonal(), torch.ones(30))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    """What is given in another dtype is what float32 makes of the same numbers."""
    found = instances(1)
    boxes, scores, masks = (t.to(dtype) for t in (found.boxes, found.scores, found.masks))
    narrow = InstanceMasks(boxes, found.labels.to(torch.int32), scores, masks, found.image_size)
    wide = InstanceMasks(boxes.float(), found.labels, scores.float(), masks.float(), found.image_size)
    if dtype != torch.float64:
        assert torch.equal(narrow.paste(mode="torchvision"), wide.paste(mode="torchvision"))
    assert torch.equal(narrow.paste(), wide.paste())
    assert narrow.to_rle() == wide.to_rle()


def test_logits():
    found = instances(2)
    logits = found.masks.logit().to(torch.float16)
    same = InstanceMasks(found.boxes, found.labels, found.scores, logits, found.image_size, logits=True)
    assert same.masks.dtype == torch.float32
    assert torch.equal(same.masks, logits.float().sigmoid())


@pytest.mark.parametrize("logits", [False, True])
def test_the_mask_of_the_class_is_taken(logits):
    found = instances(3)
    masks = torch.rand(6, 5, 5, 7, generator=torch.Generator().manual_seed(0))
    args = (found.boxes, found.labels, found.scores)
    own = torch.stack([masks[n, label] for n, label in enumerate(found.labels)])
    result = InstanceMasks.from_class_masks(*args, masks, found.image_size, logits)
    assert torch.equal(result.masks, own.sigmoid() if logits else own)
    shared = InstanceMasks.from_class_masks(*args, masks[:, :1], found.image_size, logits)
    assert torch.equal(shared.masks, masks[:, 0].sigmoid() if logits else masks[:, 0])
    found.labels[1], found.labels[4] = -1, 5
    result = InstanceMasks.from_class_masks(*args, masks, found.image_size, logits)
    assert not result.masks[[1, 4]].any()
    assert torch.equal(result.masks[0], own[0].sigmoid() if logits else own[0])
    with detops.checked(), pytest.raises(ValueError, match=r"labels: instance 1 has -1, expected a value in 0 \.\. 4"):
        InstanceMasks.from_class_masks(*args, masks, found.image_size, logits)


def test_from_torchvision():
    found = instances(4)
    output = {"boxes": found.boxes, "labels": found.labels, "scores": found.scores, "masks": found.masks[:, None]}
    result = InstanceMasks.from_torchvision(output, found.image_size)
    assert result.to_rle() == found.to_rle()
    with pytest.raises(ValueError, match=r"masks: expected raw masks, got pasted ones, \(6, 1, 23, 31\)"):
        InstanceMasks.from_torchvision(output | {"masks": torch.zeros(6, 1, 23, 31)}, found.image_size)
    del output["masks"]
    with pytest.raises(ValueError, match="output: expected boxes, labels, scores, masks, found no masks"):
        InstanceMasks.from_torchvision(output, found.image_size)


def test_from_detectron2():
    found = instances(5)
    fields = dict(pred_classes=found.labels, scores=found.scores, pred_masks=found.masks[:, None])
    as_object = SimpleNamespace(pred_boxes=SimpleNamespace(tensor=found.boxes), image_size=found.image_size, **fields)
    assert InstanceMasks.from_detectron2(as_object).to_rle() == found.to_rle()
    as_mapping = fields | {"pred_boxes": found.boxes, "pred_masks": found.masks[:, None].expand(-1, 5, -1, -1)}
    assert InstanceMasks.from_detectron2(as_mapping, found.image_size).to_rle() == found.to_rle()
    with pytest.raises(ValueError, match="instances: expected image_size, found no image_size"):
        InstanceMasks.from_detectron2(as_mapping)


def test_no_detections():
    none = instances(count=0)
    assert none.paste().shape == (0, 23, 31)
    assert none.to_rle() == none.crops() == []
    assert none.areas().shape == (0,)
    assert none.iou(instances()).shape == (0, 6)
    assert instances().iou(none).shape == (6, 0)
    assert none.draw(Image.new("RGB", (31, 23))).size == (31, 23)
    assert len(none) == 0


def test_huge_boxes_cost_no_memory():
    boxes = torch.tensor([[-1e9, -1e9, 1e9, 1e9], [0.0, 0, 1e9, 1e9], [1e8, 1e8, 1e9, 1e9], [0.0, 0, 3e38, 3e38]])
    found = InstanceMasks(boxes, torch.arange(4), torch.ones(4), torch.ones(4, 28, 28), (40, 50))
    # The second box's first cell is 36 million pixels wide: its image is at the cell's very edge, just below 1/2.
    for mode in ("detectron2", "torchvision"):
        assert found.areas(mode=mode).tolist()[0] == 2000
        assert found.areas(0.2, mode).tolist()[:2] == [2000, 2000]
        assert found.areas(mode=mode).tolist()[2] == 0
        assert [tuple(crop.mask.shape) for crop in found.crops(mode=mode)][::2] == [(40, 50), (0, 0)]
        found.draw(Image.new("RGB", (50, 40)), mode=mode)


@pytest.fixture
def background():
    g = np.random.default_rng(0)
    return g.integers(0, 256, (120, 200, 3), dtype=np.uint8)


def test_draw_touches_only_boxes(background):
    found = round_ones(20)
    found = found[int(found.areas().argmax())]
    drawn = np.asarray(found.draw(background))
    x1, y1, x2, y2 = found.boxes[0].tolist()
    touched = np.argwhere((drawn != background).any(2))
    assert len(touched) > 100
    assert touched[:, 0].min() >= np.floor(y1) and touched[:, 0].max() <= np.ceil(y2)  # noqa: PT018
    assert touched[:, 1].min() >= np.floor(x1) and touched[:, 1].max() <= np.ceil(x2)  # noqa: PT018
    inside = found.paste(0).numpy()
    assert (drawn != background).any(2)[inside].mean() > 0.95


def test_draw_colours_the_mask(background):
    """Half the picture, half the class' colour, away from lines and names."""
    from detops.masks.drawing import class_color

    found = InstanceMasks(
        torch.tensor([[-500.0, -500, 700, 700]]), torch.tensor([7]), torch.ones(1), torch.ones(1, 28, 28), (120, 200)
    )
    pixel = np.asarray(found.draw(background, opacity=0.5))[110, 190]
    assert np.abs(pixel - (background[110, 190] / 2 + np.array(class_color(7)) / 2)).max() <= 1.5
    assert (np.asarray(found.draw(background, opacity=0))[110, 190] == background[110, 190]).all()


def test_draw_has_the_best_on_top_whatever_their_order():
    from detops.masks.drawing import class_color

    boxes, masks = torch.tensor([[10.0, 10, 180, 110]]).expand(3, 4), torch.ones(3, 28, 28)
    for scores in ([0.9, 0.5, 0.1], [0.1, 0.9, 0.5], [float("nan"), 0.1, 0.9]):
        found = InstanceMasks(boxes, torch.arange(3), torch.tensor(scores), masks, (120, 200))
        pixel = np.asarray(found.draw(np.zeros((120, 200, 3), np.uint8), opacity=1))[90, 150]
        assert tuple(pixel) == class_color(scores.index(0.9))


def test_draw_outlines_boxes_and_names_them_where_there_is_room():
    from detops.masks.drawing import class_color

    def touched(box, **options):
        found = InstanceMasks(torch.tensor([box]), torch.tensor([2]), torch.ones(1), torch.zeros(1, 28, 28), (120, 200))
        return np.asarray(found.draw(np.zeros((120, 200, 3), np.uint8), **options)).astype(int)

    color = np.array(class_color(2))
    drawn = touched([20.0, 30, 180, 100])
    for outline in (drawn[99, 20:180], drawn[60:100, 20], drawn[60:100, 179]):
        assert np.abs(outline - color * 235 / 255).max() <= 2
    assert not drawn[60:99, 21:179].any()
    plate = drawn[31:50, 21:80]
    assert (plate.max(2) > 150).sum() > 100
    assert ((plate.max(2) < 60) & plate.any(2)).any()  # ink
    longer = touched([20.0, 30, 180, 100], class_names=["", "", "a longer name"])
    assert longer[31:45, 21:179].any(2).sum() > drawn[31:45, 21:179].any(2).sum()
    assert not touched([20.0, 30, 30, 38])[31:37, 21:29].any()  # no room


def test_draw_names_boxes_that_begin_outside(background):
    """The name's plate is moved into the picture, to its corner."""
    boxes = torch.tensor([[-30.0, -30, 150, 100]])
    found = InstanceMasks(boxes, torch.tensor([7]), torch.ones(1), torch.zeros(1, 28, 28), (120, 200))
    touched = (np.asarray(found.draw(background)) != background).any(2)
    assert touched[:12, :12].mean() > 0.9
    assert not touched[20:90, :140].any()


def test_draw_takes_images_and_arrays(background):
    found = round_ones(5)
    names = [f"class {n}" for n in range(5)]
    expected = np.asarray(found.draw(background, class_names=names))
    before = background.copy()
    for image in (Image.fromarray(background), torch.from_numpy(background), np.asfortranarray(background)):
        assert (np.asarray(found.draw(image, class_names=names)) == expected).all()
    assert (background == before).all()
    assert found.draw(Image.fromarray(background).convert("L")).mode == "RGB"
    with pytest.raises(ValueError, match=r"image: expected shape \(120, 200, 3\), got \(3, 120, 200\)"):
        found.draw(background.transpose(2, 0, 1))
    with pytest.raises(ValueError, match="image: expected 200 x 120 pixels, got 120 x 200"):
        found.draw(Image.new("RGB", (120, 200)))
    with pytest.raises(TypeError, match="image: expected a Pillow image or uint8, got ndarray of float64"):
        found.draw(background / 255)
    with pytest.raises(ValueError, match=r"opacity: expected a number in 0 \.\. 1, got 2"):
        found.draw(background, opacity=2)


@pytest.mark.parametrize("label", [-1, 5])
def test_draw_refuses_a_label_without_a_name(background, label):
    """A negative one would take the last name."""
    found = round_ones(5)
    found.labels[3] = label
    with pytest.raises(ValueError, match=rf"labels: expected 0 \.\. 4, one a class name, got {label}"):
        found.draw(background, class_names=["a", "b", "c", "d", "e"])
    found.draw(background)


def test_without_pillow(monkeypatch, background):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ModuleNotFoundError, match=r'draw\(\) needs Pillow: pip install "detops\[train\]"'):
        round_ones(1).draw(background)


def test_to_supervision(monkeypatch):
    """The arguments of `supervision.Detections`, as its constructor names and shapes them."""
    stub = ModuleType("supervision")
    stub.Detections = lambda **fields: SimpleNamespace(**fields)
    monkeypatch.setitem(sys.modules, "supervision", stub)
    found = round_ones(3)
    detections = found.to_supervision()
    assert detections.xyxy.shape == (3, 4)
    assert detections.mask.dtype == bool
    assert (detections.mask == found.paste().numpy()).all()
    assert detections.confidence.tolist() == found.scores.tolist()
    assert detections.class_id.tolist() == [0, 1, 2]
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs supervision: pip install "supervision"'):
        found.to_supervision()


@pytest.mark.gpu
def test_gpu_is_the_cpu():
    """Integers and bool tensors, so bit for bit."""
    for seed in range(5):
        here, there = (instances(seed, device=device, odd=seed > 2, mask_size=(28, 28)) for device in ("cpu", "cuda"))
        for mode in ("detectron2", "torchvision"):
            assert torch.equal(here.paste(mode=mode), there.paste(mode=mode).cpu())
            assert here.to_rle(mode=mode) == there.to_rle(mode=mode)
            assert torch.equal(here.iou(here, mode=mode), there.iou(there, mode=mode).cpu())
            assert torch.equal(here.areas(mode=mode), there.areas(mode=mode).cpu())


@pytest.mark.parametrize("device", DEVICES)
def test_syncs(device):
    found = instances(device=device)
    assert detops.count_syncs(found.paste) == 0
    assert detops.count_syncs(lambda: found.paste(mode="torchvision")) == 0
    assert detops.count_syncs(found.crops) == 1


@pytest.mark.parametrize("device", DEVICES)
@modes
def test_compiles_whole(device, mode):
    def paste(boxes, labels, scores, masks, image_size):
        return InstanceMasks(boxes, labels, scores, masks, image_size, logits=True).paste(mode=mode)

    compiled = torch.compile(paste, fullgraph=True, backend="aot_eager")
    for seed, count, size in ((0, 6, (23, 31)), (1, 3, (40, 20))):
        found = instances(seed, count, device)
        args = (found.boxes, found.labels, found.scores, found.masks, size)
        assert torch.equal(compiled(*args), paste(*args))


def test_moves_and_describes_itself():
    found = instances()
    assert found.to("cpu").to_rle() == found.to_rle()
    assert InstanceMasks(found.boxes, found.labels, found.scores, found.masks, np.array([6, 8])).image_size == (6, 8)
    assert repr(found) == "InstanceMasks(6 masks (5, 7) in an image 23 x 31)"
    assert not InstanceMasks(
        found.boxes, found.labels, found.scores, found.masks.requires_grad_(), (3, 3)
    ).masks.requires_grad


GOOD = dict(
    boxes=torch.zeros(3, 4),
    labels=torch.zeros(3, dtype=torch.int64),
    scores=torch.zeros(3),
    masks=torch.zeros(3, 28, 28),
    image_size=(6, 8),
)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boxes": torch.zeros(3, 5)}, ValueError, r"boxes: expected shape \(N, 4\), got \(3, 5\)"),
        (
            {"boxes": torch.zeros(3, 4, dtype=torch.int64)},
            TypeError,
            "boxes: expected a floating-point tensor, got int64",
        ),
        ({"labels": torch.zeros(3)}, TypeError, "labels: expected integers, got float32"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, ValueError, r"labels: expected shape \(3,\) to match boxes"),
        ({"scores": torch.zeros(3, 1)}, ValueError, r"scores: expected shape \(3,\) to match boxes, got \(3, 1\)"),
        ({"masks": torch.zeros(3, 1, 28, 28)}, ValueError, r"masks: expected shape \(3, h, w\), none of h, w 0, got"),
        ({"masks": torch.zeros(3, 0, 28)}, ValueError, r"masks: expected shape \(3, h, w\), none of h, w 0, got"),
        ({"image_size": (6, 0)}, ValueError, r"image_size: expected a height and a width of at least 1.*got \(6, 0\)"),
        ({"image_size": (2**16, 2**16)}, ValueError, r"image_size: .* below 2\^31 pixels"),
        ({"image_size": (np.int32(2**16), np.int32(2**16))}, ValueError, r"image_size: .* below 2\^31 pixels"),
        ({"image_size": (6, 8, 3)}, ValueError, r"image_size: expected a height and a width .* got \(6, 8, 3\)"),
        ({"image_size": 6}, TypeError, "image_size: expected a height and a width .* got 6"),
        ({"image_size": (6.5, 8)}, TypeError, r"image_size: expected a height and a width .* got \(6.5, 8\)"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        InstanceMasks(**GOOD | change)


@pytest.mark.parametrize("method", ["paste", "crops", "to_rle", "areas"])
def test_errors_of_methods(method):
    found = InstanceMasks(**GOOD)
    with pytest.raises(ValueError, match="threshold: expected a number above 0, got 0"):
        getattr(found, method)(threshold=0)
    with pytest.raises(ValueError, match="threshold: expected a number above 0, got 1e-46"):  # 0 in float32
        getattr(found, method)(threshold=1e-46)
    with pytest.raises(TypeError, match="threshold: expected a number above 0, got None"):
        getattr(found, method)(threshold=None)
    with pytest.raises(ValueError, match=r"mode: expected .* got 'opencv'"):
        getattr(found, method)(mode="opencv")


def test_boxes_that_are_not_finite_are_named_in_checked_mode():
    boxes = torch.zeros(3, 4)
    boxes[1, 2] = torch.inf
    assert InstanceMasks(**GOOD | {"boxes": boxes}).areas().tolist() == [0, 0, 0]
    with (
        detops.checked(),
        pytest.raises(ValueError, match=r"boxes: instance 1 has \[0.0, 0.0, inf, 0.0\], expected finite"),
    ):
        InstanceMasks(**GOOD | {"boxes": boxes})


def test_errors_of_iou():
    found = InstanceMasks(**GOOD)
    with pytest.raises(ValueError, match=r"other: expected masks in an image of size \(6, 8\), got \(8, 6\)"):
        found.iou(InstanceMasks(**GOOD | {"image_size": (8, 6)}))


def test_rows_of_results_are_strict_json():
    """JSON has no NaN; category ids of numpy become plain ones."""
    np = pytest.importorskip("numpy")
    boxes = torch.tensor([[1.0, 1, 5, 5], [float("nan"), 1, 5, 5], [1, 1, 5, 5], [1, 1, float("inf"), 5]])
    scores = torch.tensor([0.9, 0.8, float("nan"), 0.7])
    found = detops.InstanceMasks(boxes, torch.zeros(4, dtype=torch.int64), scores, torch.ones(4, 28, 28), (8, 8))
    rows = found.to_coco(3, category_ids=np.array([18]))
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert [(row["category_id"], row["bbox"]) for row in rows] == [(18, [1.0, 1.0, 4.0, 4.0])]
