"""`detops bench centernet`: CenterNet's targets, and all of its loss with the gradient, against a loop over boxes."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.apps.bench import _centernet
from detops.apps.bench._centernet import STRIDE, backward, maps_of, plain_loss, truth_of
from detops.apps.bench.runner import Case
from detops.criteria.centernet import CenterNetLoss
from detops.targets.centernet import CenterNetTargets, centernet_cells, centernet_targets
from detops.targets.radius import gaussian_radius

TESTS = ("tests/library/test_centernet_loss.py", "tests/library/test_centernet_targets.py")


def loop_targets(boxes: Tensor, labels: Tensor) -> CenterNetTargets:
    """Make targets as training code does today: image by image, box by box, with a handful of calls each."""
    batch, device = len(boxes), boxes.device
    cells = _centernet.CELLS
    heatmap = torch.zeros(batch, _centernet.CLASSES, cells, cells, device=device)
    wh, offset, weight = (torch.zeros(batch, 2, cells, cells, device=device) for _ in range(3))
    for b in range(batch):
        centers = (boxes[b, :, :2] + boxes[b, :, 2:]) / (2 * STRIDE)
        for n in range(_centernet.BOXES):
            w, h = ((boxes[b, n, 2:] - boxes[b, n, :2]) / STRIDE).tolist()
            x, y = centers[n].int().tolist()
            r = max(0, int(gaussian_radius(h, w, 0.3)))
            t = torch.arange(-r, r + 1, dtype=torch.float32, device=device)
            gaussian = torch.exp(-(t[None, :] ** 2 + t[:, None] ** 2) / (2 * ((2 * r + 1) / 6) ** 2))
            gaussian[gaussian < torch.finfo(torch.float32).eps * gaussian.max()] = 0
            left, right, top, bottom = min(x, r), min(cells - x, r + 1), min(y, r), min(cells - y, r + 1)
            window = heatmap[b, int(labels[b, n]), y - top : y + bottom, x - left : x + right]
            torch.maximum(window, gaussian[r - top : r + bottom, r - left : r + right], out=window)
            wh[b, 0, y, x], wh[b, 1, y, x] = w, h
            offset[b, :, y, x] = centers[n] - centers[n].int()
            weight[b, :, y, x] = 1
    return CenterNetTargets(heatmap, wh, offset, weight, heatmap.eq(1).sum().clamp(min=1))


def plain_losses(maps: tuple[Tensor, Tensor, Tensor], targets: CenterNetTargets) -> Tensor:
    """Compute all three losses by PyTorch expressions over dense targets."""
    logits, wh, offset = maps
    count = targets.num_objects
    loss = plain_loss(logits, targets.heatmap) / count
    for pred, target, factor in ((wh, targets.wh, 0.1), (offset, targets.offset, 1.0)):
        loss = loss + factor * (F.l1_loss(pred, target, reduction="none") * targets.weight).sum() / (2 * count)
    return loss


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield dense targets, targets as the loss takes them, and the whole loss, for two sizes of batches."""
    criterion = CenterNetLoss(_centernet.CLASSES)
    for batch in _centernet.BATCHES[: 1 if quick else None]:
        truth = truth_of(batch, device)
        maps = maps_of(batch, device)
        data, shape = maps[0].detach(), f"{batch}x{_centernet.CLASSES}x{_centernet.CELLS}x{_centernet.CELLS}"
        arguments = (truth, _centernet.GRID, _centernet.IMAGE, _centernet.CLASSES)
        loop = partial(loop_targets, truth.boxes, truth.labels)
        fill = partial(torch.zeros_like, data)

        yield Case(f"targets {shape}", partial(centernet_targets, *arguments), fill, {"loop": loop}, "zero fill")
        cells = partial(centernet_cells, *arguments)
        yield Case(f"targets as the loss takes them {shape}", cells, fill, {"loop": loop}, "zero fill")
        ours = backward(partial(_summed, partial(criterion, *maps, truth, _centernet.IMAGE)), *maps)
        baseline = backward(partial(_by_loop, maps, loop), *maps)
        yield Case(f"targets, losses, backward {shape}", ours, data.clone, {"loop": baseline}, "copy of logits")


def _summed(criterion: Callable[[], dict[str, Tensor]]) -> Tensor:
    return torch.stack(list(criterion().values())).sum()


def _by_loop(maps: tuple[Tensor, Tensor, Tensor], targets: Callable[[], CenterNetTargets]) -> Tensor:
    return plain_losses(maps, targets())
