"""The dtype in which positions on the pixel grid are computed, shared by everything that places something on it."""

import torch


def position_dtype(device: torch.device) -> torch.dtype:
    """Return float64, in which every backend finds the same pixels; on MPS, which has no float64, float32."""
    return torch.float32 if device.type == "mps" else torch.float64
