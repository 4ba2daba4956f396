"""The mask losses and costs at points: values, gradients, every form of masks."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from op import assert_compiles_whole, assert_no_syncs
from pycocotools import mask as coco
from torch import Tensor

from detops import hungarian_match, point_mask_cost, point_mask_loss, uncertain_points
from detops.geometry import run_lengths

Size = tuple[int, int]


def scene(seed: int, rows: int = 3, size: Size = (20, 30), points: int = 50) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (2, 5, 6, 9), masks (2, N, H, W), a query of each but one, and points."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, 6, 9, generator=g) * 2
    masks = torch.rand(2, rows, *size, generator=g) > 0.5
    query = torch.stack([torch.randperm(5, generator=g)[:rows] for _ in range(2)])
    query[1, 0] = -1
    return logits, masks, query, torch.rand(2, rows, points, 2, generator=g)


def plain(logits: Tensor, masks: Tensor, query: Tensor, points: Tensor, labels: str, padding: str) -> dict[str, Tensor]:
    """The same as PyTorch's users write it: matched maps and masks are gathered and sampled by grid_sample."""
    matched = query >= 0
    maps = logits[matched.nonzero()[:, 0], query[matched]][:, None]
    grid = 2 * points[matched][:, None] - 1
    x = F.grid_sample(maps, grid, padding_mode=padding, align_corners=False)[:, 0, 0]
    y = F.grid_sample(
        masks[matched][:, None].to(x.dtype), grid, mode=labels, padding_mode=padding, align_corners=False
    )[:, 0, 0]
    p, count = x.sigmoid(), matched.sum().clamp(min=1)
    return {
        "loss_mask_bce": F.binary_cross_entropy_with_logits(x, y, reduction="none").mean(1).sum() / count,
        "loss_mask_dice": (1 - (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)).sum() / count,
    }


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), labels=st.sampled_from(["nearest", "bilinear"]),
    padding=st.sampled_from(["border", "zeros"]),
)  # fmt: skip
def test_losses_and_gradients_are_those_of_grid_sample(seed: int, labels: Any, padding: Any) -> None:
    logits, masks, query, points = scene(seed)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    found = point_mask_loss(ours, masks, query, points, labels=labels, padding=padding)
    expected = plain(theirs, masks, query, points, labels, padding)
    (2 * found["loss_mask_bce"] + 3 * found["loss_mask_dice"]).backward()
    (2 * expected["loss_mask_bce"] + 3 * expected["loss_mask_dice"]).backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_gradcheck() -> None:
    logits, masks, query, points = scene(1, points=7)

    def losses(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(point_mask_loss(x, masks, query, points).values())

    assert torch.autograd.gradcheck(losses, logits.double().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, masks, query, points = scene(2)
    half = logits.to(dtype).requires_grad_()
    whole = half.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = point_mask_loss(half, masks, query, points)
    expected = point_mask_loss(whole, masks, query, points)
    torch.testing.assert_close(found, expected)
    torch.autograd.backward([*found.values()])
    torch.autograd.backward([*expected.values()])
    assert half.grad is not None
    assert half.grad.dtype == dtype
    torch.testing.assert_close(half.grad.float(), whole.grad, rtol=2e-2, atol=1e-4)


def compressed(masks: Tensor) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = coco.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8)))
    return found


def uncompressed(masks: Tensor) -> list[dict[str, Any]]:
    found = []
    for mask in masks:
        line = torch.cat([torch.tensor([False]), mask.T.flatten()]).int()
        places = [0, *line.diff().nonzero()[:, 0].tolist(), mask.numel()]
        found.append({"size": [*mask.shape], "counts": [b - a for a, b in pairwise(places)]})
    return found


