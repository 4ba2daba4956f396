"""Find an installed torch without importing it, even from pip's isolated build environment."""

import importlib.util
import sysconfig
from pathlib import Path


def torch_root() -> Path | None:
    """Return the folder of the torch package whose headers a build can use, or None."""
    spec = importlib.util.find_spec("torch")
    roots = [Path(spec.origin).parent] if spec and spec.origin else []
    # Isolation hides site-packages from sys.path, but the interpreter still knows its place.
    roots += [Path(sysconfig.get_path(name)) / "torch" for name in ("platlib", "purelib")]
    return next((root for root in roots if (root / "include/torch/csrc/stable/library.h").exists()), None)
