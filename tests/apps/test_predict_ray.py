"""`detops predict --ray` by a local Ray of two workers: the same bytes as without it."""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from predict_runs import Together, call, write_run
from test_predict import save

from detops.apps.predict import ray
from detops.apps.predict.form import Form
from detops.apps.predict.run_predictor import RunPredictor
from detops.apps.predict.sources import Source

MISSING = 'needs Ray Data: pip install "detops[ray]"'


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason=MISSING)
    pytest.importorskip("ray.data", reason=MISSING)
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1] / "helpers"), path]))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    yield
    ray.shutdown()
    os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Fifty images under relative paths, one of which cannot be decoded, in batches of three."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    write_run(Path("run"), Together(2, 8), "predict_runs:Together")
    for index in range(50):
        save(Path("images") / f"ä{index:02}.png", index)
    (tmp_path / "images" / "ä17.png").write_bytes(b"no image")
    return ["predict", "images", "--run", "run", "--batch-size", 3, "--pictures", 5]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_ray_gives_the_same_files(arguments: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "BLOCKS", 8)  # so that blocks hold two batches
    assert call(*arguments, "--out", "alone")[0] == 1
    code, output = call(*arguments, "--out", "ray", "--ray", "--workers", 2)
    assert code == 1, output
    for name in ("results.jsonl", "results.json", "predict.json"):
        assert Path("ray", name).read_bytes() == Path("alone", name).read_bytes()
    assert sorted(path.name for path in Path("ray/images").iterdir()) == [f"ä{index:02}.jpg" for index in range(5)]
    # A run that one of them began is resumed by the other.
    whole = Path("ray/results.jsonl").read_bytes()
    for out, more in (("alone", ["--ray", "--workers", 1]), ("ray", [])):
        Path(out, "results.json").unlink()
        Path(out, "results.jsonl").write_bytes(whole[: len(whole) * 2 // 3])
        assert call(*arguments, "--out", out, "--resume", *more)[0] == 1
        assert Path(out, "results.jsonl").read_bytes() == whole


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_ray_gives_the_same_masks(arguments: list[object]) -> None:
    pytest.importorskip("tiny_mask_rcnn")
    arguments = ["predict", "images", "--mask-rcnn", "tiny_mask_rcnn:build", "--batch-size", 7, "--pictures", 0]
    assert call(*arguments, "--out", "alone")[0] == 1
    code, output = call(*arguments, "--out", "ray", "--ray", "--workers", 1)
    assert code == 1, output
    assert b'"segmentation"' in Path("ray", "results.jsonl").read_bytes()
    for name in ("results.jsonl", "results.json", "predict.json"):
        assert Path("ray", name).read_bytes() == Path("alone", name).read_bytes()


def test_a_missing_ray_is_named(arguments: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, output = call(*arguments, "--out", "out", "--ray")
    assert code == 2
    assert 'detops predict --ray needs Ray: pip install "detops[ray]"' in output
    assert not Path("out").exists()


@pytest.mark.usefixtures("cluster")
def test_other_weights_on_another_machine_are_refused(arguments: list[object], tmp_path: Path) -> None:
    cpu, batches = torch.device("cpu"), [[Source("images/ä00.png", 1)]]
    here = RunPredictor(tmp_path / "run", False, cpu)
    here.settings["weights"] = "abc"
    with pytest.raises(Exception, match="the weights on this machine differ"):
        list(ray.lines(partial(RunPredictor, tmp_path / "run", False), here, cpu, batches, 1, 1, Form({})))


def test_something_is_left_to_read_with() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert ray.reservation({"CPU": 9.0}, cpu, None) == (4, {"num_cpus": 1})
    assert ray.reservation({"CPU": 9.0}, cpu, 5) == (5, {"num_cpus": 0})
    assert ray.reservation({"CPU": 1.0}, cpu, None) == (1, {"num_cpus": 0})
    assert ray.reservation({"CPU": 9.0, "GPU": 2.0}, gpu, None) == (2, {"num_cpus": 0, "num_gpus": 1})
    assert ray.reservation({"CPU": 9.0, "GPU": 2.0}, gpu, 3) == (3, {"num_cpus": 0, "num_gpus": 0.5})
    assert ray.reservation({"CPU": 9.0, "GPU": 2.0}, gpu, 1) == (1, {"num_cpus": 0, "num_gpus": 1})


def test_blocks_are_few_and_small(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason=MISSING)
    monkeypatch.setattr(ray, "BLOCKS", 4)
    monkeypatch.setattr(ray, "BLOCK", 3)
    batches = [[Source("a", 1)]] * 16
    for count, sizes in ((3, [1, 1, 1]), (8, [2] * 4), (16, [3] * 5 + [1])):
        assert [len(block) for block in ray.blocks(batches[:count], count)] == sizes
