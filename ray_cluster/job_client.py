"""DashboardClient: Ray's own client of jobs, with a limit on every request, and errors that say what to do."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import ray
from ray.dashboard.modules.dashboard_sdk import SubmissionClient
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from ray_cluster.environment import changed_environment
from ray_cluster.job import (
    AccessDeniedError,
    HeadAddressError,
    HeadUnreachableError,
    JobLogError,
    JobRefusedError,
    JobSpec,
    JobState,
    JobUnknownError,
)

OLDEST_RAY = (2, 60)
MAX_REASON = 400
GRACE_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Read by the process that supervises a job, which has the environment of the job."""
WHOLE_FOLDER = {"RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "1"}
"""Read by Ray where it packs a folder, from the environment alone."""
LOG_FILE_S = 3600
"""How long Ray may take for a whole log."""
LOG_LOOK_S = 0.5
"""How often Ray looks for more of a log that is followed."""
NO_AGENT = "No available agent"
NOT_NOW = (429, 502, 503, 504)


@dataclass(frozen=True)
class JobTimeouts:
    """How long to wait for a cluster, in seconds."""

    answer_s: float = 10.0
    submit_s: float = 60.0
    upload_s: float = 300.0
    """Of a package with the working folder."""
    away_s: float = 120.0
    """Without an answer, while a job is followed."""
    log_s: float = 30.0
    """Without its log, while the head answers."""
    stale_s: float = 330.0
    """Without news of a log that is followed; then the connection is made anew."""
    tell_after_s: float = 3.0
    """A trouble that passes sooner is no news."""


def dashboard_address(address: str) -> str:
    """Returns the address as a URL without a slash at its end; raises HeadAddressError if it cannot be one."""
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_url = False
    if not is_url or parts.query or parts.fragment:
        raise HeadAddressError(
            f"{address!r} is no address of a Ray dashboard", remedy="give one like http://HEAD:8265, or https://..."
        )
    return url.rstrip("/")


@dataclass(frozen=True)
class LogRequest:
    """What is asked of a dashboard for a log. `tls`: how a certificate is checked.

    `limit_s`: until an answer begins, which is at once, for a log begins with a line of Ray's; `idle_s`: without news.
    """

    url: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    tls: ssl.SSLContext | bool
    limit_s: float
    idle_s: float


class DashboardClient(JobSubmissionClient):
    """One dashboard. Its methods raise JobError, and `log` JobLogError."""

    def __init__(self, address: str, *, headers: Mapping[str, str], verify: bool | str, timeouts: JobTimeouts) -> None:
        try:
            # JobSubmissionClient's own lets RAY_ADDRESS win over the address that is given.
            SubmissionClient.__init__(self, address=address, headers=dict(headers), verify=verify)
        except AuthenticationError as error:  # a token's file that cannot be read
            raise _denied(address, error) from error
        self._client_ray_version = ray.__version__
        self.timeouts = timeouts

    def check_version(self) -> None:
        """Raises HeadAddressError where no dashboard answers, or that of a Ray that is too old."""
        try:
            answer = self._do_request("GET", "/api/version").json()
        except ValueError as error:
            raise self._no_dashboard("it answers broken JSON") from error
        version = answer.get("ray_version") if isinstance(answer, dict) else None
        if not isinstance(version, str):
            raise self._no_dashboard("it answers without the version of a Ray")
        self._server_ray_version = version
        if _numbers(version) < OLDEST_RAY:
            oldest = ".".join(map(str, OLDEST_RAY))
            raise HeadAddressError(
                f"the cluster at {self._address} runs Ray {version}, jobs need {oldest} at least",
                remedy=f"upgrade the cluster, best to the {ray.__version__} of this machine",
            )

    def state(self, submission_id: str) -> JobState:
        """Returns how a job stands; raises JobUnknownError where there is none of that id."""
        try:
            details = self.get_job_info(submission_id)
        except ValueError as error:  # pydantic's errors are
            raise JobRefusedError(
                f"Ray {self._server_ray_version} of the cluster tells of job {submission_id} what Ray "
                f"{ray.__version__} of this machine does not know: {' '.join(str(error).split())[:MAX_REASON]}",
                remedy=f'install the same here: pip install "ray[default]=={self._server_ray_version}"',
            ) from error
        return JobState(
            status=str(details.status.value),
            entrypoint=details.entrypoint,
            exit_code=details.driver_exit_code,
            message=details.message or "",
            node_id=details.driver_node_id or "",
        )

    def submit(self, spec: JobSpec) -> None:
        """Hands a job over; its folder goes first, also what .gitignore names: what a job made is input of the next."""
        runtime_env: dict[str, Any] = {"env_vars": {GRACE_VARIABLE: str(spec.stop_grace_s)}}
        if spec.working_dir:
            runtime_env["working_dir"] = spec.working_dir
        try:
            with changed_environment(WHOLE_FOLDER):
                self.submit_job(
                    entrypoint=spec.entrypoint,
                    submission_id=spec.submission_id,
                    runtime_env=runtime_env,
                    entrypoint_num_cpus=spec.num_cpus or None,
                    entrypoint_memory=spec.memory_bytes or None,
                )
        except (ValueError, RuntimeError, OSError) as error:  # of packing the folder: what requests raise is JobError
            raise JobRefusedError(
                f"the working folder {spec.working_dir!r} cannot be sent: {_short(str(error))}",
                remedy="give a folder that can be read and is small, or one that all nodes have",
            ) from error

    @contextmanager
    def log(self, submission_id: str, node_id: str, *, is_followed: bool) -> Iterator[LogConnection]:
        """Opens the log of a job at its first byte, as bytes: Ray's own way to follow ends without a word at the first
        byte that is no UTF-8, and at a line of four million."""
        query = {"node_id": node_id, "submission_id": submission_id, "lines": "-1", "timeout": str(LOG_FILE_S)}
        if is_followed:
            query["interval"] = str(LOG_LOOK_S)
        request = LogRequest(
            url=f"{self._address}/api/v0/logs/{'stream' if is_followed else 'file'}",
            query=query,
            headers={**self._headers, "Accept-Encoding": "identity"},  # what is packed comes late
            tls=True if self._ssl_context is None else self._ssl_context,
            limit_s=self.timeouts.log_s,
            idle_s=self.timeouts.stale_s if is_followed else self.timeouts.log_s,
        )
        with asyncio.Runner() as runner:
            connection = LogConnection(runner, request, is_followed=is_followed)
            try:
                connection.open()
                yield connection
            finally:
                connection.close()

    def _do_request(
        self,
        method: str,
        endpoint: str,
        *,
        data: bytes | None = None,
        json_data: dict[str, Any] | None = None,
        **_: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        limits = self.timeouts
        limit_s = {"PUT": limits.upload_s, "POST": limits.submit_s}.get(method, limits.answer_s)
        try:
            answer = super()._do_request(
                method,
                endpoint,
                data=data,
                json_data=json_data,
                timeout=(limits.answer_s, limit_s),
                allow_redirects=False,  # it would make a GET of a POST
            )
        except AuthenticationError as error:
            raise _denied(self._address, error) from error
        except OSError as error:  # what requests raise, all of it
            raise _unreachable(self._address, error) from error
        self._check(answer, method, endpoint)
        return answer

    def _check(self, answer: Any, method: str, endpoint: str) -> None:  # noqa: ANN401
        status, reason = answer.status_code, _short(answer.text)
        if 300 <= status < 400:
            raise self._no_dashboard(f"it sends on to {answer.headers.get('Location', 'nowhere')}")
        if endpoint.startswith("/api/packages/") and status == 404:
            return  # Ray asks so whether to send a folder
        if status in NOT_NOW or (status >= 500 and (method == "GET" or NO_AGENT in reason)):
            raise HeadUnreachableError(f"{self._address} answers {status}: {reason}", remedy="wait, and try again")
        if status == 404 and "does not exist" in reason:
            raise JobUnknownError(
                f"the cluster at {self._address}: {reason}",
                remedy="look at the id (ray job list), or submit again: a head that was started anew has forgotten",
            )
        is_json = "json" in answer.headers.get("Content-Type", "")
        if status == 404 or (status == 200 and not is_json and not endpoint.startswith("/api/packages/")):
            raise self._no_dashboard(f"it answers {status} {reason!r}")
        if status != 200:
            raise JobRefusedError(
                f"the cluster at {self._address} refuses: {reason}", remedy="change what it names, and submit again"
            )

    def _no_dashboard(self, reason: str) -> HeadAddressError:
        return HeadAddressError(
            f"{self._address} is no Ray dashboard: {reason}",
            remedy="give the dashboard's address, like http://HEAD:8265",
        )


class LogConnection:
    """One connection to a log. It is read between other work: `read` returns after a while without news."""

    def __init__(self, runner: asyncio.Runner, request: LogRequest, *, is_followed: bool) -> None:
        self._runner = runner
        self._request = request
        self._is_followed = is_followed
        self._stack = AsyncExitStack()
        self._content: aiohttp.StreamReader | None = None
        self._last_news = time.monotonic()
        self.has_ended = False

    def open(self) -> None:
        """Sends the request and waits for the beginning of the answer; raises JobLogError."""
        with _told():
            self._content = self._runner.run(asyncio.wait_for(self._answer(), self._request.limit_s))

    def read(self, timeout_s: float) -> bytes:
        """Returns what has come, nothing if nothing does within `timeout_s`; raises JobLogError.

        `has_ended` tells whether that was all; a log that is followed has no end, so there it is an error.
        """
        with _told():
            chunk = self._runner.run(self._next(timeout_s))
        if chunk:
            self._last_news = time.monotonic()
        elif self.has_ended and self._is_followed:
            raise _unreadable("Ray ended the connection")
        elif time.monotonic() > self._last_news + self._request.idle_s:
            raise _unreadable(f"nothing came for {self._request.idle_s:g} s")
        return chunk

    def close(self) -> None:
        self._runner.run(self._stack.aclose())

    async def _answer(self) -> aiohttp.StreamReader:
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), trust_env=True)
        await self._stack.enter_async_context(session)
        request = self._request
        answer = await self._stack.enter_async_context(
            session.get(request.url, params=request.query, headers=request.headers, ssl=request.tls)
        )
        if answer.status != 200:
            raise _unreadable(f"{answer.status} {_short(await answer.text())}")
        return answer.content

    async def _next(self, timeout_s: float) -> bytes:
        assert self._content is not None
        try:
            async with asyncio.timeout(timeout_s):
                chunk = await self._content.readany()
        except TimeoutError:
            if error := self._content.exception():  # the connection's, not ours
                raise error from None
            return b""
        self.has_ended = not chunk
        return chunk


