"""The detector of `detops predict --query-masks`: a model that predicts a small mask of the image per query."""

from typing import Any

import torch
from torch import Tensor, nn

from detops.apps import import_function, runs
from detops.apps.data.dataset import MEAN, STD
from detops.apps.data.ids import Id
from detops.apps.predict.mask_rcnn_predictor import MaskRCNNPredictor
from detops.apps.predict.reading import Images
from detops.arguments import flat
from detops.inference.preprocess import preprocess
from detops.masks.query_decoding import decode_query_masks

EXPECTED = "query-masks: expected"
FIELDS = (("logits", "pred_logits"), ("pred_masks",), ("pred_boxes",))  # of Transformers, and of rfdetr


class QueryMaskPredictor(MaskRCNNPredictor):
    """A `Predictor` of RF-DETR for instance segmentation, and of models with its outputs.

    Images are stretched to the network's input and normalised as ImageNet's are. Labels are category ids.

    Args:
        model: "module:function", which returns the network, its weights loaded. It takes (B, 3, S, S) and returns
            logits, pred_masks and pred_boxes, as attributes or by key. S is its `image_size`, or its configuration's.
        half: Compute in bfloat16.
        device: Device to detect on.
        max_detections: Largest number of detections per image; by default 300.

    Raises:
        ValueError: There is no such function, or it does not return such a network.
    """

    def __init__(self, model: str, half: bool, device: torch.device, max_detections: int | None = None) -> None:
        build = import_function(model, EXPECTED)
        try:
            network = build()
        except Exception as error:  # whatever a function of the user does
            raise ValueError(f"query-masks: cannot call {model!r} without arguments: {flat(error)}") from error
        if not isinstance(network, nn.Module):
            raise ValueError(f"query-masks: {model}: expected a torch.nn.Module, got {type(network).__name__}")
        self._side = _input_side(network)
        self._network, self._half = network.to(device).eval(), half
        self.max_detections = 300 if max_detections is None else max_detections
        self.device = device
        names = getattr(getattr(network, "config", None), "id2label", None) or {}
        self.names: dict[Id, str] = {int(label): str(name) for label, name in names.items()}
        self.settings = {
            "weights": runs.fingerprint(network), "detector": "query_masks", "half": half, "size": self._side,
            "detections": self.max_detections,
        }  # fmt: skip

    @torch.no_grad()
    def start(self, images: Images) -> list[dict[str, Any]]:
        """Detect on a batch; the host waits for how many instances each image has."""
        given = list(images)
        if not given:
            return []
        side = (self._side, self._side)
        batch = preprocess(
            given, size=side, mean=MEAN, std=STD, keep_ratio=False, pad_divisor=1, antialias=True, device=self.device
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            outputs = self._network(batch.images)
        logits, masks, boxes = (_field(outputs, names) for names in FIELDS)
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in given]
        return [
            {"masks": found}
            for found in decode_query_masks(logits, masks, boxes, sizes, max_detections=self.max_detections)
        ]


def _input_side(network: nn.Module) -> int:
    """Return the side of the network's input."""
    config: Any = getattr(network, "config", None)
    for owner in (network, config, getattr(config, "backbone_config", None)):
        size = getattr(owner, "image_size", None)
        if isinstance(size, int) and size > 0:
            return size
    raise ValueError("query-masks: expected a network whose image_size is a number, its own or its configuration's")


def _field(outputs: Any, names: tuple[str, ...]) -> Tensor:
    """Return an output by one of its names."""
    for name in names:
        found = outputs.get(name) if hasattr(outputs, "get") else getattr(outputs, name, None)
        if isinstance(found, Tensor):
            return found
    raise ValueError(f"query-masks: expected outputs with {names[0]}, got {type(outputs).__name__}")
