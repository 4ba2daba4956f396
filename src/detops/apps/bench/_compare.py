"""`--compare REV`: the working copy against another of its commits, on one machine, in turns.

The commit is unpacked and built once, under build/compare. Then two processes, one per side, each with its own package
and its own form of the suite, take samples alternately, so that a slow moment of the machine affects both. Cases are
matched by their names.
"""

import io
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from detops.apps.bench import _timing, runner
from detops.apps.bench._timing import Timing

# Before suites were named for what they measure, they were modules detops.apps.bench_NAME with these names.
FORMER_NAMES = {
    "atss_match": "atss",
    "draw_gaussians": "heatmap",
    "gaussian_focal_loss": "focal",
    "gaussian_focal_loss_from_boxes": "centernet",
    "masks_to_rle": "masks",
    "nms_mask": "nms",
    "paste_masks": "paste",
    "positive_losses": "gfl",
    "positive_losses_backward": "gfl_boxes",
    "resize_normalize_pad": "preprocess",
    "scale_gradient": "gradient",
    "simota_match": "simota",
    "vlr_weights": "region",
}
# Later, the suite of a criterion had the name of its op for a while.
FORMER_OPS = {"centernet": "gaussian_focal_loss_from_boxes", "gfl": "positive_losses", "yolox": "yolox_loss"}
TURNS = 10  # at least; with fewer than 8, no difference would be beyond the noise


@dataclass(frozen=True)
class Pair:
    """One case on both sides: seconds per call, one sample of each side per turn."""

    suite: str
    case: str
    before: list[float]
    now: list[float]

    @property
    def ratio(self) -> float:
        """The time of the working copy over that of the commit: the median over the turns."""
        return statistics.median(now / before for now, before in zip(self.now, self.before, strict=True))

    @property
    def verdict(self) -> str:
        """Tell if the working copy is "slower" or "faster" beyond the noise, by a sign test over the turns at 1 %."""
        slower = sum(now > before for now, before in zip(self.now, self.before, strict=True))
        faster = sum(now < before for now, before in zip(self.now, self.before, strict=True))
        turns, extreme = slower + faster, max(slower, faster)
        chance = 2 * sum(math.comb(turns, count) for count in range(extreme, turns + 1)) / 2**turns
        return "" if chance > 0.01 else "slower" if slower == extreme else "faster"

    def __str__(self) -> str:
        times = f"{Timing.of(self.before)!s:>16}{Timing.of(self.now)!s:>16}"
        return f"  {self.case:42}{times}{self.ratio:8.2f}  {self.verdict}".rstrip()


