"""Backbones of timm, tiny and without published weights: features, normalisation, frozen stages, whole trainings."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import loaded_timm
import pytest
import torch
from predict_runs import call, write_shapes
from rich.console import Console
from torch import Tensor

from detops.apps import runs
from detops.apps.train import models
from detops.apps.train.augment import Augmentation
from detops.apps.train.backbones import TimmBackbone
from detops.apps.train.settings import Data, Hardware, Network, Settings

timm = loaded_timm.load()
pytest.importorskip("lightning")
pytest.importorskip("pycocotools")
pytest.importorskip("PIL.Image")
train = pytest.importorskip("detops.apps.train.train")
pytestmark = pytest.mark.usefixtures("without_reports")

# A ResNet, a network of channels last, one with mean and deviation of its own, and a ViT of a fixed size.
NAMES = ("test_resnet", "test_mambaout", "test_convnext", "test_vit")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data"), 8, 2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a model with weights, as timm reads them from a disk or a hub."""
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(7)
    model = timm.create_model("test_byobnet")
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), root / "pytorch_model.bin")
    config = {"architecture": "test_byobnet", "pretrained_cfg": {"num_classes": 1000, "mean": [0.5, 0.4, 0.3]}}
    (root / "config.json").write_text(json.dumps(config))
    return root


def run(out: Path, folder: Path, resume: bool = False, epochs: int = 2, **network: Any) -> dict[str, Any]:
    still = Augmentation(False, False, 0.3, 0.0, 0.0)
    return train.run(
        out,
        data=Data.from_folder(folder),
        network=Network(width=8, size=(96, 128), **network),
        settings=Settings(epochs, 4, log_every=1, eval_every=9, save_every=3, augmentation=still),
        hardware=Hardware("32-true", accelerator="cpu"),
        resume=resume,
        console=Console(quiet=True),
    )


def state(run: Path, part: str = "network.backbone.body.") -> dict[str, Tensor]:
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name.removeprefix(part): value for name, value in saved.items() if name.startswith(part)}


@pytest.mark.parametrize("name", NAMES)
def test_features_have_the_strides_of_the_pyramid(name: str) -> None:
    backbone = TimmBackbone(name)
    for height, width in ((64, 128), (96, 32)):
        levels = backbone.train(name != "test_resnet")(torch.randn(2, 3, height, width))
        shapes = [(2, c, height // s, width // s) for c, s in zip(backbone.channels, (4, 8, 16, 32), strict=True)]
        assert [tuple(level.shape) for level in levels] == shapes


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_timm_for_its_own_normalisation(name: str) -> None:
    backbone = TimmBackbone(name).eval()
    pixels = torch.randint(0, 256, (1, 3, 64, 64)).float()
    ours = [torch.tensor(v)[:, None, None] for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))]
    known = backbone.body.pretrained_cfg  # of images from 0 to 1
    mean, std = (torch.tensor(known[key])[:, None, None] for key in ("mean", "std"))
    assert (name in ("test_resnet", "test_convnext", "test_vit")) == (known["mean"] == (0.5, 0.5, 0.5))
    with torch.no_grad():
        found = backbone((pixels - ours[0]) / ours[1])
        levels = backbone.body((pixels / 255 - mean) / std)
    if name == "test_mambaout":
        levels = [level.permute(0, 3, 1, 2) for level in levels]
    if name == "test_vit":  # one level, of stride 16
        torch.testing.assert_close(found[2], levels[-1], atol=1e-4, rtol=1e-4)
        assert torch.equal(found[0][..., ::4, ::4], found[2])
        torch.testing.assert_close(found[3].mean((2, 3)), found[2].mean((2, 3)))
    else:
        for ours_, theirs in zip(found, levels[-4:], strict=True):
            torch.testing.assert_close(ours_, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stages", range(5))
def test_frozen_stages_are_those_before_a_stride(stages: int) -> None:
    backbone = TimmBackbone("test_resnet", frozen_stages=stages).train()
    names = {name.split(".")[0] for name, value in backbone.body.named_parameters() if not value.requires_grad}
    order = [{"conv1", "bn1", "layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]
    assert names == set().union(*order[:stages])
    norms = {
        name.split(".")[0]: module.training
        for name, module in backbone.body.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    }
    assert norms == {name: name not in names for name in norms}
    assert all(module.training for module in backbone.body.modules()) == (stages == 0)
    before = {name: value.clone() for name, value in backbone.body.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64))
    changed = {name.split(".")[0] for name, value in backbone.body.named_buffers() if not value.equal(before[name])}
    assert changed == set(norms) - names


@pytest.mark.parametrize("detector", ["centernet", "yolox", "gfl", "tal", "detr"])
def test_every_detector_stands_on_it(detector: str) -> None:
    kind_of = {
        "centernet": lambda found: found,
        "yolox": lambda found: found,
        "gfl": lambda found: found[0],
        "tal": lambda found: [*found[0], *found[3]],
        "detr": lambda found: found,
    }
    network = models.build("compact", 3, 8, detector, backbone="timm:test_efficientnet")
    compact = models.build("compact", 3, 8, detector)
    images = torch.randn(2, 3, 64, 96)
    ours, theirs = (kind_of[detector](n(images)) for n in (network, compact))
    assert [level.shape for level in ours] == [level.shape for level in theirs]
    sum(level.float().square().mean() for level in ours).backward()
    backbone = network.many.backbone if detector == "tal" else network.backbone
    assert all(p.grad is not None for p in backbone.body.parameters())


@pytest.mark.slow
def test_a_run_keeps_its_backbone(tmp_path: Path, folder: Path) -> None:
    scores = run(tmp_path / "run", folder, backbone="timm:test_resnet")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["backbone"], config["pretrained"], config["frozen_stages"]) == ("timm:test_resnet", False, 0)
    code, output = call("evaluate", tmp_path / "run")
    assert code == 0, output
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["AP"] == pytest.approx(scores["AP"], abs=1e-6)
    code, output = call("predict", folder / "val" / "images", "--run", tmp_path / "run", "--out", tmp_path / "out")
    assert code == 0, output
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 2
    assert run(tmp_path / "run", folder, resume=True) == scores  # nothing is left to do
    # Configurations of versions that had one backbone do not name it.
    other = tmp_path / "other"
    run(other, folder, epochs=1)
    old = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({name: old[name] for name in old if name not in {
        "backbone", "pretrained", "frozen_stages"}}))  # fmt: skip
    assert isinstance(runs.load(other, torch.device("cpu"))[0], models.CompactNet)
    assert train.from_config(runs.read_config(other))[1] == Network(width=8, size=(96, 128))


