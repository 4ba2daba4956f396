"""Processor time and memory of reading a COCO file and judging each record, beside parsing its JSON alone.

python benchmarks/reading_annotations.py [IMAGES]      # by default as many as COCO has: 118,000 with 860,000 boxes
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BOXES = 860 / 118  # per image, as in COCO
PARTS = ("parse", "read")


def write(path: Path, count: int) -> None:
    """Write a file of so many images, with boxes and their outlines in random places."""
    rng = random.Random(0)
    images = [{"id": i, "file_name": f"{i:012}.jpg", "width": 640, "height": 480} for i in range(count)]
    annotations = []
    for number in range(round(count * BOXES)):
        x, y, w, h = rng.randrange(500), rng.randrange(400), rng.randrange(8, 140), rng.randrange(8, 80)
        annotations.append({
            "id": number, "image_id": number % count, "category_id": rng.randrange(1, 81), "bbox": [x, y, w, h],
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "area": w * h, "iscrowd": 0,
        })  # fmt: skip
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def measure(part: str, path: Path) -> None:
    """Parse or read the file, and print processor seconds and the GiB that the process took at most."""
    from detops.apps.data import coco, json_file

    start = time.process_time()
    (json_file.load if part == "parse" else coco.read)(path)
    seconds = time.process_time() - start
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main(count: int) -> None:
    """Measure each part in a process of its own; so is the file written, as a process inherits its parent's peak."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.json"
        subprocess.run([sys.executable, __file__, "write", str(path), str(count)], check=True)
        print(f"{count:,} images, {round(count * BOXES):,} boxes, {path.stat().st_size / 1e6:.0f} MB")
        seconds = {}
        for part in PARTS:
            command = [sys.executable, __file__, part, str(path)]
            seconds[part], peak = map(float, subprocess.check_output(command, text=True).split())
            print(f"{part}: {seconds[part]:.1f} s of processor time, {peak:.1f} GiB at most, with detops and torch")
    print(f"read / parse: {seconds['read'] / seconds['parse']:.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] and sys.argv[1] in PARTS:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 118_000)
