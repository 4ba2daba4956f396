"""Masks in boxes, for the tests of all that takes them."""

import torch


def scene(
    seed,
    count=4,
    mask_size=(5, 7),
    image_size=(23, 31),
    dtype=torch.float32,
    box_dtype=torch.float32,
    ties=False,
    odd=False,
    spread=1.6,
):
    """Masks and boxes in and around an image.

    With `ties`, masks are eighths or tenths and boxes whole or half pixels, so that many values meet the threshold and
    rounding decides; with `odd`, some boxes are empty, inverted, huge, NaN or infinite, and some cells of masks NaN,
    infinite or out of 0 .. 1.
    """
    g = torch.Generator().manual_seed(seed)
    size = torch.tensor(image_size[::-1], dtype=torch.float32)
    masks = torch.rand(count, *mask_size, generator=g)
    low = (torch.rand(count, 2, generator=g) * spread - (spread - 1) / 2) * size
    boxes = torch.cat([low, low + torch.rand(count, 2, generator=g) * spread * size], 1)
    if ties:
        parts = 8 + 2 * (seed % 2)
        masks, boxes = (masks * parts).round() / parts, (boxes * 2).round() / 2
    if odd and count:
        kind = torch.randint(9, (count,), generator=g)
        boxes[kind == 0, 2] = boxes[kind == 0, 0]
        boxes[kind == 1] = boxes[kind == 1][:, [2, 3, 0, 1]]
        boxes[kind == 2, 1] = float("nan")
        boxes[kind == 3, 2] = float("inf")
        boxes[kind == 4] = torch.tensor([-1e9, -1e9, 1e9, 1e9])
        boxes[kind == 5, 2:] = 3e38
        boxes[kind == 6, 3] = boxes[kind == 6, 1] + 1e-3
        cell = torch.randint(12, masks.shape, generator=g)
        for value, number in enumerate((float("nan"), float("inf"), -float("inf"), 3e38, -3e38)):
            masks[(cell == value) & (kind == 7)[:, None, None]] = number
    return masks.to(dtype), boxes.to(box_dtype), *image_size


def blobs(count, image_size, seed=0, mask_size=28):
    """Smooth round masks in boxes of an image's usual sizes, all within it."""
    g = torch.Generator().manual_seed(seed)
    height, width = image_size
    side = max(image_size) * torch.exp(torch.rand(count, 1, generator=g) * 3.2 - 3.9)
    stretch = torch.exp(torch.rand(count, 1, generator=g) - 0.5)
    half = torch.cat([side * stretch, side / stretch], 1) / 2
    center = torch.rand(count, 2, generator=g) * torch.tensor([width, height])
    boxes = torch.cat([center - half, center + half], 1).clamp(min=0)
    boxes = torch.minimum(boxes, torch.tensor([width, height, width, height]))
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, mask_size)] * 2, indexing="ij")
    edge = 0.8 + 0.15 * torch.sin(3 * torch.atan2(y, x) + 6 * torch.rand(count, 1, 1, generator=g))
    return torch.sigmoid(12 * (edge - torch.hypot(x, y))), boxes
