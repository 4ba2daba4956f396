"""`detops predict` on streams: pipes, addresses and cameras; what is read of them, and how they end."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from predict_runs import OneBox, call, write_run, write_video
from typer.testing import CliRunner

from detops import cli
from detops.apps.data import live

pytest.importorskip("av", reason="PyAV is not installed")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", OneBox(2, 8), "predict_runs:OneBox")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.ts")


def read(out: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (out / "results.jsonl").read_bytes().splitlines()))


def test_what_is_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("3").touch()
    streams = ["-", "0", "rtsp://host/1", "http://host/a.mp4", "file:///a.mp4", "pipe", "/dev/null"]
    assert [
        name for name in [*streams, "3", "a.mp4", "photos", "C:\\a", "\0", "1.png"] if live.is_stream(name)
    ] == streams


def test_an_address_is_read_to_its_end(run: Path, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output = call(
        "predict", video.as_uri(), "--run", run, "--out", out, "--format", "yolo", "--format", "csv", "--pictures", 5
    )
    assert code == 0, output
    text = " ".join(output.split())
    assert "reading all frames of file:///" in text
    assert "64 x 32, until it ends or Ctrl-C is pressed" in text
    assert "12 images, 0 of them failed, 12 detections" in text
    lines = read(out)
    assert [line["path"] for line in lines] == [f"frame_{number:06}.png" for number in range(1, 13)]
    assert [line["image_id"] for line in lines] == list(range(1, 13))
    assert all((line["width"], line["height"]) == (64, 32) for line in lines)
    assert json.loads((out / "predict.json").read_text())["batch_size"] == 1
    assert len(json.loads((out / "results.json").read_text())) == 12
    assert len((out / "results.csv").read_text().splitlines()) == 13
    assert {path.stem for path in (out / "labels").iterdir()} == {f"frame_{number:06}" for number in range(1, 13)}
    assert sorted(path.name for path in (out / "images").iterdir()) == [f"frame_{n:06}.jpg" for n in range(1, 6)]
    grey = np.asarray(Image.open(out / "images" / "frame_000004.jpg"))
    assert grey[-40:, -40:].mean() == pytest.approx(60, abs=6)


def test_the_standard_input_is_read(run: Path, video: Path, tmp_path: Path) -> None:
    arguments = ["predict", "-", "--run", run, "--out", tmp_path / "out", "--pictures", -1, "--batch-size", 5]
    result = CliRunner().invoke(cli.app, [str(one) for one in arguments], input=video.read_bytes())
    assert result.exit_code == 0, result.output
    assert len(read(tmp_path / "out")) == len(list((tmp_path / "out" / "images").iterdir())) == 12


@pytest.fixture
def endless(tmp_path: Path, video: Path) -> Iterator[Path]:
    """A pipe into which a video is written again and again."""
    pipe = tmp_path / "camera"
    os.mkfifo(pipe)
    done = threading.Event()

    def write() -> None:
        with suppress(BrokenPipeError), pipe.open("wb", buffering=0) as file:
            while not done.is_set():
                file.write(video.read_bytes())

    threading.Thread(target=write, daemon=True).start()  # it waits where nobody reads
    yield pipe
    done.set()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_a_stream_and_completes_the_results(
    run: Path, endless: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    out, before = tmp_path / "out", signal.getsignal(sent)

    def interrupt() -> None:
        while not (out / "results.jsonl").exists() or (out / "results.jsonl").read_bytes().count(b"\n") < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), sent)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, output = call("predict", endless, "--run", run, "--out", out)
    thread.join()
    assert code == 0, output
    found = len(read(out))
    assert found >= 3
    assert len(json.loads((out / "results.json").read_text())) == found
    assert len(list((out / "images").iterdir())) == found
    assert signal.getsignal(sent) == before


def test_of_a_camera_the_newest_frame_is_taken(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PACED", ("file",))
    stream, numbers = live.Stream(video.as_uri()), []
    for name, image in stream:
        number = int(name[6:12])
        assert np.asarray(image).mean() == pytest.approx(20 * (number - 1), abs=6)
        numbers.append(number)
        time.sleep(0.3)  # meanwhile all others come
    assert numbers[-1] == 12
    assert numbers == sorted(numbers)
    assert len(numbers) + stream.passed_over == 12
    assert stream.passed_over > 0


def test_a_stream_that_breaks_off(run: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = live.Stream._decoded

    def broken(stream: live.Stream) -> Iterator[Any]:
        for number, frame in enumerate(decoded(stream)):
            if number == 4:
                raise OSError("connection lost")
            yield frame

    monkeypatch.setattr(live.Stream, "_decoded", broken)
    code, output = call("predict", video.as_uri(), "--run", run, "--out", tmp_path / "out")
    assert code == 1
    assert "the stream ended: connection lost" in " ".join(output.split())
    assert len(read(tmp_path / "out")) == 4
    assert (tmp_path / "out" / "results.json").exists()


def test_refusals(run: Path, video: Path, tmp_path: Path) -> None:
    address = video.as_uri()
    for arguments, message in (
        ([address, video], "expected a stream alone"),
        ([address, "--resume"], "--resume: is for images"),
        ([address, "--ray"], "--ray: is for images"),
        (["97"], "97: cannot be read as a video"),
        ([(tmp_path / "none.ts").as_uri()], "cannot be read as a video"),
        (["rtsp://user:secret@127.0.0.1:9/a"], "rtsp://127.0.0.1:9/a: cannot be read as a video"),
    ):
        code, output = call("predict", *arguments, "--run", run, "--out", tmp_path / "out")
        assert code == 2, output
        assert message in " ".join(output.split())
        assert "secret" not in output
    assert not (tmp_path / "out" / "results.jsonl").exists()
