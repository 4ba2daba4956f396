"""detops.integrations.rfdetr: the losses and gradients of rfdetr's own criterion, run beside it."""

import copy
import importlib
import pickle

import loaded_torchvision
import pytest
import torch

from detops.integrations import rfdetr as ours

loaded_torchvision.load()
try:
    criterion = importlib.import_module("rfdetr.models.criterion")
    matcher = importlib.import_module("rfdetr.models.matcher")
except ImportError as error:
    pytest.skip(f"needs rfdetr: {error}", allow_module_level=True)

CLASSES, QUERIES = 6, 12
KINDS = [dict(ia_bce_loss=True), dict(use_varifocal_loss=True), dict(use_position_supervised_loss=True), {}]


def made(module, **options):
    weights = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    where = (ours, ours) if module else (matcher, criterion)
    return where[1].SetCriterion(
        CLASSES, where[0].HungarianMatcher(2, 5, 2), weights, 0.25, ["labels", "boxes", "cardinality"],
        **dict(group_detr=3) | options,
    )  # fmt: skip


def scene(counts, padded=0):
    g = torch.Generator().manual_seed(4)

    def layer():
        boxes = torch.cat([torch.rand(2, QUERIES, 2, generator=g), torch.rand(2, QUERIES, 2, generator=g)], -1)
        return {
            "pred_logits": torch.randn(2, QUERIES, CLASSES, generator=g).requires_grad_(),
            "pred_boxes": boxes.requires_grad_(),
        }

    outputs = layer() | {"aux_outputs": [layer(), layer()], "enc_outputs": layer()}
    targets = []
    for n in counts:
        one = {
            "labels": torch.randint(0, CLASSES, (n,), generator=g),
            "boxes": 0.1 + 0.4 * torch.rand(n, 4, generator=g),
        }
        if padded:
            room = padded - n
            one["valid"] = torch.arange(padded) < n
            one["labels"] = torch.cat([one["labels"], torch.zeros(room).long()])
            one["boxes"] = torch.cat([one["boxes"], torch.zeros(room, 4)])
        targets.append(one)
    return outputs, targets


def run(module, counts, training=True, padded=0, num_boxes=None, **options):
    outputs, targets = scene(counts, padded)
    one = made(module, **options).train(training)
    losses = one(outputs, targets, num_boxes)
    layers = [outputs, *outputs["aux_outputs"], outputs["enc_outputs"]]
    leaves = [layer[name] for layer in layers for name in ("pred_logits", "pred_boxes")]
    total = sum(value * (1 + i) for i, (name, value) in enumerate(losses.items()) if name.startswith("loss"))
    return losses, torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("counts", [(3, 1), (2, 0), (0, 0), (7, 2)], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_same_as_theirs(kind, counts):
    for options in (dict(), dict(training=False), dict(sum_group_losses=True), dict(num_boxes=1.0)):
        mine, other = (run(module, counts, **kind, **options) for module in (True, False))
        assert list(mine[0]) == list(other[0])
        torch.testing.assert_close(mine[0], other[0], rtol=1e-5, atol=1e-5, check_dtype=False)
        torch.testing.assert_close(mine[1], other[1], rtol=1e-4, atol=1e-5)


def test_padded_targets():
    mine, other = (run(module, (3, 1), padded=4, ia_bce_loss=True) for module in (True, False))
    torch.testing.assert_close(mine[0], other[0], rtol=1e-5, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(mine[1], other[1], rtol=1e-4, atol=1e-5)
    with pytest.raises(NotImplementedError):
        run(True, (3, 1), padded=4)


def test_the_matcher_returns_their_pairs():
    outputs, targets = scene((5, 2))
    for groups in (1, 3):
        mine = ours.HungarianMatcher(2, 5, 2)(outputs, targets, group_detr=groups)
        other = matcher.HungarianMatcher(2, 5, 2)(outputs, targets, group_detr=groups)
        for (q, n), (q_, n_) in zip(mine, other, strict=True):
            assert torch.equal(q, q_)
            assert torch.equal(n, n_)
    with pytest.raises(ValueError, match="group_detr: expected a divisor of 12"):
        ours.HungarianMatcher(2, 5, 2)(outputs, targets, group_detr=5)


def test_use_swaps_classes_and_keeps_the_state():
    one = made(False, ia_bce_loss=True)
    owner = torch.nn.Module()
    owner.criterion = one
    assert ours.use(owner).criterion is one
    assert isinstance(one, criterion.SetCriterion)
    assert type(one) is ours.SetCriterion
    assert type(one.matcher) is ours.HungarianMatcher
    again = pickle.loads(pickle.dumps(copy.deepcopy(one)))
    outputs, targets = scene((3, 1))
    torch.testing.assert_close(again(outputs, targets), made(True, ia_bce_loss=True)(outputs, targets))


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Criterion'"):
        ours.Criterion  # noqa: B018
