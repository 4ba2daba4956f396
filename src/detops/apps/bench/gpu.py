"""`python -m detops.apps.bench.gpu --out FOLDER`: all that is to be measured on a GPU, in one command of some minutes.

It needs PyTorch and Triton alone; what else is missing is said, and shows in the exit code. First the GPU tests run, in
parallel if pytest-xdist is installed. Whatever comes of them, the suites are measured, the least sure first, in one
other process. If that hangs, or a kernel breaks the device for it, another goes on with the next suite. After each
suite, its results are in FOLDER and in one archive.

`--rehearse` runs the same code on the CPU with tiny inputs: nothing is captured or profiled, and no figure means
anything.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detops.apps.bench import _accv, _gpu_worker, _tiny, runner

TESTS_SHARE = 0.3  # of the time, at most
GRACE = 45.0  # seconds beyond its budget until a suite counts as hanging
RESTARTS = 6


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, and return the exit code: 1 if a test failed or a suite was not measured."""
    parser = argparse.ArgumentParser(prog="python -m detops.apps.bench.gpu", allow_abbrev=False)
    parser.description = (__doc__ or "").partition("\n")[0]
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="what to measure; all, if none is given")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the results")
    parser.add_argument("--archive", type=Path, metavar="FILE", help="by default FOLDER/results.tar.gz")
    parser.add_argument("--accv", type=Path, metavar="FOLDER", help="ACCV-Lab's sources of draw_heatmap, as a baseline")
    parser.add_argument("--minutes", type=float, default=7.5, help="for all of it; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="only the first case of each suite")
    parser.add_argument("--skip-tests", action="store_true", help="measure without running the tests")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny inputs")
    parser.add_argument("--worker", type=float, metavar="DEADLINE", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    try:
        names = _gpu_worker.ordered([name for name in chosen.suites or runner.suites() if runner.suite(name)])
    except ValueError as error:
        parser.error(str(error))
    out: Path = chosen.out
    meter = _gpu_worker.meter_of("cpu" if chosen.rehearse else "cuda")
    if chosen.worker is not None:
        _gpu_worker.work(names, out, meter, chosen.worker, chosen.quick, out / "accv" if chosen.accv else None)
        return 0
    deadline = time.time() + 60 * chosen.minutes
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("*_cuda_*.json"), out / "progress.jsonl"):
        old.unlink(missing_ok=True)
    archive = chosen.archive or out / "results.tar.gz"
    _describe(out)
    builder = _start_accv(chosen.accv, out)
    good = chosen.skip_tests or _run_tests(out, 60 * chosen.minutes * TESTS_SHARE)
    pack(out, archive)
    if chosen.rehearse:
        _tiny.shrink()
        _gpu_worker.work(names, out, meter, deadline, True)
    else:
        _measure(names, chosen, deadline, archive)
    if builder is not None:
        builder.kill()
        builder.wait()
    state = progress(out)
    (out / "summary.txt").write_text(summary(state, names))
    pack(out, archive)
    print((out / "summary.txt").read_text(), f"archive: {archive}", sep="")
    return 0 if good and all(state.get(name) == "done" for name in names) else 1


def _describe(out: Path) -> None:
    """Write what this machine is, as far as it can be said without using the GPU."""
    nvidia = shutil.which("nvidia-smi")
    said = _output([nvidia], 20) if nvidia else "no nvidia-smi"
    code = "import detops, json; print(json.dumps(detops.env(), indent=1))"
    environment = _output([sys.executable, "-c", code], 90)  # in a process that then leaves the GPU
    packages = {
        name: importlib.util.find_spec(name) is not None for name in ("triton", "torchvision", "pytest", "xdist")
    }
    (out / "machine.txt").write_text(f"{said}\n{json.dumps(packages)}\n{environment}\n")


def _output(command: list[str], seconds: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout + done.stderr


def _start_accv(sources: Path | None, out: Path) -> "subprocess.Popen[bytes] | None":
    """Compile ACCV-Lab's operator beside the tests."""
    if sources is None:
        return None
    with (out / "accv.txt").open("w") as log:
        command = [sys.executable, _accv.__file__, str(sources), str(out / "accv")]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def _run_tests(out: Path, seconds: float) -> bool:
    """Run the GPU tests of the working copy into "tests.txt"; whether they passed."""
    root = runner.working_copy() or runner.FOLDER.parents[3]
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing or not (root / "tests").is_dir():
        said = f"tests not run: no {missing[0] if missing else root / 'tests'}"
        (out / "tests.txt").write_text(said + "\n")
        print(said)
        return False
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", "tests/ops", "tests/library"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "loadfile"]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout", "120"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), os.environ.get("PYTHONPATH", "")])}
    with (out / "tests.txt").open("w") as log:
        tests = subprocess.Popen(
            command, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        code = _wait(tests, time.time() + seconds)
    print("tests:", "not done in time" if code is None else f"exit code {code}", flush=True)
    return code == 0


def _wait(process: "subprocess.Popen[bytes]", deadline: float) -> int | None:
    """The exit code of a process; None if it was ended, with all that it started, at the deadline."""
    try:
        return process.wait(timeout=max(deadline - time.time(), 0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def _measure(names: list[str], chosen: argparse.Namespace, deadline: float, archive: Path) -> None:
    """Run workers until all suites are measured or given up."""
    out: Path = chosen.out
    options = [*["--quick"] * chosen.quick, *(["--accv", str(chosen.accv)] if chosen.accv else [])]
    left = list(names)
    for _ in range(RESTARTS):
        command = [sys.executable, "-m", "detops.apps.bench.gpu", "--out", str(out), "--worker", str(deadline)]
        worker = subprocess.Popen([*command, *options, *left], start_new_session=True)
        before = len(_notes(out))
        _watch(worker, out, archive)
        if worker.returncode and len(_notes(out)) == before:
            return  # it cannot even begin
        state = progress(out)
        hanging = [name for name, found in state.items() if found == "begun"]
        for name in hanging:
            _gpu_worker.note(out, suite=name, state="failed", why="the process hung or ended")
        left = [name for name in left if name not in state]
        if not left or time.time() > deadline - 5:
            return


def _watch(worker: "subprocess.Popen[bytes]", out: Path, archive: Path) -> None:
    """Wait for a worker, pack what it has written, and end it where a suite takes far more than its time."""
    packed, started = 0, time.time()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(timeout=1)
        notes = _notes(out)
        if sum(note["state"] == "done" for note in notes) > packed:
            packed = sum(note["state"] == "done" for note in notes)
            pack(out, archive)
        if worker.poll() is not None:
            return
        last = notes[-1] if notes else {}
        if time.time() > max(last.get("time", 0.0), started) + last.get("budget", 90.0) + GRACE:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            return


def _notes(out: Path) -> list[dict[str, Any]]:
    path = out / "progress.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def progress(out: Path) -> dict[str, str]:
    """The last state of each suite that was begun."""
    return {note["suite"]: note["state"] for note in _notes(out)}


def summary(state: dict[str, str], names: Sequence[str]) -> str:
    """A line per suite that is not measured, and how many are."""
    missing = [f"{name}: {state.get(name, 'not begun')}" for name in names if state.get(name) != "done"]
    return "\n".join([*missing, f"{len(names) - len(missing)} of {len(names)} suites measured"]) + "\n"


def pack(out: Path, archive: Path) -> None:
    """Put all files of results into one archive, which is whole at any time."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    new = archive.with_name(archive.name + ".new")
    with tarfile.open(new, "w:gz") as file:
        for path in sorted(out.iterdir()):
            if path.is_file() and path.suffix in (".json", ".jsonl", ".txt"):
                file.add(path, arcname=path.name)
    new.replace(archive)


if __name__ == "__main__":
    sys.exit(main())
