"""Whatever is killed, no accepted job is lost and none is committed twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.jobs.store import JobReader
from tests.service.conftest import Server, served

LONG_S = 12.0
VICTIMS = {
    "rank": "ray::RankActor",
    "leader": "ray::ServeReplica:live-avatar:group-tiny",
    "dispatcher": "ray::ServeReplica:live-avatar:Dispatcher",
    "ingress": "ray::ServeReplica:live-avatar:Ingress",
}
IS_TRIED_AGAIN = {"rank", "leader"}


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Server]:
    """A service for tests that kill parts of it."""
    with served(tmp_path_factory.mktemp("fragile"), cache) as running:
        yield running


def check_ended_once(server: Server, video_id: str, *, attempts: int) -> None:
    reader = JobReader.open(server.folder / "data" / "jobs.sqlite3")
    try:
        kinds = [event.kind.value for event in reader.events(video_id)]
        job = reader.get(video_id)
    finally:
        reader.close()
    assert kinds.count("completed") == 1
    assert job.attempt == attempts
    assert [path.name for path in (server.folder / "data" / "videos" / video_id).iterdir()] == [f"{attempts}.mp4"]


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_killed_part_loses_no_job_and_the_video_has_the_same_bytes(fragile: Server, victim: str) -> None:
    runs, waits = fragile.create(seconds=LONG_S), fragile.create(seconds=1.0)
    fragile.until(runs["id"], lambda now: 10 <= now["progress"] < 90)
    victims = fragile.processes(VICTIMS[victim])
    assert victims
    for process in victims:
        process.kill()
    for video in (runs, waits):
        ended = fragile.ended(video["id"])
        assert ended["status"] == "completed", ended
    check_ended_once(fragile, runs["id"], attempts=2 if victim in IS_TRIED_AGAIN else 1)
    undisturbed = fragile.ended(fragile.create(seconds=LONG_S)["id"])
    assert fragile.content(runs["id"]) == fragile.content(undisturbed["id"])


def test_a_killed_cluster_goes_on_where_its_store_says(fragile: Server) -> None:
    runs, waits = fragile.create(seconds=LONG_S), fragile.create(seconds=1.0)
    fragile.until(runs["id"], lambda now: now["progress"] >= 10)
    fragile.kill()
    fragile.start()
    for video in (runs, waits):
        assert fragile.ended(video["id"])["status"] == "completed"
    check_ended_once(fragile, runs["id"], attempts=2)
    check_ended_once(fragile, waits["id"], attempts=1)
    assert fragile.stop() in (0, 143)
