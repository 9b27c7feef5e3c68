"""Jobs on a real head, over HTTP and with a token, as a user's machine sees them."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ray_cluster.job import (
    AccessDeniedError,
    HeadUnreachableError,
    JobLogError,
    JobRefusedError,
    JobSpec,
    JobUnknownError,
    new_job_id,
)
from ray_cluster.job_client import GRACE_VARIABLE, JobTimeouts
from ray_cluster.job_submit import Job, JobCluster, connect
from tests.ray_cluster.conftest import eventually
from tests.ray_cluster.gateway import Gateway, gateway_to
from tests.ray_cluster.heads import BIN, Head, end_head, ray_head

TOKEN = secrets.token_hex(32)
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
LIMITS = JobTimeouts(answer_s=60)
"""Of a machine that is busy with other tests."""
QUICK = JobTimeouts(answer_s=10, away_s=1, log_s=1, tell_after_s=0.2)
END_S = 60.0

Submit = Callable[..., Job]


def environment() -> dict[str, str]:
    """Of a head, and of a user who may use it; nothing that leads to another one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("j"), environment(), num_cpus=2) as running:
        yield running


@pytest.fixture(scope="module")
def jobs(head: Head) -> JobCluster:
    return connected(head)


def connected(head: Head, timeouts: JobTimeouts = LIMITS) -> JobCluster:
    """Returns the cluster of a head that has just started; it takes jobs a while later."""
    jobs = connect(head.address, headers=HEADERS, timeouts=timeouts)
    assert eventually(lambda: is_taken(jobs, spec("pass")), within_s=END_S)
    return jobs


def is_taken(jobs: JobCluster, first: JobSpec) -> bool:
    with suppress(HeadUnreachableError):
        jobs.submit(first)
        return True
    return False


@pytest.fixture
def gateway(head: Head) -> Iterator[Gateway]:
    with gateway_to(head.address) as between:
        yield between


def spec(code: str, *arguments: str, submission_id: str = "", **options: object) -> JobSpec:
    """A job of a small Python program."""
    command = (sys.executable, "-c", code, *arguments)
    return JobSpec(submission_id or new_job_id("test"), command, **options)  # type: ignore[arg-type]


def printed(job: Job, *, is_cancelled: Callable[[], bool] = lambda: False) -> str:
    """Returns what the program printed; Ray writes a line before it starts it, and another that may come later."""
    log = "".join(job.follow(is_cancelled=is_cancelled, on_note=lambda _: None))
    first, _, rest = log.partition("\n")
    assert first.endswith("Runtime env is setting up.")
    return rest.replace(f"Running entrypoint for job {job.submission_id}: {job.state().entrypoint}\n", "", 1)


def ended(job: Job) -> int | None:
    return job.wait(is_cancelled=lambda: False, on_note=lambda _: None).exit_code


def test_the_exit_code_of_the_program_arrives(jobs: JobCluster) -> None:
    codes = [0, 3, 5]
    running = [jobs.submit(spec(f"raise SystemExit({code})")) for code in codes]
    assert [ended(job) for job in running] == codes


CHATTY = r"""
import os, time
for number in range(6_000):
    os.write(1, b"line %d\n" % number)
    if number % 2_000 == 0:
        time.sleep(0.7)
os.write(1, b"same\n" * 3_000)
os.write(2, b"caf\xe9 \xff\n" + "\u017eluou\u010dk\u00fd\n".encode())
os.write(1, b"x" * 5_000_000 + b"\n\n\nno newline at the end")
"""
SAID = (
    "".join(f"line {number}\n" for number in range(6_000))
    + "same\n" * 3_000
    + "caf\\xe9 \\xff\nžluoučký\n"
    + "x" * 5_000_000
    + "\n\n\nno newline at the end"
)


def test_what_a_job_prints_arrives_in_order_and_once(jobs: JobCluster) -> None:
    job = jobs.submit(spec(CHATTY))
    assert printed(job) == SAID
    assert printed(job) == SAID, "of a job that has ended already"


def test_what_a_job_prints_arrives_once_over_connections_that_break(jobs: JobCluster, gateway: Gateway) -> None:
    job = jobs.submit(spec(CHATTY))
    through = connect(gateway.address, headers=HEADERS, timeouts=LIMITS).find(job.submission_id)
    assert through is not None
    gateway.max_bytes, gateway.growth = 20_000, 4
    assert printed(through) == SAID
    assert gateway.num_cut >= 4


def test_following_holds_little_of_a_log_at_a_time(jobs: JobCluster) -> None:
    job = jobs.submit(spec("for _ in range(40): print('y' * 1_000_000)"))
    ended(job)
    tracemalloc.start()
    num_letters = sum(len(piece) for piece in job.follow(is_cancelled=lambda: False, on_note=lambda _: None))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_letters > 40_000_000
    assert peak_bytes < 5_000_000


