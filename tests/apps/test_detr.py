"""The compact DETR of `detops train`: its parts, its losses and boxes, and a run from training to predictions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from detops import GroundTruth, cli
from detops.apps.data.dataset import Batch
from detops.apps.train import families, models
from detops.apps.train.detr import DeformableAttention

SHAPE = (96, 128)
SHAPES = [(12, 16), (6, 8), (3, 4)]


def batch(boxes: list[list[float]], labels: list[int]) -> Batch:
    truth = GroundTruth.from_boxes(
        [torch.tensor(boxes, dtype=torch.float32).view(-1, 4)], [torch.tensor(labels, dtype=torch.int64)]
    )
    return Batch(torch.zeros(1, 3, *SHAPE), truth, torch.arange(1))


def test_every_parameter_is_trained_by_the_losses_of_a_batch() -> None:
    torch.manual_seed(0)
    network, kind = models.build("compact", 3, 8, "detr"), families.family("detr", 3)
    logits, boxes, dense_logits, dense_boxes = network(torch.randn(1, 3, *SHAPE))
    cells = sum(h * w for h, w in SHAPES)
    assert logits.shape == (1, 3, 100, 3)
    assert boxes.shape == (1, 3, 100, 4)
    assert dense_logits.shape == (1, cells, 3)
    assert dense_boxes.shape == (1, cells, 4)
    assert ((boxes > 0) & (boxes < 1)).all()
    best = dense_logits[0].amax(1).topk(100).indices
    # What the first layer moves is the box of each of the best cells; before training it moves nothing.
    torch.testing.assert_close(boxes[0, 0], dense_boxes[0, best], rtol=0, atol=2e-4)
    with torch.no_grad():
        for parameter in network.parameters():  # some begin at zero, and nothing behind them has a gradient
            parameter.add_(0.05 * torch.randn_like(parameter))
    data = batch([[8, 8, 40, 60], [64, 32, 100, 90]], [0, 2])
    total, parts = kind.losses(list(network(torch.randn(1, 3, *SHAPE))), data, SHAPE)
    torch.testing.assert_close(total, sum(parts.values()))
    total.backward()
    still = {name for name, parameter in network.named_parameters() if not parameter.grad.any()}
    assert all(name.startswith("heads.") for name in still), still  # of levels that no box is matched at
    assert {name.split(".")[1] for name in still} < {"0", "1", "2"}
    assert network.eval()(torch.randn(1, 3, 32, 32))[0].shape[2] == 16 + 4 + 1  # all the cells there are


def test_attention_looks_around_the_middle_of_the_box() -> None:
    """On maps of x and y: a point's offset is in halves of the box, and every level counts as much."""
    torch.manual_seed(0)
    attention = DeformableAttention(4, 2, 3)
    for layer in (attention.value, attention.out):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    places = []
    for height, width in SHAPES:
        y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        places.append(torch.stack([x, y, x, y], -1).flatten(0, 1))
    memory, boxes = torch.cat(places)[None], torch.tensor([[[0.5, 0.4, 0.2, 0.1], [0.3, 0.6, 0.1, 0.3]]])
    with torch.no_grad():
        seen = attention(torch.zeros(1, 2, 4), boxes, memory, SHAPES)
        # The two heads begin to the right and to the left, at 1/4 .. 4/4 of half the width.
        reach = boxes[..., 2] / 2 * 0.625
        wanted = torch.stack([boxes[..., 0] + reach, boxes[..., 1], boxes[..., 0] - reach, boxes[..., 1]], -1)
        torch.testing.assert_close(seen, wanted, rtol=0, atol=1e-5)
        attention.weight.bias.view(2, 3, 4)[:, :, 3] = 50.0  # the last point of each level alone
        seen = attention(torch.zeros(1, 2, 4), boxes, memory, SHAPES)
        torch.testing.assert_close(seen[..., 0], boxes[..., 0] + boxes[..., 2] / 2, rtol=0, atol=1e-5)


def test_boxes_are_shares_of_the_batch_s_shape() -> None:
    """What predicts the boxes exactly loses nothing by them, and is decoded to them."""
    data, kind = batch([[32, 24, 64, 72], [0, 0, 32, 24]], [1, 0]), families.family("detr", 2)
    boxes = torch.tensor([[0.375, 0.5, 0.25, 0.5], [0.125, 0.125, 0.25, 0.25], [0.5, 0.5, 0.9, 0.9]])
    logits = torch.tensor([[-9.0, 4.0], [3.0, -9.0], [-9.0, -9.0]])
    outputs = [logits.expand(1, 3, 3, 2), boxes.expand(1, 3, 3, 4), logits[None], boxes[None]]
    _, parts = kind.losses(outputs, data, SHAPE)
    assert all(parts[f"loss_{name}"] < 1e-5 for name in ("bbox", "giou", "bbox_enc", "giou_enc"))
    found = kind.decode(outputs, SHAPE)
    assert found.labels[0, :2].tolist() == [1, 0]
    torch.testing.assert_close(found.boxes[0, :2], data.targets.boxes[0])
    maps, stride, _ = kind.picture(outputs, data, SHAPE)
    assert maps.shape == (1, 2, 12, 16)
    assert maps.nonzero()[:, 1:].tolist() == [[0, 1, 2], [1, 6, 6]]
    assert maps[0, 1, 6, 6] == torch.tensor(4.0).sigmoid()
    assert stride == 8
    assert kind.picture(outputs, batch([], []), SHAPE)[0].sum() == 0
    total, _ = kind.losses(outputs, batch([], []), SHAPE)
    assert total.isfinite()


@pytest.mark.slow
def test_a_run_is_trained_evaluated_and_predicts(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    pytest.importorskip("pycocotools")
    from detops.apps.data import shapes

    shapes.generate(tmp_path / "train", images=4, seed=0)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    out = tmp_path / "run"

    def call(*arguments: object) -> None:
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output

    call("train", "--data", tmp_path, "--out", out, "--detector", "detr", "--width", 8, "--size", "128x96", "--epochs",
         40, "--batch-size", 4, "--lr", 4e-3, "--eval-every", 40, "--precision", "32-true")  # fmt: skip
    rows: list[dict[str, Any]] = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, last = (row["losses"] for row in rows if "losses" in row)  # means of twenty steps each
    assert {name.removesuffix("_enc") for name in first} == {"loss_cls", "loss_bbox", "loss_giou"}
    assert len(first) == 6
    assert sum(last.values()) < 0.97 * sum(first.values())
    scores = rows[-1]["scores"]
    call("evaluate", out)
    assert json.loads((out / "evaluation.json").read_text())["AP"] == pytest.approx(scores["AP"], abs=1e-6)
    call("predict", tmp_path / "val" / "images", "--run", out, "--out", tmp_path / "out")
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 4
