"""`detections.json.gz`: what the last evaluation of a run detected, in COCO's results format."""

import gzip
import json
from pathlib import Path
from typing import Any

from detops.apps.files import write_atomically

NAME = "detections.json.gz"


def write(run: Path, rows: list[dict[str, Any]]) -> None:
    """Replace the detections of a run.

    Args:
        run: Its folder.
        rows: The detections.

    Raises:
        OSError: They cannot be written.
    """
    text = json.dumps(rows, separators=(",", ":")).encode()
    write_atomically(run / NAME, gzip.compress(text, compresslevel=2, mtime=0))
