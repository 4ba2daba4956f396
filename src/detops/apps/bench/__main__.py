"""`python -m detops.apps.bench`: measures all suites, or those named, after their tests have passed.

It needs only PyTorch, and Triton on a GPU, so it runs on machines where nothing else can be installed. A suite whose
tests fail is not measured. Results go to OUT/SUITE_DEVICE.json, and those of an op alone to
OUT/SUITE_DEVICE_kernel.json.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from detops.apps.bench import _compare, runner


def tested(files: Sequence[str]) -> str:
    """Run test files of the working copy and return "passed", "failed" or, if they cannot run, "not run"."""
    root = runner.working_copy() or runner.FOLDER.parents[3]
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing or not (root / "tests").is_dir():
        print(f"tests not run: no {missing[0] if missing else root / 'tests'}")
        return "not run"
    paths = [str(root / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *files], cwd=root, env=environment, check=False)
    return "failed" if done.returncode else "passed"


def measure_all(names: Sequence[str], device: str, out: Path | None, quick: bool, kernel: bool, tests: bool) -> bool:
    """Measure suites in all their forms, or the ops alone; an error ends only its suite.

    Args:
        names: The suites.
        device: "cpu" or "cuda".
        out: Folder of the results; None prints them only.
        quick: Fewer cases and a shorter time for each.
        kernel: Only suites that measure an op alone, and only in this form.
        tests: Run each suite's tests before it.

    Returns:
        Whether no test and no suite failed.
    """
    good = True
    for name in names:
        module = runner.suite(name)
        forms = [form for form in (False, True) if runner.has_forms(module) or not form]
        if kernel:
            forms = [True] if True in forms else []
        state = tested(module.TESTS) if tests and forms else "not run"
        good = good and (state == "passed" or not tests or not forms)
        if state == "failed":
            print(f"{name}: not measured, as its tests fail")
            continue
        for form in forms:
            path = out and out / f"{name}_{device}{'_kernel' if form else ''}.json"
            try:
                runner.main(name, form, path, quick, device, state)
            except Exception:
                traceback.print_exc()
                good = False
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, and return the exit code: 1 if a test, a suite or a comparison failed."""
    parser = argparse.ArgumentParser(prog="python -m detops.apps.bench", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help="name of an op or a criterion; all, if none is given"
    )
    parser.add_argument("--list", action="store_true", help="print the names of all suites")
    parser.add_argument("--device", help="cpu or cuda; by default a GPU if there is one")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the results as JSON into this folder")
    parser.add_argument("--quick", action="store_true", help="fewer cases, and a shorter time for each")
    parser.add_argument("--kernel", action="store_true", help="measure ops alone, without their public functions")
    parser.add_argument("--skip-tests", action="store_true", help="measure without running the tests of the suites")
    parser.add_argument("--compare", metavar="REV", help="measure the working copy against this commit instead")
    parser.add_argument(
        "--fail-above", type=float, metavar="RATIO", help="with --compare: exit with 1 if a case is slower"
    )
    chosen = parser.parse_args(arguments)
    if chosen.list:
        print(*runner.suites(), sep="\n")
        return 0
    device = chosen.device or runner.default_device()
    try:
        names = [name for name in chosen.suites or runner.suites() if runner.suite(name)]
        if chosen.compare is not None:
            good = _compare.compare(names, chosen.compare, chosen.kernel, chosen.quick, device, chosen.fail_above)
        else:
            good = measure_all(names, device, chosen.out, chosen.quick, chosen.kernel, not chosen.skip_tests)
    except ValueError as error:
        parser.error(str(error))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
