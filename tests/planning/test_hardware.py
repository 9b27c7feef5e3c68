"""Cards as users write them, and host budgets."""

from __future__ import annotations

import pytest

from serve_app.errors import InvalidRequestError
from serve_app.planning.calibration import load_calibration
from serve_app.planning.geometry import Size
from serve_app.planning.hardware import GIB, KINDS, measured_kind, parse_gpus
from serve_app.planning.host import DiskFull, check_disk, host_budget
from serve_app.planning.layout import ParallelLayout
from serve_app.planning.workload import Workload

KNOWN = ", ".join(KINDS)


@pytest.mark.parametrize(
    ("text", "count", "total_gib"),
    [
        ("4xRTX4090", 4, 23.64),
        ("1xH100", 1, 79.65),
        ("5xH800", 5, 79.65),
        ("8xh200", 8, 139.72),
        ("4x24", 4, 23.64),
        ("1*80", 1, 79.25),
        (" 2 x 48 ", 2, 47.5),
        ("H100", 1, 79.65),
        ("24", 1, 23.64),
        ("4xRTX4090-ECC", 4, 22.15),
    ],
)
def test_cards_are_read_as_users_write_them(text: str, count: int, total_gib: float) -> None:
    gpus = parse_gpus(text)
    assert (gpus.count, gpus.kind.total_gib) == (count, pytest.approx(total_gib))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "gpus '' is not COUNTxKIND; write for example 4x24, 4xRTX4090 or auto"),
        ("4xRTX4900", f"gpus '4xRTX4900': 'RTX4900' is no known card (did you mean RTX4090?); use one of {KNOWN}"),
        ("4x25", f"gpus '4x25': '25' is no known card; use one of {KNOWN}"),
        ("0x24", "gpus '0x24': 0 is not a number of cards from 1 to 1024; correct the count"),
        ("9999x24", "gpus '9999x24': 9999 is not a number of cards from 1 to 1024; correct the count"),
    ],
)
def test_cards_that_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        parse_gpus(text)
    assert str(error.value).startswith(message)
    assert error.value.param == "gpus"


def test_a_seen_card_has_its_measured_memory_and_the_speed_of_its_kind() -> None:
    kind = measured_kind("NVIDIA GeForce RTX 4090", 22 * GIB)
    assert (kind.total_bytes, kind.tflops) == (22 * GIB, KINDS["RTX4090"].tflops)
    assert measured_kind("Something new", 10 * GIB).total_bytes == 10 * GIB


def test_offload_pins_the_units_of_every_stage_rank_in_powers_of_two() -> None:
    work = Workload(Size(704, 384))
    host = host_budget(work, ParallelLayout(stages=2, vae=1, offload="layers"), calibration=load_calibration())
    assert host.pinned_bytes == 2 * 32 * GIB
    assert host.memory_bytes > host.pinned_bytes + 10 * GIB
    assert host_budget(work, ParallelLayout(), calibration=load_calibration()).pinned_bytes == 0


def test_disk_grows_with_seconds_and_memory_only_with_the_speech() -> None:
    short, long = (
        host_budget(
            Workload(Size(704, 384), num_frames=25 * seconds, speech_seconds=seconds),
            ParallelLayout(),
            calibration=load_calibration(),
            input_bytes=1000,
        )
        for seconds in (100, 200)
    )
    assert long.disk_bytes - 1000 == pytest.approx(2 * (short.disk_bytes - 1000))
    assert long.memory_bytes - short.memory_bytes == 100 * 64_000


@pytest.mark.parametrize(
    ("needed", "lacking"), [(100, None), (400, None), (401, DiskFull(401, 400)), (10_000, DiskFull(10_000, 400))]
)
def test_a_tenth_of_the_disk_stays_free(needed: int, lacking: DiskFull | None) -> None:
    assert check_disk(needed, free_bytes=500, total_bytes=1000) == lacking


def test_a_full_disk_has_nothing_to_give() -> None:
    assert check_disk(1, free_bytes=50, total_bytes=1000) == DiskFull(1, 0)