@pytest.mark.parametrize("labels", ["nearest", "bilinear"])
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_masks_in_every_form_are_read_alike(labels: Any, padding: Any) -> None:
    logits, masks, query, points = scene(4)
    masks[0, 1], masks[1, 2] = False, True
    expected = point_mask_loss(logits, masks, query, points, labels=labels, padding=padding)
    text = [[rle | {"counts": rle["counts"].decode()} for rle in compressed(own)] for own in masks]
    forms: list[Any] = [
        masks.to(torch.uint8), masks.float(), list(masks), [*masks.to(torch.uint8)], [compressed(own) for own in masks],
        text, [uncompressed(own) for own in masks], [masks[0], compressed(masks[1])],
    ]  # fmt: skip
    for form in forms:
        found = point_mask_loss(logits, form, query, points, labels=labels, padding=padding)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("encode", [None, compressed])
def test_each_image_has_a_size_and_a_number_of_masks_of_its_own(encode: Any) -> None:
    logits, _, query, points = scene(5)
    own = [torch.rand(2, 13, 40) > 0.5, torch.rand(3, 50, 8) > 0.5]
    query[0, 2] = -1
    given_ = [encode(mask) for mask in own] if encode else own
    found = point_mask_loss(logits, given_, query, points)
    sums = []
    for b, count in ((0, 2), (1, 3)):
        one = slice(b, b + 1)
        sums.append(
            point_mask_loss(
                logits[one], own[b][None], query[one, :count], points[one, :count], avg_factor=1.0
            )["loss_mask_dice"]
        )  # fmt: skip
    torch.testing.assert_close(found["loss_mask_dice"], (sums[0] + sums[1]) / 4)


def test_run_lengths_that_are_read_are_those_that_were_written() -> None:
    """Runs of one pixel and of millions, no run, and none of zeros at the begin."""
    masks = torch.rand(20, 9, 7) < torch.linspace(0, 1, 20)[:, None, None]
    masks[3, 1:], masks[4, :, 3:] = False, True
    counts, offsets = run_lengths.decode([rle["counts"] for rle in compressed(masks)])
    for n, rle in enumerate(uncompressed(masks)):
        assert counts[offsets[n] : offsets[n + 1]].tolist() == rle["counts"]
    large: Any = coco.frPyObjects({"size": [5000, 4000], "counts": [0, 9_999_999, 3, 7_000_000, 2_999_998]}, 5000, 4000)
    assert run_lengths.decode([large["counts"], b""])[0].tolist() == [0, 9_999_999, 3, 7_000_000, 2_999_998]
    with pytest.raises(ValueError, match="counts: expected"):
        run_lengths.decode([large["counts"][:-1]])


def test_no_pair_and_no_mask_give_zero_and_a_gradient() -> None:
    logits, masks, query, points = scene(6)
    for given_ in ((masks, query * 0 - 1, points), (masks[:, :0], query[:, :0], points[:, :0])):
        leaf = logits.clone().requires_grad_()
        found = point_mask_loss(leaf, *given_)
        assert [loss.item() for loss in found.values()] == [0, 0]
        sum(found.values()).backward()  # type: ignore[union-attr]
        assert leaf.grad is not None
        assert not leaf.grad.any()


def test_padding_is_not_read() -> None:
    logits, masks, query, points = scene(7)
    expected = point_mask_loss(logits, masks, query, points)
    points[1, 0] = torch.nan
    logits[0, [q for q in range(5) if q not in query[0].tolist()]] = torch.nan
    torch.testing.assert_close(point_mask_loss(logits, masks, query, points), expected)


def test_an_empty_mask_has_a_loss() -> None:
    logits, masks, query, points = scene(8)
    found = point_mask_loss(logits, masks & False, query, points)
    assert all(math.isfinite(loss) and loss > 0 for loss in found.values())


def test_a_second_backward_through_the_same_graph() -> None:
    logits, masks, query, points = scene(9)
    leaf = logits.requires_grad_()
    total = sum(point_mask_loss(leaf, masks, query, points).values())
    first, second = (torch.autograd.grad(total, leaf, retain_graph=True)[0] for _ in range(2))  # type: ignore[arg-type]
    assert torch.equal(first, second)
    (again,) = torch.autograd.grad(total, leaf, create_graph=True)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="grid_sample"):
        again.sum().backward()


