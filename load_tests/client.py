"""The open-loop client: every request starts at its own time, whatever became of those before it.

All moments of an outcome are seconds from the intended start of its request: what a client in a hurry would have
waited, however late this process was (that is `slip_s`).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import Any

import httpx2

from load_tests.arrivals import Arrival
from load_tests.bodies import CLIP_S, FRAME_S, Bodies, Body, upload
from load_tests.playback import FragmentReader, Playback

ENDINGS = ("completed", "failed", "cancelled")
_LEAD_S = 0.2
"""Between the start of the run and the first arrival: nothing is late because it is first."""
_PAUSE_S = 0.25
"""Before a stream that broke is opened again."""
_GONE = "lost: the service does not know it any more"


@dataclass(frozen=True)
class Limits:
    """Every wait of the client, in seconds, and how much it takes on at once."""

    answer_s: float = 60.0
    """For the answer to POST."""
    quiet_s: float = 120.0
    """A stream that says nothing for so long is broken."""
    finish_s: float = 1800.0
    """From the answer to the end of the video."""
    tail_s: float = 10.0
    """For the live stream to end once the video has."""
    max_in_flight: int = 5000
    """More requests at once than that are not sent, and make the run invalid."""


@dataclass
class Outcome:
    """What became of one request; None: it did not come to that, or nobody looked."""

    arrival: Arrival
    slip_s: float | None = None
    """How late it was sent; None: it was not."""
    status: int | None = None
    answered_s: float | None = None
    refusal: str | None = None
    retry_after_s: float | None = None
    fault: str | None = None
    """What went wrong on the way: no answer, a broken stream, an end that was not waited for."""
    video_id: str | None = None
    promise_s: float | None = None
    started_s: float | None = None
    ending: str | None = None
    failure: str | None = None
    ended_s: float | None = None
    took_s: float | None = None
    """From the event `queued` to the last one, by the service's own clock."""
    first_byte_s: float | None = None
    first_block_s: float | None = None
    num_bytes: int = 0
    playback: Playback | None = None
    is_cut: bool | None = None
    """Whether a live stream that was read to its end ended before the video did."""

    @property
    def is_accepted(self) -> bool:
        return self.video_id is not None

    @property
    def is_promise_kept(self) -> bool | None:
        """Whether the video was done within its promise, which counts from its admission: the event `queued`."""
        if self.promise_s is None or self.ending is None or self.took_s is None:
            return None
        return self.ending == "completed" and self.took_s <= self.promise_s

    @property
    def is_good(self) -> bool:
        """Whether the video was made, and in time if a time was promised."""
        return self.ending == "completed" and self.is_promise_kept is not False


OnOutcome = Callable[[Outcome], None]


async def play(
    url: str, arrivals: Sequence[Arrival], *, limits: Limits, on_outcome: OnOutcome, uploads_once: bool = False
) -> None:
    """Sends every request at its time and follows each accepted one to its end; tells outcomes as they are known.

    Portrait and voice come with every request as a form, or `uploads_once` before the run and then as file ids.
    Raises httpx2.HTTPError when that upload fails.
    """
    timeout = httpx2.Timeout(limits.quiet_s, connect=limits.answer_s, pool=limits.answer_s)
    connections = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx2.AsyncClient(base_url=url, timeout=timeout, limits=connections, trust_env=False) as http:
        files = await upload(http, {one.num_clip for one in arrivals}) if uploads_once else None
        await _Client(http, limits, Bodies(files), on_outcome).play(arrivals)


@dataclass
class _Client:
    http: httpx2.AsyncClient
    limits: Limits
    bodies: Bodies
    on_outcome: OnOutcome
    num_in_flight: int = 0

    async def play(self, arrivals: Sequence[Arrival]) -> None:
        clock = asyncio.get_running_loop().time
        self.bodies.prepare(arrivals)
        begin = clock() + _LEAD_S
        async with asyncio.TaskGroup() as tasks:
            for arrival in arrivals:
                intended = begin + arrival.at_s
                if (wait_s := intended - clock()) > 0:
                    await asyncio.sleep(wait_s)
                self._begin(_Request(self, Outcome(arrival), _Clock(intended)), tasks)

    def _begin(self, request: _Request, tasks: asyncio.TaskGroup) -> None:
        if self.num_in_flight >= self.limits.max_in_flight:
            request.outcome.fault = "not_sent"
            self.on_outcome(request.outcome)
            return
        self.num_in_flight += 1
        tasks.create_task(self._finish(request))

    async def _finish(self, request: _Request) -> None:
        try:
            await request.run()
        finally:
            self.num_in_flight -= 1
            self.on_outcome(request.outcome)


@dataclass(frozen=True)
class _Clock:
    """Seconds since the intended start."""

    intended: float

    def now(self) -> float:
        return time.monotonic() - self.intended


