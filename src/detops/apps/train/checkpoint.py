"""Checkpoints that a kill or a full disk cannot spoil."""

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO


class AtomicIO(TorchCheckpointIO):
    """Writes checkpoints so that a kill or a full disk at any moment leaves the one before readable."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Serialise in memory, write beside the old one, and put in its place when it is safe on the disk."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getbuffer())

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read tensors and numbers, never code."""
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return checkpoint


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: It cannot be written; what was there before still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the new name is safe too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
