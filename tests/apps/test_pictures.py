"""Pictures of boxes: small images are enlarged, names are left out in a crowd, and the best detection is on top."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detops.apps import pictures, runs
from detops.apps.data.coco import ImageRecord
from detops.inference.drawing import FAINT, Plates, class_color


def overlaid(boxes: Tensor, side: int = 480) -> NDArray[np.uint8]:
    """Draw boxes of class 0 over a black image without heat."""
    record = ImageRecord(1, "image.png", side, side)
    heat, labels = torch.zeros(1, side // 4, side // 4), torch.zeros(len(boxes), dtype=torch.int64)
    image = Image.new("RGB", (side, side))
    return np.asarray(pictures.overlay(image, heat, boxes, labels, ["a class", "another"], record, 4))


def grid(count: int) -> Tensor:
    """Make boxes of 40 pixels in rows of six, with gaps."""
    corner = torch.stack([torch.arange(count) % 6, torch.arange(count) // 6], 1) * 70 + 30.0
    return torch.cat([corner, corner + 40], 1)


def test_names_are_left_out_in_a_crowd_and_lines_are_faint() -> None:
    color = max(class_color(0))
    named, crowded = overlaid(grid(pictures.CROWD)), overlaid(grid(pictures.CROWD + 1))
    assert named[20:28, 32:60].max(2).mean() > 100  # a plate above the first box
    assert not crowded[20:28, 32:60].any()
    assert named[50, 30].max() == pytest.approx(color * 235 / 255, abs=1)
    assert crowded[50, 30].max() == pytest.approx(color * FAINT / 255, abs=1)


def test_small_images_are_enlarged_and_boxes_with_them() -> None:
    drawn = overlaid(torch.tensor([[20.0, 20, 60, 60]]), side=80)
    assert drawn.shape == (pictures.SHORT_SIDE, pictures.SHORT_SIDE, 3)
    columns, rows = np.nonzero(drawn[300].any(1))[0], np.nonzero(drawn[:, 300].any(1))[0]
    assert columns[[0, -1]].tolist() == rows[[0, -1]].tolist() == [120, 359]
    assert pictures.enlarged(Image.new("RGB", (900, 700))).size == (900, 700)


def test_the_best_detection_is_on_top() -> None:
    """Three boxes at one place, each with an outline and a plate of its own colour."""
    boxes = torch.tensor([[100.0, 100, 300, 300]]).expand(3, 4)
    image, names = Image.new("RGB", (480, 480)), ["a", "b", "c"]
    colors = np.array([class_color(label) for label in range(3)])
    for labels in ([0, 1, 2], [2, 0, 1]):
        found = runs.Found(boxes=boxes, scores=torch.tensor([0.9, 0.5, 0.1]), labels=torch.tensor(labels))
        drawn = np.asarray(runs.draw(image, found, names)).astype(int)
        for pixel in (drawn[200, 100], drawn[86, 101]):  # the outline, the plate's edge
            assert np.abs(colors - pixel).sum(1).argmin() == labels[0]
    assert not np.asarray(image).any()


def test_scores_can_be_left_out() -> None:
    found = runs.Found(torch.tensor([[100.0, 100, 300, 300]]), torch.tensor([0]), torch.tensor([0.9]))
    image = Image.new("RGB", (480, 480))
    widths = [np.asarray(runs.draw(image, found, ["b", "c"], scores))[88:98].any(2).sum() for scores in (True, False)]
    assert widths[0] > widths[1] > 0


def test_the_only_class_is_not_named_and_names_do_not_hide_one_another() -> None:
    image = Image.new("RGB", (480, 480))
    found = runs.Found(torch.tensor([[100.0, 100, 300, 300]]), torch.tensor([0]), torch.tensor([0.9]))
    assert np.asarray(runs.draw(image, found, ["b"]))[88:98].any()  # its score is
    assert not np.asarray(runs.draw(image, found, ["b"], scores=False))[:98].any()
    plates = Plates((200, 100))
    corners = [plates.place((50, 40, 90, 60), 30, 10) for _ in range(5)]
    assert corners == [(50, 30), (50, 40), (50, 60), None, None]
    assert plates.place((190, 0, 200, 20), 30, 10) == (170, 0)


def test_boxes_are_seen_on_white() -> None:
    image = Image.new("RGB", (480, 480), "white")
    found = runs.Found(torch.tensor([[100.0, 100, 300, 300]]), torch.tensor([0]), torch.tensor([0.9]))
    drawn = np.asarray(runs.draw(image, found, ["b"], scores=False)).astype(int)
    assert drawn[200, 99].max() < 160  # dark on either side
    assert drawn[200, 102].max() < 160
