"""torchvision's Mask R-CNN with its own weights and modules; each costly step around them is replaced on request.

images -> preprocessing -> backbone -> RPN -> RoI heads (boxes, mask forward, mask postprocessing) -> results
"""

import importlib
import math
import platform
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from detops.diagnostics.environment import cpu_multiplies_bfloat16
from detops.diagnostics.stage_timer import StageTimer
from detops.inference.preprocess import as_tensor, is_single_image, no_list_of_images, to_batch
from detops.masks.checks import check_mode, check_threshold
from detops.masks.instance_masks import InstanceMasks
from detops.masks.placement import Mode

X86 = ("x86_64", "AMD64")
PARTS = ("backbone", "rpn", "heads")
Masks = Literal["pasted", "raw", "rle"]
Size = tuple[int, int]


class MaskRCNNPipeline:
    """Run a `torchvision.models.detection.MaskRCNN`, with each improvement behind its own switch.

    With all switches off the results are those of `model(images)`, bit for bit. The model is not changed and its
    weights are not copied; later changes to it (moving, training) take effect here too, except in a compiled backbone.

    With half precision only convolutions and linear layers run in it; anchors, boxes and scores stay float32, unlike
    in torchvision's own modules under `torch.autocast`.

    Args:
        model: The model, in evaluation mode, with any backbone and heads. The `forward` of the model and of its
            transform, RPN and RoI heads must be torchvision's own.
        half: Parts to run in half precision, any of "backbone", "rpn", "heads"; True for all. On a CPU without
            instructions for bfloat16 they are many times slower, of which a warning tells.
        half_dtype: dtype of half precision; None takes float16 on a GPU and bfloat16 on the CPU.
        device_preprocess: Resize, normalise and pad by `preprocess`, from uint8 on the model's device, in place of
            torchvision's transform, which needs float images.
        masks: Form of the masks in the results: "pasted", probabilities at image size, as in torchvision; "raw", an
            `InstanceMasks`, with nothing at image size; "rle", COCO's run lengths, computed from the raw masks.
        threshold: Least probability of a pixel of a mask, for "rle".
        mode: How "raw" and "rle" place a mask in its box: "torchvision" or "detectron2", as in `InstanceMasks`.
        compile_backbone: Run the backbone by `torch.compile`; a mapping gives its keyword arguments.
        batch_size: Number of images that go through the network at once; None takes all of a call, as torchvision.
        timer: Times the stages "preprocessing", "backbone", "rpn" and "roi_heads", and within the last "boxes",
            "mask_forward" and "mask_postprocessing".

    Raises:
        ModuleNotFoundError: torchvision is missing, or does not fit PyTorch.
        TypeError: The model is not such a Mask R-CNN.
        ValueError: Another argument is invalid.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        half: bool | Collection[str] = False,
        half_dtype: torch.dtype | None = None,
        device_preprocess: bool = False,
        masks: Masks = "pasted",
        threshold: float = 0.5,
        mode: Mode = "torchvision",
        compile_backbone: bool | Mapping[str, Any] = False,
        batch_size: int | None = None,
        timer: StageTimer | None = None,
    ) -> None:
        _require_mask_rcnn(model)
        if isinstance(half, bool):
            half = PARTS if half else ()
        if isinstance(half, str) or not isinstance(half, Collection) or not set(half) <= set(PARTS):
            raise ValueError(f"half: expected a bool or some of {', '.join(PARTS)}, got {half!r}")
        if half_dtype not in (None, torch.float16, torch.bfloat16):
            raise ValueError(f"half_dtype: expected float16, bfloat16 or None, got {half_dtype}")
        if masks not in get_args(Masks):
            raise ValueError(f"masks: expected one of {', '.join(get_args(Masks))}, got {masks!r}")
        check_threshold(threshold)
        check_mode(mode)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.model: Any = model
        self.timer = timer
        self.half, self.half_dtype = frozenset(half), half_dtype
        self.device_preprocess, self.batch_size = device_preprocess, batch_size
        self.masks, self.threshold, self.mode = masks, threshold, mode
        if self.half and self._device().type == "cpu" and platform.machine() in X86 and not cpu_multiplies_bfloat16():
            warnings.warn(
                "half: this CPU has no instructions for bfloat16, and is many times slower with it than with float32",
                stacklevel=2,
            )
        self.backbone: Any = self.model.backbone
        if compile_backbone is not False:
            options = {} if compile_backbone is True else dict(compile_backbone)
            self.backbone = torch.compile(self.backbone, **options)  # type: ignore[arg-type]

    @torch.no_grad()
    def __call__(self, images: Iterable[Any]) -> list[dict[str, Any]]:
        """Detect objects and their masks in images.

        Args:
            images: A list of RGB images of any sizes: (3, H, W) float tensors from 0 to 1, as torchvision takes them;
                or uint8, as (3, H, W) tensors, (H, W, 3) arrays or Pillow images. With `device_preprocess`, uint8
                only. A batch (B, 3, H, W) works as well.

        Returns:
            Per image "boxes" (N, 4) xyxy in its pixels, "labels", "scores", highest score first, as in
            torchvision; and "masks" in the chosen form.

        Raises:
            TypeError: `images` is a single image or not a list, or an image is of another kind or dtype.
            ValueError: The model is in training mode, or an image has another shape.
        """
        if self.model.training:
            raise ValueError("model: expected evaluation mode; call model.eval()")
        if is_single_image(images) or isinstance(images, str) or not isinstance(images, Iterable):
            raise no_list_of_images(images)
        images = list(images)
        step = self.batch_size or max(1, len(images))
        results = []
        with torch.autocast(self._device().type, enabled=False):  # `half` alone decides
            for begin in range(0, len(images), step):
                results += self._detect(images[begin : begin + step], begin)
        return results

    def _detect(self, images: list[Any], begin: int) -> list[dict[str, Any]]:
        with self._stage("preprocessing"):
            batch, sizes, originals = self._prepared(images, begin)
        with self._stage("backbone"), self._precision("backbone"):
            features = self.backbone(self._cast("backbone", batch))
        if isinstance(features, Tensor):
            features = OrderedDict([("0", features)])
        with self._stage("rpn"):
            proposals = self._proposals(batch, sizes, features)
        with self._stage("roi_heads"):
            features = {name: self._cast("heads", level) for name, level in features.items()}
            with self._stage("boxes"):
                boxes, scores, labels = self._boxes(features, proposals, sizes)
            with self._stage("mask_forward"), self._precision("heads"):
                heads = self.model.roi_heads
                logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, boxes, sizes)))
            with self._stage("mask_postprocessing"):
                return self._results(boxes, scores, labels, logits, sizes, originals)

    def _prepared(self, images: list[Any], begin: int = 0) -> tuple[Tensor, list[Size], list[Size]]:
        """Make the batch; return it with each image's size within it and before.

        Args:
            images: The images.
            begin: Position of the first in the whole call, for error messages.
        """
        transform, device = self.model.transform, self._device()
        if not self.device_preprocess:
            floats = [_as_float(image, b).to(device) for b, image in enumerate(images, begin)]
            prepared, _ = transform(floats)
            return prepared.tensors, prepared.image_sizes, [(f.shape[1], f.shape[2]) for f in floats]
        images = [as_tensor(image, b, to_rgb=False, layout=None) for b, image in enumerate(images, begin)]
        originals = [(image.shape[1], image.shape[2]) for image in images]
        sizes = [_resized(transform, *original) for original in originals]
        for b, (size, (height, width)) in enumerate(zip(sizes, originals, strict=True), begin):
            if 0 in size:
                raise ValueError(f"images: image {b} of {width} x {height} pixels would be resized to nothing")
        mean, std = ([255 * value for value in values] for values in (transform.image_mean, transform.image_std))
        dtype = self._dtype() if "backbone" in self.half else torch.float32
        batch = to_batch(images, sizes, mean, std, False, transform.size_divisible, dtype, False, device)
        return batch, sizes, originals

    def _proposals(self, batch: Tensor, sizes: list[Size], features: Mapping[str, Tensor]) -> list[Tensor]:
        """Propose boxes as torchvision's RPN does, with anchors and boxes in float32 whatever its head computes in."""
        from torchvision.models.detection.image_list import ImageList
        from torchvision.models.detection.rpn import concat_box_prediction_layers

        rpn = self.model.rpn
        levels = [self._cast("rpn", level) for level in features.values()]
        with self._precision("rpn"):
            objectness, deltas = rpn.head(levels)
        # The generator makes anchors in the dtype of the maps it is given; it reads only their shapes.
        shapes = [level.new_empty(1, dtype=torch.float32).expand(level.shape) for level in levels]
        anchors = rpn.anchor_generator(ImageList(batch, sizes), shapes)
        counts = [level[0].numel() for level in objectness]
        flat, deltas = concat_box_prediction_layers([o.float() for o in objectness], [d.float() for d in deltas])
        boxes = rpn.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
        proposals, _ = rpn.filter_proposals(boxes, flat, sizes, counts)
        return proposals  # type: ignore[no-any-return]

    def _boxes(
        self, features: Mapping[str, Tensor], proposals: list[Tensor], sizes: list[Size]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return boxes in pixels of the batch, scores and labels, per image."""
        heads = self.model.roi_heads
        with self._precision("heads"):
            logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, sizes)))
        return heads.postprocess_detections(logits.float(), deltas.float(), proposals, sizes)  # type: ignore[no-any-return]

    def _results(
        self,
        boxes: list[Tensor],
        scores: list[Tensor],
        labels: list[Tensor],
        logits: Tensor,
        sizes: list[Size],
        originals: list[Size],
    ) -> list[dict[str, Any]]:
        from torchvision.models.detection.roi_heads import maskrcnn_inference, paste_masks_in_image
        from torchvision.models.detection.transform import resize_boxes

        pasted = self.masks == "pasted"
        # torchvision takes the sigmoid of the masks of all classes, InstanceMasks that of the predicted class.
        masks = maskrcnn_inference(logits.float(), labels) if pasted else logits.split([len(box) for box in boxes])
        results = []
        for box, score, label, mask, size, original in zip(boxes, scores, labels, masks, sizes, originals, strict=True):
            box = resize_boxes(box, size, original)
            found: dict[str, Any] = {"boxes": box, "labels": label, "scores": score}
            if pasted:
                found["masks"] = paste_masks_in_image(mask, box, original)
            else:
                raw = InstanceMasks.from_class_masks(box, label, score, mask, original, logits=True, mode=self.mode)
                found["masks"] = raw if self.masks == "raw" else raw.to_rle(threshold=self.threshold)
            results.append(found)
        return results

    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def _stage(self, name: str) -> AbstractContextManager[None]:
        return nullcontext() if self.timer is None else self.timer.stage(name)

    def _dtype(self) -> torch.dtype:
        return self.half_dtype or (torch.float16 if self._device().type == "cuda" else torch.bfloat16)

    def _precision(self, part: str) -> AbstractContextManager[None]:
        return torch.autocast(self._device().type, self._dtype()) if part in self.half else nullcontext()

    def _cast(self, part: str, values: Tensor) -> Tensor:
        """Cast the inputs of a part that does not run in half precision to float32."""
        return values if part in self.half else values.float()


def require_torchvision(who: str) -> ModuleType:
    """Import torchvision's detection models.

    Args:
        who: Name of what needs them, for the message.

    Raises:
        ModuleNotFoundError: torchvision is missing, or does not fit PyTorch.
    """
    try:
        return importlib.import_module("torchvision.models.detection")
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another PyTorch
        message = f'{who} needs a torchvision that fits PyTorch: pip install "detops[torchvision]"'
        raise ModuleNotFoundError(message, name="torchvision") from error


def _require_mask_rcnn(model: object) -> None:
    require_torchvision("MaskRCNNPipeline")
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.models.detection.rpn import RegionProposalNetwork
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    if not isinstance(model, MaskRCNN):
        raise TypeError(f"model: expected a torchvision.models.detection.MaskRCNN, got {type(model).__name__}")
    for part, base in (
        (model, GeneralizedRCNN),
        (model.transform, GeneralizedRCNNTransform),
        (model.rpn, RegionProposalNetwork),
        (model.roi_heads, RoIHeads),
    ):
        if getattr(type(part), "forward", None) is not base.forward:
            raise TypeError(f"model: expected torchvision's {base.__name__}.forward, got that of {type(part).__name__}")


def _as_float(image: Any, b: int) -> Tensor:
    """Return an image as torchvision's models take it: (3, H, W) from 0 to 1."""
    if isinstance(image, Tensor) and image.is_floating_point():
        return image
    return as_tensor(image, b, to_rgb=False, layout=None).expand(3, -1, -1).float() / 255


def _resized(transform: Any, height: int, width: int) -> Size:
    """Return the size to which torchvision's transform resizes an image for inference; it rounds down."""
    if transform.fixed_size is not None:
        return transform.fixed_size[1], transform.fixed_size[0]
    scale = min(transform.min_size[-1] / min(height, width), transform.max_size / max(height, width))
    return math.floor(height * scale), math.floor(width * scale)
