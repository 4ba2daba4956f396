"""Detections matched with objects: as COCO's scores match them, with curves, rates, kinds of errors and confusion."""

import contextlib
import io
from pathlib import Path

import pytest

from detops.apps.data import coco
from detops.apps.data.coco import Annotations
from detops.apps.data.matching import Kind, Rates, confusion, curve, kinds, match, rates, total
from detops.apps.data.results import Results, judge_results

np = pytest.importorskip("numpy")
Box = tuple[int, int, list[float]]  # image, category, xywh


def scene(objects: list[Box], detections: list[tuple[int, int, list[float], float]]) -> tuple[Annotations, Results]:
    annotations = [
        {"image_id": i, "category_id": abs(c), "bbox": b, "iscrowd": int(c < 0)} for i, c, b in objects
    ]  # a negative category is a crowd's
    data = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": annotations,
    }
    truth = coco.judge(data, Path("a.json"))
    rows = [{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in detections]
    return truth, judge_results(rows, truth, "bbox")


def test_each_object_is_found_once_by_the_highest_score() -> None:
    truth, found = scene(
        [(2, 1, [0, 0, 10, 10]), (2, 1, [50, 50, 10, 10]), (2, -1, [70, 70, 30, 30]), (3, 2, [0, 0, 10, 10])],
        [
            (2, 1, [0, 0, 10, 9], 0.6),  # closer, and too late
            (2, 1, [0, 0, 10, 8], 0.7),
            (2, 1, [50, 50, 10, 4], 0.9),  # too little
            (2, 1, [72, 72, 5, 5], 0.9),  # on a crowd
            (2, 2, [50, 50, 10, 10], 0.5),  # another class
            (1, 1, [0, 0, 10, 10], 0.5),  # another image, without objects
        ],
    )
    matches = match(truth, found)
    assert matches.object.tolist() == [-1, 0, -1, -1, -1, -1]
    assert matches.iou.tolist() == pytest.approx([0.9, 0.8, 0.4, 0, 0, 0])
    assert matches.ignored.tolist() == [False, False, False, True, False, False]
    kind, place = kinds(truth, found, matches, 0.5)
    assert kind.tolist() == [Kind.TWICE, Kind.TRUE, Kind.FALSE, Kind.IGNORED, Kind.WRONG_CLASS, Kind.FALSE]
    assert place.tolist() == [-1, 0, -1, -1, 1, -1]
    kind, place = kinds(truth, found, matches, 0.55)  # without the one of another class
    assert kind.tolist() == [Kind.TWICE, Kind.TRUE, Kind.BADLY_PLACED, Kind.IGNORED, Kind.BELOW, Kind.BELOW]
    assert place.tolist() == [-1, 0, 1, -1, -1, -1]
    assert confusion(truth, found, kind, place).tolist() == [[1, 0, 1], [0, 0, 1], [2, 0, 0]]


def test_curves_and_rates() -> None:
    truth, found = scene(
        [(1, 1, [0, 0, 10, 10]), (2, 1, [0, 0, 10, 10]), (3, 2, [0, 0, 10, 10]), (3, 2, [30, 0, 10, 10])],
        [
            (1, 1, [0, 0, 10, 10], 0.9),
            (3, 2, [0, 0, 10, 10], 0.8),
            (2, 1, [50, 0, 10, 10], 0.8),
            (2, 1, [0, 0, 10, 10], 0.3),
        ],
    )
    matches = match(truth, found)
    line = curve(truth, found, matches)
    assert line.score.tolist() == [0.9, 0.8, 0.3]
    assert line.precision.tolist() == pytest.approx([1, 2 / 3, 3 / 4])
    assert line.recall.tolist() == pytest.approx([1 / 4, 2 / 4, 3 / 4])
    assert line.f1.tolist() == pytest.approx([0.4, 4 / 7, 0.75])
    assert line.best == 0.3
    assert curve(truth, found, matches, 0).recall.tolist() == pytest.approx([0.5, 0.5, 1])
    counts = rates(truth, found, matches, 0.5)
    assert counts == [Rates(2, 1, 1), Rates(2, 1, 0)]
    whole = total(counts)
    assert (whole.precision, whole.recall, whole.f1) == pytest.approx((2 / 3, 0.5, 4 / 7))


def test_nothing_to_match() -> None:
    for objects in ([], [(1, 1, [0, 0, 10, 10])]):
        truth, found = scene(objects, [])
        matches = match(truth, found)
        line = curve(truth, found, matches)
        assert len(line.score) == 0
        assert line.best is None
        assert confusion(truth, found, *kinds(truth, found, matches, 0.5)).sum() == len(objects)
    truth, found = scene([], [(1, 1, [0, 0, 10, 10], 0.5)])
    assert np.isnan(curve(truth, found, match(truth, found)).recall).all()
    row = rates(truth, found, match(truth, found), 0.1)[0]
    assert (row.precision, row.recall, row.f1) == (0.0, None, None)
    assert total([]) == Rates(0, 0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_true_detections_are_those_of_pycocotools(seed: int) -> None:
    pytest.importorskip("pycocotools")
    from detops.apps import scores

    rng = np.random.default_rng(seed)

    def boxes(count: int) -> list[tuple[int, int, list[float]]]:
        corners, sides = rng.uniform(0, 40, (count, 2)), rng.uniform(5, 40, (count, 2))
        images, labels = rng.integers(1, 4, count), rng.integers(1, 3, count)
        return [
            (int(i), int(c), [*p, *s])
            for i, c, p, s in zip(images, labels, corners.tolist(), sides.tolist(), strict=True)
        ]

    objects = [(i, -c if rng.random() < 0.1 else c, b) for i, c, b in boxes(60)]
    truth, found = scene(objects, [(*box, float(rng.random())) for box in boxes(150)])
    index, evaluation = scores.backend_tools("pycocotools")
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = evaluation(scores._truth(truth, "bbox", index), scores._found(truth, found, "bbox", index), "bbox")
        theirs.params.maxDets = [1000]
        theirs.evaluate()
    images = [one for one in theirs.evalImgs if one is not None and one["aRng"] == theirs.params.areaRng[0]]
    expected = {
        int(row) - 1
        for one in images
        for row, matched, ignored in zip(one["dtIds"], one["dtMatches"][0], one["dtIgnore"][0], strict=True)
        if matched and not ignored
    }
    left_out = {int(i) - 1 for one in images for i, out in zip(one["dtIds"], one["dtIgnore"][0], strict=True) if out}
    matches = match(truth, found)
    assert set(np.flatnonzero(matches.object >= 0).tolist()) == expected
    assert expected
    assert set(np.flatnonzero(matches.ignored).tolist()) == left_out
