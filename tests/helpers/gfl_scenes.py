"""Random inputs of the ops at positives."""

import torch

from detops.reference.positive_losses import BOX_KINDS, CLASS_KINDS

SHAPES, STRIDES = [(4, 6), (2, 3), (1, 1), (0, 2)], (8, 16, 32, 64)
SIZES = [h * w for h, w in SHAPES]
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def scene(seed, batch=2, boxes=3, classes=3, bins=5, teacher=True, region=False, dtype=torch.float32, share=0.3,
          channels_last=False, index_dtype=torch.int64, quality=False, weight=False):  # fmt: skip
    """Maps, boxes and a random box at a share of the points, by the names of the ops' arguments."""
    g = torch.Generator().manual_seed(seed)

    def maps(channels):
        found = [torch.randn(batch, channels, *shape, generator=g).mul(2).to(dtype) for shape in SHAPES]
        return [m.contiguous(memory_format=torch.channels_last) for m in found] if channels_last else found

    points = torch.cat([
        torch.tensor([[x * s, y * s, s] for y in range(h) for x in range(w)], dtype=torch.float32)
        for (h, w), s in zip(SHAPES, STRIDES, strict=True)
    ])  # fmt: skip
    low = torch.rand(batch, boxes, 2, generator=g) * 40 - 10
    gt = torch.cat([low, low + torch.rand(batch, boxes, 2, generator=g) * 60], -1)
    index = torch.full((batch, len(points)), -1)
    if boxes:
        taken = torch.rand(batch, len(points), generator=g) < share
        index = torch.randint(0, boxes, index.shape, generator=g).where(taken, -1)
    area = (torch.rand(batch, len(points), generator=g) - 0.5).clamp(min=0) if region else None
    # Whatever stands where there is no box, it is not read; some boxes have no weight.
    given = torch.rand(2, batch, len(points), generator=g).where(index >= 0, float("nan"))
    given[1] = given[1].where((given[1] > 0.2) | (index < 0), 0)
    return dict(
        cls_scores=maps(classes), bbox_preds=maps(4 * bins), soft_targets=maps(4 * bins) if teacher else [],
        points=points, boxes=gt, labels=torch.randint(0, classes, (batch, boxes), generator=g).to(index_dtype),
        index=index, quality=given[0] if quality else None, weight=given[1] if weight else None, region=area,
        most=len(points),
    )  # fmt: skip


def positives(scene, class_kind="quality", box_kind="giou", gamma=2.0, alpha=0.25, temperature=3.0, margin=0.1,
              scale=0.25, gradient=True):  # fmt: skip
    """Arguments of `positive_losses_`; the gradients that it changes are new each time."""
    g = torch.Generator().manual_seed(0)
    gradients = [torch.randn(t.shape, generator=g).to(t.dtype) for t in scene["cls_scores"]] if gradient else []
    names = ("cls_scores", "bbox_preds", "soft_targets", "points", "boxes", "labels", "index", "quality", "weight",
             "region")  # fmt: skip
    return (gradients, *(scene[name] for name in names), torch.tensor(scale), CLASS_KINDS.index(class_kind),
            BOX_KINDS.index(box_kind), alpha, gamma, temperature, margin, scene["most"])  # fmt: skip


def box_gradient(scene, box_kind="giou", temperature=3.0, margin=0.1):
    """Arguments of `positive_losses_backward`."""
    g = torch.Generator().manual_seed(1)
    weight = torch.rand(scene["index"].shape, generator=g).where(scene["index"] >= 0, 0)
    factors = torch.rand(4, len(SHAPES), generator=g) + 0.5
    names = ("bbox_preds", "soft_targets", "points", "boxes", "index")
    return (*(scene[name] for name in names), weight, scene["region"], factors, BOX_KINDS.index(box_kind), temperature,
            margin, scene["most"])  # fmt: skip


def moved(args, device):
    """The same on a device."""
    put = lambda t: t.to(device) if isinstance(t, torch.Tensor) else t  # noqa: E731
    return tuple([put(t) for t in arg] if isinstance(arg, list) else put(arg) for arg in args)
