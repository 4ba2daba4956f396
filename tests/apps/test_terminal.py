"""How far a job is: a bar on a terminal, and elsewhere a line now and then."""

import io

import pytest
from rich.console import Console

from detops.apps import terminal
from detops.apps.terminal import duration, progress


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: now)
    file = io.StringIO()
    with progress(Console(file=file, width=200), "drawing", 1000, done=400) as tell:
        for count in range(401, 1001):
            now += 1.0
            tell(count)
    lines = file.getvalue().splitlines()
    assert len(lines) == 19  # every 30 seconds, and not for the last
    assert lines[0] == "drawing: 430 of 1,000, about 10 min left"
    assert lines[-1] == "drawing: 970 of 1,000, about 30 s left"
    file.truncate(0)
    file.seek(0)
    with progress(Console(file=file, width=200), "detecting", None) as tell:
        now += 31.0
        tell(7)
    assert file.getvalue() == "detecting: 7\n"


def test_a_bar_on_a_terminal() -> None:
    file = io.StringIO()
    with progress(Console(file=file, width=100, force_terminal=True), "drawing", 4) as tell:
        tell(3)
    assert "drawing" in file.getvalue()
    assert "3/4" in file.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(5.4, "5 s"), (89, "89 s"), (95, "2 min"), (7200, "2.0 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
