"""docs/own_network.md: its network, saved as the page says, trains and is read again."""

import re
from pathlib import Path

import pytest
from predict_runs import call

from detops.apps.data import shapes

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")
pytest.importorskip("PIL.Image")
PAGE = Path(__file__).parents[2] / "docs" / "own_network.md"


@pytest.mark.slow
def test_the_network_of_the_page_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "my_network.py").write_text(block)
    for split, images in (("train", 4), ("val", 2)):
        shapes.generate(tmp_path / split, images=images, seed=images)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model = re.findall(r"--model (my_network:\w+)", PAGE.read_text())[0]
    options = ("--size", "128x96", "--epochs", 1, "--width", 8, "--batch-size", 4, "--accelerator", "cpu")
    code, output = call("train", "--data", tmp_path, "--out", "run", "--model", model, *options)
    assert code == 0, output
    code, output = call("evaluate", "run")
    assert code == 0, output
