"""ServiceConfig: settings that belong together are refused when they do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import InvalidRequestError
from serve_app.schemas.service import ServiceConfig, ServiceTimes


def refusal(tmp_path: Path, **settings: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as refused:
        ServiceConfig.from_settings({"data_dir": str(tmp_path), **settings})
    return refused.value


@pytest.mark.parametrize("name", ["lost_after_s", "grace_s", "call_s"])
def test_who_waits_for_reports_waits_for_two(tmp_path: Path, name: str) -> None:
    told = refusal(tmp_path, times={"report_every_s": 2, name: 3.5})
    assert told.param == "times"
    assert f"{name} 3.5 is less than twice report_every_s 2: " in told.message
    assert f"give {name} 4 or more, or a lower report_every_s" in told.message
    assert ServiceTimes(**{"report_every_s": 2, name: 4}).report_every_s == 2


def test_reports_that_are_rarer_than_the_defaults_expect_are_refused_too(tmp_path: Path) -> None:
    told = refusal(tmp_path, times={"report_every_s": 4})
    assert "grace_s 5 is less than twice report_every_s 4" in told.message
    assert ServiceTimes(report_every_s=4, grace_s=8).lost_after_s == 10


@pytest.mark.parametrize("report_every_s", [0.05, 5.5])
def test_reports_come_neither_too_often_nor_too_rarely(tmp_path: Path, report_every_s: float) -> None:
    assert refusal(tmp_path, times={"report_every_s": report_every_s}).param == "times.report_every_s"