@contextmanager
def _told() -> Iterator[None]:
    """Tells what goes wrong with a connection as an error of ours."""
    try:
        yield
    except (aiohttp.ClientError, OSError) as error:
        raise _unreadable(str(error) or "no answer in time") from error


def _denied(address: str, error: Exception) -> AccessDeniedError:
    return AccessDeniedError(
        f"the cluster at {address} does not let you in: {_short(str(error))}",
        remedy="set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token, and RAY_AUTH_MODE=token",
    )


def _unreachable(address: str, error: Exception) -> HeadUnreachableError:
    reason = _innermost(error)
    if isinstance(reason, ssl.SSLError):
        remedy = "trust the certificate of whoever signed the address's, or give http:// if that is what it speaks"
    else:
        remedy = "look whether the cluster runs, the port is the dashboard's (8265) and this machine reaches it"
    return HeadUnreachableError(f"no answer from {address}: {reason}", remedy=remedy)


def _unreadable(reason: str) -> JobLogError:
    return JobLogError(
        f"the log cannot be read: {reason}", remedy="the job goes on; look into its log at the dashboard"
    )


def _short(text: str) -> str:
    """Returns the line that tells most: of a traceback the last, of anything else the first."""
    lines = [line.strip() for line in text.splitlines() if any(letter.isalnum() for letter in line)]
    if not lines:
        return ""
    return lines[-1 if "Traceback" in text else 0][:MAX_REASON]


def _innermost(error: BaseException) -> BaseException:
    """Returns what it began with: requests wraps urllib3, which wraps the socket's own words."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
