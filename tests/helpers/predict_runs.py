"""Runs as training writes them, with networks whose detections are known, and the command line."""

import json
import math
import time
from pathlib import Path

import torch
from torch import nn
from typer.testing import CliRunner

from detops import cli
from detops.apps.data import shapes
from detops.apps.train import models


class OneBox(nn.Module):
    """Predicts class 1 at cell (6, 4), 8 by 4 cells large, in every image: (8, 8, 40, 24) in pixels of the input."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(2.0))
        self.num_classes = num_classes

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        maps = images.new_zeros(len(images), 1, images.shape[2] // 4, images.shape[3] // 4)
        heatmap = maps.expand(-1, self.num_classes, -1, -1) - 20
        heatmap[:, 1, 4, 6] = self.logit
        wh = torch.cat([maps + 8, maps + 4], 1)
        return heatmap, wh, torch.zeros_like(wh)


class SlowBox(OneBox):
    """Predicts slowly, so that it can be killed meanwhile."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        time.sleep(0.03)
        return super().forward(images)


class NanBox(OneBox):
    """Predicts NaN in bright images."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heatmap, wh, offset = super().forward(images)
        return heatmap, wh.masked_fill(images.amax((1, 2, 3), keepdim=True) > 1, math.nan), offset


class Together(nn.Module):
    """Predicts many boxes, different in each image, with scores that depend on all images of the batch."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.network = models.build("compact", num_classes, width)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heatmap, wh, offset = self.network(images)
        return heatmap + images.mean(), wh, offset


class OneYoloXBox(OneBox):
    """The same, as a raw map at stride 8: 4 by 2 cells around the corner between cells (2, 1) and (3, 2)."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[override]
        height, width = images.shape[2:]
        levels = [images.new_full((len(images), 1, height // s, width // s, 7), -20.0) for s in (8, 16, 32)]
        levels[0][:, 0, 2, 3, :6] = torch.tensor([0, 0, math.log(4), math.log(2), 20, -20])
        levels[0][:, 0, 2, 3, 6] = self.logit
        return levels


class OneGFLBox(OneBox):
    """The same at stride 8: from the corner (24, 16) 2 cells to the left and right, 1 up and down."""

    def forward(  # type: ignore[override]
        self, images: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        height, width = images.shape[2:]
        shapes = [(len(images), height // s, width // s) for s in (8, 16, 32)]
        scores = [images.new_full((b, 2, h, w), -20.0) for b, h, w in shapes]
        sides = [images.new_zeros(b, 68, h, w) for b, h, w in shapes]
        scores[0][:, 1, 2, 3] = self.logit
        for side, bins in enumerate((2, 1, 2, 1)):
            sides[0][:, 17 * side + bins, 2, 3] = 50.0
        return scores, sides


def write_run(run: Path, network: nn.Module, model: str, detector: str = "centernet") -> Path:
    """Write a folder with the configuration and averaged weights of a network for cats and dogs, of 64 by 32 pixels."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    config = {
        "detector": detector, "width": 8, "size": [32, 64], "classes": ["cat", "dog"], "category_ids": [3, 7],
        "model": model,
    }  # fmt: skip
    (run / "config.json").write_text(json.dumps(config))
    state = {f"ema.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": {**state, "network.logit": torch.tensor(-9.0)}}, run / "checkpoints" / "last.ckpt")
    return run


def write_shapes(folder: Path, train: int = 4, val: int = 2) -> Path:
    """Write generated data in the layout of `train --data`; the numbers are those of the images."""
    shapes.generate(folder / "train", images=train, seed=0)
    shapes.generate(folder / "val", images=val, seed=1)
    return folder


def write_video(path: Path, frames: int = 12) -> Path:
    """Write a video of 64 by 32 pixels, in the format of its ending, whose frames are grey: 0, 20, 40, ..."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for number in range(frames):
            frame = np.full((32, 64, 3), 20 * number % 256, np.uint8)
            container.mux([*stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24"))])
        container.mux([*stream.encode()])
    return path


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output
