"""MaskRCNNPipeline: torchvision's own results with every switch off, and what each switch changes."""

import importlib
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_mask_rcnn
import torch
from tiny_mask_rcnn import pictures
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import roi_heads

from detops import InstanceMasks, MaskRCNNPipeline, StageTimer
from detops.integrations.torchvision import _resized
from detops.masks.placement import Mode

SIZES = [(100, 130), (120, 90), (64, 200)]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_mask_rcnn.build(seed=1)


def floats(images: list[Tensor]) -> list[Tensor]:
    return [image.float() / 255 for image in images]


def equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other) == ["boxes", "labels", "scores", "masks"]
        for name in one:
            assert one[name].dtype == other[name].dtype
            assert torch.equal(one[name], other[name]), name


def iou(a: Tensor, b: Tensor) -> Tensor:
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    area_a, area_b = ((t[:, 2:] - t[:, :2]).prod(-1) for t in (a, b))
    return inter / (area_a[:, None] + area_b - inter)


def close(found: list[dict[str, Any]], expected: list[dict[str, Any]], overlap: float, score: float) -> None:
    """Check that every confident detection of either side matches one of the other, in class, box and score."""
    for one, other in zip(found, expected, strict=True):
        for a, b in ((one, other), (other, one)):
            sure = a["scores"] > b["scores"].min() + score  # others may be below the threshold there
            assert sure.sum() > len(sure) // 2
            alike = (iou(a["boxes"], b["boxes"]) > overlap) & (a["labels"][:, None] == b["labels"])
            alike &= (a["scores"][:, None] - b["scores"]).abs() < score
            assert alike.any(1)[sure].all()


@torch.no_grad()
def plain(model: Any, images: list[Tensor]) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = model(floats(images))
    return results


def test_all_switches_off_is_the_model_itself(model: Any) -> None:
    images = pictures(*SIZES)
    expected = plain(model, images)
    assert all(len(result["boxes"]) > 3 for result in expected)
    equal(MaskRCNNPipeline(model)(floats(images)), expected)
    assert not MaskRCNNPipeline(model)(floats(images))[0]["boxes"].requires_grad


def test_forms_of_images(model: Any) -> None:
    np, image_module = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    (image,) = pictures((90, 110))
    array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    expected = plain(model, [image])
    for form in (image, array, image_module.fromarray(array)):
        equal(MaskRCNNPipeline(model)([form]), expected)
    with pytest.raises(TypeError, match="images: expected uint8, image 0 is int64"):
        MaskRCNNPipeline(model)([image.long()])


def test_batches(model: Any) -> None:
    images = floats(pictures(*SIZES, (80, 80), (100, 130)))
    one_by_one = [result for image in images for result in plain(model, [(image * 255).byte()])]
    equal(MaskRCNNPipeline(model, batch_size=1)([(image * 255).byte() for image in images]), one_by_one)
    batches: list[int] = []
    hook = model.backbone.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    found = MaskRCNNPipeline(model, batch_size=2)(images)
    hook.remove()
    assert batches == [2, 2, 1]
    with torch.no_grad():
        equal(found, [result for i in (0, 2, 4) for result in model(images[i : i + 2])])
    assert MaskRCNNPipeline(model)([]) == []


@pytest.mark.parametrize("device_preprocess", [False, True])
def test_a_single_image_is_refused(model: Any, device_preprocess: bool) -> None:
    """Iterating over it would treat its channels or rows as grey images."""
    np, image_module = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    (image,) = pictures((90, 110))
    array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    pipeline: Any = MaskRCNNPipeline(model, device_preprocess=device_preprocess)
    hint = r"; for one image pass \[image\]$"
    for one, kind in (
        (image, r"Tensor \(3, 90, 110\)" + hint),
        (array, r"ndarray \(90, 110, 3\)" + hint),
        (image_module.fromarray(array), "Image" + hint),
        ("image.png", "str$"),
        (3, "int$"),
    ):
        with pytest.raises(TypeError, match="images: expected a list of images, got " + kind):
            pipeline(one)
    equal(pipeline(torch.stack([image, image])), pipeline([image, image]))
    equal(pipeline(iter([image])), pipeline([image]))


@pytest.mark.parametrize("device_preprocess", [False, True])
def test_errors_count_images_through_all_batches(model: Any, device_preprocess: bool) -> None:
    pipeline = MaskRCNNPipeline(model, batch_size=2, device_preprocess=device_preprocess)
    with pytest.raises(TypeError, match="images: expected uint8, image 3 is int64"):
        pipeline([*pictures(*SIZES), torch.zeros(3, 64, 64, dtype=torch.int64)])


