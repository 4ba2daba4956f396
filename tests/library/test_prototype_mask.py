"""prototype_mask_loss: values and gradients of whole maps, as users write them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op import assert_no_syncs
from torch import Tensor

from detops import prototype_mask_loss

SIZE = (48, 64)


def scene(seed: int, points: int = 9, boxes: int = 3) -> tuple[Tensor, ...]:
    """Coefficients (2, A, 4), prototypes (2, 4, 12, 16), masks (2, N, 48, 64), indices (2, A) and boxes (2, N, 4)."""
    g = torch.Generator().manual_seed(seed)
    coefficients, prototypes = torch.randn(2, points, 4, generator=g), torch.randn(2, 4, 12, 16, generator=g)
    masks = torch.rand(2, boxes, *SIZE, generator=g) > 0.5
    index = torch.randint(-2, boxes, (2, points), generator=g)
    low = torch.rand(2, boxes, 2, generator=g) * torch.tensor([40.0, 30])
    found = torch.cat([low, low + 4 + torch.rand(2, boxes, 2, generator=g) * 30], 2)
    return coefficients, prototypes, masks, index, found


def plain(coefficients: Tensor, prototypes: Tensor, masks: Tensor, index: Tensor, boxes: Tensor, kind: str) -> Tensor:
    """Positive by positive: the map of the whole grid, its losses, and those in the box."""
    total, count = coefficients.sum() * 0, 0
    label = F.interpolate(masks.double(), (12, 16), mode="bilinear") > 0.5
    for b, a in (index >= 0).nonzero().tolist():
        z = (coefficients[b, a][:, None, None] * prototypes[b]).sum(0)
        n = int(index[b, a])
        y = label[b, n].to(z.dtype)
        x1, y1, x2, y2 = (boxes[b, n] / 4).tolist()
        area = (x2 - x1) * (y2 - y1)
        if kind == "yolact":
            x1, y1, x2, y2 = max(x1 - 1, 0), max(y1 - 1, 0), min(x2 + 1, 16), min(y2 + 1, 12)
        for row in range(12):
            for column in range(16):
                if x1 <= column < x2 and y1 <= row < y2:
                    total = total + F.binary_cross_entropy_with_logits(z[row, column], y[row, column]) / area
                elif kind == "yolact":
                    total = total + 100 * y[row, column] / area
        count += 1
    return total / max(count, 1)


@pytest.mark.parametrize("kind", ["yolo", "yolact"])
def test_values_and_gradients_are_those_of_whole_maps(kind: Any) -> None:
    for seed in range(2):
        coefficients, prototypes, *rest = scene(seed)
        ours = [coefficients.clone().requires_grad_(), prototypes.clone().requires_grad_()]
        theirs = [coefficients.double().requires_grad_(), prototypes.double().requires_grad_()]
        found = prototype_mask_loss(*ours, *rest, image_size=SIZE, kind=kind)  # type: ignore[misc]
        expected = plain(*theirs, *rest, kind)  # type: ignore[arg-type]
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        for mine, other in zip(
            torch.autograd.grad(2 * found, ours), torch.autograd.grad(2 * expected, theirs), strict=True
        ):
            torch.testing.assert_close(mine, other.float(), rtol=1e-4, atol=1e-6)


def test_half_precision_and_lists_of_masks() -> None:
    coefficients, prototypes, masks, index, boxes = scene(3)
    expected = prototype_mask_loss(coefficients, prototypes, masks, index, boxes, image_size=SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = prototype_mask_loss(coefficients, prototypes, list(masks), index, boxes, image_size=SIZE)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    half = coefficients.half().requires_grad_()
    loss = prototype_mask_loss(half, prototypes.half(), masks, index, boxes, image_size=SIZE)
    (gradient,) = torch.autograd.grad(loss, half)
    assert gradient.dtype == torch.float16
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-2)


def test_no_positive_and_boxes_without_area_cost_nothing() -> None:
    coefficients, prototypes, masks, index, boxes = scene(4)
    leaf = coefficients.requires_grad_()
    none = prototype_mask_loss(leaf, prototypes, masks, index * 0 - 1, boxes, image_size=SIZE)
    flat = prototype_mask_loss(leaf, prototypes, masks, index, boxes * 0 + 8, image_size=SIZE)
    for loss in (none, flat):
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, leaf)[0].any()
    empty = prototype_mask_loss(leaf, prototypes, masks[:, :0], index * 0 - 1, boxes[:, :0], image_size=SIZE)
    assert empty.item() == 0


def test_needs_no_host_and_counts_the_first_positives() -> None:
    def loss(coefficients: Tensor, prototypes: Tensor, masks: Tensor, index: Tensor, boxes: Tensor) -> Tensor:
        return prototype_mask_loss(coefficients, prototypes, masks, index, boxes, image_size=SIZE)

    args = scene(7)
    assert_no_syncs(loss, *args)
    one = prototype_mask_loss(*args, image_size=SIZE, max_positives=1, avg_factor=1.0)  # type: ignore[misc]
    coefficients, prototypes, masks, index, boxes = args
    for b in range(2):
        index[b, int((index[b] >= 0).int().argmax()) + 1 :] = -1
    torch.testing.assert_close(
        one, prototype_mask_loss(coefficients, prototypes, masks, index, boxes, image_size=SIZE, avg_factor=1.0)
    )


def test_second_derivatives_say_that_there_are_none() -> None:
    coefficients, prototypes, masks, index, boxes = scene(5)
    leaf = coefficients.requires_grad_()
    loss = prototype_mask_loss(leaf, prototypes, masks, index, boxes, image_size=SIZE, avg_factor=2.0)
    first, again = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    (made,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="second"):
        made.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(kind="box"), "kind: expected"),
        (dict(coefficients=torch.zeros(2, 9)), r"coefficients: expected shape \(B, A, K\)"),
        (dict(prototypes=torch.zeros(2, 3, 12, 16)), r"prototypes: expected shape \(2, 4, h, w\)"),
        (dict(box_index=torch.zeros(2, 8).long()), r"box_index: expected shape \(2, 9\)"),
        (dict(box_index=torch.zeros(2, 9)), "box_index: expected integers"),
        (dict(boxes=torch.zeros(2, 3, 5)), r"boxes: expected shape \(2, N, 4\)"),
        (dict(max_positives=-1), "max_positives: expected"),
        (dict(masks=torch.zeros(2, 4, 8, 8)), "masks: expected shape"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    coefficients, prototypes, masks, index, boxes = scene(6)
    given: dict[str, Any] = dict(
        coefficients=coefficients, prototypes=prototypes, masks=masks, box_index=index, boxes=boxes, image_size=SIZE
    )
    with pytest.raises((TypeError, ValueError), match=message):
        prototype_mask_loss(**given | change)
