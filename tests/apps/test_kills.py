"""A few kills at random moments; `make kills` does it for as long as wished."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import detops

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")
pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

TOOL = Path(__file__).parents[2] / "tools" / "kills.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_lose_nothing() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(detops.__file__).parents[1])}
    command = [sys.executable, "-W", "ignore", str(TOOL), "--kills", "1", "--most", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lost = {row.split("|")[1].strip(): int(row.split("|")[4]) for row in done.stdout.splitlines()[2:]}
    assert set(lost.values()) == {0}
    assert {"train", "predict, 0 workers", "targets", "evaluate"} <= lost.keys()