@pytest.mark.slow
def test_a_student_learns_from_a_teacher_of_timm(tmp_path: Path, folder: Path) -> None:
    run(tmp_path / "large", folder, epochs=1, detector="gfl", backbone="timm:test_convnext")
    run(tmp_path / "small", folder, epochs=1, detector="ld", backbone="timm:test_vit", teacher=tmp_path / "large")
    losses = [
        json.loads(line).get("losses") for line in (tmp_path / "small" / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(row["loss_ld"] > 0 for row in losses if row)


@pytest.mark.slow
def test_pretrained_weights_start_a_training_and_frozen_ones_stay(
    tmp_path: Path, folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: dict[str, Any] = dict(backbone=f"timm:local-dir:{weights}", pretrained=True, frozen_stages=2)
    copied, kept = tmp_path / "cut", train.DetectorModule.save

    def save(module: Any, last: bool) -> None:
        kept(module, last)
        if module.trainer.global_step == 3:
            shutil.copytree(tmp_path / "run", copied)

    monkeypatch.setattr(train.DetectorModule, "save", save)
    run(tmp_path / "run", folder, **chosen)
    start = TimmBackbone(f"local-dir:{weights}", pretrained=True)
    published = torch.load(weights / "pytorch_model.bin", weights_only=True)
    begun, ended = start.body.state_dict(), state(tmp_path / "run")
    assert torch.equal(begun["stem.conv.weight"], published["stem.conv.weight"])
    assert torch.equal(start.shift.flatten(), (torch.tensor([123.675, 116.28, 103.53]) - 255 * torch.tensor(
        [0.5, 0.4, 0.3])) / (255 * torch.tensor(start.body.pretrained_cfg["std"])))  # fmt: skip
    changed = {name.split(".")[0] for name in begun if not torch.equal(begun[name], ended[name])}
    assert changed == {"stages_2", "stages_3"}
    # A training that goes on, and an evaluation, need the folder for the model, but no weights.
    (weights / "pytorch_model.bin").rename(tmp_path / "away")
    monkeypatch.setattr(train.DetectorModule, "save", kept)
    try:
        run(copied, folder, resume=True)
        ours, theirs = state(copied, ""), state(tmp_path / "run", "")
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        with pytest.raises(ValueError, match=r"cannot make 'local-dir.*' with pretrained weights as a backbone"):
            TimmBackbone(f"local-dir:{weights}", pretrained=True)
    finally:
        (tmp_path / "away").rename(weights / "pytorch_model.bin")


def test_the_command_names_what_is_wrong(tmp_path: Path, folder: Path) -> None:
    for arguments, message in (
        (("--backbone", "resnet18"), 'backbone: expected "compact" or "timm:NAME", got \'resnet18\''),
        (("--backbone", "timm:"), 'backbone: expected "compact" or "timm:NAME", got \'timm:\''),
        (("--backbone", "timm:test_resnt"), "backbone: timm has no model 'test_resnt'; it has test_resnet"),
        (("--backbone", "timm:test_resnet.nobody"), "Invalid pretrained tag (nobody)"),
        (("--backbone", "timm:levit_128s"), "levit_128s does not take images of 96x64"),
        (("--backbone", "timm:test_resnet", "--frozen-stages", 2), "frozen-stages: expected --pretrained"),
        (("--pretrained",), "belong to timm:NAME, got compact"),
        (("--backbone", "timm:test_resnet", "--model", "math:sin"), "backbone: belongs to the model compact"),
    ):
        code, output = call("train", "--data", folder, "--out", tmp_path / "o", *arguments)
        assert code == 2, output
        assert message in output
    with pytest.raises(ValueError, match=r"expected 0 or 4, as timm's test_vit"):
        TimmBackbone("test_vit", frozen_stages=1)
    with pytest.raises(ValueError, match=r"expected features at strides of 4, 8, 16 or 32, got \[14"):
        TimmBackbone("vit_small_patch14_dinov2")


def test_without_timm_the_extra_is_named(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    code, output = call("train", "--data", folder, "--out", tmp_path / "o", "--backbone", "timm:resnet18")
    assert code == 2
    assert 'detops needs timm: pip install "detops[timm]"' in output
