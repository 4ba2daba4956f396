"""Instance masks as the network predicted them: nothing of the image's size is stored until you ask for it.

A Mask R-CNN's masks of 28 x 28 cells come in with their boxes. Pasted masks, crops, COCO's RLE, areas, overlaps and
pictures go out.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, require_device, require_module, require_tensor
from detops.geometry import run_lengths
from detops.geometry.positions import position_dtype
from detops.masks.checks import (
    check_fields,
    check_mode,
    check_names,
    check_threshold,
    fields_of,
    height_and_width,
    masks_of_labels,
)
from detops.masks.drawing import draw_masks
from detops.masks.placement import Mode, as_torchvision, reach

Index = int | slice | Sequence[int] | Tensor


class MaskCrop(NamedTuple):
    """A mask at the size of its box.

    Attributes:
        mask: (h, w) bool.
        x: Column of the image where the crop begins.
        y: Row of the image where the crop begins.
    """

    mask: Tensor
    x: int
    y: int


@dataclass(frozen=True, eq=False)
class InstanceMasks:
    """The instances of an image, with raw masks.

    Each method enlarges the masks to their boxes by bilinear interpolation, with 0 beyond their edge, and cuts them at
    a threshold: a pixel belongs to a mask if its probability is at least the threshold. Parts outside the image are cut
    off. A box that is inverted, has no width or height, lies outside the image, or has a coordinate that is not finite
    gives an empty mask.

    Args:
        boxes: (N, 4) xyxy in pixels of the image, floating point.
        labels: (N,) integers.
        scores: (N,) floating point.
        masks: (N, h, w) probabilities of the predicted class, or its logits; floating point.
        image_size: Height and width in pixels, whose product is below 2^31.
        logits: The masks are logits; their sigmoid is taken, in float32.
        mode: How a mask lies in its box. "detectron2" samples it at the centres of pixels, as Detectron2 and
            MMDetection do; "torchvision" first grows the box by one cell of the mask on each side and truncates it to
            whole pixels, as torchvision does. `dataclasses.replace(found, mode=...)` changes it.

    Attributes: the arguments, except `logits`; `masks` are probabilities.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or the mode is unknown; in checked mode, a box has a coordinate
            that is not finite.

    Example:
        >>> boxes = torch.tensor([[2.0, 1, 6, 4]])
        >>> found = InstanceMasks(boxes, torch.tensor([3]), torch.tensor([0.9]), torch.ones(1, 28, 28), (6, 8))
        >>> found.paste().sum(), found.areas()
        (tensor(12), tensor([12]))
        >>> found.to_rle()
        [{'size': [6, 8], 'counts': b'=3300000;'}]

    Reference:
        Detectron2's and torchvision's `paste_masks_in_image`; pycocotools' `encode`.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor
    image_size: tuple[int, int]
    _: KW_ONLY
    logits: InitVar[bool] = False
    mode: Mode = "detectron2"

    def __post_init__(self, logits: bool) -> None:
        check_fields(self.boxes, self.labels, self.scores, self.masks)
        check_mode(self.mode)
        object.__setattr__(self, "image_size", height_and_width(self.image_size))
        for name in ("boxes", "labels", "scores", "masks"):
            object.__setattr__(self, name, getattr(self, name).detach())
        if logits:
            object.__setattr__(self, "masks", self.masks.to(torch.float32).sigmoid())

    @classmethod
    def from_class_masks(
        cls,
        boxes: Tensor,
        labels: Tensor,
        scores: Tensor,
        masks: Tensor,
        image_size: tuple[int, int],
        *,
        logits: bool = False,
        mode: Mode = "detectron2",
    ) -> "InstanceMasks":
        """Take the masks of all classes, and keep each instance's mask of its own label, before any sigmoid.

        Args:
            boxes: (N, 4) xyxy in pixels of the image.
            labels: (N,) integers; where one is not a class, the mask is empty.
            scores: (N,).
            masks: (N, C, h, w) per class, or (N, 1, h, w) where all classes share one mask.
            image_size: Height and width in pixels.
            logits: The masks are logits.
            mode: How a mask lies in its box, "detectron2" or "torchvision".

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Shapes or devices do not match, or the mode is unknown; in checked mode, a label is not a
                class.
        """
        own = masks_of_labels(masks, labels, -torch.inf if logits else 0.0)
        return cls(boxes, labels, scores, own, image_size, logits=logits, mode=mode)

    @classmethod
    def from_torchvision(cls, output: Mapping[str, Tensor], image_size: tuple[int, int]) -> "InstanceMasks":
        """Take what torchvision's `RoIHeads` returns, before its masks are pasted; the mode is "torchvision".

        Args:
            output: "boxes" (N, 4), "labels" (N,), "scores" (N,), and "masks" (N, 1, h, w), probabilities. This is what
                `model.roi_heads` returns; `model.transform.postprocess` pastes the masks and drops the raw ones.
            image_size: Height and width of the image that the boxes are in.

        Raises:
            TypeError: A value has the wrong type or dtype.
            ValueError: A key is missing, shapes do not match, or the masks have been pasted already.
        """
        boxes, labels, scores, masks = fields_of(output, ("boxes", "labels", "scores", "masks"), "output")
        require_tensor("masks", masks, FLOATS, "a floating-point tensor")
        if masks.shape[-2:] == height_and_width(image_size):
            raise ValueError(f"masks: expected raw masks, got pasted ones, {tuple(masks.shape)}")
        return cls.from_class_masks(boxes, labels, scores, masks, image_size, mode="torchvision")

    @classmethod
    def from_detectron2(
        cls, instances: Any, image_size: tuple[int, int] | None = None, *, logits: bool = False
    ) -> "InstanceMasks":
        """Take what Detectron2's ROI heads return, before `detector_postprocess` pastes its masks.

        Args:
            instances: `Instances`, or any object or mapping with pred_boxes (`Boxes`, or a tensor (N, 4)), pred_classes
                (N,), scores (N,), and pred_masks (N, 1, h, w) or (N, C, h, w).
            image_size: Height and width; None takes `instances.image_size`.
            logits: The masks are logits, as the mask head makes them; after Detectron2's inference they are not.

        Raises:
            TypeError: A value has the wrong type or dtype.
            ValueError: A field is missing, or shapes do not match.
        """
        names = ("pred_boxes", "pred_classes", "scores", "pred_masks")
        boxes, labels, scores, masks = fields_of(instances, names, "instances")
        if image_size is None:
            image_size = fields_of(instances, ("image_size",), "instances")[0]
        boxes = getattr(boxes, "tensor", boxes)
        return cls.from_class_masks(boxes, labels, scores, masks, image_size, logits=logits)

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        height, width = self.image_size
        return f"InstanceMasks({len(self)} masks {tuple(self.masks.shape[1:])} in an image {height} x {width})"

    def __getitem__(self, index: Index) -> "InstanceMasks":
        """Select instances by a number, a slice, indices or a bool mask; a number gives an `InstanceMasks` of one."""
        chosen: slice | Tensor
        if isinstance(index, Integral):
            index = range(len(self))[int(index)]  # checks the range
            chosen = slice(index, index + 1)
        elif isinstance(index, slice):
            chosen = index
        else:
            given = torch.atleast_1d(torch.as_tensor(index, device=self.boxes.device))
            if given.dim() > 1:
                raise IndexError(f"index: expected a number, a slice or a list, got shape {tuple(given.shape)}")
            chosen = given if given.numel() else given.to(torch.int64)
        fields = (self.boxes[chosen], self.labels[chosen], self.scores[chosen], self.masks[chosen])
        return InstanceMasks(*fields, self.image_size, mode=self.mode)

    def to(self, device: torch.device | str) -> "InstanceMasks":
        """Copy all tensors to another device."""
        boxes, labels, scores, masks = (t.to(device) for t in (self.boxes, self.labels, self.scores, self.masks))
        return InstanceMasks(boxes, labels, scores, masks, self.image_size, mode=self.mode)

    def paste(self, index: Index | None = None, *, threshold: float = 0.5) -> Tensor:
        """Paste masks into images of full size.

        Args:
            index: The instances, as in `found[index]`; None for all.
            threshold: Least probability of a pixel of the mask; above 0.

        Returns:
            (N, height, width) bool; (height, width) where `index` is a number.

        Raises:
            ValueError: The threshold is not above 0.
            IndexError: There is no such instance.
        """
        check_threshold(threshold)
        chosen = self if index is None else self[index]
        height, width = self.image_size
        pasted = ops.paste_masks(
            masks=chosen.masks, boxes=chosen._placed(), height=height, width=width, threshold=float(threshold)
        )
        return pasted[0] if isinstance(index, Integral) else pasted

    def crops(self, *, threshold: float = 0.5) -> list[MaskCrop]:
        """Make each mask at the size of its own box, clipped to the image, so that no pixel of the mask is lost.

        A crop has the pixels that its box touches. With a threshold below 0.5 a mask reaches up to half a cell beyond
        its box, and crops are larger by that. The host reads the boxes once.

        Args:
            threshold: Least probability of a pixel of the mask; above 0.

        Returns:
            One per instance; those of empty boxes are (0, 0).

        Raises:
            ValueError: The threshold is not above 0.
        """
        check_threshold(threshold)
        windows = self._windows(threshold).to(torch.int64)
        shifted = self._placed().to(position_dtype(windows.device)) - windows[:, :2].repeat(1, 2)
        result = []
        for n, (left, top, right, bottom) in enumerate(windows.tolist()):
            if left < right and top < bottom:
                mask, box = self.masks[n : n + 1], shifted[n : n + 1]
                crop = ops.paste_masks(
                    masks=mask, boxes=box, height=bottom - top, width=right - left, threshold=float(threshold)
                )[0]
            else:
                crop = torch.zeros(0, 0, dtype=torch.bool, device=windows.device)
            result.append(MaskCrop(crop, left, top))
        return result

    def to_rle(self, *, threshold: float = 0.5) -> list[dict[str, Any]]:
        """Encode all masks by COCO's compressed run lengths, without pasting them.

        On a GPU the strings are made there, and only they are copied to the host.

        Args:
            threshold: Least probability of a pixel of the mask; above 0.

        Returns:
            {"size": [height, width], "counts": bytes} per mask: what `pycocotools.mask.encode` returns for the
            pasted mask, byte for byte. For JSON, `counts.decode()`.

        Raises:
            ValueError: The threshold is not above 0.
        """
        counts, offsets = (t.cpu() for t in self._runs(threshold, compress=True))
        joined = ctypes.string_at(counts.data_ptr(), len(counts)) if len(counts) else b""
        ends = offsets.tolist()
        return [{"size": [*self.image_size], "counts": joined[begin:end]} for begin, end in pairwise(ends)]

    def to_coco(
        self, image_id: int | str, category_ids: Sequence[int] | None = None, *, threshold: float = 0.5
    ) -> list[dict[str, Any]]:
        """Make rows of a COCO results file, for `json.dump`; `detops evaluate --results` and pycocotools read them.

        Args:
            image_id: Id of the image in the annotations.
            category_ids: Ids of the categories in the annotations, by label; None where labels are category ids.
            threshold: Least probability of a pixel of the mask; above 0.

        Returns:
            Per mask its image, category, box (x, y, width, height), score, and segmentation as in `to_rle`; no row
            where the box or the score is not finite, for which JSON has no number.

        Raises:
            ValueError: The threshold is not above 0, or a label has no category.
        """
        kept = self[self.boxes.isfinite().all(1) & self.scores.isfinite()]
        labels = kept.labels.tolist()
        if category_ids is not None:
            check_names(labels, category_ids, "category")
            labels = [int(category_ids[label]) for label in labels]
        rles = kept.to_rle(threshold=threshold)
        rows = zip(labels, kept.boxes.tolist(), kept.scores.tolist(), rles, strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": label,
                "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(score, 5),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
            for label, (x1, y1, x2, y2), score, rle in rows
        ]

    def areas(self, *, threshold: float = 0.5) -> Tensor:
        """Count the pixels of each mask, from run lengths.

        Args:
            threshold: Least probability of a pixel of the mask; above 0.

        Returns:
            (N,) int64.

        Raises:
            ValueError: The threshold is not above 0.
        """
        return run_lengths.areas(*self._runs(threshold, compress=False))

    def iou(self, other: "InstanceMasks", *, threshold: float = 0.5) -> Tensor:
        """Compute the overlap of every mask with every mask of `other`, from run lengths.

        Args:
            other: Masks in an image of the same size; each side has its own mode.
            threshold: Least probability of a pixel of the mask; above 0.

        Returns:
            (N, M) float32: shared pixels over pixels of either; 0 if both are empty.

        Raises:
            ValueError: The images differ in size or device, or the threshold is not above 0.
        """
        if self.image_size != other.image_size:
            raise ValueError(f"other: expected masks in an image of size {self.image_size}, got {other.image_size}")
        require_device("other", other.masks, self.masks, "self")
        runs, others = self._runs(threshold, compress=False), other._runs(threshold, compress=False)
        # At a threshold of 0, these are the pixels that masks of any values can reach.
        first, second = self._windows(0), other._windows(0)
        low = torch.maximum(first[:, None, :2], second[:, :2])
        high = torch.minimum(first[:, None, 2:], second[:, 2:])
        pairs = (low < high).all(2).nonzero()  # all other pairs share nothing
        shared = torch.zeros(len(self), len(other), dtype=torch.int64, device=self.masks.device)
        pixels = self.image_size[0] * self.image_size[1]
        shared[pairs[:, 0], pairs[:, 1]] = run_lengths.intersections(runs, others, pixels, pairs)
        area, area_other = run_lengths.areas(*runs), run_lengths.areas(*others)
        union = area[:, None] + area_other - shared
        return (shared.double() / union.clamp(min=1)).to(torch.float32)

    def draw(
        self,
        image: Any,
        *,
        class_names: Sequence[str] | Mapping[int, str] | None = None,
        threshold: float = 0.5,
        opacity: float = 0.5,
    ) -> Any:
        """Draw masks, boxes, labels and scores over an image; no pixel outside the boxes changes. Needs Pillow.

        Args:
            image: A Pillow image, or uint8 (height, width, 3) as an array or a tensor, of `image_size`.
            class_names: Names by label; None writes the labels as numbers.
            threshold: Least probability of a pixel of the mask; above 0.
            opacity: Opacity of the masks, 0 .. 1.

        Returns:
            A new RGB image of Pillow.

        Raises:
            ModuleNotFoundError: Pillow or numpy is not installed.
            TypeError: The image has another type or dtype.
            ValueError: The image has another size, a number is out of range, or a label has no name.
        """
        crops = self.crops(threshold=threshold)
        return draw_masks(image, self.image_size, crops, self.boxes, self.labels, self.scores, class_names, opacity)

    def to_supervision(self, *, threshold: float = 0.5) -> Any:
        """Convert to `supervision.Detections`, with pasted masks. Needs supervision.

        Args:
            threshold: Least probability of a pixel of the mask; above 0.

        Raises:
            ModuleNotFoundError: supervision is not installed.
            ValueError: The threshold is not above 0.
        """
        supervision = require_module("supervision", "supervision", "to_supervision()", "supervision")
        return supervision.Detections(
            xyxy=self.boxes.float().cpu().numpy(),
            mask=self.paste(threshold=threshold).cpu().numpy(),
            confidence=self.scores.float().cpu().numpy(),
            class_id=self.labels.to(torch.int64).cpu().numpy(),
        )

    def _placed(self) -> Tensor:
        """Return the boxes in which the masks are sampled."""
        return self.boxes if self.mode == "detectron2" else as_torchvision(self.boxes, self.masks.shape[-2:])

    def _runs(self, threshold: float, *, compress: bool) -> tuple[Tensor, Tensor]:
        """Return the run lengths of all masks, and where those of each begin."""
        check_threshold(threshold)
        boxes = self._placed()
        height, width = self.image_size
        return ops.masks_to_rle(
            masks=self.masks, boxes=boxes, height=height, width=width, threshold=float(threshold), compress=compress
        )

    def _windows(self, threshold: float) -> Tensor:
        """Return the pixels that masks can reach, (N, 4) xyxy."""
        return reach(self._placed(), self.masks.shape[-2:], self.image_size, threshold)
