"""Measures draw_gaussians_ with and without its wrappers, after its tests have passed.

python benchmarks/bench_draw_gaussians.py [--device cuda] [--out benchmarks/results] [--skip-tests]
"""

import argparse
import subprocess
import sys
from pathlib import Path

from detops.apps import bench

ROOT = Path(__file__).parents[1]


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--skip-tests", action="store_true", help="they have just passed")
    options = parser.parse_args()
    tests = [str(ROOT / "tests" / name) for name in ("test_draw_gaussians.py", "test_heatmap.py")]
    if not options.skip_tests:
        subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], check=True, cwd=ROOT)
    for kernel in (False, True):
        name = f"heatmap_{options.device}{'_kernel' if kernel else ''}.json"
        bench.main("heatmap", kernel=kernel, json_path=options.out / name, device=options.device)


if __name__ == "__main__":
    run()
