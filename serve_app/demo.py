"""The built-in sample through the whole service: HTTP in, events on the way, an MP4 out."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import httpx2

from serve_app.errors import RenderCancelledError, RenderFailedError
from serve_app.local_service import local_service, wait_for_groups
from serve_app.schemas.service import ServiceConfig
from serve_app.storage.local import local_file

HOST = "127.0.0.1"
SIZE = "128x128"
_QUIET_S = 120.0
"""Longest silence of the service; its event streams have a heartbeat."""
_START_S = 300.0

OnEvent = Callable[[str, dict[str, Any]], None]


def run_demo(
    out: Path, *, config_of: Callable[[Path], ServiceConfig], on_event: OnEvent, is_cancelled: Callable[[], bool]
) -> str:
    """Starts the service, sends the sample, follows its events, saves the video and stops; returns the video's id.

    `config_of` makes the configuration for a data folder, which is gone afterwards. `on_event` is told the name and
    the content of every event. Raises RenderFailedError, RenderCancelledError, OutputError or ClusterError.
    """
    with local_file(out) as file, tempfile.TemporaryDirectory(prefix="live-avatar-") as folder:
        port = _free_port()
        on_event("starting", {"url": f"http://{HOST}:{port}"})
        with (
            local_service(config_of(Path(folder)), host=HOST, port=port, is_cancelled=is_cancelled),
            _told(),
            httpx2.Client(base_url=f"http://{HOST}:{port}", timeout=_QUIET_S) as client,
        ):
            if not wait_for_groups(str(client.base_url), timeout_s=_START_S, is_cancelled=is_cancelled):
                raise _cancelled()
            video = _created(client)
            _follow(client, video, on_event=on_event, is_cancelled=is_cancelled)
            for chunk in _content(client, video):
                file.append(chunk)
        file.commit()
    return video


def _created(client: httpx2.Client) -> str:
    samples = files("serve_app.samples")
    with as_file(samples / "portrait.png") as portrait, as_file(samples / "speech.wav") as speech:
        answer = client.post(
            "/v1/videos",
            data={"prompt": (samples / "prompt.txt").read_text(encoding="utf-8").strip(), "size": SIZE},
            files={"input_reference": portrait.read_bytes(), "audio": speech.read_bytes()},
        )
    return str(_checked(answer).json()["id"])


def _follow(client: httpx2.Client, video: str, *, on_event: OnEvent, is_cancelled: Callable[[], bool]) -> None:
    with client.stream("GET", f"/v1/videos/{video}/events") as answer:
        for name, content in _events(_checked(answer), is_cancelled=is_cancelled):
            on_event(name, content)
            if name in ("failed", "cancelled"):
                raise RenderFailedError(f"the demo's video {name}: {content}", remedy="see the service's log")


def _content(client: httpx2.Client, video: str) -> Iterator[bytes]:
    with client.stream("GET", f"/v1/videos/{video}/content") as answer:
        yield from _checked(answer).iter_bytes()


@contextmanager
def _told() -> Iterator[None]:
    """Tells what ends a conversation with the service as an error of ours."""
    try:
        yield
    except httpx2.HTTPError as error:
        raise RenderFailedError(
            f"the service broke off: {type(error).__name__} {error}", remedy="start the demo again"
        ) from error


def _events(answer: httpx2.Response, *, is_cancelled: Callable[[], bool]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields name and content of Server-Sent Events; a heartbeat is none, but may find the demo cancelled."""
    name = ""
    for line in answer.iter_lines():
        if is_cancelled():
            raise _cancelled()
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def _checked(answer: httpx2.Response) -> httpx2.Response:
    if answer.is_error:
        answer.read()
        raise RenderFailedError(f"the service answered {answer.status_code}: {answer.text}", remedy="see its log")
    return answer


def _cancelled() -> RenderCancelledError:
    return RenderCancelledError("the demo was stopped", remedy="start it again")


def _free_port() -> int:
    """Returns a port that was free a moment ago; one that was taken since is told when the service starts."""
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])
