"""`detops bench centernet`: targets, focal loss from boxes, and all of CenterNet's loss, against loops and PyTorch."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from detops import ops
from detops.apps.bench.gaussian_focal_loss import backward, plain_loss
from detops.apps.bench.runner import Case
from detops.criteria.centernet import CenterNetLoss
from detops.diagnostics.syncs import count_syncs
from detops.losses.focal_from_boxes import gaussian_focal_loss_from_boxes
from detops.ragged import RaggedBatch
from detops.targets.centernet import CenterNetTargets, centernet_cells, centernet_targets
from detops.targets.radius import gaussian_radius

BATCHES = (8, 16)
CLASSES, CELLS, STRIDE, BOXES = 80, 128, 4, 20
IMAGE = (CELLS * STRIDE, CELLS * STRIDE)


def boxes_of(batch: int, device: str) -> tuple[RaggedBatch, RaggedBatch]:
    """Twenty seeded boxes an image, mostly small as COCO's are: (B, 20, 4) and labels (B, 20)."""
    g = torch.Generator().manual_seed(0)
    sides = 8 + 300 * torch.rand(batch, BOXES, 2, generator=g) ** 2
    low = (IMAGE[0] - sides) * torch.rand(batch, BOXES, 2, generator=g)
    labels = torch.randint(CLASSES, (batch, BOXES), generator=g)
    sizes = torch.full((batch,), BOXES, device=device)
    boxes = torch.cat([low, low + sides], -1)
    return RaggedBatch(boxes.to(device), sample_sizes=sizes), RaggedBatch(labels.to(device), sample_sizes=sizes)


def loop_targets(boxes: Tensor, labels: Tensor) -> CenterNetTargets:
    """Targets as training code makes them today: image by image, box by box, a handful of calls each."""
    batch, device = len(boxes), boxes.device
    heatmap = torch.zeros(batch, CLASSES, CELLS, CELLS, device=device)
    wh, offset, weight = (torch.zeros(batch, 2, CELLS, CELLS, device=device) for _ in range(3))
    for b in range(batch):
        centers = (boxes[b, :, :2] + boxes[b, :, 2:]) / (2 * STRIDE)
        for n in range(BOXES):
            w, h = ((boxes[b, n, 2:] - boxes[b, n, :2]) / STRIDE).tolist()
            x, y = centers[n].int().tolist()
            r = max(0, int(gaussian_radius(h, w, 0.3)))
            t = torch.arange(-r, r + 1, dtype=torch.float32, device=device)
            gaussian = torch.exp(-(t[None, :] ** 2 + t[:, None] ** 2) / (2 * ((2 * r + 1) / 6) ** 2))
            gaussian[gaussian < torch.finfo(torch.float32).eps * gaussian.max()] = 0
            left, right, top, bottom = min(x, r), min(CELLS - x, r + 1), min(y, r), min(CELLS - y, r + 1)
            window = heatmap[b, int(labels[b, n]), y - top : y + bottom, x - left : x + right]
            torch.maximum(window, gaussian[r - top : r + bottom, r - left : r + right], out=window)
            wh[b, 0, y, x], wh[b, 1, y, x] = w, h
            offset[b, :, y, x] = centers[n] - centers[n].int()
            weight[b, :, y, x] = 1
    return CenterNetTargets(heatmap, wh, offset, weight, heatmap.eq(1).sum().clamp(min=1))


def plain_losses(maps: tuple[Tensor, Tensor, Tensor], targets: CenterNetTargets) -> Tensor:
    """All three losses as PyTorch expressions over dense targets."""
    logits, wh, offset = maps
    count = targets.num_objects
    loss = plain_loss(logits, targets.heatmap) / count
    for pred, target, factor in ((wh, targets.wh, 0.1), (offset, targets.offset, 1.0)):
        loss = loss + factor * (F.l1_loss(pred, target, reduction="none") * targets.weight).sum() / (2 * count)
    return loss


def batch_cases(batch: int, device: str, kernel: bool) -> Iterator[Case]:
    """The configurations of one batch size."""
    g = torch.Generator().manual_seed(1)
    boxes, labels = boxes_of(batch, device)
    logits = (torch.randn(batch, CLASSES, CELLS, CELLS, generator=g) - 4).to(device).requires_grad_()
    wh, offset = (torch.rand(batch, 2, CELLS, CELLS, generator=g).to(device).requires_grad_() for _ in range(2))
    maps, shape = (logits, wh, offset), f"{batch}x{CLASSES}x{CELLS}x{CELLS}"
    data, criterion = logits.detach(), CenterNetLoss(CLASSES)
    targets = centernet_targets(boxes, labels, (CELLS, CELLS), IMAGE, CLASSES)
    cells = centernet_cells(boxes, labels, (CELLS, CELLS), IMAGE, CLASSES)
    center, radius, label = (RaggedBatch(t, sample_sizes=cells.sample_sizes) for t in cells[:3])

    def from_boxes() -> Tensor:
        return gaussian_focal_loss_from_boxes(logits, center, radius, label, avg_factor=targets.num_objects)

    def op() -> object:
        factors = (6.0, 2.0, 4.0, 1.0, 1.0)
        arguments = (data, *cells[:3], cells.sample_sizes, None, None, *factors)
        return ops.gaussian_focal_loss_from_boxes(*arguments, True)

    def all_losses() -> Tensor:
        losses = criterion(logits, wh, offset, boxes, labels, IMAGE)
        return sum(losses.values(), start=torch.zeros((), device=device))

    def loop_losses() -> Tensor:
        return plain_losses(maps, loop_targets(boxes.tensor, labels.tensor))

    def made(
        name: str,
        ours: Callable[[], object],
        theirs: Callable[[], object],
        label: str,
        floor: Callable[[], object],
        floor_name: str,
    ) -> Case:
        syncs = {"ours": count_syncs(ours), label: count_syncs(theirs)}
        return Case(f"{name} {shape}", ours, floor, {label: theirs}, floor_name, syncs)

    dense = backward(lambda: plain_loss(logits, targets.heatmap) / 100, logits)
    if kernel:
        yield made("focal loss from boxes", op, dense, "reference", data.clone, "copy or fill")
        return
    yield made(
        "targets",
        lambda: centernet_targets(boxes, labels, (CELLS, CELLS), IMAGE, CLASSES),
        lambda: loop_targets(boxes.tensor, labels.tensor),
        "reference",
        lambda: torch.zeros_like(data),
        "copy or fill",
    )
    yield made(
        "targets as the loss takes them",
        lambda: centernet_cells(boxes, labels, (CELLS, CELLS), IMAGE, CLASSES),
        lambda: loop_targets(boxes.tensor, labels.tensor),
        "reference",
        lambda: torch.zeros_like(data),
        "copy or fill",
    )
    yield made("focal loss from boxes", backward(from_boxes, logits), dense, "reference", data.clone, "copy or fill")
    yield made(
        "targets, losses, backward",
        backward(all_losses, *maps),
        backward(loop_losses, *maps),
        "reference",
        data.clone,
        "copy or fill",
    )


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Yield the configurations; with `kernel`, only the op's, without autograd."""
    for batch in BATCHES[: 1 if quick else None]:
        yield from batch_cases(batch, device, kernel)
