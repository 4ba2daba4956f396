"""Instance masks as the network predicted them: nothing of the image's size is stored until you ask for it.

A Mask R-CNN's masks of 28 x 28 cells come in with their boxes, or low-resolution maps of the whole image. Pasted masks,
crops, COCO's RLE, areas, overlaps and pictures go out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from detops import ops
from detops.arguments import require_device, require_module
from detops.masks.checks import (
    check_fields,
    check_mode,
    check_names,
    check_threshold,
    height_and_width,
)
from detops.masks.crops import MaskCrop, crops_in_boxes, crops_of_runs
from detops.masks.drawing import draw_masks
from detops.masks.placement import Mode, as_torchvision
from detops.masks.resize import Resize, finite
from detops.masks.results import coco_rows, compact_masks, strings
from detops.masks.sources import InstanceMaskSources

Index = int | slice | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class InstanceMasks(InstanceMaskSources):
    """The instances of an image, with raw masks.

    Each method enlarges the masks to their boxes by bilinear interpolation, with 0 beyond their edge, and cuts them at
    a threshold: a pixel belongs to a mask if its probability is at least the threshold. Parts outside the image are cut
    off. A box that is inverted, has no width or height, lies outside the image, or has a coordinate that is not finite
    gives an empty mask.

    Of masks that `from_query_masks` or `from_prototypes` made, each method enlarges a map of the whole image, and a
    pixel belongs to the mask if its value is above a threshold. Their boxes cut nothing.

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
        resize: Set by `from_query_masks` and `from_prototypes`: the masks are maps of the whole image, and this is how
            they are enlarged to it.

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
    resize: Resize | None = None

    def __post_init__(self, logits: bool) -> None:
        check_fields(self.boxes, self.labels, self.scores, self.masks)
        check_mode(self.mode)
        object.__setattr__(self, "image_size", height_and_width(self.image_size))
        for name in ("boxes", "labels", "scores", "masks"):
            object.__setattr__(self, name, getattr(self, name).detach())
        if logits:
            object.__setattr__(self, "masks", self.masks.to(torch.float32).sigmoid())
        if self.resize is not None:
            self.resize.check((self.masks.shape[1], self.masks.shape[2]))

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        height, width = self.image_size
        kind = "masks" if self.resize is None else "maps"
        return f"InstanceMasks({len(self)} {kind} {tuple(self.masks.shape[1:])} in an image {height} x {width})"

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
        resize = None if self.resize is None else self.resize.select(chosen)
        return InstanceMasks(*fields, self.image_size, mode=self.mode, resize=resize)

    def to(self, device: torch.device | str) -> "InstanceMasks":
        """Copy all tensors to another device."""
        boxes, labels, scores, masks = (t.to(device) for t in (self.boxes, self.labels, self.scores, self.masks))
        resize = None if self.resize is None else self.resize.to(device)
        return InstanceMasks(boxes, labels, scores, masks, self.image_size, mode=self.mode, resize=resize)

    def paste(self, index: Index | None = None, *, threshold: float | None = None, packed: bool = False) -> Tensor:
        """Paste masks into images of full size.

        Beside the result, no memory of the image's size is needed. Where the result would be too large, paste some
        instances at a time, by `index`, or pack it.

        Args:
            index: The instances, as in `found[index]`; None for all.
            threshold: Least probability of a pixel of the mask, above 0; None takes 0.5. Of maps of the whole image,
                what a pixel is above; None takes what they were made with.
            packed: Return eight pixels of a row per byte, the first in the highest bit, as `numpy.packbits` does.

        Returns:
            (N, height, width) bool; packed (N, height, ceil(width / 8)) uint8; without N where `index` is a number.

        Raises:
            ValueError: The threshold is out of range.
            IndexError: There is no such instance.
        """
        chosen = self if index is None else self[index]
        height, width = self.image_size
        if self.resize is None and not packed:
            pasted = ops.paste_masks(
                masks=chosen.masks, boxes=chosen._placed(), height=height, width=width, threshold=chosen._cut(threshold)
            )
        else:
            pasted = ops.rle_to_masks(
                *chosen._runs(threshold, compress=False), height=height, width=width, x=0, y=0, rows=height,
                columns=width, packed=packed,
            )  # fmt: skip
        return pasted[0] if isinstance(index, Integral) else pasted

    def crops(self, *, threshold: float | None = None) -> list[MaskCrop]:
        """Make each mask at the size of its own box, clipped to the image, so that no pixel of the mask is lost.

        A crop has the pixels that its box touches. With a threshold below 0.5 a mask reaches up to half a cell beyond
        its box, and crops are larger by that. The host reads the boxes once. Of maps of the whole image, a crop is the
        smallest that holds the mask.

        Args:
            threshold: Least probability of a pixel of the mask, above 0; None takes 0.5. Of maps of the whole image,
                what a pixel is above; None takes what they were made with.

        Returns:
            One per instance; those of empty boxes, and of empty maps, are (0, 0).

        Raises:
            ValueError: The threshold is out of range.
        """
        if self.resize is not None:
            return crops_of_runs(*self._runs(threshold, compress=False), self.image_size)
        return crops_in_boxes(self.masks, self._placed(), self.image_size, self._cut(threshold))

    def to_rle(self, *, threshold: float | None = None) -> list[dict[str, Any]]:
        """Encode all masks by COCO's compressed run lengths, without pasting them.

        On a GPU the strings are made there, and only they are copied to the host.

        Args:
            threshold: Least probability of a pixel of the mask, above 0; None takes 0.5. Of maps of the whole image,
                what a pixel is above; None takes what they were made with.

        Returns:
            {"size": [height, width], "counts": bytes} per mask: what `pycocotools.mask.encode` returns for the
            pasted mask, byte for byte. For JSON, `counts.decode()`.

        Raises:
            ValueError: The threshold is out of range.
        """
        return [{"size": [*self.image_size], "counts": text} for text in strings(*self._runs(threshold, compress=True))]

    def to_coco(
        self, image_id: int | str, category_ids: Sequence[int] | None = None, *, threshold: float | None = None
    ) -> list[dict[str, Any]]:
        """Make rows of a COCO results file, for `json.dump`; `detops evaluate --results` and pycocotools read them.

        Args:
            image_id: Id of the image in the annotations.
            category_ids: Ids of the categories in the annotations, by label; None where labels are category ids.
            threshold: Least probability of a pixel of the mask, above 0; None takes 0.5. Of maps of the whole image,
                what a pixel is above; None takes what they were made with.

        Returns:
            Per mask its image, category, box (x, y, width, height), score, and segmentation as in `to_rle`; no row
            where the box or the score is not finite, for which JSON has no number.

        Raises:
            ValueError: The threshold is out of range, or a label has no category.
        """
        kept = self[self.boxes.isfinite().all(1) & self.scores.isfinite()]
        labels = kept.labels.tolist()
        if category_ids is not None:
            check_names(labels, category_ids, "category")
            labels = [int(category_ids[label]) for label in labels]
        return coco_rows(image_id, labels, kept.boxes, kept.scores, kept.to_rle(threshold=threshold))

    def areas(self, *, threshold: float | None = None) -> Tensor:
        """Count the pixels of each mask, from run lengths.

        Args:
            threshold: Least probability of a pixel of the mask, above 0; None takes 0.5. Of maps of the whole image,
                what a pixel is above; None takes what they were made with.

        Returns:
            (N,) int64.

        Raises:
            ValueError: The threshold is out of range.
        """
        return self._measures(threshold)[0]

    def iou(self, other: "InstanceMasks", *, threshold: float | None = None) -> Tensor:
        """Compute the overlap of every mask with every mask of `other`, from run lengths.

        Args:
            other: Masks in an image of the same size; each side has its own mode.
            threshold: Least probability of a pixel of the mask, above 0; None takes 0.5. Of maps of the whole image,
                what a pixel is above; None takes what they were made with.

        Returns:
            (N, M) float32: shared pixels over pixels of either; 0 if both are empty.

        Raises:
            ValueError: The images differ in size or device, or the threshold is out of range.
        """
        if self.image_size != other.image_size:
            raise ValueError(f"other: expected masks in an image of size {self.image_size}, got {other.image_size}")
        require_device("other", other.masks, self.masks, "self")
        height, width = self.image_size
        runs = self._runs(threshold, compress=False)
        others = runs if other is self else other._runs(threshold, compress=False)
        shared = ops.rle_overlaps(*runs, *others, height=height, width=width)
        area, area_other = (ops.rle_measures(*side, height=height, width=width)[0] for side in (runs, others))
        union = area[:, None] + area_other - shared
        return (shared.double() / union.clamp(min=1)).to(torch.float32)

    def draw(
        self,
        image: Any,
        *,
        class_names: Sequence[str] | Mapping[int, str] | None = None,
        threshold: float | None = None,
        opacity: float = 0.5,
        color_by: str = "instance",
    ) -> Any:
        """Draw masks, boxes, labels and scores over an image. Needs Pillow.

        Masks in boxes change no pixel outside these; maps of the whole image change those of their masks.

        Args:
            image: A Pillow image, or uint8 (height, width, 3) as an array or a tensor, of `image_size`.
            class_names: Names by label; None writes the labels as numbers.
            threshold: Least probability of a pixel of the mask, above 0; None takes 0.5. Of maps of the whole image,
                what a pixel is above; None takes what they were made with.
            opacity: Opacity of the masks, 0 .. 1.
            color_by: What gives the colour of mask, box and name: "instance", so that objects of one class are told
                apart; or "class", so that they are alike in all pictures.

        Returns:
            A new RGB image of Pillow.

        Raises:
            ModuleNotFoundError: Pillow or numpy is not installed.
            TypeError: The image has another type or dtype.
            ValueError: The image has another size, a number is out of range, a label has no name, or `color_by` is no
                such choice.
        """
        crops = self.crops(threshold=threshold)
        return draw_masks(
            image, self.image_size, crops, self.boxes, self.labels, self.scores, class_names, opacity, color_by
        )

    def to_supervision(self, *, threshold: float | None = None, compact: bool = False) -> Any:
        """Convert to `supervision.Detections`. Needs supervision.

        Args:
            threshold: Least probability of a pixel of the mask, above 0; None takes 0.5. Of maps of the whole image,
                what a pixel is above; None takes what they were made with.
            compact: Give the masks as supervision's `CompactMask`, made from run lengths and cut to the extents of each
                mask, so that no pixel is lost; otherwise they are pasted.

        Raises:
            ModuleNotFoundError: supervision is not installed.
            ValueError: The threshold is out of range.
        """
        supervision = require_module("supervision", "supervision", "to_supervision()", "supervision")
        if compact:
            runs = self._runs(threshold, compress=False)
            height, width = self.image_size
            mask = compact_masks(*runs, ops.rle_measures(*runs, height=height, width=width)[1], self.image_size)
        else:
            mask = self.paste(threshold=threshold).cpu().numpy()
        return supervision.Detections(
            xyxy=self.boxes.float().cpu().numpy(),
            mask=mask,
            confidence=self.scores.float().cpu().numpy(),
            class_id=self.labels.to(torch.int64).cpu().numpy(),
        )

    def _placed(self) -> Tensor:
        """Return the boxes in which the masks are sampled."""
        return self.boxes if self.mode == "detectron2" else as_torchvision(self.boxes, self.masks.shape[-2:])

    def _cut(self, threshold: float | None) -> float:
        """Return the threshold that is meant, checked."""
        if self.resize is not None:
            return self.resize.threshold if threshold is None else finite("threshold", threshold)
        cut = 0.5 if threshold is None else threshold
        check_threshold(cut)
        return float(cut)

    def _runs(self, threshold: float | None, *, compress: bool) -> tuple[Tensor, Tensor]:
        """Return the run lengths of all masks, and where those of each begin."""
        cut, (height, width) = self._cut(threshold), self.image_size
        if self.resize is not None:
            return self.resize.run_lengths(self.masks, self.image_size, cut, compress)
        return ops.masks_to_rle(
            masks=self.masks, boxes=self._placed(), height=height, width=width, threshold=cut, compress=compress
        )

    def _measures(self, threshold: float | None) -> tuple[Tensor, Tensor]:
        """Return the areas of all masks (N,), and their extents (N, 4) xyxy."""
        height, width = self.image_size
        return ops.rle_measures(*self._runs(threshold, compress=False), height=height, width=width)
