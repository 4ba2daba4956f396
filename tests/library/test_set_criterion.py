"""SetLoss: the numbers of a plain loop, and all that a criterion has to do."""

import copy
import pickle

import pytest
import torch
from op import assert_compiles_whole, assert_no_syncs, two_ranks
from set_scenes import set_scene
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

import detops
from detops.criteria.sets import Denoising, SetLoss
from detops.diagnostics.launches import count_launches
from detops.geometry.set_parts import gaps_of
from detops.reference import set_loss as definition

KINDS = ["softmax", "focal", "varifocal", "mal", "ia_bce"]


def scene(seed=0, kind="varifocal", **options):
    """Outputs that are leaves, and targets as a pair of lists."""
    logits, pred, boxes, labels, sizes = set_scene(
        seed, **dict(sets=3, queries=8, boxes=4, ragged=True) | options
    ).values()
    if sizes is None:
        sizes = [boxes.shape[1]] * len(boxes)
    targets = [b[:n] for b, n in zip(boxes, sizes, strict=True)], [c[:n] for c, n in zip(labels, sizes, strict=True)]
    return logits.requires_grad_(), pred.requires_grad_(), targets


def criterion(kind, logits, **options):
    return SetLoss(logits.shape[-1] - (kind == "softmax"), kind=kind, **options)


def plain(ours, logits, pred, targets, groups=1):
    """The losses (L, 3) by a loop over layers, images and pairs."""
    boxes, labels = targets
    query = detops.hungarian_match(logits, pred, targets, kind=ours.rule.kind, class_cost=ours.rule.class_cost,
                                   groups=groups)  # fmt: skip
    count = max(sum(map(len, boxes)), 1) * groups
    rows = []
    for layer in range(len(logits)):
        matched = {}
        for g, b in [(g, b) for g in range(groups) for b in range(len(boxes))]:
            for n in range(len(boxes[b])):
                q = int(query[layer, g, b, n])
                if q >= 0:
                    assert (b, q) not in matched
                    matched[b, q] = n
        total, l1, giou = logits.new_zeros(()), logits.new_zeros(()), logits.new_zeros(())
        for b in range(logits.shape[1]):
            for q in range(logits.shape[2]):
                n = matched.get((b, q), -1)
                u = 0.0
                if n >= 0:
                    iou, g = definition.iou_and_giou(pred[layer, b, q], boxes[b][n])
                    u, l1, giou = (
                        iou.item(),
                        l1 + F.l1_loss(pred[layer, b, q], boxes[b][n], reduction="sum"),
                        giou + 1 - g,
                    )
                label = int(labels[b][n]) if n >= 0 else -1
                loss = ours.class_loss
                index = definition.SOFTMAX + KINDS.index(loss.kind)
                total = total + definition.class_loss(logits[layer, b, q], label, u, index, loss.alpha, loss.gamma, 0.1)
        weight = len(matched) + 0.1 * (logits.shape[1] * logits.shape[2] - len(matched))
        rows.append(
            torch.stack([total / (weight if ours.kind == "softmax" else count), 5 * l1 / count, 2 * giou / count])
        )
    return torch.stack(rows)


def gradients(losses, *leaves):
    return torch.autograd.grad(sum(losses.values()), leaves)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [1, 2])
def test_matches_a_plain_loop(kind, groups):
    logits, pred, targets = scene(3, kind)
    ours = criterion(kind, logits, groups=groups)
    layers = ours.layer_losses(logits, pred, targets)[""]
    expected = plain(ours, logits, pred, targets, groups)
    torch.testing.assert_close(layers, expected, rtol=1e-5, atol=1e-5)
    factors = torch.rand(3, 3)
    found = torch.autograd.grad((layers * factors).sum(), (logits, pred))
    torch.testing.assert_close(
        found, torch.autograd.grad((expected * factors).sum(), (logits, pred)), rtol=1e-4, atol=1e-6
    )
    names = dict(zip(("loss_cls", "loss_bbox", "loss_giou"), expected.sum(0), strict=True))
    torch.testing.assert_close(ours(logits, pred, targets), names, rtol=1e-5, atol=1e-5)


