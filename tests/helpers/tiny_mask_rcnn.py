"""A Mask R-CNN of torchvision's that detects something in milliseconds, for the tests."""
# ruff: noqa: E402

from collections import OrderedDict

import loaded_torchvision
import torch
from torch import nn

loaded_torchvision.load()

from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

CLASSES = 4  # with background


class Backbone(nn.Module):
    """Two levels, of strides 8 and 16."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        fine = self.stem(x)
        return OrderedDict([("0", fine), ("1", self.down(fine))])


def build(seed: int = 0, **settings: object) -> MaskRCNN:
    """Build the network, with random weights scaled so that classes differ and masks have an inside and an outside."""
    torch.manual_seed(seed)
    model = MaskRCNN(
        Backbone(),
        **{
            "min_size": 96, "max_size": 160, "rpn_pre_nms_top_n_test": 80, "rpn_post_nms_top_n_test": 40,
            "box_detections_per_img": 12, "box_score_thresh": 0.3,
            "rpn_anchor_generator": AnchorGenerator(((24,), (48,)), ((0.5, 1.0, 2.0),) * 2),
            "box_roi_pool": MultiScaleRoIAlign(["0", "1"], 7, 2),
            "box_head": TwoMLPHead(8 * 49, 32), "box_predictor": FastRCNNPredictor(32, CLASSES),
            "mask_roi_pool": MultiScaleRoIAlign(["0", "1"], 14, 2),
            "mask_head": MaskRCNNHeads(8, (8,), 1), "mask_predictor": MaskRCNNPredictor(8, 8, CLASSES),
            **settings,
        },
    )  # fmt: skip
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(40)
        model.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(20)
    return model.eval()


def pictures(*sizes: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    """Make images of blocks of colour, (3, H, W) uint8."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for height, width in sizes:
        blocks = torch.randint(0, 256, (3, -(-height // 16), -(-width // 16)), generator=g, dtype=torch.uint8)
        found.append(blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :height, :width].contiguous())
    return found