HOSTILE = [
    "two words",
    'it\'s "quoted"',
    "$(touch /tmp/never) `id` ${HOME} $HOME",
    "line\nbreak\ttab\\n",
    "",
    "*",
    "~",
    "!! ; & | > x # no comment",
    "--prompt=ěšč 🎬",
    "-",
    "--",
    "%s {0}",
]


def test_words_arrive_as_they_were_typed(jobs: JobCluster) -> None:
    job = jobs.submit(spec("import json, sys; print(json.dumps(sys.argv[1:]))", *HOSTILE))
    assert json.loads(printed(job)) == HOSTILE


def test_the_second_of_an_id_gets_the_job_of_the_first(jobs: JobCluster) -> None:
    name = new_job_id("twice")
    first = jobs.submit(spec("import time; print('first'); time.sleep(2)", submission_id=name))
    second = jobs.submit(spec("print('second')", submission_id=name))
    assert printed(first) == printed(second) == "first\n"
    found = jobs.find(name)
    assert found is not None
    assert found.state().is_ended


def test_an_answer_that_is_lost_makes_no_second_job(jobs: JobCluster, gateway: Gateway) -> None:
    through = connect(gateway.address, headers=HEADERS, timeouts=LIMITS)
    once, never = spec("print('once')"), spec("print('never told of')")
    gateway.max_bytes, gateway.growth = 1, 1_000_000
    assert printed(through.submit(once)) == "once\n"
    assert gateway.num_cut == 1
    gateway.max_bytes, gateway.growth = 1, 1
    with pytest.raises(HeadUnreachableError, match=f"whether job {never.submission_id} is there is not known"):
        through.submit(never)
    assert jobs.find(never.submission_id) is not None


def test_an_id_that_nobody_used_is_not_found(jobs: JobCluster) -> None:
    assert jobs.find("nobody") is None
    with pytest.raises(JobUnknownError, match="nobody"):
        Job("nobody", jobs.client).state()


STUBBORN = """
import os, signal, subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"])
signal.signal(signal.SIGTERM, lambda *_: print("told", "to stop"))
Path(sys.argv[1]).write_text(f"{os.getpid()} {child.pid} .")
signal.pause()
time.sleep(1)
print("tidied", "up")
signal.pause()
"""