def plain_cost(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of every pair on its own."""
    bce, dice = torch.zeros(2, len(x), len(y)).unbind()
    for q in range(len(x)):
        for n in range(len(y)):
            p = x[q].sigmoid()
            bce[q, n] = F.binary_cross_entropy_with_logits(x[q], y[n])
            dice[q, n] = 1 - (2 * (p * y[n]).sum() + 1) / (p.sum() + y[n].sum() + 1)
    return bce, dice


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("shared", [False, True])
def test_costs(padding: Any, shared: bool) -> None:
    logits, masks, _, points = scene(10)
    own = points[0, 0] if shared else points[:, 0]
    found = point_mask_cost(logits, masks, own, padding=padding)
    for b in range(2):
        grid = 2 * own.expand(2, -1, -1)[b, None, None] - 1
        x = F.grid_sample(logits[b][None], grid, padding_mode=padding, align_corners=False)[0, :, 0]
        y = F.grid_sample(masks[b][None].float(), grid, mode="nearest", padding_mode=padding, align_corners=False)
        torch.testing.assert_close((found[0][b], found[1][b]), plain_cost(x, y[0, :, 0]))
        at_points = point_mask_cost(x[None], masks[b : b + 1], own.expand(2, -1, -1)[b])
        if padding == "border":
            torch.testing.assert_close((at_points[0][0], at_points[1][0]), (found[0][b], found[1][b]))


def test_costs_of_lists_are_padded_and_decide_a_matching() -> None:
    logits, masks, _, points = scene(11, rows=2)
    masks[0] = F.interpolate(logits[:1], (20, 30), mode="bilinear")[0, [3, 1]] > 0
    given_ = [masks[0], masks[1, :1]]
    bce, dice = point_mask_cost(logits, given_, points[:, 0], num_masks=3)
    assert bce.shape == dice.shape == (2, 5, 3)
    same = point_mask_cost(logits, masks, points[:, 0])[0]
    torch.testing.assert_close(bce[0, :, :2], same[0])
    boxes, labels = torch.full((2, 5, 4), 0.5), torch.zeros(2, 5, 4)
    truth = ([boxes[0, :3], boxes[1, :1]], [torch.zeros(3).long(), torch.zeros(1).long()])
    found = hungarian_match(labels, boxes, truth, extra_cost=5 * bce + 5 * dice)
    assert found[0, 0, :2].tolist() == [3, 1]


def test_uncertain_points_are_those_of_least_logits() -> None:
    logits, _, query, _ = scene(12)
    g = torch.Generator().manual_seed(1)
    candidates, extra = torch.rand(2, 3, 60, 2, generator=g), torch.rand(2, 3, 5, 2, generator=g)
    found = uncertain_points(logits, query, candidates, extra, num_points=20)
    assert torch.equal(found[:, :, 15:], extra)
    grid = 2 * candidates[0, 0][None, None] - 1
    x = F.grid_sample(logits[0, query[0, 0]][None, None], grid, padding_mode="border", align_corners=False)
    assert torch.equal(found[0, 0, :15], candidates[0, 0, x[0, 0, 0].abs().argsort(stable=True)[:15].sort().values])
    assert torch.equal(found[1, 0, :15], candidates[1, 0, :15])  # no pair: all are alike, ties by the lower index
    drawn, again = (
        uncertain_points(logits, query, num_points=20, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(drawn, again)
    assert drawn.shape == (2, 3, 20, 2)
    g = torch.Generator().manual_seed(3)
    first, rest = torch.rand(2, 3, 60, 2, generator=g), torch.rand(2, 3, 5, 2, generator=g)
    assert torch.equal(uncertain_points(logits, query, first, rest, num_points=20), drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_uncertain_points_with_ties_and_values_that_are_not_finite(dtype: torch.dtype) -> None:
    values = torch.tensor([3.0, -1, torch.nan, 1, -0.0, torch.inf, -3, 0], dtype=dtype)
    logits, query = values.view(1, 1, 1, 8), torch.zeros(1, 1).long()
    points = torch.stack([(torch.arange(8) + 0.5) / 8, torch.full((8,), 0.5)], -1)[None, None]
    order = [4, 7, 1, 3, 0, 6, 5, 2]
    for count in range(9):
        found = uncertain_points(logits, query, points, points[:, :, :0], num_points=count, importance=1.0)
        assert (found[0, 0, :, 0] * 8 - 0.5).tolist() == sorted(order[:count])


def test_points_are_drawn_where_none_are_given() -> None:
    logits, masks, query, _ = scene(13)
    found = point_mask_loss(logits, masks, query, generator=torch.Generator().manual_seed(3))
    drawn = uncertain_points(logits, query, num_points=6, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, point_mask_loss(logits, masks, query, drawn))


def test_no_host_sync_and_compiles_whole() -> None:
    def losses(logits: Tensor, masks: Tensor, query: Tensor, points: Tensor) -> dict[str, Tensor]:
        return point_mask_loss(logits, masks, query, points)

    def costs(logits: Tensor, masks: Tensor, query: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        return point_mask_cost(logits, masks, points[:, 0])

    for call in (losses, costs):
        assert_no_syncs(call, *scene(14))
        assert_compiles_whole(call, scene(14), scene(14, rows=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(mask_logits=torch.zeros(2, 5, 6)), "mask_logits: expected shape"),
        (dict(mask_logits=torch.zeros(2, 5, 6, 9).long()), "mask_logits: expected a floating"),
        (dict(masks=torch.zeros(2, 4, 8, 8)), r"masks: expected shape \(2, 3, H, W\)"),
        (dict(masks=torch.zeros(2, 3, 8, 8).long()), "masks: expected bool"),
        (dict(masks=[torch.zeros(4, 8, 8)] * 2), "masks: expected at most 3"),
        (dict(masks=[torch.zeros(3, 8)] * 2), r"masks\[0\]: expected shape"),
        (dict(masks=[torch.zeros(3, 8, 8)]), "masks: expected a tensor"),
        (dict(masks=[[{"size": [3, 3], "counts": [8]}]] * 2), "masks: expected run lengths of 9 pixels"),
        (dict(masks=[[{"size": [3, 3], "counts": [9]}, {"size": [2, 3], "counts": [6]}]] * 2), "one size per image"),
        (dict(query_index=torch.zeros(2, 3)), "query_index: expected integers"),
        (dict(query_index=torch.zeros(1, 3).long()), r"query_index: expected shape \(2, N\)"),
        (dict(points=torch.zeros(2, 4, 50, 2)), r"points: expected shape \(2, 3, P, 2\)"),
        (dict(labels="bicubic"), "labels: expected"),
        (dict(padding="reflection"), "padding: expected"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    logits, masks, query, points = scene(15)
    given_: dict[str, Any] = dict(mask_logits=logits, masks=masks, query_index=query, points=points) | change
    with pytest.raises((TypeError, ValueError), match=message):
        point_mask_loss(**given_)


def test_errors_of_costs_and_points() -> None:
    logits, masks, query, points = scene(15)
    with pytest.raises(ValueError, match=r"points: expected shape \(2, P, 2\)"):
        point_mask_cost(logits, masks, points)
    with pytest.raises(ValueError, match="mask_logits: expected shape"):
        point_mask_cost(logits[..., 0, 0], masks, points[:, 0])
    with pytest.raises(ValueError, match=r"mask_logits: expected shape .* to match points"):
        point_mask_cost(logits[..., 0], masks, points[:, 0])
    with pytest.raises(ValueError, match="importance: expected"):
        uncertain_points(logits, query, num_points=3, importance=2)
    with pytest.raises(ValueError, match="num_points: expected"):
        uncertain_points(logits, query, num_points=-3)
    with pytest.raises(ValueError, match="candidates: expected at least 15"):
        uncertain_points(logits, query, points[:, :, :4], num_points=20)
