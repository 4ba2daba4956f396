"""Measures a Mask R-CNN by its stages, after the pipeline's tests have passed. Needs torchvision.

python benchmarks/bench_inference.py [--device cuda] [--out benchmarks/results] [--skip-tests]
    [--sizes 1333x800 3840x2304] [--repeats 3]
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from detops.apps import bench_inference

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--skip-tests", action="store_true", help="they have just passed")
    parser.add_argument("--sizes", nargs="+", default=["1333x800", "3840x2304"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if importlib.util.find_spec("torchvision") is None:
        print("inference: not measured, torchvision is not installed")
        sys.exit(0)
    if not options.skip_tests:
        tests = [ROOT / "tests" / name for name in ("test_torchvision_pipeline.py", "test_bench_inference.py")]
        subprocess.run([sys.executable, "-m", "pytest", "-q", *map(str, tests)], check=True, cwd=ROOT)
    with tempfile.TemporaryDirectory() as pictures:
        path = options.out / f"inference_{options.device}.json"
        bench_inference.run(
            options.sizes, out=Path(pictures), repeats=options.repeats, json_path=path, device=options.device
        )
