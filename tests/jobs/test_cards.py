"""Cards as their ranks see them: a pool is judged by the smallest of them, and never by more than its kind has."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.jobs.fleet import Fleet
from serve_app.jobs.job import Document, Job
from serve_app.jobs.messages import GroupCondition, GroupReport
from serve_app.jobs.quote import Reason, Rejected
from serve_app.planning.calibration import load_calibration
from serve_app.planning.geometry import Size
from serve_app.planning.hardware import KINDS
from serve_app.planning.workload import Workload
from serve_app.schemas.service import PoolConfig
from tests.jobs.leaders import GIB, POOL, TIMES, FakeLeader, Service

KIND_BYTES = KINDS["80"].total_bytes
LARGE = Workload(Size(640, 384), num_frames=480)
SMALLER = 60 * GIB

Start = Callable[..., FakeLeader]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    pool = POOL.model_copy(update={"gpu": "80", "checkpoint": "big"})
    return Service(tmp_path / "jobs.sqlite3", pools=(pool,))


@pytest.fixture
def start(service: Service) -> Start:
    """Starts a group whose smallest card has so many bytes."""

    def started(name: str, card_bytes: int | None, *, condition: GroupCondition = GroupCondition.READY) -> FakeLeader:
        facts = {} if card_bytes is None else {"card_bytes": card_bytes}
        leader = FakeLeader(service, name, condition=condition, facts=facts)
        leader.report()
        return leader

    return started


def pool_of(service: Service) -> Document:
    (pool,) = service.dispatching.capacity()["pools"]
    return dict(pool)


def test_a_card_smaller_than_its_kind_refuses_what_does_not_fit_it_with_its_own_numbers(
    service: Service, start: Start
) -> None:
    start("g0", None, condition=GroupCondition.STARTING)
    assert isinstance(service.submit(work=LARGE), Job)  # nobody has seen the card yet
    start("g0", SMALLER)
    refused = service.submit(work=LARGE)
    assert isinstance(refused, Rejected)
    assert refused.reason is Reason.NEVER_FITS
    assert refused.figures["available_bytes"] == SMALLER
    small = service.accept(work=Workload(Size(384, 256), num_frames=480))
    assert small.quote["card_bytes"] == SMALLER


def test_the_smallest_card_of_all_groups_counts_as_long_as_it_is_there(service: Service, start: Start) -> None:
    whole, smaller = start("g0", KIND_BYTES), start("g1", SMALLER)
    assert pool_of(service)["card_bytes"] == SMALLER
    assert [group["card_bytes"] for group in pool_of(service)["groups"]] == [KIND_BYTES, SMALLER]
    smaller.condition = GroupCondition.GONE
    smaller.report()
    whole.report()
    assert pool_of(service)["card_bytes"] == KIND_BYTES


def test_a_group_that_tells_nothing_now_changes_nothing(service: Service, start: Start) -> None:
    start("g0", SMALLER)
    service.silence(TIMES.lost_after_s + 1)
    assert pool_of(service)["groups"] == []
    start("g1", None, condition=GroupCondition.STARTING)
    assert pool_of(service)["card_bytes"] == SMALLER


@pytest.mark.parametrize("card_bytes", [2 * KIND_BYTES, KIND_BYTES, round(0.995 * KIND_BYTES)])
def test_a_card_of_its_kind_or_a_larger_one_counts_as_the_kind(
    service: Service, start: Start, caplog: pytest.LogCaptureFixture, card_bytes: int
) -> None:
    start("g0", card_bytes)
    assert (pool_of(service)["card_bytes"], pool_of(service)["groups"][0]["card_bytes"]) == (KIND_BYTES, card_bytes)
    assert service.accept(work=LARGE).quote["card_bytes"] == KIND_BYTES
    assert not caplog.records


def test_a_smaller_card_is_warned_of_once(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger=Fleet.__module__):
        for leader in (start("g0", SMALLER), start("g1", SMALLER)):
            leader.report()
    (record,) = caplog.records
    assert record.message == "card smaller than its kind"
    assert (record.pool, record.promised_bytes, record.card_bytes) == (POOL.name, KIND_BYTES, SMALLER)  # type: ignore[attr-defined]


def test_without_gpus_nothing_that_is_told_of_cards_counts() -> None:
    fleet = Fleet([PoolConfig(name="cpu")], calibration=load_calibration(), cpu_bytes=16 * GIB)
    fleet.see([GroupReport("g0", pool, GroupCondition.READY, facts={"card_bytes": GIB}) for pool in ("cpu", "other")])
    assert fleet.card_bytes("cpu") == 16 * GIB
