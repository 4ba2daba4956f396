"""`detops predict --mask-rcnn`: instances with their masks, as lines, results and pictures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from predict_runs import call
from tiny_mask_rcnn import build, pictures

from detops import MaskRCNNPipeline
from detops.apps import runs
from detops.apps.predict import mask_rcnn_predictor
from detops.apps.predict import pictures as predict_pictures

image_module = pytest.importorskip("PIL.Image")
mask_module = pytest.importorskip("pycocotools.mask")
np = pytest.importorskip("numpy")

MODEL = ("--mask-rcnn", "tiny_mask_rcnn:build")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five images of several sizes, of which 2.png cannot be decoded."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(pictures((96, 128), (120, 90), (64, 64), (96, 128), (200, 150))):
        image_module.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    (folder / "2.png").write_bytes(b"no image")
    return folder


def read(out: Path) -> list[dict]:
    return list(map(json.loads, (out / "results.jsonl").read_bytes().splitlines()))


@pytest.mark.parametrize("half", [False, True])
def test_lines_are_what_the_pipeline_finds(images: Path, tmp_path: Path, half: bool) -> None:
    options = ("--workers", 0, "--batch-size", 2, *["--half"] * half)
    out = tmp_path / "out"
    code, output = call("predict", images, *MODEL, "--out", out, *options)
    assert code == 1, output
    assert "5 images, 1 of them failed" in output
    lines, good = read(out), [0, 1, 3, 4]
    assert [row for row, line in enumerate(lines) if "error" in line] == [2]
    pipeline = MaskRCNNPipeline(build(), half=half, device_preprocess=True, masks="raw")
    found: dict[int, Any] = {}
    for batch in ([0, 1], [3], [4]):
        views = [image_module.open(images / f"{row}.png") for row in batch]
        found |= dict(zip(batch, pipeline(views), strict=True))
    for row in good:
        expected = found[row]["masks"].to_coco(0)
        assert expected
        assert [{"image_id": 0, **one} for one in lines[row]["detections"]] == expected
        assert (lines[row]["height"], lines[row]["width"]) == found[row]["masks"].image_size
    rows = json.loads((out / "results.json").read_text())
    assert len(rows) == sum(len(lines[row]["detections"]) for row in good)
    assert all({"image_id", "category_id", "bbox", "score", "segmentation"} <= row.keys() for row in rows)


def test_results_are_scored_by_their_masks(images: Path, tmp_path: Path) -> None:
    """The ground truth is the masks themselves."""
    call("predict", images, *MODEL, "--out", tmp_path / "out", "--pictures", 0)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    truth = [
        {**row, "id": number, "area": int(mask_module.area(row["segmentation"])), "iscrowd": 0}
        for number, row in enumerate(rows, 1)
        if mask_module.area(row["segmentation"])
    ]
    records = [
        {"id": line["image_id"], "file_name": line["path"], "width": line["width"], "height": line["height"]}
        for line in read(tmp_path / "out")
        if "error" not in line
    ]
    categories = [{"id": label, "name": f"class {label}"} for label in range(1, 4)]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"images": records, "annotations": truth, "categories": categories}))
    options = ("--results", tmp_path / "out" / "results.json", "--annotations", path, "--json", tmp_path / "s.json")
    code, output = call("evaluate", *options, "--kind", "segm")
    assert code == 0, output
    assert json.loads((tmp_path / "s.json").read_text())["AP"] > 0.99


def test_pictures_show_masks_and_names_of_the_annotations(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pixel in the middle of the best mask is coloured; one outside all masks is unchanged."""
    names, draw = [], predict_pictures.draw_masks

    def remember(*arguments: Any) -> Any:
        names.append(arguments[6])
        return draw(*arguments)

    monkeypatch.setattr(predict_pictures, "draw_masks", remember)
    path = tmp_path / "ids.json"
    categories = [{"id": label, "name": f"thing {label}"} for label in range(1, 4)]
    width, height = image_module.open(images / "4.png").size
    records = [{"id": 4, "file_name": "4.png", "width": width, "height": height}]
    path.write_text(json.dumps({"images": records, "annotations": [], "categories": categories}))
    code, output = call("predict", images / "4.png", *MODEL, "--out", tmp_path / "out", "--annotations", path)
    assert code == 0, output
    assert len(names) == 1
    assert set(names[0].values()) <= {"thing 1", "thing 2", "thing 3"}
    shown = [row for row in read(tmp_path / "out")[0]["detections"] if row["score"] >= 0.3]
    masks = np.stack([mask_module.decode(row["segmentation"]) for row in shown])
    before = np.asarray(image_module.open(images / "4.png").convert("RGB"), dtype=int)
    after = np.asarray(image_module.open(tmp_path / "out" / "images" / "4.jpg"), dtype=int)
    away = np.abs(before - after).max(2)
    assert away[masks.any(0)].mean() > 30
    outside = ~masks.any(0)
    for x, y, w, h in (row["bbox"] for row in shown):  # nor where boxes and names are drawn, and JPEG's blocks beside
        outside[max(0, int(y) - 16) : int(y + h) + 16, max(0, int(x) - 16) : int(x + w) + 16] = False
    assert not outside.any() or away[outside].mean() < 12