def test_nothing_detected(model: Any) -> None:
    none = tiny_mask_rcnn.build(seed=1, box_score_thresh=2.0)
    images = pictures(*SIZES)
    equal(MaskRCNNPipeline(none)(images), plain(none, images))
    raw = MaskRCNNPipeline(none, masks="raw")(images)[0]["masks"]
    assert raw.paste().shape == (0, 100, 130)
    assert MaskRCNNPipeline(none, masks="rle")(images)[2]["masks"] == []


@pytest.mark.parametrize("half", [["backbone"], ["rpn"], ["heads"], True], ids=str)
def test_half_precision_detects_the_same(half: Any) -> None:
    # Nothing is suppressed and no proposal is dropped, so that precision cannot decide between near-equal boxes.
    everything = dict.fromkeys(["rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_test", "box_detections_per_img"], 5000)
    model = tiny_mask_rcnn.build(seed=1, rpn_nms_thresh=1.0, box_nms_thresh=1.0, **everything)
    images = pictures(*SIZES)
    found, expected = MaskRCNNPipeline(model, half=half)(images), plain(model, images)
    close(found, expected, overlap=0.9, score=0.05)
    assert not all(torch.equal(a["scores"], b["scores"]) for a, b in zip(found, expected, strict=True))
    assert {value.dtype for value in found[0].values()} == {torch.float32, torch.int64}


def test_preprocessing_on_the_device(model: Any) -> None:
    """Sizes equal torchvision's, pixels up to rounding; all sizes make one batch, and equal ones are resized at once."""
    for images in (pictures(*SIZES), pictures((100, 130), (100, 130)), pictures((96, 101))):
        ours, expected = MaskRCNNPipeline(model, device_preprocess=True), MaskRCNNPipeline(model)
        batch, *sizes = ours._prepared(images)
        batch_expected, *sizes_expected = expected._prepared(images)
        assert sizes == sizes_expected
        torch.testing.assert_close(batch, batch_expected, rtol=0, atol=1e-4)  # 0.006 grey levels
        close(ours(images), plain(model, images), overlap=0.99, score=1e-3)
    fixed = tiny_mask_rcnn.build(seed=1, fixed_size=(128, 96))  # width, height
    batch, fixed_sizes, _ = MaskRCNNPipeline(fixed, device_preprocess=True)._prepared(pictures((70, 90)))
    assert tuple(batch.shape[2:]) == fixed_sizes[0] == (96, 128)


def test_resized_images_have_the_sizes_of_torchvisions(model: Any) -> None:
    for height in range(31, 220, 13):
        for width in range(33, 240, 17):
            expected, _ = model.transform.resize(torch.empty(3, height, width))
            assert _resized(model.transform, height, width) == expected.shape[1:]


def test_preprocessing_on_the_device_takes_arrays_and_pillow_images(model: Any) -> None:
    np, image_module = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    (image,) = pictures((90, 110))
    array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    pipeline = MaskRCNNPipeline(model, device_preprocess=True)
    expected = pipeline([image])
    for form in (array, image_module.fromarray(array)):
        equal(pipeline([form]), expected)
    with pytest.raises(TypeError, match="images: expected uint8, image 0 is float32"):
        pipeline(floats([image]))
    with pytest.raises(TypeError, match="images: expected a numpy array, a tensor or a Pillow image, image 0 is str"):
        pipeline(["image.png"])
    for odd, shape in (
        (torch.zeros(3, 0, 5), r"\(3, 0, 5\)"),
        (torch.zeros(4, 8, 9), r"\(4, 8, 9\)"),
        (torch.zeros(3), r"\(3,\)"),
    ):
        with pytest.raises(ValueError, match=f"image 1 has shape {shape}"):
            pipeline([image, odd.byte()])


def test_half_precision_is_preprocessed_into_half(model: Any) -> None:
    images = pictures(*SIZES)
    pipeline = MaskRCNNPipeline(model, device_preprocess=True, half=["backbone"])
    assert pipeline._prepared(images)[0].dtype == torch.bfloat16
    assert MaskRCNNPipeline(model, device_preprocess=True, half=["rpn"])._prepared(images)[0].dtype == torch.float32


