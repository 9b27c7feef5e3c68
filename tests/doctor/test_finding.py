"""Checks run beside each other; none can end or hold up the others."""

from __future__ import annotations

import threading

import pytest

from serve_app.doctor.finding import Finding, Status, run_checks
from serve_app.errors import CheckpointError


def fine() -> Finding:
    return Finding("fine", Status.OK, "all is well")


def test_findings_come_in_the_order_of_the_checks() -> None:
    second_ran = threading.Event()

    def waits_for_the_second() -> Finding:
        assert second_ran.wait(10)
        return Finding("first", Status.OK, "done")

    def second() -> Finding:
        second_ran.set()
        return Finding("second", Status.OK, "done")

    findings = run_checks({"first": waits_for_the_second, "second": second}, timeout_s=20)
    assert [finding.check for finding in findings] == ["first", "second"]


def test_a_check_that_fails_is_a_finding() -> None:
    def crash() -> Finding:
        raise KeyError("MemTotal")

    def refuse() -> Finding:
        raise CheckpointError("holds no config.json", remedy="name another folder")

    assert run_checks({"crash": crash, "refuse": refuse, "fine": fine}, timeout_s=10) == [
        Finding(
            "crash",
            Status.WARNING,
            "the check itself failed: KeyError: 'MemTotal'",
            "report this message; the other checks hold",
        ),
        Finding("refuse", Status.PROBLEM, "holds no config.json", "name another folder"),
        fine(),
    ]


def test_a_check_that_hangs_is_a_finding() -> None:
    release = threading.Event()

    def hang() -> Finding:
        release.wait(10)
        return fine()

    hung, other = run_checks({"disk": hang, "fine": fine}, timeout_s=0.1)
    release.set()
    assert (hung.check, hung.status, hung.message) == ("disk", Status.PROBLEM, "no answer within 0.1 s")
    assert other == fine()


@pytest.mark.parametrize("status", [Status.WARNING, Status.PROBLEM])
def test_what_may_hurt_has_a_remedy(status: Status) -> None:
    with pytest.raises(AssertionError, match="without a remedy"):
        Finding("x", status, "it hurts")
