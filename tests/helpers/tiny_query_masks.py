"""An RF-DETR for instance segmentation of Transformers that detects something in milliseconds, for the tests."""

from typing import Any

import torch
from loaded_transformers import load

transformers = load()


def build(seed: int = 0, **settings: Any) -> torch.nn.Module:
    """Build the network with random weights; its input is 64 x 64."""
    torch.manual_seed(seed)
    backbone = transformers.AutoConfig.for_model(
        "rf_detr_dinov2", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
        num_windows=2, out_features=["stage1", "stage2"], num_register_tokens=0,
    )  # fmt: skip
    config = transformers.RfDetrConfig(
        backbone_config=backbone, d_model=32, decoder_ffn_dim=32, decoder_layers=1, decoder_cross_attention_heads=2,
        decoder_self_attention_heads=2, num_queries=5, group_detr=2, intermediate_size=32, num_labels=3,
        c2f_num_blocks=1, **settings,
    )  # fmt: skip
    model: torch.nn.Module = transformers.RfDetrForInstanceSegmentation(config)
    return model.eval()


class WithoutMasks(torch.nn.Module):
    """A network that has no masks."""

    image_size = 32

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pred_logits": images.new_zeros(len(images), 2, 3)}


def without_size() -> torch.nn.Module:
    """Build a network whose input has no known size."""
    return torch.nn.Linear(1, 1)


def no_network() -> int:
    """Return what is no network."""
    return 3