def test_raw_masks_are_those_that_torchvision_pastes(model: Any) -> None:
    images = pictures(*SIZES)
    for found, expected, image in zip(
        MaskRCNNPipeline(model, masks="raw")(images), plain(model, images), images, strict=True
    ):
        raw = found["masks"]
        assert isinstance(raw, InstanceMasks)
        assert raw.masks.shape[1:] == (28, 28)
        assert raw.image_size == image.shape[1:]
        for name in ("boxes", "labels", "scores"):
            assert torch.equal(found[name], expected[name])
            assert torch.equal(getattr(raw, name), expected[name])
        pasted = expected["masks"][:, 0] >= 0.5
        assert pasted.any()
        assert raw.mode == "torchvision"
        assert (raw.paste() != pasted).float().mean() < 1e-4


@pytest.mark.parametrize("mode", ["torchvision", "detectron2"])
def test_rle_is_that_of_the_pasted_masks(model: Any, mode: Mode) -> None:
    coco, np = pytest.importorskip("pycocotools.mask"), pytest.importorskip("numpy")
    images = pictures(*SIZES)
    pipeline = MaskRCNNPipeline(model, masks="rle", mode=mode, threshold=0.4)
    raw = MaskRCNNPipeline(model, masks="raw", mode=mode)(images)
    for found, other in zip(pipeline(images), raw, strict=True):
        pasted = other["masks"].paste(threshold=0.4)
        assert len(found["masks"]) == len(pasted) > 3
        for rle, mask in zip(found["masks"], pasted, strict=True):
            assert rle == coco.encode(np.asfortranarray(mask.to(torch.uint8).numpy()))


