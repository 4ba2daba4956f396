"""Mask costs, matching and mask losses of rfdetr's own matcher and criterion, run beside ours at the same points."""

import importlib

import loaded_torchvision
import pytest
import torch
from torch import Tensor

from detops import hungarian_match, point_mask_cost, point_mask_loss, uncertain_points

loaded_torchvision.load()
try:
    criterion = importlib.import_module("rfdetr.models.criterion")
    matcher = importlib.import_module("rfdetr.models.matcher")
except ImportError as error:
    pytest.skip(f"needs rfdetr: {error}", allow_module_level=True)

QUERIES, CLASSES, CELLS, POINTS = 12, 5, (16, 20), 20


def scene(seed: int, counts: tuple[int, ...]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    g = torch.Generator().manual_seed(seed)
    batch = len(counts)
    outputs = {
        "pred_logits": torch.randn(batch, QUERIES, CLASSES, generator=g),
        "pred_boxes": 0.2 + 0.3 * torch.rand(batch, QUERIES, 4, generator=g),
        "pred_masks": 2 * torch.randn(batch, QUERIES, *CELLS, generator=g),
    }
    targets = []
    for n in counts:
        coarse = torch.rand(n, 1, 6, 5, generator=g)
        masks = torch.nn.functional.interpolate(coarse, (64, 80), mode="bilinear")[:, 0] > 0.5
        boxes, labels = 0.2 + 0.3 * torch.rand(n, 4, generator=g), torch.randint(CLASSES, (n,), generator=g)
        targets.append({"labels": labels, "boxes": boxes, "masks": masks})
    return outputs, targets


@pytest.mark.parametrize("counts", [(3,), (3, 1), (2, 0, 5)], ids=str)
def test_costs_are_theirs(counts: tuple[int, ...]) -> None:
    outputs, targets = scene(1, counts)
    torch.manual_seed(5)
    theirs = matcher.HungarianMatcher()._compute_mask_costs(outputs, targets)
    points = torch.rand(1, POINTS, 2, generator=torch.Generator().manual_seed(5))[0]
    ours = point_mask_cost(outputs["pred_masks"], [target["masks"] for target in targets], points)
    for mine, other in zip(ours, theirs, strict=True):
        columns = other.view(len(counts), QUERIES, -1).split(counts, 2)
        for b, n in enumerate(counts):
            torch.testing.assert_close(mine[b, :, :n], columns[b][b])


@pytest.mark.parametrize("groups", [1, 3])
def test_masks_decide_the_same_matching(groups: int) -> None:
    counts = (3, 1, 2)
    for seed in range(5):
        outputs, targets = scene(seed, counts)
        torch.manual_seed(5)
        theirs = matcher.HungarianMatcher(2, 5, 2, cost_mask_ce=5, cost_mask_dice=5)(outputs, targets, groups)
        points = torch.rand(1, POINTS, 2, generator=torch.Generator().manual_seed(5))[0]
        bce, dice = point_mask_cost(outputs["pred_masks"], [target["masks"] for target in targets], points)
        truth = [target["boxes"] for target in targets], [target["labels"] for target in targets]
        ours = hungarian_match(
            outputs["pred_logits"], outputs["pred_boxes"], truth, groups=groups, extra_cost=5 * bce + 5 * dice
        )
        for b, (queries, boxes) in enumerate(theirs):
            found = torch.full((groups, counts[b]), -1)
            found[queries // (QUERIES // groups), boxes] = queries
            assert torch.equal(ours[:, b, : counts[b]], found)


@pytest.mark.parametrize("counts", [(3,), (3, 1), (2, 0, 5)], ids=str)
def test_losses_and_gradients_are_theirs(counts: tuple[int, ...]) -> None:
    outputs, targets = scene(2, counts)
    masks, most, pairs = [target["masks"] for target in targets], max(counts), sum(counts)
    points = max(CELLS[0], CELLS[0] * CELLS[1] // 16)
    g = torch.Generator().manual_seed(7)
    # Their pairs come image by image, by query; ours by box.
    indices = [(torch.randperm(QUERIES, generator=g)[:n].sort()[0], torch.randperm(n, generator=g)) for n in counts]
    theirs = outputs["pred_masks"].clone().requires_grad_()
    one = criterion.SetCriterion(CLASSES, None, {}, 0.25, ["masks"])
    torch.manual_seed(5)
    expected = one.loss_masks({"pred_masks": theirs}, targets, indices, torch.tensor(float(pairs)))
    g = torch.Generator().manual_seed(5)
    drawn = (
        torch.rand(pairs, 3 * points, 2, generator=g),
        torch.rand(pairs, points - int(0.75 * points), 2, generator=g),
    )
    query = torch.full((len(counts), most), -1)
    placed = [torch.zeros(len(counts), most, *part.shape[1:]) for part in drawn]
    for b, (queries, boxes) in enumerate(indices):
        query[b, boxes] = queries
        for place, part in zip(placed, drawn, strict=True):
            place[b, boxes] = part.split(counts)[b]
    ours = outputs["pred_masks"].clone().requires_grad_()
    where = uncertain_points(ours, query, *placed, num_points=points)
    found = point_mask_loss(ours, masks, query, where, avg_factor=float(pairs))
    torch.testing.assert_close(found["loss_mask_bce"], expected["loss_mask_ce"])
    torch.testing.assert_close(found["loss_mask_dice"], expected["loss_mask_dice"])
    (mine,) = torch.autograd.grad(5 * found["loss_mask_bce"] + 3 * found["loss_mask_dice"], ours)
    (other,) = torch.autograd.grad(5 * expected["loss_mask_ce"] + 3 * expected["loss_mask_dice"], theirs)
    torch.testing.assert_close(mine, other)