def test_a_stopped_job_is_told_gets_its_time_and_then_is_gone(jobs: JobCluster, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    job = jobs.submit(spec(STUBBORN, str(pids), stop_grace_s=3))
    eventually(lambda: pids.exists() and pids.read_text().endswith("."))
    running = [psutil.Process(int(pid)) for pid in pids.read_text().split()[:2]]
    assert jobs.client.stop_job(job.submission_id)
    assert ended(job) is None
    assert job.state().was_stopped
    assert printed(job) == "told to stop\ntidied up\n"
    assert psutil.wait_procs(running, timeout=END_S)[1] == []


HAS_ITS_OWN_RAY = """
import signal, sys, time
from pathlib import Path
import ray
from ray_cluster.local import MIB, local_cluster
told = []
with local_cluster(num_cpus=1, num_gpus=0, object_store_bytes=128 * MIB):
    signal.signal(signal.SIGINT, lambda *_: told.append(True))
    Path(sys.argv[1]).touch()
    while not told:
        time.sleep(0.05)
    print(ray.get(ray.remote(lambda: "works still").remote(), timeout=30))
"""


def test_a_private_ray_outlives_the_signal_that_stops_its_driver(jobs: JobCluster, tmp_path: Path) -> None:
    """As the RayJob of the running service has it."""
    started, sent = tmp_path / "started", spec(HAS_ITS_OWN_RAY, str(tmp_path / "started"))
    stopped_by = {"RAY_JOB_STOP_SIGNAL": "SIGINT", GRACE_VARIABLE: "60"}
    jobs.client.submit_job(
        entrypoint=sent.entrypoint, submission_id=sent.submission_id, runtime_env={"env_vars": stopped_by}
    )
    job = Job(sent.submission_id, jobs.client)
    eventually(started.exists, within_s=END_S)
    assert jobs.client.stop_job(job.submission_id)
    assert ended(job) is None
    assert printed(job) == "works still\n"


def test_a_job_without_a_place_is_told_of(jobs: JobCluster) -> None:
    job, notes = jobs.submit(spec("pass", num_cpus=50)), list[str]()
    assert "".join(job.follow(is_cancelled=lambda: bool(notes), on_note=notes.append)) == ""
    assert "waiting for resources" in notes[0]


KILLS_ITS_SUPERVISOR = """
import os, signal
from pathlib import Path
shell = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
print("now", flush=True)
os.kill(int(shell[1]), signal.SIGKILL)
signal.pause()
"""


def test_a_job_whose_supervisor_dies_ends_without_an_exit_code(jobs: JobCluster) -> None:
    job = jobs.submit(spec(KILLS_ITS_SUPERVISOR))
    assert printed(job).startswith("now\n")
    state = job.state()
    assert (state.status, state.exit_code) == ("FAILED", None)
    assert "died" in state.message


def test_a_working_folder_is_sent_along_also_what_git_ignores(jobs: JobCluster, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("a row\n")
    (tmp_path / ".gitignore").write_text("*.jsonl\n")
    job = jobs.submit(spec("print(open('rows.jsonl').read(), end='')", working_dir=str(tmp_path)))
    assert printed(job) == "a row\n"


def test_a_working_folder_that_is_missing_is_refused(jobs: JobCluster, tmp_path: Path) -> None:
    with pytest.raises(JobRefusedError, match="missing"):
        jobs.submit(spec("pass", working_dir=str(tmp_path / "missing")))


def test_a_head_that_comes_back_is_followed_on(jobs: JobCluster, gateway: Gateway) -> None:
    job = jobs.submit(spec("import time\nfor number in range(6): print('number', number); time.sleep(0.4)"))
    through = connect(gateway.address, headers=HEADERS, timeouts=LIMITS).find(job.submission_id)
    assert through is not None
    log = ""
    for piece in through.follow(is_cancelled=lambda: False, on_note=lambda _: None):
        log += piece
        if "number 1\n" in log and not gateway.is_away:
            gateway.leave()
            threading.Timer(1, gateway.come_back).start()
    assert log.endswith("".join(f"number {number}\n" for number in range(6)))


def test_a_head_that_dies_is_given_up_with_the_way_to_go_on(tmp_path_factory: pytest.TempPathFactory) -> None:
    with ray_head(tmp_path_factory.mktemp("k"), environment(), num_cpus=1) as mortal:
        job = connected(mortal, QUICK).submit(spec("import time; time.sleep(99)"))
        log, notes = job.follow(is_cancelled=lambda: False, on_note=lambda _: None), list[str]()
        assert "Runtime env" in next(log)
        end_head(mortal.pid)
        died = time.monotonic()
        again = f"the job goes on if its cluster does: ray job logs --follow {job.submission_id} --address http"
        with pytest.raises(HeadUnreachableError, match=f"Connection refused.*{again}"):
            list(log)
        with pytest.raises(HeadUnreachableError, match=f"Connection refused.*{again}"):
            job.wait(is_cancelled=lambda: False, on_note=notes.append)
        assert time.monotonic() - died < 5 * (QUICK.away_s + QUICK.answer_s)
        assert len(notes) == 1


def test_a_log_that_breaks_off_again_and_again_is_given_up_and_the_exit_code_is_not(
    jobs: JobCluster, gateway: Gateway
) -> None:
    job = jobs.submit(spec("print('z' * 1_000_000); raise SystemExit(3)"))
    through = connect(gateway.address, headers=HEADERS, timeouts=QUICK).find(job.submission_id)
    assert through is not None
    gateway.max_bytes = 100_000
    with pytest.raises(JobLogError, match="the log cannot be read"):
        printed(through)
    assert ended(through) == 3


@pytest.mark.parametrize("token", ["0" * 64, "no token"])
def test_a_wrong_token_is_refused_with_the_remedy(head: Head, token: str) -> None:
    with pytest.raises(AccessDeniedError, match="RAY_AUTH_TOKEN"):
        connect(head.address, headers={"Authorization": f"Bearer {token}"})


ASKS = """
import sys
from ray_cluster.job import JobError
from ray_cluster.job_submit import connect
try:
    print(connect(sys.argv[1]).find("nobody"))
except JobError as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"RAY_AUTH_TOKEN": TOKEN}, "None"),
        ({"RAY_AUTH_TOKEN_PATH": "missing"}, "AccessDeniedError"),
        ({"RAY_AUTH_MODE": "disabled"}, "AccessDeniedError"),
    ],
    ids=["right", "no file", "off"],
)
def test_rays_own_settings_decide_about_the_token(
    head: Head, tmp_path: Path, settings: dict[str, str], answer: str
) -> None:
    environ = {name: value for name, value in environment().items() if name != "RAY_AUTH_TOKEN"}
    environ |= {"HOME": str(tmp_path), "RAY_ADDRESS": "http://127.0.0.1:9", **settings}
    command = [sys.executable, "-c", ASKS, head.address]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=END_S)
    assert done.stdout.strip() == answer, done.stderr


def test_the_way_by_hand(head: Head, tmp_path: Path) -> None:
    """As the README has it, with a program that prints its words in the place of `live-avatar`."""
    program = tmp_path / "live-avatar"
    program.write_text('#!/bin/sh\nprintf "<%s>" "$@" "$RAY_JOB_STOP_WAIT_TIME_S"\nexit 3\n')
    program.chmod(0o755)
    words = ["bulk", "run", "s3://b/rows.jsonl", "--out", "s3://b/it's $(id)", "--address", "auto"]
    grace = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    command = [BIN / "ray", "job", "submit", "--address", head.address, "--runtime-env-json", grace, "--"]
    done = subprocess.run([*command, program, *words], env=environment(), capture_output=True, text=True, timeout=END_S)
    assert "".join(f"<{word}>" for word in [*words, "60"]) in done.stdout, done.stderr
    assert done.returncode == 1, "Ray's own command answers so for any exit code but 0"
