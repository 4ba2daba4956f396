"""`detops evaluate`: COCO's scores, and errors about invalid files."""

import io
import json
import math
import os
import random
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import detops
from detops import cli
from detops.apps import evaluate
from detops.apps.data import coco
from detops.apps.data.results import judge_results
from detops.apps.scores import compare, score

pytest.importorskip("pycocotools")

DATA = Path(os.environ.get("DETOPS_DATA", Path(__file__).parents[3] / "shared" / "data")) / "coco_eval"


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_known_scores(tmp_path: Path, kind: str) -> None:
    if not DATA.exists():
        pytest.skip("needs the data set coco_eval in the folder that DETOPS_DATA names")
    expected = json.loads((DATA / "expected.json").read_text())[kind]
    results, path = DATA / f"instances_val2014_fake{kind}100_results.json", DATA / "instances_val2014_100.json"
    code, output = call("--results", results, "--annotations", path, "--kind", kind, "--json", tmp_path / "s.json")
    assert code == 0, output
    scores = json.loads((tmp_path / "s.json").read_text())
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert len(scores["classes"]) == 80
    counted = [value for value in scores["classes"].values() if value is not None]
    assert sum(counted) / len(counted) == pytest.approx(expected["AP"], abs=1e-12)
    assert f"{expected['AP']:.3f}" in output


def box(bbox: list, image: int = 1, category: int = 4, **more: object) -> dict:
    return {"image_id": image, "category_id": category, "bbox": bbox, **more}


def test_scores_alone_in_the_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = truth(tmp_path / "truth.json", [box([10, 10, 20, 20])])
    (tmp_path / "results.json").write_text(json.dumps([box([10, 10, 20, 20], score=0.9)]))
    arguments = ["evaluate", "--results", "results.json", "--annotations", str(path), "--json", "-"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["AP"] == pytest.approx(1)
    assert "COCO scores" in result.stderr
    assert not (tmp_path / "-").exists()


def truth(path: Path, annotations: list) -> Path:
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in (1, 2)]
    categories = [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]
    numbered = [{"id": i, **a} for i, a in enumerate(annotations)]  # from 0, which pycocotools takes for "none"
    path.write_text(json.dumps({"images": images, "annotations": numbered, "categories": categories}))
    return path


def test_perfect_half_and_no_detections(tmp_path: Path) -> None:
    path = truth(tmp_path / "a.json", [box([10, 10, 40, 40]), box([50, 50, 40, 40], image=2)])
    perfect = [box([10, 10, 40, 40], score=0.9), box([50, 50, 40, 40], image=2, score=0.8)]
    scores = score(path, perfect)
    assert scores["AP"] == scores["APm"] == scores["classes"]["cat"] == pytest.approx(1)
    assert scores["APs"] is None  # there are no small objects to find
    assert scores["classes"]["dog"] is None
    assert score(path, perfect[:1])["AP"] == pytest.approx(51 / 101)  # recall reaches one half
    assert score(path, perfect[:1], image_ids=[1])["AP"] == pytest.approx(1)
    assert score(path, [])["AP"] == 0


def test_broken_annotations_do_not_count_and_crowds_are_neither_found_nor_missed(tmp_path: Path) -> None:
    good = [box([10, 10, 40, 40])]
    bad = [
        box([math.inf, 0, 5, 5]),
        box([1, 1, 5, 5], category=77),
        box([1, 1, 0, 5]),
        box([60, 60, 40, 40], iscrowd=1),
    ]
    path = truth(tmp_path / "a.json", bad + good)
    found = [box([10, 10, 40, 40], score=0.5), box([60, 60, 20, 20], score=0.9)]  # the second lies in the crowd
    assert score(path, found)["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"a": 1}, "expected a list of detections"),
        ([{"image_id": 1}], "expected bbox, category_id, image_id, score"),
        ([box([0, 0, 5, 5], image=8, score=1.0)], "image 8 is not in the annotations"),
    ],
)
def test_what_is_no_results_file(tmp_path: Path, results: object, message: str) -> None:
    path = truth(tmp_path / "a.json", [box([10, 10, 40, 40])])
    (tmp_path / "r.json").write_text(json.dumps(results))
    code, output = call("--results", tmp_path / "r.json", "--annotations", path)
    assert code == 2
    assert message in output


def test_names_of_classes_are_printed_verbatim() -> None:
    console = Console(file=io.StringIO(), width=100, record=True)
    scores = dict.fromkeys(evaluate.NAMES, 0.5)
    console.print(evaluate.table({**scores, "classes": {"[red]cat[/red]": 0.25, "[/x]": None}}))
    text = console.export_text()
    assert "class [red]cat[/red]" in text
    assert "class [/x]" in text


