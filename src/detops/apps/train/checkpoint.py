"""Lightning's checkpoints, written so that a kill or a full disk cannot spoil them; the last one, and the best."""

import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from detops.apps.files import write_atomically
from detops.apps.runs import read_checkpoint
from detops.apps.train import metrics

LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"


class AtomicIO(TorchCheckpointIO):
    """Writes checkpoints so that a kill or a full disk at any moment leaves the previous one readable.

    Attributes:
        failed: Why the last one could not be written, or None. It is not raised: other ranks wait for this one.
    """

    failed: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Serialise in memory, write to a temporary file, and rename it once it is safe on the disk."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        self.failed = None
        try:
            write_atomically(Path(path), buffer.getbuffer())
        except OSError as error:
            self.failed = error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read tensors and numbers, never code."""
        return read_checkpoint(Path(path))


def keep_best(run: Path, step: int) -> None:
    """Keep the last checkpoint as the best one too, if the evaluation at this step was the best so far.

    Args:
        run: Folder of the run.
        step: Step of the last checkpoint.

    Raises:
        OSError: It cannot be written.
    """
    if metrics.best_step(run) != step:
        return
    last, best = run / LAST, run / BEST
    temporary = best.with_name(f".{best.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(last, temporary)  # costs nothing, as the last one is only ever replaced by another file
    except OSError:
        shutil.copyfile(last, temporary)
    temporary.replace(best)
