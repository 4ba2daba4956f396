"""Damaged data sets: each is used, or refused in one line; none gives a traceback, a hang, or an empty result."""

import json
import os
from pathlib import Path
from typing import Any

import mutations
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detops.apps.data import coco
from detops.apps.data.masks import judge_mask
from detops.apps.data.problems import shown

pytest.importorskip("pycocotools")
pytest.importorskip("matplotlib")

DATA = Path(os.environ.get("DETOPS_DATA", Path(__file__).parents[3] / "shared" / "data"))
REAL = {"bccd/val/annotations.json": "bccd/val/images", "coco_small/val/annotations.json": "coco_small/val/images"}

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(mutations.ODD)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8
)  # fmt: skip
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("seed", range(0, 60, 10))
def test_generated_sets_that_were_damaged(tmp_path: Path, seed: int) -> None:
    images = mutations.write_images(tmp_path / "images")
    outcomes = []
    for number in range(seed, seed + 10):
        paths = mutations.write_case(tmp_path, mutations.skeleton(seed=number), number)
        outcomes.append(mutations.attempt(paths[0], images, paths[1], tmp_path, drawing=number % 10 == 0))
    assert {"done"} < {outcome for one in outcomes for outcome in one.values()}  # some are used, and some refused


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_sets_that_were_damaged(tmp_path: Path, name: str) -> None:
    if not (DATA / name).exists():
        pytest.skip(f"needs the data set {name} in the folder that DETOPS_DATA names")
    data = json.loads((DATA / name).read_text())
    kept = {image["id"] for image in data["images"][:4]}
    data["images"] = data["images"][:4]
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in kept]
    for seed in range(12):
        paths = mutations.write_case(tmp_path, data, seed)
        outcomes = mutations.attempt(paths[0], DATA / REAL[name], paths[1], tmp_path, drawing=False)
        assert outcomes["check"]


@few
@given(
    tree=trees, where=st.sampled_from(["images", "annotations", "categories"]), key=st.text(max_size=3), data=st.data()
)
def test_any_tree_in_any_place(tmp_path: Path, tree: Any, where: str, key: str, data: st.DataObject) -> None:
    """Judged without an error other than a refusal, and told in printable lines."""
    document = mutations.skeleton()
    record = data.draw(st.sampled_from(document[where]))
    name = data.draw(st.sampled_from([*record, key]))
    if data.draw(st.booleans()):
        record[name] = tree
    else:
        document[where] = tree
    try:
        annotations = coco.judge(document, tmp_path / "a.json", None, True)
    except ValueError as refusal:
        refused = str(refusal)
    else:
        refused = ""
    assert refused.isprintable()
    if refused:
        return
    for _, problem in annotations.problems:
        assert str(problem).isprintable()
        assert problem.count > 0
    table = annotations.table
    assert (table.xyxy[:, 2:] > table.xyxy[:, :2]).all()
    assert ((table.image >= 0) & (table.image < len(annotations.images))).all()
    assert ((table.label >= 0) & (table.label < len(annotations.class_names))).all()
    assert annotations.masks is not None
    assert len(annotations.masks) == len(table.xyxy)


@few
@given(tree=trees)
def test_any_tree_as_a_mask(tree: Any) -> None:
    coco_mask = pytest.importorskip("pycocotools.mask")
    try:
        rle = judge_mask(tree, 48, 64)
    except ValueError:
        return
    assert coco_mask.decode(rle).shape == (48, 64)


@few
@given(runs=st.lists(st.integers(0, 3000), min_size=1, max_size=12), cut=st.integers(0, 3))
def test_run_lengths_are_read_as_pycocotools_packs_them(runs: list[int], cut: int) -> None:
    """Whole ones are taken, and ones of another number of pixels or cut ones are refused."""
    coco_mask = pytest.importorskip("pycocotools.mask")
    left = 48 * 64
    counts = []
    for run in runs:
        counts.append(min(run, left))
        left -= counts[-1]
    counts.append(left)
    packed = coco_mask.frPyObjects({"size": [48, 64], "counts": counts}, 48, 64)["counts"].decode()
    assert judge_mask({"size": [48, 64], "counts": packed}, 48, 64)["counts"] == packed.encode()
    assert judge_mask({"size": [48, 64], "counts": counts}, 48, 64)["counts"] == packed.encode()
    for wrong in ([*counts, 1], [*counts[:-1], counts[-1] + 7]):
        longer = coco_mask.frPyObjects({"size": [60, 64], "counts": [*wrong, 48 * 80]}, 60, 64)["counts"].decode()
        for other in (wrong, longer):
            with pytest.raises(ValueError, match="run lengths of 3072 pixels"):
                judge_mask({"size": [48, 64], "counts": other}, 48, 64)
    if 0 < cut < len(packed) and counts[-1]:
        with pytest.raises(ValueError, match="run lengths"):
            judge_mask({"size": [48, 64], "counts": packed[:-cut]}, 48, 64)


@given(value=trees)
def test_whatever_is_shown_is_one_printable_line(value: Any) -> None:
    assert shown(value).isprintable()
    assert len(shown(value)) <= 60 * 10  # an escape takes up to ten letters
