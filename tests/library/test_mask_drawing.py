"""InstanceMasks.draw, and the boxes and names that every picture is drawn with."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from mask_scenes import full_masks, round_masks
from numpy.typing import NDArray
from PIL import Image

from detops import InstanceMasks
from detops.inference.drawing import Pen, class_color

Pixels = NDArray[np.uint8]


@pytest.fixture
def background() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)


def black(height: int = 120, width: int = 200) -> Pixels:
    return np.zeros((height, width, 3), np.uint8)


def test_draw_touches_only_boxes(background: Pixels) -> None:
    found = round_masks(20)
    found = found[int(found.areas().argmax())]
    drawn = np.asarray(found.draw(background))
    x1, y1, x2, y2 = found.boxes[0].tolist()
    touched = np.argwhere((drawn != background).any(2))
    assert len(touched) > 100
    assert touched[:, 0].min() >= np.floor(y1) and touched[:, 0].max() <= np.ceil(y2)  # noqa: PT018
    assert touched[:, 1].min() >= np.floor(x1) and touched[:, 1].max() <= np.ceil(x2)  # noqa: PT018
    inside = found.paste(0).numpy()
    assert (drawn != background).any(2)[inside].mean() > 0.95


def test_draw_colours_the_mask(background: Pixels) -> None:
    """Away from lines and names, a pixel is half the picture and half the colour of the instance, or of the class."""
    found = full_masks([[-500.0, -500, 700, 700]], (120, 200))
    found.labels[0] = 7
    for color_by, number in (("instance", 0), ("class", 7)):
        pixel = np.asarray(found.draw(background, opacity=0.5, color_by=color_by))[110, 190]
        assert np.abs(pixel - (background[110, 190] / 2 + np.array(class_color(number)) / 2)).max() <= 1.5
    with pytest.raises(ValueError, match='color_by: expected "instance" or "class", got \'label\''):
        found.draw(background, color_by="label")
    assert (np.asarray(found.draw(background, opacity=0))[110, 190] == background[110, 190]).all()


def test_masks_of_one_class_have_colours_of_their_own() -> None:
    """Two dogs that overlap are two, in mask, outline and name."""
    boxes = torch.tensor([[10.0, 10, 110, 110], [60.0, 10, 190, 110]])
    found = InstanceMasks(boxes, torch.tensor([4, 4]), torch.tensor([0.9, 0.8]), torch.ones(2, 28, 28), (120, 200))
    drawn = np.asarray(found.draw(black(), opacity=1))
    assert tuple(drawn[90, 80]) == tuple(drawn[90, 30]) == class_color(0)  # the better one is on top
    assert tuple(drawn[90, 150]) == class_color(1)
    assert np.abs(np.array(class_color(0)) - class_color(1)).max() > 60
    drawn = np.asarray(found.draw(black(), opacity=1, color_by="class"))
    assert tuple(drawn[90, 30]) == tuple(drawn[90, 150]) == class_color(4)


def test_no_name_hides_another() -> None:
    """Of two boxes in one place the better has its name in the first corner, the other in the next."""
    boxes, masks = torch.tensor([[10.0, 10, 190, 110]]).expand(2, 4), torch.zeros(2, 28, 28)
    found = InstanceMasks(boxes, torch.tensor([0, 0]), torch.tensor([0.8, 0.9]), masks, (120, 200))
    drawn = np.asarray(found.draw(black(), class_names=["dog"])).astype(int)
    left, right = drawn[12:24, 12:50].reshape(-1, 3), drawn[12:24, 150:188].reshape(-1, 3)
    for plate, number in ((left, 1), (right, 0)):
        own = np.abs(plate - np.array(class_color(number)) * 215 / 255).max(1) <= 2
        assert own.mean() > 0.4


def test_draw_has_the_best_on_top_whatever_their_order() -> None:
    boxes, masks = torch.tensor([[10.0, 10, 180, 110]]).expand(3, 4), torch.ones(3, 28, 28)
    for scores in ([0.9, 0.5, 0.1], [0.1, 0.9, 0.5], [float("nan"), 0.1, 0.9]):
        found = InstanceMasks(boxes, torch.arange(3), torch.tensor(scores), masks, (120, 200))
        pixel = np.asarray(found.draw(black(), opacity=1))[90, 150]
        assert tuple(pixel) == class_color(scores.index(0.9))


def drawn_box(box: list[float], **options: Any) -> NDArray[np.int64]:
    """Draw a box of class 2 with an empty mask on black."""
    found = InstanceMasks(torch.tensor([box]), torch.tensor([2]), torch.ones(1), torch.zeros(1, 28, 28), (120, 200))
    return np.asarray(found.draw(black(), **options)).astype(np.int64)


def test_draw_outlines_boxes_and_names_them_where_there_is_room() -> None:
    color = np.array(class_color(0))
    drawn = drawn_box([20.0, 30, 180, 100])
    for outline in (drawn[99, 20:180], drawn[60:100, 20], drawn[60:100, 179]):
        assert np.abs(outline - color * 235 / 255).max() <= 2
    assert not drawn[60:99, 21:179].any()
    plate = drawn[31:50, 21:80]
    assert (plate.max(2) > 150).sum() > 100
    assert ((plate.max(2) < 60) & plate.any(2)).any()  # ink
    longer = drawn_box([20.0, 30, 180, 100], class_names=["", "", "a longer name"])
    assert longer[31:45, 21:179].any(2).sum() > drawn[31:45, 21:179].any(2).sum()
    assert not drawn_box([20.0, 30, 30, 38])[31:37, 21:29].any()  # no room


def test_draw_names_boxes_that_begin_outside(background: Pixels) -> None:
    """The name's plate is moved into the picture, to its corner."""
    boxes = torch.tensor([[-30.0, -30, 150, 100]])
    found = InstanceMasks(boxes, torch.tensor([7]), torch.ones(1), torch.zeros(1, 28, 28), (120, 200))
    touched = (np.asarray(found.draw(background)) != background).any(2)
    assert touched[:12, :12].mean() > 0.9
    assert not touched[20:90, :140].any()


