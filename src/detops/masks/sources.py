"""Constructors of `InstanceMasks`, one per source: masks in boxes, maps of the whole image, prototypes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, require_tensor
from detops.masks.checks import fields_of, height_and_width, masks_of_labels
from detops.masks.maps import checked_maps, grid_crop, masks_from_prototypes, pixel_windows
from detops.masks.placement import Mode
from detops.masks.resize import Content, Interpolation, Resize, Size


class InstanceMaskSources:
    """The constructors; `InstanceMasks` has the rest."""

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
    ) -> Self:
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
        return cls(boxes, labels, scores, own, image_size, logits=logits, mode=mode)  # type: ignore[call-arg]

    @classmethod
    def from_torchvision(cls, output: Mapping[str, Tensor], image_size: tuple[int, int]) -> Self:
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
    ) -> Self:
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
    ) -> Self:
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
            >>> from detops import InstanceMasks
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
    ) -> Self:
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
            crop: "image" keeps the pixels with x1 <= x < x2 of the box, and rows likewise. "prototypes" sets the cells
                outside the box to 0 before the map is enlarged; interpolation between a cell inside and a 0 outside
                can carry the mask up to one cell beyond the box. None does not cut the mask to its box.
            activation: "sigmoid" is taken of the cells, before they are enlarged.
            padding: Cells around the box that are kept, with `crop="prototypes"`.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Shapes or devices do not match, a number is out of range, or a choice is unknown; in checked
                mode, a coefficient or a prototype is not finite.

        Example:
            >>> from detops import InstanceMasks
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
    ) -> Self:
        """Make instances of maps; without boxes, those around the masks."""
        size = height_and_width(image_size)
        if boxes is None:
            resize.check((maps.shape[1], maps.shape[2]))
            runs = resize.run_lengths(maps, size, resize.threshold, compress=False)
            boxes = ops.rle_measures(*runs, height=size[0], width=size[1])[1].to(torch.float32)
        return cls(boxes, labels, scores, maps, size, resize=resize)  # type: ignore[call-arg]