class Seen(nn.Module):
    """A layer that records the dtype of its input and the one that it computes in."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.came: torch.dtype | None = None
        self.computed: torch.dtype | None = None

    def forward(self, x: Any) -> Any:
        first = x[0] if isinstance(x, list) else x
        self.came = first.dtype
        self.computed = torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype
        return self.module(x)


@pytest.mark.parametrize("half", [(), ("backbone",), ("rpn",), ("heads",), ("backbone", "heads")])
def test_each_part_has_its_own_precision(half: Any) -> None:
    model = tiny_mask_rcnn.build(seed=1)
    seen = {
        "backbone": [model, "backbone"], "rpn": [model.rpn, "head"],
        "heads": [model.roi_heads, "box_head"], "masks": [model.roi_heads, "mask_head"],
    }  # fmt: skip
    for parent, name in seen.values():
        setattr(parent, name, Seen(getattr(parent, name)))
    with torch.autocast("cpu", torch.bfloat16):  # has no effect inside
        MaskRCNNPipeline(model, half=half)(pictures((90, 110)))
    for part, (parent, name) in seen.items():
        expected = torch.bfloat16 if {"masks": "heads"}.get(part, part) in half else torch.float32
        assert getattr(parent, name).computed == expected
        if expected == torch.float32:
            assert getattr(parent, name).came == torch.float32


def test_boxes_stay_exact_in_half_precision() -> None:
    """From 512 on bfloat16 holds only every fourth pixel; proposals of unmoved anchors are exact all the same."""
    model = tiny_mask_rcnn.build(seed=1, min_size=1000, max_size=1400)
    for values in (model.rpn.head.bbox_pred.weight, model.rpn.head.bbox_pred.bias):
        nn.init.zeros_(values)
    proposals = []
    model.roi_heads.box_roi_pool.register_forward_pre_hook(lambda module, args: proposals.append(args[1][0]))
    (image,) = pictures((1000, 1400))
    MaskRCNNPipeline(model, half=True)([image])
    whole = model.rpn.anchor_generator.cell_anchors
    assert whole[0].dtype == torch.float32
    corners = proposals[0][(proposals[0][:, :2] > 520).all(1), :2]
    assert len(corners)
    assert (corners % 4 != 0).any()
    anchors = torch.cat([cell[:, :2] for cell in whole])
    for corner in corners:
        assert ((corner - anchors) % 8 == 0).all(1).any()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(floats([image]))
    assert proposals[1].dtype == torch.bfloat16  # as torchvision itself computes it


def test_proposals_are_chosen_by_float32_scores() -> None:
    """In bfloat16 many scores would be equal, which would change the order of sorting and NMS."""
    model, seen = tiny_mask_rcnn.build(seed=1), []
    choose = model.rpn.filter_proposals

    def remembered(proposals: Tensor, objectness: Tensor, *rest: Any) -> Any:
        seen.extend([proposals.dtype, objectness.dtype])
        return choose(proposals, objectness, *rest)

    model.rpn.filter_proposals = remembered
    MaskRCNNPipeline(model, half=True)(pictures((90, 110)))
    assert seen == [torch.float32, torch.float32]


def test_a_compiled_backbone(model: Any) -> None:
    images = pictures(*SIZES)
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        calls.append(graph)
        return graph.forward

    found = MaskRCNNPipeline(model, compile_backbone={"backend": backend})(images)
    assert calls
    equal(found, plain(model, images))


def test_stages(model: Any) -> None:
    timer = StageTimer("cpu")
    pipeline = MaskRCNNPipeline(model, timer=timer, batch_size=2)
    pipeline(pictures(*SIZES))
    paths = ["/".join(stats.path) for stats in timer.stats()]
    inner = [f"roi_heads/{name}" for name in ("boxes", "mask_forward", "mask_postprocessing")]
    assert paths == ["preprocessing", "backbone", "rpn", "roi_heads", *inner]
    assert {stats.calls for stats in timer.stats()} == {2}


def test_the_model_is_left_as_it_was(model: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    MaskRCNNPipeline(model, half=True, masks="raw", device_preprocess=True)(pictures(*SIZES))
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_is_refused(model: Any) -> None:
    pipeline: Any = MaskRCNNPipeline
    with pytest.raises(TypeError, match=r"model: expected a torchvision.models.detection.MaskRCNN, got Linear"):
        pipeline(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="half: expected a bool or some of backbone, rpn, heads, got 'rpn'"):
        pipeline(model, half="rpn")
    with pytest.raises(ValueError, match="masks: expected one of pasted, raw, rle, got 'polygon'"):
        pipeline(model, masks="polygon")
    with pytest.raises(ValueError, match="half: expected a bool or some of backbone, rpn, heads, got 1"):
        pipeline(model, half=1)
    with pytest.raises(ValueError, match=r"half_dtype: expected float16, bfloat16 or None, got torch\.int32"):
        pipeline(model, half=True, half_dtype=torch.int32)
    with pytest.raises(ValueError, match="threshold: expected a number above 0, got 0"):
        pipeline(model, masks="rle", threshold=0)
    with pytest.raises(ValueError, match=r"mode: expected .* got 'opencv'"):
        pipeline(model, masks="rle", mode="opencv")
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        pipeline(model, batch_size=0)
    with pytest.raises(ValueError, match="model: expected evaluation mode"):
        pipeline(tiny_mask_rcnn.build().train())(pictures((64, 64)))

    class Heads(roi_heads.RoIHeads):  # type: ignore[misc]
        def forward(self, *args: Any) -> Any:
            return super().forward(*args)

    own = tiny_mask_rcnn.build()
    own.roi_heads.__class__ = Heads
    with pytest.raises(TypeError, match=r"model: expected torchvision's RoIHeads.forward, got that of Heads"):
        MaskRCNNPipeline(own)


def test_the_example_of_the_docs(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "inference.md").read_text()
    (block,) = re.findall(r"```py\n(.*?)```", text, re.DOTALL)
    monkeypatch.setattr(detection, "maskrcnn_resnet50_fpn", lambda weights: model)
    names: dict[str, Any] = {"images": pictures(*SIZES)}
    exec(compile(block, "block", "exec"), names)
    assert len(names["found"]["masks"]) == len(names["found"]["boxes"]) > 3


def test_an_image_that_shrinks_to_nothing_is_named(model: Any) -> None:
    images = [*pictures((96, 128)), torch.zeros(3, 1, 900, dtype=torch.uint8)]
    pipeline = MaskRCNNPipeline(model, device_preprocess=True, batch_size=1)
    with pytest.raises(ValueError, match="images: image 1 of 900 x 1 pixels would be resized to nothing"):
        pipeline(images)


@pytest.mark.parametrize(("machine", "fast", "told"), [("x86_64", False, 1), ("x86_64", True, 0), ("arm64", False, 0)])
def test_half_precision_on_a_cpu_that_is_slow_at_it_is_told(
    model: Any, monkeypatch: pytest.MonkeyPatch, machine: str, fast: bool, told: int
) -> None:
    pipelines = importlib.import_module("detops.integrations.torchvision")
    monkeypatch.setattr(pipelines.platform, "machine", lambda: machine)
    monkeypatch.setattr(pipelines, "cpu_multiplies_bfloat16", lambda: fast)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        MaskRCNNPipeline(model)
        MaskRCNNPipeline(model, half=True)
    assert ["many times slower" in str(one.message) for one in found] == [True] * told
