"""The commands: what they write, print and return."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import detops
from detops import cli
from detops.apps import require
from detops.apps import targets as job
from detops.apps.bench import runner
from detops.apps.data import shapes
from detops.apps.data.coco import read

image_module = pytest.importorskip("PIL.Image")
np = pytest.importorskip("numpy")
pytest.importorskip("pycocotools")
pytest.importorskip("matplotlib")


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(cli.console, "width", 160)

    def call(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return call


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    shapes.generate(folder, images=6, seed=1)
    return folder


def write(path: Path, annotations: list) -> Path:
    images = [
        {"id": 1, "file_name": "one.png", "width": 64, "height": 48},
        {"id": 2, "file_name": "two.png", "width": 64, "height": 48},
    ]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "thing"}]})
    )
    return path


def box(number: int, bbox: list, image: int = 1) -> dict:
    return {"id": number, "image_id": image, "category_id": 5, "bbox": bbox}


def test_targets_writes_pictures_and_numbers(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [box(1, [16, 8, 16, 16]), box(2, [0, 0, 40, 40]), box(3, [-8, 0, 16, 16])])
    code, output = run("targets", path, "--out", tmp_path / "out", "--stride", 4, "--min-overlap", 0.7)
    assert code == 0, output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["images"], summary["boxes"], summary["clipped"], summary["broken"]) == (2, 3, 1, 0)
    radii = sorted(int(detops.gaussian_radius(h, w, 0.7)) for h, w in [(4, 4), (10, 10), (4, 2)])
    assert summary["radius"]["smallest"] == radii[0]
    assert summary["radius"]["largest"] == radii[2]
    assert summary["boxes_per_second"] > 0
    assert sorted(p.name for p in (tmp_path / "out" / "images").iterdir()) == ["one.png", "two.png"]
    sheet = image_module.open(tmp_path / "out" / "contact_sheet.png")
    assert sheet.width > 2 * 440
    assert "boxes drawn" in output


def test_heat_is_where_the_centre_is(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [box(1, [8, 8, 16, 16])])
    run("targets", path, "--out", tmp_path / "out")
    one, two = (
        np.asarray(image_module.open(tmp_path / "out" / "images" / f"{n}.png")).astype(int) for n in ("one", "two")
    )
    scale = one.shape[0] / 48
    changed = np.abs(one - two).sum(-1)
    centre = changed[round(18 * scale), round(18 * scale)]  # the middle of cell (4, 4)
    assert centre > 200
    assert changed[round(40 * scale), round(50 * scale)] == 0
    assert centre >= np.percentile(changed, 99)


def test_maps_are_those_of_the_definition(tmp_path: Path) -> None:
    """The batched drawing of a mixed set against one image, one box at a time."""
    g = torch.Generator().manual_seed(0)
    images = [{"id": i, "file_name": f"{i}.png", "width": 60 + 20 * (i % 3), "height": 41} for i in range(7)]
    rows = (torch.rand(25, 4, generator=g) * 30 + 3).tolist()
    boxes = [{"id": n, "image_id": n % 6, "category_id": n % 2, "bbox": row} for n, row in enumerate(rows)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 0}, {"id": 1}]}))
    annotations = read(path)
    seen = []
    for positions, heatmap in job.draw(annotations, job.gaussians(annotations, 4, 0.3), 4):
        seen += positions
        for position, drawn in zip(positions, heatmap, strict=True):
            image = annotations.images[position]
            expected = torch.zeros(2, math.ceil(image.height / 4), math.ceil(image.width / 4))
            for (x1, y1, x2, y2), label in zip(*(t.tolist() for t in annotations.of_image(position)), strict=True):
                radius = int(detops.gaussian_radius((y2 - y1) / 4, (x2 - x1) / 4, 0.3))
                centre = torch.tensor([[int((x1 + x2) / 8), int((y1 + y2) / 8)]])
                detops.draw_heatmap(expected, centre, torch.tensor([radius]), torch.tensor([label]))
            assert torch.equal(drawn, expected)
    assert sorted(seen) == list(range(7))


def test_broken_annotations_are_reported_one_line_each(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [box(11, [0, 0, 0, 4]), box(12, [math.inf, 0, 1, 1], 2), box(13, [0, 0, 9, 9])])
    code, output = run("targets", path, "--out", tmp_path / "out")
    assert code == 0
    lines = [line for line in output.splitlines() if "left out" in line]
    assert lines == [
        f"{path}: 1 annotations left out, not finite: annotations[1] (id 12, image 2), bbox [inf, 0, 1, 1]",
        f"{path}: 1 annotations left out, zero or negative size: annotations[0] (id 11, image 1), bbox [0, 0, 0, 4]",
    ]
    code, output = run("targets", path, "--out", tmp_path / "strict", "--strict")
    assert code == 2
    assert "stopped, as --strict asks: 1 annotations left out, not finite" in output
    assert not (tmp_path / "strict").exists()
    code, _ = run("targets", write(tmp_path / "b.json", [box(1, [0, 0, 9, 9])]), "--out", tmp_path / "out", "--strict")
    assert code == 0


def test_ids_and_names_are_printed_verbatim(run: Run, tmp_path: Path) -> None:
    """Square brackets and colons are not interpreted as markup."""
    path = tmp_path / "a.json"
    images = [{"id": "[red]a[/red] :smile:", "file_name": "a.png", "width": 64, "height": 48}]
    annotations = [
        {"id": "[/bold]", "image_id": images[0]["id"], "category_id": 5, "bbox": [0, 0, side, 4]} for side in (0, 4)
    ]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "[b]"}]})
    )
    code, output = run("targets", path, "--out", tmp_path / "[out]")
    assert code == 0, output
    place = 'annotations[0] (id "[/bold]", image "[red]a[/red] :smile:"), bbox [0, 0, 0, 4]'
    assert f"{path}: 1 annotations left out, zero or negative size: {place}" in output.splitlines()
    assert "[out]" in output
    code, output = run("targets", tmp_path / "[red]missing.json")
    assert code == 2
    assert "[red]missing.json" in output


def test_useless_arguments_exit_with_2(run: Run, tmp_path: Path) -> None:
    good = write(tmp_path / "a.json", [box(1, [0, 0, 9, 9])])
    (tmp_path / "bad.json").write_text("no JSON")
    for arguments, message in (
        ((tmp_path / "missing.json",), "missing.json"),
        ((tmp_path / "bad.json",), "expected COCO annotations"),
        ((good, "--image-id", 99), "got 99"),
        ((good, "--min-overlap", 2), "min_overlap"),
        ((good, "--stride", 0), "--stride"),
    ):
        code, output = run("targets", *arguments, "--out", tmp_path / "out")
        assert code == 2, output
        assert message in output


def test_images_are_found_missing_or_of_another_size(run: Run, generated: Path, tmp_path: Path) -> None:
    path = generated / "annotations.json"
    code, output = run("targets", path, "--images", generated / "images", "--out", tmp_path / "out", "--limit", 3)
    assert code == 0, output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["images"], summary["missing_images"], summary["resized_images"]) == (3, 0, 0)
    other = tmp_path / "other"
    other.mkdir()
    image_module.open(generated / "images" / "shapes_0000.png").convert("L").resize((100, 90)).save(
        other / "shapes_0000.png"
    )
    run("targets", path, "--images", other, "--out", tmp_path / "out", "--image-id", 1, "--image-id", 2)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["images"], summary["missing_images"], summary["resized_images"]) == (2, 1, 1)


def test_shapes_are_seeded_and_crowded(generated: Path, tmp_path: Path) -> None:
    shapes.generate(tmp_path, images=6, seed=1)
    for name in ["annotations.json", *(f"images/{p.name}" for p in (generated / "images").iterdir())]:
        assert (tmp_path / name).read_bytes() == (generated / name).read_bytes()
    shapes.generate(tmp_path, images=6, seed=2)
    assert (tmp_path / "annotations.json").read_bytes() != (generated / "annotations.json").read_bytes()
    annotations = read(generated / "annotations.json")
    assert annotations.problems.counts() == {}
    assert annotations.clipped == 0
    counts = torch.bincount(annotations.image_index, minlength=6)
    assert counts[4] > 80
    assert (counts[[0, 1, 2, 3, 5]] > 0).all()


def test_demo(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured = []
    monkeypatch.setattr(runner, "main", lambda suite, **options: measured.append((suite, options)))
    code, output = run("demo", "--out", tmp_path, "--images", 2, "--epochs", 0)
    assert code == 0, output
    assert measured == [("draw_gaussians", {"quick": True})]
    assert not (tmp_path / "training").exists()
    assert str(tmp_path / "contact_sheet.png") in output
    assert (tmp_path / "contact_sheet.png").exists()


@pytest.mark.slow
def test_demo_trains(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    monkeypatch.setattr(runner, "main", lambda *_, **__: None)
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "of_before").touch()
    code, output = run("demo", "--out", tmp_path, "--images", 5, "--epochs", 1)
    assert code == 0, output
    assert (tmp_path / "training" / "report.html").exists()
    assert (tmp_path / "training" / "of_before").exists()  # somebody's
    assert "COCO scores" in output
    before = (tmp_path / "training" / "metrics.jsonl").read_text()
    code, output = run("demo", "--out", tmp_path, "--images", 5, "--epochs", 1)  # replaces its own
    assert code == 0, output
    assert before != (tmp_path / "training" / "metrics.jsonl").read_text()


def test_bench(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called = []
    monkeypatch.setattr(runner, "main", lambda *arguments: called.append(arguments))
    assert run("bench", "heatmap", "--kernel", "--json", tmp_path / "r.json", "--quick", "--device", "cpu")[0] == 0
    assert called == [("heatmap", True, tmp_path / "r.json", True, "cpu")]
    monkeypatch.undo()
    assert run("bench", "nothing")[0] == 2


def test_env(run: Run) -> None:
    code, output = run("env")
    assert code == 0
    for text in ("draw_gaussians_", "C++", "portable", torch.__version__, "flags"):
        assert text in output
    assert json.loads(run("env", "--json")[1])["ops"] == detops.env()["ops"]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ModuleNotFoundError, match=r'detops targets needs Pillow: pip install "detops\[train\]"'):
        require("PIL.Image", "Pillow", "targets")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_python_runs_the_package_as_the_command() -> None:
    result = python("-m", "detops", "--help")
    assert result.returncode == 0, result.stderr
    for command in ("env", "targets", "demo", "train", "evaluate", "predict", "bench"):
        assert command in result.stdout
    result = python("-m", "detops", "--version")
    assert (result.returncode, result.stdout) == (0, f"{detops.__version__}\n")


@pytest.mark.parametrize("hidden", ["typer", "rich", "rich.console"])
def test_without_the_extra_the_command_names_it(hidden: str) -> None:
    code = f"import sys; sys.modules[{hidden!r}] = None; from detops.__main__ import main; main()"
    result = python("-W", "ignore", "-c", code)
    package = hidden.partition(".")[0]
    assert result.returncode == 2
    assert (
        result.stderr
        == f'error: the command detops needs {package}: pip install "detops[cli]"; from a checkout: pip install ".[cli]"\n'
    )
    assert not result.stdout


def test_a_fault_of_the_package_is_not_taken_for_a_missing_extra() -> None:
    code = "import sys; sys.modules['detops.cli'] = None; from detops.__main__ import main; main()"
    result = python("-W", "ignore", "-c", code)
    assert result.returncode == 1
    assert "ModuleNotFoundError: import of detops.cli halted" in result.stderr
