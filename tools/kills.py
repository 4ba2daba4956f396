"""Kill the commands at random moments, go on, and compare with what comes out when nothing is killed.

    python tools/kills.py --minutes 30     # or --kills 40

Each attempt is a fork of this process, which has everything imported, and is ended by SIGKILL. After each, whatever
lies on the disk must be whole, and no line or checkpoint that was there may be gone; at the end everything must be as
if nothing had happened. Prints a table of how often each command was killed and how much was lost.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

SIZE = ("--size", "64x32", "--width", "8", "--batch-size", "2", "--accelerator", "cpu", "--multi-scale", "0")


@dataclass
class Command:
    """A command that is killed.

    Attributes:
        name: Its name in the table.
        arguments: Makes its arguments from the folder to write to.
        more: Arguments of every attempt but the first.
        progress: Measures what is done, and fails if anything on the disk is not whole.
        result: What must come out, as a value to compare.
        seconds: How long it takes if nothing is killed.
    """

    name: str
    arguments: Callable[[Path], list[str]]
    more: list[str]
    progress: Callable[[Path], int]
    result: Callable[[Path], Any]
    seconds: float = 0.0
    expected: Any = None
    counts: Counter[str] = field(default_factory=Counter)


def start(arguments: list[str]) -> int:
    """Start a command in a fork of this process, silently; return its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    with contextlib.suppress(BaseException):
        os.setpgid(0, 0)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        log = os.open(os.environ["KILLS_LOG"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(nowhere, 1)
        os.dup2(log, 2)
        from detops import cli

        try:
            cli.app(arguments, standalone_mode=True)
        except SystemExit as error:
            code = int(error.code or 0)
    os._exit(code)


def wait(child: int) -> int:
    """Wait for a process; return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int, rng: random.Random) -> bool:
    """Kill a process, or all of its group; return whether it still ran."""
    done, _ = os.waitpid(child, os.WNOHANG)
    if done:
        return False
    with contextlib.suppress(ProcessLookupError):
        (os.kill if rng.random() < 0.5 else os.killpg)(child, signal.SIGKILL)
    return wait(child) == -signal.SIGKILL


def trial(command: Command, out: Path, rng: random.Random, most: int) -> None:
    """Run a command to its end, with up to `most` kills on the way; count what is lost."""
    shutil.rmtree(out, ignore_errors=True)
    done = 0
    for attempt in range(rng.randint(1, most)):
        child = start(command.arguments(out) + command.more * bool(attempt))
        time.sleep(rng.random() ** 0.7 * command.seconds)
        command.counts["kills"] += kill(child, rng)
        now = command.progress(out)
        command.counts["lost"] += now < done
        done = now
    code = wait(start(command.arguments(out) + command.more))
    command.counts["runs"] += 1
    if code or command.result(out) != command.expected:
        command.counts["lost"] += 1
        kept = out.with_name(f"{out.name}-lost-{command.counts['runs']}")
        shutil.copytree(out, kept)
        print(f"{command.name}: exit code {code}; see {kept}", Path(os.environ["KILLS_LOG"]).read_text(), sep="\n")


def images(folder: Path) -> None:
    """Check that every picture in a folder is whole."""
    from PIL import Image

    for path in folder.glob("[!.]*"):
        with Image.open(path) as image:
            image.load()


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file of JSON lines."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def predicted(out: Path) -> int:
    """Return the number of lines of results."""
    if (out / "results.json").exists():
        json.loads((out / "results.json").read_bytes())
    images(out / "images")
    return len(lines_of(out / "results.jsonl"))


def prediction(out: Path) -> Any:
    """Return the results in all formats, and which pictures there are."""
    images(out / "images")
    files = [out / f"results.{ending}" for ending in ("jsonl", "json", "csv")] + sorted((out / "labels").glob("[!.]*"))
    pictures = sorted(path.name for path in (out / "images").glob("[!.]*"))
    return [(path.name, path.read_bytes()) for path in files], pictures


def trained(out: Path) -> int:
    """Return the number of steps that the last checkpoint has seen."""
    for name in ("config.json", "report.html"):
        if (out / name).exists():
            text = (out / name).read_text()
            assert text.endswith("</html>\n") if name == "report.html" else json.loads(text)
    steps = [0]
    for name in ("best.ckpt", "last.ckpt"):
        path = out / "checkpoints" / name
        if path.exists():
            steps.append(torch.load(path, weights_only=True)["global_step"])
    return steps[-1]


def training(out: Path) -> Any:
    """Return the weights, losses and scores."""
    trained(out)
    state = [torch.load(out / "checkpoints" / name, weights_only=True) for name in ("last.ckpt", "best.ckpt")]
    weights = [
        (part["global_step"], name, value.tolist()) for part in state for name, value in part["state_dict"].items()
    ]
    rows = [
        (row["step"], row.get("losses"), row.get("scores"))
        for row in lines_of(out / "metrics.jsonl")
        if "started" not in row
    ]
    return weights, rows, (out / "report.html").exists()


def drawn(out: Path) -> int:
    """Check the pictures; nothing is resumed."""
    images(out / "images")
    for name in ("summary.json", "evaluation.json"):
        if (out / name).exists():
            json.loads((out / name).read_text())
    return 0


def commands(root: Path) -> Iterator[Command]:
    """Make small data, and what is tried on it."""
    from detops.apps.data import shapes

    for split, count in (("train", 4), ("val", 3)):
        shapes.generate(root / "data" / split, images=count, seed=count)
    shapes.generate(root / "many", images=24, seed=7)
    data = ["--data", str(root / "data"), "--epochs", "3", "--save-every", "1", "--eval-every", "1", *SIZE]
    run = root / "run"
    assert wait(start(["train", "--out", str(run), *data])) == 0, Path(os.environ["KILLS_LOG"]).read_text()
    several = ["--batch-size", "4", "--run", str(run), "--device", "cpu", "--format", "csv", "--format", "yolo"]
    pictures = str(root / "many" / "images")
    yield Command("train", lambda out: ["train", "--out", str(out), *data], ["--resume"], trained, training)
    for workers in ("0", "2"):
        yield Command(
            f"predict, {workers} workers",
            lambda out, workers=workers: ["predict", pictures, "--out", str(out), "--workers", workers, *several],  # type: ignore[misc]
            ["--resume"],
            predicted,
            prediction,
        )
    annotations = str(root / "many" / "annotations.json")
    yield Command(
        "targets",
        lambda out: ["targets", annotations, "--images", pictures, "--out", str(out), "--limit", "8"],
        [],
        drawn,
        lambda out: (drawn(out), sorted(path.name for path in out.rglob("[!.]*"))),
    )
    scored = ["evaluate", str(run), "--device", "cpu", "--json"]
    yield Command(
        "evaluate",
        lambda out: [*scored, str(out / "evaluation.json")],
        [],
        drawn,
        lambda out: json.loads((out / "evaluation.json").read_text()),
    )


def main() -> int:
    """Kill for as long, or as often, as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="how long")
    parser.add_argument("--kills", type=int, default=200, help="how many, if no time is given")
    parser.add_argument("--most", type=int, default=5, help="kills of one run, at most")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the moments")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not outlive a fork
    import lightning  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import pycocotools.cocoeval  # noqa: F401

    from detops.apps.predict import predict  # noqa: F401

    rng, root = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="kills-"))
    os.environ["KILLS_LOG"] = str(root / "log.txt")
    tried = list(commands(root))
    for command in tried:
        out, begun = root / "whole", time.monotonic()
        shutil.rmtree(out, ignore_errors=True)
        code = wait(start(command.arguments(out)))
        assert code == 0, Path(os.environ["KILLS_LOG"]).read_text()
        command.seconds, command.expected = time.monotonic() - begun, command.result(out)
    begun, kills = time.monotonic(), 0
    while time.monotonic() < begun + options.minutes * 60 if options.minutes else kills < options.kills:
        for command in tried:
            trial(command, root / "out", rng, options.most)
        kills = sum(command.counts["kills"] for command in tried)
    print("| command | runs | kills | lost |", "|---|--:|--:|--:|", sep="\n")
    for command in tried:
        print(f"| {command.name} | {command.counts['runs']} | {command.counts['kills']} | {command.counts['lost']} |")
    lost = sum(command.counts["lost"] for command in tried)
    if not lost:
        shutil.rmtree(root)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
