"""A job of a Ray cluster: what starts it, how it stands, what can go wrong around it. Knows no Ray."""

from __future__ import annotations

import re
import secrets
import shlex
from dataclasses import dataclass
from datetime import datetime

from ray_cluster.errors import ClusterError

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_COMMAND_BYTES = 128 * 1024 - 1
"""Of one word, for Linux; Ray hands a command to the shell as one."""


class JobError(ClusterError):
    """A job cannot be sent, or how it stands cannot be learnt."""


class HeadAddressError(JobError):
    """What answers at an address is no Ray dashboard, or none that this program can use."""


class HeadUnreachableError(JobError):
    """A cluster does not answer now."""


class AccessDeniedError(JobError):
    """A cluster wants another token, or one at all."""


class JobUnknownError(JobError):
    """A cluster has no job of that id."""


class JobRefusedError(JobError):
    """A cluster does not take a job, or not what was asked about it."""


class JobLogError(JobError):
    """The log of a job cannot be read; the job itself goes on, or has ended, as it would have."""


@dataclass(frozen=True)
class JobSpec:
    """A program for a cluster to run.

    `command`: its words; they arrive as they are, for they are quoted for the shell that Ray starts it with.
    `working_dir`: a local folder that is sent along and becomes the current one, or the URI of an archive; "" for none.
    `num_cpus`, `memory_bytes`: of the program itself; where one is given it may run on any node, else on the head.
    `stop_grace_s`: how long it may take to end when it is stopped, before it is killed.
    """

    submission_id: str
    command: tuple[str, ...]
    working_dir: str = ""
    num_cpus: float = 0.0
    memory_bytes: int = 0
    stop_grace_s: int = 3

    def __post_init__(self) -> None:
        if not JOB_ID.fullmatch(self.submission_id):
            raise ValueError(
                f"submission id {self.submission_id!r} is none; use 1 to 100 letters, digits, dots, dashes"
            )
        if self.num_cpus < 0 or self.memory_bytes < 0:
            raise ValueError(
                f"{self.num_cpus:g} CPUs and {self.memory_bytes} bytes are less than nothing; give 0 or more"
            )
        if not self.command:
            raise ValueError("the command has no words; give at least the program")
        for word in self.command:
            _check_text(word)
        num_bytes = len(self.entrypoint.encode())
        if num_bytes > MAX_COMMAND_BYTES:
            raise ValueError(f"the command has {num_bytes} bytes, at most {MAX_COMMAND_BYTES} go; write a file instead")

    @property
    def entrypoint(self) -> str:
        """The command as a shell reads it."""
        return shlex.join(self.command)


@dataclass(frozen=True)
class JobState:
    """How a job stands. `status`: Ray's word; `node_id`: where its program runs, "" while it has no place.

    `exit_code` is None while the program runs, and for ever where it was stopped, or ended in another way than by
    itself; `message` then tells why.
    """

    status: str
    entrypoint: str
    exit_code: int | None
    message: str
    node_id: str

    @property
    def is_ended(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")

    @property
    def was_stopped(self) -> bool:
        return self.status == "STOPPED"


def new_job_id(prefix: str) -> str:
    """Returns an id that tells when it was made; its end is by chance, for those who make one in the same second."""
    return f"{prefix}-{datetime.now().astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _check_text(word: str) -> None:
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{word!r} is no UTF-8, which jobs are written in; rename the file, or write \\u..."
        ) from error
