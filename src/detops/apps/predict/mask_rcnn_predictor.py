"""The detector of `detops predict --mask-rcnn`: torchvision's Mask R-CNN, which gives instances with their masks."""

from pathlib import Path
from typing import Any

import torch

from detops.apps import import_function, runs
from detops.apps.data.ids import Id
from detops.apps.predict.predictor import BROKEN, Row
from detops.apps.predict.reading import Images, ReadBatch
from detops.arguments import flat
from detops.integrations.torchvision import MaskRCNNPipeline, require_torchvision
from detops.masks.instance_masks import InstanceMasks

COCO_CLASSES = 91  # of torchvision's weights on COCO, whose labels are COCO's category ids, with gaps


def load_mask_rcnn(weights: Path, **options: Any) -> Any:
    """Load torchvision's `maskrcnn_resnet50_fpn`, for any number of classes.

    Args:
        weights: File with its `state_dict`, or a checkpoint of torchvision's own training script.
        options: Keyword arguments of `MaskRCNN`.

    Raises:
        ModuleNotFoundError: torchvision is missing, or is built for another PyTorch.
        ValueError: The weights are those of another network.
    """
    detection = require_torchvision("detops predict --mask-rcnn")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        state = state.get("model", state)
        classes = len(state["roi_heads.box_predictor.cls_score.bias"])
        model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=classes, **options)
        model.load_state_dict(state)
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # of zipfile, pickle or torch, whatever the damage hits
        raise ValueError(
            f"{weights}: expected weights of torchvision's maskrcnn_resnet50_fpn: {flat(error)}"
        ) from error
    broken = runs.not_finite(model)
    if broken:
        raise ValueError(f"{weights}: holds weights that are not finite ({broken})")
    return model


class MaskRCNNPredictor:
    """A `Predictor` that uses `MaskRCNNPipeline`, with preprocessing on the device and RLE from raw masks.

    Labels are category ids, as in torchvision's weights and in its own training on COCO's files.

    Args:
        model: File of weights (see `load_mask_rcnn`), or "module:function", which returns a `MaskRCNN`.
        half: Compute in half precision.
        device: Device to detect on.
        max_detections: Largest number of detections per image; by default that of the network.

    Raises:
        FileNotFoundError: There is no such file.
        ModuleNotFoundError: torchvision is missing, or is built for another PyTorch.
        ValueError: The weights are those of another network, there is no such function, or it does not return
            torchvision's Mask R-CNN.
    """

    size = None

    def __init__(self, model: str, half: bool, device: torch.device, max_detections: int | None = None) -> None:
        network = self._build(model)
        try:
            self._pipeline = MaskRCNNPipeline(network, half=half, device_preprocess=True, masks="raw")
        except TypeError as error:
            raise ValueError(f"mask-rcnn: {model}: {error}") from error
        network.to(device).eval()
        self.device = device
        heads = network.roi_heads
        heads.detections_per_img = self.max_detections = max_detections or heads.detections_per_img
        last = getattr(heads.box_predictor, "cls_score", None)  # other box predictors may have none
        self.names: dict[Id, str] = {}
        if getattr(last, "out_features", 0) == COCO_CLASSES:
            self.names = dict(enumerate(coco_names()))
        self.settings = {
            "weights": runs.fingerprint(network),
            "detector": "mask_rcnn",
            "half": half,
            "transform": str(network.transform),
            "score_thresh": heads.score_thresh,
            "nms_thresh": heads.nms_thresh,
            "detections": heads.detections_per_img,
        }

    @staticmethod
    def _build(model: str) -> Any:
        if Path(model).is_file():
            return load_mask_rcnn(Path(model))
        if ":" not in model:
            raise FileNotFoundError(f"{model}: no such file of weights")
        build = import_function(model, "mask-rcnn: expected a file of weights or")
        try:
            return build()
        except Exception as error:  # whatever a function of the user does
            raise ValueError(f"mask-rcnn: cannot call {model!r} without arguments: {flat(error)}") from error

    def start(self, images: Images) -> list[dict[str, Any]]:
        """Detect on a batch; torchvision's own steps wait for the device."""
        return self._pipeline(list(images))

    def rows(self, batch: ReadBatch, started: list[dict[str, Any]]) -> list[list[Row] | str]:
        """Return the detections with their masks as RLE; none for an image that could not be decoded."""
        found = iter(started)
        return [[] if error else self._rows(next(found)["masks"]) for error in batch.errors]

    def _rows(self, masks: InstanceMasks) -> list[Row] | str:
        if not (masks.boxes.isfinite().all() and masks.scores.isfinite().all()):
            return BROKEN
        rows = masks.to_coco(0)
        for row in rows:
            del row["image_id"]  # the line has it
        return rows


def coco_names() -> list[str]:
    """Return the names of COCO's categories by label, as torchvision's weights have them."""
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    names: list[str] = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return names
