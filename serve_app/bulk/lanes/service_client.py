"""ServiceClient: one row by one running service, over its HTTP API."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from serve_app.bulk.inputs import checked_copy
from serve_app.bulk.lanes.messages import RowOrder
from serve_app.bulk.outcomes import Code
from serve_app.bulk.row import Document
from serve_app.errors import UnavailableError
from serve_app.planning.layout import SINGLE, ParallelLayout
from serve_app.rendering.frames import IsCancelled
from serve_app.storage.base import VideoSink
from serve_app.storage.disk import told_reading

_ANSWER_S = 60.0
_TOO_MANY, _UNAVAILABLE = 429, 503
_AWAY = (500, 502, _UNAVAILABLE, 504)
_FIELDS = ("prompt", "size", "fit", "num_clip", "infer_frames", "sample_steps", "seed", "enable_online_decode")
_ENDED = ("completed", "failed", "cancelled")
_CODES = {
    "never_fits": Code.NEVER_FITS,
    "over_budget": Code.OVER_BUDGET,
    "gang_failed": Code.RANK_DIED,
    "rank_failed": Code.NCCL_TIMEOUT,
    "not_finite": Code.NAN_LATENT,
    "unsupported_media": Code.INPUT_UNDECODABLE,
    "output_not_writable": Code.UPLOAD_FAILED,
    "cancelled": Code.CANCELLED,
    "invalid_request": Code.ROW_INVALID,
    "body_too_large": Code.ROW_INVALID,
}


@dataclass(frozen=True)
class Patience:
    """How often a service is asked, how long it may say that it is full, and how long it may be away, in seconds.

    One that restarts is waited for: what it accepted goes on.
    """

    look_every_s: float = 1.0
    most_pause_s: float = 30.0
    away_s: float = 300.0


PATIENCE = Patience()


class ServiceRefusedError(Exception):
    """The service refused a row, or failed at it."""

    def __init__(self, error: Document) -> None:
        super().__init__(str(error.get("message", error)))
        self.code = _CODES.get(str(error.get("code")), Code.INTERNAL)


@dataclass(frozen=True)
class ServiceModel:
    """A service that answers: where it is, the model of requests that name none, how many groups render.

    The rest is of its groups; where they are of several kinds, of most of them. `gpu` None: they compute on the CPU;
    `seconds_by_preset`: how long one takes for a second of video.
    """

    url: str
    model: str
    num_groups: int
    layout: str = SINGLE
    gpu: str | None = None
    seconds_by_preset: dict[str, float] = field(default_factory=dict)

    @property
    def num_ranks(self) -> int:
        return ParallelLayout.parse(self.layout).world_size


def look_at_service(url: str) -> ServiceModel:
    """Returns what a service has; raises UnavailableError where none answers, or none of its groups may work."""
    try:
        models = httpx2.get(f"{url}/v1/models", timeout=_ANSWER_S).raise_for_status().json()
        pools = httpx2.get(f"{url}/v1/capacity", timeout=_ANSWER_S).raise_for_status().json()["pools"]
        return _service_model(url, models["data"][0]["id"], pools)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, TypeError, LookupError) as error:
        raise UnavailableError(
            f"no service answers at {url} ({_told(error)})",
            remedy="start it (live-avatar serve), or name its address with --url",
        ) from error


def _service_model(url: str, model: str, pools: list[Document]) -> ServiceModel:
    numbers = [(max(pool["min_groups"], len(pool["groups"])), pool) for pool in pools if pool["model"] == model]
    _, most = max(numbers, key=lambda one: one[0])
    return ServiceModel(
        url,
        model,
        sum(number for number, _ in numbers),
        layout=most["layout"],
        gpu=None if most["gpu"] == "cpu" else most["gpu"],
        seconds_by_preset={row["preset"]: row["seconds_per_video_second"] for row in most["presets"] if row["fits"]},
    )


class ServiceClient:
    """Follows one row from its order to its video; a service that is away for a while is waited for."""

    def __init__(
        self,
        url: str,
        order: RowOrder,
        *,
        run_id: str,
        spool: Path,
        is_stopped: IsCancelled,
        patience: Patience = PATIENCE,
    ) -> None:
        """`spool` is a folder of this machine for copies of inputs that are in buckets."""
        self._patience, self._spool = patience, spool
        self._http = httpx2.Client(base_url=url, timeout=_ANSWER_S)
        self._order = order
        self._run_id = run_id
        self._is_stopped = is_stopped
        self.progress = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def video(self) -> Document:
        """Returns the video object of the row once it has ended.

        Raises ServiceRefusedError when it is refused, UnavailableError when the service does not come back.
        """
        order = self._order
        # With the id of the row: a service has another video for another row, of whatever content.
        key = f"{order.custom_id}-{order.row_key}"
        video = self._created(key)
        if video["status"] in ("failed", "cancelled"):  # by an earlier run, or attempt: this one tries anew
            video = self._created(f"{key}-{self._run_id}-{order.attempt}")
        started_at = None
        while video["status"] not in _ENDED:
            if video["status"] == "in_progress" and started_at is None:
                started_at = time.monotonic()
            is_late = started_at is not None and time.monotonic() - started_at > order.limit_s
            if is_late or self._is_stopped():
                self.cancel(video["id"])
            time.sleep(self._patience.look_every_s)
            video = self._asked("GET", f"/v1/videos/{video['id']}").json()
            self.progress = video["progress"]
        return dict(video)

    def download(self, video_id: str, sink: VideoSink) -> str:
        """Copies a finished video piece by piece; returns where it is. Raises UnavailableError, OutputError."""
        try:
            with self._http.stream("GET", f"/v1/videos/{video_id}/content") as answer:
                answer.raise_for_status()
                for chunk in answer.iter_bytes():
                    sink.append(chunk)
        except httpx2.HTTPError as error:
            raise UnavailableError(
                f"the service at {self._http.base_url} did not give the whole of {video_id} ({_told(error)})",
                remedy="the job asks again; see the service's log",
            ) from error
        return sink.commit()

    def cancel(self, video_id: str) -> None:
        """Stops a video within a block; one that has ended stays as it is."""
        with suppress(httpx2.HTTPError):
            self._http.post(f"/v1/videos/{video_id}/cancel")

    def forget(self, video_id: str) -> None:
        """Removes a video that is in the output folder from the service, which keeps it for a week at most anyway."""
        with suppress(httpx2.HTTPError):
            self._http.delete(f"/v1/videos/{video_id}")

    def _created(self, key: str) -> Document:
        with self._body() as (fields, files):
            answer = self._asked("POST", "/v1/videos", data=fields, files=files, headers={"Idempotency-Key": key})
        created: Document = answer.json()
        return created

    @contextmanager
    def _body(self) -> Iterator[tuple[dict[str, str], dict[str, bytes]]]:
        spec = self._order.spec
        fields = {name: _text(spec[name]) for name in _FIELDS if spec[name] is not None}
        if spec["max_seconds"] is not None:
            fields["seconds"] = _text(spec["max_seconds"])
        fields |= {"priority": "bulk", "metadata[custom_id]": self._order.custom_id}
        with ExitStack() as copies:
            image, audio = (
                copies.enter_context(checked_copy(spec[name], sha256=self._order.sha256[name], spool=self._spool))
                for name in ("image", "audio")
            )
            yield fields, {"input_reference": _bytes(image), "audio": _bytes(audio)}

    def _asked(self, method: str, path: str, **body: Any) -> httpx2.Response:  # noqa: ANN401
        """Asks until there is an answer that counts; a service that is full says when to come again."""
        away_since = None
        while True:
            answer, told = self._answer(method, path, **body)
            if answer is not None and answer.status_code not in (_TOO_MANY, *_AWAY):
                return _checked(answer)
            if self._is_stopped():
                message = f"the row was stopped while the service was full or away ({told})"
                raise ServiceRefusedError({"code": "cancelled", "message": message})
            pause_s = None if answer is None else _come_again_s(answer)
            away_since = None if pause_s is not None else away_since or time.monotonic()
            if away_since is not None and time.monotonic() - away_since > self._patience.away_s:
                raise UnavailableError(
                    f"the service at {self._http.base_url} is away ({told})", remedy="start it; the job continues"
                )
            self._pause(min(pause_s or self._patience.look_every_s, self._patience.most_pause_s))

    def _answer(self, method: str, path: str, **body: Any) -> tuple[httpx2.Response | None, str]:  # noqa: ANN401
        """Returns what the service answers, if it does, and that in words."""
        try:
            answer = self._http.request(method, path, **body)
        except httpx2.HTTPError as error:
            return None, _told(error)
        return answer, f"HTTP {answer.status_code}"

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._is_stopped():
            time.sleep(min(self._patience.look_every_s, max(0.0, until - time.monotonic())))


def _come_again_s(answer: httpx2.Response) -> float | None:
    """Returns how long a service that is full wants to be left alone; None for one that is not there.

    A 503 without that is no answer of the service: something before it does not find it.
    """
    if answer.status_code not in (_TOO_MANY, _UNAVAILABLE):
        return None
    told = answer.headers.get("Retry-After", "")
    if told.isdecimal():
        return float(told)
    return PATIENCE.most_pause_s if answer.status_code == _TOO_MANY else None


def _checked(answer: httpx2.Response) -> httpx2.Response:
    if answer.status_code < 400:
        return answer
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = {"code": "internal_error", "message": f"HTTP {answer.status_code}: {answer.text[:200]}"}
    raise ServiceRefusedError(error)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _bytes(path: Path) -> bytes:
    with told_reading(path):
        return path.read_bytes()


def _told(error: Exception) -> str:
    """Returns an error in one line: some of the library's have more."""
    return " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]])
