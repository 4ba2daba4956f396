"""Data sets that were damaged at random, and what the commands may do with them: for the fuzz tests and `make fuzz`."""

import copy
import gzip
import io
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from detops.apps import check, evaluate, targets
from detops.apps.data.dataset import CocoImages, open_annotations

SECONDS = 20  # that one call may take
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3.5, 1e308, -1e308, float("nan"), float("inf"), 10**30, 10**400, 1 << 31, 1 << 63, "",
    "1", "0", "false", "cat", "é猫\n\x00[red]", "\ud800", "a" * 500, "../../x", "C:\\data\\a.jpg", [], [[]], {}, [None], [1],
    [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [[1, 2, 3, 4, 5, 6]], [[1e9, 0, 0, 1e9, 5, 5]], ["1", "2", "3", "4"],
    {"size": [48, 64], "counts": [3072]}, {"size": [48, 64], "counts": [10, 5]}, {"size": [48, 64], "counts": "0"},
    {"size": [48, 64], "counts": "PPPPPPPPPPPPPPP1"}, {"size": [1 << 30, 1 << 30], "counts": [1 << 60]}, {"counts": "a\ud800"},
]  # fmt: skip


def skeleton(images: int = 3, boxes: int = 8, seed: int = 0) -> dict[str, Any]:
    """A correct data set of small images named 0.png, 1.png, ..."""
    rng = random.Random(seed)
    records = [{"id": i + 1, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(images)]
    annotations = []
    for number in range(boxes):
        x, y, w, h = rng.randint(0, 40), rng.randint(0, 30), rng.randint(2, 20), rng.randint(2, 16)
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append(
            {
                "id": number + 1, "image_id": rng.randint(1, images), "category_id": rng.choice((1, 7)),
                "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": [polygon],
            }
        )  # fmt: skip
    return {
        "images": records,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


def write_images(folder: Path, count: int = 3) -> Path:
    """Write the images of `skeleton`: 0.png, 1.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (64, 48), (40 * number, 90, 120)).save(folder / f"{number}.png")
    return folder


def write_case(root: Path, data: Any, seed: int) -> tuple[Path, Path]:
    """Write annotations and results that were damaged at random; return both paths."""
    rng = random.Random(seed)
    (root / "a.json").write_bytes(encoded(mutate(data, rng), rng))
    results = detections(data)
    if rng.random() < 0.5:
        results = mutate(results, rng)
    whole = json.dumps(results).encode()
    (root / "r.json").write_bytes(encoded(results, rng) if rng.random() < 0.3 else whole)
    return root / "a.json", root / "r.json"


def detections(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Results that repeat the annotations."""
    keys = ("image_id", "category_id", "bbox", "segmentation")
    return [{**{key: a[key] for key in keys if key in a}, "score": 0.9} for a in data["annotations"]]


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each place of a JSON tree: what holds it, and its key there."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from nodes(tree[key])


def mutate(tree: Any, rng: random.Random, times: int | None = None) -> Any:
    """Change some places of a tree at random: other values, missing, repeated and exchanged ones, in one or in all."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8)) if times is None else times):
        places = list(nodes(tree))
        if not places:
            return rng.choice(ODD)
        holder, key = rng.choice(places)
        # A place of an export's mistake is the same in all records as often as in one.
        same = [(h, k) for h, k in places if k == key and isinstance(k, str)] if rng.random() < 0.4 else [(holder, key)]
        how, value = rng.randrange(6), rng.choice(ODD)
        for parent, name in same or [(holder, key)]:
            _change(parent, name, how, value, rng)
    return tree


def _change(parent: Any, key: Any, how: int, value: Any, rng: random.Random) -> None:
    if isinstance(parent, list) and not 0 <= key < len(parent):
        return  # an earlier change has made the list shorter
    if how == 0:
        del parent[key]
    elif how == 1 and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    elif how == 2 and isinstance(parent[key], int | float):
        parent[key] = rng.choice((-parent[key], parent[key] * 1000, str(parent[key]), float("nan"), [parent[key]]))
    elif how == 3 and isinstance(parent, list):
        rng.shuffle(parent)
    elif how == 4 and isinstance(parent[key], str):
        parent[key] = parent[key][: rng.randint(0, len(parent[key]))]
    else:
        parent[key] = copy.deepcopy(value)


def encoded(tree: Any, rng: random.Random) -> bytes:
    """Write a tree as JSON, at times with damaged bytes or in another encoding."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    content = text.encode("utf-8", "surrogatepass")
    how = rng.randrange(16)
    if how == 0:
        content = content[: rng.randint(0, len(content))]
    elif how == 1 and content:
        position = rng.randrange(len(content))
        content = content[:position] + bytes([rng.randrange(256)]) + content[position + 1 :]
    elif how == 2:
        content = gzip.compress(content)[: rng.choice((-1, -9, 20, 10**9))]
    elif how == 3:
        content = text.encode(rng.choice(("utf-16", "utf-8-sig", "utf-32", "latin-1")), "replace")
    elif how == 4:
        content = rng.choice((b"[", b'{"images":')) * rng.choice((10, 1000, 200_000)) + content
    elif how == 5:
        content = content.replace(b"1", b"1" * rng.choice((400, 5000)), 1)
    return content


@contextmanager
def limited(seconds: int = SECONDS) -> Iterator[None]:
    """Raise if the block takes more processor time, as long as it runs Python; a busy machine does not count."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no end within {seconds} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def attempt(path: Path, images: Path, results: Path, out: Path, drawing: bool = True) -> dict[str, str]:
    """Give a data set to all that opens one. Return "done", or the refusal, by name.

    Args:
        path: Annotations.
        images: Folder of their images.
        results: Results file.
        out: Folder to write to.
        drawing: Draw the targets too, which takes most of the time.

    Raises:
        Exception: Something else than a refusal in one line, or an empty result without one.
    """
    console = Console(file=io.StringIO(), width=120)

    def checked() -> None:
        check.run(path, images, True, out / "check.html", console)

    def drawn() -> None:
        summary = targets.run(path, images, out / "targets", pictures=1, console=console)
        assert summary.boxes > 0, "no box was drawn"

    def opened() -> None:
        dataset = CocoImages(open_annotations(path, images, False, console), images, (32, 32), False, 1 << 20, console)
        batch = dataset.__getitems__(list(range(len(dataset))))
        assert len(dataset.annotations.boxes) > 0, "no object is left"
        assert bool(batch.targets.boxes.isfinite().all())

    def scored(kind: str) -> Callable[[], None]:
        def score() -> None:
            scores = evaluate.run(None, results, path, kind=kind, console=console)
            assert scores["AP"] is not None, "nothing was counted"
            assert 0 <= scores["AP"] <= 1

        return score

    outcomes = {}
    calls = {"check": checked, "targets": drawn, "open": opened, "bbox": scored("bbox"), "segm": scored("segm")}
    for name, call in calls.items():
        if name == "targets" and not drawing:
            continue
        with limited():
            try:
                call()
                outcomes[name] = "done"
            except (ValueError, OSError) as refusal:
                if isinstance(refusal, TimeoutError):
                    raise
                outcomes[name] = str(refusal)
                assert outcomes[name], "a refusal without a word"
                assert "\n" not in outcomes[name], outcomes[name]
    return outcomes
