"""Instance masks as the network made them: nothing of the image's size exists until it is asked for.

A Mask R-CNN's masks of 28 x 28 cells, with their boxes, come in; pasted masks, crops, COCO's RLE, areas, overlaps and
pictures go out.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.arguments import require_device, require_module
from detops.geometry import run_lengths
from detops.masks.checks import check, check_cut, check_names, fields_of, height_and_width, of_class
from detops.masks.drawing import draw
from detops.masks.placement import as_torchvision, reach, wide

Mode = Literal["detectron2", "torchvision"]
Index = int | slice | Sequence[int] | Tensor


class MaskCrop(NamedTuple):
    """A mask at the size of its box.

    Attributes:
        mask: (h, w) bool.
        x: Column of the image where it begins.
        y: Row of the image where it begins.
    """

    mask: Tensor
    x: int
    y: int


@dataclass(frozen=True, eq=False)
class InstanceMasks:
    """The instances of an image, with raw masks.

    A mask is enlarged to its box by bilinear interpolation, beyond whose edge it is 0, and cut at a threshold; what
    lies outside the image is cut away. A box that is inverted, has no width or height, lies outside the image, or has
    a number that is not finite gives an empty mask. The methods that make masks take:

    threshold: A pixel belongs to the mask if its probability is at least this; above 0.

    mode: "detectron2" samples at the centres of pixels, as Detectron2 and MMDetection do; "torchvision" first grows
    boxes by a cell of the mask on either side and cuts them to whole pixels, as torchvision does.

    Args:
        boxes: (N, 4) xyxy in pixels of the image, floating point.
        labels: (N,) integers.
        scores: (N,) floating point.
        masks: (N, h, w) probabilities of the predicted class, or its logits; floating point.
        image_size: Height and width in pixels, below 2^31 of them.
        logits: The masks are logits; their sigmoid is taken, in float32.

    Attributes: the arguments but `logits`; `masks` are probabilities.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match; in checked mode, a box has a number that is not finite.

    Example:
        >>> boxes = torch.tensor([[2.0, 1, 6, 4]])
        >>> found = InstanceMasks(boxes, torch.tensor([3]), torch.tensor([0.9]), torch.ones(1, 28, 28), (6, 8))
        >>> found.paste().sum(), found.areas()
        (tensor(12), tensor([12]))
        >>> found.to_rle()
        [{'size': [6, 8], 'counts': b'=3300000;'}]
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor
    image_size: tuple[int, int]
    logits: InitVar[bool] = False

    def __post_init__(self, logits: bool) -> None:
        check(self.boxes, self.labels, self.scores, self.masks)
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
        logits: bool = False,
    ) -> "InstanceMasks":
        """Take of each instance's masks that of its label, before any sigmoid.

        Args:
            boxes: (N, 4).
            labels: (N,), index of a class; where it is none, the mask is empty.
            scores: (N,).
            masks: (N, C, h, w) of all classes, or (N, 1, h, w) where all classes share one.
            image_size: Height and width.
            logits: The masks are logits.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Shapes or devices do not match; in checked mode, a label is no class.
        """
        own = of_class(masks, labels, -torch.inf if logits else 0.0)
        return cls(boxes, labels, scores, own, image_size, logits)

    @classmethod
    def from_torchvision(cls, output: Mapping[str, Tensor], image_size: tuple[int, int]) -> "InstanceMasks":
        """Take what torchvision's `RoIHeads` returns, before its masks are pasted; `mode="torchvision"` pastes alike.

        Args:
            output: "boxes" (N, 4), "labels" (N,), "scores" (N,), and "masks" (N, 1, h, w), probabilities. That is what
                `model.roi_heads` makes; `model.transform.postprocess` pastes, and replaces the raw masks.
            image_size: Height and width of the image that the boxes are in.

        Raises:
            TypeError: A value has the wrong type or dtype.
            ValueError: A key is missing, shapes do not match, or the masks have been pasted already.
        """
        boxes, labels, scores, masks = fields_of(output, ("boxes", "labels", "scores", "masks"), "output")
        if masks.shape[-2:] == height_and_width(image_size):
            raise ValueError(f"masks: expected raw masks, got pasted ones, {tuple(masks.shape)}")
        return cls.from_class_masks(boxes, labels, scores, masks, image_size)

    @classmethod
    def from_detectron2(
        cls, instances: Any, image_size: tuple[int, int] | None = None, logits: bool = False
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
        return cls.from_class_masks(getattr(boxes, "tensor", boxes), labels, scores, masks, image_size, logits)

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        height, width = self.image_size
        return f"InstanceMasks({len(self)} masks {tuple(self.masks.shape[1:])} in an image {height} x {width})"

    def __getitem__(self, index: Index) -> "InstanceMasks":
        """Some of the instances, by index, slice, indices or bool mask; one instance stays a list of one."""
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
        return InstanceMasks(*fields, self.image_size)

    def to(self, device: torch.device | str) -> "InstanceMasks":
        """The same on another device."""
        boxes, labels, scores, masks = (t.to(device) for t in (self.boxes, self.labels, self.scores, self.masks))
        return InstanceMasks(boxes, labels, scores, masks, self.image_size)

    def paste(self, index: Index | None = None, *, threshold: float = 0.5, mode: Mode = "detectron2") -> Tensor:
        """Masks at the size of the image.

        Args:
            index: Which instances, as in `masks[index]`; None for all.
            threshold: See the class.
            mode: See the class.

        Returns:
            (N, height, width) bool; (height, width) where `index` is a number.

        Raises:
            ValueError: The threshold is not above 0, or the mode is unknown.
            IndexError: There is no such instance.
        """
        chosen = self if index is None else self[index]
        pasted: Tensor = ops.paste_masks(*chosen._arguments(threshold, mode))
        return pasted[0] if isinstance(index, Integral) else pasted

    def crops(self, *, threshold: float = 0.5, mode: Mode = "detectron2") -> list[MaskCrop]:
        """Each mask at the size of its own box, cut to the image: all of its pixels that can be true.

        A crop has the pixels that its box touches. With a threshold below 0.5 a mask reaches up to half a cell beyond
        its box, and crops are larger by that. Boxes are read by the host once.

        Args:
            threshold: See the class.
            mode: See the class.

        Returns:
            One a mask; those of empty boxes are (0, 0).

        Raises:
            ValueError: The threshold is not above 0, or the mode is unknown.
        """
        masks, boxes, *_ = self._arguments(threshold, mode)
        windows = reach(boxes, masks.shape[-2:], self.image_size, threshold).to(torch.int64)
        shifted = boxes.to(wide(boxes)) - windows[:, :2].repeat(1, 2)
        result = []
        for n, (left, top, right, bottom) in enumerate(windows.tolist()):
            if left < right and top < bottom:
                part = slice(n, n + 1)
                crop = ops.paste_masks(masks[part], shifted[part], bottom - top, right - left, threshold)[0]
            else:
                crop = torch.zeros(0, 0, dtype=torch.bool, device=masks.device)
            result.append(MaskCrop(crop, left, top))
        return result

    def to_rle(self, threshold: float = 0.5, mode: Mode = "detectron2") -> list[dict[str, Any]]:
        """COCO's compressed run-length encoding of all masks, without pasting them.

        On a GPU the strings are made there, and only they travel to the host.

        Args:
            threshold: See the class.
            mode: See the class.

        Returns:
            {"size": [height, width], "counts": bytes} for each mask: what `pycocotools.mask.encode` makes of the pasted
            mask, byte for byte. For JSON, `counts.decode()`.

        Raises:
            ValueError: The threshold is not above 0, or the mode is unknown.
        """
        counts, offsets = (t.cpu() for t in ops.masks_to_rle(*self._arguments(threshold, mode), True))
        joined = ctypes.string_at(counts.data_ptr(), len(counts)) if len(counts) else b""
        ends = offsets.tolist()
        return [{"size": [*self.image_size], "counts": joined[begin:end]} for begin, end in pairwise(ends)]

    def to_coco(
        self,
        image_id: int | str,
        category_ids: Sequence[int] | None = None,
        threshold: float = 0.5,
        mode: Mode = "detectron2",
    ) -> list[dict[str, Any]]:
        """Rows of a COCO results file, for `json.dump`; `detops evaluate --results` and pycocotools read them.

        Args:
            image_id: Of the annotations' image.
            category_ids: Of the annotations' categories, by label; None where labels are category ids already.
            threshold: See the class.
            mode: See the class.

        Returns:
            For each mask its image, category, box (x, y, width, height), score, and segmentation as `to_rle` has it;
            none where the box or the score is not finite, for which JSON has no number.

        Raises:
            ValueError: The threshold is not above 0, the mode is unknown, or a label has no category.
        """
        kept = self[self.boxes.isfinite().all(1) & self.scores.isfinite()]
        labels = kept.labels.tolist()
        if category_ids is not None:
            check_names(labels, category_ids, "category")
            labels = [int(category_ids[label]) for label in labels]
        rows = zip(labels, kept.boxes.tolist(), kept.scores.tolist(), kept.to_rle(threshold, mode), strict=True)
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

    def areas(self, threshold: float = 0.5, mode: Mode = "detectron2") -> Tensor:
        """Pixels of each mask, (N,) int64, from run lengths.

        Args:
            threshold: See the class.
            mode: See the class.

        Raises:
            ValueError: The threshold is not above 0, or the mode is unknown.
        """
        return run_lengths.areas(*ops.masks_to_rle(*self._arguments(threshold, mode), False))

    def iou(self, other: "InstanceMasks", threshold: float = 0.5, mode: Mode = "detectron2") -> Tensor:
        """Overlap of every mask with every one of `other`, from run lengths.

        Args:
            other: Masks in an image of the same size.
            threshold: See the class.
            mode: See the class.

        Returns:
            (N, M) float32: shared pixels over pixels of both; 0 where both are empty.

        Raises:
            ValueError: The images differ in size, the threshold is not above 0, or the mode is unknown.
        """
        if self.image_size != other.image_size:
            raise ValueError(f"other: expected masks in an image of size {self.image_size}, got {other.image_size}")
        require_device("other", other.masks, self.masks, "self")
        arguments = [masks._arguments(threshold, mode) for masks in (self, other)]
        runs, others = (ops.masks_to_rle(*given, False) for given in arguments)
        # At a threshold of 0: the pixels that masks of any values reach.
        first, second = (reach(given[1], given[0].shape[-2:], self.image_size, 0) for given in arguments)
        low = torch.maximum(first[:, None, :2], second[:, :2])
        high = torch.minimum(first[:, None, 2:], second[:, 2:])
        pairs = (low < high).all(2).nonzero()  # masks of other boxes share nothing
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
        mode: Mode = "detectron2",
        opacity: float = 0.5,
    ) -> Any:
        """Masks, boxes, labels and scores over an image; only the boxes' pixels are touched. Needs Pillow.

        Args:
            image: A Pillow image, or uint8 (height, width, 3) as an array or a tensor, of `image_size`.
            class_names: Names by label, one for each; without them the number is written.
            threshold: See the class.
            mode: See the class.
            opacity: Of the masks, 0 .. 1.

        Returns:
            A new RGB image of Pillow.

        Raises:
            ModuleNotFoundError: Pillow or numpy is not installed.
            TypeError: The image has another type or dtype.
            ValueError: It has another size, a number is out of range, or a label has no name.
        """
        crops = self.crops(threshold=threshold, mode=mode)
        return draw(image, self.image_size, crops, self.boxes, self.labels, self.scores, class_names, opacity)

    def to_supervision(self, threshold: float = 0.5, mode: Mode = "detectron2") -> Any:
        """The same as `supervision.Detections`, with pasted masks. Needs supervision.

        Args:
            threshold: See the class.
            mode: See the class.

        Raises:
            ModuleNotFoundError: supervision is not installed.
            ValueError: The threshold is not above 0, or the mode is unknown.
        """
        supervision = require_module("supervision", "supervision", "to_supervision()", "supervision")
        return supervision.Detections(
            xyxy=self.boxes.float().cpu().numpy(),
            mask=self.paste(threshold=threshold, mode=mode).cpu().numpy(),
            confidence=self.scores.float().cpu().numpy(),
            class_id=self.labels.to(torch.int64).cpu().numpy(),
        )

    def _arguments(self, threshold: float, mode: str) -> tuple[Tensor, Tensor, int, int, float]:
        """What both ops take."""
        check_cut(threshold, mode)
        boxes = self.boxes if mode == "detectron2" else as_torchvision(self.boxes, self.masks.shape[-2:])
        return self.masks, boxes, *self.image_size, float(threshold)
