"""`detops predict --query-masks`: instances of a tiny random RF-DETR, as lines and results, and their evaluation."""

import json
from pathlib import Path

import pytest
import torch
from predict_runs import call
from tiny_query_masks import build

from detops import decode_query_masks, preprocess
from detops.apps.data.dataset import MEAN, STD

image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("pycocotools.mask")

MODEL = ("--query-masks", "tiny_query_masks:build")
SIZES = ((50, 70), (64, 64), (90, 40))  # height, width


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    g = torch.Generator().manual_seed(0)
    for index, size in enumerate(SIZES):
        coarse = torch.rand(1, 3, 4, 4, generator=g)
        pixels = (torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0] * 255).to(torch.uint8)
        image_module.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    return folder


def test_lines_are_the_networks_instances_and_evaluate_reads_them(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output = call("predict", images, *MODEL, "--out", out, "--workers", 0, "--batch-size", 2, "--pictures", 1)
    assert code == 0, output
    assert (out / "images" / "0.jpg").is_file()
    lines = list(map(json.loads, (out / "results.jsonl").read_bytes().splitlines()))
    network = build()
    annotations = []
    for index, (line, size) in enumerate(zip(lines, SIZES, strict=True)):
        image = image_module.open(images / f"{index}.png")
        batch = preprocess([image], (64, 64), mean=MEAN, std=STD, keep_ratio=False, pad_divisor=1, antialias=True)
        with torch.no_grad():
            found = network(batch.images)
        (instances,) = decode_query_masks(found.logits, found.pred_masks, found.pred_boxes, [size])
        expected = instances.to_coco(0)
        assert len(line["detections"]) == len(expected) == 15
        ours = {one["segmentation"]["counts"] for one in line["detections"]}
        assert len(ours & {one["segmentation"]["counts"] for one in expected}) >= len(ours) - 2  # batches may round
        best = line["detections"][0]
        annotations.append(
            {"id": index + 1, "image_id": line["image_id"], "category_id": best["category_id"], "iscrowd": 0,
             "bbox": best["bbox"], "area": 1, "segmentation": best["segmentation"]}
        )  # fmt: skip
    data = {
        "images": [
            {"id": line["image_id"], "file_name": f"{i}.png", "height": size[0], "width": size[1]}
            for i, (line, size) in enumerate(zip(lines, SIZES, strict=True))
        ],
        "annotations": annotations,
        "categories": [{"id": label, "name": str(label)} for label in range(3)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(data))
    code, output = call(
        "evaluate", "--results", out / "results.json", "--annotations", tmp_path / "truth.json", "--kind", "segm",
        "--json", tmp_path / "scores.json",
    )  # fmt: skip
    assert code == 0, output
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert "AP" in json.dumps(scores)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_query_masks:none", "query-masks: cannot import"),
        ("tiny_query_masks:no_network", "expected a torch.nn.Module, got int"),
        ("tiny_query_masks:without_size", "image_size"),
        ("tiny_query_masks:WithoutMasks", "expected outputs with pred_masks"),
        ("weights.pth", "query-masks: expected"),
    ],
)
def test_models_that_do_not_fit_are_refused(images: Path, tmp_path: Path, name: str, message: str) -> None:
    code, output = call("predict", images, "--query-masks", name, "--out", tmp_path / "out", "--workers", 0)
    assert code == 2, output
    assert message in " ".join(output.split())
