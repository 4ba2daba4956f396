"""Masks of Transformers' image processors: ours beside their own, on outputs of tiny random models and of noise."""

import copy
import importlib
from types import SimpleNamespace

import pytest
import torch
from loaded_transformers import load

from detops import InstanceMasks
from detops.integrations.transformers import use

transformers = load()

SIZES = [(50, 70), (33, 20)]


def processor(family, module):
    """A processor without its constructor, which needs nothing but sizes here: that of PyTorch, or that of Pillow."""
    try:
        loaded = importlib.import_module(f"transformers.models.{module}.image_processing_{module}")
        made = getattr(loaded, f"{family}ImageProcessor")
    except ImportError as error:
        try:
            loaded = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
        except ImportError:
            pytest.skip(f"needs the image processor of {family}: {error}")
        made = getattr(loaded, f"{family}ImageProcessorPil")
    found = object.__new__(made)
    found.size = {"shortest_edge": 64, "longest_edge": 64}
    return found


def noise(seed, classes=4, queries=6, size=(16, 16)):
    """Outputs of a network that is sure of its classes."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, queries, classes + 1, generator=g) * 4
    coarse = torch.randn(2, queries, 4, 4, generator=g) * 6
    maps = torch.nn.functional.interpolate(coarse, size, mode="bicubic")
    return SimpleNamespace(
        class_queries_logits=logits, masks_queries_logits=maps, logits=logits[..., :-1], pred_masks=maps
    )


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours["segmentation"]) is type(theirs["segmentation"])
        if isinstance(theirs["segmentation"], torch.Tensor):
            assert ours["segmentation"].dtype == theirs["segmentation"].dtype
            assert torch.equal(ours["segmentation"], theirs["segmentation"])
        else:
            assert ours["segmentation"] == theirs["segmentation"]
        assert len(ours["segments_info"]) == len(theirs["segments_info"])
        for mine, other in zip(ours["segments_info"], theirs["segments_info"], strict=True):
            assert {**mine, "score": 0} == {**other, "score": 0}
            assert list(mine) == list(other)
            assert mine["score"] == pytest.approx(other["score"], abs=2e-6)


CASES = [
    ("Mask2Former", "mask2former", [
        dict(target_sizes=SIZES, threshold=0.3), dict(threshold=0.3), dict(target_sizes=SIZES, threshold=1.0),
        dict(target_sizes=SIZES, threshold=0.3, return_binary_maps=True),
        dict(target_sizes=SIZES, threshold=1.0, return_binary_maps=True),
        dict(target_sizes=SIZES, threshold=0.3, return_coco_annotation=True),
    ]),
    ("Eomt", "eomt", [
        dict(target_sizes=SIZES, threshold=0.3), dict(target_sizes=[(64, 64), (20, 90)], threshold=0.3),
        dict(target_sizes=SIZES, threshold=0.3, size={"shortest_edge": 40, "longest_edge": None}),
        dict(target_sizes=SIZES, threshold=1.0),
    ]),
    ("RfDetr", "rf_detr", [
        dict(target_sizes=SIZES), dict(), dict(target_sizes=SIZES, threshold=0.9, top_k=3),
        dict(target_sizes=SIZES, mask_threshold=0.5, return_binary_maps=True),
        dict(target_sizes=SIZES, return_coco_annotation=True), dict(target_sizes=SIZES, threshold=1.0),
        dict(target_sizes=SIZES, threshold=1.0, return_binary_maps=True),
        dict(target_sizes=SIZES, threshold=1.0, return_coco_annotation=True),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "module", "options"), [(family, module, one) for family, module, rows in CASES for one in rows]
)
def test_results_are_theirs(family, module, options):
    theirs = processor(family, module)
    ours = use(copy.copy(theirs))
    assert type(ours) is not type(theirs)
    assert isinstance(ours, type(theirs))
    assert type(ours).__name__ == type(theirs).__name__
    found = 0
    for seed in range(3):
        outputs = noise(seed)
        expected = theirs.post_process_instance_segmentation(outputs, **options)
        assert_same(ours.post_process_instance_segmentation(outputs, **options), expected)
        found += sum(len(one["segments_info"]) for one in expected)
    assert (found > 0) == (options.get("threshold", 0.5) < 1)


@pytest.mark.parametrize(("family", "module"), [(family, module) for family, module, _ in CASES])
def test_instances_are_the_same_masks(family, module):
    ours = use(processor(family, module))
    found = ours.post_process_instance_segmentation(noise(1), target_sizes=SIZES, threshold=0.3, return_instances=True)
    plain = ours.post_process_instance_segmentation(noise(1), target_sizes=SIZES, threshold=0.3)
    for instances, one, size in zip(found, plain, SIZES, strict=True):
        assert isinstance(instances, InstanceMasks)
        assert instances.image_size == size
        painted = instances.paste().any(0)
        assert torch.equal(painted, one["segmentation"] >= 0)


def test_outputs_of_tiny_random_models():
    torch.manual_seed(0)
    backbone = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_layers=1,
        encoder_feedforward_dim=16, dim_feedforward=16, decoder_layers=2, num_attention_heads=2, num_queries=5,
        num_labels=3,
    )  # fmt: skip
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        outputs = model(torch.randn(2, 3, 64, 64))
    theirs = processor("Mask2Former", "mask2former")
    ours = use(copy.copy(theirs))
    options = dict(target_sizes=SIZES, threshold=0.0)
    expected = theirs.post_process_instance_segmentation(outputs, **options)
    assert_same(ours.post_process_instance_segmentation(outputs, **options), expected)


@pytest.mark.parametrize(("family", "module"), [("Mask2Former", "mask2former"), ("RfDetr", "rf_detr")])
def test_both_forms_at_once_are_refused(family, module):
    changed = use(processor(family, module))
    with pytest.raises(ValueError, match="both"):
        changed.post_process_instance_segmentation(noise(0), return_coco_annotation=True, return_binary_maps=True)