class Side(AbstractContextManager["Side"]):
    """A process that measures with the detops of one source folder."""

    def __init__(self, source: Path, environment: dict[str, str]) -> None:
        paths = [str(source), *filter(None, [environment.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-P", _timing.__file__],  # -P: the script's folder is not searched for modules
            env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = self.ask("where")
        if Path(found) != source / "detops":
            raise RuntimeError(f"expected the detops of {source}, got that of {found}")

    def ask(self, request: str, **arguments: Any) -> Any:
        """Send a request to `_timing.Server` and return its answer.

        Raises:
            RuntimeError: The request failed in that process.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"do": request, **arguments}), file=self._process.stdin, flush=True)
        reply = json.loads(self._process.stdout.readline() or '{"error": "the process ended"}')
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["answer"]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the process ends with its requests
        if error is not None:
            self._process.kill()
        self._process.wait()


def compare(
    names: Sequence[str],
    rev: str,
    kernel: bool = False,
    quick: bool = False,
    device: str | None = None,
    fail_above: float | None = None,
    root: Path | None = None,
) -> bool:
    """Measure suites with the working copy and with a commit, and print a line per case.

    Args:
        names: Suites; all if empty.
        rev: The commit, in any form that git understands.
        kernel: Measure ops alone, in suites that have this form.
        quick: Fewer cases and a shorter time for each.
        device: "cpu" or "cuda"; None takes a GPU if there is one.
        fail_above: Largest allowed ratio of a case's time to that of the commit.
        root: The working copy; None for the one that this package is part of.

    Returns:
        Whether no case is slower than `fail_above` allows, beyond the noise.

    Raises:
        ValueError: There is no git working copy, no such commit, or no such suite; or a build fails.
    """
    root = root or runner.working_copy()
    if root is None:
        raise ValueError("--compare: detops is not imported from a git working copy")
    modules = {name: runner.suite(name) for name in names or runner.suites()}
    device = device or runner.default_device()
    commit = _resolved(root, rev)
    environment = {**os.environ}
    if "DETOPS_LIBRARY" not in environment:
        _run([sys.executable, "tools/kernels.py"], root)  # does nothing if the library is up to date
    print(f"{commit[:9]} against the working copy, on {runner.machine(device)};", end=" ")
    print("milliseconds: median ± half the interquartile range")
    source = built(root, commit) / "src"
    pairs = []
    with ExitStack() as stack:
        now = stack.enter_context(Side(root / "src", environment))
        environment.pop("DETOPS_LIBRARY", None)
        before = stack.enter_context(Side(source, environment))
        for name, module in modules.items():
            forms = runner.has_forms(module)
            options = {"device": device, "quick": quick, "kernel": runner.is_op_alone(name, kernel and forms)}
            title = f"{name}, op alone" if kernel and forms else name
            print(f"{title:44}{commit[:9]:>16}{'working copy':>16}{'ratio':>8}")
            for pair in pairs_of(name, now, before, options):
                print(pair, flush=True)
                pairs.append(pair)
    slower = [p for p in pairs if fail_above is not None and p.ratio > fail_above and p.verdict == "slower"]
    for pair in slower:
        print(f"slower than {fail_above} times: {pair.suite}, {pair.case}: {pair.ratio:.2f}")
    return not slower


def pairs_of(name: str, now: Side, before: Side, options: dict[str, Any]) -> Iterator[Pair]:
    """Measure each case that both sides have, and print the names of the others."""
    now.ask("open", modules=[f"detops.apps.bench.{name}"], **options)
    if before.ask("open", modules=former_modules(name), **options) is None:
        print("  no such suite there")
        return
    while (case := now.ask("next")) is not None:
        if not before.ask("seek", name=case):
            print(f"  {case:42}{'no such case':>16}")
            continue
        samples: dict[Side, list[float]] = {before: [], now: []}
        end = time.perf_counter() + (0.4 if options["quick"] else 2.0)
        while time.perf_counter() < end or len(samples[now]) < TURNS:
            for side, taken in samples.items():
                taken.append(side.ask("sample"))
        yield Pair(name, case, samples[before], samples[now])


def former_modules(name: str) -> list[str]:
    """Return the modules where a suite may be at another commit, the present one first."""
    places = [f"detops.apps.bench.{name}"]
    if name in FORMER_OPS:
        places.append(f"detops.apps.bench.{FORMER_OPS[name]}")
    return [*places, f"detops.apps.bench_{FORMER_NAMES.get(name, name)}"]


def built(root: Path, commit: str) -> Path:
    """Unpack a commit under build/compare, and build its C++ library at the first call.

    Raises:
        ValueError: It does not build.
    """
    folder = root / "build" / "compare" / commit
    if folder.exists():
        return folder
    print(f"building {commit[:9]}, once", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    archive = _run(["git", "archive", commit], root)
    unpacked = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(unpacked, filter="data")
        _run([sys.executable, "tools/kernels.py"], unpacked)
        unpacked.rename(folder)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return folder


def _resolved(root: Path, rev: str) -> str:
    try:
        return _run(["git", "rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}"], root).decode().strip()
    except ValueError as error:
        raise ValueError(f"--compare: no commit {rev!r} in {root}") from error


def _run(command: list[str], folder: Path) -> bytes:
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"--compare: {' '.join(command)} failed in {folder}:\n{done.stderr.decode()[-2000:]}")
    return done.stdout
