"""Ranks that cannot meet, that end, or that keep the others waiting: an error in time that names who and what to do."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ray_cluster.program import Seat, Unattended
from serve_app.distributed import rendezvous
from serve_app.engine.rank_program import AvatarProgram
from serve_app.errors import InvalidRequestError, RankError
from tests.distributed.ranks import Ranks, ranks
from tests.engine.test_rank_program import a_task

TASK = a_task(frames=60, infer_frames=24)
SOON = {"meet_s": 60, "first_s": 5, "later_s": 3}


@pytest.fixture(name="gang")
def _gang(checkpoint: Path) -> Iterator[Ranks]:
    with ranks(checkpoint, "stages=2,vae=1", SOON) as gang:
        yield gang


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_neighbours_of_a_rank_that_died_learn_it(gang: Ranks, lost: int) -> None:
    gang.processes[lost].kill()
    gang.processes[lost].join()
    failures = gang.failures(TASK, of=[rank for rank in range(3) if rank != lost])
    assert all("RankError" in failure for failure in failures.values()), failures
    names = ["stage 0, ulysses 0 (rank 0)", "stage 1, ulysses 0 (rank 1)", "vae 0 (rank 2)"]
    assert any(names[lost] in failure for failure in failures.values()), failures


def test_neighbours_of_a_rank_that_hangs_give_up_at_their_deadline(gang: Ranks) -> None:
    gang.signal(1, signal.SIGSTOP)
    failures = gang.failures(TASK, of=[0, 2])
    assert "stage 1, ulysses 0 (rank 1) has not sent a message within 5 s" in failures[2]
    assert "stage 1, ulysses 0 (rank 1) has not taken a message within 3 s" in failures[0]


@pytest.mark.parametrize("layout", ["stages=2,vae=1", "stages=2,ulysses=2"])
def test_a_consumer_slower_than_every_deadline_is_no_failure(checkpoint: Path, layout: str) -> None:
    with ranks(checkpoint, layout, {"meet_s": 60, "first_s": 60, "later_s": 2}) as gang:
        assert len(gang.run(TASK, pauses=8).frames) == 57


def test_ranks_that_share_a_call_give_up_together(checkpoint: Path) -> None:
    with ranks(checkpoint, "ulysses=2", {"meet_s": 5, "first_s": 5, "later_s": 3}) as gang:
        gang.run(TASK)
        gang.signal(1, signal.SIGSTOP)
        assert "imed out" in gang.failures(TASK, of=[0])[0]


def test_a_rank_that_meets_nobody_says_where_and_what_to_check(checkpoint: Path) -> None:
    program = AvatarProgram(checkpoint=str(checkpoint), cache_dir=Path(), layout="stages=2", meet_s=1)
    address = program.open_rendezvous("127.0.0.1")
    with pytest.raises(RankError, match=r"rank 0 did not meet the other 1 at 127\.0\.0\.1:\d+ within 1 s"):
        program.start(Seat(rank=0, num_ranks=2, rendezvous=address))


def test_nobody_at_the_meeting_point_is_told(checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    program = AvatarProgram(checkpoint=str(checkpoint), cache_dir=Path(), layout="stages=2", meet_s=1)
    with pytest.raises(RankError, match=f"127.0.0.1:{port}.*GLOO_SOCKET_IFNAME"):
        program.start(Seat(rank=1, num_ranks=2, rendezvous=f"127.0.0.1:{port}"))


def test_the_meeting_point_listens_on_its_own_address_alone() -> None:
    store, address = rendezvous.open_store("127.0.0.1")
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", port), timeout=5)
    assert store.port == port


def test_an_address_that_is_not_this_machines_is_refused() -> None:
    with pytest.raises(RankError, match=r"192\.0\.2\.1"):
        rendezvous.open_store("192.0.2.1")


def test_heads_that_cannot_be_shared_are_refused_with_what_works(checkpoint: Path) -> None:
    with (
        pytest.raises(
            RuntimeError, match=r"ulysses=5 does not divide the model's 12 attention heads.*use ulysses=1, 2, 3"
        ),
        ranks(checkpoint, "ulysses=5"),
    ):
        pass


def test_a_picture_of_fewer_columns_than_decoders_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="vae"):
        AvatarProgram(checkpoint="unused", cache_dir=Path(), layout="vae=9")


def test_a_single_rank_opens_no_process_group(checkpoint: Path) -> None:
    program = AvatarProgram(checkpoint=str(checkpoint), cache_dir=Path())
    report = program.start(Seat(rank=0, num_ranks=1, rendezvous=""))
    assert not torch.distributed.is_initialized()
    assert report.is_output
    assert len(list(program.run(a_task(frames=12), Unattended(lambda: False)))) == 1
    program.close()
