"""Damage data sets at random, for as long as told, and give them to all commands that open one: `make fuzz MINUTES=30`.

A failure is a traceback, a hang, or an empty result without a refusal. The files of each are kept in build/fuzz.
"""

import json
import os
import random
import shutil
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import mutations  # noqa: E402

DATA = Path(os.environ.get("DETOPS_DATA", ROOT.parent / "shared" / "data"))
REAL = {"bccd/val/annotations.json": "bccd/val/images", "coco_small/val/annotations.json": "coco_small/val/images"}


def main(minutes: float, seed: int) -> int:
    """Try damaged sets until the time is over; return 1 if one failed."""
    out = ROOT / "build" / "fuzz"
    shutil.rmtree(out, ignore_errors=True)
    work = out / "work"
    generated = mutations.write_images(work / "images")
    real = []
    for name, images in REAL.items():
        if (DATA / name).exists():
            data = json.loads((DATA / name).read_text())
            data["images"] = data["images"][:5]
            kept = {image["id"] for image in data["images"]}
            data["annotations"] = [a for a in data["annotations"] if a["image_id"] in kept][:200]
            real.append((data, DATA / images))
    end, tried, failed, used = time.monotonic() + 60 * minutes, 0, 0, 0
    while time.monotonic() < end:
        rng = random.Random(seed + tried)
        source = rng.choice(real) if real and rng.random() < 0.2 else (mutations.skeleton(seed=seed + tried), generated)
        annotations, results = mutations.write_case(work, source[0], seed + tried)
        try:
            outcomes = mutations.attempt(annotations, source[1], results, work, drawing=tried % 5 == 0)
            used += any(outcome == "done" for outcome in outcomes.values())
        except Exception:
            failed += 1
            print(f"seed {seed + tried}:\n{traceback.format_exc()}", flush=True)
            shutil.copytree(work, out / str(seed + tried), ignore=shutil.ignore_patterns("images", "targets"))
        tried += 1
    print(f"{tried} damaged sets in {minutes:g} minutes: {used} used, {tried - used - failed} refused, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30)))
