"""What the benchmark scripts share: the op's tests first, then its suite with and without the Python wrapper."""

import argparse
import subprocess
import sys
from pathlib import Path

from detops.apps import bench

ROOT = Path(__file__).parents[1]


def run(suite: str, *tests: str, description: str | None) -> None:
    """Test, then measure and write `<suite>_<device>.json` and `<suite>_<device>_kernel.json`.

    Args:
        suite: See `detops.apps.bench.SUITES`.
        tests: Files of tests that must pass before a number counts.
        description: Of the script, for --help.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--skip-tests", action="store_true", help="they have just passed")
    options = parser.parse_args()
    if not options.skip_tests:
        command = [sys.executable, "-m", "pytest", "-q", *(str(ROOT / "tests" / name) for name in tests)]
        subprocess.run(command, check=True, cwd=ROOT)
    for kernel in (False, True):
        name = f"{suite}_{options.device}{'_kernel' if kernel else ''}.json"
        bench.main(suite, kernel=kernel, json_path=options.out / name, device=options.device)