@dataclass
class _Request:
    client: _Client
    outcome: Outcome
    clock: _Clock
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    queued_at: float | None = None

    async def run(self) -> None:
        try:
            async with asyncio.timeout(self.client.limits.answer_s):
                await self._post(self.client.bodies.of(self.outcome.arrival))
        except (httpx2.HTTPError, ValueError, KeyError, TimeoutError) as error:
            self.outcome.fault = f"post: {type(error).__name__}"
        if self.outcome.is_accepted:
            await self._see_through()

    async def _post(self, body: Body) -> None:
        outcome, headers = self.outcome, {"Content-Type": body.type}
        outcome.slip_s = self.clock.now()
        answer = await self.client.http.post("/v1/videos", content=body.content, headers=headers)
        outcome.answered_s, outcome.status = self.clock.now(), answer.status_code
        if answer.is_success:
            video = answer.json()
            outcome.video_id, outcome.promise_s = str(video["id"]), _promise_s(video)
        else:
            outcome.refusal = _code(answer)
            outcome.retry_after_s = _seconds(answer.headers.get("Retry-After"))

    async def _see_through(self) -> None:
        """Follows events and live stream at once; the reader may outlive the video by a little."""
        limits, reading = self.client.limits, asyncio.create_task(self._read())
        try:
            async with asyncio.timeout(limits.finish_s):
                await self._follow()
        except TimeoutError:
            self.outcome.fault = "unfinished"
        except (ValueError, KeyError, TypeError) as error:
            self.outcome.fault = f"events: {type(error).__name__}"
        self.is_over.set()
        await asyncio.wait({reading}, timeout=limits.tail_s)
        if not reading.done():
            self.outcome.fault = self.outcome.fault or "content: did not end with the video"
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading

    async def _follow(self) -> None:
        """Reads events until the video has ended; a stream that breaks is resumed behind the last event."""
        last = ""
        while self.outcome.ending is None and self.outcome.fault != _GONE:
            with suppress(httpx2.TransportError):
                async with aclosing(self._events(last)) as events:
                    async for number, name, content in events:
                        last = number
                        if self._is_last(name, content):
                            return
            await asyncio.sleep(_PAUSE_S)

    async def _events(self, last: str) -> AsyncGenerator[tuple[str, str, str], None]:
        """Yields number, name and content of Server-Sent Events behind `last`."""
        headers, event = {"Last-Event-ID": last} if last else {}, {"id": last}
        path = f"/v1/videos/{self.outcome.video_id}/events"
        async with self.client.http.stream("GET", path, headers=headers) as answer:
            if answer.status_code == HTTPStatus.NOT_FOUND:
                self.outcome.fault = _GONE
            if answer.is_error:
                return
            async for line in answer.aiter_lines():
                if not line and "event" in event:
                    yield event["id"], event["event"], event.get("data", "")
                    event = {"id": event["id"]}
                name, _, value = line.partition(":")
                event[name] = value.strip()

    def _is_last(self, name: str, content: str) -> bool:
        """Notes an event; says whether no other comes after it."""
        now, outcome, told = self.clock.now(), self.outcome, json.loads(content)
        if name == "queued":
            self.queued_at = float(told["at"])
        if name == "started" and outcome.started_s is None:
            outcome.started_s = now
        if name == "failed":
            outcome.failure = str(told["error"]["code"])
        if name in ENDINGS:
            outcome.ending, outcome.ended_s = name, now
            outcome.took_s = None if self.queued_at is None else float(told["at"]) - self.queued_at
        return name in ENDINGS

    async def _read(self) -> None:
        """Plays the live stream as the arrival's reader does; as long as there is none, asks for it again."""
        reader = self.outcome.arrival.reader
        try:
            while reader != "none" and not await self._play_back(reader):
                await asyncio.sleep(_PAUSE_S)
        except (httpx2.HTTPError, ValueError) as error:
            self.outcome.fault = f"content: {type(error).__name__}"

    async def _play_back(self, reader: str) -> bool:
        """Reads the video; says False when nothing of it is made yet."""
        outcome, fragments = self.outcome, FragmentReader()
        async with self.client.http.stream("GET", f"/v1/videos/{outcome.video_id}/content") as answer:
            if answer.status_code == HTTPStatus.CONFLICT:
                return False
            answer.raise_for_status()
            outcome.playback = Playback()
            async for chunk in answer.aiter_raw():
                now = self.clock.now()
                outcome.num_bytes += len(chunk)
                outcome.first_byte_s = outcome.first_byte_s or now
                for fragment in fragments.feed(chunk):
                    outcome.first_block_s = outcome.first_block_s or now
                    outcome.playback.arrive(fragment, now)
                if reader == "stop" and outcome.playback.num_fragments:
                    await self.is_over.wait()
                    return True
        outcome.is_cut = outcome.playback.media_s < outcome.arrival.num_clip * CLIP_S - FRAME_S
        return True


def _promise_s(video: Mapping[str, Any]) -> float | None:
    promise = (video.get("quote") or {}).get("promise_in_s")
    return None if promise is None else float(promise)


def _code(answer: httpx2.Response) -> str:
    """Returns the error's code, or what stands in for one in an answer that is not the API's."""
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return f"http_{answer.status_code}"


def _seconds(header: str | None) -> float | None:
    return None if header is None else float(header)


def to_json(outcome: Outcome) -> str:
    """Returns an outcome as one line of JSON, what nobody measured left out."""
    everything = {
        **asdict(outcome.arrival),
        **{name: value for name, value in vars(outcome).items() if name not in ("arrival", "playback")},
        **(asdict(outcome.playback) if outcome.playback else {}),
        "is_promise_kept": outcome.is_promise_kept,
        "is_good": outcome.is_good,
    }
    return json.dumps({name: value for name, value in everything.items() if value is not None})
