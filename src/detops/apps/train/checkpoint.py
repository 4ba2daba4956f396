"""Lightning's checkpoints, written so that a kill or a full disk cannot spoil them."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from detops.apps.files import write_atomically


class AtomicIO(TorchCheckpointIO):
    """Writes checkpoints so that a kill or a full disk at any moment leaves the previous one readable."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Serialise in memory, write to a temporary file, and rename it once it is safe on the disk."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getbuffer())

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read tensors and numbers, never code."""
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return checkpoint