def test_draw_takes_images_and_arrays(background: Pixels) -> None:
    found = round_masks(5)
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
def test_draw_refuses_a_label_without_a_name(background: Pixels, label: int) -> None:
    """A negative label would otherwise get the last name."""
    found = round_masks(5)
    found.labels[3] = label
    with pytest.raises(ValueError, match=rf"labels: expected 0 \.\. 4, one per class name, got {label}"):
        found.draw(background, class_names=["a", "b", "c", "d", "e"])
    found.draw(background)


def test_without_pillow(monkeypatch: pytest.MonkeyPatch, background: Pixels) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ModuleNotFoundError, match=r'draw\(\) needs Pillow: pip install "detops\[train\]"'):
        round_masks(1).draw(background)


def lit(picture: Image.Image) -> NDArray[np.bool_]:
    """Return which pixels are not black."""
    found: NDArray[np.bool_] = np.asarray(picture).max(2) > 0
    return found


def named(box: tuple[float, float, float, float], inside: bool = False) -> NDArray[np.bool_]:
    """Return the pixels of a name's plate at a box, without the box."""
    picture = Image.fromarray(black())
    Pen(picture).name("a name", box, 0, inside=inside)
    return lit(picture)


def test_a_name_is_above_its_box_where_there_is_room() -> None:
    above = named((50, 60, 150, 110))
    assert above[50:60, 52:60].all()
    assert not above[62:].any()
    below = named((50, 5, 150, 110))  # no room above
    assert below[5:15, 52:60].all()
    assert not below[:5].any()
    right = named((190, 60, 199, 110))  # moved to the left, up to the image's edge
    assert right[50:60, 160:199].all()
    inside = named((50, 60, 150, 110), inside=True)
    assert inside[60:70, 52:60].all()
    assert not inside[:60].any()
    assert not named((50, 60, 70, 110), inside=True).any()


def test_lines_grow_with_the_image_and_faint_ones_do_not() -> None:
    def width(height: int, faint: bool) -> int:
        picture = Image.fromarray(black(height, height))
        Pen(picture).outline((10, 10, height - 10, height - 10), 0, faint=faint)
        row = np.asarray(picture)[height // 2, : height // 2]
        assert row.max() == pytest.approx(max(class_color(0)) * (130 if faint else 235) / 255, abs=1)
        return int(row.any(1).sum())

    assert [width(height, faint=False) for height in (120, 600, 1200)] == [1, 2, 4]
    assert [width(height, faint=True) for height in (120, 600, 1200)] == [1, 1, 1]


def test_boxes_beyond_the_image_are_cut() -> None:
    """Pillow takes coordinates of 32 bits; a side beyond the image shows no line."""
    picture = Image.fromarray(black())
    Pen(picture).outline((-1e12, 20, 1e12, 1e12), 0)
    drawn = lit(picture)
    assert drawn[20].all()
    assert not drawn[21:].any()


def test_neighbouring_classes_differ_in_colour() -> None:
    colors = torch.tensor([class_color(label) for label in range(30)]).float()
    assert (colors[1:] - colors[:-1]).norm(dim=1).min() > 60
    assert len({class_color(label) for label in range(80)}) == 80


def test_instances_of_one_class_are_told_apart_by_their_edges() -> None:
    boxes = torch.tensor([[20.0, 20, 120, 100], [80.0, 40, 180, 110]])
    found = InstanceMasks(
        boxes, torch.tensor([2, 2]), torch.tensor([0.5, 0.9]), torch.full((2, 28, 28), 9.0), (120, 200)
    )
    row = np.asarray(found.draw(black(), opacity=0.5))[90, 60:110].astype(int).sum(1)
    assert row[18:24].min() < row[10]  # the edge of the upper one, on the lower one
    assert row[45] == pytest.approx(row[10], rel=0.6)
