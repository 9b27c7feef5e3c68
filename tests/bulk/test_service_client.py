"""A row by a running service: over HTTP, whatever the service answers, and while it is away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.bulk.lanes.service_client import Patience, ServiceClient, ServiceRefusedError, look_at_service
from serve_app.bulk.outcomes import Code
from serve_app.errors import InputNotFoundError, OutputError, UnavailableError
from serve_app.schemas.render import RenderSpec
from tests.bulk.rows import order
from tests.bulk.scripted_service import CANCEL, CONTENT, CREATE, FORGET, LOOK, Answer, Service, a_video, refusal, served
from tests.rendering.fakes import ListSink

PATIENCE = Patience(look_every_s=0.01, most_pause_s=0.05, away_s=10.0)


@pytest.fixture
def service() -> Iterator[Service]:
    with served() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def client(
    service: Service, folder: Path, *, is_stopped: Callable[[], bool] = lambda: False, **changes: Any
) -> ServiceClient:
    spec = changes.pop("spec", {})
    wanted = order(folder, "intro", **changes)
    full = RenderSpec.from_request(**{**wanted.spec, **spec}).model_dump(mode="json")
    row = type(wanted)(**{**vars(wanted), "spec": full})
    return ServiceClient(service.url, row, run_id="r1", spool=Path(), is_stopped=is_stopped, patience=PATIENCE)


def refused(asking: ServiceClient) -> ServiceRefusedError:
    with asking, pytest.raises(ServiceRefusedError) as told:
        asking.video()
    return told.value


def test_a_row_is_followed_to_its_video(service: Service, folder: Path) -> None:
    service.answers[CREATE] = [a_video("queued")]
    service.answers[LOOK] = [a_video("queued"), a_video("in_progress", progress=40), a_video("completed", progress=100)]
    with client(service, folder) as asking:
        assert asking.video()["status"] == "completed"
        assert asking.progress == 100
    assert [asked for asked, _, _ in service.requests] == [CREATE, LOOK, LOOK, LOOK]


def test_a_request_has_every_setting_of_the_row_and_its_inputs(service: Service, folder: Path) -> None:
    service.answers[CREATE] = [a_video("completed")]
    spec = {"num_clip": 7, "seed": 11, "enable_online_decode": False, "max_seconds": 2.5, "sample_steps": 3}
    with client(service, folder, spec=spec) as asking:
        asking.video()
    ((_, _, body),) = service.requests
    fields = {
        "prompt": b"A person in a grey coat",
        "size": b"64x64",
        "fit": b"area",
        "num_clip": b"7",
        "seed": b"11",
        "infer_frames": b"48",
        "sample_steps": b"3",
        "enable_online_decode": b"false",
        "seconds": b"2.5",
        "priority": b"bulk",
        "metadata[custom_id]": b"intro",
    }
    for name, value in fields.items():
        assert b'name="%s"\r\n\r\n%s' % (name.encode(), value) in body
    assert set(RenderSpec.model_fields) - set(fields) == {"image", "audio", "max_seconds"}
    assert (folder / "me.png").read_bytes() in body
    assert (folder / "voice.wav").read_bytes() in body


def test_what_a_row_leaves_to_its_audio_is_not_asked_for(service: Service, folder: Path) -> None:
    service.answers[CREATE] = [a_video("completed")]
    with client(service, folder) as asking:
        asking.video()
    assert b"num_clip" not in service.requests[0][2]
    assert b'"seconds"' not in service.requests[0][2]


def test_rows_of_the_same_content_are_different_requests(service: Service, folder: Path) -> None:
    service.answers[CREATE] = [a_video("completed")]
    for row_key, custom_id in (("k1", "a"), ("k1", "b"), ("k2", "a"), ("k1", "a")):
        wanted = order(folder, custom_id, row_key=row_key)
        spec = RenderSpec.from_request(**wanted.spec).model_dump(mode="json")
        row = type(wanted)(**{**vars(wanted), "spec": spec})
        with ServiceClient(
            service.url, row, run_id="r1", spool=Path(), is_stopped=lambda: False, patience=PATIENCE
        ) as asking:
            asking.video()
    keys = service.keys()
    assert len(set(keys)) == 3
    assert keys[0] == keys[3]


def test_a_service_that_is_full_is_asked_again_when_it_says(service: Service, folder: Path) -> None:
    full = refusal(503, "no_capacity", Retry_After="1")
    service.answers[CREATE] = [full, refusal(429, "queue_full", Retry_After="30"), full, a_video("completed")]
    with client(service, folder) as asking:
        assert asking.video()["status"] == "completed"
    assert service.asked(CREATE) == 4
    assert len(set(service.keys())) == 1


def test_a_service_that_is_full_is_waited_for_for_ever(service: Service, folder: Path) -> None:
    service.answers[CREATE] = [refusal(503, "no_capacity", Retry_After="1")] * 40 + [a_video("completed")]
    asking = client(service, folder)
    asking._patience = Patience(look_every_s=0.001, most_pause_s=0.002, away_s=0.01)
    with asking:
        assert asking.video()["status"] == "completed"


@pytest.mark.parametrize("told", ["Wed, 21 Oct 2026 07:28:00 GMT", "soon", "", "-5"])
def test_a_time_that_cannot_be_read_is_no_reason_to_fail(service: Service, folder: Path, told: str) -> None:
    service.answers[CREATE] = [refusal(503, "no_capacity", Retry_After=told), a_video("completed")]
    with client(service, folder) as asking:
        assert asking.video()["status"] == "completed"


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_service_that_is_away_for_a_while_is_waited_for(service: Service, folder: Path, status: int) -> None:
    away = Answer(b"<html>no upstream</html>", status=status)
    service.answers[CREATE] = [away, away, a_video("queued")]
    service.answers[LOOK] = [away, a_video("in_progress"), away, a_video("completed")]
    with client(service, folder) as asking:
        assert asking.video()["status"] == "completed"


def test_a_service_that_restarts_is_found_again(folder: Path) -> None:
    first = Service()
    first.server_close()
    gone = threading.Event()
    asking = client(first, folder, is_stopped=lambda: gone.set() or False)  # type: ignore[func-returns-value]
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.append(asking.video()["status"]))
    thread.start()
    assert gone.wait(30)
    with served(first.server_port) as second:
        second.answers[CREATE] = [a_video("completed")]
        thread.join(30)
    asking.__exit__(None, None, None)
    assert ended == ["completed"]


@pytest.mark.parametrize("status", [None, 502, 503])
def test_a_service_that_stays_away_is_told_so(service: Service, folder: Path, status: int | None) -> None:
    service.answers[CREATE] = [Answer(b"nothing here", status=status or 500)]
    asking = client(service, folder)
    asking._patience = Patience(look_every_s=0.01, most_pause_s=0.01, away_s=0.05)
    if status is None:
        asking._http.base_url = "http://127.0.0.1:9"
    with asking, pytest.raises(UnavailableError, match=f"is away .*{status or 'ConnectError'}"):
        asking.video()


@pytest.mark.parametrize(
    ("answer", "code", "is_retryable"),
    [
        (refusal(422, "never_fits", "a rank needs 90 GiB"), Code.NEVER_FITS, False),
        (refusal(400, "invalid_request", "size is odd"), Code.ROW_INVALID, False),
        (refusal(413, "body_too_large"), Code.ROW_INVALID, False),
        (refusal(415, "unsupported_media"), Code.INPUT_UNDECODABLE, False),
        (refusal(409, "idempotency_conflict"), Code.INTERNAL, True),
        (Answer(b"<html>forbidden</html>", status=403), Code.INTERNAL, True),
        (Answer([], status=404), Code.INTERNAL, True),
    ],
)
def test_a_row_that_is_refused_has_its_code(
    service: Service, folder: Path, answer: Answer, code: Code, is_retryable: bool
) -> None:
    service.answers[CREATE] = [answer]
    error = refused(client(service, folder))
    assert error.code is code
    assert service.asked(CREATE) == 1
    told = answer.body["error"]["message"] if isinstance(answer.body, dict) else f"HTTP {answer.status}"
    assert told in str(error)
    assert (code not in (Code.NEVER_FITS, Code.ROW_INVALID, Code.INPUT_UNDECODABLE)) == is_retryable


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_what_failed_in_an_earlier_run_is_asked_for_anew(service: Service, folder: Path, status: str) -> None:
    service.answers[CREATE] = [a_video(status), a_video("completed")]
    with client(service, folder, attempt=2) as asking:
        assert asking.video()["status"] == "completed"
    first, second = service.keys()
    assert first is not None
    assert second == f"{first}-r1-2"
    assert len(second) <= 255


def test_what_was_made_in_an_earlier_run_is_taken(service: Service, folder: Path) -> None:
    service.answers[CREATE] = [a_video("completed", progress=100)]
    with client(service, folder) as asking:
        assert asking.video()["status"] == "completed"
    assert len(service.requests) == 1


def test_a_stop_cancels_the_video_and_waits_for_its_end(service: Service, folder: Path) -> None:
    stopped = threading.Event()
    service.answers.update({CREATE: [a_video("queued")], LOOK: [a_video("in_progress")], CANCEL: [Answer({})]})

    def on_request(asked: str) -> None:
        if asked == LOOK:
            stopped.set()
        if asked == CANCEL:
            service.answers[LOOK] = [a_video("cancelled")]

    service.on_request = on_request
    with client(service, folder, is_stopped=stopped.is_set) as asking:
        assert asking.video()["status"] == "cancelled"
    assert service.asked(CANCEL) == 1


def test_a_video_that_takes_too_long_is_cancelled(service: Service, folder: Path) -> None:
    looks = [a_video("in_progress")] * 3 + [a_video("cancelled")]
    service.answers.update({CREATE: [a_video("in_progress")], LOOK: looks, CANCEL: [Answer({})]})
    with client(service, folder, limit_s=0.0) as asking:
        assert asking.video()["status"] == "cancelled"
    assert service.asked(CANCEL) >= 1


def test_waiting_in_the_queue_is_no_time_of_the_row(service: Service, folder: Path) -> None:
    looks = [a_video("queued")] * 5 + [a_video("completed")]
    service.answers.update({CREATE: [a_video("queued")], LOOK: looks})
    with client(service, folder, limit_s=0.0) as asking:
        asking.video()
    assert service.asked(CANCEL) == 0


@pytest.mark.parametrize("answer", [refusal(503, "no_capacity", Retry_After="3600"), Answer(b"", status=502)])
def test_a_stop_while_the_service_is_full_or_away_ends_at_once(service: Service, folder: Path, answer: Answer) -> None:
    service.answers[CREATE] = [answer]
    error = refused(client(service, folder, is_stopped=lambda: service.asked(CREATE) > 0))
    assert error.code is Code.CANCELLED
    assert f"HTTP {answer.status}" in str(error)


def test_a_cancel_that_does_not_arrive_is_sent_again(service: Service, folder: Path) -> None:
    looks = [a_video("in_progress")] * 2 + [a_video("cancelled")]
    service.answers.update({CREATE: [a_video("in_progress")], LOOK: looks, CANCEL: [Answer(status=500, is_cut=True)]})
    with client(service, folder, is_stopped=lambda: True) as asking:
        assert asking.video()["status"] == "cancelled"
    assert service.asked(CANCEL) == 3


def test_a_finished_video_is_copied_and_can_be_forgotten(service: Service, folder: Path) -> None:
    content = bytes(range(256)) * 1000
    service.answers[CONTENT] = [Answer(content)]
    service.answers[FORGET] = [Answer({})]
    sink = ListSink()
    with client(service, folder) as asking:
        assert asking.download("v1", sink) == "a list"
        asking.forget("v1")
    assert sink.video == content
    assert service.asked(FORGET) == 1


@pytest.mark.parametrize("answer", [Answer(bytes(1000), is_cut=True), Answer({"error": {}}, status=404)])
def test_half_a_video_is_none(service: Service, folder: Path, answer: Answer) -> None:
    service.answers[CONTENT] = [answer]
    sink = ListSink()
    with client(service, folder) as asking, pytest.raises(UnavailableError, match="did not give the whole of v1"):
        asking.download("v1", sink)
    assert not sink.is_committed


def test_a_disk_that_is_full_is_not_the_service_s_fault(service: Service, folder: Path) -> None:
    service.answers[CONTENT] = [Answer(bytes(1000))]

    class Full(ListSink):
        def append(self, _: bytes) -> None:
            raise OutputError("the disk is full", remedy="make room")

    with client(service, folder) as asking, pytest.raises(OutputError):
        asking.download("v1", Full())


def test_forgetting_may_fail(service: Service, folder: Path) -> None:
    service.answers[FORGET] = [Answer(b"", status=500, is_cut=True)]
    with client(service, folder) as asking:
        asking.forget("v1")


def test_an_input_that_went_is_told_as_that(service: Service, folder: Path) -> None:
    asking = client(service, folder)
    (folder / "voice.wav").unlink()
    with asking, pytest.raises(InputNotFoundError, match=r"voice\.wav"):
        asking.video()
    assert service.requests == []


def a_pool(model: str, **facts: Any) -> dict[str, Any]:
    presets = [
        {"preset": "social", "fits": True, "seconds_per_video_second": 3.5},
        {"preset": "high_fidelity", "fits": False, "part": "weights"},
    ]
    return {"model": model, "presets": presets, **facts}


MODELS = {"data": [{"id": "live-avatar"}]}
POOLS = {
    "pools": [
        a_pool("live-avatar", min_groups=2, groups=[], layout="single", gpu="cpu"),
        a_pool("live-avatar", min_groups=2, groups=[1, 2, 3], layout="stages=4", gpu="H100"),
        a_pool("another", min_groups=9, groups=[], layout="single", gpu="cpu"),
    ]
}


def test_a_service_is_asked_for_its_model_and_its_groups(service: Service) -> None:
    service.answers.update({"GET /v1/models": [Answer(MODELS)], "GET /v1/capacity": [Answer(POOLS)]})
    found = look_at_service(service.url)
    assert (found.url, found.model, found.num_groups) == (service.url, "live-avatar", 5)
    assert (found.layout, found.num_ranks, found.gpu) == ("stages=4", 4, "H100")
    assert found.seconds_by_preset == {"social": 3.5}


def test_groups_without_cards_are_told_as_such(service: Service) -> None:
    pools = {"pools": POOLS["pools"][:1]}
    service.answers.update({"GET /v1/models": [Answer(MODELS)], "GET /v1/capacity": [Answer(pools)]})
    found = look_at_service(service.url)
    assert (found.gpu, found.num_ranks, found.num_groups) == (None, 1, 2)


@pytest.mark.parametrize("models", [Answer({"data": []}), Answer(b"<html>"), Answer(MODELS, status=500), Answer([])])
def test_what_is_no_service_is_told_with_what_to_do(service: Service, models: Answer) -> None:
    service.answers.update({"GET /v1/models": [models], "GET /v1/capacity": [Answer(POOLS)]})
    with pytest.raises(UnavailableError, match=rf"no service answers at {service.url} \(.*\); start it"):
        look_at_service(service.url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "no url", "http://[", "ftp://127.0.0.1"])
def test_an_address_where_nothing_is_is_told_with_what_to_do(url: str) -> None:
    with pytest.raises(UnavailableError, match="no service answers at"):
        look_at_service(url)
