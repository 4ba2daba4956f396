"""`post_process_instance_segmentation` of Transformers' image processors, making no mask that is not kept."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.masks.instance_masks import InstanceMasks

Size = tuple[int, int]
Result = list[dict[str, Any]]
CHUNK_VALUES = 1 << 22  # pixels of maps at once, where a score is a mean over them
MASK2FORMER_SIZE = (384, 384)  # what Transformers enlarges its masks to, whatever the input was


@torch.no_grad()
def mask2former(
    outputs: Any,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    target_sizes: Sequence[Size] | None = None,
    return_coco_annotation: bool | None = False,
    return_binary_maps: bool | None = False,
    return_instances: bool = False,
) -> Any:
    """Compute what `Mask2FormerImageProcessor.post_process_instance_segmentation` does, or return `InstanceMasks`.

    The second and the third threshold are not used there either.
    """
    if return_coco_annotation and return_binary_maps:
        raise ValueError("return_coco_annotation and return_binary_maps can not be both set to True.")
    results: list[Any] = []
    for i, (logits, maps) in enumerate(zip(outputs.class_queries_logits, outputs.masks_queries_logits, strict=True)):
        count, classes = len(logits), logits.shape[-1] - 1
        scores, index = logits.softmax(-1)[:, :-1].flatten().topk(count, sorted=False)
        query = index // classes
        scores = scores * _mean_inside(maps, MASK2FORMER_SIZE, None, None)[query]
        kept = scores.double() >= threshold
        size = MASK2FORMER_SIZE if target_sizes is None else _size(target_sizes[i])
        options: dict[str, Any] = {}
        if target_sizes is not None:
            options = {"via": MASK2FORMER_SIZE, "interpolation": "nearest"}
        found = InstanceMasks.from_query_masks(maps[query[kept]], index[kept] % classes, scores[kept], size, **options)
        found = found[found.areas() > 0]
        if return_instances:
            results.append(found)
            continue
        segmentation: Any = _painted(found, torch.zeros(size) - 1)
        if return_coco_annotation:
            segmentation = _row_runs(segmentation)
        elif return_binary_maps and len(found):
            segmentation = found.paste().float()
        results.append({"segmentation": segmentation, "segments_info": _infos(found, 0, was_fused=False)})
    return results


@torch.no_grad()
def eomt(
    processor: Any,
    outputs: Any,
    target_sizes: Sequence[Size],
    threshold: float = 0.8,
    size: dict[str, int] | None = None,
    return_instances: bool = False,
) -> Any:
    """Compute what `EomtImageProcessor.post_process_instance_segmentation` does, or return `InstanceMasks`."""
    size = processor.size if size is None else size
    via = (size["shortest_edge"], size["longest_edge"] or size["shortest_edge"])
    results: list[Any] = []
    for i, (logits, maps) in enumerate(zip(outputs.class_queries_logits, outputs.masks_queries_logits, strict=True)):
        image = _size(target_sizes[i])
        height, width = _kept_ratio(image, size["shortest_edge"], size["longest_edge"])
        inner = (min(height, via[0]), min(width, via[1]))
        scores, labels = logits.softmax(-1)[:, :-1].max(-1)
        scores = scores * _mean_inside(maps, via, inner, image)
        kept = scores.double() >= threshold
        found = InstanceMasks.from_query_masks(
            maps[kept], labels[kept], scores[kept], image, via=via, content=(0, 0, inner[1], inner[0])
        )
        found = found[found.areas() > 0]
        if return_instances:
            results.append(found)
            continue
        segmentation = _painted(found, torch.zeros(image, device=maps.device) - 1)
        results.append({"segmentation": segmentation, "segments_info": _infos(found, 0)})
    return results


@torch.no_grad()
def rf_detr(
    outputs: Any,
    threshold: float = 0.5,
    mask_threshold: float = 0.0,
    target_sizes: Sequence[Size] | None = None,
    return_coco_annotation: bool = False,
    return_binary_maps: bool = False,
    top_k: int | None = None,
    return_instances: bool = False,
    **kwargs: Any,
) -> Any:
    """Compute what `RfDetrImageProcessor.post_process_instance_segmentation` does, or return `InstanceMasks`."""
    if return_coco_annotation and return_binary_maps:
        raise ValueError("`return_coco_annotation` and `return_binary_maps` cannot both be `True`.")
    probability = outputs.logits.sigmoid()
    batch, queries, classes = probability.shape
    most = min(queries if top_k is None else top_k, queries * classes)
    scores, index = probability.view(batch, -1).topk(most, dim=1)
    results: list[Any] = []
    for i in range(batch):
        kept = scores[i] > threshold
        maps, score, label = outputs.pred_masks[i][index[i][kept] // classes], scores[i][kept], index[i][kept] % classes
        size = (maps.shape[1], maps.shape[2]) if target_sizes is None else _size(target_sizes[i])
        found = InstanceMasks.from_query_masks(maps, label, score, size, threshold=mask_threshold)
        found = found[found.areas() > 0]
        if return_instances:
            results.append(found)
            continue
        segmentation: Any = torch.full(size, -1, dtype=torch.int32, device=maps.device)
        # Where no score is kept, Transformers returns the map in whatever form was asked for.
        if return_binary_maps and len(score):
            results.append({"segmentation": found.paste(), "segments_info": _infos(found, 1)})
            continue
        found = found[_paint_free(found, segmentation)]
        if return_coco_annotation and len(score):
            segmentation = _row_runs(segmentation)
        results.append({"segmentation": segmentation, "segments_info": _infos(found, 1)})
    return results


def _size(size: Any) -> Size:
    return int(size[0]), int(size[1])


def _mean_inside(maps: Tensor, via: Size, inner: Size | None, image: Size | None) -> Tensor:
    """Return the mean probability of the pixels that are above 0, (Q,), some maps at a time."""
    pixels = max(via[0] * via[1], 0 if image is None else image[0] * image[1])
    found = []
    for part in maps.split(max(1, CHUNK_VALUES // pixels)):
        value = F.interpolate(part[None], size=via, mode="bilinear", align_corners=False)
        if inner is not None:
            value = F.interpolate(value[..., : inner[0], : inner[1]], size=image, mode="bilinear", align_corners=False)
        inside = (value[0] > 0).to(value.dtype).flatten(1)
        found.append((value[0].sigmoid().flatten(1) * inside).sum(1) / (inside.sum(1) + 1e-6))
    return torch.cat(found) if found else maps.new_zeros(0)


def _painted(found: InstanceMasks, segmentation: Tensor) -> Tensor:
    """Write the place of each instance into its pixels; a later one overwrites."""
    for n, crop in enumerate(found.crops()):
        height, width = crop.mask.shape
        window = segmentation[crop.y : crop.y + height, crop.x : crop.x + width]
        window.masked_fill_(crop.mask.to(segmentation.device), n)
    return segmentation


def _paint_free(found: InstanceMasks, segmentation: Tensor) -> list[int]:
    """Number the instances from 1 in pixels that no earlier one has; return those that have any."""
    visible: list[int] = []
    for n, crop in enumerate(found.crops()):
        height, width = crop.mask.shape
        window = segmentation[crop.y : crop.y + height, crop.x : crop.x + width]
        free = crop.mask & (window == -1)
        if free.any():
            visible.append(n)
            window.masked_fill_(free, len(visible))
    return visible


def _infos(found: InstanceMasks, first: int, **more: Any) -> list[dict[str, Any]]:
    rows = zip(found.labels.tolist(), found.scores.tolist(), strict=True)
    return [
        {"id": first + n, "label_id": label, **more, "score": round(score, 6)} for n, (label, score) in enumerate(rows)
    ]


def _row_runs(segmentation: Tensor) -> list[list[Any]]:
    """Return runs of each id, row by row: pairs of a start, counted from 1, and a length. Not COCO's run lengths."""
    found = []
    for value in segmentation.unique():
        line = F.pad((segmentation == value).flatten().to(torch.int8), (1, 1))
        changes = line.diff().nonzero()[:, 0] + 1
        changes[1::2] -= changes[::2].clone()
        found.append(changes.tolist())
    return found


def _kept_ratio(image: Size, shortest: int, longest: int | None) -> Size:
    """Return the size of an image that was scaled to a shortest side, and to a longest at most."""
    height, width = image
    low, high, side = float(min(image)), float(max(image)), float(shortest)
    bounded = longest is not None and high / low * shortest > longest
    if bounded and longest is not None:
        side = longest * low / high
        shortest = round(side)
    if low == shortest:
        return image
    other = int(side * high / low)
    return (other, shortest) if width < height else (shortest, other)


FAMILIES: dict[str, Callable[..., Any]] = {"Mask2Former": mask2former, "Eomt": eomt, "RfDetr": rf_detr}


@cache
def with_masks(cls: Any) -> type | None:
    """Return a subclass of an image processor that post-processes masks here; None for one of another family."""
    family = next((name for name in FAMILIES if cls.__name__.startswith(f"{name}ImageProcessor")), None)
    if family is None:
        return None
    function = FAMILIES[family]

    def post_process_instance_segmentation(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs) if function is eomt else function(*args, **kwargs)

    members = {"post_process_instance_segmentation": post_process_instance_segmentation, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), members)
