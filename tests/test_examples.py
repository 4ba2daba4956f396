"""Every example runs, and does what its docstring says."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loaded_transformers import load

EXAMPLES = Path(__file__).parents[1] / "examples"


def main(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = runpy.run_path(str(EXAMPLES / name))["main"]
    return function


@pytest.mark.slow
def test_a_centernet_finds_most_boxes() -> None:
    assert main("train_centernet.py")(epochs=2) > 0.7


@pytest.mark.slow
def test_three_networks_learn() -> None:
    reached = main("distil_gfl.py")(steps=40)
    assert list(reached) == ["teacher", "student alone", "student, taught"]
    assert reached["teacher"] > 0.4


def test_masks_become_rows_of_a_results_file() -> None:
    mask = pytest.importorskip("pycocotools.mask")
    rows = main("serve_masks.py")((270, 480))
    assert len(rows) == 200
    assert {tuple(row["segmentation"]["size"]) for row in rows} == {(270, 480), (480, 640)}
    assert all(mask.area(row["segmentation"]) > 0 for row in rows[:50])


@pytest.mark.slow
def test_an_rt_detr_trains_the_same_with_either_criterion() -> None:
    load()
    reached = main("finetune_rt_detr.py")(steps=6)
    assert reached["detops"] == pytest.approx(reached["Transformers"], rel=0.02)


@pytest.mark.slow
def test_the_trainer_of_transformers_calls_our_criterion() -> None:
    load()
    pytest.importorskip("accelerate")
    reached = main("finetune_rt_detr.py")(steps=2, trainer=True)
    assert reached["detops"] == pytest.approx(reached["Transformers"], rel=1e-3)


def test_the_page_names_every_example() -> None:
    text = (EXAMPLES / "README.md").read_text()
    assert all(f"({path.name})" in text for path in EXAMPLES.glob("*.py"))
