"""What short trainings share: a little generated data, and no report, which takes longer than they do."""

from pathlib import Path

import pytest
from predict_runs import write_shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `detops train --data` takes, with four images to train on and two to evaluate on."""
    return write_shapes(tmp_path_factory.mktemp("data"))


@pytest.fixture
def without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no report: its tests are elsewhere."""
    monkeypatch.setattr("detops.apps.report.report.write", lambda *_, **__: None)
