"""Losses whose op computes the gradient too: `torch.func` works, and no derivative is silently wrong."""

import pytest
import torch

import detops

CLASSES, STRIDES = 3, (8, 16)
BOXES = torch.tensor([[[4.0, 4, 40, 40]], [[8.0, 8, 30, 60]]])
LABELS = torch.tensor([[0], [2]])


def focal(maps):
    target = torch.zeros_like(maps[0])
    target[0, 0, 3, 3], target[0, 0, 3, 4] = 1, 0.5
    return detops.gaussian_focal_loss(maps[0], target, from_logits=True, avg_factor=2)


def focal_from_boxes(maps):
    cells = torch.tensor([[[3, 3]], [[5, 2]]])
    return detops.gaussian_focal_loss_from_boxes(maps[0], cells, torch.tensor([[1], [2]]), LABELS, avg_factor=2)


def centernet(maps):
    return sum(detops.CenterNetLoss(CLASSES)(*maps, (BOXES, LABELS), (64, 64)).values())


def yolox(maps):
    return sum(detops.YOLOXLoss(CLASSES, STRIDES)(maps, (BOXES, LABELS)).values())


def gfl(maps):
    return sum(detops.GFLLoss(CLASSES, strides=STRIDES)(maps[:2], maps[2:], (BOXES, LABELS)).values())


def ld(maps):
    soft = [level.detach().flip(1) for level in maps[2:]]
    criterion = detops.LDLoss(CLASSES, strides=STRIDES, ld_region="main+vlr")
    return sum(criterion(maps[:2], maps[2:], (BOXES, LABELS), soft_targets=soft).values())


MAPS = {
    focal: [(2, CLASSES, 8, 8)],
    focal_from_boxes: [(2, CLASSES, 8, 8)],
    centernet: [(2, CLASSES, 8, 8), (2, 2, 8, 8), (2, 2, 8, 8)],
    yolox: [(2, 1, 8, 8, 5 + CLASSES), (2, 1, 4, 4, 5 + CLASSES)],
    gfl: [(2, CLASSES, 8, 8), (2, CLASSES, 4, 4), (2, 68, 8, 8), (2, 68, 4, 4)],
    ld: [(2, CLASSES, 8, 8), (2, CLASSES, 4, 4), (2, 68, 8, 8), (2, 68, 4, 4)],
}
every_loss = pytest.mark.parametrize("loss", MAPS, ids=lambda loss: loss.__name__)


def maps_of(loss, requires_grad=True):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g).requires_grad_(requires_grad) for shape in MAPS[loss]]


@every_loss
def test_a_second_derivative_raises(loss):
    """Without an error it would be 0, and a penalty on the gradient would have no effect."""
    maps = maps_of(loss)
    total = loss(maps)
    gradients = torch.autograd.grad(total, maps, create_graph=True)
    expected = torch.autograd.grad(loss(maps), maps)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    penalty = sum(gradient.square().sum() for gradient in gradients)
    with pytest.raises(RuntimeError, match="detops: the gradient of this loss cannot be differentiated"):
        torch.autograd.grad(total + penalty, maps)


@every_loss
def test_so_does_one_through_a_network(loss):
    weight = torch.ones((), requires_grad=True)
    maps = [weight * level for level in maps_of(loss)]
    (gradient,) = torch.autograd.grad(loss(maps), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="for a penalty on the gradient take"):
        gradient.backward()


@every_loss
def test_and_one_by_what_the_loss_is_multiplied_by(loss):
    maps, factor = maps_of(loss), torch.ones((), requires_grad=True)
    gradients = torch.autograd.grad(factor * loss(maps), maps, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        torch.autograd.grad(gradients[0].sum(), factor)


def test_the_loss_that_is_recommended_has_second_derivatives():
    def by_element(x):
        return detops.gaussian_focal_loss(x, torch.zeros_like(x), from_logits=True, reduction="none").sum()

    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(by_element, (x,))


@every_loss
@pytest.mark.filterwarnings("ignore:Using backward")
def test_create_graph_changes_no_gradient(loss):
    maps, others = maps_of(loss), maps_of(loss)
    loss(maps).backward()
    loss(others).backward(create_graph=True)
    assert all(torch.equal(mine.grad, other.grad) for mine, other in zip(maps, others, strict=True))


@every_loss
def test_functional_gradients_are_those_of_backward(loss):
    maps = maps_of(loss)
    expected = torch.autograd.grad(loss(maps), maps)
    gradients, value = torch.func.grad_and_value(loss)(maps_of(loss, requires_grad=False))
    assert torch.equal(value, loss(maps))
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        torch.func.grad(lambda maps: torch.func.grad(loss)(maps)[0].sum())(maps_of(loss, requires_grad=False))


@every_loss
def test_no_gradient_is_made_where_none_is_wanted(loss, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a gradient was asked for")

    names = (
        "gaussian_focal_loss",
        "gaussian_focal_loss_from_boxes",
        "background_losses",
        "centernet_losses",
        "yolox_loss",
    )
    for name in names:
        op = getattr(detops.ops, name)
        monkeypatch.setattr(
            detops.ops,
            name,
            lambda *args, op=op, **options: (refuse if options["with_gradient"] else op)(*args, **options),
        )
    with torch.no_grad():
        without = loss(maps_of(loss))
    constant = loss(maps_of(loss, requires_grad=False))
    assert torch.equal(without, constant)
    with pytest.raises(AssertionError, match="a gradient was asked for"):
        loss(maps_of(loss))
