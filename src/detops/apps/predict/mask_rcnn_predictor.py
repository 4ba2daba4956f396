"""torchvision's Mask R-CNN by its weights, and as what `detops predict` detects with: instances with their masks."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detops.apps import runs
from detops.apps.predict.stream import Read, Row
from detops.apps.train import models
from detops.integrations.torchvision import MaskRCNNPipeline, require_torchvision
from detops.masks.instance_masks import InstanceMasks

COCO_CLASSES = 91  # of torchvision's weights, whose labels are COCO's category ids, with gaps


def resnet50(weights: Path, **options: Any) -> Any:
    """Torchvision's `maskrcnn_resnet50_fpn` with weights of any number of classes.

    Args:
        weights: A file of its `state_dict`, or of a checkpoint as torchvision's own training saves it.
        options: Keyword arguments of `MaskRCNN`.

    Raises:
        ModuleNotFoundError: torchvision is missing, or does not fit PyTorch.
        ValueError: The weights are not of such a network.
    """
    detection = require_torchvision("detops predict --mask-rcnn")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        state = state.get("model", state)
        classes = len(state["roi_heads.box_predictor.cls_score.bias"])
        model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=classes, **options)
        model.load_state_dict(state)
    except (KeyError, AttributeError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{weights}: expected weights of torchvision's maskrcnn_resnet50_fpn: {error}") from error
    return model


class MaskRCNNPredictor:
    """A Mask R-CNN by `MaskRCNNPipeline`: preprocessing on its device, and RLE from raw masks; see `Predictor`.

    Labels are category ids, as they are in torchvision's weights and where its own training reads COCO's files.

    Args:
        model: A file of weights, see `resnet50`; or "module:function", which returns a `MaskRCNN` with its weights.
        half: Compute in half precision.
        device: Where.

    Raises:
        FileNotFoundError: There is no such file.
        ModuleNotFoundError: torchvision is missing, or does not fit PyTorch.
        ValueError: The weights are of another network, there is no such function, or it returns no Mask R-CNN of
            torchvision's.
    """

    size = None

    def __init__(self, model: str, half: bool, device: torch.device) -> None:
        network = self._build(model)
        try:
            self._pipeline = MaskRCNNPipeline(network, half=half, device_preprocess=True, masks="raw")
        except TypeError as error:
            raise ValueError(f"mask-rcnn: {model}: {error}") from error
        network.to(device).eval()
        self.device = device
        heads = network.roi_heads
        last = getattr(heads.box_predictor, "cls_score", None)  # other predictors may have none
        self.names = dict(enumerate(_coco_names())) if getattr(last, "out_features", 0) == COCO_CLASSES else {}
        self.settings = {
            "weights": runs.fingerprint(network), "detector": "mask_rcnn", "half": half,
            "transform": str(network.transform), "score_thresh": heads.score_thresh, "nms_thresh": heads.nms_thresh,
            "detections": heads.detections_per_img,
        }  # fmt: skip

    @staticmethod
    def _build(model: str) -> Any:
        if Path(model).is_file():
            return resnet50(Path(model))
        if ":" not in model:
            raise FileNotFoundError(f"{model}: no such file of weights")
        return models.imported(model, "mask-rcnn: expected a file of weights or")()

    def start(self, images: Tensor | list[Tensor]) -> list[dict[str, Any]]:
        """Detect; torchvision's own steps wait for the device."""
        return self._pipeline(list(images))

    def rows(self, batch: Read, started: list[dict[str, Any]]) -> list[list[Row]]:
        """Detections with their run lengths; none where the image could not be decoded."""
        found = iter(started)
        return [[] if error else self._rows(next(found)["masks"]) for error in batch.errors]

    def _rows(self, masks: InstanceMasks) -> list[Row]:
        rows = masks.to_coco(0)
        for row in rows:
            del row["image_id"]  # the line has it
        return rows


def _coco_names() -> list[str]:
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    names: list[str] = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return names
