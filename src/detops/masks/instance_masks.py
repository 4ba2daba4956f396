"""Instance masks as the network predicted them: nothing of the image's size is stored until you ask for it.

A Mask R-CNN's masks of 28 x 28 cells come in with their boxes, or low-resolution maps of the whole image. Pasted masks,
crops, COCO's RLE, areas, overlaps and pictures go out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, replace
from numbers import Integral
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, require_device, require_module, require_tensor
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
from detops.masks.maps import checked_maps, grid_crop, masks_from_prototypes, pixel_windows
from detops.masks.placement import Mode, as_torchvision, reach
from detops.masks.resize import Content, Interpolation, Resize, Size, finite
from detops.masks.results import coco_rows, compact_masks, strings

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

    @classmethod
    def from_query_masks(
        cls,
        mask_logits: Tensor,
        labels: Tensor,
        scores: Tensor,
        image_size: tuple[int, int],
        boxes: Tensor | None = None,
        *,
        threshold: float = 0.0,
        content: Content | None = None,
        via: Size | None = None,
        interpolation: Interpolation = "bilinear",
    ) -> "InstanceMasks":
        """Take low-resolution maps of the image, one per instance: RF-DETR-Seg, Mask2Former, EoMT, RTMDet-Ins.

        A pixel belongs to the mask if `F.interpolate(mode="bilinear", align_corners=False)` gives it a value above the
        threshold. Border cells are repeated. Boxes cut nothing.

        Args:
            mask_logits: (N, h, w) logits, of kept queries alone; half precision is computed in float32.
            labels: (N,) integers.
            scores: (N,) floating point.
            image_size: Height and width of the image in pixels.
            boxes: (N, 4) xyxy in pixels of the image; None takes the extents of the masks, 0 where they are empty.
            threshold: Value that a pixel is above; 0 for logits is 1/2 for their sigmoid.
            content: (x1, y1, x2, y2): the part of the map, in its cells, that the image covers, where a letterbox or
                padding covers the rest; None for all of it. Whole numbers give what a slice of the map gives. With
                `via`, in pixels of that size.
            via: Height and width of a first resize, as Mask2Former, EoMT and RTMDet-Ins have it, to the size of the
                network's input; None for a single resize.
            interpolation: That of the last resize; "nearest" for Transformers' Mask2Former, which resizes the cut
                masks of 384 x 384.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Shapes or devices do not match, or a number is out of range; in checked mode, a logit is not
                finite.

        Example:
            >>> logits = torch.tensor([[[-1.0, 1, 1, -1]]])
            >>> found = InstanceMasks.from_query_masks(logits, torch.tensor([3]), torch.tensor([0.9]), (2, 8))
            >>> found.boxes, found.areas()
            (tensor([[2., 0., 6., 2.]]), tensor([8]))
        """
        maps = checked_maps("mask_logits", mask_logits)
        resize = Resize(threshold, content=content, via=via, interpolation=interpolation)
        return cls._of_maps(maps, labels, scores, image_size, boxes, resize)

    @classmethod
    def from_prototypes(
        cls,
        coefficients: Tensor,
        prototypes: Tensor,
        boxes: Tensor,
        labels: Tensor,
        scores: Tensor,
        image_size: tuple[int, int],
        *,
        threshold: float | None = None,
        content: Content | None = None,
        via: Size | None = None,
        crop: Literal["image", "prototypes"] | None = "image",
        activation: Literal["sigmoid"] | None = None,
        padding: int = 0,
    ) -> "InstanceMasks":
        """Take coefficients over prototypes that all instances of an image share: YOLACT, YOLO-seg.

        A map is the product of an instance's coefficients and the prototypes. It is enlarged as in `from_query_masks`
        and cut to its box: YOLO's order with `crop="image"`, YOLACT's with `crop="prototypes"`,
        `activation="sigmoid"` and `padding=1`.

        Args:
            coefficients: (N, K) floating point.
            prototypes: (K, h, w) floating point.
            boxes: (N, 4) xyxy in pixels of the image.
            labels: (N,) integers.
            scores: (N,) floating point.
            image_size: Height and width of the image in pixels.
            threshold: Value that a pixel is above; None takes 0, and with an activation 0.5.
            content: The part of the map that the image covers, as in `from_query_masks`.
            via: Height and width of a first resize.
            crop: "image" keeps the pixels with x1 <= x < x2 of the box, and rows likewise; "prototypes" sets the cells
                outside it to 0, before they are enlarged, so that a mask can reach a cell further; None cuts nothing.
            activation: "sigmoid" is taken of the cells, before they are enlarged.
            padding: Cells around the box that are kept, with `crop="prototypes"`.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Shapes or devices do not match, a number is out of range, or a choice is unknown; in checked
                mode, a coefficient or a prototype is not finite.

        Example:
            >>> boxes, labels, scores = torch.tensor([[0.0, 0, 3, 2]]), torch.tensor([3]), torch.tensor([0.9])
            >>> coefficients, prototypes = torch.ones(1, 1), torch.ones(1, 2, 4)
            >>> found = InstanceMasks.from_prototypes(coefficients, prototypes, boxes, labels, scores, (4, 8))
            >>> found.areas()
            tensor([6])
        """
        maps = masks_from_prototypes(coefficients, prototypes, boxes, crop, activation, padding)
        resize = Resize(
            (0.0 if activation is None else 0.5) if threshold is None else threshold, content=content, via=via
        )
        size = height_and_width(image_size)
        if crop == "prototypes":
            resize.check((maps.shape[1], maps.shape[2]))
            grid_crop(maps, boxes, resize, size, padding)
        elif crop == "image":
            resize = replace(resize, windows=pixel_windows(boxes, size))
        return cls._of_maps(maps, labels, scores, size, boxes, resize)

    @classmethod
    def _of_maps(
        cls, maps: Tensor, labels: Tensor, scores: Tensor, image_size: Size, boxes: Tensor | None, resize: Resize
    ) -> "InstanceMasks":
        """Make instances of maps; without boxes, those around the masks."""
        given = maps.new_zeros(len(maps), 4, dtype=torch.float32) if boxes is None else boxes
        found = cls(given, labels, scores, maps, image_size, resize=resize)
        return replace(found, boxes=found._measures(None)[1].to(torch.float32)) if boxes is None else found

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
            return self._crops_of_maps(threshold)
        cut = self._cut(threshold)
        windows = reach(self._placed(), self.masks.shape[-2:], self.image_size, cut).to(torch.int64)
        shifted = self._placed().to(position_dtype(windows.device)) - windows[:, :2].repeat(1, 2)
        result = []
        for n, (left, top, right, bottom) in enumerate(windows.tolist()):
            if left < right and top < bottom:
                mask, box = self.masks[n : n + 1], shifted[n : n + 1]
                crop = ops.paste_masks(masks=mask, boxes=box, height=bottom - top, width=right - left, threshold=cut)[0]
            else:
                crop = torch.zeros(0, 0, dtype=torch.bool, device=windows.device)
            result.append(MaskCrop(crop, left, top))
        return result

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
        runs, others = self._runs(threshold, compress=False), other._runs(threshold, compress=False)
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
    ) -> Any:
        """Draw masks, boxes, labels and scores over an image. Needs Pillow.

        Masks in boxes change no pixel outside these; maps of the whole image change those of their masks.

        Args:
            image: A Pillow image, or uint8 (height, width, 3) as an array or a tensor, of `image_size`.
            class_names: Names by label; None writes the labels as numbers.
            threshold: Least probability of a pixel of the mask, above 0; None takes 0.5. Of maps of the whole image,
                what a pixel is above; None takes what they were made with.
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

    def _crops_of_maps(self, threshold: float | None) -> list[MaskCrop]:
        """Return the pixels of the masks' extents."""
        counts, offsets = self._runs(threshold, compress=False)
        height, width = self.image_size
        extents = ops.rle_measures(counts, offsets, height=height, width=width)[1].tolist()
        ends, result = offsets.tolist(), []
        for n, (left, top, right, bottom) in enumerate(extents):
            own = counts[ends[n] : ends[n + 1]]
            crop = ops.rle_to_masks(
                own, offsets.new_tensor([0, len(own)]), height=height, width=width, x=left, y=top, rows=bottom - top,
                columns=right - left, packed=False,
            )  # fmt: skip
            result.append(MaskCrop(crop[0], left, top))
        return result