def test_one_layer_is_matched_as_a_stack_of_one():
    logits, pred, targets = scene(4)
    ours = criterion("focal", logits)
    assert torch.equal(ours.match(logits[0], pred[0], targets), ours.match(logits[:1], pred[:1], targets))


def test_groups_are_for_training():
    logits, pred, targets = scene(4)
    ours = criterion("focal", logits, groups=4)
    assert (ours.match(logits, pred, targets) >= 0).sum() > (ours.eval().match(logits, pred, targets) >= 0).sum()
    with pytest.raises(ValueError, match="expected a multiple of 3 queries"):
        criterion("focal", logits, groups=3)(logits, pred, targets)


def test_encoder_and_denoising():
    logits, pred, targets = scene(5)
    ours = criterion("varifocal", logits)
    count = sum(map(len, targets[0]))
    index = torch.tensor([[0, -1, -1, -2, 0, -1, -2, -2], [0, 1, -1, -1, 0, 1, -1, -1]])
    index = index.where(index < torch.tensor([[len(b)] for b in targets[0]]), -2)
    found = ours(logits, pred, targets, encoder=(logits[0], pred[0]), denoising=Denoising(logits, pred, index, 2))
    alone = ours(logits[:1], pred[:1], targets)
    for name, value in alone.items():
        torch.testing.assert_close(found[f"{name}_enc"], value)
    boxes = torch.nn.utils.rnn.pad_sequence(targets[0], batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(targets[1], batch_first=True)
    scale, weights = torch.ones(3, 2) / (count * 2), [1.0, 5.0, 2.0]
    every, part = index.expand(3, 2, 8).flatten(), [0, 0, 3, 0, 8]
    sums = definition.set_loss(
        [logits], [pred], part, boxes, labels, every, None, None, scale, weights, 2, 0.75, 2.0, 0.1, False, False
    )[0].sum(0)
    torch.testing.assert_close(torch.stack([found[f"loss_{n}_dn"] for n in ("cls", "bbox", "giou")]), sums)
    assert len(found) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_batches_without_boxes_and_with_more_boxes_than_queries(kind):
    for options in (
        dict(boxes=0),
        dict(queries=1),
        dict(queries=3, boxes=9, ragged=False),
        dict(sets=0),
    ):
        logits, pred, targets = scene(6, kind, **options)
        ours = criterion(kind, logits)
        losses = ours(logits, pred, targets)
        assert all(value.isfinite() and value.dim() == 0 for value in losses.values())
        torch.testing.assert_close(
            torch.stack(list(losses.values())),
            plain(ours, logits, pred, targets).sum(0) if len(logits) else torch.zeros(3),
        )
        assert all(gradient.isfinite().all() for gradient in gradients(losses, logits, pred))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_ignored_boxes_change_nothing(kind):
    logits, pred, targets = scene(7, kind, ragged=False)
    ours = criterion(kind, logits)
    expected = ours(logits, pred, targets)
    poison = torch.full((2, 3, 4), torch.nan)
    boxes, labels = torch.stack(targets[0]), torch.stack(targets[1])
    more = (
        torch.cat([boxes[:, :1], boxes, poison], 1),
        torch.cat([torch.full((2, 1), -1), labels, torch.full((2, 3), 1)], 1),
    )
    truth = (
        detops.RaggedBatch(more[0], sample_sizes=torch.tensor([5, 5])),
        detops.RaggedBatch(more[1], sample_sizes=torch.tensor([5, 5])),
    )
    found = ours(logits, pred, truth)
    torch.testing.assert_close(found, expected)


def test_nan_logits_in_half_precision_are_the_last_resort():
    logits, pred, targets = scene(8, dtype=torch.float16, ragged=False)
    ours = criterion("varifocal", logits)
    with torch.no_grad():
        logits[0, :, :3] = torch.nan
    index = ours.match(logits, pred, targets)
    assert (index[0, :, :3] == -1).all()
    assert (index >= 0).sum() == 3 * 2 * 4


def test_small_gradients_of_half_precision_are_kept():
    logits, pred, targets = scene(9, queries=40, dtype=torch.float16)
    wide = [one.detach().float().requires_grad_() for one in (logits, pred)]
    ours = criterion("varifocal", logits)
    with torch.no_grad():
        logits -= 6
        wide[0] -= 6
    half = torch.autograd.grad(sum(ours(logits, pred, targets).values()) * 2.0**12, (logits, pred))
    full = torch.autograd.grad(sum(ours(*wide, targets).values()) * 2.0**12, wide)
    for mine, other in zip(half, full, strict=True):
        torch.testing.assert_close(mine.float(), other, rtol=5e-3, atol=1e-2 * other.abs().max().item())


def test_no_sync_and_few_launches():
    def step(logits, pred, boxes, labels, encoder=True):
        losses = ours(logits, pred, (boxes, labels), encoder=(logits[0], pred[0]) if encoder else None)
        return torch.autograd.grad(sum(losses.values()), (logits, pred))

    logits, pred, _ = scene(10, sets=6)
    ours = criterion("varifocal", logits)
    args = logits, pred, *list(set_scene(10, sets=6, queries=8, boxes=4).values())[2:4]
    assert_no_syncs(step, *args)
    assert count_launches(step, *args) == 30  # 6 of them to add up both gradients of the first layer
    assert count_launches(lambda *a: step(*a, encoder=False), *args) == 21


@pytest.mark.slow
def test_one_graph_for_any_number_of_boxes():
    logits, pred, _ = scene(10, sets=2)
    ours = criterion("varifocal", logits)
    args = [(logits, pred, *list(set_scene(10, boxes=n).values())[2:4]) for n in (4, 6)]
    assert_compiles_whole(lambda *a: ours(*a[:2], a[2:])["loss_cls"], *args, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_padded_batches_of_any_number_of_boxes_compile_once():
    logits, pred, _ = scene(10, sets=2)
    ours = criterion("varifocal", logits)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def step(logits, pred, boxes, labels, sizes):
        truth = detops.RaggedBatch(boxes, sample_sizes=sizes), detops.RaggedBatch(labels, sample_sizes=sizes)
        return torch.stack(list(ours(logits, pred, truth).values()))

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for counts in ((3, 1), (0, 4), (2, 2), (0, 0)):
        boxes = [torch.cat([20 + 40 * torch.rand(n, 2), 70 + 40 * torch.rand(n, 2)], 1) for n in counts]
        labels = [torch.randint(0, 4, (n,)) for n in counts]
        truth = detops.GroundTruth.from_boxes(boxes, labels).pad_to(5)
        args = logits, pred, truth.cxcywh() / 128, truth.labels, torch.tensor(counts)
        found, expected = compiled(*args), step(*args)
        torch.testing.assert_close(found, expected)
        for mine, other in zip(
            *(torch.autograd.grad(one.sum(), (logits, pred)) for one in (found, expected)), strict=True
        ):
            torch.testing.assert_close(mine, other)
    assert counter.frame_count == 1


def test_a_graph_is_used_twice_and_modules_are_copied():
    logits, pred, targets = scene(11)
    ours = pickle.loads(pickle.dumps(copy.deepcopy(criterion("mal", logits))))
    total = sum(ours(logits, pred, targets).values())
    first = torch.autograd.grad(total, (logits, pred), retain_graph=True)
    again = torch.autograd.grad(total * 3, (logits, pred))
    for one, three in zip(first, again, strict=True):
        torch.testing.assert_close(one * 3, three)
    assert not list(ours.state_dict())
    losses = ours(logits, pred, targets)
    gradient = torch.autograd.grad(losses["loss_cls"], logits, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        gradient.sum().backward()


def test_outputs_may_differ_in_dtype():
    """As under autocast, where a head is left in float32."""
    logits, pred, targets = scene(14)
    logits, pred = logits.detach() * 30, pred.detach()
    ours, half = criterion("focal", logits), logits.bfloat16()
    mixed = ours(half, pred.bfloat16(), targets, encoder=(logits[0], pred[0]))
    wide = ours(half.float(), pred.bfloat16().float(), targets, encoder=(logits[0], pred[0]))
    torch.testing.assert_close(mixed, wide)


def test_parts_leave_gaps():
    parts = [0, 1, 2, 1, 3, 0, 1, 1, 4, 1]
    found = {
        (tensor, *((p.start, p.stop) for p in place[::2]))
        for tensor, place in gaps_of(parts, [(3, 1, 6, 2), (1, 1, 2, 2)])
    }
    assert found == {
        (0, (0, 1), (0, 6)), (0, (1, 2), (0, 1)), (0, (1, 2), (5, 6)), (0, (2, 3), (0, 1)), (0, (2, 3), (4, 6)),
        (1, (0, 1), (0, 2)),
    }  # fmt: skip
    assert gaps_of([0, 0, 3, 0, 6], [(3, 1, 6, 2)]) == []


def test_layouts_by_image_give_the_same():
    logits, pred, targets = scene(12)
    by_image = [one.detach().transpose(0, 1).contiguous().requires_grad_() for one in (logits, pred)]
    ours = criterion("focal", logits)
    expected = gradients(ours(logits, pred, targets), logits, pred)
    losses = ours(*(one.transpose(0, 1) for one in by_image), targets)
    for mine, other in zip(gradients(losses, *by_image), expected, strict=True):
        torch.testing.assert_close(mine.transpose(0, 1), other)
    torch.testing.assert_close(ours(logits[0], pred[0], targets), ours(logits[:1], pred[:1], targets))


def part_of_a_step(rank, ranks):
    found = []
    for kind in ("varifocal", "softmax"):
        logits, pred, targets = scene(13, kind, batch=4)
        mine = slice(rank * 4 // ranks, (rank + 1) * 4 // ranks)
        logits, pred = (one[:, mine].detach().requires_grad_() for one in (logits, pred))
        losses = criterion(kind, logits)(logits, pred, tuple(part[mine] for part in targets))
        found.append([gradient / ranks for gradient in gradients(losses, logits, pred)])
    return found


@pytest.mark.slow
def test_two_ranks_give_the_gradient_of_one(tmp_path):
    whole, halves = two_ranks(part_of_a_step, tmp_path)
    for kind in (0, 1):
        for gradient, *parts in zip(whole[kind], *(half[kind] for half in halves), strict=True):
            torch.testing.assert_close(torch.cat(parts, 1), gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(kind="bce"), "kind: expected one of softmax"),
        (dict(num_classes=0), "num_classes: expected at least 1"),
        (dict(groups=0), "groups: expected at least 1"),
        (dict(gamma=-1.0), "gamma: expected at least 0"),
        (dict(cost_gamma=-1.0), "gamma: expected at least 0"),
    ],
)
def test_errors_of_the_constructor(change, message):
    with pytest.raises(ValueError, match=message):
        SetLoss(**dict(num_classes=3) | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(class_logits=torch.zeros(3, 2, 8, 5)), r"class_logits: expected shape \(L, B, Q, 4\)"),
        (dict(pred_boxes=torch.zeros(3, 2, 7, 4)), r"pred_boxes: expected shape \(3, 2, 8, 4\)"),
        (dict(targets=([torch.zeros(0, 4)], [torch.zeros(0).long()])), "targets: expected 2 images"),
        (dict(encoder=(torch.zeros(2, 8, 3), torch.zeros(2, 8, 4))), "class_logits: expected shape"),
    ],
)
def test_errors(change, message):
    logits, pred, targets = scene()
    arguments = dict(class_logits=logits, pred_boxes=pred, targets=targets) | change
    with pytest.raises((TypeError, ValueError), match=message):
        SetLoss(4)(**arguments)
