"""What a check found, and running checks so that none of them can end or hold up the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from serve_app.errors import AvatarError


class Status(StrEnum):
    """`skipped` does not concern this machine, `warning` may hurt, `problem` will."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """The result of one check; what may hurt comes with a remedy."""

    check: str
    status: Status
    message: str
    remedy: str = ""

    def __post_init__(self) -> None:
        is_trouble = self.status in (Status.WARNING, Status.PROBLEM)
        assert bool(self.remedy) >= is_trouble, f"{self.check}: {self.status} without a remedy"


Check = Callable[[], Finding]


def run_checks(checks: Mapping[str, Check], *, timeout_s: float) -> list[Finding]:
    """Runs all checks at once and returns their findings in order, after `timeout_s` at the latest.

    A check that raises or does not come to an end is a finding itself. Its thread is left behind: a driver or a
    network disk that hangs cannot be interrupted.
    """
    findings: dict[str, Finding] = {}
    threads = [
        threading.Thread(target=_run, args=(name, check, findings), name=f"check-{name}", daemon=True)
        for name, check in checks.items()
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    ended = dict(findings)
    return [ended.get(name) or _unanswered(name, timeout_s) for name in checks]


def _run(name: str, check: Check, findings: dict[str, Finding]) -> None:
    try:
        findings[name] = check()
    except AvatarError as error:
        findings[name] = Finding(name, Status.PROBLEM, error.message, error.remedy)
    except Exception as error:
        message = f"the check itself failed: {type(error).__name__}: {error}"
        findings[name] = Finding(name, Status.WARNING, message, "report this message; the other checks hold")


def _unanswered(name: str, timeout_s: float) -> Finding:
    message = f"no answer within {timeout_s:g} s"
    return Finding(name, Status.PROBLEM, message, "look whether the device, disk or name server behind it hangs")
