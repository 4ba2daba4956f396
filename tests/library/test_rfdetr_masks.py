"""detops.integrations.rfdetr: the masks of rfdetr's own post-processing, run beside it."""

import importlib

import loaded_torchvision
import pytest
import torch

from detops.integrations import rfdetr as ours

loaded_torchvision.load()
try:
    theirs = importlib.import_module("rfdetr.models.postprocess")
except ImportError as error:
    pytest.skip(f"needs rfdetr: {error}", allow_module_level=True)


def outputs(seed):
    g = torch.Generator().manual_seed(seed)
    maps = torch.nn.functional.interpolate(torch.randn(2, 7, 4, 4, generator=g), (20, 20), mode="bicubic")
    return {
        "pred_logits": torch.randn(2, 7, 3, generator=g), "pred_boxes": torch.rand(2, 7, 4, generator=g),
        "pred_masks": maps,
    }  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"score_threshold": 0.6}, {"score_threshold": 1.0}])
@pytest.mark.parametrize("upsample", [True, False])
def test_masks_are_theirs(options, upsample):
    made = dict(num_select=12, upsample_masks_to_image_size=upsample)
    plain = theirs.PostProcess(**made)
    changed = ours.use(theirs.PostProcess(**made))
    assert type(changed) is ours.PostProcess
    for seed in range(3):
        sizes = torch.tensor([[70, 90], [33, 140]])
        for found, expected in zip(
            changed(outputs(seed), sizes, **options), plain(outputs(seed), sizes, **options), strict=True
        ):
            assert list(found) == list(expected)
            for name, value in expected.items():
                assert found[name].dtype == value.dtype
                assert torch.equal(found[name], value)


def test_an_owner_changes_its_parts():
    class Owner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.postprocess = theirs.PostProcess()

    criterion = importlib.import_module("rfdetr.models.criterion")
    matcher = importlib.import_module("rfdetr.models.matcher")
    owner = Owner()
    owner.criterion = criterion.SetCriterion(3, matcher.HungarianMatcher(), {}, 0.25, ["labels"])
    ours.use(owner)
    assert type(owner.postprocess) is ours.PostProcess
    assert type(owner.criterion) is ours.SetCriterion