def test_arguments_that_do_not_go_together(tmp_path: Path) -> None:
    for arguments, message in (
        ((), "either a run or --results, got neither"),
        ((tmp_path, "--results", "r.json"), "got both"),
        (("--results", "r.json"), "needs the --annotations"),
        ((tmp_path,), "with config.json"),
        (("--results", "r.json", "--kind", "points"), "kind: expected bbox or segm"),
    ):
        code, output = call(*arguments)
        assert code == 2
        assert message in output


def crowded(path: Path, count: int) -> tuple[Path, list]:
    """Write small objects in two images, 7/8 of them in the first; return them as detections too."""
    places = [(1 + (n % 8 == 7), [n % 16 * 6, n // 16 * 6, 5, 5]) for n in range(count)]
    truth(path, [box(bbox, image=image) for image, bbox in places])
    return path, [box(bbox, image=image, score=1 - n / 1000) for n, (image, bbox) in enumerate(places)]


def test_more_detections_than_cocos_100(tmp_path: Path) -> None:
    path, found = crowded(tmp_path / "a.json", 160)
    (tmp_path / "r.json").write_text(json.dumps(found))
    arguments = ("--results", tmp_path / "r.json", "--annotations", path, "--json", tmp_path / "s.json")
    code, output = call(*arguments)
    assert code == 0
    assert "1 images hold more than 100 objects, up to 140, and 100 detections" in output.replace("\n", " ")
    few = json.loads((tmp_path / "s.json").read_text())
    assert few["AP"] == pytest.approx(76 / 101)  # recall reaches 120 / 160
    assert "AP@150" not in few
    code, output = call(*arguments, "--max-detections", 150)
    text = output.replace("\n", " ")
    assert "COCO's scores count 100 detections per image, and AP@150 counts 150" in text
    assert "150 detections per image" in text
    many = json.loads((tmp_path / "s.json").read_text())
    assert many["AP@150"] == pytest.approx(1)
    assert {**many, "AP@150": None} == {**few, "AP@150": None}


def test_what_is_found_at_the_best_threshold(tmp_path: Path) -> None:
    path = truth(tmp_path / "a.json", [box([10, 10, 40, 40]), box([50, 50, 40, 40], image=2), box([0, 0, 9, 9])])
    found = [
        box([10, 10, 40, 40], score=0.9), box([50, 50, 40, 40], image=2, score=0.6), box([5, 60, 9, 9], score=0.5),
        box([0, 0, 9, 9], image=2, score=0.7, category=9),
    ]  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(found))
    code, output = call("--results", tmp_path / "r.json", "--annotations", path, "--json", tmp_path / "s.json")
    assert code == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["threshold"] == 0.6
    rows = scores["at_threshold"]
    assert list(rows) == ["", "cat", "dog"]
    assert rows["cat"] == {"objects": 3, "precision": 1, "recall": 2 / 3, "f1": 0.8, "best": 0.6}
    assert rows["dog"] == {"objects": 0, "precision": 0, "recall": None, "f1": None, "best": None}
    assert rows[""] == {"objects": 3, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "best": 0.6}
    assert scores["classes_AP50"] == {"cat": pytest.approx(67 / 101), "dog": None}
    assert "P, R and F1 at scores from 0.600" in " ".join(output.split())
    (tmp_path / "r.json").write_text("[]")
    code, output = call("--results", tmp_path / "r.json", "--annotations", path)
    assert code == 0
    assert "nothing was found" in " ".join(output.split())


@pytest.mark.parametrize("backend", ["faster-coco-eval", "hotcoco"])
def test_other_backends_have_the_same_scores(tmp_path: Path, backend: str) -> None:
    """On scenes with equal scores and overlaps, crowds, classes without objects and more than 100 detections."""
    pytest.importorskip(backend.replace("-", "_"))
    for seed in range(12):
        rng = random.Random(seed)
        boxes = [
            box(
                [rng.randrange(8) * 8, rng.randrange(8) * 8, rng.choice((8, 16, 40)), rng.choice((8, 16, 40))],
                rng.choice((1, 2)), rng.choice((4, 4, 9)), iscrowd=int(rng.random() < 0.1), area=rng.choice((99, 2000)),
            )
            for _ in range(rng.randrange(30))
        ]  # fmt: skip
        path = truth(tmp_path / "a.json", boxes)
        found = [
            box([b["bbox"][0] + rng.choice((0, 2)), *b["bbox"][1:]], b["image_id"], rng.choice((4, 9)), score=score)
            for b in boxes
            for score in rng.choices((0.1, 0.5, 0.5, 0.9), k=rng.randrange(3))
        ]
        found += [box([rng.randrange(90), rng.randrange(90), 9, 9], score=0.3) for _ in range(130 * (seed % 2))]
        annotations = coco.read(path)
        results = judge_results(found, annotations, "bbox")
        for rows in (None, [1]):
            expected = compare(annotations, results, rows=rows, cap=120)
            assert compare(annotations, results, rows=rows, cap=120, backend=backend) == {
                name: pytest.approx(value, abs=1e-12) for name, value in expected.items()
            }


@pytest.mark.parametrize("backend", ["faster-coco-eval", "hotcoco"])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_other_backends_have_cocos_known_scores(backend: str, kind: str) -> None:
    pytest.importorskip(backend.replace("-", "_"))
    if not DATA.exists():
        pytest.skip("needs the data set coco_eval in the folder that DETOPS_DATA names")
    expected = json.loads((DATA / "expected.json").read_text())[kind]
    annotations = coco.read(DATA / "instances_val2014_100.json", masks=kind == "segm")
    found = json.loads((DATA / f"instances_val2014_fake{kind}100_results.json").read_text())
    scores = compare(annotations, judge_results(found, annotations, kind), kind, backend=backend)
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_a_backend_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    path = truth(tmp_path / "a.json", [box([10, 10, 40, 40])])
    (tmp_path / "r.json").write_text("[]")
    code, output = call("--results", tmp_path / "r.json", "--annotations", path, "--backend", "hotcoco")
    assert code == 2
    assert '--backend hotcoco needs hotcoco: pip install "hotcoco"' in output.replace("\n", " ")


def discs(seed: int, count: int) -> detops.InstanceMasks:
    """Make round masks of many sizes in an image of 100 x 100."""
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=g) * 60
    boxes = torch.cat([low, low + 8 + torch.rand(count, 2, generator=g) * 30], 1)
    at = (torch.arange(28) + 0.5) / 14 - 1
    masks = (2 - 2 * torch.hypot(at[:, None], at)).clamp(0, 1).expand(count, -1, -1)
    labels, scores = torch.randint(0, 2, (count,), generator=g), torch.rand(count, generator=g)
    return detops.InstanceMasks(boxes, labels, scores, masks, (100, 100))


def test_instance_masks_score_as_pasted_ones_do(tmp_path: Path) -> None:
    coco, np = pytest.importorskip("pycocotools.mask"), pytest.importorskip("numpy")
    annotations, results, pasted = [], [], []
    for image in (1, 2):
        true = discs(image, 30)
        annotations += [
            {**row, "iscrowd": 0, "area": float(area)}
            for row, area in zip(true.to_coco(image, [4, 9]), true.areas(), strict=True)
        ]
        jitter = torch.randn(30, 4, generator=torch.Generator().manual_seed(9)) * 1.5
        found = detops.InstanceMasks(true.boxes + jitter, true.labels, true.scores, true.masks, (100, 100))
        results += found.to_coco(image, [4, 9])
        for row, mask in zip(found.to_coco(image, [4, 9]), found.paste(), strict=True):
            rle = coco.encode(np.asfortranarray(mask.to(torch.uint8).numpy()))
            pasted.append({**row, "segmentation": {**rle, "counts": rle["counts"].decode()}})
    path = truth(tmp_path / "a.json", annotations)
    (tmp_path / "r.json").write_text(json.dumps(results))
    options = ["--results", tmp_path / "r.json", "--annotations", path, "--json", tmp_path / "s.json"]
    code, output = call(*options, "--kind", "segm")
    assert code == 0, output
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores == score(path, pasted, "segm")
    assert 0.2 < scores["AP"] < 0.95
    assert score(path, results, "bbox")["AP"] != scores["AP"]


def test_rows_of_instance_masks() -> None:
    found = detops.InstanceMasks(
        torch.tensor([[10.123, 20, 30.5, 60]]),
        torch.tensor([1]),
        torch.tensor([0.7654321]),
        torch.ones(1, 28, 28),
        (80, 90),
    )
    (row,) = found.to_coco("photo", [4, 9])
    assert row == {
        "image_id": "photo", "category_id": 9, "bbox": [10.12, 20.0, 20.38, 40.0], "score": 0.76543,
        "segmentation": {"size": [80, 90], "counts": found.to_rle()[0]["counts"].decode()},
    }  # fmt: skip
    assert found.to_coco(1)[0]["category_id"] == 1
    with pytest.raises(ValueError, match=r"labels: expected 0 \.\. 0, one per category, got 1"):
        found.to_coco(1, [4])
    nothing = detops.InstanceMasks(
        torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0), torch.zeros(0, 28, 28), (8, 8)
    )
    assert nothing.to_coco(1, [4]) == []