def test_a_run_that_was_stopped_goes_on(images: Path, tmp_path: Path) -> None:
    arguments = ("predict", images, *MODEL, "--out", tmp_path / "out", "--batch-size", 2)
    assert call(*arguments)[0] == 1
    whole = (tmp_path / "out" / "results.jsonl").read_bytes()
    (tmp_path / "out" / "results.json").unlink()
    (tmp_path / "out" / "results.jsonl").write_bytes(whole[: len(whole) // 2])
    assert "different half" in call(*arguments, "--resume", "--half")[1]
    assert "different score_thresh" in call(*arguments[:3], "test_predict_masks:strict", *arguments[4:], "--resume")[1]
    assert call(*arguments, "--resume")[0] == 1
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == whole


def strict() -> torch.nn.Module:
    return build(box_score_thresh=0.9)


def no_detector() -> torch.nn.Module:
    return torch.nn.Identity()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected either --run or --mask-rcnn or --query-masks, got neither"),
        ((*MODEL, "--run", "run"), "expected either --run or --mask-rcnn or --query-masks, got both"),
        (("--mask-rcnn", "none.pth"), "none.pth: no such file of weights"),
        (("--mask-rcnn", "tiny_mask_rcnn:none"), "mask-rcnn: cannot import 'tiny_mask_rcnn:none'"),
        (("--mask-rcnn", "tiny_mask_rcnn:pictures"), "detection.MaskRCNN, got list"),
        (("--mask-rcnn", "test_predict_masks:no_detector"), "detection.MaskRCNN, got Identity"),
    ],
)
def test_what_is_no_detector_is_named(images: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    code, output = call("predict", images, *arguments, "--out", tmp_path / "out")
    assert code == 2, output
    assert message in output.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"no weights", "tensor", "other"])
def test_files_that_are_no_weights(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(torch.ones(3) if content == "tensor" else {"a": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"weights.pth: expected weights of torchvision's maskrcnn_resnet50_fpn"):
        mask_rcnn_predictor.load_mask_rcnn(path)


def test_weights_of_any_number_of_classes(tmp_path: Path) -> None:
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    predictor = mask_rcnn_predictor.MaskRCNNPredictor(str(tmp_path / "weights.pth"), False, torch.device("cpu"))
    assert predictor.names == {}
    assert predictor.settings["weights"] == runs.fingerprint(model)


def test_names_of_coco() -> None:
    assert mask_rcnn_predictor.coco_names()[17] == "cat"
    assert len(mask_rcnn_predictor.coco_names()) == mask_rcnn_predictor.COCO_CLASSES
