"""Constructors of `GroundTruth`, one per source: the forms of data sets, data loaders and other libraries."""

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor

from detops.arguments import FLOATS, INTEGERS, require_tensor
from detops.diagnostics.checked import is_checked
from detops.geometry.boxes import to_xyxy
from detops.geometry.levels import ImageSizes, image_sizes_tensor
from detops.ground_truth.fields import (
    as_boxes,
    as_labels,
    crowds,
    padded_masks,
    plain_xyxy,
    require_keys,
    scaled,
)  # fmt: skip
from detops.ground_truth.rows import check_rows, packed, whole_labels
from detops.ragged.padded import Batch, as_padded, compare_sizes


class GroundTruthSources:
    """The constructors; `GroundTruth` has the rest."""

    @classmethod
    def from_boxes(
        cls,
        boxes: Batch,
        labels: Batch,
        *,
        ignored: Batch | None = None,
        image_sizes: ImageSizes | None = None,
        masks: Sequence[Tensor] | Tensor | None = None,
        pad_to: int | None = None,
        pad_ignored_to: int | None = None,
    ) -> Self:
        """Take boxes and labels as lists, ragged batches or tensors.

        Args:
            boxes: A list of B tensors, arrays or lists (n, 4), a `RaggedBatch` (B, N, 4), or a tensor (B, N, 4), which
                is a batch without padding: xyxy in pixels.
            labels: (B, N) integers in the same forms.
            ignored: (B, M, 4) ignored regions in the same forms.
            image_sizes: Height and width of each image.
            masks: A list of B tensors (n, H, W) of one H and W, or a tensor (B, N, H, W).
            pad_to: Pad every image to this many boxes, so that all batches have one shape.
            pad_ignored_to: Pad every image to this many ignored regions.

        Returns:
            The ground truth, on the device of `boxes`.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Shapes or devices do not match, an image has more of one than of the other, or more boxes than
                `pad_to`. Sizes that lie on a device are compared in checked mode only.
        """
        padded, sizes = as_padded("boxes", boxes, (4,), torch.float32)
        label, label_sizes = as_padded("labels", labels, (), torch.int64)
        compare_sizes("labels", (labels, label_sizes), "boxes", (boxes, sizes))
        region, region_sizes = (None, None) if ignored is None else as_padded("ignored", ignored, (4,), torch.float32)
        mask = masks
        if mask is not None and not isinstance(mask, Tensor):
            mask = padded_masks(mask)
            compare_sizes("masks", (masks, None), "boxes", (boxes, sizes))
        made = cls(  # type: ignore[call-arg]
            boxes=padded.detach(),
            labels=label,
            sample_sizes=sizes,
            image_sizes=None if image_sizes is None else image_sizes_tensor(image_sizes, len(padded), padded.device),
            ignored=None if region is None else region.detach(),
            ignored_sizes=region_sizes,
            masks=mask,
        )
        return made if pad_to is None and pad_ignored_to is None else cast(Any, made).pad_to(pad_to, pad_ignored_to)

    @classmethod
    def from_dicts(
        cls,
        targets: Sequence[Mapping[str, Any]],
        *,
        first_label: int = 0,
        image_sizes: ImageSizes | None = None,
        pad_to: int | None = None,
        pad_ignored_to: int | None = None,
    ) -> Self:
        """Take torchvision's targets: one dict per image.

        Args:
            targets: Dicts with "boxes" (n, 4), xyxy in pixels or `tv_tensors.BoundingBoxes` of any format, and "labels"
                (n,). Where "iscrowd" (n,) is 1, the box is an ignored region. "masks" (n, H, W) are kept if every image
                has them, in one size. Other keys are not read.
            first_label: Label of the first class; it is subtracted. 1 for labels that reserve 0 for the background, as
                torchvision's models expect them.
            image_sizes: Height and width of each image; by default those that `BoundingBoxes` hold, if all do.
            pad_to: Pad every image to so many boxes.
            pad_ignored_to: Pad every image to so many ignored regions.

        Returns:
            The ground truth, on the device of the boxes.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: A key is missing, or shapes or devices do not match.
        """
        boxes, labels, ignored, canvases = [], [], [], []
        masks: list[Any] = []
        for b, target in enumerate(targets):
            where = f"targets: image {b}"
            require_keys(target, ("boxes", "labels"), where)
            box, canvas = plain_xyxy(target["boxes"], f'{where}, "boxes"')
            label = as_labels(target["labels"], first_label, f'{where}, "labels"')
            canvases.append(canvas)
            for key in ("labels", "masks", "iscrowd"):
                if target.get(key) is not None and len(target[key]) != len(box):
                    raise ValueError(f'{where}, "{key}": expected {len(box)}, one per box, got {len(target[key])}')
            crowd, mask = crowds(target), target.get("masks")
            if crowd is not None:
                ignored.append(box[crowd])
                box, label = box[~crowd], label[~crowd]
                mask = None if mask is None else torch.as_tensor(mask)[~crowd]
            else:
                ignored.append(box[:0])
            boxes.append(box)
            labels.append(label)
            masks.append(mask)
        if image_sizes is None and targets and all(canvas is not None for canvas in canvases):
            image_sizes = cast(ImageSizes, canvases)
        return cls.from_boxes(
            boxes or torch.zeros(0, 0, 4),
            labels or torch.zeros(0, 0, dtype=torch.int64),
            ignored=ignored if any(len(region) for region in ignored) else None,
            image_sizes=image_sizes,
            masks=cast(Any, masks) if masks and all(mask is not None for mask in masks) else None,
            pad_to=pad_to,
            pad_ignored_to=pad_ignored_to,
        )

    @classmethod
    def from_rows(
        cls,
        rows: Tensor,
        num_images: int,
        *,
        image_sizes: ImageSizes | None = None,
        normalized: bool = False,
        pad_to: int | None = None,
    ) -> Self:
        """Take YOLO's flat rows: image, class, cx, cy, w, h.

        Args:
            rows: (T, 6) numbers, in any order of images. A row whose class is not a whole number is ignored.
            num_images: B; rows of another image are dropped.
            image_sizes: Height and width of each image; required for normalised boxes.
            normalized: Boxes are fractions of their image's width and height, not pixels.
            pad_to: Number of boxes per image; rows beyond it are dropped, because counting them would wait for the
                device (in checked mode they raise an error). None avoids counting too: every image holds all T boxes,
                those of other images with label -1, so that box n is row n.

        Returns:
            The ground truth, on the device of the rows; made without waiting for it.

        Raises:
            TypeError: `rows` has the wrong type or dtype.
            ValueError: The shape differs, or normalised boxes come without image sizes; in checked mode also a row that
                is skipped for its values.
        """
        require_tensor("rows", rows, FLOATS + INTEGERS, "a tensor (T, 6) of numbers")
        if rows.dim() != 2 or rows.shape[1] != 6:
            raise ValueError(f"rows: expected shape (T, 6), got {tuple(rows.shape)}")
        if is_checked():
            check_rows("rows", rows, num_images)
        rows = rows.detach()
        image = rows[:, 0]
        cxcywh = rows[:, 2:] if rows.is_floating_point() else rows[:, 2:].to(torch.float32)
        label = whole_labels(rows[:, 1])
        size = None if image_sizes is None else image_sizes_tensor(image_sizes, num_images, rows.device)
        if normalized and size is None:
            raise ValueError("image_sizes: expected a height and a width per image, as boxes are normalised, got None")
        sizes = None
        if pad_to is None:
            own = image == torch.arange(num_images, device=rows.device)[:, None]  # (B, T)
            boxes, labels = cxcywh.expand(num_images, -1, -1), label.where(own, -1)
        else:
            boxes, labels, sizes = packed(image, cxcywh, label, num_images, pad_to)
        if normalized and size is not None:
            boxes = scaled(boxes, size[:, None])
        return cls._of_cxcywh(boxes, labels, sizes, size)

    @classmethod
    def _of_cxcywh(
        cls, boxes: Tensor, labels: Tensor, sample_sizes: Tensor | None, image_sizes: Tensor | None = None
    ) -> Self:
        """Make ground truth of padded boxes (B, N, 4) cxcywh in pixels, which it keeps in this form too."""
        made = cls(to_xyxy(boxes), labels, sample_sizes, image_sizes)  # type: ignore[call-arg]
        object.__setattr__(made, "_cxcywh", boxes)
        return made

    @classmethod
    def from_transformers(
        cls,
        targets: Sequence[Mapping[str, Any]],
        *,
        image_sizes: ImageSizes | None = None,
        pad_to: int | None = None,
        pad_ignored_to: int | None = None,
    ) -> Self:
        """Take the labels of Hugging Face Transformers' detectors: one dict per image.

        Args:
            targets: Dicts with "class_labels" (n,) and "boxes" (n, 4), cxcywh as fractions of the image's width and
                height; "size", the image's height and width in pixels; "masks" (n, H, W) and "iscrowd" as in
                `from_dicts`.
            image_sizes: Height and width of each image, in place of "size".
            pad_to: Pad every image to so many boxes.
            pad_ignored_to: Pad every image to so many ignored regions.

        Returns:
            The ground truth in pixels, on the device of the boxes.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: A key is missing, image sizes are not known, or shapes or devices do not match.
        """
        boxes: list[Tensor] = []
        for b, target in enumerate(targets):
            where = f"targets: image {b}"
            require_keys(target, ("boxes", "class_labels"), where)
            if image_sizes is None and "size" not in target:
                raise ValueError(
                    f"image_sizes: expected a height and a width per image, as boxes are normalised and image {b} has"
                    ' no "size"'
                )
            boxes.append(as_boxes(target["boxes"], f'{where}, "boxes"'))
        if image_sizes is None:
            image_sizes = torch.stack([torch.as_tensor(target["size"]) for target in targets]) if targets else []
        sizes = image_sizes_tensor(image_sizes, len(targets), boxes[0].device if boxes else torch.device("cpu"))
        dicts = [
            {**target, "boxes": to_xyxy(scaled(box, size)), "labels": target["class_labels"]}
            for target, box, size in zip(targets, boxes, sizes, strict=True)
        ]
        return cls.from_dicts(dicts, image_sizes=sizes, pad_to=pad_to, pad_ignored_to=pad_ignored_to)

    @classmethod
    def from_coco(
        cls,
        annotations: Sequence[Sequence[Mapping[str, Any]]],
        category_ids: Sequence[int] | None = None,
        *,
        image_sizes: ImageSizes | None = None,
        pad_to: int | None = None,
        pad_ignored_to: int | None = None,
    ) -> Self:
        """Take COCO's annotations: one list of dicts per image.

        Args:
            annotations: Dicts with "bbox" [x, y, w, h] in pixels and "category_id"; where "iscrowd" is 1, the box is an
                ignored region.
            category_ids: The category id of each class, in the order of the labels; None where ids are the labels.
            image_sizes: Height and width of each image.
            pad_to: Pad every image to so many boxes.
            pad_ignored_to: Pad every image to so many ignored regions.

        Returns:
            The ground truth, on the CPU.

        Raises:
            ValueError: A key is missing, a category is not among `category_ids`, or an image has more than `pad_to`
                boxes.
        """
        label_of = None if category_ids is None else {category: label for label, category in enumerate(category_ids)}
        dicts = []
        for b, image in enumerate(annotations):
            rows, labels, flags = [], [], []
            for n, annotation in enumerate(image):
                where = f"annotations: image {b}, annotation {n}"
                require_keys(annotation, ("bbox", "category_id"), where)
                bbox = [float(number) for number in annotation["bbox"]]
                if len(bbox) != 4:
                    raise ValueError(f'{where}, "bbox": expected 4 numbers, got {len(bbox)}')
                x, y, width, height = bbox
                category = annotation["category_id"]
                if label_of is not None and category not in label_of:
                    raise ValueError(f'{where}, "category_id": expected one of category_ids, got {category!r}')
                rows.append([x, y, x + width, y + height])
                labels.append(category if label_of is None else label_of[category])
                flags.append(annotation.get("iscrowd", 0))
            dicts.append({"boxes": rows, "labels": labels, "iscrowd": flags})
        return cls.from_dicts(dicts, image_sizes=image_sizes, pad_to=pad_to, pad_ignored_to=pad_ignored_to)
